"""Run a network and count what it does: exact integers for every call, and the totals of every batch."""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from eat_runner.config import MeterConfig
from eat_runner.energy.counts import FLOOR_BATCH, BatchCounts, Counts, Kind, LayerCounts, with_consumers
from eat_runner.energy.ops import Op, Products, describe, parameters
from eat_runner.errors import UserError
from eat_runner.taps import NETWORK_INPUT, Call, looking, refuse_opaque, tap, version_of

UINT8_MAX = 255  # flags that can be added up in eight bits
CHUNK = 2**17  # values that are looked at together: half a megabyte
RELUS = ("ReLU", "relu", "relu_")  # let through what is positive
PASSES_ON_NONFINITE = (Kind.BATCH_NORM, Kind.ADD)  # what is not finite in their inputs shows in their output
# what these make of finite values is finite, or was meant: padding for a maximum, a mask for a softmax
KEEPS_FINITE = (Kind.RELU, Kind.MAX_POOL, Kind.VIEW)
ROLES = {"weight": "weight", "bias": "bias", "running_mean": "statistics", "running_var": "statistics"}


class NonFiniteError(ArithmeticError):
    """An activation or a weight is infinite or not a number. NaN is above no threshold and would count as a zero."""


def measure(
    model: nn.Module,
    batches: Iterable[Any],
    config: MeterConfig,
    split: str = "test",
    floor: bool = True,
    on_output: Callable[[Tensor], None] | None = None,
) -> Counts:
    """Count one evaluation pass of ``model`` over ``batches`` (x_nchw, normalised, on the model's device; or tuples
    that begin with it, as a DataLoader gives them).

    Every batch has ``config.batch_size`` images, the last one may have fewer. floor: meter the first batch once more
    with every activation output multiplied by 0. on_output: gets what the network returned for each batch.
    The model runs in evaluation mode without gradients and is left as it was; one that works in place on its input
    overwrites the batches. What is compiled (torch.compile) is run eagerly.

    Raises UserError for other batch sizes, a network whose calls change from batch to batch, operations that cannot be
    counted unless ``config.ignore_uncounted``, and what nobody can look into (torch.jit); NonFiniteError for a network
    that has diverged.
    """
    model = getattr(model, "_orig_mod", model)  # a compiled network lets nobody look in between
    refuse_opaque(model)
    meter = _Meter(config.threshold, split)
    first: Tensor | None = None
    with looking(model), tap(model, meter.listen) as recorder:
        with _overflow_is_looked_for():
            _refuse_nonfinite_state(model)
        for batch in batches:
            x = _images(batch)
            if len(x) > config.batch_size or meter.images % config.batch_size:
                raise UserError(
                    f"meter.batch_size={config.batch_size} does not fit the batches: only the last one may be smaller"
                )
            again = x.clone() if floor and first is None else x  # a network may overwrite its input
            with recorder.nothing_hidden() if first is None else nullcontext():
                output = meter.run(model, x)
            if recorder.is_constant(output):
                raise UserError(
                    "the network returns what no call has made of the images (values that left torch, through NumPy?): "
                    "write it with torch's functions"
                )
            if on_output is not None:
                on_output(output)
            if first is None:
                first = again
                if meter.uncounted and not config.ignore_uncounted:
                    names = ", ".join(meter.uncounted)
                    raise UserError(f"no rule counts {names}: meter.ignore_uncounted=true measures without their cost")
        if first is None:
            raise UserError("there is nothing to measure: no batches")
        if floor:
            meter.run(model, first, floor=True)
        layers = meter.layers()
    uncounted = meter.uncounted
    return Counts(layers, meter.batches, config.batch_size, config.threshold, uncounted, config.ignore_uncounted)


def _images(batch: Any) -> Tensor:
    x = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if not isinstance(x, Tensor):
        raise UserError(f"a batch is a tensor of images, or a tuple that begins with one, not {type(x).__name__}")
    return x.clone() if x.is_inference() else x  # nobody keeps count of what is written into such a tensor


