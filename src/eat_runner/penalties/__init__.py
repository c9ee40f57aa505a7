"""Penalties: from a network's activations to the one number that training adds, times lambda, to the cross-entropy.

A penalty is a file here: a function from its config to a surrogate (base.py). observer.py attaches it to a network,
weighting.py makes one number of the layers' sums, in_backward.py is the fast way to train with it.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from eat_runner.config import PenaltyConfig
from eat_runner.errors import UserError
from eat_runner.penalties.base import Surrogate
from eat_runner.penalties.hoyer import hoyer
from eat_runner.penalties.l0 import L0
from eat_runner.penalties.l1 import L1
from eat_runner.penalties.none import none
from eat_runner.penalties.transformed_l1 import TransformedL1
from eat_runner.penalties.weighting import build_weighting, numbered

# Each key has a conf/penalty/<key>.yaml. (its config) -> surrogate
PENALTIES: dict[str, Callable[[Any], Surrogate]] = {
    "l0": L0,
    "l1": L1,
    "hoyer": hoyer,
    "transformed_l1": TransformedL1,
    "none": none,
}


def build_surrogate(config: PenaltyConfig) -> Surrogate:
    """The surrogate that ``config`` names. UserError for an unknown penalty."""
    if config.name not in PENALTIES:
        raise UserError(f"penalty={config.name} is unknown: choose one of {', '.join(PENALTIES)}")
    return PENALTIES[config.name](config)


def penalty(activations: Iterable[Tensor], batch_size: int, parameters: int, config: PenaltyConfig) -> Tensor:
    """The penalty of one forward pass, a scalar: the surrogate of every activation, weighted as ``config`` says.

    activations: outputs of the penalised calls, in any order, the batch included. parameters: of the network.
    Raises UserError for an unknown penalty or weighting, and where there is nothing to penalise.
    """
    surrogate, kept = build_surrogate(config), list(activations)
    if not kept:
        raise UserError("penalty.scope matches no output of this network: use penalty.scope=leaf_modules")
    outputs = numbered([""] * len(kept), [x.numel() for x in kept])
    factors = build_weighting(config.weighting).factors(outputs, batch_size, parameters)
    return torch.stack([surrogate(x) * factor for x, factor in zip(kept, factors, strict=True)]).sum()
