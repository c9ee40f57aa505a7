"""What a search may choose: a range or a list of choices for each key, as Optuna's distributions."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial

from eat_runner.config.method import NONE
from eat_runner.errors import UserError

Dimension = FloatDistribution | IntDistribution | CategoricalDistribution
Space = Mapping[str, Dimension]
Point = dict[str, str]  # a value for each key of a space, as on the command line
DIGITS = 3  # that a sampled number has: run ids stay readable, and what was tried is met again
RANGE = re.compile(r"(log|uniform|int)\((.*)\)", re.DOTALL)


def range_of(key: str, text: str) -> FloatDistribution | IntDistribution | None:
    """``log(LOW,HIGH)``, ``uniform(LOW,HIGH)`` or ``int(LOW,HIGH)``, with both ends; None for any other text.
    UserError where its ends are no numbers, or make no range."""
    match = RANGE.fullmatch(text.strip())
    if match is None:
        return None
    kind, ends = match[1], match[2].split(",")
    number = int if kind == "int" else float
    try:
        low, high = map(number, ends)
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError
    except ValueError:
        whole = "whole " if kind == "int" else ""
        raise UserError(f"{key}={text}: write {kind}(LOW,HIGH) with two {whole}numbers") from None
    if low >= high:
        raise UserError(f"{key}={text}: {low:g} is not below {high:g}: write {kind}(LOW,HIGH)")
    if kind == "log" and low <= 0:
        raise UserError(
            f"{key}={text}: a logarithmic range begins above 0: write uniform({low:g},{high:g}) for this one"
        )
    return IntDistribution(int(low), int(high)) if kind == "int" else FloatDistribution(low, high, log=kind == "log")


def described(dimension: Dimension) -> str:
    """As it is written on the command line."""
    if isinstance(dimension, CategoricalDistribution):
        return ",".join(map(str, dimension.choices))
    kind = "int" if isinstance(dimension, IntDistribution) else "log" if dimension.log else "uniform"
    return f"{kind}({dimension.low:g},{dimension.high:g})"


def corners(space: Space) -> list[Point]:
    """Points that have each bound and each choice of the space at least once: the first of all, then the others, one
    at a time, then the last of all. ``none`` is a group's last choice: beside it the group's keys mean nothing."""
    ends = {key: _ends(dimension) for key, dimension in space.items()}
    first = {key: values[0] for key, values in ends.items()}
    others = [first | {key: value} for key, values in ends.items() for value in values[1:]]
    return [first, *others, {key: values[-1] for key, values in ends.items()}]


def _ends(dimension: Dimension) -> list[str]:
    if isinstance(dimension, CategoricalDistribution):
        return sorted(map(str, dimension.choices), key=lambda choice: choice == NONE)
    return [repr(dimension.low), repr(dimension.high)]


def _matters(key: str, point: Mapping[str, Any]) -> bool:
    """Whether a key has a part in the point: those of a group of which ``none`` is chosen have not."""
    group, dot, _ = key.partition(".")
    return not dot or point.get(group) != NONE


def _groups_first(space: Space) -> list[tuple[str, Dimension]]:
    return sorted(space.items(), key=lambda item: "." in item[0])


def suggested(trial: Trial, space: Space) -> Point:
    """What the study's sampler suggests; numbers have DIGITS digits and stay in their range."""
    point: Point = {}
    for key, dimension in _groups_first(space):
        if not _matters(key, point):
            continue
        if isinstance(dimension, CategoricalDistribution):
            point[key] = str(trial.suggest_categorical(key, dimension.choices))
        elif isinstance(dimension, IntDistribution):
            point[key] = str(trial.suggest_int(key, dimension.low, dimension.high))
        else:
            value = trial.suggest_float(key, dimension.low, dimension.high, log=dimension.log)
            point[key] = repr(min(max(float(f"{value:.{DIGITS}g}"), dimension.low), dimension.high))
    return point


def where(config: Mapping[str, Any], space: Space, unrecorded: Iterable[str]) -> list[dict[str, Any]]:
    """The parameters that a run may have had in the space, by its configuration as its record has it; none where a
    value lies outside. unrecorded: keys that a configuration does not hold, of which any choice is possible."""
    recorded = {key: _value(config, key) for key in space if key not in unrecorded}
    options: dict[str, Sequence[Any]] = {}
    for key, dimension in space.items():
        if key in recorded and _matters(key, recorded):
            options[key] = _within(dimension, recorded[key])
        elif key not in recorded and isinstance(dimension, CategoricalDistribution):
            options[key] = dimension.choices
    return [dict(zip(options, values, strict=True)) for values in product(*options.values())]


def _value(config: Mapping[str, Any], key: str) -> Any:
    found: Any = config
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found.get("name") if isinstance(found, Mapping) else found


def _within(dimension: Dimension, value: Any) -> list[Any]:
    if isinstance(dimension, CategoricalDistribution):
        return [choice for choice in dimension.choices if _same(str(choice).strip("'\""), value)]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return []
    return [value] if dimension.low <= value <= dimension.high else []


def _same(choice: str, value: Any) -> bool:
    if isinstance(value, bool) or value is None:
        return choice.lower() == {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        try:
            return float(choice) == value
        except ValueError:
            return False
    return choice == value


def grid(space: Space, trials: int) -> list[dict[str, Any]]:
    """At most ``trials`` points, evenly spaced on the scale of each range: as many levels of each as fit, one more in
    turn. All choices are there, so there are more points where these alone are too many."""
    most = {key: _size(dimension) for key, dimension in space.items()}
    levels = {key: most[key] if isinstance(space[key], CategoricalDistribution) else 1 for key in space}
    grown = True
    while grown:
        grown = False
        for key in space:
            more = levels | {key: levels[key] + 1}
            if levels[key] < most[key] and math.prod(more.values()) <= trials:
                levels, grown = more, True
    values = [_levels(dimension, levels[key]) for key, dimension in space.items()]
    points = [dict(zip(space, found, strict=True)) for found in product(*values)]
    used = [{key: value for key, value in point.items() if _matters(key, point)} for point in points]
    return [point for place, point in enumerate(used) if point not in used[:place]]


def _size(dimension: Dimension) -> float:
    if isinstance(dimension, CategoricalDistribution):
        return len(dimension.choices)
    return dimension.high - dimension.low + 1 if isinstance(dimension, IntDistribution) else math.inf


def _levels(dimension: Dimension, number: float) -> Sequence[Any]:
    if isinstance(dimension, CategoricalDistribution):
        return dimension.choices
    low, high = (math.log(end) if dimension.log else end for end in (dimension.low, dimension.high))
    parts = [0.5] if number == 1 else [i / (number - 1) for i in range(int(number))]
    found = [low + (high - low) * part for part in parts]
    if isinstance(dimension, IntDistribution):
        return [round(value) for value in found]
    return [min(max(math.exp(value) if dimension.log else value, dimension.low), dimension.high) for value in found]
