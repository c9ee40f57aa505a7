"""Quantisation: a network of integers, as an accelerator that fuses layers computes it.

Batch norms are folded into the layers in front of them. Then weights are rounded per output channel, symmetric and
signed, and every tensor that the accelerator stores (energy/rules/fused.py: what layers and pools write, residual
operands) per tensor: unsigned with zero point 0 where nothing is negative, as behind a ReLU, symmetric and signed
elsewhere. So 0 is 0, and a value below half a step becomes 0. Sums have 32 bits, and so do the logits, which nobody
reads but the arg max. Biases are left in float32: an accelerator has them in 32 bits at the scale of the sums (scale of
the input x scale of the weights), where each would move by up to half of that, the worth of the smallest product. With
8 bits that is little; with 4 it is seen in networks that are unsure of their answers (docs/export.md). The image has
8 bits as it is.

The network stays one of float32 values, each an integer times its scale ("fake quantisation", Jacob et al., CVPR 2018,
arXiv 1712.05877), with straight-through gradients. What rounds is torch's fake_quantize with zero point 0, to the bit,
written as elementwise operations: on a CPU torch's own kernels take several times as long. torchao and brevitas bring
formats, kernels and layer classes that the meter would have to learn, for the same numbers.

Scales are those with the least mean squared rounding error, found among fractions of the largest magnitude: with 8 bits
about the largest magnitude itself, with 4 bits often half of it, where clipping a few values costs less than rounding
all others coarsely (Choukroun et al., ICCV Workshops 2019, arXiv 1902.06822; Nagel et al., arXiv 2106.08295, 2.2).
"""

import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from enum import Enum
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from eat_runner.config import MeterConfig
from eat_runner.config.bits import BitsConfig
from eat_runner.config.hardware import HardwareConfig
from eat_runner.distributed import joined
from eat_runner.energy.budget import Budget
from eat_runner.energy.counts import NETWORK_INPUT, Counts, Kind, LayerCounts
from eat_runner.energy.meter import measure
from eat_runner.energy.rules.fused import stored_calls
from eat_runner.errors import UserError, one_line
from eat_runner.methods.base import Method, Progress, Trained
from eat_runner.taps import evaluation_mode, has_made_weight

CANDIDATES = 48  # scales that are tried: fractions 2^(-i / 12) of the largest magnitude, down to 1/16
SAMPLED = 2**16  # values of a batch's tensor that a scale is chosen by
SUM_BITS = 32
SCALE, WEIGHT_SCALE = "output_scale", "weight_scale"  # buffers of a module of integers
NOT_NEGATIVE = frozenset({"sigmoid", "hardsigmoid"})  # beside ReLUs

Layer = nn.Conv2d | nn.Linear


# --- numbers -------------------------------------------------------------------------------------------------------


