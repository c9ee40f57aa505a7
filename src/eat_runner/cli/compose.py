"""From Hydra's configuration to the typed one: the schemas that conf/ is checked against, and the way out of Hydra."""

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from omegaconf import BooleanNode, DictConfig, FloatNode, IntegerNode, OmegaConf, StringNode, open_dict

from eat_runner.config.dataset import DatasetConfig
from eat_runner.config.hardware import SCHEMAS
from eat_runner.config.model import ModelConfig
from eat_runner.config.paths import conf_dir
from eat_runner.config.penalty import PenaltyConfig
from eat_runner.config.root import ExperimentConfig
from eat_runner.config.schedule import ScheduleConfig
from eat_runner.config.trainer import MeterConfig, TrainerConfig
from eat_runner.errors import UserError, one_line

HYDRA_VERSION_BASE = "1.3"
CONFIG_NAME = "config"
GROUPS: dict[str, dict[str, Any]] = {
    "dataset": {"base_dataset": DatasetConfig},
    "model": {"base_model": ModelConfig},
    "penalty": {"base_penalty": PenaltyConfig},
    "schedule": {"base_schedule": ScheduleConfig},
    "hardware": {f"base_{rule}": schema for rule, schema in SCHEMAS.items()},
    "trainer": {"base_trainer": TrainerConfig},
}
SUBTREES: dict[str, list[Any]] = {"meter": [MeterConfig], **{group: list(s.values()) for group, s in GROUPS.items()}}
ROOT_KEYS = {key.rstrip("_"): key for key in ExperimentConfig.__dataclass_fields__}
# what Hydra is told to build; nothing else, since a configuration may come from anywhere
CALLBACKS = {"before_jobs": {"_target_": "eat_runner.cli.callbacks.BeforeJobs"}}
TARGETS = frozenset(
    {
        "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
        "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
        "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher",
        "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher",
        "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher",
    }
)
LOGGING = frozenset(
    {"logging.StreamHandler", "logging.FileHandler", "logging.NullHandler", "logging.Formatter"}
    | {"ext://sys.stdout", "ext://sys.stderr", "${hydra.runtime.output_dir}/${hydra.job.name}.log"}
)
NODES: dict[type, Any] = {bool: BooleanNode, int: IntegerNode, float: FloatNode, str: StringNode}


def _key_types() -> dict[str, str]:
    types = {key: type(getattr(ExperimentConfig(), field)).__name__ for key, field in ROOT_KEYS.items()}
    types["init"] = "str"
    for group, schemas in SUBTREES.items():
        del types[group]
        types |= {f"{group}.{f.name}": getattr(f.type, "__name__", "int") for s in schemas for f in fields(s)}
    return types


# every key that can be set, such as trainer.epochs, and the name of its type
KEY_TYPES = _key_types()


def no_key(key: str) -> str:
    """What to say about a key that does not exist: the likeliest one that does, or all that could be meant."""
    group, _, leaf = key.replace("/", ".").rpartition(".")
    inside = {known.rpartition(".")[2]: known for known in KEY_TYPES if known.startswith(f"{group}.")}
    top = [*(known for known in KEY_TYPES if "." not in known), *SUBTREES, "experiment"]
    # of keys that end alike, the first: root keys, then meter and the groups
    anywhere = {known.rpartition(".")[2]: known for known in reversed([*top, *KEY_TYPES])}
    meant = inside or anywhere
    if close := get_close_matches(leaf, meant, n=1):
        return f"{key} is no key: did you mean {meant[close[0]]}?"
    return f"{key} is no key: choose among {', '.join(inside.values() or top)}"


def root_schema() -> DictConfig:
    """The root keys with their types and defaults, taken from ExperimentConfig.

    A DictConfig of typed nodes, since ``lambda`` cannot be the name of a dataclass's field.
    """
    default = ExperimentConfig()
    nodes: dict[str, Any] = {"meter": MeterConfig, "init": StringNode(default.init, is_optional=True)}
    for key, field in ROOT_KEYS.items():
        if key not in {*GROUPS, *nodes}:
            value = getattr(default, field)
            nodes[key] = NODES[type(value)](value, is_optional=False)
    return DictConfig(nodes)


def register() -> None:
    """Put what conf/ refers to into Hydra's store: the schemas, and the callback that sees all jobs before any starts.

    Code is named here, and never in conf/.
    """
    store = ConfigStore.instance()
    store.store(name="base_config", node=root_schema())
    for group, schemas in GROUPS.items():
        for name, schema in schemas.items():
            store.store(group=group, name=name, node=schema)
    store.store(group="hydra/callbacks", name="before_jobs", node=CALLBACKS)


