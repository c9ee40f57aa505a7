"""Run a network and count what it does: exact integers for every call, and the totals of every batch."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from eat_runner.config import MeterConfig
from eat_runner.energy.counts import FLOOR_BATCH, BatchCounts, Counts, Kind, LayerCounts, with_consumers
from eat_runner.energy.ops import Op, describe, exact_macs
from eat_runner.errors import UserError
from eat_runner.taps import Call, evaluation_mode, tap

UINT8_MAX = 255  # flags that can be added up in eight bits
PRODUCTS = (Kind.CONV, Kind.LINEAR)
ROLES = {"weight": "weight", "bias": "bias", "running_mean": "statistics", "running_var": "statistics"}


class NonFiniteError(ArithmeticError):
    """An activation or a weight is infinite or not a number. NaN is above no threshold and would count as a zero."""


def measure(
    model: nn.Module,
    batches: Iterable[Tensor],
    config: MeterConfig,
    split: str = "test",
    floor: bool = True,
    on_output: Callable[[Tensor], None] | None = None,
) -> Counts:
    """Count one evaluation pass of ``model`` over ``batches`` (x_nchw, normalised, on the model's device).

    Every batch has ``config.batch`` images, the last one may have fewer. floor: meter the first batch once more with
    every activation output multiplied by 0. on_output: gets what the network returned for each batch.
    The model runs in evaluation mode without gradients and is left as it was.

    Raises UserError for other batch sizes, a network whose calls change from batch to batch, and operations that cannot
    be counted unless ``config.ignore_uncounted``; NonFiniteError for a network that has diverged.
    """
    _refuse_nonfinite_state(model)
    meter = _Meter(config.threshold, split)
    first: Tensor | None = None
    with evaluation_mode(model), torch.no_grad():
        for x in batches:
            if len(x) > config.batch or meter.images % config.batch:
                raise UserError(
                    f"meter.batch={config.batch} does not fit the batches: only the last one may be smaller"
                )
            output = meter.run(model, x)
            if on_output is not None:
                on_output(output)
            if first is None:
                first = x
                if meter.uncounted and not config.ignore_uncounted:
                    names = ", ".join(meter.uncounted)
                    raise UserError(f"no rule counts {names}: meter.ignore_uncounted=true measures without their cost")
        if first is None:
            raise UserError("there is nothing to measure: no batches")
        if floor:
            meter.run(model, first, floor=True)
    return Counts(meter.layers(), meter.batches, config.batch, config.threshold, meter.uncounted)


def _refuse_nonfinite_state(model: nn.Module) -> None:
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if not torch.isfinite(value).all():
            raise NonFiniteError(f"{name} is not finite")


# --- counting one tensor -------------------------------------------------------------------------------------------

Number = int | Tensor  # a Tensor of no dimensions where reading it now would make the host wait for the device


class _Counted(NamedTuple):
    """nonzeros: of the whole tensor. positions: for each position of one image, how many images have a non-zero there.
    finite: whether every value was. version: the tensor's when it was counted."""

    nonzeros: Number
    positions: Tensor | None
    finite: bool | Tensor
    version: int


class _Counter:
    """Counts values whose magnitude is above a threshold. On a CPU NumPy does it several times faster than torch."""

    def __init__(self, threshold: float):
        self.threshold = threshold
        self.magnitudes = np.empty(0, np.float32)
        self.flags = np.empty(0, np.bool_)

    def count(self, x: Tensor, signed: bool = True, check: bool = True) -> _Counted:
        """x: (images, ...). signed: may hold values below 0. check: find out whether all values are finite."""
        version = x._version
        if x.dim() == 0:
            x = x.reshape(1)
        if x.device.type == "cpu" and x.dtype == torch.float32:
            positions, finite = self._count_numpy(x, signed, check)
            return _Counted(int(positions.sum(dtype=torch.int64)), positions, finite, version)
        positions = self.flag(x).sum(0, dtype=torch.int64)
        return _Counted(positions.sum(), positions, torch.isfinite(x).all() if check else True, version)

    def flag(self, x: Tensor) -> Tensor:
        """Boolean, of the shape of ``x``: which values count."""
        return x.abs() > self.threshold if x.is_floating_point() else x != 0

    def _count_numpy(self, x: Tensor, signed: bool, check: bool) -> tuple[Tensor, bool]:
        stored, order = _storage_order(x)
        values = stored.numpy()
        flat = values.reshape(len(values), -1)
        if self.flags.size < flat.size:
            self.magnitudes, self.flags = np.empty(flat.size, np.float32), np.empty(flat.size, np.bool_)
        magnitudes, flags = (scratch[: flat.size].reshape(flat.shape) for scratch in (self.magnitudes, self.flags))
        np.greater(np.abs(flat, out=magnitudes) if signed else flat, np.float32(self.threshold), out=flags)
        positions = torch.from_numpy(_sum_flags(flags).reshape(values.shape[1:])).permute(order)
        return positions, not check or _all_finite(flat.reshape(-1))


def _storage_order(x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """``x`` with its dimensions in the order in which they lie in memory, so that it is read straight through; and how
    to permute one image of it back."""
    if x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        return x.permute(0, 2, 3, 1), (2, 0, 1)
    return x.contiguous(), tuple(range(x.dim() - 1))


def _sum_flags(flags: Any) -> Any:
    """How many images have the flag, at each position. flags: boolean array (images, positions)."""
    bits = flags.view(np.uint8)
    if len(bits) <= UINT8_MAX:
        return np.add.reduce(bits, axis=0, dtype=np.uint8)
    starts = range(0, len(bits), UINT8_MAX)
    parts = [np.add.reduce(bits[start : start + UINT8_MAX], axis=0, dtype=np.uint8) for start in starts]
    return np.add.reduce(parts, axis=0, dtype=np.int64)


def _all_finite(flat: Any) -> bool:
    """The sum of squares is one fast pass, and finite where all values are, unless it overflows."""
    return bool(np.isfinite(np.dot(flat, flat)) or np.isfinite(flat).all())


# --- counting one pass ---------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Observed:
    """One call in one pass, without its tensors but for the parameters that a function was given.

    positions: of the input, where products are counted. The non-zeros are known after the pass (``_Pass.read``).
    """

    name: str
    op: str
    work: Op
    module: nn.Module | None
    weights: tuple[Tensor, ...]
    producers: tuple[int, ...]
    inplace: bool
    activation: bool
    input_elements: int
    output_elements: int
    positions: Tensor | None
    input_nonzeros: int = 0
    output_nonzeros: int = 0


class _Pass:
    """Listens to one forward pass. A tensor that one call makes and others read is counted once."""

    def __init__(self, counter: _Counter, floor: bool):
        self.counter = counter
        self.floor = floor
        self.made: dict[int, _Counted] = {}  # by call
        self.finite: list[tuple[str, Tensor]] = []
        self.numbers: list[Number] = []  # non-zeros of input and output, call by call
        self.observed: list[_Observed] = []

    def __call__(self, call: Call) -> None:
        if self.floor and call.is_activation:
            call.output.mul_(0)
        work = describe(call)
        inputs = [(x, maker) for x, maker in zip(call.inputs, call.producers, strict=True) if not _is_parameter(x)]
        read = [self._input(call, x, maker) for x, maker in inputs]
        input_elements = sum(x.numel() for x, _ in inputs)
        input_nonzeros = sum((counted.nonzeros for counted in read), start=0)
        made = self._output(call, work, read, input_elements, input_nonzeros)
        self.made[call.index] = made
        self.numbers += [input_nonzeros, made.nonzeros]
        self.observed.append(
            _Observed(
                name=call.name,
                op=call.op,
                work=work,
                module=call.module,
                weights=tuple(x for x in call.inputs if _is_parameter(x)),
                producers=tuple(maker for _, maker in inputs),
                inplace=call.inplace,
                activation=call.is_activation,
                input_elements=input_elements,
                output_elements=call.output.numel(),
                positions=self._positions(call.inputs[0], read[0]) if work.kind in PRODUCTS else None,
            )
        )

    def _input(self, call: Call, x: Tensor, maker: int) -> _Counted:
        """What an operation that works in place has overwritten by now was counted when it was made."""
        counted = self.made.get(maker)
        if counted is not None and (counted.version == x._version or call.output is x):
            return counted
        return self._count(call, x)

    def _output(
        self, call: Call, work: Op, read: Sequence[_Counted], input_elements: int, input_nonzeros: Number
    ) -> _Counted:
        if work.kind == Kind.VIEW and call.output.numel() == input_elements:
            positions = read[0].positions if call.output is call.inputs[0] else None
            return _Counted(input_nonzeros, positions, True, call.output._version)
        finite = work.kind in (Kind.RELU, Kind.MAX_POOL, Kind.VIEW)  # what these make of finite values
        return self._count(call, call.output, signed=work.kind != Kind.RELU, check=not finite)

    def _count(self, call: Call, x: Tensor, signed: bool = True, check: bool = True) -> _Counted:
        counted = self.counter.count(x, signed, check)
        if isinstance(counted.finite, Tensor):
            self.finite.append((call.name, counted.finite))
        elif not counted.finite:
            raise _nonfinite(call.name)
        return counted

    def _positions(self, x: Tensor, counted: _Counted) -> Tensor | None:
        return self.counter.count(x, check=False).positions if counted.positions is None else counted.positions

    def read(self) -> list[_Observed]:
        """The calls, now with plain integers: here the host waits for the device, once a pass."""
        if self.finite and not all(torch.stack([finite for _, finite in self.finite]).tolist()):
            raise _nonfinite(next(name for name, finite in self.finite if not finite))
        numbers = iter(_as_ints(self.numbers))
        for o in self.observed:
            o.input_nonzeros, o.output_nonzeros = next(numbers), next(numbers)
        return self.observed


def _as_ints(numbers: Sequence[Number]) -> list[int]:
    waiting = [number for number in numbers if isinstance(number, Tensor)]
    arrived = iter(torch.stack(waiting).tolist() if waiting else [])
    return [next(arrived) if isinstance(number, Tensor) else number for number in numbers]


def _is_parameter(x: Tensor) -> bool:
    return isinstance(x, nn.Parameter)


def _nonfinite(name: str) -> NonFiniteError:
    return NonFiniteError(f"{name} works with values that are not finite")


# --- adding passes up ----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Layer:
    """One call over all batches: what never changes, and what was summed so far (names as in LayerCounts)."""

    row: LayerCounts
    module: nn.Module | None
    sums: Counter[str] = field(default_factory=Counter[str])
    positions: Tensor | None = None


class _Meter:
    """Meters batches: ``run`` each, then read ``layers()`` and ``batches``."""

    def __init__(self, threshold: float, split: str):
        self.counter = _Counter(threshold)
        self.split = split
        self.calls: list[_Layer] = []
        self.batches: list[BatchCounts] = []
        self.images = 0

    @property
    def uncounted(self) -> tuple[str, ...]:
        """The operations that have no rule, each once."""
        return tuple(dict.fromkeys(layer.row.op for layer in self.calls if layer.row.kind == Kind.UNKNOWN))

    def run(self, model: nn.Module, x: Tensor, floor: bool = False) -> Any:
        """Meter one batch and return what the network returned. The floor batch is not added to the layers."""
        listener = _Pass(self.counter, floor)
        with tap(model, listener):
            output = model(x)
        observed = listener.read()
        if not self.calls:
            self.calls = [self._layer(index, o) for index, o in enumerate(observed)]
        if [(o.name, o.op) for o in observed] != [(layer.row.name, layer.row.op) for layer in self.calls]:
            raise UserError("the network makes other calls for other batches: only the same calls can be added up")
        self.batches.append(self._totals(observed, FLOOR_BATCH if floor else len(self.batches), len(x)))
        if not floor:
            self.images += len(x)
            for layer, o in zip(self.calls, observed, strict=True):
                _add(layer, o)
        return output

    def _layer(self, index: int, o: _Observed) -> _Layer:
        parameters: dict[str, Any] = _parameter_counts(self.counter, o)
        row = LayerCounts(
            split=self.split,
            call=index,
            name=o.name,
            op=o.op,
            kind=o.work.kind,
            producers=o.producers,
            functional=o.module is None,
            inplace=o.inplace,
            activation=o.activation,
            kernel_area=o.work.kernel_area,
            window=o.work.window,
            stride=o.work.stride,
            groups=o.work.groups,
            **parameters,
        )
        return _Layer(row, o.module)

    def _totals(self, observed: Sequence[_Observed], batch: int, images: int) -> BatchCounts:
        """Over the calls of modules alone: the published simulator does not see functions."""
        sums: Counter[str] = Counter()
        for layer, o in zip(self.calls, observed, strict=True):
            if layer.row.functional:
                continue
            sums["input_elements"] += o.input_elements
            sums["input_nonzeros"] += o.input_nonzeros
            sums["input_nonzeros_as_built"] += o.output_nonzeros if o.inplace else o.input_nonzeros
            sums["input_nonzeros_all"] += o.output_nonzeros if o.activation else o.input_nonzeros
            sums["output_elements"] += o.output_elements
            sums["output_nonzeros"] += o.output_nonzeros
            sums["parameter_elements"] += layer.row.parameter_elements
            sums["parameter_nonzeros"] += layer.row.parameter_nonzeros
            if o.op == "BatchNorm2d":
                sums["statistics_elements"] += layer.row.statistics_elements
                sums["statistics_nonzeros"] += layer.row.statistics_nonzeros
            sums["computations"] += o.work.computations
        return BatchCounts(split=self.split, batch=batch, images=images, **sums)

    def layers(self) -> list[LayerCounts]:
        """The rows, with the products that both operands' zeros leave."""
        sums: list[dict[str, Any]] = [{**layer.sums, **self._products(layer)} for layer in self.calls]
        return with_consumers(
            replace(layer.row, images=self.images, **values) for layer, values in zip(self.calls, sums, strict=True)
        )

    def _products(self, layer: _Layer) -> dict[str, int]:
        if layer.positions is None:
            return {}
        assert layer.module is not None
        weight = self.counter.flag(layer.module.get_parameter("weight").detach()).cpu()
        valid, some, both = exact_macs(layer.module, layer.positions.cpu(), weight, self.images)
        return {"macs_valid": valid, "macs_input_nonzero": some, "macs_both_nonzero": both}


def _add(layer: _Layer, o: _Observed) -> None:
    layer.sums.update(
        input_elements=o.input_elements,
        input_nonzeros=o.input_nonzeros,
        output_elements=o.output_elements,
        output_nonzeros=o.output_nonzeros,
        computations=o.work.computations,
        macs_nominal=o.work.macs_nominal,
    )
    if o.positions is not None:
        layer.positions = o.positions.long() if layer.positions is None else layer.positions.add_(o.positions)


def _parameter_counts(counter: _Counter, o: _Observed) -> dict[str, int]:
    """Elements and non-zeros of parameters and buffers by their role. A function's parameters are weights."""
    if o.module is None:
        named = [("weight", weight) for weight in o.weights]
    else:
        named = [*o.module.named_parameters(recurse=False), *o.module.named_buffers(recurse=False)]
    counts: Counter[str] = Counter()
    for name, tensor in named:
        role = ROLES.get(name, "buffer")
        counts[f"{role}_elements"] += tensor.numel()
        counts[f"{role}_nonzeros"] += int(counter.flag(tensor.detach()).sum())
    return dict(counts)
