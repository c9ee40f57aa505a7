"""From Hydra's configuration to the typed one: the schemas that conf/ is checked against, and the way out of Hydra."""

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import fields
from difflib import get_close_matches
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, BooleanNode, DictConfig, FloatNode, IntegerNode, OmegaConf, StringNode, open_dict

from eat_runner.cli.help import COMBINATIONS, choices
from eat_runner.cli.hydra.arguments import quoted
from eat_runner.cli.stoppable import importing_torch
from eat_runner.config.groups import DEFAULT, GROUPS, method_groups
from eat_runner.config.hardware import HardwareConfig, needed
from eat_runner.config.logger import LoggerConfig
from eat_runner.config.method import NONE
from eat_runner.config.paths import conf_dir
from eat_runner.config.penalty import L0Config
from eat_runner.config.root import ExperimentConfig, default_lambda, default_others
from eat_runner.config.schedule import ScheduleConfig
from eat_runner.config.trainer import AUTO
from eat_runner.errors import UserError, one_line

HYDRA_VERSION_BASE = "1.3"
CONFIG_NAME = "config"
LAMBDA = "lambda"
LOGGERS = "loggers"  # a mapping from names to schemas, since the group takes a list
# what Hydra is told to build; nothing else, since a configuration may come from anywhere
CALLBACKS = {"before_jobs": {"_target_": "eat_runner.cli.hydra.callbacks.BeforeJobs"}}
TARGETS = frozenset(
    {
        "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
        "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
        "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher",
        "hydra_plugins.hydra_ray_launcher.ray_launcher.RayLauncher",
        "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher",
        "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher",
    }
)
LOGGING = frozenset(
    {"logging.StreamHandler", "logging.FileHandler", "logging.NullHandler", "logging.Formatter"}
    | {"ext://sys.stdout", "ext://sys.stderr", "${hydra.runtime.output_dir}/${hydra.job.name}.log"}
)
NO_DEFAULTS = "the file of --config-name must begin with the line: defaults: [config, _self_]"
NODES: dict[type, Any] = {bool: BooleanNode, int: IntegerNode, float: FloatNode, str: StringNode}


def root_keys() -> dict[str, str]:
    """The keys that stand at the root and are no groups, with the fields that they are in ExperimentConfig."""
    keys = {name.rstrip("_"): name for name in ExperimentConfig.__dataclass_fields__}
    return {key: name for key, name in keys.items() if key not in {*GROUPS, "methods", "others"}}


def key_types() -> dict[str, str]:
    """Every key that can be set, such as trainer.epochs, and the name of its type: root keys, then the groups'."""
    types = {key: _type_of(ExperimentConfig, name)[0].__name__ for key, name in root_keys().items()}
    for group, described in GROUPS.items():
        for name, schema in described.schemas.items():
            path = f"{group}.{name}" if group == LOGGERS else group
            types |= {f"{path}.{f.name}": _type_of(schema, f.name)[0].__name__ for f in fields(schema)}
    return types


def _type_of(schema: type[Any], name: str) -> tuple[type[Any], bool]:
    """Of a field: its type, and whether it may also be None."""
    hint = get_type_hints(schema)[name]
    inside = get_args(hint)
    if NoneType not in inside:
        return get_origin(hint) or hint, False
    return next(kind for kind in inside if kind is not NoneType), True


def no_key(key: str) -> str:
    """What to say about a key that does not exist: the likeliest one that does, or all that could be meant."""
    group, _, leaf = key.replace("/", ".").rpartition(".")
    types = key_types()
    if key in types and group.startswith(f"{LOGGERS}."):
        logger = group.removeprefix(f"{LOGGERS}.")
        return f"{key}: {logger} is not among the loggers: add it to the list, loggers=[csv,progress,{logger}]"
    if key in types and not group:
        return NO_DEFAULTS
    if key in types:  # another choice of the group has it
        return f"{key} is no key of the {group} that is chosen: leave it out, or choose another {group}"
    inside = {known.rpartition(".")[2]: known for known in types if known.startswith(f"{group}.")}
    top = [*(known for known in types if "." not in known), *GROUPS, *COMBINATIONS]
    # of keys that end alike, the first: root keys, then the groups
    anywhere = {known.rpartition(".")[2]: known for known in reversed([*top, *types])}
    meant = inside or anywhere
    begun = [known for known in meant if len(leaf) > 3 and known.startswith(leaf)]
    if close := begun or get_close_matches(leaf, meant, n=1):
        return f"{key} is no key: did you mean {meant[close[0]]}?"
    return f"{key} is no key: choose among {', '.join(inside.values() or top)}"


def _unwritten() -> dict[str, str]:
    """The groups that config.yaml need not name, each with what is chosen where nobody chooses: of a method what its
    schema has, which is ``none`` unless its keys choose it too."""
    methods = {group: str(schema.__dataclass_fields__["name"].default) for group, schema in method_groups().items()}
    return methods | dict.fromkeys(default_others(), DEFAULT)


def root_schema() -> DictConfig:
    """The root keys with their types and defaults, taken from ExperimentConfig.

    A DictConfig of typed nodes, since ``lambda`` cannot be the name of a dataclass's field. Methods are not chosen,
    unless somebody does.
    """
    default = ExperimentConfig()
    nodes: dict[str, Any] = {
        "defaults": [*({group: name} for group, name in _unwritten().items()), "_self_"],
        "meter": type(default.meter),
        LAMBDA: FloatNode(None, is_optional=True),
        LOGGERS: DictConfig({}, key_type=str, element_type=LoggerConfig),
    }
    for key, name in root_keys().items():
        if key not in nodes:
            kind, optional = _type_of(ExperimentConfig, name)
            nodes[key] = NODES[kind](getattr(default, name), is_optional=optional)
    return DictConfig(nodes)


