"""The meter against values worked out by hand, and against naive loops."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eat_runner.config import MeterConfig
from eat_runner.energy.counts import FLOOR_BATCH, Counts, Kind, LayerCounts, joined
from eat_runner.energy.estimate import estimate
from eat_runner.energy.hardware import load_hardware
from eat_runner.energy.meter import NonFiniteError, measure
from eat_runner.energy.ops import OPS, Flag, Macs, Op, Products
from eat_runner.errors import UserError
from eat_runner.taps import Call, tap, where

THRESHOLD = 2.0**-126


def meter(model: nn.Module, *batches: Tensor, floor: bool = False, **config: Any) -> Counts:
    return measure(model, batches, MeterConfig(batch_size=len(batches[0]), **config), floor=floor)


def by_name(counts: Counts) -> dict[str, LayerCounts]:
    return {row.name: row for row in counts.layers}


# --- exact products ------------------------------------------------------------------------------------------------


def sparse(shape: tuple[int, ...], seed: int, density: float) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator)
    return values * (torch.rand(shape, generator=generator) < density)


def naive_conv_macs(conv: nn.Conv2d, x: np.ndarray) -> tuple[int, int, int]:
    """Every product of a zero-padded convolution, one by one: (valid, input not zero, neither operand zero)."""
    weight = conv.weight.detach().numpy()
    (stride_h, stride_w), (dilation_h, dilation_w) = conv.stride, conv.dilation
    pad_h, pad_w = (int(p) for p in conv.padding)
    images, _, height, width = x.shape
    outputs, inputs, kernel_h, kernel_w = weight.shape
    out_h = (height + 2 * pad_h - dilation_h * (kernel_h - 1) - 1) // stride_h + 1
    out_w = (width + 2 * pad_w - dilation_w * (kernel_w - 1) - 1) // stride_w + 1
    valid = some = both = 0
    for image, o, oh, ow, i, kh, kw in itertools.product(
        *map(range, (images, outputs, out_h, out_w, inputs, kernel_h, kernel_w))
    ):
        h, w = oh * stride_h - pad_h + kh * dilation_h, ow * stride_w - pad_w + kw * dilation_w
        if 0 <= h < height and 0 <= w < width:
            channel = o // (outputs // conv.groups) * inputs + i
            valid += 1
            some += x[image, channel, h, w] != 0
            both += x[image, channel, h, w] != 0 and weight[o, i, kh, kw] != 0
    return valid, int(some), int(both)


@pytest.mark.parametrize("stride", [1, 2, (3, 1)])
@pytest.mark.parametrize("padding", [0, 1, (2, 0)])
@pytest.mark.parametrize("dilation", [1, (1, 2)])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_products_of_a_convolution_equal_a_naive_loop(stride: Any, padding: Any, dilation: Any, groups: int) -> None:
    conv = nn.Conv2d(4, 4, (3, 2), stride, padding, dilation, groups)
    with torch.no_grad():
        conv.weight.copy_(sparse(conv.weight.shape, seed=1, density=0.6))
    x = sparse((3, 4, 7, 6), seed=2, density=0.5)
    [row] = meter(nn.Sequential(conv), x[:2], x[2:]).layers
    assert (row.macs_valid, row.macs_input_nonzero, row.macs_both_nonzero) == naive_conv_macs(conv, x.numpy())
    assert row.macs_nominal == row.computations == row.output_elements * 6 * 4
    assert (row.kernel_area, row.groups) == (6, groups)


@pytest.mark.parametrize(("images", "dtype"), [(2, torch.float32), (300, torch.float32), (2, torch.float64)])
def test_products_of_two_layers_that_read_one_tensor(images: int, dtype: torch.dtype) -> None:
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu, self.left, self.right = nn.ReLU(), nn.Linear(2, 3), nn.Linear(2, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.relu(x)
            return torch.cat([self.left(x), self.right(x)], 1)

    x = torch.tensor([[1.0, -1]]).repeat(images, 1).to(dtype)
    rows = by_name(meter(Fork().to(dtype), *[x] * 4))
    # in each of four batches one of two inputs of each image is positive
    assert rows["left"].macs_input_nonzero == 4 * images * 3
    assert rows["right"].macs_input_nonzero == 4 * images * 5


@pytest.mark.parametrize("mode", ["reflect", "circular", "replicate"])
def test_padding_with_values_is_counted_as_values(mode: Any) -> None:
    conv = nn.Conv2d(2, 3, 3, padding=2, padding_mode=mode)
    x = sparse((2, 2, 5, 5), seed=3, density=0.5)
    [row] = meter(nn.Sequential(conv), x).layers
    unpadded = nn.Conv2d(2, 3, 3)
    padded = F.pad(x, (2, 2, 2, 2), mode=mode).numpy()
    assert (row.macs_valid, row.macs_input_nonzero, row.macs_both_nonzero) == naive_conv_macs(unpadded, padded)


def test_padding_by_name() -> None:
    x = sparse((2, 2, 5, 5), seed=4, density=0.5)
    conv = nn.Conv2d(2, 2, 3, padding=1)
    [row] = meter(nn.Sequential(nn.Conv2d(2, 2, 3, padding="same")), x).layers
    assert (row.macs_valid, row.macs_input_nonzero) == naive_conv_macs(conv, x.numpy())[:2]


@pytest.mark.parametrize("shape", [(5, 6), (5, 3, 6)])
def test_products_of_a_linear_layer_equal_a_naive_loop(shape: tuple[int, ...]) -> None:
    linear = nn.Linear(6, 4)
    with torch.no_grad():
        linear.weight.copy_(sparse((4, 6), seed=5, density=0.5))
    x = sparse(shape, seed=6, density=0.5)
    [row] = meter(nn.Sequential(linear), x).layers
    weight, rows = linear.weight.detach().numpy(), x.reshape(-1, 6).numpy()
    products = [(r[i] != 0, weight[o, i] != 0) for r in rows for o in range(4) for i in range(6)]
    assert row.macs_valid == row.macs_nominal == len(products)
    assert row.macs_input_nonzero == sum(bool(x) for x, _ in products)
    assert row.macs_both_nonzero == sum(bool(x and w) for x, w in products)


def test_one_convolution_by_hand() -> None:
    # A 3 x 3 kernel whose corners are zero, on 4 x 4 with padding 1 and stride 2: windows cover 2 or 3 rows and 2 or 3
    # columns, (2 + 3) x (2 + 3) = 25 products. Window (r, c) begins at (2r - 1, 2c - 1), so the one value that is not
    # zero, at (1, 1), is the kernel's corner (2 - 2r, 2 - 2c) in each of the four.
    conv = nn.Conv2d(1, 1, 3, stride=2, padding=1, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[[[0.0, 1, 0], [1, 1, 1], [0, 1, 0]]]]))
    x = torch.zeros(1, 1, 4, 4)
    x[0, 0, 1, 1] = 5
    [row] = meter(nn.Sequential(conv), x).layers
    assert (row.macs_nominal, row.macs_valid, row.macs_input_nonzero, row.macs_both_nonzero) == (36, 25, 4, 0)
    x[0, 0, 1, 1], x[0, 0, 1, 2] = 0, 5
    # at (1, 2) it is in the windows of column 1 alone, at (2, 1) and (0, 1), where the kernel is not zero
    [row] = meter(nn.Sequential(conv), x).layers
    assert (row.macs_input_nonzero, row.macs_both_nonzero) == (2, 2)


# --- an operation from outside is one handler ----------------------------------------------------------------------


def transposed_convolution(call: Call) -> Op:
    """Without padding: every value meets every weight of its channel, at every place of the kernel."""
    conv = call.module
    assert isinstance(conv, nn.ConvTranspose2d)

    def total(nonzeros: Tensor, elements: int, flag: Flag) -> Macs:
        images, positions = elements // nonzeros.numel(), nonzeros[0].numel()
        weights = conv.weight[0].numel()
        both = nonzeros.sum((1, 2)) @ flag(conv.weight).sum((1, 2, 3))
        return images * len(nonzeros) * positions * weights, int(nonzeros.sum()) * weights, int(both)

    macs = call.inputs[0].numel() * conv.weight[0].numel()
    return Op(Kind.CONV, macs, macs, products=Products(total))


def test_a_transposed_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPS, where(nn.ConvTranspose2d), transposed_convolution)
    conv = nn.ConvTranspose2d(3, 2, 2, stride=2)
    with torch.no_grad():
        conv.weight.copy_(sparse(conv.weight.shape, seed=1, density=0.6))
    x = sparse((5, 3, 4, 3), seed=2, density=0.5)
    [row] = meter(nn.Sequential(conv), x[:3], x[3:]).layers
    weight = conv.weight.detach().numpy()
    products = [
        (x[image, i, h, w] != 0, weight[i, o, kh, kw] != 0)
        for image, i, h, w, o, kh, kw in itertools.product(*map(range, (5, 3, 4, 3, 2, 2, 2)))
    ]
    assert row.macs_valid == row.macs_nominal == len(products)
    assert row.macs_input_nonzero == sum(bool(left) for left, _ in products)
    assert row.macs_both_nonzero == sum(bool(left and right) for left, right in products)


class Scores(nn.Module):
    """The products of queries (ReLU) and keys."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.ReLU(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.matmul(self.query(x), self.key(x).transpose(1, 2))


