"""What made a set of runs: commands, commits, versions and machines, and how long it took."""

import json
import shlex
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from typing import Any

import yaml

from eat_runner.config.groups import DEFAULT, GROUPS
from eat_runner.config.identity import BUDGETS
from eat_runner.config.method import NONE
from eat_runner.config.paths import conf_dir
from eat_runner.config.root import is_penalised
from eat_runner.errors import UserError, printable
from eat_runner.records import RunFolder, RunRecord


def makers(folders: Iterable[RunFolder]) -> list[dict[str, Any]]:
    """An entry for each combination of commit, versions, machine, device and threads, with its number of runs and
    seconds of training. Folders without a record that can be read are left out."""
    records: list[RunRecord] = []
    for folder in folders:
        with suppress(UserError):
            records.append(folder.read_record())
    return makers_of(records)


def makers_of(records: Iterable[RunRecord]) -> list[dict[str, Any]]:
    """``makers`` of records that were read."""
    made: dict[str, dict[str, Any]] = {}
    for record in records:
        by = {key: getattr(record, key) for key in ("git_commit", "versions", "machine", "device", "threads")}
        entry = made.setdefault(json.dumps(by, sort_keys=True), by | {"runs": 0, "training_s": 0.0})
        entry["runs"] += 1
        entry["training_s"] += sum(seconds or 0.0 for seconds in record.timings.values())
    return [made[key] for key in sorted(made)]


def in_words(maker: Mapping[str, Any]) -> str:
    """An entry of ``makers`` in a line."""
    versions = ", ".join(f"{name} {version}" for name, version in maker["versions"].items() if version)
    threads = f"{maker['threads']} thread{'s' * (maker['threads'] > 1)} a run"
    where = maker["machine"].get("accelerator") or f"{maker['machine'].get('processor')}, {threads}"
    hours = maker["training_s"] / 3600
    runs = f"{maker['runs']} run{'s' * (maker['runs'] != 1)}"
    return f"{runs}, {hours:.2f} hours of training on {where}; commit {maker['git_commit']}; {versions}"


def command_of(record: RunRecord) -> str:
    """The shortest ``eat-run`` that does this run again; ``init`` is where its network lay. Empty where the record does
    not say how the run was configured."""
    try:
        words = _words(record.config) if record.determinants else []
    except (LookupError, TypeError, ValueError, AttributeError):
        return ""  # a record may hold anything
    return printable(shlex.join(["eat-run", *words]), longest=None) if words else ""


def _words(config: Mapping[str, Any]) -> list[str]:
    choices, words = _defaults(), list[str]()
    penalised = is_penalised(config["lambda"], config["penalty"]["name"])
    for group in (name for name, entry in GROUPS.items() if name in config and (entry.hashed or name == "hardware")):
        if group in ("penalty", "schedule") and not penalised:
            continue
        default = choices.get(group, NONE if GROUPS[group].method else DEFAULT)
        name = str(config[group].get("name", default))
        words += [f"{group}={name}"] if name != default else []
        if group == "hardware":  # a file's name stands for its prices
            continue
        usual = _usual(group, name)
        words += [
            f"{group}.{key}={_word(value)}"
            for key, value in config[group].items()
            if key != "name" and key not in GROUPS[group].without_effect and value != usual.get(key, value)
        ]
    words += [f"{key}={_word(config[key])}" for key in ("init", *BUDGETS) if config.get(key) is not None]
    return [*words, *(f"{key}={_word(config[key])}" for key in ("lambda", "seed", "name"))]


def _word(value: Any) -> str:
    """A value in Hydra's grammar."""
    if isinstance(value, str):
        return value
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else json.dumps(value)


@cache
def _defaults() -> dict[str, str]:
    """The file of each group that a command without words takes."""
    lines = yaml.safe_load((conf_dir() / "config.yaml").read_text(encoding="utf-8"))["defaults"]
    return {key: value for line in lines if isinstance(line, dict) for key, value in line.items()}


@cache
def _usual(group: str, name: str) -> dict[str, Any]:
    """What that file of a group sets, on top of its schema's defaults."""
    files = {path.stem: path for path in (conf_dir() / group).glob("*.yaml")}
    written = yaml.safe_load(files[name].read_text(encoding="utf-8")) if name in files else {}
    base = next((line[len("base_") :] for line in written.pop("defaults", []) if str(line).startswith("base_")), "")
    schemas = GROUPS[group].schemas
    return asdict(schemas.get(base, next(iter(schemas.values())))()) | written
