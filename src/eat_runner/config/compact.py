"""The config group ``compact``: which channels are taken out of a trained network."""

from dataclasses import dataclass

from eat_runner.config.checks import one_of
from eat_runner.config.method import NONE, MethodConfig

CHOICES = ("exact", "fired")


@dataclass(kw_only=True, slots=True)
class CompactConfig(MethodConfig):
    """name: ``exact`` takes out what provably changes no output; ``fired`` also the channels that are zero on all of
    the first 1,000 training images."""

    def check(self) -> None:
        one_of("compact.name", self.name, (*CHOICES, NONE))