def product_of_two(call: Call) -> Op:
    """(images, a, b) x (images, b, c); what each image multiplies is counted when it is there."""

    def of_call(call: Call, flag: Flag) -> Tensor:
        left, right = (flag(x) for x in call.inputs)
        inner, some = left.shape[2], int(left.sum()) * right.shape[2]
        return torch.tensor([call.output.numel() * inner, some, int((left.sum(1) * right.sum(2)).sum())])

    macs = call.output.numel() * call.inputs[0].shape[2]
    return Op(
        Kind.LINEAR, macs, macs, products=Products(lambda summed, elements, flag: tuple(summed.tolist()), of_call)
    )


def test_a_product_of_two_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPS, torch.matmul, product_of_two)
    x = sparse((3, 5, 4), seed=3, density=0.6)
    row = meter(Scores(), x[:2], x[2:]).layers[-1]
    products = [
        (x[image, a, k] > 0, x[image, b, k] != 0) for image, a, b, k in itertools.product(*map(range, (3, 5, 5, 4)))
    ]
    assert (row.op, row.weight_elements) == ("matmul", 0)
    assert row.macs_valid == row.macs_nominal == len(products)
    assert row.macs_input_nonzero == sum(bool(left) for left, _ in products)
    assert row.macs_both_nonzero == sum(bool(left and right) for left, right in products)


