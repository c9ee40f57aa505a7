"""Hydra callback that looks at every job before the first one starts."""

import os
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from eat_runner.claims import check_locks
from eat_runner.cli.help import COMBINATIONS, choices
from eat_runner.cli.hydra.arguments import listed
from eat_runner.cli.hydra.compose import LOGGERS, to_experiment, without_hydra
from eat_runner.config.checks import one_of
from eat_runner.config.groups import DEFAULT
from eat_runner.config.identity import Start, preparation, run_id
from eat_runner.config.path import STRENGTHS
from eat_runner.config.points import points
from eat_runner.config.root import ExperimentConfig, default_methods
from eat_runner.config.trainer import AUTO
from eat_runner.errors import UserError

Identity = tuple[str, Start]
"""Fingerprint of the data, what the network starts from."""


class Refused(BaseException):
    """Carries an error out of a callback: Hydra turns every Exception there into a warning and goes on."""


class BeforeJobs(Callback):
    """Composes, range-checks and prepares all jobs of a command, then hands their configurations to ``accept``.

    Hydra builds callbacks from their names, so ``accept`` is a class attribute that the command sets, and
    ``on_cluster`` (whether the jobs run on other machines) one that it reads.
    """

    accept: Callable[[list[ExperimentConfig]], None] = staticmethod(lambda configs: None)
    on_cluster = False

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        BeforeJobs.on_cluster = False
        _or_refuse(lambda: self.accept(agreeing([_checked(config)])))

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        launcher = str(config.hydra.launcher.get("_target_"))
        BeforeJobs.on_cluster = launcher.endswith(".SlurmLauncher")
        elsewhere = BeforeJobs.on_cluster or launcher.endswith((".RayLauncher", ".RayAWSLauncher"))
        _or_refuse(lambda: self.accept(agreeing([_checked(job, whose, elsewhere) for whose, job in jobs(config)])))

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Hydra keeps every job's answer until the sweep ends, each with two configurations that nobody asks for."""
        job_return.cfg = job_return.hydra_cfg = None


def jobs(config: DictConfig) -> Iterator[tuple[str, DictConfig]]:
    """The configuration of each job of a multirun, as Hydra's basic sweeper will compose it, and what it has of the
    combinations that are swept over. UserError where one of these would sweep over something, too.

    Composing takes Hydra a tenth of a second, so it is done once for each choice of groups; the jobs' values are then
    set on copies, by the function that composing itself ends with.
    """
    # imported here: Hydra's plugins must not be loaded before its scan for plugins
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    loader = GlobalHydra.instance().config_loader()
    parser = OverridesParser.create(config_loader=loader)
    sweep = _settled(config, parser)
    [batch] = BasicSweeper.split_arguments(parser.parse_overrides(list(config.hydra.overrides.task)), None)
    composed: dict[tuple[str, ...], DictConfig] = {}
    # a group that takes a list is not among Hydra's choices
    chosen = {*config.hydra.runtime.choices, LOGGERS}
    by_groups = [(tuple(line for line in job if line.partition("=")[0] in chosen), job) for job in batch]
    for groups, _ in by_groups:
        if groups not in composed:
            composed[groups] = loader.load_sweep_config(config, list(groups))
    for groups, job_config in composed.items():
        own = _params(job_config)
        if own != sweep:
            raise UserError(
                f"{_combinations(groups)} has a sweep of its own ({', '.join(own)}), which would not be made beside "
                "another choice: give each a command of its own"
            )
        composed[groups] = without_hydra(job_config)
    for groups, job in by_groups:
        values = parser.parse_overrides([line for line in job if line not in groups])
        copy = deepcopy(composed[groups])
        ConfigLoaderImpl._apply_overrides_to_config(values, copy)  # pyright: ignore[reportPrivateUsage]
        yield _combinations(groups) if len(composed) > 1 else "", copy


