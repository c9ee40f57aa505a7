"""The fast way to train with a penalty: its gradient is added while the gradient of the loss flows by.

When backward reaches a penalised activation, weight times the surrogate's gradient is added to the gradient that
arrives there. So the forward pass costs nothing, and one pass in backward does what otherwise takes three (value,
gradient, addition); the gradients are those of adding weight * surrogate(x) to the loss. That needs a loss that depends
on x, and eager mode. On the CPU an activation is gone over block by block, so that what lies between is read and
written in the cache.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from types import EllipsisType

import torch
from torch import Tensor, nn
from torch.autograd.graph import disable_saved_tensors_hooks

from eat_runner.penalties.base import InBackward, widened
from eat_runner.taps import Call, version_of

BLOCK = 262_144  # elements: large enough to hide the cost of a call, small enough for a core's caches

Rows = slice | EllipsisType  # of a tensor: some images, or all there is
Values = Callable[[Rows], Tensor]


def part(x: Tensor, rows: Rows) -> Tensor:
    """These rows of x; x itself, which is faster than a view of it, where they are all there is."""
    return x if rows is ... else x[rows]


class Addition:
    """What an activation adds to the gradient that flows back through it, once.

    weight: of the surrogate's gradient; called with ``values``, which give the activation's rows, in backward.
    rows: the first of the activation, which alone are penalised, or all.
    """

    def __init__(self, surrogate: InBackward, weight: Callable[[Values], float], values: Values, rows: Rows = ...):
        self.surrogate, self.weight, self.rows = surrogate, weight, rows
        self.values: Values | None = values

    @property
    def taken(self) -> bool:
        return self.values is None

    def add_to(self, gradient: Tensor, out: Tensor, relu: "Addition | None" = None) -> Tensor:
        """Into ``out``, which may be ``gradient`` itself: gradient + weight * the surrogate's gradient.

        relu: the addition of this activation's ReLU, which has the same gradient where the activation is positive, and
        0 elsewhere; it is taken too.
        """
        values, weight = self._take()
        above = weight + (relu._take()[1] if relu is not None else 0.0)
        if above == 0.0:
            return gradient
        add = self.surrogate.adder(weight, above)
        narrow = blockwise(gradient) and gradient.dtype in (torch.bfloat16, torch.float16)
        for rows in _blocks(gradient, self.rows):
            if narrow:  # mixed types take several times as long, with the same result
                wide = widened(part(gradient, rows))
                add(wide, widened(values(rows)), wide)
                part(out, rows).copy_(wide)
            else:
                add(part(gradient, rows), values(rows), part(out, rows))
        if self.rows is not ... and out is not gradient:
            rest = slice(self.rows.stop, None)
            out[rest] = gradient[rest]
        return out

    def _take(self) -> tuple[Values, float]:
        values, self.values = self.values, None
        assert values is not None
        return values, self.weight(values)


def penalise(
    x: Tensor,
    surrogate: InBackward,
    weight: Callable[[Values], float],
    values: Values | None = None,
    before: Addition | None = None,
    rows: Rows = ...,
) -> Addition:
    """Penalise x in backward, or its first rows alone.

    x: must require grad; nothing but its values is kept, and only until backward has used them. weight: called in
    backward, so that it may depend on what is known after the forward pass only, and may look at the values.
    values: give the rows of x in backward, where a later operation overwrites x in place. before: the addition of the
    activation that x was made of, if it has one: behind a ReLU or a batch norm both need fewer passes.
    """
    addition = Addition(surrogate, weight, values or _as_it_is(x), rows)
    node = x.grad_fn
    made_by = node.name() if node is not None else None

    # What a node's backward has just made belongs to nobody else yet, so it may be changed where it is.
    def behind_relu(left: Sequence[Tensor], arrived: Sequence[Tensor]) -> None:
        if before is not None and not addition.taken:
            before.add_to(left[0], out=left[0], relu=addition)
        elif not addition.taken:
            addition.add_to(left[0], out=left[0])  # the surrogate's gradient is 0 where ReLU's is

    def behind_norm(left: Sequence[Tensor], arrived: Sequence[Tensor]) -> None:
        if before is not None and not before.taken:
            before.add_to(left[0], out=left[0])

    def on_arrival(arrived: Tensor) -> Tensor | None:
        return None if addition.taken else addition.add_to(arrived, out=torch.empty_like(arrived))

    if node is not None and made_by == "ReluBackward0":
        node.register_hook(behind_relu)
    else:
        x.register_hook(on_arrival)
    if node is not None and made_by == "NativeBatchNormBackward0":
        node.register_hook(behind_norm)
    return addition


def _as_it_is(x: Tensor) -> Values:
    held, version = x.detach(), x._version

    def values(rows: Rows) -> Tensor:
        assert held._version == version, "a penalised activation was overwritten before backward"
        return part(held, rows)

    return values


class Kept:
    """The values of a call's output, or of its first rows, until backward has used them, and what to do before somebody
    overwrites them. Called with rows, it gives them."""

    def __init__(self, call: Call, rows: Rows = ...):
        self.held, self.version, self.rows = call.output.detach(), version_of(call.output), rows
        self.norm = call if _can_be_made_again(call) else None
        self.again: Values | None = None

    @property
    def is_lost(self) -> bool:
        return self.again is None and version_of(self.held) != self.version

    def protect(self) -> None:
        """They are about to be overwritten: what a batch norm made is computed again, from the input that its own
        backward needs anyway; anything else is copied."""
        if self.again is None and not self.is_lost:
            self.again = (
                _made_again(self.norm) if self.norm is not None else partial(part, part(self.held, self.rows).clone())
            )
        self.norm = None

    def __call__(self, rows: Rows) -> Tensor:
        assert not self.is_lost, "a penalised activation was overwritten before backward"
        return part(self.held, rows) if self.again is None else self.again(rows)


def _can_be_made_again(call: Call) -> bool:
    node, module = call.output.grad_fn, call.module
    on_cpu = node is not None and node.name() == "NativeBatchNormBackward0"
    return on_cpu and isinstance(module, nn.BatchNorm2d) and module.training and module.affine and not _saves_apart()


def _saves_apart() -> bool:
    """Whether what autograd saves goes through somebody's hands (torch.utils.checkpoint, offloading)."""
    try:
        with disable_saved_tensors_hooks(""):
            return False
    except RuntimeError:
        return True