# --- what is counted, and when -------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [1, 7, 255, 256, 300, 600])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_counts_are_exact_for_any_batch_and_layout(
    images: int, layout: torch.memory_format, dtype: torch.dtype
) -> None:
    x = sparse((images, 3, 4, 2), seed=7, density=0.5)
    x[:, 0, 0, 0] = -1  # a position that every image has
    x = x.to(dtype).contiguous(memory_format=layout)
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU()).to(dtype)
    conv, relu = meter(model, x, x).layers
    assert conv.input_nonzeros == 2 * int((x != 0).sum())
    assert conv.macs_input_nonzero == 2 * 2 * int((x != 0).sum())
    with torch.no_grad():
        before = model[0](x)
    assert conv.output_nonzeros == relu.input_nonzeros == 2 * int((before != 0).sum())
    assert relu.output_nonzeros == 2 * int((before > 0).sum())


def test_a_value_counts_above_the_threshold() -> None:
    tiny = torch.tensor([[0.0, -0.0, THRESHOLD, -THRESHOLD, 2 * THRESHOLD, -2 * THRESHOLD, 1e-40, 1.0]])
    [row] = meter(nn.Sequential(nn.Identity()), tiny).layers
    assert (row.input_elements, row.input_nonzeros, row.output_nonzeros) == (8, 3, 3)
    [row] = meter(nn.Sequential(nn.ReLU()), torch.tensor([[0.5, -0.7, 0.7, 0.4]]), threshold=0.5).layers
    assert (row.input_nonzeros, row.output_nonzeros) == (2, 1)


def test_parameters_have_roles_and_are_counted_once() -> None:
    norm = nn.BatchNorm2d(3)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 0, 2]))
        norm.running_mean.copy_(torch.tensor([0.0, 0, 1]))
    x = torch.randn(2, 3, 4, 4)
    counts = meter(nn.Sequential(norm, nn.PReLU(3)), x, x)
    bn, prelu = counts.layers
    assert (bn.weight_elements, bn.weight_nonzeros, bn.bias_elements, bn.bias_nonzeros) == (3, 2, 3, 0)
    assert (bn.statistics_elements, bn.statistics_nonzeros) == (6, 1 + 3)
    assert (bn.buffer_elements, bn.buffer_nonzeros) == (1, 0)  # the number of batches, 0 as yet
    assert (prelu.weight_elements, prelu.weight_nonzeros) == (3, 3)
    for batch in counts.batches:
        assert (batch.parameter_elements, batch.parameter_nonzeros) == (3 + 3 + 6 + 1 + 3, 2 + 4 + 3)
        assert (batch.statistics_elements, batch.statistics_nonzeros) == (6, 4)


