"""A command line as people write it, made into one that Hydra reads: options in front, files and numbers as choices,
paths whatever is in them. Hydra itself stays as it is."""

from argparse import ArgumentError, Namespace
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString, ValueType
from hydra.errors import HydraException

from eat_runner.cli.help import COMBINATIONS, choices
from eat_runner.cli.hydra.files import read_config
from eat_runner.config.groups import GROUPS
from eat_runner.config.identity import digest
from eat_runner.config.paths import YAML_SUFFIXES
from eat_runner.energy.hardware import load_hardware
from eat_runner.errors import UserError

LISTS = frozenset({"loggers"})  # groups that take a list of choices
PATHS = frozenset({"data_dir", "results_dir", "init"})

_files: dict[str, str] = {}  # what a file that was chosen by its path is called in Hydra's store, and that path


@cache
def groups() -> frozenset[str]:
    """The groups that are chosen by the name of a file."""
    return frozenset(group for group in (*GROUPS, *COMBINATIONS) if group not in LISTS and choices(group))


@cache
def numbered() -> frozenset[str]:
    """The groups with files that are called by a number (bits=8)."""
    return frozenset(group for group in groups() if any(choice.isdigit() for choice in choices(group)))


def parse_options(arguments: Sequence[str]) -> tuple[Namespace, list[str]]:
    """Hydra's options, wherever they stand, and what is none. UserError for an option without its value."""
    parser = get_args_parser()

    def refuse(message: str) -> Any:
        raise UserError(f"{message}: see eat-run --help")

    parser.error = refuse
    try:
        flags, unknown = parser.parse_known_intermixed_args(list(arguments))
    except ArgumentError as error:
        return refuse(str(error))
    return flags, unknown


def as_hydra_reads(arguments: Sequence[str]) -> list[str]:
    """The command line for Hydra: options first, then the values that they stood among. UserError where a key is given
    twice and one of its lists would be lost, or a file that is chosen cannot be used."""
    overrides: list[str] = parse_options(arguments)[0].overrides
    options = list(arguments)
    for override in overrides:
        options.remove(override)
    _check_given_once(overrides)
    return [*(option for option in options if option != "--"), *map(quoted, overrides)]


def _check_given_once(overrides: Sequence[str]) -> None:
    """A later value takes the place of an earlier one, but not of a list, nor one combination of another."""
    given: dict[str, str] = {}
    for line in overrides:
        key = line.partition("=")[0]
        before = given.setdefault(key, line)
        if before != line and (key in COMBINATIONS or _is_sweep(before) or _is_sweep(line)):
            raise UserError(f"{before} and {line}: {key} is given twice, and only the last would count: leave one out")
        given[key] = line


def _is_sweep(line: str) -> bool:
    override = _parsed(line)
    return override is not None and override.is_sweep_override()


def quoted(argument: str) -> str:
    """``key=value`` with quotes, or another name, where Hydra would not take the value for what it is: a choice by a
    file's path, a choice that looks like a number, a text with special characters."""
    key, equals, value = argument.partition("=")
    if not equals:
        return argument
    if key in groups():
        return _with_choices(argument, key, value)
    if key in PATHS and value.startswith("~"):  # no shell expands it behind an equal sign
        return f"{key}={_in_quotes(str(Path(value).expanduser()))}"
    if key in PATHS and value and Path(value).exists():
        return f"{key}={_in_quotes(value)}"
    if _parsed(argument) is None and _is_text(key):
        return f"{key}={','.join(_in_quotes(text.strip()) for text in value.split(','))}"
    return argument


def _is_text(key: str) -> bool:
    from eat_runner.cli.hydra.compose import key_types

    return key_types().get(key) == "str"


def _with_choices(argument: str, group: str, value: str) -> str:
    path = value.strip("'\"")
    if _is_yaml(path) and Path(path).expanduser().exists():
        return f"{group}={_stored(group, path)}"
    override = _parsed(argument)
    if override is None:
        found: list[Any] = value.split(",")
        if not any(map(_is_yaml, found)):
            return argument
    elif override.value_type == ValueType.SIMPLE_CHOICE_SWEEP:
        found = list(override.sweep_iterator())
    elif override.value_type == ValueType.ELEMENT:
        found = [override.value()]
    else:  # a function: its values are settled when the sweep begins
        return argument
    named = [_named(group, choice) for choice in found]
    return argument if all(name is None for name in named) else f"{group}={','.join(_rejoined(found, named))}"


def _rejoined(found: Sequence[Any], named: Sequence[str | None]) -> Iterator[str]:
    for choice, name in zip(found, named, strict=True):
        yield name or (choice.with_quotes() if isinstance(choice, QuotedString) else str(choice))


def _named(group: str, choice: Any) -> str | None:
    """What Hydra is told in place of a choice that is a number or a file; None for any other."""
    text = choice.text if isinstance(choice, QuotedString) else choice
    if isinstance(text, str):
        return _stored(group, text.strip("'\"")) if _is_yaml(text.strip("'\"")) else None
    is_number = isinstance(text, int | float) and not isinstance(text, bool)
    return _in_quotes(str(text)) if is_number and group in numbered() else None


def _is_yaml(text: str) -> bool:
    return text.rstrip("'\"").endswith(YAML_SUFFIXES)


def _stored(group: str, path: str) -> str:
    """The name under which Hydra finds what the file holds."""
    file = Path(path).expanduser()
    name = f"file_{digest(str(file.resolve()))}"  # two folders may have a file of the same name
    _files[name] = path
    store = ConfigStore.instance()
    if group == "hardware":
        store.store(group=group, name=name, node=load_hardware(str(file)))
    else:
        node, header = read_config(file)
        store.store(group=group, name=name, node=node, package=header.get("package"))
    return name


def with_paths(text: str) -> str:
    """``text`` with the paths of the files that were chosen by them."""
    for name, path in _files.items():
        text = text.replace(name, path)
    return text


def _in_quotes(text: str) -> str:
    return QuotedString(text=text, quote=Quote.single).with_quotes()


def _parsed(line: str) -> Override | None:
    """None where Hydra's grammar does not take it."""
    try:
        return OverridesParser.create().parse_overrides([line])[0]
    except HydraException:
        return None


def listed(override: Override) -> str:
    """A value of a sweep as ``key=a,b,c``, as it is where it is one value or cannot be listed. UserError where the list
    is empty. override: with a configuration loader, which knows the files that ``glob`` looks at."""
    line, key = override.input_line or "", override.get_key_element()
    if not override.is_discrete_sweep():
        return quoted(line) if key in numbered() else line
    try:
        values = list(override.sweep_string_iterator())
    except TypeError as error:  # glob([8])
        raise UserError(f"{line}: put quotes around what glob looks for") from error
    if override.value_type == ValueType.GLOB_CHOICE_SWEEP:
        values = [value for value in values if not value.startswith("base_")]  # schemas
    if not values:
        raise UserError(_nothing(line, key, override))
    if key in numbered():
        values = [_in_quotes(value) if value.replace(".", "").isdigit() else value for value in values]
    return f"{key}={','.join(values)}"


def _nothing(line: str, key: str, override: Override) -> str:
    if override.is_range_sweep():
        return f"{line} is empty: range(START,STOP,STEP) ends before STOP"
    if key in groups():
        return f"{line} matches nothing: choose among {', '.join(choices(key))}"
    return f"{line} matches nothing: {key} is no group of files, so list its values, {key}=a,b,c"
