"""The configurations of a search: what is fixed is composed once for each choice of groups, as eat-run composes it."""

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ValueType
from hydra.errors import HydraException
from omegaconf import DictConfig

from eat_runner.cli.hydra.arguments import groups, quoted, with_paths
from eat_runner.cli.hydra.callbacks import in_range
from eat_runner.cli.hydra.compose import (
    CONFIG_NAME,
    HYDRA_VERSION_BASE,
    no_foreign_code,
    register,
    to_experiment,
    without_hydra,
)
from eat_runner.cli.hydra.launch import errors_from_hydra
from eat_runner.config.paths import conf_dir
from eat_runner.config.root import ExperimentConfig
from eat_runner.errors import UserError

FUNCTION = re.compile(r"[^=]*=\s*(\w+)\s*\(.*\)\s*", re.DOTALL)
LISTS = (ValueType.SIMPLE_CHOICE_SWEEP, ValueType.CHOICE_SWEEP, ValueType.RANGE_SWEEP)


def choices_of(line: str) -> list[str] | None:
    """The values of ``key=a,b,c``, as Hydra reads them; None where there is one value. UserError for another sweep, and
    for what Hydra cannot read."""
    parser = OverridesParser.create()
    with errors_from_hydra():
        try:
            [override] = parser.parse_overrides([quoted(line)])
        except HydraException as error:
            called = FUNCTION.fullmatch(line)
            if called is None or called[1] in parser.functions.functions:
                raise
            raise UserError(
                f"{line}: {called[1]} is unknown: write log(LOW,HIGH), uniform(LOW,HIGH) or int(LOW,HIGH)"
            ) from error
    if not override.is_sweep_override():
        return None
    if override.value_type not in LISTS:
        raise UserError(f"{line}: a search takes log(LOW,HIGH), uniform(LOW,HIGH), int(LOW,HIGH), or a list a,b,c")
    return list(override.sweep_string_iterator())


class Points:
    """fixed: overrides that all points share. Calling it with a value for each key of a point, as on the command line,
    gives that point's checked configuration; UserError where there is none."""

    def __init__(self, fixed: Sequence[str]):
        register()
        self.fixed = [*map(quoted, fixed)]
        self._composed: dict[tuple[str, ...], DictConfig] = {}

    def __call__(self, point: Mapping[str, str]) -> ExperimentConfig:
        # imported here: Hydra's plugins must not be loaded before its scan for plugins
        from hydra._internal.config_loader_impl import ConfigLoaderImpl

        chosen = tuple(f"{key}={text}" for key, text in point.items() if key in groups())
        values = [f"{key}={text}" for key, text in point.items() if key not in groups()]
        try:
            with errors_from_hydra(), no_foreign_code():
                if chosen not in self._composed:
                    self._composed[chosen] = self._compose(chosen)
                config = deepcopy(self._composed[chosen])
                overrides = OverridesParser.create().parse_overrides(values)
                ConfigLoaderImpl._apply_overrides_to_config(overrides, config)  # pyright: ignore[reportPrivateUsage]
                return in_range(to_experiment(config))
        except UserError as error:
            if str(error).startswith((*point,)):  # it says which value is wrong
                raise
            raise UserError(f"{with_paths(' '.join([*chosen, *values]))}: {error}") from error

    def _compose(self, chosen: Sequence[str]) -> DictConfig:
        with initialize_config_dir(str(conf_dir()), version_base=HYDRA_VERSION_BASE):
            config = compose(CONFIG_NAME, [*self.fixed, *chosen], return_hydra_config=True)
        if own := config.hydra.sweeper.get("params"):
            raise UserError(
                f"a search makes no sweep, and a file has one of its own ({', '.join(own)}): choose another"
            )
        return without_hydra(config)
