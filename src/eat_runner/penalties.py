"""Penalties: from a network's activations to the one number that training adds, times lambda, to the cross-entropy.

The surrogate of the l0 norm is EAT's (Lazzaro et al., arXiv 2307.00368, Eq. 1). It is the hot path of training with a
penalty, so it keeps nothing but the activation (which the next layer mostly keeps anyway) and, on the CPU, goes over it
block by block, so that what lies between is read and written in the cache.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from types import EllipsisType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from eat_runner.config import PenaltyConfig
from eat_runner.errors import UserError

BLOCK = 262_144  # elements: large enough to hide the cost of a call, small enough for a core's caches


def l0_surrogate(x: Tensor, sigma: float) -> Tensor:
    """Sum over all elements of x^2 / (x^2 + sigma): a smooth count of the non-zeros (arXiv 2307.00368, Eq. 1).

    x: any shape and floating type; computed in float32 (float64 if x is). sigma: > 0. Returns a scalar.
    Evaluated as n - sum sigma / (x^2 + sigma), which rounds small terms instead of terms close to 1 and is finite for
    every finite x. The gradient is the analytic 2 sigma x / (x^2 + sigma)^2, in x's type, exactly 0 at x = 0.
    """
    if not (x.requires_grad and torch.is_grad_enabled()):  # which spares autograd's part of the price
        return _L0Surrogate.forward(x, sigma)
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
    """One number, sum over k of w_k S_k, from the sums S_k of K calls; the other arguments are those of ``weights``."""
    shares = weights(elements, images, parameters, how)
    return torch.stack([s * w for s, w in zip(sums, shares, strict=True)]).sum()


def weights(elements: Sequence[int], images: int, parameters: int, how: str) -> list[float]:
    """The factor w_k of each call's sum, for K calls with N_k elements each (over the whole batch of B images).

    layer_mean: 1 / (K N_k), so that the penalty is (1/K) sum S_k / N_k, as in the code that the paper builds on.
    elements: 1 / sum N_k. parameters: 1 / (B P), the paper's words read literally, P the network's parameters.
    Raises UserError where there is nothing to penalise, or for an unknown ``how``.
    """
    if not elements:
        raise UserError("penalty.scope matches no output of this network: use penalty.scope=leaf_modules")
    if how == "layer_mean":
        return [1.0 / (len(elements) * n) for n in elements]
    if how == "elements":
        return [1.0 / sum(elements)] * len(elements)
    if how == "parameters":
        return [1.0 / (images * parameters)] * len(elements)
    raise UserError(f"penalty.weighting={how} is unknown: choose one of layer_mean, elements, parameters")


def penalty(activations: Iterable[Tensor], images: int, parameters: int, config: PenaltyConfig) -> Tensor:
    """The penalty of one forward pass, a scalar: the surrogate of every activation, normalised as ``config`` says.

    activations: outputs of the penalised calls, in any order, the batch included. images: in the batch.
    parameters: of the network. Raises UserError as ``normalise`` does, and for an unknown penalty.
    """
    if config.name not in PENALTIES:
        raise UserError(f"penalty={config.name} is unknown: choose one of {', '.join(PENALTIES)}")
    kept = list(activations)
    sums = [PENALTIES[config.name](x, config.sigma) for x in kept]
    return normalise(sums, [x.numel() for x in kept], images, parameters, config.weighting)


Rows = slice | EllipsisType  # of a tensor: some images, or all there is
Values = Callable[[Rows], Tensor]


def part(x: Tensor, rows: Rows) -> Tensor:
    """These rows of x; x itself, which is faster than a view of it, where they are all there is."""
    return x if rows is ... else x[rows]


class Share:
    """What an activation adds to the gradient that flows back through it, once.

    weight: of the surrogate's gradient; called with ``values``, which give the activation's rows, in backward.
    """

    def __init__(self, sigma: float, weight: Callable[[Values], float], values: Values):
        self.sigma, self.weight = sigma, weight
        self.values: Values | None = values

    @property
    def taken(self) -> bool:
        return self.values is None

    def add_to(self, gradient: Tensor, out: Tensor, relu: "Share | None" = None) -> Tensor:
        """Into ``out``, which may be ``gradient`` itself: gradient + weight * the surrogate's gradient.

        relu: the share of this activation's ReLU, which has the same gradient where the activation is positive, and 0
        elsewhere; it is taken too.
        """
        values, weight = self._take()
        where_positive = relu._take()[1] if relu is not None else 0.0
        total = weight + where_positive
        if total == 0.0:
            return gradient
        divisor_of = _divisors(self.sigma, total)
        divisor: Tensor | None = None
        for rows in _rows(gradient):
            x = values(rows)
            divisor = divisor_of(x, divisor if divisor is not None and divisor.shape == x.shape else None)
            if where_positive == 0.0:
                torch.addcdiv(part(gradient, rows), x, divisor, out=part(out, rows))
            else:
                slope = torch.div(x, divisor, out=divisor)  # has the sign of x
                torch.add(part(gradient, rows), F.leaky_relu_(slope, weight / total), out=part(out, rows))
        return out

    def _take(self) -> tuple[Values, float]:
        values, self.values = self.values, None
        assert values is not None
        return values, self.weight(values)


def l0_in_backward(
    x: Tensor,
    sigma: float,
    weight: Callable[[Values], float],
    values: Values | None = None,
    before: Share | None = None,
) -> Share:
    """Penalise x while the gradient of the loss flows by: the fast way to train with ``l0_surrogate``.

    When backward reaches x, weight times the surrogate's gradient is added to the gradient that arrives there. So the
    forward pass costs nothing, and one pass in backward does what otherwise takes three (value, gradient, addition);
    the gradients are those of adding weight * l0_surrogate(x, sigma) to the loss. That needs a loss that depends on x,
    and eager mode.

    x: must require grad; nothing but its values is kept, and only until backward has used them. weight: called in
    backward, so that it may depend on what is known after the forward pass only, and may look at the values.
    values: give the rows of x in backward, where a later operation overwrites x in place. before: the share of the
    activation that x was made of, if it has one: behind a ReLU or a batch norm both need fewer passes.
    """
    share = Share(sigma, weight, values or _as_it_is(x))
    node = x.grad_fn
    made_by = node.name() if node is not None else None

    # What a node's backward has just made belongs to nobody else yet, so it may be changed where it is.
    def behind_relu(left: Sequence[Tensor], arrived: Sequence[Tensor]) -> None:
        if before is not None and not share.taken:
            before.add_to(left[0], out=left[0], relu=share)
        elif not share.taken:
            share.add_to(left[0], out=left[0])  # the surrogate's gradient is 0 where ReLU's is

    def behind_norm(left: Sequence[Tensor], arrived: Sequence[Tensor]) -> None:
        if before is not None and not before.taken:
            before.add_to(left[0], out=left[0])

    def on_arrival(arrived: Tensor) -> Tensor | None:
        return None if share.taken else share.add_to(arrived, out=torch.empty_like(arrived))

    if node is not None and made_by == "ReluBackward0":
        node.register_hook(behind_relu)
    else:
        x.register_hook(on_arrival)
    if node is not None and made_by == "NativeBatchNormBackward0":
        node.register_hook(behind_norm)
    return share


def _as_it_is(x: Tensor) -> Values:
    held, version = x.detach(), x._version

    def values(rows: Rows) -> Tensor:
        assert held._version == version, "a penalised activation was overwritten before backward"
        return part(held, rows)

    return values


# Penalties that can be added in backward; the others are computed in the forward pass.
IN_BACKWARD = {"l0": l0_in_backward}


class _L0Surrogate(torch.autograd.Function):
    """Saves x alone. With d = 1 + x^2 / sigma: forward n - sum 1 / d, backward (2 / sigma) x / d^2."""

    @staticmethod
    def forward(x: Tensor, sigma: float) -> Tensor:
        if not _blockwise(x):
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
        if not _blockwise(x):
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


def _blockwise(x: Tensor) -> bool:
    """Only eager CPU code gains from blocks: a GPU has its own cache policy, and a compiler fuses the operations."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def _dense(x: Tensor) -> Tensor:
    """x itself if it is contiguous or channels_last, else a contiguous copy."""
    return x if _is_dense(x) else x.contiguous()


def _is_dense(x: Tensor) -> bool:
    return x.is_contiguous() or _is_channels_last(x)


def _is_channels_last(x: Tensor) -> bool:
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)


def _rows(x: Tensor) -> Iterable[Rows]:
    """Rows that make up a BLOCK, one after the other; all at once where blocks gain nothing."""
    if x.numel() <= BLOCK or not _blockwise(x):
        return [...]
    step = max(1, BLOCK * x.shape[0] // x.numel())
    return [slice(start, start + step) for start in range(0, x.shape[0], step)]


def _blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Scratch of the wide type, and a view of each tensor, for BLOCK elements after the other in the order of storage.

    tensors: dense, with the same strides. The scratch is the same memory for every block.
    """
    scratch = torch.empty(min(BLOCK, tensors[0].numel()), dtype=_wide(tensors[0]))
    stored = (x.permute(0, 2, 3, 1) if _is_channels_last(x) else x for x in tensors)
    for views in zip(*(x.reshape(-1).split(BLOCK) for x in stored), strict=True):
        yield scratch[: views[0].numel()], *views