def _overflow_is_looked_for() -> np.errstate:
    """So NumPy need not warn of it."""
    return np.errstate(over="ignore", invalid="ignore")


def _refuse_nonfinite_state(model: nn.Module) -> None:
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        is_limit = not isinstance(value, nn.Parameter) and name.rpartition(".")[2] not in ROLES  # or a mask
        if not (_is_finite(value.detach()) or (is_limit and not value.isnan().any())):
            raise NonFiniteError(f"{name} is not finite")


# --- counting one tensor -------------------------------------------------------------------------------------------

Number = int | Tensor  # a Tensor of no dimensions where reading it now would make the host wait for the device


class _Counted(NamedTuple):
    """What was found in a tensor of several images.

    positives, negatives: values above the threshold, and below minus the threshold (all of them in ``positives`` where
    the sign was not looked at). positive_at, negative_at: the same for each position of one image, where asked for.
    finite: whether every value is. version: the tensor's when it was counted.
    """

    positives: Number
    negatives: Number
    positive_at: Tensor | None
    negative_at: Tensor | None
    finite: bool | Tensor
    version: int

    @property
    def nonzeros(self) -> Number:
        return self.positives + self.negatives

    @property
    def nonzero_at(self) -> Tensor | None:
        """For each position of one image, how many images have a non-zero there."""
        if self.positive_at is None or self.negative_at is None:
            return self.positive_at
        return self.positive_at.long() + self.negative_at