def limits(bits: int, signed: bool) -> tuple[int, int]:
    """The smallest and the largest integer: -127 to 127, or 0 to 255, with 8 bits."""
    return (1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def rounded(x: Tensor, scale: Tensor, bits: int, signed: bool) -> Tensor:
    """The nearest values of the form integer x scale, half to even, clipped to ``limits``. scale: one for all of ``x``,
    without dimensions, or one for each of its rows. The gradient goes straight through, but for what is clipped."""
    scale = scale if scale.dim() == 0 else scale.view(-1, *[1] * (x.dim() - 1))
    return cast(Tensor, _Rounded.apply(x, scale, *limits(bits, signed)))


class _Rounded(torch.autograd.Function):
    """``torch.fake_quantize_per_tensor_affine`` with zero point 0, to the bit."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
        steps = (x * scale.reciprocal()).round_()
        clipped = steps.clamp(low, high)
        ctx.save_for_backward(clipped == steps)
        return clipped.mul_(scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (inside,) = ctx.saved_tensors
        return grads[0] * inside, None, None, None


def best_scales(values: Tensor, bits: int, signed: bool) -> Tensor:
    """For each row of ``values``, (rows, n), the scale with the least squared rounding error; 1 for a row of zeros."""
    values = values.detach().float()
    largest = values.abs().amax(1)
    full = torch.where(largest > 0, largest / limits(bits, signed)[1], 1.0).clamp_min(torch.finfo(torch.float32).tiny)
    best, least = full, torch.full_like(full, math.inf)
    for i in range(CANDIDATES):
        scale = (full * 2 ** (-i / 12)).clamp_min(torch.finfo(torch.float32).tiny)
        error = (rounded(values, scale, bits, signed) - values).square().sum(1)
        best = torch.where(error < least, scale, best)
        least = torch.minimum(error, least)
    return best


def _sample(x: Tensor) -> Tensor:
    """Some of its values, always from the same places, or all of them."""
    flat = x.detach().flatten()
    if len(flat) <= SAMPLED:
        return flat.float()
    places = torch.randint(len(flat), (SAMPLED,), generator=torch.Generator().manual_seed(0))
    return flat[places.to(flat.device)].float()


# --- where ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What becomes of a network, by the names of its modules.

    folded: layer -> the batch norm behind it. weights: layer -> bits. outputs: module whose output is stored -> bits,
    whether it is signed, and how often it is called. labels: module whose output is made of such values as it is (a
    max-pool's), or of sums -> bits.
    """

    folded: dict[str, str]
    weights: dict[str, int]
    outputs: dict[str, tuple[int, bool, int]]
    labels: dict[str, int]


class _Planner:
    """Reads from the calls of a pass what is stored where. UserError for what has no place."""

    def __init__(self, model: nn.Module, rows: Sequence[LayerCounts], config: BitsConfig):
        self.modules = dict(model.named_modules())
        self.rows, self.config = rows, config
        self.calls: dict[str, list[int]] = {}
        for row in rows:
            self.calls.setdefault(row.name, []).append(row.call)

    def plan(self) -> Plan:
        layers = [row for row in self.rows if row.kind in {Kind.CONV, Kind.LINEAR}]
        if not layers:
            raise UserError("bits: the network has no convolution and no linear layer: leave bits out")
        for row in self.rows:
            self._check(row)
        folded = self.folded()
        ends = {layers[0].name, layers[-1].name}
        weights = {row.name: self.config.end_width if row.name in ends else self.config.width for row in layers}
        outputs, labels = self._outputs(folded, set(self._in_front_of(layers[-1])))
        return Plan(folded, weights, outputs, labels)

    def _check(self, row: LayerCounts) -> None:
        module = self.modules.get(row.name)
        if row.output_bits or row.weight_bits:
            raise UserError("bits: the network's values are integers already: leave bits out")
        if row.kind in {Kind.CONV, Kind.LINEAR} and not isinstance(module, Layer):
            raise _refused(row, "is no module with a weight")
        if module is not None and has_made_weight(module):
            raise _refused(row, "makes its weight anew for each call, so it cannot be rounded")
        if row.kind == Kind.LAYER_NORM:
            raise _refused(row, "normalises with what it computes from each image, and cannot be folded into a layer")
        if row.kind == Kind.UNKNOWN:
            raise _refused(row, "is not known")
        if row.kind == Kind.VIEW and len(set(row.producers)) > 1:
            raise _refused(row, "joins tensors, each with a scale of its own")

    def folded(self) -> dict[str, str]:
        return dict(self._folded())

    def _folded(self) -> Iterator[tuple[str, str]]:
        for row in self.rows:
            if row.kind != Kind.BATCH_NORM:
                continue
            before = self.rows[row.producers[0]] if row.producers[0] != NETWORK_INPUT else None
            alone = before is not None and len(before.consumers) == len(self.calls[before.name]) == 1
            if before is None or before.kind not in {Kind.CONV, Kind.LINEAR} or not alone:
                raise _refused(row, "does not stand right behind a layer, which it could be folded into")
            if not isinstance(self.modules[row.name], nn.BatchNorm1d | nn.BatchNorm2d):
                raise _refused(row, "is of a kind that cannot be folded into the layer before it")
            yield before.name, row.name

    def _outputs(self, folded: Mapping[str, str], wide: set[int]) -> tuple[dict[str, Any], dict[str, int]]:
        stored, layer_of = set(stored_calls(self.rows)), {norm: layer for layer, norm in folded.items()}
        outputs: dict[str, tuple[int, bool, int]] = {}
        labels: dict[str, int] = {}
        for row in self.rows:
            if row.call not in stored:
                continue
            if row.functional:
                raise _refused(row, "stores its result and is no module")
            calls = self.calls[row.name]
            if not stored.issuperset(calls):
                raise _refused(row, "is called several times, and not every result is stored")
            bits = self.config.end_width if wide.intersection(calls) else self.config.width
            name = layer_of.get(row.name, row.name)
            if not self._is_read(row.call):
                labels[name] = SUM_BITS
            elif row.kind == Kind.MAX_POOL:
                labels[name] = bits
            else:
                outputs[name] = bits, any(map(self._is_signed, calls)), len(calls)
        return outputs, labels

    def _in_front_of(self, row: LayerCounts) -> Iterator[int]:
        """The calls that make what this one reads, up to that which rounds it."""
        for call in row.producers[:1]:
            if call != NETWORK_INPUT:
                yield call
                if self.rows[call].kind in {Kind.VIEW, Kind.MAX_POOL}:
                    yield from self._in_front_of(self.rows[call])

    def _is_read(self, call: int) -> bool:
        readers = [self.rows[reader] for reader in self.rows[call].consumers]
        return any(reader.kind != Kind.VIEW or self._is_read(reader.call) for reader in readers)

    def _is_signed(self, call: int) -> bool:
        row = self.rows[call] if call != NETWORK_INPUT else None
        if row is None:
            return True
        if row.kind in {Kind.VIEW, Kind.MAX_POOL, Kind.AVG_POOL}:
            return any(map(self._is_signed, row.producers))
        return row.kind != Kind.RELU and row.op.lower() not in NOT_NEGATIVE


def _refused(row: LayerCounts, why: str) -> UserError:
    return UserError(f"bits: {one_line(row.name)} ({row.op}) {why}: leave bits out, or choose another network")


def plan_for(model: nn.Module, example_nchw: Tensor, config: BitsConfig) -> Plan:
    """Of a network of float32 values. UserError for what cannot be made of integers, by name."""
    meter = MeterConfig(batch_size=len(example_nchw), ignore_uncounted=True)
    return _Planner(model, measure(model, [example_nchw], meter, floor=False).layers, config).plan()


def foldable(model: nn.Module, example_nchw: Tensor) -> dict[str, str]:
    """Layer -> the batch norm right behind it, for ``fold``; empty where some batch norm stands elsewhere."""
    meter = MeterConfig(batch_size=len(example_nchw), ignore_uncounted=True)
    rows = measure(model, [example_nchw], meter, floor=False).layers
    try:
        return _Planner(model, rows, BitsConfig()).folded()
    except UserError:
        return {}


# --- changing a network --------------------------------------------------------------------------------------------


class Doing(Enum):
    """What is done to an output."""

    NOTHING = 0
    WATCHING = 1
    ROUNDING = 2


class Rounding:
    """A forward hook that rounds what a module returns, by the buffer that the module has for it.

    It is no module, so that what a layer writes is what it returns. calls: of the module in a forward pass, each with a
    scale of its own; ``call`` is the next one.
    """

    is_part_of_module = True  # for those who look at the network

    def __init__(self, module: nn.Module, bits: int, signed: bool, calls: int):
        self.bits, self.signed, self.calls = bits, signed, calls
        self.doing = Doing.NOTHING
        self.call = 0
        self.round = rounded  # an export has an operation of its own for it
        self.seen: list[list[Tensor]] = [[] for _ in range(calls)]
        device = next((p.device for p in module.parameters()), None)
        module.register_buffer(SCALE, torch.ones(calls, device=device))
        self.handle = module.register_forward_hook(self)

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        if self.doing == Doing.NOTHING:
            return output
        call = self.call
        if self.calls > 1:
            self.call = (call + 1) % self.calls
        if self.doing == Doing.ROUNDING:
            return self.round(output, cast(Tensor, module.output_scale)[call], self.bits, self.signed)
        self.seen[call].append(_sample(output))
        return output

    def calibrate(self, module: nn.Module) -> None:
        """Choose the scales by what was seen since the last time."""
        scales = [best_scales(torch.cat(seen)[None], self.bits, self.signed) for seen in self.seen]
        module.get_buffer(SCALE).copy_(torch.cat(scales))
        self.seen = [[] for _ in self.seen]


class _Restart:
    """A pre-hook of the whole network: whatever became of the pass before, modules are called for the first time."""

    def __init__(self, roundings: Sequence[Rounding]):
        self.roundings = roundings

    def __call__(self, model: nn.Module, args: Any) -> None:
        for rounding in self.roundings:
            rounding.call = 0


def fold(model: nn.Module, folded: Mapping[str, str]) -> None:
    """Batch norms, with their running statistics, go into the layers before them; nn.Identity takes their places."""
    modules = dict(model.named_modules())
    for name, norm_name in folded.items():
        layer, norm = modules[name], modules[norm_name]
        assert isinstance(layer, Layer)
        assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
        fuse = fuse_conv_bn_weights if isinstance(layer, nn.Conv2d) else fuse_linear_bn_weights
        statistics = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
        layer.weight, layer.bias = fuse(layer.weight, layer.bias, *cast(Any, statistics))
        parent, _, child = norm_name.rpartition(".")
        setattr(modules[parent], child, nn.Identity())


def add_roundings(model: nn.Module, outputs: Mapping[str, Sequence[Any]]) -> dict[str, Rounding]:
    """One for each module in ``outputs`` (Plan); they do nothing yet."""
    modules = dict(model.named_modules())
    roundings = {name: Rounding(modules[name], *how) for name, how in outputs.items()}
    again = [rounding for rounding in roundings.values() if rounding.calls > 1]
    if again:
        model.register_forward_pre_hook(_Restart(again))
    return roundings


def roundings_of(model: nn.Module) -> list[Rounding]:
    """Those that have been added to a network."""
    hooks = (h for m in model.modules() for h in m._forward_hooks.values())  # pyright: ignore[reportPrivateUsage]
    return [hook for hook in hooks if isinstance(hook, Rounding)]


def _label(model: nn.Module, plan: Plan) -> None:
    """The widths, where the meter looks for them, and buffers for the scales of the weights."""
    modules = dict(model.named_modules())
    for name, bits in plan.weights.items():
        layer = modules[name]
        assert isinstance(layer, Layer)
        setattr(layer, "weight_bits", bits)  # noqa: B010
        layer.register_buffer(WEIGHT_SCALE, torch.ones(len(layer.weight), device=layer.weight.device))
    widths = {name: how[0] for name, how in plan.outputs.items()} | plan.labels
    for name, bits in widths.items():
        setattr(modules[name], "output_bits", bits)  # noqa: B010


# --- the method ----------------------------------------------------------------------------------------------------


class Quantise(Method):
    """Makes integers of the trained network; from ``begin`` on, training computes with what they can hold.

    There, weights are rounded as they are: rounding per output channel commutes with the batch norm behind, which
    scales a channel as a whole. Scales are chosen anew in the first such step of each epoch, which does not round.
    """

    untrainable = True

    def __init__(self, config: BitsConfig, hardware: HardwareConfig, budget: Budget | None = None):
        super().__init__(config, hardware, budget)
        self.settings = config
        self.scales: dict[str, Tensor] = {}  # of the weights, while the network trains
        self.doing = Doing.NOTHING
        self.roundings: dict[str, Rounding] = {}  # while it trains

    def on_example(self, model: nn.Module, example_nchw: Tensor) -> None:
        self.model, self.example_nchw = model, example_nchw
        self.plan = plan_for(model, example_nchw, self.settings)
        if self.settings.begin < 1:
            places = {self.plan.folded.get(name, name): how for name, how in self.plan.outputs.items()}
            self.roundings = add_roundings(model, places)

    def foreseen(self, counts: Counts) -> Counts:
        """With the widths of the integers; their zeros are those of the float network, of which there are fewer."""
        behind = self.plan.folded
        stored = {name: how[0] for name, how in self.plan.outputs.items()} | self.plan.labels
        stored = {behind.get(name, name): bits for name, bits in stored.items()}
        layers = [
            replace(row, weight_bits=self.plan.weights.get(row.name, 0), output_bits=stored.get(row.name, 0))
            for row in counts.layers
        ]
        already = any(row.weight_bits for row in counts.layers)
        return counts if already else replace(counts, layers=layers)

    def before_step(self, progress: Progress) -> None:
        first = round(self.settings.begin * progress.steps_per_epoch * progress.epochs)
        begins = progress.step == first or progress.step % progress.steps_per_epoch == 0
        self.doing = Doing.NOTHING if progress.step < first else Doing.WATCHING if begins else Doing.ROUNDING

    def numbers(self) -> AbstractContextManager[Any]:
        if self.doing == Doing.NOTHING:
            return nullcontext()
        return self._watching() if self.doing == Doing.WATCHING else self._rounding()

    def after_training(self, trained: Trained) -> None:
        model = trained.model
        if not self.roundings:  # channels and branches may have gone
            self.plan = plan_for(model, self.example_nchw.to(next(model.parameters()).device), self.settings)
        plan = self.plan
        for name, rounding in self.roundings.items():
            rounding.handle.remove()
            delattr(model.get_submodule(name), SCALE)
        with torch.no_grad():
            fold(model, plan.folded)
            roundings = add_roundings(model, plan.outputs)
            _set(roundings, Doing.WATCHING)
            scales = self._weight_scales()
            for name, layer in self._layers():
                layer.weight.copy_(rounded(layer.weight, scales[name], plan.weights[name], signed=True))
            with evaluation_mode(model):
                for x_nchw in trained.looked_at():
                    model(x_nchw)
            self._calibrate(roundings)
            _label(model, plan)
            for name, layer in self._layers():
                layer.get_buffer(WEIGHT_SCALE).copy_(scales[name])
        _set(roundings, Doing.ROUNDING)

    def state(self) -> dict[str, Any]:
        return {"scales": self.scales}

    def load_state(self, state: dict[str, Any]) -> None:
        layers = dict(self._layers())
        self.scales = {name: scale.to(layers[name].weight.device) for name, scale in state["scales"].items()}

    def changes(self) -> dict[str, Any]:
        """The plan, in what JSON has."""
        return asdict(self.plan) | {"outputs": {name: list(how) for name, how in self.plan.outputs.items()}}

    @classmethod
    def restore(cls, model: nn.Module, changes: Mapping[str, Any]) -> None:
        plan = Plan(*(changes[key] for key in Plan.__dataclass_fields__))
        with torch.no_grad():
            fold(model, plan.folded)
        _set(add_roundings(model, plan.outputs), Doing.ROUNDING)
        _label(model, plan)

    def _layers(self) -> Iterator[tuple[str, Layer]]:
        for name in self.plan.weights:
            layer = self.model.get_submodule(name)
            assert isinstance(layer, Layer)
            yield name, layer

    def _weight_scales(self) -> dict[str, Tensor]:
        return {
            name: best_scales(layer.weight.flatten(1), self.plan.weights[name], signed=True)
            for name, layer in self._layers()
        }

    def _calibrate(self, roundings: Mapping[str, Rounding]) -> None:
        for name, rounding in roundings.items():
            rounding.calibrate(self.model.get_submodule(name))

    @contextmanager
    def _watching(self) -> Generator[None]:
        _set(self.roundings, Doing.WATCHING)
        with _eagerly():
            yield
        _set(self.roundings, Doing.NOTHING)
        for rounding in self.roundings.values():  # each process has seen a part of the batch
            rounding.seen = [[joined(torch.cat(seen))] for seen in rounding.seen]
        with torch.no_grad():
            self.scales = self._weight_scales()
            self._calibrate(self.roundings)

    @contextmanager
    def _rounding(self) -> Generator[None]:
        """Rounded tensors stand in for the weights, which the gradients pass on to."""
        weights = {name: (layer, layer.weight) for name, layer in self._layers()}
        _set(self.roundings, Doing.ROUNDING)
        try:
            for name, (layer, weight) in weights.items():
                standing_in = rounded(weight, self.scales[name], self.plan.weights[name], signed=True)
                _put(layer, standing_in)
            with _eagerly():
                yield
        finally:
            for layer, weight in weights.values():
                _put(layer, weight)
            _set(self.roundings, Doing.NOTHING)


def _put(layer: Layer, weight: Tensor) -> None:
    """In the place that it has among the layer's parameters: a tensor with a history cannot be a Parameter."""
    cast(dict[str, Tensor], layer._parameters)["weight"] = weight  # pyright: ignore[reportPrivateUsage]


def _eagerly() -> AbstractContextManager[Any]:
    """Not compiled: on a CPU that stores masks of the clipped values one by one, and takes longer than it saves."""
    return torch.compiler.set_stance("force_eager")


def _set(roundings: Mapping[str, Rounding], doing: Doing) -> None:
    for rounding in roundings.values():
        rounding.doing, rounding.call = doing, 0
