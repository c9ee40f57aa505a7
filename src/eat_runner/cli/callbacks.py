"""Hydra callback that looks at every job before the first one starts."""

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from eat_runner.cli.compose import to_experiment
from eat_runner.config.identity import run_id
from eat_runner.config.root import ExperimentConfig
from eat_runner.config.schedule import ScheduleConfig
from eat_runner.errors import UserError

Identity = tuple[str, str | None]
"""Fingerprint of the data, hash of the initial weights."""


class Refused(BaseException):
    """Carries an error out of a callback: Hydra turns every Exception there into a warning and goes on."""


class BeforeJobs(Callback):
    """Composes, range-checks and prepares all jobs of a command, then hands their configurations to ``accept``.

    Hydra builds callbacks from their names, so ``accept`` is a class attribute that the command sets.
    """

    accept: Callable[[list[ExperimentConfig]], None] = staticmethod(lambda configs: None)

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        _or_refuse(lambda: self.accept([_checked(config)]))

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        _or_refuse(lambda: self.accept([_checked(job) for job in jobs(config)]))


def register_callback() -> None:
    """Let every command's hydra.callbacks hold BeforeJobs; code is named here and not in conf/."""
    target = f"{BeforeJobs.__module__}.{BeforeJobs.__qualname__}"
    ConfigStore.instance().store(
        group="hydra/callbacks", name="before_jobs", node={"before_jobs": {"_target_": target}}
    )


def jobs(config: DictConfig) -> Iterable[DictConfig]:
    """The configuration of each job of a multirun, composed as Hydra's basic sweeper will."""
    # imported here: Hydra's plugins must not be loaded before its scan for plugins
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    loader = GlobalHydra.instance().config_loader()
    params = config.hydra.sweeper.get("params") or {}
    lines = [f"{key}={value}" for key, value in params.items()] + list(config.hydra.overrides.task)
    overrides = OverridesParser.create(config_loader=loader).parse_overrides(lines)
    [batch] = BasicSweeper.split_arguments(overrides, max_batch_size=None)
    for job in batch:
        yield loader.load_sweep_config(config, job)


def prepare(configs: list[ExperimentConfig], prepare_one: Callable[[ExperimentConfig], Identity]) -> list[Path]:
    """Make ready for all runs, and return their folders. Raises UserError where that is not possible.

    ``prepare_one`` is called once for each combination of data, network and measurement: seeds, lambdas and schedules
    need no preparation of their own.
    """
    for folder in {Path(config.results_dir) / config.name: None for config in configs}:
        _check_writable(folder)
    identities: dict[str, Identity] = {}
    folders: dict[Path, None] = {}
    for config in configs:
        key = repr(_what_is_prepared(config))
        if key not in identities:
            identities[key] = prepare_one(config)
        folders[Path(config.results_dir) / config.name / run_id(config, *identities[key])] = None
    return list(folders)


def _what_is_prepared(config: ExperimentConfig) -> ExperimentConfig:
    config = config.normalised()
    return replace(
        config, lambda_=float(config.lambda_ > 0), seed=0, schedule=ScheduleConfig(), name="any", results_dir="any"
    )


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"results_dir: cannot make the folder {folder} ({error.strerror}): choose another") from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"results_dir: cannot write into {folder}: choose another or change its permissions")


def _checked(config: DictConfig) -> ExperimentConfig:
    experiment = to_experiment(OmegaConf.create(config))
    experiment.check()
    return experiment


def _or_refuse(action: Callable[[], None]) -> None:
    try:
        action()
    except Exception as error:
        raise Refused from error
