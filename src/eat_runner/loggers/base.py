"""What a logger is to a run: it is told what happens, and changes nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eat_runner.records import RunFolder, RunRecord
from eat_runner.train.history import EpochRow


@dataclass(frozen=True)
class About:
    """The run that a logger is told about. config: plain values under the command line's names. steps: of the whole
    training; steps_done, history: what an earlier process did of it."""

    run_id: str
    folder: RunFolder
    config: dict[str, Any]
    steps: int
    steps_done: int
    history: Sequence[EpochRow]


class Logger:
    """Does nothing; a logger overrides what it wants to hear. It lives from its construction to ``close``."""

    def __init__(self, config: Any, about: About):
        """config: the logger's own, of the group ``loggers``."""
        self.config, self.about = config, about

    def log(self, row: EpochRow) -> None:
        """An epoch is over; the row is whole."""

    def step(self, done: int, figures: str) -> None:
        """So many steps are done; called every few steps with a line of figures."""

    def say(self, line: str) -> None:
        """Something that a person should know."""

    def close(self, record: RunRecord | None = None) -> None:
        """It is over, in whatever way. record: what came out; None where the process was stopped or failed."""