def _made_again(norm: Call) -> Values:
    node, module = norm.output.grad_fn, norm.module
    assert isinstance(module, nn.BatchNorm2d)
    mean, inverse_std = node._saved_result1, node._saved_result2  # pyright: ignore
    scale = module.weight.detach() * inverse_std
    shift = module.bias.detach() - mean * scale
    x = norm.inputs[0].detach()
    return lambda rows: _channelwise(part(x, rows), scale, shift)


def _channelwise(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """x times scale plus shift, both of shape (channels,), for x of shape (batch size, channels, height, width).

    A batch norm does the same in twice the time (on a CPU). In channels_last, a line of the image is taken as one
    dimension: the inner loop over the channels alone would be short.
    """
    if not x.is_contiguous(memory_format=torch.channels_last):
        return torch.addcmul(shift[:, None, None], x, scale[:, None, None]).to(x.dtype)
    lines, width = x.permute(0, 2, 3, 1).flatten(2), x.shape[3]
    y = torch.addcmul(shift.repeat(width), lines, scale.repeat(width)).to(x.dtype)
    return y.unflatten(2, (width, -1)).permute(0, 3, 1, 2)


def blockwise(x: Tensor) -> bool:
    """Only eager CPU code gains from blocks: a GPU has its own cache policy, and a compiler fuses the operations."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def _blocks(x: Tensor, rows: Rows) -> Iterable[Rows]:
    """These rows, all or the first ones, in parts of one BLOCK each; at once where blocks gain nothing."""
    if x.numel() <= BLOCK or not blockwise(x):
        return [rows]
    many = x.shape[0] if rows is ... else rows.stop
    step = max(1, BLOCK * x.shape[0] // x.numel())
    return [slice(start, min(start + step, many)) for start in range(0, many, step)]
