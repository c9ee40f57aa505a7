"""What a logger is to a run: it is told what happens, and changes nothing."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from eat_runner.errors import UserError, printable
from eat_runner.records import RunFolder, RunRecord
from eat_runner.train.history import EpochRow

# of a record, what a logger is told as the result
RESULTS = "accuracy loss firing_rate firing_rate_test energy budget parameters epochs_done timings".split()


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

    @property
    def parameters(self) -> dict[str, Any]:
        """The configuration, flat: ``{"trainer.epochs": 10, …}``."""
        return dict(_flat(self.config, "."))


class Logger:
    """Does nothing; a logger overrides what it wants to hear. It lives from its construction to ``close``.

    It may fail: the run goes on, and the logger hears no more of it. tries_again: it is told the next epoch all the
    same.
    """

    tries_again = False

    def __init__(self, config: Any, about: About):
        """config: the logger's own, of the group ``loggers``."""
        self.config, self.about = config, about

    @classmethod
    def check(cls, config: Any) -> None:
        """Before any work is started: raise UserError where it cannot work here."""

    def log(self, row: EpochRow) -> None:
        """An epoch is over; the row is whole."""

    def step(self, done: int, figures: str) -> None:
        """So many steps are done; called every few steps with a line of figures."""

    def say(self, line: str) -> None:
        """Something that a person should know."""

    def close(self, record: RunRecord | None = None) -> None:
        """It is over, in whatever way. record: what came out; None where the process was stopped or failed, or the
        logger did."""

    @classmethod
    def show(cls, config: Any, folder: Path, figures: Sequence[Path]) -> None:
        """``figures`` (PNG) have been drawn of all runs in ``folder``, which is called like the sweep. One process at a
        time calls this."""


def metrics_of(row: EpochRow) -> dict[str, float]:
    """A row's numbers: ``{"history/cross_entropy": …}``, without those that are None."""
    return {f"history/{key}": value for key, value in asdict(row).items() if key != "epoch" and value is not None}


def results_of(record: RunRecord) -> dict[str, float]:
    """A record's numbers: ``{"final/accuracy/test": …, "final/energy/fused_7nm/test/ratio": …}``."""
    values = _flat({key: getattr(record, key) for key in RESULTS}, "/")
    return {f"final/{key}": float(value) for key, value in values if isinstance(value, int | float)}


def package(name: str, logger: str) -> Any:
    """A module of the extra that is called like the logger, imported when asked for. UserError without it."""
    try:
        return import_module(name)
    except Exception as error:  # of versions that do not go together, an import can raise anything
        raise UserError(
            f"loggers={logger} needs packages that cannot be imported ({printable(str(error))}): "
            f"pip install 'eat-runner[{logger}]'"
        ) from error


def _flat(values: Mapping[str, Any], separator: str, before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, separator, f"{before}{key}{separator}")
        else:
            yield f"{before}{key}", value