def _settled(config: DictConfig, parser: OverridesParser) -> dict[str, Any]:
    """What an experiment's file sweeps over. Everything that the command sweeps over is written out as lists, where
    Hydra's sweeper reads it: it makes the very jobs that were checked."""
    params = _params(config)
    lines = [f"{key}={value}" for key, value in params.items()] + list(config.hydra.overrides.task)
    config.hydra.overrides.task = _one_job_a_path([listed(override) for override in parser.parse_overrides(lines)])
    config.hydra.sweeper.params = None
    return params


def _one_job_a_path(lines: list[str]) -> list[str]:
    """A sweep over what grows along a path is that path, which one job goes along."""
    given = dict(line.split("=", 1) for line in lines if "=" in line)
    name = given.get("path", DEFAULT)
    if "," in name:
        raise UserError(f"path={name}: paths in several directions need a command each")
    key = STRENGTHS[name][0] if name in STRENGTHS else None
    if key is None or key not in given or "path.over" in given:
        return lines
    return [f"path.over=[{given[key]}]" if line == f"{key}={given[key]}" else line for line in lines]


def _params(config: DictConfig) -> dict[str, Any]:
    return dict(config.hydra.sweeper.get("params") or {})


def _combinations(groups: Iterable[str]) -> str:
    return ", ".join(line for line in groups if line.partition("=")[0] in COMBINATIONS)


def prepare_all(
    configs: list[ExperimentConfig], prepare_one: Callable[[ExperimentConfig], Identity]
) -> dict[Path, ExperimentConfig]:
    """Make ready for all runs, and return them by their folders. Raises UserError where that is not possible.

    ``prepare_one`` is called once for each combination of data, network and measurement.
    """
    folders = {Path(config.results_dir) / config.name: None for config in configs}
    for folder in folders:
        _check_writable(folder)
    identities: dict[str, Identity] = {}
    runs: dict[Path, ExperimentConfig] = {}

    def prepare(config: ExperimentConfig) -> Identity:
        key = preparation(config)
        if key not in identities:
            identities[key] = prepare_one(config)
        return identities[key]

    for config in configs:
        fingerprint, begin = prepare(config)
        for point, start in points(config, fingerprint, begin):
            prepare(replace(point, init=config.init))  # a parent may be yet to be trained
            identity = run_id(point, fingerprint, start)
            runs.setdefault(Path(config.results_dir) / config.name / identity, point)
    for folder in folders:
        check_locks(folder)
    return runs


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"results_dir: cannot make the folder {folder} ({error.strerror}): choose another") from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"results_dir: cannot write into {folder}: choose another or change its permissions")


def _checked(config: DictConfig, whose: str = "", elsewhere: bool = False) -> ExperimentConfig:
    """whose: what a message names, where it is one of several. elsewhere: it may run on another machine than this."""
    try:
        if elsewhere and config.trainer.precision == AUTO:
            raise UserError(
                "trainer.precision=auto goes by the machine, and this sweep runs on others: write "
                "trainer.precision=bf16 or fp32"
            )
        return in_range(to_experiment(without_hydra(config)))
    except UserError as error:
        if not whose:
            raise
        raise UserError(f"{whose}: {error}") from error


def in_range(experiment: ExperimentConfig) -> ExperimentConfig:
    experiment.check()
    for point, _ in points(experiment, ""):
        point.check()
    for group in ("dataset", "model", "penalty", "schedule"):
        # each of these files is named like what it configures
        one_of(f"{group}.name", getattr(experiment, group).name, choices(group))
    for group, method in experiment.methods.items():
        one_of(f"{group}.name", method.name, choices(group))
    for name in experiment.loggers:
        one_of("loggers", name, choices("loggers"))
    return experiment


def agreeing(configs: list[ExperimentConfig]) -> list[ExperimentConfig]:
    """The jobs of a command. UserError for the keys of a method that none of them has; where some have it, the others
    are what these are compared with."""
    for group, default in default_methods().items():
        methods = [config.methods[group] for config in configs]
        if not any(method.is_chosen for method in methods) and any(method != default for method in methods):
            raise UserError(f"{group} is not chosen, so its keys mean nothing: leave them out, or write {group}=NAME")
    return configs


def _or_refuse(action: Callable[[], None]) -> None:
    try:
        action()
    except Exception as error:
        raise Refused from error