class Residual(nn.Module):
    """As torchvision writes it: the addition overwrites what batch norm returned, one ReLU object is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(2)
        self.relu = nn.ReLU(inplace=True)
        nn.init.dirac_(self.conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn(self.conv(x))
        out += x
        return self.relu(F.relu(self.relu(out) - 1, inplace=True))


def test_calls_that_work_in_place_are_counted_before_they_overwrite() -> None:
    x = torch.tensor([1.0, -1, 0, 3]).reshape(1, 2, 1, 2)
    counts = meter(Residual(), x)
    # conv, bn: x (3 of 4); sum 2, -2, 0, 6 (3); relu 2, 0, 0, 6 (2); minus 1: 1, -1, -1, 5 (4); relu 1, 0, 0, 5 (2)
    expected = [
        ("conv", (-1,), False, 3, 3),
        ("bn", (0,), False, 3, 3),
        (":add_", (1, -1), True, 6, 3),
        ("relu", (2,), True, 3, 2),
        (":sub", (3,), False, 2, 4),
        (":relu", (4,), True, 4, 2),
        ("relu", (5,), True, 2, 2),
    ]
    rows = counts.layers
    assert [(r.producers, r.inplace, r.input_nonzeros, r.output_nonzeros) for r in rows] == [e[1:] for e in expected]
    assert [row.name.strip(":") for row in rows] == [e[0].strip(":") for e in expected]
    assert [row.consumers for row in rows] == [(1,), (2,), (3,), (4,), (5,), (6,), ()]
    assert [row.functional for row in rows] == [False, False, True, False, True, True, False]
    assert [row.activation for row in rows] == [False, False, False, True, False, True, True]
    assert counts.firing_rate == 6 / 12
    [batch] = counts.batches
    # modules only: conv, bn, relu, relu
    assert (batch.input_elements, batch.input_nonzeros, batch.input_nonzeros_as_built) == (
        16,
        3 + 3 + 3 + 2,
        3 + 3 + 2 + 2,
    )
    assert (batch.output_elements, batch.output_nonzeros) == (16, 3 + 3 + 2 + 2)


def test_in_place_flags_are_read_as_built() -> None:
    x = torch.tensor([[1.0, -1, 2, -2]])
    [batch] = meter(nn.Sequential(nn.ReLU(), nn.Tanh(), nn.Hardtanh(inplace=True)), x - 0.0).batches
    # before: 4, 2, 2; after: 2, 2, 2
    assert (batch.input_nonzeros, batch.input_nonzeros_as_built, batch.input_nonzeros_all) == (8, 8, 6)


@pytest.mark.parametrize("first", [nn.ReLU(inplace=True), nn.Sequential(nn.Identity(), nn.ReLU(inplace=True))])
def test_a_network_that_overwrites_its_own_input(first: nn.Module) -> None:
    x = torch.tensor([[1.0, -1, 2, -2], [-1, -1, 0, 3]])
    counts = meter(nn.Sequential(first, nn.Identity()), x.clone(), floor=True)
    relu = next(row for row in counts.layers if row.op == "ReLU")
    assert (relu.inplace, relu.input_nonzeros, relu.output_nonzeros) == (True, 4 + 3, 2 + 1)
    floor = next(batch for batch in counts.batches if batch.batch == FLOOR_BATCH)
    before = 1 if isinstance(first, nn.ReLU) else 2  # calls that read the images as they came
    assert (floor.input_nonzeros, floor.output_nonzeros) == (7 * before, 7 * (before - 1))


class Erased(nn.Module):
    """Part of what a convolution made is erased, in one of three ways, before an activation works in place."""

    def __init__(self, how: str, inplace: bool) -> None:
        super().__init__()
        self.first, self.relu, self.second = nn.Conv2d(1, 2, 1), nn.ReLU(inplace), nn.Conv2d(2, 1, 1)
        self.how = how
        for parameter in self.parameters():
            nn.init.ones_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if self.how == "item":
            y[:, :1] = 0
        elif self.how == "view":
            y.view(y.shape)[:, :1] = 0
        return self.second(self.relu(y))


@pytest.mark.parametrize("how", ["item", "view"])
def test_what_changed_between_two_calls_is_not_counted_as_it_was(how: str) -> None:
    x = torch.ones(2, 1, 2, 3)
    for _ in range(2):
        counts = meter(Erased(how, inplace=False), x, x, x)
        rows = {row.name: row for row in counts.layers}
        assert (rows["relu"].input_nonzeros, rows["second"].input_nonzeros) == (3 * 12, 3 * 12)
    if how == "item":  # that is seen when it happens
        assert by_name(meter(Erased(how, inplace=True), x))["relu"].input_nonzeros == 12
    else:
        with pytest.raises(UserError, match="relu overwrites what no counted call has made: build it with inplace="):
            meter(Erased(how, inplace=True), x)


def test_nothing_is_overwritten_by_dropout_in_evaluation() -> None:
    x = torch.tensor([[1.0, 0, 3]])
    [row] = meter(nn.Sequential(nn.Dropout(inplace=True)), x).layers
    assert (row.input_nonzeros, row.output_nonzeros) == (2, 2)


def test_a_compiled_network_is_measured_as_it_is() -> None:
    model, x = Erased("", inplace=True), torch.randn(4, 1, 3, 3)
    compiled = torch.compile(model, backend="eager")
    compiled(x)
    assert meter(compiled, x, x, floor=True) == meter(model, x, x, floor=True)


def test_parameters_of_no_elements_and_of_other_types() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1))
    model[0].register_buffer("none", torch.empty(0))
    model[0].register_buffer("nothing", torch.empty(3, 0))
    model[0].register_buffer("complex", torch.tensor([0, 1j, 2]))
    model[0].register_buffer("integers", torch.tensor([0, 1, 2]))
    [row] = meter(model, torch.ones(1, 1, 2, 2), threshold=1.5).layers
    assert (row.buffer_elements, row.buffer_nonzeros) == (6, 2 + 2)  # what is no float counts where it is not 0


def test_a_tap_around_a_measurement_sees_the_network_alone() -> None:
    model, x = Erased("", inplace=True), torch.randn(4, 1, 3, 3)
    seen: list[str] = []
    with tap(model, lambda call: seen.append(call.name)):
        inside = meter(model, x, x)
    assert seen == ["first", "relu", "second"] * 2
    assert inside == meter(model, x, x)


class OverwritesTheSecond(nn.Module):
    """Works in place on the second of two tensors that one operation has made."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu((x - 2).chunk(2, 1)[1])


