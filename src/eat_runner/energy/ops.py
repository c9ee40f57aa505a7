"""What each operation does, from its shapes alone: one small handler a kind of operation, one dict.

``computations`` are those of the published simulator (Shumailov et al., Sponge Examples, EuroS&P 2021, its energy
estimator), quirks included: padding counts, groups do not, batch norm is 4 operations a value, and only those pools
count that are modules. What is not in OPS moves data in the counts and is reported by name.

An operation that multiplies also says how its exact products are counted (Products): those that exist, those whose
input is not zero, and those where neither operand is. Convolution is linear: a sum over images, and over the output
channels of a group, can be taken before the products. So once for a data set is enough.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eat_runner.energy.counts import Kind
from eat_runner.taps import Call

Macs = tuple[int, int, int]  # products that exist, with an input that is not zero, with two such operands
Flag = Callable[[Tensor], Tensor]  # which values of a tensor count as not zero: boolean, of its shape


class Products(NamedTuple):
    """How an operation's products are counted, exact while the results stay below 2^53.

    total: (summed, elements, flag) -> products of all images. summed: what was added up over the batches, on the CPU;
    elements: of the inputs of all images.
    of_call: (call, flag) -> what is added up of a call (int64); it runs right after the call, so it may look at both
    operands. None for the positions: at each position of one image of the first input, (C, H, W) or (..., F), how many
    of the images have a non-zero there. They are all that a product with a weight needs, and cost nothing where
    somebody counts that tensor anyway.
    """

    total: Callable[[Tensor, int, Flag], Macs]
    of_call: Callable[[Call, Flag], Tensor] | None = None


@dataclass(frozen=True, slots=True)
class Op:
    """One call's work. Fields as in LayerCounts; computations and macs_nominal for the images of this call. products:
    None where nothing is multiplied."""

    kind: Kind
    computations: int = 0
    macs_nominal: int = 0
    kernel_area: int = 0
    window: int = 0
    stride: int = 0
    groups: int = 0
    products: Products | None = None


Handler = Callable[[Call], Op]
UNKNOWN = Op(Kind.UNKNOWN)


def describe(call: Call) -> Op:
    """The call's work; kind UNKNOWN for an operation that has no handler."""
    handler = OPS.get(call.op)
    if handler is not None:
        return handler(call)
    return _activation(call) if call.is_activation else UNKNOWN


def _conv2d(call: Call) -> Op:
    conv = call.module
    assert isinstance(conv, nn.Conv2d)
    kernel_area = math.prod(conv.kernel_size)
    macs = call.output.numel() * kernel_area * conv.in_channels
    products = Products(partial(_conv2d_products, conv))
    return Op(Kind.CONV, macs, macs, kernel_area, stride=conv.stride[0], groups=conv.groups, products=products)


