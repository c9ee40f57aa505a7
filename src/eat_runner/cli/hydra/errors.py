"""What Hydra and OmegaConf complain about, in one line that says what is wrong and what would be right."""

import re
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path

from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf.errors import ConfigKeyError

from eat_runner.cli.help import COMBINATIONS, choices, in_folders
from eat_runner.cli.hydra.compose import key_types, no_key
from eat_runner.config.groups import GROUPS

TYPE_NAMES = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "list": "a list",
    "dict": "a mapping",
}
CHOSEN = frozenset({*GROUPS, *COMBINATIONS})  # by the name of a file
EXTRAS = "joblib, submitit_local and slurm come with: pip install 'eat-runner[joblib,slurm]'"


def explain(error: BaseException) -> str:
    """One line for an exception of Hydra, OmegaConf or the YAML parser."""
    if isinstance(error, MissingConfigException) and error.options is not None:
        return _unknown_choice(error.missing_cfg_file or "", list(error.options))
    if isinstance(error, OverrideParseException):
        return f"cannot read {error.override!r}: write key=value, and put quotes around values with special characters"
    text = str(error)
    cause = error.__cause__
    if isinstance(cause, ConfigKeyError) and (given := re.match("Could not override '(.*)'", text)):
        entry = cause.full_key or ""
        if (
            entry.startswith(f"{given[1]}.") and given[1] not in GROUPS
        ):  # in a mapping of the configuration's own, which may grow
            return f"{entry} is not there yet: write +{given[1]}=... to add it"
    for pattern, line in RULES:
        if match := re.search(pattern, text, re.DOTALL):
            return line(match)
    return ": ".join(_flat(part) for part in (error, error.__cause__) if part is not None)


def _unknown_choice(config: str, options: list[str]) -> str:
    group, _, name = config.partition("/") if config.partition("/")[0] in CHOSEN else config.rpartition("/")
    choices = [option for option in options if not option.startswith("base_")] + in_folders(group)
    if group == "hydra/launcher":
        return f"{group}={name} is unknown: choose one of {', '.join(choices)} ({EXTRAS})"
    close = get_close_matches(name, choices, n=1)
    hint = f"did you mean {group}={close[0]}? All: " if close else "choose one of "
    return f"{group}={name} is unknown: {hint}{', '.join(choices)}{_own_file(group, name)}"


def _own_file(group: str, name: str) -> str:
    """How to choose a file of one's own, where it lies here or is what people write themselves."""
    for path in filter(Path.is_file, (Path(f"{name}.yaml"), Path(group, f"{name}.yaml"))):
        return f"; for your file: {group}={path}"
    return f"; or a file of your own: {group}=FILE.yaml" if group in COMBINATIONS else ""


def _no_primary(name: str) -> str:
    file = Path(name).with_suffix(".yaml")
    if file.is_file():
        return (
            f"--config-name {name}: {file} is in this folder, so add --config-dir . and begin the file with defaults: "
            f"[config, _self_], or choose it by experiment={file}"
        )
    return f"--config-name {name}: there is no such file; leave the option out or add --config-dir"


def _unknown_file(config: str) -> str:
    group, _, _ = config.rpartition("/")
    return _unknown_choice(config, choices(group)) if group in GROUPS else f"{config} is not there"


def _wrong_type(line: str) -> str:
    key, _, value = line.lstrip("+").partition("=")
    if key in GROUPS:
        return f"{key} is a group of keys: change one of them, {key}.KEY=VALUE"
    types = key_types()
    wanted = TYPE_NAMES[types[key]] if key in types else "of another type"
    return f"{key}={value} is of the wrong type: {key} is {wanted}"


def _no_override(match: re.Match[str]) -> str:
    key = match["key"]
    if key in GROUPS:
        return f"{key} is a group of keys: change one of them, {key}.KEY=VALUE"
    if "@" in key:
        return f"{key} is no key: groups have one place here, so write {key.partition('@')[0]}=NAME"
    if key.startswith("hydra"):
        return f"{key} is no key of Hydra's: see eat-run --hydra-help"
    return no_key(key)


# what Hydra's message looks like, and what we say instead
RULES: list[tuple[str, Callable[[re.Match[str]], str]]] = [
    (r"^Could not override '(?P<key>[^']*)'", _no_override),
    (r"^Error merging override (?P<line>[^\n]*)", lambda m: _wrong_type(m["line"])),
    (
        r"^(Ambiguous value for argument|Sweep parameters) '(?P<line>[^\n]*)'",
        lambda m: f"{m['line']} has several values: add -m to sweep over them",
    ),
    (
        r"^Could not append to config\. An item is already at '(?P<key>[^']*)'",
        lambda m: f"+{m['key']}: this key is always there, so leave out the +",
    ),
    (
        r"^Multiple values for (?P<group>[^ ]+)\. .*: (?P<name>[^']*)'",
        lambda m: f"+{m['group']}: this group is always there, so write {m['group']}={m['name']}",
    ),
    (
        r"^Could not delete (from config\. )?(The value of )?'(?P<key>[^']*)'",
        lambda m: f"~{m['key']}: keys cannot be removed, so leave it out",
    ),
    (
        r"does not support sweep type : (?P<kind>\w+)_SWEEP",
        lambda m: f"{m['kind'].lower()}(...) cannot be swept: list the values, key=a,b,c, or write range(...)",
    ),
    (
        r"^Config group override must be a string or a list",
        lambda m: "a group is chosen by the name of a file, such as model=resnet18, and cannot be empty",
    ),
    (
        r"^Unsupported item value in defaults : \w+",
        lambda m: "the choices of an experiment's defaults are texts: put quotes around a number, override /bits: '8'",
    ),
    (r"^In '[^']*': Could not load '(?P<config>[^']*)'", lambda m: _unknown_file(m["config"])),
    (r"^Interpolation key '(?P<key>[^']*)' not found", lambda m: f"${{{m['key']}}}: there is no key {m['key']}"),
    (
        r"Environment variable '(?P<name>[^']*)' not found",
        lambda m: f"${{oc.env:{m['name']}}}: the environment variable {m['name']} is not set",
    ),
    (
        r"^Structured config of type `\w+Hardware` has missing mandatory value: (?P<key>\w+)",
        lambda m: f"hardware.{m['key']} is missing: the file of hardware has to say it",
    ),
    (
        r"^Additional config directory '(?P<folder>.*)' not found",
        lambda m: f"--config-dir {m['folder']}: there is no such folder",
    ),
    (
        r"^Cannot find primary config '(?P<name>[^']*)'",
        lambda m: _no_primary(m["name"]),
    ),
]


def _flat(error: BaseException) -> str:
    """The message without what OmegaConf adds below it, in one line."""
    lines = [line.strip() for line in str(error).splitlines()]
    useful = [line for line in lines if line and not line.startswith(("full_key:", "object_type=", "reference_type="))]
    return " ".join(useful)
