"""Loggers: who is told about a run while it trains. A logger is a file here, a line in LOGGERS and a YAML."""

import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from eat_runner.config.logger import LoggerConfig
from eat_runner.errors import one_line, printable
from eat_runner.loggers.base import About, Logger
from eat_runner.loggers.csv import Csv
from eat_runner.loggers.mlflow import Mlflow
from eat_runner.loggers.progress import Progress
from eat_runner.loggers.tensorboard import TensorBoard
from eat_runner.loggers.wandb import Wandb
from eat_runner.progress import Audience
from eat_runner.records import RunRecord
from eat_runner.train.history import EpochRow

# Each key has a conf/loggers/<key>.yaml.
LOGGERS: dict[str, type[Logger]] = {
    "csv": Csv,
    "progress": Progress,
    "tensorboard": TensorBoard,
    "mlflow": Mlflow,
    "wandb": Wandb,
}


class Loggers:
    """All loggers of a run as one; none of them makes it fail. record: what ``close`` will tell them, once somebody has
    set it."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self.loggers: dict[str, Logger] = {}
        self.failed: set[str] = set()
        self.record: RunRecord | None = None

    def log(self, row: EpochRow) -> None:
        self._tell(lambda logger: logger.log(row))

    def step(self, done: int, figures: str) -> None:
        self._tell(lambda logger: logger.step(done, figures))

    def say(self, line: str) -> None:
        self._tell(lambda logger: logger.say(line))

    def _tell(self, what: Callable[[Logger], None]) -> None:
        for name, logger in self.loggers.items():
            if name not in self.failed or logger.tries_again:
                with self.forgiving(name):
                    what(logger)

    def close(self, name: str) -> None:
        with self.forgiving(name):
            self.loggers[name].close(None if name in self.failed else self.record)

    @contextmanager
    def forgiving(self, name: str) -> Generator[None]:
        """Within the block the logger may raise what it wants: the first time, a line on stderr says so."""
        try:
            yield
        except Exception as error:
            if name not in self.failed:
                _tell_failure(self.run_id, name, error)
            self.failed.add(name)


@contextmanager
def listening(configs: Mapping[str, LoggerConfig], about: About) -> Generator[Loggers]:
    """The loggers of ``configs`` for the length of the block; each is closed, however the block ends."""
    told = Loggers(about.run_id)
    with ExitStack() as stack:
        for name, config in configs.items():
            with told.forgiving(name):
                told.loggers[name] = LOGGERS[name](config, about)
                stack.callback(told.close, name)
        yield told


def show(configs: Mapping[str, LoggerConfig], folder: Path, figures: Sequence[Path]) -> None:
    """Tell the loggers what was drawn of all runs in ``folder``."""
    for name, config in configs.items() if figures else ():
        try:
            LOGGERS[name].show(config, folder, figures)
        except Exception as error:
            _tell_failure(folder.name, name, error)


def _tell_failure(whose: str, name: str, error: Exception) -> None:
    reason = printable(one_line(f"{type(error).__name__}: {error}"))
    Audience(sys.stderr).write(f"{whose}  loggers={name} failed, which takes nothing from the run: {reason}\n")
