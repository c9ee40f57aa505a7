"""Weights & Biases: a run in the group that is called like the sweep (the extra wandb).

Offline, which is the default, everything stays in the folder ``.wandb`` of the run until somebody says `wandb sync`. It
is hidden because there are files called config.yaml in there, and only runs have one.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eat_runner.config.identity import HASH_DIGITS, digest
from eat_runner.config.logger import WandbConfig
from eat_runner.errors import UserError
from eat_runner.loggers.base import About, Logger, metrics_of, package, results_of
from eat_runner.records import RunRecord
from eat_runner.train.history import EpochRow

REPORT = "report"  # in place of a run id: the figures of all runs


class Wandb(Logger):
    """A server knows the epochs that it has, and is told the others. A folder cannot be gone on with: a new one has the
    rows of earlier processes first, and theirs go then."""

    def __init__(self, config: WandbConfig, about: About):
        super().__init__(config, about)
        tags = [about.config["dataset"]["name"], about.config["model"]["name"]]
        self.run = _open(config, about.folder.path, about.folder.path.parent.name, about.run_id, about.parameters, tags)
        for row in about.history:
            self.log(row)
        _forget_others(self.run)

    @classmethod
    def check(cls, config: WandbConfig) -> None:
        wandb = _wandb()
        if config.mode == "online":
            try:
                wandb.login()  # asks, on a terminal
            except Exception as error:
                raise UserError(
                    "loggers.wandb.mode=online needs a key of the server: run wandb login or set WANDB_API_KEY, or "
                    "leave mode=offline"
                ) from error

    def log(self, row: EpochRow) -> None:
        if row.epoch >= self.run.starting_step:
            self.run.log(metrics_of(row), step=row.epoch, commit=True)

    def close(self, record: RunRecord | None = None) -> None:
        if record is not None:
            self.run.summary.update(results_of(record) | {"status": record.status})
        self.run.finish(exit_code=int(record is None))

    @classmethod
    def show(cls, config: WandbConfig, folder: Path, figures: Sequence[Path]) -> None:
        run = _open(config, folder, folder.name, REPORT, {}, [REPORT])
        run.log({path.stem: _wandb().Image(str(path)) for path in figures})
        _forget_others(run)
        run.finish()


def _open(
    config: WandbConfig, folder: Path, sweep: str, run_id: str, parameters: dict[str, Any], tags: list[str]
) -> Any:
    wandb = _wandb()
    settings = wandb.Settings(
        use_dot_wandb=True, console="off", silent=True, disable_git=True, save_code=False, x_disable_stats=True
    )
    return wandb.init(
        project=config.project,
        group=sweep,
        name=run_id,
        id=f"{run_id[-HASH_DIGITS:]}-{digest([sweep, run_id])}",  # a run id may be longer than theirs
        config=parameters | {"run_id": run_id},
        tags=tags,
        dir=folder,
        mode=config.mode,
        resume="allow",
        allow_val_change=True,
        reinit="create_new",
        settings=settings,
    )


def _forget_others(run: Any) -> None:
    """Delete the folders of earlier processes."""
    ours = Path(run.settings.sync_dir)
    for path in ours.parent.glob("offline-run-*"):
        if path != ours and run.settings.mode == "offline":
            shutil.rmtree(path, ignore_errors=True)


def _wandb() -> Any:
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # before the import: no crash is reported to its makers
    return package("wandb", "wandb")
