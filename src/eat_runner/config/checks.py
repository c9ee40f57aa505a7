"""Range checks that name the key, the value and what would be right."""

import math
from collections.abc import Iterable
from typing import Any

from eat_runner.errors import UserError


def at_least(key: str, value: float, low: float) -> None:
    """Raise UserError unless ``value`` is a finite number >= ``low``."""
    if not (math.isfinite(value) and value >= low):
        raise UserError(f"{key}={value:g} is out of range: it must be a finite number >= {low:g}")


def above(key: str, value: float, low: float) -> None:
    """Raise UserError unless ``value`` is a finite number > ``low``."""
    if not (math.isfinite(value) and value > low):
        raise UserError(f"{key}={value:g} is out of range: it must be a finite number > {low:g}")


def between(key: str, value: float, low: float, high: float) -> None:
    """Raise UserError unless ``low <= value <= high``."""
    if not low <= value <= high:
        raise UserError(f"{key}={value:g} is out of range: it must be between {low:g} and {high:g}")


def one_of(key: str, value: Any, choices: Iterable[Any]) -> None:
    """Raise UserError unless ``value`` is among ``choices``; the message lists them."""
    allowed = list(choices)
    if value not in allowed:
        raise UserError(f"{key}={value} is unknown: choose one of {', '.join(map(str, allowed))}")
