"""Penalties: from a network's activations to the one number that training adds, times lambda, to the cross-entropy.

The surrogate of the l0 norm is EAT's (Lazzaro et al., arXiv 2307.00368, Eq. 1). It is the hot path of training with a
penalty, so it keeps nothing but the activation (which the next layer mostly keeps anyway) and, on the CPU, goes over it
block by block, so that what lies between is read and written in the cache.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from eat_runner.config import PenaltyConfig
from eat_runner.errors import UserError

BLOCK = 65_536  # elements; a block of float32 and its scratch fill half of a 1 MiB cache


def l0_surrogate(x: Tensor, sigma: float) -> Tensor:
    """Sum over all elements of x^2 / (x^2 + sigma): a smooth count of the non-zeros (arXiv 2307.00368, Eq. 1).

    x: any shape and floating type; computed in float32 (float64 if x is). sigma: > 0. Returns a scalar.
    Evaluated as n - sum sigma / (x^2 + sigma), which rounds small terms instead of terms close to 1 and is finite for
    every finite x. The gradient is the analytic 2 sigma x / (x^2 + sigma)^2, in x's type, exactly 0 at x = 0.
    """
    return _L0Surrogate.apply(x, sigma)  # pyright: ignore[reportReturnType]


def no_penalty(x: Tensor, sigma: float) -> Tensor:
    """0, whatever x is: standard training."""
    return x.new_zeros((), dtype=torch.float32)


# Each key has a conf/penalty/<key>.yaml. (activation, sigma) -> its sum, a scalar
PENALTIES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "l0": l0_surrogate,
    "none": no_penalty,
}


def normalise(sums: Sequence[Tensor], elements: Sequence[int], images: int, parameters: int, how: str) -> Tensor:
    """One number from the sums S_k of K calls with N_k elements each (over the whole batch of B images).

    layer_mean: (1/K) sum S_k / N_k, as in the code that the paper builds on. elements: sum S_k / sum N_k.
    parameters: sum S_k / (B * P), the paper's words read literally, P the network's parameters.
    Raises UserError where there is nothing to penalise, or for an unknown ``how``.
    """
    if not sums:
        raise UserError("penalty.scope matches no output of this network: use penalty.scope=leaf_modules")
    stacked = torch.stack(list(sums))
    if how == "layer_mean":
        return torch.stack([s / n for s, n in zip(sums, elements, strict=True)]).mean()
    if how == "elements":
        return stacked.sum() / sum(elements)
    if how == "parameters":
        return stacked.sum() / (images * parameters)
    raise UserError(f"penalty.normalisation={how} is unknown: choose one of layer_mean, elements, parameters")


def penalty(activations: Iterable[Tensor], images: int, parameters: int, config: PenaltyConfig) -> Tensor:
    """The penalty of one forward pass, a scalar: the surrogate of every activation, normalised as ``config`` says.

    activations: outputs of the penalised calls, in any order, the batch included. images: in the batch.
    parameters: of the network. Raises UserError as ``normalise`` does, and for an unknown penalty.
    """
    if config.name not in PENALTIES:
        raise UserError(f"penalty={config.name} is unknown: choose one of {', '.join(PENALTIES)}")
    kept = list(activations)
    sums = [PENALTIES[config.name](x, config.sigma) for x in kept]
    return normalise(sums, [x.numel() for x in kept], images, parameters, config.normalisation)


class _L0Surrogate(torch.autograd.Function):
    """Saves x alone; both directions recompute sigma / (x^2 + sigma)."""

    @staticmethod
    def forward(x: Tensor, sigma: float) -> Tensor:
        if _blockwise(x):
            return _forward_in_blocks(x, sigma)
        wide = x.to(_wide(x))
        return x.numel() - _small(wide, sigma).sum()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        x, ctx.sigma = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        scale = grad_outputs[0] * (2.0 / ctx.sigma)
        if _blockwise(x):
            return _backward_in_blocks(x, ctx.sigma, scale), None
        wide = x.to(scale.dtype)
        small = _small(wide, ctx.sigma)
        return (wide * (small * small) * scale).to(x.dtype), None


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _small(x: Tensor, sigma: float) -> Tensor:
    """sigma / (x^2 + sigma) as 1 / (1 + x^2 / sigma): in [0, 1], whatever x and sigma are."""
    return (1.0 + x * x * (1.0 / sigma)).reciprocal()


def _blockwise(x: Tensor) -> bool:
    """Only eager CPU code gains from blocks: a GPU has its own cache policy, and a compiler fuses the operations."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def _forward_in_blocks(x: Tensor, sigma: float) -> Tensor:
    wide = _wide(x)
    one = torch.ones((), dtype=wide)
    scratch = torch.empty(min(BLOCK, x.numel()), dtype=wide)
    zeros = 0.0  # over the blocks in double precision
    for block in _blocks(x):
        block = block.to(wide)
        small = torch.addcmul(one, block, block, value=1.0 / sigma, out=scratch[: block.numel()]).reciprocal_()
        zeros += small.sum().item()
    return torch.tensor(x.numel() - zeros, dtype=wide)


def _backward_in_blocks(x: Tensor, sigma: float, scale: Tensor) -> Tensor:
    gradient = torch.empty_like(x)
    one = torch.ones((), dtype=scale.dtype)
    scratch = torch.empty(min(BLOCK, x.numel()), dtype=scale.dtype)
    for block, out in zip(_blocks(x), _blocks(gradient), strict=True):
        block = block.to(scale.dtype)
        large = torch.addcmul(one, block, block, value=1.0 / sigma, out=scratch[: block.numel()])
        torch.mul(torch.div(block, large.square_(), out=large), scale, out=out)
    return gradient


def _blocks(x: Tensor) -> Iterator[Tensor]:
    """Views of BLOCK elements in the order of storage, which is free for contiguous and channels_last tensors."""
    stored = x.permute(0, 2, 3, 1) if x.is_contiguous(memory_format=torch.channels_last) else x
    return iter(stored.reshape(-1).split(BLOCK))