@pytest.mark.parametrize("inplace", [False, True])
def test_each_of_several_outputs_has_its_own_count(inplace: bool) -> None:
    x = torch.tensor([[2.0, 2, 1, 3]])  # less 2: 0, 0 and -1, 1
    [relu] = [row for row in meter(OverwritesTheSecond(inplace), x).layers if row.op == "ReLU"]
    assert (relu.input_nonzeros, relu.output_nonzeros) == (2, 1)


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.0, 0, 2, 1, 0, 2]))
        self.same = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        x = torch.cat([F.max_pool2d(left, 2), F.avg_pool2d(right, kernel_size=(1, 2), stride=2)], 1)
        return torch.sigmoid(self.same(x).mean((2, 3))) * self.scale


def test_functions_are_counted_too() -> None:
    x = torch.zeros(1, 6, 4, 4)
    x[0, :, 0, 0] = 1
    x[0, :3, 0, 3] = 1
    counts = meter(Functional(), x)
    rows = {f"{row.op} {row.call}": row for row in counts.layers}
    assert [(row.op, row.kind) for row in counts.layers] == [
        ("chunk", Kind.VIEW),
        ("chunk", Kind.VIEW),
        ("max_pool2d", Kind.MAX_POOL),
        ("avg_pool2d", Kind.AVG_POOL),
        ("cat", Kind.VIEW),
        ("Identity", Kind.VIEW),
        ("mean", Kind.AVG_POOL),
        ("sigmoid", Kind.ACTIVATION),
        ("mul", Kind.MULTIPLY),
    ]
    assert [row.output_nonzeros for row in counts.layers] == [6, 3, 6, 3, 9, 9, 6, 6, 4]
    assert (rows["max_pool2d 2"].window, rows["avg_pool2d 3"].window, rows["mean 6"].window) == (4, 2, 4)
    product = rows["mul 8"]
    assert (product.producers, product.input_elements) == ((7,), 6)
    assert (product.weight_elements, product.weight_nonzeros) == (6, 4)
    assert counts.uncounted == ()
    [batch] = counts.batches
    assert (batch.input_elements, batch.output_elements, batch.parameter_elements) == (24, 24, 0)  # the one module's


