"""Methods: what changes a network beside its penalty (pruning, thresholds, number formats, removed channels).

A method is a config group (config/groups.py), whose choice ``none`` leaves the network as it is, and a file here.
Several compose: they act one after the other in the order of METHODS, during the training and after it.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from eat_runner.config.hardware import HardwareConfig
from eat_runner.config.method import MethodConfig
from eat_runner.energy.budget import Budget
from eat_runner.energy.counts import Counts
from eat_runner.errors import UserError
from eat_runner.methods.base import Method
from eat_runner.methods.compact import Compact
from eat_runner.methods.pruning import Pruning
from eat_runner.methods.quantise import Quantise
from eat_runner.methods.thresholds import Thresholds

# By config group, in the order in which they act; after the training: fold and quantise, thresholds, compact; with
# bits, channels go first, while the network has float32 values.
METHODS: dict[str, type[Method]] = {
    "pruning": Pruning,
    "bits": Quantise,
    "thresholds": Thresholds,
    "compact": Compact,
}


def build_methods(
    chosen: Mapping[str, MethodConfig], hardware: HardwareConfig, budget: Budget | None = None
) -> dict[str, Method]:
    """The methods of the groups in ``chosen``, in the order in which they act."""
    order = [name for name in METHODS if name in chosen]
    if {"bits", "compact"} <= {*order}:
        order.insert(order.index("bits"), order.pop(order.index("compact")))
    return {name: METHODS[name](chosen[name], hardware, budget) for name in order}


def foreseen(methods: Iterable[Method], counts: Counts) -> Counts:
    """What the counts of a look would be behind all that the methods do after the training, as far as it is known."""
    for method in methods:
        counts = method.foreseen(counts)
    return counts


def restore(module: nn.Module, changes: Sequence[Mapping[str, Any]]) -> None:
    """Give a freshly built network the structure that methods have given to another one, so that its weights fit.

    changes: of a run's record, in order: {"method": group, "choice": its config's name, **what the method says}.
    Raises UserError for a method that this version does not have.
    """
    for change in changes:
        name = str(change.get("method"))
        if name not in METHODS:
            raise UserError(f"the network was changed by {name}, which this version does not know: install a newer one")
        METHODS[name].restore(module, change)