class _Counter:
    """Counts values whose magnitude is above a threshold. On a CPU NumPy does it several times faster than torch."""

    def __init__(self, threshold: float):
        self.threshold = threshold
        self.above = np.float32(threshold)
        self.flags = np.empty(0, np.bool_)

    def count(self, x: Tensor, *, at: bool, signed: bool = True, check: bool = True) -> _Counted:
        """x: (images, ...). at: count at each position too. signed: may hold values below 0. check: find out whether
        all values are finite."""
        count = self._count_numpy if _on_cpu(x) and x.numel() else self._count_torch
        return count(x.detach() if x.dim() else x.detach().reshape(1), at, signed, check)

    def total(self, x: Tensor) -> int:
        """All values of x that count, of whatever type and shape, none included."""
        if x.numel() and _on_cpu(x):
            return int(self.count(x, at=False, check=False).nonzeros)
        return int(self.flag(x).sum())

    def flag(self, x: Tensor) -> Tensor:
        """Boolean, of the shape of ``x``: which values count."""
        if x.is_quantized:
            x = x.dequantize()
        return x.abs() > self.threshold if x.is_floating_point() else x != 0

    def _count_torch(self, x: Tensor, at: bool, signed: bool, check: bool) -> _Counted:
        def add_up(flags: Tensor) -> tuple[Tensor, Tensor | None]:
            if not at:
                return flags.sum(), None
            positions = flags.sum(0)
            return positions.sum(), positions

        version = version_of(x)
        if not x.is_floating_point():
            found, found_at = add_up(self.flag(x))
            return _Counted(found, 0, found_at, None, True, version)
        above = add_up(x > self.threshold)
        below = add_up(x < -self.threshold) if signed else (0, None)
        finite = torch.isfinite(x).all() if check else True
        return _Counted(above[0], below[0], above[1], below[1], finite, version)

    def _count_numpy(self, x: Tensor, at: bool, signed: bool, check: bool) -> _Counted:
        """In chunks that stay in the cache while they are looked at again and again."""
        values, order = _storage_order(x)
        flat = values.reshape(len(values), -1)
        images, positions = flat.shape
        tests = [(np.greater, self.above), (np.less, -self.above)][: 2 if signed else 1]
        totals = [0, 0]
        ats = [np.zeros(positions, np.uint8 if images <= UINT8_MAX else np.int64) for _ in tests if at]
        finite = True
        step = min(UINT8_MAX, max(1, CHUNK // positions))
        if self.flags.size < step * positions:
            self.flags = np.empty(step * positions, np.bool_)
        buffer = self.flags[: step * positions].reshape(step, positions)
        for start in range(0, images, step):
            part = flat[start : start + step]
            flags = buffer[: len(part)]
            for i, (test, limit) in enumerate(tests):
                test(part, limit, out=flags)
                if at:
                    ats[i] += np.add.reduce(flags.view(np.uint8), axis=0, dtype=np.uint8)
                else:
                    totals[i] += int(np.count_nonzero(flags))
            finite = finite and (not check or _all_finite(part.reshape(-1)))
        totals[: len(ats)] = [int(found.sum()) for found in ats]
        found_at = [torch.from_numpy(found.reshape(values.shape[1:]).transpose(order)) for found in ats]
        positive_at, negative_at = [*found_at, None, None][:2]
        return _Counted(totals[0], totals[1], positive_at, negative_at, finite, version_of(x))


def _storage_order(x: Tensor) -> tuple[Any, tuple[int, ...]]:
    """``x`` as an array with its dimensions in the order in which they lie in memory, so that it is read straight
    through; and how to transpose one image of it back."""
    if x.is_contiguous():
        return x.numpy(), tuple(range(x.dim() - 1))
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x.numpy().transpose(0, 2, 3, 1), (2, 0, 1)
    return x.contiguous().numpy(), tuple(range(x.dim() - 1))


def _all_finite(flat: Any) -> bool:
    """The sum of squares is one fast pass, and finite where all values are, unless it overflows (which NumPy must be
    told to ignore)."""
    return math.isfinite(np.dot(flat, flat)) or bool(np.isfinite(flat).all())


def _is_finite(x: Tensor) -> bool:
    if not _on_cpu(x):
        return bool(torch.isfinite(x).all())
    return _all_finite(_storage_order(x)[0].reshape(-1))


def _on_cpu(x: Tensor) -> bool:
    """Whether NumPy can look at it where it lies."""
    return x.device.type == "cpu" and x.dtype == torch.float32


def _as_ints(numbers: Sequence[Number]) -> list[int]:
    """Plain integers: here the host waits for the device."""
    waiting = [number for number in numbers if isinstance(number, Tensor)]
    arrived = iter(torch.stack(waiting).tolist() if waiting else [])
    return [next(arrived) if isinstance(number, Tensor) else number for number in numbers]


# --- counting passes -----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Layer:
    """A call: what is the same in every batch, and the sums over the batches so far. operands: what its products are
    counted from (Products), and the elements of the input that belong to it, by its shape."""

    row: LayerCounts
    products: Products | None
    input_elements: int = 0
    input_nonzeros: int = 0
    output_elements: int = 0
    output_nonzeros: int = 0
    computations: int = 0
    macs_nominal: int = 0
    macs_dense: int = 0
    inner_elements: int = 0
    operands: dict[tuple[int, ...], tuple[Tensor, int]] = field(
        default_factory=dict[tuple[int, ...], tuple[Tensor, int]]
    )


class _Seen(NamedTuple):
    """A call in the pass that is running, without its tensors."""

    layer: _Layer
    work: Op
    input_elements: int
    input_nonzeros: Number
    output_elements: int
    output_nonzeros: Number
    operands: Tensor | None
    first_elements: int


class _Meter:
    """Meters passes: inside ``tap(model, meter.listen)``, ``run`` one batch after the other; then read ``layers()`` and
    ``batches``. In one pass, a tensor that one call makes and others read is counted once."""

    def __init__(self, threshold: float, split: str):
        self.counter = _Counter(threshold)
        self.split = split
        self.images = 0
        self.batches: list[BatchCounts] = []
        self.calls: list[_Layer] = []
        self.works: dict[tuple[Any, ...], Op] = {}  # by call and shapes
        self.wanted: set[int] = set()  # calls whose outputs somebody wanted counted at each position
        self.checked_later: set[int] = set()  # calls read by what passes on whatever is not finite

    def _start(self, x: Tensor, floor: bool) -> None:
        self.network_input, self.floor = x, floor
        self.made: dict[
            int, tuple[int, _Counted]
        ] = {}  # by call, with its output's id; NETWORK_INPUT: the batch itself
        self.finite: list[tuple[str, Tensor]] = []
        self.seen: list[_Seen] = []

    @property
    def uncounted(self) -> tuple[str, ...]:
        """The operations that have no rule, each once."""
        return tuple(dict.fromkeys(layer.row.op for layer in self.calls if layer.row.kind == Kind.UNKNOWN))

    def run(self, model: nn.Module, x: Tensor, floor: bool = False) -> Any:
        """Meter one batch and return what the network returned. The floor batch is not added to the layers."""
        self._start(x, floor)
        with _overflow_is_looked_for():
            self.made[NETWORK_INPUT] = id(x), self._count("the network", x, at=NETWORK_INPUT in self.wanted)
            output = model(x)
        if self.finite and not all(torch.stack([finite for _, finite in self.finite]).tolist()):
            raise _nonfinite(next(name for name, finite in self.finite if not finite))
        if len(self.seen) != len(self.calls):
            raise _changed()
        inputs = _as_ints([seen.input_nonzeros for seen in self.seen])
        outputs = _as_ints([seen.output_nonzeros for seen in self.seen])
        self.batches.append(self._totals(inputs, outputs, FLOOR_BATCH if floor else len(self.batches), len(x)))
        if not floor:
            self._add(inputs, outputs)
            self.images += len(x)
        return output

    def listen(self, call: Call) -> None:
        """The tap's listener."""
        with torch._C.DisableTorchFunction():  # pyright: ignore[reportPrivateUsage]  (what follows is not the network's)
            if self.floor and call.is_activation and not call.is_constant:
                call.output.mul_(0)
            self._count_call(call)

    def _count_call(self, call: Call) -> None:
        inputs = list(zip(call.inputs, call.producers, call.versions, strict=True))
        if any(call.constant):
            inputs = self._of_images(call, inputs)
        input_elements, output_elements = sum(x.numel() for x, _, _ in inputs), call.output.numel()
        shapes = (call.index, call.output.shape, *(x.shape for x, _, _ in inputs))
        work = self.works.get(shapes)
        if work is None:
            work = self.works[shapes] = describe(call)
        made_of = tuple(made for made, constant in zip(call.producers, call.constant, strict=True) if not constant)
        layer = self._layer(call, work, made_of)
        read = [self._input(call, x, producer, version) for x, producer, version in inputs]
        input_nonzeros = sum((counted.nonzeros for counted in read), start=0)
        moved = work.rearranges and input_elements == output_elements and not any(call.constant)
        if work.kind in PASSES_ON_NONFINITE:
            self.checked_later.update(call.producers)
        made = self._moved(call, read, input_nonzeros) if moved else self._made(call, work, read)
        self.made[call.index] = id(call.output), made
        operands, first = None, 0
        if work.products is not None:
            x, producer, _ = inputs[0]
            operands, first = self._operands(call, x, producer, work.products, read), x.numel()
        seen = _Seen(layer, work, input_elements, input_nonzeros, output_elements, made.nonzeros, operands, first)
        self.seen.append(seen)

    def _of_images(self, call: Call, inputs: list[tuple[Tensor, int, int]]) -> list[tuple[Tensor, int, int]]:
        """Without weights. What a module reads it reads, whatever that was made of."""
        if call.module is not None:
            return inputs
        return [read for read, constant in zip(inputs, call.constant, strict=True) if not constant]

    def _layer(self, call: Call, work: Op, producers: tuple[int, ...]) -> _Layer:
        """The call of the batches before that this one repeats."""
        if not self.batches:
            self.calls.append(_new_layer(call, work, producers, self.split, self.counter))
        if call.index >= len(self.calls):
            raise _changed()
        layer = self.calls[call.index]
        if (layer.row.name, layer.row.op) != (call.name, call.op):
            raise _changed()
        return layer

    def _input(self, call: Call, x: Tensor, producer: int, version: int) -> _Counted:
        """What an operation that works in place has overwritten by now was counted when it was made."""
        made, counted = self.made.get(producer, (0, None))
        if counted is not None and made == id(x) and counted.version == version:
            return counted
        if version_of(x) != version:
            raise UserError(f"{call.name} overwrites what no counted call has made: build it with inplace=False")
        return self._count(call.name, x, at=producer in self.wanted)

    def _moved(self, call: Call, read: Sequence[_Counted], nonzeros: Number) -> _Counted:
        if call.output is call.inputs[0]:
            return read[0]
        return _Counted(nonzeros, 0, None, None, True, version_of(call.output))

    def _made(self, call: Call, work: Op, read: Sequence[_Counted]) -> _Counted:
        at = call.index in self.wanted
        if work.kind == Kind.RELU and call.op in RELUS and not self.floor and not _width(call.module, "output_bits"):
            before = read[0]
            if before.positive_at is not None and call.output.is_floating_point():
                return _Counted(before.positives, 0, before.positive_at, None, True, version_of(call.output))
            if at:
                self.wanted.add(call.producers[0])
        check = work.kind not in KEEPS_FINITE and call.index not in self.checked_later
        return self._count(call.name, call.output, at, signed=work.kind != Kind.RELU, check=check)

    def _operands(self, call: Call, x: Tensor, producer: int, products: Products, read: Sequence[_Counted]) -> Tensor:
        if products.of_call is not None:
            return products.of_call(call, self.counter.flag)
        sample = products.sample or x.dim() - 1
        if x.dim() <= sample:  # one sample alone
            return self.counter.flag(x).long()
        at = read[0].nonzero_at
        if at is None:
            self.wanted.add(producer)
            at = self.counter.count(x, at=True, check=False).nonzero_at
        assert at is not None
        return at if at.dim() == sample else at.flatten(0, at.dim() - 1 - sample).sum(0)

    def _count(self, name: str, x: Tensor, at: bool = False, signed: bool = True, check: bool = True) -> _Counted:
        counted = self.counter.count(x, at=at, signed=signed, check=check)
        if isinstance(counted.finite, Tensor):
            self.finite.append((name, counted.finite))
        elif not counted.finite:
            raise _nonfinite(name)
        return counted

    def _totals(self, inputs: list[int], outputs: list[int], batch: int, images: int) -> BatchCounts:
        """Over the calls of modules alone: the published simulator does not see functions."""
        calls = [
            (seen, seen.layer.row, nonzeros_in, nonzeros_out)
            for seen, nonzeros_in, nonzeros_out in zip(self.seen, inputs, outputs, strict=True)
            if not seen.layer.row.functional
        ]
        normalisations = [row for _, row, _, _ in calls if row.op == "BatchNorm2d"]
        return BatchCounts(
            split=self.split,
            batch=batch,
            images=images,
            input_elements=sum(seen.input_elements for seen, _, _, _ in calls),
            input_nonzeros=sum(before for _, _, before, _ in calls),
            input_nonzeros_as_built=sum(after if row.inplace else before for _, row, before, after in calls),
            input_nonzeros_all=sum(after if row.activation else before for _, row, before, after in calls),
            output_elements=sum(seen.output_elements for seen, _, _, _ in calls),
            output_nonzeros=sum(after for _, _, _, after in calls),
            parameter_elements=sum(row.parameter_elements for _, row, _, _ in calls),
            parameter_nonzeros=sum(row.parameter_nonzeros for _, row, _, _ in calls),
            statistics_elements=sum(row.statistics_elements for row in normalisations),
            statistics_nonzeros=sum(row.statistics_nonzeros for row in normalisations),
            computations=sum(seen.work.computations for seen, _, _, _ in calls),
            unseen_macs=sum(
                seen.work.macs_dense for seen in self.seen if seen.layer.row.functional or not seen.work.computations
            ),
        )

    def _add(self, inputs: list[int], outputs: list[int]) -> None:
        for seen, input_nonzeros, output_nonzeros in zip(self.seen, inputs, outputs, strict=True):
            layer = seen.layer
            layer.input_elements += seen.input_elements
            layer.input_nonzeros += input_nonzeros
            layer.output_elements += seen.output_elements
            layer.output_nonzeros += output_nonzeros
            layer.computations += seen.work.computations
            layer.macs_nominal += seen.work.macs_nominal
            layer.macs_dense += seen.work.macs_dense
            layer.inner_elements += seen.work.inner_elements
            if seen.operands is not None:
                shape = tuple(seen.operands.shape)
                summed, elements = layer.operands.get(shape, (None, 0))
                if summed is None:
                    summed = torch.zeros_like(seen.operands, dtype=torch.int64)
                summed += seen.operands
                layer.operands[shape] = summed, elements + seen.first_elements

    def layers(self) -> list[LayerCounts]:
        """One row a call, with the products that the zeros of both operands leave."""
        return with_consumers(self._row(layer) for layer in self.calls)

    def _row(self, layer: _Layer) -> LayerCounts:
        macs = [0, 0, 0]
        for summed, elements in layer.operands.values():
            assert layer.products is not None
            found = layer.products.total(summed.cpu(), elements, self.counter.flag)
            macs = [before + more for before, more in zip(macs, found, strict=True)]
        valid, some, both = macs
        return replace(
            layer.row,
            images=self.images,
            input_elements=layer.input_elements,
            input_nonzeros=layer.input_nonzeros,
            output_elements=layer.output_elements,
            output_nonzeros=layer.output_nonzeros,
            computations=layer.computations,
            macs_nominal=layer.macs_nominal,
            macs_valid=valid,
            macs_input_nonzero=some,
            macs_both_nonzero=both,
            macs_dense=layer.macs_dense,
            inner_elements=layer.inner_elements,
        )


def _new_layer(call: Call, work: Op, producers: tuple[int, ...], split: str, counter: _Counter) -> _Layer:
    row = LayerCounts(
        split=split,
        call=call.index,
        name=call.name,
        op=call.op,
        kind=work.kind,
        producers=producers,
        functional=call.module is None,
        inplace=call.inplace,
        activation=call.is_activation and not call.is_constant,
        kernel_area=work.kernel_area,
        window=work.window,
        stride=work.stride,
        groups=work.groups,
        weight_bits=_width(call.module, "weight_bits"),
        output_bits=_width(call.module, "output_bits"),
    )
    return _Layer(replace(row, **_parameter_counts(call, counter)), work.products)


def _width(module: nn.Module | None, of: str) -> int:
    """Of a module of integers (methods/quantise.py), which says so itself; 0 where it does not."""
    return int(getattr(module, of, 0))


def _parameter_counts(call: Call, counter: _Counter) -> dict[str, Any]:
    """Elements and non-zeros of parameters and buffers by their role."""
    counts: dict[str, Any] = {}
    for name, tensor in parameters(call):
        role = ROLES.get(name, "buffer")
        elements, nonzeros = f"{role}_elements", f"{role}_nonzeros"
        counts[elements] = counts.get(elements, 0) + tensor.numel()
        counts[nonzeros] = counts.get(nonzeros, 0) + counter.total(tensor.detach())
    return counts


def _nonfinite(name: str) -> NonFiniteError:
    return NonFiniteError(f"{name} works with values that are not finite")


def _changed() -> UserError:
    return UserError("the network makes other calls for other batches: only the same calls can be added up")
