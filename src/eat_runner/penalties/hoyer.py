"""The Hoyer square of each activation tensor (Kurtz et al., Inducing and exploiting activation sparsity for fast
inference on deep neural networks, ICML 2020)."""

from typing import Any

import torch
from torch import Tensor

from eat_runner.config import PenaltyConfig
from eat_runner.distributed import batch_sums
from eat_runner.penalties.base import Surrogate, widened
from eat_runner.ranks import world_size


def hoyer(config: PenaltyConfig) -> Surrogate:
    """``hoyer_square``: it has no knobs."""
    return hoyer_square


def hoyer_square(x: Tensor) -> Tensor:
    """(sum of |x|)^2 / sum of x^2, over the whole tensor: from 1, where one element is not zero, to n, where all are
    alike; 0 where all are zero. It does not depend on the scale of x. Of a batch that several processes have parts of
    (distributed.py), this process' share of the whole tensor's.

    x: any shape and floating type; computed in float32 (float64 if x is). Returns a scalar. Gradient:
    2 q sign(x) - 2 q^2 x with q = sum of |x| / sum of x^2.
    """
    return _HoyerSquare.apply(x)  # pyright: ignore[reportReturnType]


class _HoyerSquare(torch.autograd.Function):
    """Keeps x alone."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        absolute, squares, share = _sums(x)
        return torch.where(squares > 0, share * absolute.square() / squares, 0.0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        absolute, squares, _ = _sums(x)
        q = torch.where(squares > 0, absolute / squares, 0.0)
        wide = widened(x)
        return (torch.sign(wide).sub_(q * wide) * (2.0 * q * grad_outputs[0])).to(x.dtype)


def _sums(x: Tensor) -> tuple[Tensor, Tensor, Tensor | float]:
    """Of the whole tensor: sum of |x| and of x^2; which part of it is here."""
    wide = widened(x)
    here = wide.abs().sum(), wide.square().sum()
    if world_size() == 1:
        return *here, 1.0
    absolute, squares, elements = batch_sums(torch.stack([*here, wide.new_full((), x.numel())]))
    return absolute, squares, x.numel() / elements
