"""How hardware files price counts: a rule each for the values of their key ``rule``, which SCHEMAS has a schema for."""

from typing import Any

from eat_runner.energy.rules.base import Rule
from eat_runner.energy.rules.fused import Fused
from eat_runner.energy.rules.published import Published

RULES: dict[str, Rule[Any]] = {
    "published": Published(),
    "fused": Fused(),
}