def _without_prices(schema: type[HardwareConfig]) -> DictConfig:
    """The schema of a price list, whose file has to say what ``needed`` names."""
    node = OmegaConf.structured(schema)
    for key in needed(schema):
        node[key] = MISSING
    return node


def register() -> None:
    """Put what conf/ refers to into Hydra's store: the schemas, and the callback that sees all jobs before any starts.

    Code is named here, and never in conf/.
    """
    store = ConfigStore.instance()
    store.store(name="base_config", node=root_schema())
    for group in filter(choices, GROUPS):  # meter has no files: its keys stand in config.yaml
        for name, schema in GROUPS[group].schemas.items():
            node = {name: schema} if group == LOGGERS else schema
            if group == "hardware":
                node = _without_prices(schema)
            store.store(group=group, name=f"base_{name}", node=node)
    for group, schema in method_groups().items():
        store.store(group=group, name=NONE, node=schema(name=NONE))
    for group, name in _unwritten().items():
        store.store(group=group, name=name, node=next(iter(GROUPS[group].schemas.values())))
    store.store(group="hydra/callbacks", name="before_jobs", node=CALLBACKS)


@contextmanager
def no_foreign_code() -> Generator[None]:
    """Inside, what Hydra composes is checked before Hydra builds anything from it.

    Loggers are set up and callbacks made as soon as it has composed, and for each job anew, so nothing of ours comes
    in between: its loader is the one place that all of them pass. And a package on a configuration's search path is
    imported as soon as it is looked at. Files are read by a source of ours, which knows encodings.
    """
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.config_repository import ConfigRepository

    from eat_runner.cli.hydra.files import Files

    compose, look_at = ConfigLoaderImpl.load_configuration, ConfigRepository.initialize_sources

    def looked_at(repository: ConfigRepository, paths: ConfigSearchPath) -> None:
        for part in paths.get_path():
            scheme, colon, _ = (part.path or "").partition(":")  # a single letter is a drive
            if part.provider == "hydra.searchpath in main" and colon and len(scheme) > 1 and scheme != "file":
                raise _foreign("hydra.searchpath", part.path)
        look_at(repository, paths)
        repository.sources = [
            Files(source.provider, source.path) if source.scheme() == "file" else source
            for source in repository.sources
        ]

    def composed(*args: Any, **kwargs: Any) -> DictConfig:
        config = compose(*args, **kwargs)
        if config.hydra.job.config_name is not None:  # None: Hydra's own help, which builds nothing
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
    if not _plain(hydra, "callbacks") and "trainer" not in config:
        raise UserError(NO_DEFAULTS)
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
    """The typed configuration of a job, as this machine settles it, with its ranges to be checked yet. Raises UserError
    for a key too many or too few."""
    _check_keys(config)
    values = OmegaConf.to_object(config)
    assert isinstance(values, dict)
    plain = {str(key): value for key, value in values.items()}
    _check_schemas(plain)
    methods = {group: plain.pop(group) for group in method_groups()}
    others = {group: plain.pop(group) for group in default_others()}
    if plain[LAMBDA] is None:
        plain[LAMBDA] = default_lambda(methods.values())
        if plain[LAMBDA] == 0 and (plain["penalty"] != L0Config() or plain["schedule"] != ScheduleConfig()):
            raise UserError(
                "beside a method lambda is 0 where nobody gives it, and then penalty and schedule mean nothing: write "
                "lambda=VALUE, too, or leave them out"
            )
    fields = root_keys()
    job = ExperimentConfig(
        methods=methods, others=others, **{fields.get(key, key): value for key, value in plain.items()}
    )
    if job.trainer.precision != AUTO:
        return job
    with importing_torch():
        from eat_runner import run as experiment

        experiment.import_optimizers()
    return experiment.settled(job)


def _check_schemas(plain: dict[str, Any]) -> None:
    """Refuse a group whose file does not begin with a schema: nothing in it would be checked."""
    bare = [(group, GROUPS[group].schemas) for group in GROUPS if isinstance(plain[group], dict) and group != LOGGERS]
    for name, config in plain[LOGGERS].items():
        if not isinstance(config, GROUPS[LOGGERS].schemas.get(name, LoggerConfig)):
            bare.append((f"{LOGGERS}={name}", {name: LoggerConfig}))
    for group, schemas in bare:
        choices = " or ".join(f"base_{name}" for name in schemas)
        raise UserError(f"the file of {group} has no schema: it must begin with defaults: [{choices}, _self_]")


def _check_keys(job: DictConfig) -> None:
    """Struct mode refuses unknown keys; this refuses those that were added with + or removed with ~."""
    types = key_types()
    known = {key.partition(".")[0] for key in types} | set(GROUPS)
    for key in [*root_keys(), *GROUPS]:
        if key not in job or (key in GROUPS and not isinstance(job[key], DictConfig)):
            raise UserError(f"{key} is missing: every key and group needs a value, so leave out what takes it away")
    for key in map(str, job):
        if key in COMBINATIONS:
            raise UserError(f"the file of {key} must begin with the line: # @package _global_")
        if key not in known:
            raise UserError(no_key(key))
        for inner in job[key] if key in GROUPS and key != LOGGERS else ():
            if f"{key}.{inner}" not in types:
                raise UserError(no_key(f"{key}.{inner}"))


def compose_experiment(overrides: Sequence[str] = ()) -> ExperimentConfig:
    """The checked configuration that ``eat-run OVERRIDES`` would run; for tests and notebooks."""
    register()
    with initialize_config_dir(str(conf_dir()), version_base=HYDRA_VERSION_BASE):
        config = to_experiment(compose(CONFIG_NAME, list(map(quoted, overrides))))
    config.check()
    return config