def _conv2d_products(conv: nn.Conv2d, nonzeros: Tensor, elements: int, flag: Flag) -> Macs:
    counts, groups = _dense_and_not_zero(nonzeros, elements), conv.groups
    by_group = flag(conv.weight.detach()).cpu().double().unflatten(0, (groups, -1)).sum(1)
    dense = torch.full_like(by_group, conv.out_channels // groups)
    padding: Any = conv.padding
    if conv.padding_mode != "zeros":
        counts = F.pad(counts, conv._reversed_padding_repeated_twice, mode=conv.padding_mode)  # pyright: ignore[reportPrivateUsage]
        padding = 0
    valid, some = F.conv2d(counts, dense, None, conv.stride, padding, conv.dilation, groups).sum((1, 2, 3))
    both = F.conv2d(counts[1:], by_group, None, conv.stride, padding, conv.dilation, groups).sum()
    return round(valid.item()), round(some.item()), round(both.item())


def _linear(call: Call) -> Op:
    linear = call.module
    assert isinstance(linear, nn.Linear)
    macs = linear.weight.numel() * (call.inputs[0].numel() // linear.in_features)
    return Op(Kind.LINEAR, macs, macs, products=Products(partial(_linear_products, linear)))


def _linear_products(linear: nn.Linear, nonzeros: Tensor, elements: int, flag: Flag) -> Macs:
    counts = _dense_and_not_zero(nonzeros, elements)
    weight_nonzero = flag(linear.weight.detach()).cpu()
    valid, some = counts.flatten(1).sum(1) * weight_nonzero.shape[0]
    both = (counts[1] @ weight_nonzero.double().sum(0)).sum()
    return round(valid.item()), round(some.item()), round(both.item())


def _dense_and_not_zero(nonzeros: Tensor, elements: int) -> Tensor:
    """(2, shape of one image), float64: at each position how many images have a value, and one that is not zero."""
    return torch.stack([torch.full_like(nonzeros, elements // nonzeros.numel()), nonzeros]).double()


def _batch_norm(call: Call) -> Op:
    computations = 4 * call.inputs[0].numel() if call.op == "BatchNorm2d" else 0
    # without running statistics it computes them, and nothing can be folded into a layer before
    stored = getattr(call.module, "running_mean", None) is not None
    return Op(Kind.BATCH_NORM if stored else Kind.LAYER_NORM, computations)


def _pool(kind: Kind) -> Handler:
    def pool(call: Call) -> Op:
        window = _area(_argument(call, "kernel_size", 1))
        stride = _argument(call, "stride", 2) or _argument(call, "kernel_size", 1)
        computations = call.output.numel() * window if call.module is not None else 0
        return Op(kind, computations, window=window, stride=_first(stride))

    return pool


def _adaptive_pool(kind: Kind) -> Handler:
    def pool(call: Call) -> Op:
        elements = call.inputs[0].numel()
        computations = elements if call.op == "AdaptiveAvgPool2d" else 0
        return Op(kind, computations, window=max(1, round(elements / call.output.numel())))

    return pool


def _activation(call: Call) -> Op:
    free = call.op.lower().rstrip("_") in {"relu", "relu6", "fatrelu"}
    return Op(Kind.RELU if free else Kind.ACTIVATION)


def _plain(kind: Kind) -> Handler:
    return lambda call: Op(kind)


def _argument(call: Call, name: str, position: int) -> Any:
    """A module's attribute, or a function's argument by name or position; None where it was left out."""
    if call.module is not None:
        return getattr(call.module, name)
    return call.kwargs.get(name, call.args[position] if len(call.args) > position else None)


def _first(value: Any) -> int:
    return int(value[0] if isinstance(value, tuple | list) else value)


def _area(size: Any) -> int:
    return math.prod(size) if isinstance(size, tuple | list) else int(size) ** 2


_VIEW = _plain(Kind.VIEW)
_ADD = _plain(Kind.ADD)
_MULTIPLY = _plain(Kind.MULTIPLY)
_LAYER_NORM = _plain(Kind.LAYER_NORM)
_MAX_POOL, _AVG_POOL = _pool(Kind.MAX_POOL), _pool(Kind.AVG_POOL)
_ADAPTIVE_MAX_POOL, _ADAPTIVE_AVG_POOL = _adaptive_pool(Kind.MAX_POOL), _adaptive_pool(Kind.AVG_POOL)

# Modules by class name, functions by name; activation functions are known to taps.py.
OPS: dict[str, Handler] = {
    "Conv2d": _conv2d,
    "Linear": _linear,
    "BatchNorm1d": _batch_norm,
    "BatchNorm2d": _batch_norm,
    "SyncBatchNorm": _batch_norm,
    "FrozenBatchNorm2d": _batch_norm,
    "LayerNorm": _LAYER_NORM,
    "LayerNorm2d": _LAYER_NORM,
    "GroupNorm": _LAYER_NORM,
    "InstanceNorm2d": _LAYER_NORM,
    "MaxPool2d": _MAX_POOL,
    "max_pool2d": _MAX_POOL,
    "AvgPool2d": _AVG_POOL,
    "avg_pool2d": _AVG_POOL,
    "AdaptiveMaxPool2d": _ADAPTIVE_MAX_POOL,
    "adaptive_max_pool2d": _ADAPTIVE_MAX_POOL,
    "AdaptiveAvgPool2d": _ADAPTIVE_AVG_POOL,
    "adaptive_avg_pool2d": _ADAPTIVE_AVG_POOL,
    "mean": _ADAPTIVE_AVG_POOL,
    "add": _ADD,
    "add_": _ADD,
    "iadd": _ADD,
    "radd": _ADD,
    "sub": _ADD,
    "Shift": _ADD,  # of methods/channels.py
    "mul": _MULTIPLY,
    "mul_": _MULTIPLY,
    "imul": _MULTIPLY,
    "rmul": _MULTIPLY,
    "Identity": _VIEW,
    "Dropout": _VIEW,
    "Dropout1d": _VIEW,
    "Dropout2d": _VIEW,
    "AlphaDropout": _VIEW,
    "StochasticDepth": _VIEW,
    "dropout": _VIEW,
    "dropout2d": _VIEW,
    "stochastic_depth": _VIEW,
    "Flatten": _VIEW,
    "Unflatten": _VIEW,
    "Permute": _VIEW,
    "ChannelShuffle": _VIEW,
    "PixelShuffle": _VIEW,
    "PixelUnshuffle": _VIEW,
    "ZeroPad2d": _VIEW,
    "cat": _VIEW,
    "concat": _VIEW,
    "chunk": _VIEW,
    "split": _VIEW,
    "getitem": _VIEW,
    "narrow": _VIEW,
    "flatten": _VIEW,
    "unflatten": _VIEW,
    "view": _VIEW,
    "reshape": _VIEW,
    "permute": _VIEW,
    "transpose": _VIEW,
    "squeeze": _VIEW,
    "unsqueeze": _VIEW,
    "contiguous": _VIEW,
    "clone": _VIEW,
    "channel_shuffle": _VIEW,
    "pixel_shuffle": _VIEW,
    "pixel_unshuffle": _VIEW,
}
