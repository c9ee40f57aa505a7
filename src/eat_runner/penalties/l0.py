"""EAT's penalty: a smooth count of the non-zeros (Lazzaro et al., arXiv 2307.00368, Eq. 1).

It is the hot path of training, so the surrogate keeps nothing but the activation (which the next layer mostly keeps
anyway) and, on the CPU, goes over it block by block, so that what lies between is read and written in the cache.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from eat_runner.config import L0Config
from eat_runner.penalties.base import Adder
from eat_runner.penalties.in_backward import BLOCK, blockwise


class L0:
    """``l0_surrogate`` with the configured sigma; in eager mode its gradient is added in backward."""

    def __init__(self, config: L0Config):
        self.sigma = config.sigma

    def __call__(self, x: Tensor) -> Tensor:
        return l0_surrogate(x, self.sigma)

    def adder(self, below: float, above: float) -> Adder:
        """As InBackward asks. above: not 0."""
        divisor_of = _divisors(self.sigma, above)
        divisor: Tensor | None = None

        def add(gradient: Tensor, x: Tensor, out: Tensor) -> None:
            nonlocal divisor
            divisor = divisor_of(x, divisor if divisor is not None and divisor.shape == x.shape else None)
            if below == above:
                torch.addcdiv(gradient, x, divisor, out=out)
            else:
                slope = torch.div(x, divisor, out=divisor)  # has the sign of x
                torch.add(gradient, F.leaky_relu_(slope, below / above), out=out)

        return add


def l0_surrogate(x: Tensor, sigma: float) -> Tensor:
    """Sum over all elements of x^2 / (x^2 + sigma): a smooth count of the non-zeros (arXiv 2307.00368, Eq. 1).

    x: any shape and floating type; computed in float32 (float64 if x is). sigma: > 0. Returns a scalar.
    Evaluated as n - sum sigma / (x^2 + sigma), which rounds small terms instead of terms close to 1 and is finite for
    every finite x. The gradient is the analytic 2 sigma x / (x^2 + sigma)^2, in x's type, exactly 0 at x = 0.
    """
    if not (x.requires_grad and torch.is_grad_enabled()):  # which spares autograd's part of the price
        return _L0Surrogate.forward(x, sigma)
    return _L0Surrogate.apply(x, sigma)  # pyright: ignore[reportReturnType]


class _L0Surrogate(torch.autograd.Function):
    """Saves x alone. With d = 1 + x^2 / sigma: forward n - sum 1 / d, backward (2 / sigma) x / d^2."""

    @staticmethod
    def forward(x: Tensor, sigma: float) -> Tensor:
        if not blockwise(x):
            return x.numel() - _denominator(x, sigma).reciprocal_().sum()
        zeros = 0.0  # over the blocks in double precision
        for scratch, block in _blocks(_dense(x)):
            zeros += _denominator(block, sigma, scratch).reciprocal_().sum().item()
        return torch.tensor(x.numel() - zeros, dtype=_wide(x))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        x, ctx.sigma = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        if not blockwise(x):
            scale = grad_outputs[0] * (2.0 / ctx.sigma)
            return (x / _denominator(x, ctx.sigma).square_() * scale).to(x.dtype), None
        x = _dense(x)
        gradient = torch.empty_like(x)
        weight = grad_outputs[0].item()
        if weight == 0.0:
            return gradient.zero_(), None
        divisor_of = _divisors(ctx.sigma, weight)
        for scratch, block, out in _blocks(x, gradient):
            torch.div(block, divisor_of(block, scratch), out=out)
        return gradient, None


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _denominator(x: Tensor, sigma: float, out: Tensor | None = None) -> Tensor:
    """1 + x^2 / sigma: at least 1, so that dividing by it is safe; infinite, with quotient 0, for huge x."""
    x = x.to(_wide(x))
    return torch.addcmul(x.new_ones(()), x, x, value=1.0 / sigma, out=out)


def _divisors(sigma: float, weight: float) -> Callable[..., Tensor]:
    """``(x, out=None)``: what x is divided by to get weight times the surrogate's gradient, that is
    sigma (1 + x^2 / sigma)^2 / (2 weight).

    weight: not 0. It is in the divisor and not before x, which may be as large as a float can be.
    """
    root = abs(2.0 * weight / sigma) ** -0.5
    constant: Tensor | None = None

    def divisor(x: Tensor, out: Tensor | None = None) -> Tensor:
        nonlocal constant
        x = x.to(_wide(x))
        if constant is None:
            constant = x.new_full((), root)
        d = torch.addcmul(constant, x, x, value=root / sigma, out=out)
        return d.square_() if weight > 0.0 else d.mul_(-d)

    return divisor


def _dense(x: Tensor) -> Tensor:
    """x itself if it is contiguous or channels_last, else a contiguous copy."""
    return x if _is_dense(x) else x.contiguous()


def _is_dense(x: Tensor) -> bool:
    return x.is_contiguous() or _is_channels_last(x)


def _is_channels_last(x: Tensor) -> bool:
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)


def _blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Scratch of the wide type, and a view of each tensor, for BLOCK elements after the other in the order of storage.

    tensors: dense, with the same strides. The scratch is the same memory for every block.
    """
    scratch = torch.empty(min(BLOCK, tensors[0].numel()), dtype=_wide(tensors[0]))
    stored = (x.permute(0, 2, 3, 1) if _is_channels_last(x) else x for x in tensors)
    for views in zip(*(x.reshape(-1).split(BLOCK) for x in stored), strict=True):
        yield scratch[: views[0].numel()], *views
