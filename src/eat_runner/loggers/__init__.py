"""Loggers: who is told about a run while it trains. A logger is a file here, a line in LOGGERS and a YAML."""

from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from eat_runner.config.logger import LoggerConfig
from eat_runner.loggers.base import About, Logger
from eat_runner.loggers.csv import Csv
from eat_runner.loggers.progress import Progress
from eat_runner.records import RunRecord
from eat_runner.train.history import EpochRow

# Each key has a conf/loggers/<key>.yaml. (its config, the run) -> logger
LOGGERS: dict[str, Callable[[Any, About], Logger]] = {
    "csv": Csv,
    "progress": Progress,
}


class Loggers:
    """All loggers of a run as one. record: what ``close`` will tell them, once somebody has set it."""

    def __init__(self) -> None:
        self.loggers: list[Logger] = []
        self.record: RunRecord | None = None

    def log(self, row: EpochRow) -> None:
        for logger in self.loggers:
            logger.log(row)

    def step(self, done: int, figures: str) -> None:
        for logger in self.loggers:
            logger.step(done, figures)

    def say(self, line: str) -> None:
        for logger in self.loggers:
            logger.say(line)


@contextmanager
def listening(configs: Mapping[str, LoggerConfig], about: About) -> Generator[Loggers]:
    """The loggers of ``configs`` for the length of the block; each is closed, however the block ends."""
    told = Loggers()
    with ExitStack() as stack:
        for name, config in configs.items():
            logger = LOGGERS[name](config, about)
            stack.callback(lambda logger=logger: logger.close(told.record))
            told.loggers.append(logger)
        yield told