class Unknown(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.erfinv(torch.cross(x, self.value(x) * 0.0, dim=1))


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


def test_what_has_no_rule_is_named() -> None:
    x = torch.ones(2, 3)
    with pytest.raises(UserError, match=r"^no rule counts cross, erfinv: meter\.ignore_uncounted=true"):
        meter(Unknown(), x)
    counts = meter(Unknown(), x, ignore_uncounted=True)
    assert counts.uncounted == ("cross", "erfinv")
    assert [row.kind for row in counts.layers] == [Kind.VIEW, Kind.MULTIPLY, Kind.UNKNOWN, Kind.UNKNOWN]
    assert counts.layers[2].output_elements == 6


def test_a_module_of_ones_own_is_looked_into() -> None:
    rows = meter(nn.Sequential(Swish(), nn.ReLU()), torch.tensor([[1.0, 0, -3]])).layers
    assert [(row.name, row.op, row.output_nonzeros) for row in rows] == [
        ("0:sigmoid", "sigmoid", 3),
        ("0:mul", "mul", 2),
        ("1", "ReLU", 1),
    ]


def test_batches_are_numbered_and_the_last_may_be_smaller() -> None:
    model = nn.Sequential(nn.Linear(2, 3))
    x = torch.ones(5, 2)
    outputs: list[Tensor] = []
    counts = measure(model, [x[:2], x[2:4], x[4:]], MeterConfig(batch_size=2), "validation", on_output=outputs.append)
    assert [(b.split, b.batch, b.images) for b in counts.batches] == [
        ("validation", 0, 2),
        ("validation", 1, 2),
        ("validation", 2, 1),
        ("validation", FLOOR_BATCH, 2),
    ]
    assert [len(output) for output in outputs] == [2, 2, 1]
    [row] = counts.layers
    assert (row.images, row.input_elements, row.macs_valid) == (5, 10, 5 * 6)
    assert (counts.batch_size, counts.threshold) == (2, THRESHOLD)


def test_layers_and_batches_tell_the_same_totals_of_module_calls() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Residual(), nn.Sigmoid(), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 3 * 4, 5))
    with torch.no_grad():
        for module in (model[0].conv, model[0].bn, model[4]):
            module.weight.mul_(torch.rand_like(module.weight) < 0.5)
    x = torch.randn(5, 2, 3, 4) - 0.5
    counts = meter(model, x[:2], x[2:4], x[4:], floor=True)
    modules = [row for row in counts.layers if not row.functional]
    batches = [batch for batch in counts.batches if not batch.is_floor]
    assert (len(modules), len(counts.layers), len(batches)) == (8, 11, 3)
    for name in ("input_elements", "input_nonzeros", "output_elements", "output_nonzeros", "computations"):
        assert sum(getattr(row, name) for row in modules) == sum(getattr(batch, name) for batch in batches), name
    as_built = sum(row.output_nonzeros if row.inplace else row.input_nonzeros for row in modules)
    everywhere = sum(row.output_nonzeros if row.activation else row.input_nonzeros for row in modules)
    assert as_built == sum(batch.input_nonzeros_as_built for batch in batches)
    assert everywhere == sum(batch.input_nonzeros_all for batch in batches)
    assert len({as_built, everywhere, sum(row.input_nonzeros for row in modules)}) == 3
    [norm] = [row for row in modules if row.op == "BatchNorm2d"]
    for batch in batches:  # parameters are fetched for each
        assert batch.parameter_elements == sum(row.parameter_elements for row in modules)
        assert batch.parameter_nonzeros == sum(row.parameter_nonzeros for row in modules)
        assert (batch.statistics_elements, batch.statistics_nonzeros) == (
            norm.statistics_elements,
            norm.statistics_nonzeros,
        )
    assert {row.images for row in counts.layers} == {sum(batch.images for batch in batches)} == {counts.images}
    report = estimate(counts, replace(load_hardware("published"), batch_size=2))
    assert sum(layer.energy_pj for layer in report.layers) == pytest.approx(report.energy_uj_per_image * 1e6, rel=1e-12)
    assert sum(layer.dense_pj for layer in report.layers) == pytest.approx(report.dense_uj_per_image * 1e6, rel=1e-12)


