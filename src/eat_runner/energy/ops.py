"""What each operation does, from its shapes alone: one small handler a kind of operation, one dict.

``computations`` are those of the published simulator (Shumailov et al., Sponge Examples, EuroS&P 2021, its energy
estimator), quirks included: padding counts, groups do not, batch norm is 4 operations a value, and only those pools
count that are modules. What is not in OPS moves data in the counts and is reported by name.

An operation that multiplies also says how its exact products are counted (Products): those that exist, those whose
input is not zero, and those where neither operand is. Convolution is linear: a sum over images, and over the output
channels of a group, can be taken before the products. So once for a data set is enough. Of two operands that both come
from an image, each image's products are counted when they are made: those with one value k of what is summed over are
as many as there are non-zeros with k on the left, times those on the right.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import is_parametrized

from eat_runner.energy.counts import Kind
from eat_runner.taps import LEAVES, SPACES, Call, leaf_class, where

Macs = tuple[int, int, int]  # products that exist, with an input that is not zero, with two such operands
Flag = Callable[[Tensor], Tensor]  # which values of a tensor count as not zero: boolean, of its shape


class Products(NamedTuple):
    """How an operation's products are counted, exact while the results stay below 2^53.

    total: (summed, elements, flag) -> products of all images. summed: what was added up over the batches, on the CPU;
    elements: of the inputs of all images.
    of_call: (call, flag) -> what is added up of a call (int64); it runs right after the call, so it may look at both
    operands. None for the positions: at each position of one sample of the first input how many samples have a non-zero
    there. They are all that a product with a weight needs, and cost nothing where somebody counts that tensor anyway.
    sample: how many of the input's last dimensions one sample has: 3 for (C, H, W), 1 for features; None for all but
    the first.
    """

    total: Callable[[Tensor, int, Flag], Macs]
    of_call: Callable[[Call, Flag], Tensor] | None = None
    sample: int | None = None


@dataclass(frozen=True, slots=True)
class Op:
    """One call's work. Fields as in LayerCounts; computations, macs_nominal and macs_dense for the images of this call.
    products: None where nothing is multiplied. rearranges: the output is the input's values in another order, and so
    has as many zeros where it has as many elements."""

    kind: Kind
    computations: int = 0
    macs_nominal: int = 0
    macs_dense: int = 0
    inner_elements: int = 0
    kernel_area: int = 0
    window: int = 0
    stride: int = 0
    groups: int = 0
    products: Products | None = None
    rearranges: bool = False


Handler = Callable[[Call], Op]
UNKNOWN = Op(Kind.UNKNOWN)


def describe(call: Call) -> Op:
    """The call's work; kind UNKNOWN for an operation that has no handler, CONSTANT for one that reads nothing of an
    image."""
    handler = OPS.get(_key(call))
    if handler is None and call.is_activation:
        handler = _activation
    work = handler(call) if handler is not None else UNKNOWN
    return replace(work, kind=Kind.CONSTANT, products=None) if call.is_constant else work


def parameters(call: Call) -> list[tuple[str, Tensor]]:
    """What the call reads that is of no image, by role (``weight``, ``bias``, ``running_mean``, …), as it would be
    stored: a weight that a parametrisation or a mask makes, and not what it is made of."""
    if call.module is not None:
        return _of_module(call.module)
    if call.is_constant:
        return []
    named = {id(x): name for name, x in _bound(call, ARGUMENTS.get(call.function, "")).items() if isinstance(x, Tensor)}
    named = {key: "bias" if name == ADDED else name for key, name in named.items()}
    constants = [x for x, constant in zip(call.inputs, call.constant, strict=True) if constant]
    images = next(
        (len(x) for x, constant in zip(call.inputs, call.constant, strict=True) if not constant and x.dim()), 0
    )
    return [(named.get(id(x), "weight"), _stored_once(x, images)) for x in constants]


def _of_module(module: nn.Module) -> list[tuple[str, Tensor]]:
    made = {name for name, value in vars(module).items() if isinstance(value, Tensor)}  # by a mask or an older norm
    made |= {*getattr(module, "parametrizations", {})} if is_parametrized(module) else set()
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    own = [(name, x) for name, x in own if not any(name.startswith(f"{other}_") for other in made)]
    return [(name, getattr(module, name)) for name in sorted(made)] + own


def _stored_once(x: Tensor, images: int) -> Tensor:
    """Without what only repeats it: along broadcast dimensions, and for each image of the batch."""
    for dim, (size, stride) in enumerate(zip(x.shape, x.stride(), strict=True)):
        if stride == 0 and size > 1:
            x = x.narrow(dim, 0, 1)
    if x.dim() and len(x) == images > 1 and bool((x[1:] == x[:1]).all()):
        x = x[:1]
    return x


def _key(call: Call) -> Any:
    if call.module is None:
        return call.function
    known = leaf_class(call.module)
    return None if known is None else where(known)


# --- layers --------------------------------------------------------------------------------------------------------


def _convolution(call: Call) -> Op:
    conv = _Convolution.of(call)
    weight, (_, inputs, *kernel) = conv.weight, conv.weight.shape
    kernel_area = math.prod(kernel)
    macs = call.output.numel() * kernel_area * inputs * conv.groups
    products = Products(partial(conv.products, weight), sample=1 + len(kernel))
    if not _is_weight(call, weight):
        products = Products(_summed, lambda call, flag: _Convolution.of(call).of_two(call, flag))
    return Op(
        Kind.CONV,
        macs if _is_module(call, nn.Conv2d) else 0,
        macs,
        macs // conv.groups,
        kernel_area=kernel_area,
        stride=conv.stride[0],
        groups=conv.groups,
        products=products,
    )


def _transposed(call: Call) -> Op:
    conv = _Convolution.of(call)
    weight, (_, outputs, *kernel) = conv.weight, conv.weight.shape
    x = _first(call)
    macs = x.numel() * outputs * math.prod(kernel)
    products = Products(partial(conv.transposed_products, x.shape, call.output.shape, weight), sample=1 + len(kernel))
    if not _is_weight(call, weight):
        return UNKNOWN
    return Op(
        Kind.CONV,
        macs_nominal=macs * conv.groups,
        macs_dense=macs,
        kernel_area=math.prod(kernel),
        stride=conv.stride[0],
        groups=conv.groups,
        products=products,
    )


class _Convolution(NamedTuple):
    """A convolution's weight and settings, of a module or of a function alike."""

    weight: Tensor
    stride: tuple[int, ...]
    padding: Any
    dilation: tuple[int, ...]
    groups: int
    around: tuple[int, ...] | None = None  # what is put around the image, where it is not zeros
    mode: str = "zeros"

    @classmethod
    def of(cls, call: Call) -> "_Convolution":
        if call.module is not None:
            conv: Any = call.module
            around = None if conv.padding_mode == "zeros" else tuple(conv._reversed_padding_repeated_twice)
            padding = conv.padding if around is None else 0
            return cls(
                conv.weight.detach(), conv.stride, padding, conv.dilation, conv.groups, around, conv.padding_mode
            )
        given = _bound(call, ARGUMENTS[call.function])
        weight = given["weight"].detach()
        dims = weight.dim() - 2
        padding = given.get("padding", 0)
        return cls(
            weight,
            _each(given.get("stride", 1), dims),
            padding if isinstance(padding, str) else _each(padding, dims),
            _each(given.get("dilation", 1), dims),
            given.get("groups", 1),
        )

    def _over(self, counts: Tensor, weight: Tensor) -> Tensor:
        if self.around is not None:
            counts = F.pad(counts, self.around, mode=self.mode)
        conv: Any = (F.conv1d, F.conv2d, F.conv3d)[weight.dim() - 3]
        return conv(counts, weight, None, self.stride, self.padding, self.dilation, self.groups)

    def products(self, weight: Tensor, nonzeros: Tensor, elements: int, flag: Flag) -> Macs:
        counts = _dense_and_not_zero(nonzeros, elements)
        by_group = flag(weight).cpu().double().unflatten(0, (self.groups, -1)).sum(1)
        dense = torch.full_like(by_group, len(weight) // self.groups)
        valid, some = self._over(counts, dense).flatten(1).sum(1)
        both = self._over(counts[1:], by_group).sum()
        return round(valid.item()), round(some.item()), round(both.item())

    def of_two(self, call: Call, flag: Flag) -> Tensor:
        """The weight depends on the image, too."""
        x = _first(call)
        left, right = flag(x).double(), flag(self.weight).double()
        ones = torch.ones_like(right)
        found = [self._over(torch.ones_like(left), ones), self._over(left, ones), self._over(left, right)]
        return torch.stack([products.sum() for products in found]).round().long()

    def transposed_products(
        self, x: torch.Size, output: torch.Size, weight: Tensor, nonzeros: Tensor, elements: int, flag: Flag
    ) -> Macs:
        """Those that land outside of the output do not exist."""
        dims = weight.dim() - 2
        beyond = [
            out - ((size - 1) * stride - 2 * padding + dilation * (kernel - 1) + 1)
            for out, size, stride, padding, dilation, kernel in zip(
                output[-dims:], x[-dims:], self.stride, self.padding, self.dilation, weight.shape[2:], strict=True
            )
        ]
        conv: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[dims - 1]
        over = partial(conv, bias=None, stride=self.stride, padding=self.padding, output_padding=beyond)
        over = partial(over, groups=self.groups, dilation=self.dilation)
        counts = _dense_and_not_zero(nonzeros, elements)
        not_zero = flag(weight).cpu().double().sum(1, keepdim=True)
        valid, some = over(counts, torch.full_like(not_zero, weight.shape[1])).flatten(1).sum(1)
        both = over(counts[1:], not_zero).sum()
        return round(valid.item()), round(some.item()), round(both.item())


def _linear(call: Call) -> Op:
    if call.module is not None:
        weight: Tensor = getattr(call.module, "weight").detach()  # noqa: B009
    else:
        weight = _bound(call, ARGUMENTS[call.function])["weight"]
    x = _first(call)
    if not _is_weight(call, weight) or weight.dim() != 2:
        return _product(call, lambda call: _operands_of_linear(call))
    macs = weight.numel() * (x.numel() // weight.shape[1])
    products = Products(partial(_linear_products, weight.detach()), sample=1)
    return Op(Kind.LINEAR, macs if _is_module(call, nn.Linear) else 0, macs, macs, products=products)


def _linear_products(weight: Tensor, nonzeros: Tensor, elements: int, flag: Flag) -> Macs:
    counts = _dense_and_not_zero(nonzeros, elements)
    weight_nonzero = flag(weight).cpu()
    valid, some = counts.sum(1) * weight_nonzero.shape[0]
    both = (counts[1] @ weight_nonzero.double().sum(0)).sum()
    return round(valid.item()), round(some.item()), round(both.item())


def _dense_and_not_zero(nonzeros: Tensor, elements: int) -> Tensor:
    """(2, shape of one sample), float64: at each position how many samples have a value, and one that is not zero."""
    return torch.stack([torch.full_like(nonzeros, elements // nonzeros.numel()), nonzeros]).double()


# --- products of two tensors ---------------------------------------------------------------------------------------

ROWS, COLUMNS, SUMMED = "m", "n", "k"


class _Operands(NamedTuple):
    """Two tensors and the names of their dimensions: a product is made for each value of all names together. Sizes of 1
    are broadcast. The first one is the input."""

    left: Tensor
    left_names: Sequence[str]
    right: Tensor
    right_names: Sequence[str]

    @property
    def sizes(self) -> dict[str, int]:
        sizes: dict[str, int] = {}
        for x, names in ((self.left, self.left_names), (self.right, self.right_names)):
            for name, size in zip(names, x.shape, strict=True):
                sizes[name] = max(size, sizes.get(name, 1)) if size else 0
        return sizes

    @property
    def products(self) -> int:
        return math.prod(self.sizes.values())

    def macs(self, flag: Flag) -> Tensor:
        """int64: products, those with a left operand that is not zero, those with two."""
        sizes = self.sizes
        shared = [name for name in self.left_names if name in self.right_names]
        left = _summed_over_others(flag(self.left), self.left_names, shared)
        right = _summed_over_others(flag(self.right), self.right_names, shared)
        once = math.prod(size for name, size in sizes.items() if name not in self.left_names)
        some = left.expand([sizes[name] for name in shared]).sum() * once
        return torch.stack([some.new_tensor(self.products), some, (left * right).sum()]).round().long()


def _summed_over_others(flags: Tensor, names: Sequence[str], kept: Sequence[str]) -> Tensor:
    """float64, with the dimensions ``kept`` in their order."""
    others = [dim for dim, name in enumerate(names) if name not in kept]
    counts = flags.sum(others, dtype=torch.float64) if others else flags.double()
    left = [name for name in names if name in kept]
    return counts.permute([left.index(name) for name in kept])


def _product(call: Call, operands: Callable[[Call], _Operands | None]) -> Op:
    """operands: of a call; None where it is no product of two."""
    found = operands(call)
    if found is None:
        return UNKNOWN

    def of_call(call: Call, flag: Flag) -> Tensor:
        found = operands(call)
        assert found is not None
        return found.macs(flag)

    macs = found.products
    return Op(Kind.LINEAR, macs_nominal=macs, macs_dense=macs, products=Products(_summed, of_call))


def _summed(summed: Tensor, elements: int, flag: Flag) -> Macs:
    valid, some, both = summed.tolist()
    return valid, some, both


def _input_first(call: Call, operands: _Operands) -> _Operands:
    """What is of an image stands on the left."""
    left, left_names, right, right_names = operands
    if _is_weight(call, left) and not _is_weight(call, right):
        return _Operands(right, right_names, left, left_names)
    return operands


def _operands_of_matmul(call: Call) -> _Operands:
    a, b = _two(call)
    before = [str(dim) for dim in range(max(a.dim(), b.dim()) - 2)]  # names of batch dimensions, from the right
    a_names = [*before[: max(0, a.dim() - 2)][::-1], ROWS, SUMMED][-a.dim() :] if a.dim() > 1 else [SUMMED]
    b_names = [*before[: max(0, b.dim() - 2)][::-1], SUMMED, COLUMNS] if b.dim() > 1 else [SUMMED]
    return _input_first(call, _Operands(a, a_names, b, b_names))


def _two(call: Call) -> tuple[Tensor, Tensor]:
    names = ARGUMENTS.get(call.function)
    if names:  # what is added comes first
        given = list(_bound(call, names).values())
        return given[1], given[2]
    first, second = call.inputs[0], call.inputs[-1]  # one and the same where it is multiplied by itself
    reversed_ = call.op == "rmatmul"
    return (second, first) if reversed_ else (first, second)


def _operands_of_linear(call: Call) -> _Operands:
    given = _bound(call, ARGUMENTS[call.function])
    x, weight = given["input"], given["weight"]
    names = [str(dim) for dim in range(x.dim() - 1)]
    return _Operands(x, [*names, SUMMED], weight, [COLUMNS, SUMMED][-weight.dim() :])


def _einsum(call: Call) -> Op:
    parsed = _parse(call)
    if parsed is None:
        return UNKNOWN
    inputs, output = parsed
    if len(inputs) == 1:
        summed = len(output) < len(inputs[0])
        return _adaptive_pool(Kind.AVG_POOL)(call) if summed else Op(Kind.VIEW, rearranges=True)
    if len(inputs) != 2:
        return UNKNOWN
    if not {*inputs[0], *inputs[1]} - {*output}:
        return Op(Kind.MULTIPLY)
    return _product(call, _operands_of_einsum)


def _operands_of_einsum(call: Call) -> _Operands:
    parsed = _parse(call)
    assert parsed is not None
    (first, second), output = parsed
    a, b = _operands(call)
    # what stands in one operand alone, and not in the result, is summed before anything is multiplied
    alone_a, alone_b = (
        [n for n in mine if n not in {*other, *output}] for mine, other in ((first, second), (second, first))
    )
    if alone_a:
        a = a.sum([first.index(name) for name in alone_a])
    if alone_b:
        b = b.sum([second.index(name) for name in alone_b])
    first, second = ([n for n in names if n not in {*alone_a, *alone_b}] for names in (first, second))
    found = _Operands(a, first, b, second)
    weights = [_is_weight(call, x) for x in _operands(call)]
    return _Operands(b, second, a, first) if weights == [True, False] else found


def _operands(call: Call) -> Sequence[Tensor]:
    given = call.args[1:]
    return given[0] if len(given) == 1 and isinstance(given[0], list | tuple) else given


def _parse(call: Call) -> tuple[list[list[str]], list[str]] | None:
    """Names of each operand's dimensions, and of the result's; None for what is written otherwise."""
    equation = call.args[0]
    if not isinstance(equation, str):
        return None
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms, operands = left.split(","), _operands(call)
    if len(terms) != len(operands):
        return None

    def names(term: str, dims: int) -> list[str]:
        before, dots, behind = term.partition("...")
        rest = [f".{i}" for i in range(dims - len(before) - len(behind))] if dots else []
        return [*before, *rest[::-1], *behind]

    inputs = [names(term, x.dim()) for term, x in zip(terms, operands, strict=True)]
    every = [name for term in inputs for name in term]
    if any(len({*term}) < len(term) for term in inputs):
        return None
    dots = sorted({name for name in every if name.startswith(".")}, reverse=True)
    if arrow:
        before, has_dots, behind = right.partition("...")
        return inputs, [*before, *(dots if has_dots else []), *behind]
    return inputs, dots + sorted(name for name in {*every} - {*dots} if every.count(name) == 1)


def _attention(call: Call) -> Op:
    """softmax(Q K^T) V: the products of both; the scores are computed and never stored."""
    scores, values = _operands_of_attention(call, None)
    macs = scores.products + values.products
    inner = scores.products // scores.left.shape[-1]
    products = Products(
        _summed, lambda call, flag: sum((part.macs(flag) for part in _operands_of_attention(call, flag)), start=ZERO)
    )
    return Op(Kind.LINEAR, macs_nominal=macs, macs_dense=macs, inner_elements=inner, products=products)


ZERO = torch.zeros((), dtype=torch.int64)


def _operands_of_attention(call: Call, flag: Flag | None) -> tuple[_Operands, _Operands]:
    """flag: None where the weights' values do not matter."""
    given = _bound(call, ARGUMENTS[call.function])
    query, key, value = given["query"], given["key"], given["value"]
    if given.get("enable_gqa"):
        times = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(times, -3), value.repeat_interleave(times, -3)
    before = [str(dim) for dim in range(query.dim() - 2)]
    scores = _Operands(query, [*before, ROWS, SUMMED], key, [*before, COLUMNS, SUMMED])
    shape = (*query.shape[:-1], key.shape[-2])
    weights = query.new_empty(()).expand(shape) if flag is None else _attention_weights(query, key, given)
    return scores, _Operands(weights, [*before, ROWS, SUMMED], value, [*before, SUMMED, COLUMNS])


def _attention_weights(query: Tensor, key: Tensor, given: dict[str, Any]) -> Tensor:
    scale = given.get("scale")
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    mask = given.get("attn_mask")
    if given.get("is_causal"):
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1)


# --- everything else -----------------------------------------------------------------------------------------------


def _batch_norm(call: Call) -> Op:
    computations = 4 * call.inputs[0].numel() if _is_module(call, nn.BatchNorm2d) else 0
    # without running statistics it computes them, and nothing can be folded into a layer before
    if call.module is not None:
        stored = getattr(call.module, "running_mean", None) is not None
    else:
        given = _bound(call, ARGUMENTS[call.function])
        stored = given.get("running_mean") is not None and not given.get("training")
    return Op(Kind.BATCH_NORM if stored else Kind.LAYER_NORM, computations)


def _pool(kind: Kind, dims: int) -> Handler:
    def pool(call: Call) -> Op:
        window = _area(_argument(call, "kernel_size", 1), dims)
        stride = _argument(call, "stride", 2) or _argument(call, "kernel_size", 1)
        computations = call.output.numel() * window if call.module is not None else 0
        return Op(kind, computations, window=window, stride=_first_of(stride))

    return pool


def _adaptive_pool(kind: Kind) -> Handler:
    """And reductions: so many values to one."""

    def pool(call: Call) -> Op:
        elements = call.inputs[0].numel()
        computations = elements if _is_module(call, nn.AdaptiveAvgPool2d) else 0
        return Op(kind, computations, window=max(1, round(elements / max(1, call.output.numel()))))

    return pool


def _least_or_greatest(call: Call) -> Op:
    """Of two tensors, value by value, or of the values of one."""
    return Op(Kind.ADD) if len(call.inputs) > 1 else _adaptive_pool(Kind.MAX_POOL)(call)


def _activation(call: Call) -> Op:
    free = call.op.lower().rstrip("_") in {"relu", "relu6", "fatrelu"}
    return Op(Kind.RELU if free else Kind.ACTIVATION)


def _plain(kind: Kind) -> Handler:
    return lambda call: Op(kind)


def _rearranged(call: Call) -> Op:
    return Op(Kind.VIEW, rearranges=True)


def _getitem(call: Call) -> Op:
    """By slices it takes each value once; by indices it may take some twice, and others not at all."""
    index = call.args[1] if len(call.args) > 1 else None
    parts = index if isinstance(index, tuple) else (index,)
    return Op(Kind.VIEW, rearranges=all(part is None or part is ... or isinstance(part, slice | int) for part in parts))


def _dropout(call: Call) -> Op:
    """In training it makes zeros."""
    if call.module is not None:
        training = call.module.training
    else:
        training = _bound(call, ARGUMENTS[call.function]).get("training", call.op in TRAINS_UNLESS_TOLD)
    return Op(Kind.VIEW, rearranges=not training)


def _interpolate(call: Call) -> Op:
    mode = _argument(call, "mode", 3) or "nearest"
    return Op(Kind.VIEW if mode.startswith("nearest") else Kind.MULTIPLY)


# --- what was called ------------------------------------------------------------------------------------------------


def _is_module(call: Call, kind: type[nn.Module]) -> bool:
    return call.module is not None and leaf_class(call.module) is kind


def _is_weight(call: Call, x: Tensor) -> bool:
    """Whether it is of no image."""
    for other, constant in zip(call.inputs, call.constant, strict=True):
        if other is x or (other.data_ptr() == x.data_ptr() and other.shape == x.shape):
            return constant
    return True


def _first(call: Call) -> Tensor:
    """Of the inputs, the first that is of an image."""
    return next((x for x, constant in zip(call.inputs, call.constant, strict=True) if not constant), call.inputs[0])


def _bound(call: Call, names: str) -> dict[str, Any]:
    """The arguments of a function by their names."""
    return dict(zip(names.split(), call.args, strict=False)) | call.kwargs


def _argument(call: Call, name: str, position: int) -> Any:
    """A module's attribute, or a function's argument by name or position; None where it was left out."""
    if call.module is not None:
        return getattr(call.module, name)
    return call.kwargs.get(name, call.args[position] if len(call.args) > position else None)


def _first_of(value: Any) -> int:
    return int(value[0] if isinstance(value, tuple | list) else value)


def _each(value: Any, dims: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, tuple | list) else (value,)
    return values * dims if len(values) == 1 else values


def _area(size: Any, dims: int) -> int:
    return math.prod(_each(size, dims))


# --- which is which -------------------------------------------------------------------------------------------------

ADDED = "added"
TRAINS_UNLESS_TOLD = frozenset({"dropout", "dropout1d", "dropout2d", "dropout3d"})


def _functions(names: str) -> list[Any]:
    """torch's functions of these names, wherever it has them: ``relu``, ``relu_``, ``Tensor.relu``, ``F.relu``, …"""
    forms = ("{}", "{}_", "_{}", "__{}__", "__r{}__", "__i{}__", "{}_with_indices")
    found = [getattr(space, form.format(name), None) for name in names.split() for space in SPACES for form in forms]
    return [function for function in found if callable(function)]


def _properties(names: str) -> list[Any]:
    return [getattr(Tensor, name).__get__ for name in names.split()]


_VIEW, _ADD, _MULTIPLY, _LAYER_NORM = map(_plain, (Kind.VIEW, Kind.ADD, Kind.MULTIPLY, Kind.LAYER_NORM))
_ELEMENTWISE, _SQUARES = _plain(Kind.ACTIVATION), _plain(Kind.SQUARES)
_MAX, _AVERAGE = _adaptive_pool(Kind.MAX_POOL), _adaptive_pool(Kind.AVG_POOL)

# Modules by class, functions by name; activation functions are known to taps.py.
_MODULES: dict[str, Handler] = {
    "Conv1d Conv2d Conv3d": _convolution,
    "ConvTranspose1d ConvTranspose2d ConvTranspose3d": _transposed,
    "Linear": _linear,
    "BatchNorm1d BatchNorm2d BatchNorm3d SyncBatchNorm FrozenBatchNorm2d": _batch_norm,
    "LayerNorm LayerNorm2d GroupNorm RMSNorm InstanceNorm1d InstanceNorm2d InstanceNorm3d "
    "LocalResponseNorm": _LAYER_NORM,
    "MaxPool1d": _pool(Kind.MAX_POOL, 1),
    "MaxPool2d": _pool(Kind.MAX_POOL, 2),
    "MaxPool3d": _pool(Kind.MAX_POOL, 3),
    "AvgPool1d": _pool(Kind.AVG_POOL, 1),
    "AvgPool2d": _pool(Kind.AVG_POOL, 2),
    "AvgPool3d": _pool(Kind.AVG_POOL, 3),
    "AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d": _MAX,
    "AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d": _AVERAGE,
    "Softmax Softmax2d Softmin LogSoftmax": _ELEMENTWISE,
    "Shift": _ADD,  # of methods/channels.py
    "Identity Flatten Unflatten Permute ChannelShuffle PixelShuffle PixelUnshuffle StochasticDepth": _rearranged,
    "Dropout Dropout1d Dropout2d Dropout3d AlphaDropout FeatureAlphaDropout": _dropout,
    "Upsample UpsamplingNearest2d UpsamplingBilinear2d": _interpolate,
    "ZeroPad1d ZeroPad2d ZeroPad3d ConstantPad1d ConstantPad2d ConstantPad3d ReflectionPad1d ReflectionPad2d "
    "ReflectionPad3d ReplicationPad1d ReplicationPad2d ReplicationPad3d CircularPad1d CircularPad2d "
    "CircularPad3d": _VIEW,
}
_FUNCTIONS: dict[str, Handler] = {
    "conv1d conv2d conv3d": _convolution,
    "conv_transpose1d conv_transpose2d conv_transpose3d": _transposed,
    "linear": _linear,
    "matmul mm bmm mv dot addmm baddbmm addmv": lambda call: _product(call, _operands_of_matmul),
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
    "batch_norm": _batch_norm,
    "layer_norm group_norm instance_norm rms_norm local_response_norm normalize": _LAYER_NORM,
    "max_pool1d": _pool(Kind.MAX_POOL, 1),
    "max_pool2d": _pool(Kind.MAX_POOL, 2),
    "max_pool3d": _pool(Kind.MAX_POOL, 3),
    "avg_pool1d": _pool(Kind.AVG_POOL, 1),
    "avg_pool2d": _pool(Kind.AVG_POOL, 2),
    "avg_pool3d": _pool(Kind.AVG_POOL, 3),
    "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d amax amin": _MAX,
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d mean sum": _AVERAGE,
    "max min": _least_or_greatest,
    "norm vector_norm var std": _SQUARES,
    "add sub subtract rsub maximum minimum cumsum fold gt ge lt le eq ne": _ADD,
    "mul multiply div divide truediv true_divide square addcmul addcdiv lerp": _MULTIPLY,
    "softmax log_softmax softmin clamp clip clamp_min clamp_max abs exp expm1 log log1p sqrt rsqrt pow sin cos "
    "reciprocal erf sign floor ceil round": _ELEMENTWISE,
    "dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout": _dropout,
    "interpolate": _interpolate,
    "cat concat concatenate stack hstack vstack dstack flatten unflatten view view_as reshape reshape_as permute "
    "transpose swapaxes swapdims movedim moveaxis t squeeze unsqueeze contiguous clone detach ravel flip fliplr flipud "
    "rot90 roll neg negative channel_shuffle pixel_shuffle pixel_unshuffle requires_grad_ positive "
    "stochastic_depth": _rearranged,
    "chunk split tensor_split unbind narrow select expand expand_as broadcast_to repeat tile repeat_interleave pad "
    "index_select gather take_along_dim unfold masked_fill where triu tril diagonal scatter index_put setitem copy to "
    "float double half bfloat16 type type_as": _VIEW,
    "getitem": _getitem,
}
# The names of their arguments, where they have roles.
_ARGUMENTS: dict[str, str] = {
    "conv1d conv2d conv3d": "input weight bias stride padding dilation groups",
    "conv_transpose1d conv_transpose2d conv_transpose3d": "input weight bias stride padding output_padding groups "
    "dilation",
    "linear": "input weight bias",
    "addmm baddbmm addmv": f"{ADDED} left right",
    "scaled_dot_product_attention": "query key value attn_mask dropout_p is_causal scale enable_gqa",
    "batch_norm": "input running_mean running_var weight bias training",
    "layer_norm rms_norm": "input normalized_shape weight bias",
    "group_norm": "input num_groups weight bias",
    "instance_norm": "input running_mean running_var weight bias",
    "dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout": "input p training",
}

OPS: dict[Any, Handler] = {
    known: handler
    for names, handler in _MODULES.items()
    for name in names.split()
    for known in LEAVES
    if known.rpartition(".")[2] == name
}
OPS.update((function, handler) for names, handler in _FUNCTIONS.items() for function in _functions(names))
OPS.update(dict.fromkeys(_properties("T mT H mH data"), _rearranged))
ARGUMENTS: dict[Any, str] = {function: names for called, names in _ARGUMENTS.items() for function in _functions(called)}
