"""What a method is called: which line of a front a run belongs to. No pandas."""

from collections.abc import Mapping
from typing import Any

from eat_runner.config.groups import method_groups
from eat_runner.config.method import NONE
from eat_runner.config.root import is_penalised
from eat_runner.errors import printable
from eat_runner.records import RunRecord

STANDARD = "standard training"
NARROW = "dense narrow networks"
MAGNITUDE = "pruning=magnitude"
PENALTIES = {"l0": "EAT"}  # what is not called by its own name
# knobs that make another method of a choice, by group, and how it is called then; all others are settings of one method
VARIANTS = {"pruning": {"structure": "{}", "channels": "behind channels"}}


# what a run did to the network that it began with; what methods had done to that one before, as its record has it (what
# its parent's penalty was, only the parent's record says)
Lineage = tuple[tuple[str, ...], tuple[str, ...]]


def lineage(record: RunRecord) -> Lineage:
    """KeyError, TypeError or AttributeError where the record is no run's."""
    own = [_method(record, group) for group in method_groups() if _choice(record.config, group) != NONE]
    if "teacher" in record.determinants:
        own.append(printable(f"teacher={record.determinants['teacher']['name']}"))
    before = record.changes[: max(len(record.changes) - len(own), 0)]
    if is_penalised(record.config["lambda"], record.config["penalty"]["name"]):
        own.append(_penalty(record.config["penalty"]))
    return tuple(own), tuple(printable(f"{change['method']}={change['choice']}") for change in before)


def method_name(parts: tuple[str, ...]) -> str:
    """Of what was done to a network, each thing once."""
    return " + ".join(dict.fromkeys(parts)) or STANDARD


def _choice(config: Mapping[str, Any], group: str) -> str:
    return config[group]["name"] if group in config else NONE


def _method(record: RunRecord, group: str) -> str:
    """``pruning=energy``, and the variant where it is not the usual one: determinants have no defaults."""
    chosen = record.determinants.get(group, {})
    variants = [name.format(chosen[key]) for key, name in VARIANTS.get(group, {}).items() if key in chosen]
    return printable(" ".join([f"{group}={_choice(record.config, group)}", *variants]))


def _penalty(penalty: Mapping[str, Any]) -> str:
    if penalty.get("weighting") == "energy":
        return printable(f"energy-weighted {penalty['name']}")
    return PENALTIES.get(penalty["name"], printable(str(penalty["name"])))