@pytest.mark.parametrize("sizes", [[3], [1, 2], [2, 1, 1]])
def test_batches_of_another_size_are_refused(sizes: list[int]) -> None:
    with pytest.raises(UserError, match=r"meter\.batch_size=2 does not fit"):
        measure(nn.Sequential(nn.Linear(2, 3)), [torch.ones(size, 2) for size in sizes], MeterConfig(batch_size=2))


def test_nothing_to_measure_is_refused() -> None:
    with pytest.raises(UserError, match="no batches"):
        measure(nn.Sequential(nn.Linear(2, 3)), [], MeterConfig())


class Moody(nn.Module):
    """Does another thing each time."""

    def __init__(self, *plans: list[nn.Module]) -> None:
        super().__init__()
        self.plans = [nn.Sequential(*plan) for plan in plans]
        self.all = nn.ModuleList(self.plans)
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return self.plans[self.passes - 1](x)


@pytest.mark.parametrize("second", [[nn.Tanh()], [nn.ReLU(), nn.ReLU()], []])
def test_a_network_that_changes_from_batch_to_batch_is_refused(second: list[nn.Module]) -> None:
    with pytest.raises(UserError, match="other calls for other batches"):
        meter(Moody([nn.ReLU()], second), torch.ones(1, 2), torch.ones(1, 2))


def test_the_network_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.5)).train()
    model[1].eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    meter(model, torch.randn(4, 3, 5, 5), floor=True)
    assert [module.training for module in model] == [True, False, True, True]
    assert model[2].inplace
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


# --- diverged networks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["0.weight", "1.running_var"])
def test_state_that_is_not_finite_is_refused(name: str, value: float) -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
    model.state_dict()[name].flatten()[0] = value
    with pytest.raises(NonFiniteError, match=name):
        meter(model, torch.ones(1, 1, 1, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sign", [1, -1])
def test_an_overflow_that_relu_would_hide_is_refused(dtype: torch.dtype, sign: int) -> None:
    model = nn.Sequential(nn.Linear(2, 1), nn.ReLU()).to(dtype)
    largest = torch.finfo(dtype).max
    with torch.no_grad():
        model[0].weight.fill_(sign * largest)
    with pytest.raises(NonFiniteError, match="0 works with values that are not finite"):
        meter(model, torch.tensor([[2.0, 2.0]], dtype=dtype))


class OutOfPlace(nn.Module):
    """relu(x + norm(conv(x))), the sum made by the network itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x + self.norm(self.conv(x)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_later_batch_that_overflows_in_front_of_an_addition_is_refused(dtype: torch.dtype, sign: int) -> None:
    model = OutOfPlace().to(dtype)
    with torch.no_grad():
        model.conv.weight.fill_(sign * torch.finfo(dtype).max)
    fits, overflows = torch.full((1, 1, 1, 1), 0.5, dtype=dtype), torch.full((1, 1, 1, 1), 2.0, dtype=dtype)
    assert meter(model, fits).images == 1
    with pytest.raises(NonFiniteError):
        meter(model, fits, overflows)


def test_an_input_that_is_not_finite_is_refused() -> None:
    with pytest.raises(NonFiniteError):
        meter(nn.Sequential(nn.ReLU()), torch.tensor([[1.0, float("nan")]]))


def test_large_finite_values_are_counted() -> None:
    x = torch.tensor([[1e30, -1e38, 0.0]])  # their squares are not finite in float32
    [row] = meter(nn.Sequential(nn.ReLU()), x).layers
    assert (row.input_nonzeros, row.output_nonzeros) == (2, 1)


# --- parts of a split ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_parts_that_were_measured_apart_are_joined_to_what_is_measured_at_once(cut: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, stride=2), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(16, 5), nn.Softmax(1), nn.Linear(5, 3),
    )  # fmt: skip
    batches = [sparse((size, 2, 8, 8), seed, 0.4) for seed, size in enumerate([6, 6, 6, 5])]
    config = MeterConfig(batch_size=6)
    whole = measure(model, batches, config)
    parts = [measure(model, batches[:cut], config), measure(model, batches[cut:], config, floor=False)]
    assert joined(parts) == whole
    with torch.no_grad():
        model[0].weight[0] = 0.0
    with pytest.raises(ValueError, match="0 is not the same network's in all parts"):
        joined([parts[0], measure(model, batches[cut:], config, floor=False)])
