"""The config group ``bits``: how wide the integers are that the trained network computes with."""

from dataclasses import dataclass, replace
from typing import Self

from eat_runner.config.checks import between, one_of
from eat_runner.config.method import NONE, MethodConfig

WIDE = 8  # bits of the first and the last layer of a network of narrower integers


@dataclass(kw_only=True, slots=True)
class BitsConfig(MethodConfig):
    """A network of integers, made after the training.

    name: bits of weights and of stored activations, ``8`` or ``4``.
    begin: share of the training at which it begins to compute in what these integers can hold; 1: it never does, and
    the integers are only calibrated at the end.
    first_last_8: with fewer than 8 bits, the first layer's weights, the last one's and what the last one reads have 8.
    """

    begin: float = 1.0
    first_last_8: bool = True

    @property
    def width(self) -> int:
        """Of weights and stored activations inside the network."""
        return int(self.name)

    @property
    def end_width(self) -> int:
        """Of the first layer's weights, the last one's, and what the last one reads."""
        return max(self.width, WIDE) if self.first_last_8 else self.width

    @property
    def widths(self) -> frozenset[int]:
        return frozenset({self.width, self.end_width})

    def settled(self, has_budget: bool) -> Self:
        return replace(self, first_last_8=True) if self.width >= WIDE else self

    def check(self) -> None:
        one_of("bits.name", self.name, [NONE, "8", "4"])
        between("bits.begin", self.begin, 0.0, 1.0)