@contextmanager
def no_foreign_code() -> Generator[None]:
    """Inside, what Hydra composes is checked before Hydra builds anything from it.

    Loggers are set up and callbacks made as soon as it has composed, and for each job anew, so nothing of ours comes
    in between: its loader is the one place that all of them pass. And a package on a configuration's search path is
    imported as soon as it is looked at.
    """
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.config_repository import ConfigRepository

    compose, look_at = ConfigLoaderImpl.load_configuration, ConfigRepository.initialize_sources

    def looked_at(repository: ConfigRepository, paths: ConfigSearchPath) -> None:
        for part in paths.get_path():
            scheme, colon, _ = (part.path or "").partition(":")  # a single letter is a drive
            if part.provider == "hydra.searchpath in main" and colon and len(scheme) > 1 and scheme != "file":
                raise _foreign("hydra.searchpath", part.path)
        look_at(repository, paths)

    def composed(*args: Any, **kwargs: Any) -> DictConfig:
        config = compose(*args, **kwargs)
        check_names_no_code(config)
        return config

    ConfigLoaderImpl.load_configuration = composed
    ConfigRepository.initialize_sources = looked_at  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        ConfigLoaderImpl.load_configuration, ConfigRepository.initialize_sources = compose, look_at


def check_names_no_code(config: DictConfig) -> None:
    """UserError where a configuration makes Hydra import or run anything but its own parts, ours and the launchers.

    In launchers and sweepers references are followed, since they are built at once. What loggers are made from is
    looked up later, so nothing there may be a reference.
    """
    hydra = config.hydra
    if _plain(hydra, "callbacks") != CALLBACKS:
        raise _foreign("hydra.callbacks", "another callback than eat-run's")
    for part in ("launcher", "sweeper"):
        for key, value in _items(f"hydra.{part}", _plain(hydra, part, resolve=True)):
            if key.endswith("._target_") and value not in TARGETS:
                raise _foreign(key, value)
    for part in ("job_logging", "hydra_logging"):
        for key, value in _items(f"hydra.{part}", _plain(hydra, part)):
            reference = isinstance(value, str) and (value.startswith("ext://") or "${" in value)
            if key.endswith(".()") or ((reference or key.endswith(".class")) and str(value) not in LOGGING):
                raise _foreign(key, value)
    for key, value in _plain(hydra.job, "env_set", resolve=True).items():
        if os.environ.get(key) != value:  # CXX, LD_PRELOAD
            raise _foreign(f"hydra.job.env_set.{key}", value)


def _plain(node: DictConfig, key: str, resolve: bool = False) -> Any:
    """A value of ``node`` as plain containers and texts, unless ``resolve`` with ``${...}`` in them as it stands."""
    if OmegaConf.is_missing(node, key):
        return None
    value = node._get_node(key)  # pyright: ignore[reportPrivateUsage]
    if not resolve and OmegaConf.is_interpolation(node, key):
        return value._value()  # type: ignore[union-attr]
    value = node[key]
    return OmegaConf.to_container(value, resolve=resolve) if OmegaConf.is_config(value) else value


def _items(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """``value`` and everything inside it, each with its dotted path."""
    yield path, value
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield from _items(f"{path}.{key}", item)


def _foreign(key: str, value: Any) -> UserError:
    return UserError(f"{key} names code ({one_line(str(value))}), which no configuration may: leave it out")


def without_hydra(config: DictConfig) -> DictConfig:
    """A copy of a composed configuration without Hydra's own part: what a job is given."""
    # not OmegaConf.masked_copy: the root keys' types are lost there
    job = deepcopy(config)
    with open_dict(job):
        job.pop("hydra", None)
    return job


def to_experiment(config: DictConfig) -> ExperimentConfig:
    """The typed, not yet range-checked configuration of a job. Raises UserError for a key too many or too few."""
    _check_keys(config)
    values = OmegaConf.to_object(config)
    assert isinstance(values, dict)
    return ExperimentConfig(**{ROOT_KEYS[str(key)]: value for key, value in values.items()})


def _check_keys(job: DictConfig) -> None:
    """Struct mode refuses unknown keys; this refuses those that were added with + or removed with ~."""
    for key in ROOT_KEYS:
        if key not in job or (key in SUBTREES and not isinstance(job[key], DictConfig)):
            raise UserError(f"{key} is missing: every key and group needs a value, so leave out what takes it away")
    for key in map(str, job):
        if key == "experiment":
            raise UserError("an experiment's file must begin with the line: # @package _global_")
        if key not in ROOT_KEYS:
            raise UserError(no_key(key))
        for inner in job[key] if key in SUBTREES else ():
            if f"{key}.{inner}" not in KEY_TYPES:
                raise UserError(no_key(f"{key}.{inner}"))


def compose_experiment(overrides: Sequence[str] = ()) -> ExperimentConfig:
    """The checked configuration that ``eat-run OVERRIDES`` would run; for tests and notebooks."""
    register()
    with initialize_config_dir(str(conf_dir()), version_base=HYDRA_VERSION_BASE):
        config = to_experiment(compose(CONFIG_NAME, list(overrides)))
    config.check()
    return config
