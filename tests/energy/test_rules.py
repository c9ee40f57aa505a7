"""Rules: marginal prices against differences of ``price``, widths of values by hand, and a rule added from outside."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import run_folders
from eat_runner.analysis.rows import hardware_of
from eat_runner.analysis.table import collate, is_priced
from eat_runner.config import MeterConfig
from eat_runner.config.hardware import (
    FORMATS,
    INPLACE,
    SCHEMAS,
    SKIPS,
    FusedHardware,
    HardwareConfig,
    OperationPrices,
    PublishedHardware,
)
from eat_runner.energy.counts import BatchCounts, Counts, Kind, LayerCounts, with_consumers
from eat_runner.energy.estimate import estimate
from eat_runner.energy.hardware import builtin_hardware, load_hardware
from eat_runner.energy.meter import measure
from eat_runner.energy.rules import RULES
from eat_runner.energy.rules.base import EnergyReport, LayerEnergy, MarginalPrices
from eat_runner.energy.rules.storage import slope_bits
from eat_runner.errors import UserError
from eat_runner.records import RunFolder

FUSED_FILES = [name for name in builtin_hardware() if name != "published"]


def marginal(counts: Counts, hardware: HardwareConfig) -> MarginalPrices:
    return RULES[hardware.rule].marginal_pj(counts, hardware)


def energy_pj(counts: Counts, hardware: HardwareConfig) -> float:
    """Of an image; in units of one multiply-accumulate where prices are relative."""
    report = RULES[hardware.rule].price(counts, hardware)
    if report.energy_uj_per_image is None:
        return sum(layer.energy_pj for layer in report.layers)
    return report.energy_uj_per_image * 1e6


def test_every_rule_has_a_schema_and_a_file() -> None:
    assert set(RULES) == set(SCHEMAS) == {load_hardware(name).rule for name in builtin_hardware()}


# --- marginal prices: differences of price -------------------------------------------------------------------------

BATCHES = (100, 20)  # images
IMAGES = sum(BATCHES)


@dataclass
class Node:
    """A call by hand, its numbers those of one image. weight: elements and non-zeros. products: valid, with an input
    that is not zero, with both operands so. module: False for a function."""

    op: str
    kind: Kind
    producers: tuple[int, ...]
    elements: int
    nonzeros: float
    weight: tuple[int, float] = (0, 0)
    products: tuple[int, float, float] = (0, 0, 0)
    module: bool = True
    inplace: bool = False
    activation: bool = False
    computations: int = 0
    read: list[float] = field(default_factory=list)  # non-zeros of each input


IMAGE = (3_000, 3_000)  # elements, non-zeros


def network() -> list[Node]:
    """A stem in DRAM, a residual block, halves of a tensor, a concatenation, a product of two activations, a batch norm
    that stands alone, and a classifier behind a Flatten."""
    relu = {"inplace": True, "activation": True}
    return [
        Node("Conv2d", Kind.CONV, (-1,), 2_000_000, 2e6, (5_000, 2_000), (400_000, 3e5, 2e5), computations=450_000),
        Node("BatchNorm2d", Kind.BATCH_NORM, (0,), 2_000_000, 2e6, computations=8_000_000),
        Node("ReLU", Kind.RELU, (1,), 2_000_000, 8e5, **relu),  # 2: its group's, in DRAM, density 0.4
        Node("Conv2d", Kind.CONV, (2,), 20_000, 19_000, (100_000, 5_000), (700_000, 2e5, 9e4), computations=800_000),
        Node(
            "ReLU", Kind.RELU, (3,), 20_000, 1_000, activation=True
        ),  # 4: density 0.05, run lengths where bits are few
        Node("Conv2d", Kind.CONV, (4,), 20_000, 19_500, (4_000, 1_000), (300_000, 2e4, 7e3), computations=300_000),
        Node("add", Kind.ADD, (5, 4), 20_000, 19_600, module=False),
        Node("ReLU", Kind.RELU, (6,), 20_000, 6_000, **relu),  # 7: density 0.3
        Node("chunk", Kind.VIEW, (7,), 10_000, 2_500, module=False),
        Node("chunk", Kind.VIEW, (7,), 10_000, 3_500, module=False),
        Node("Conv2d", Kind.CONV, (8,), 10_000, 4_000, (3_000, 900), (90_000, 3e4, 8e3), computations=90_000),  # 10
        Node("cat", Kind.VIEW, (10, 9), 20_000, 7_500, module=False),
        Node("BatchNorm2d", Kind.BATCH_NORM, (11,), 20_000, 20_000, (600, 600), computations=80_000),
        Node("Sigmoid", Kind.ACTIVATION, (12,), 20_000, 5_000, activation=True),  # 13
        Node("matmul", Kind.LINEAR, (13, 7), 20_000, 3_000, (2_000, 600), (500_000, 9e4, 3e4), module=False),  # 14
        Node("Flatten", Kind.VIEW, (14,), 20_000, 3_000),
        Node("Linear", Kind.LINEAR, (15,), 10_000, 4_000, (200_000, 30_000), (200_000, 3e4, 5e3), computations=200_000),
    ]


def readings(nodes: Sequence[Node]) -> None:
    for node in nodes:
        node.read = [IMAGE[1] if maker < 0 else nodes[maker].nonzeros for maker in node.producers]


def moved(call: int | None = None, step: float = 0, weight: int | None = None) -> list[Node]:
    """The network with ``step`` more non-zeros in what ``call`` made, or in the weight of ``weight``: whoever reads
    them reads more, views show more, and products grow as they did so far for each non-zero."""
    nodes = network()
    readings(nodes)
    more = dict.fromkeys(range(len(nodes)), 0.0)
    if call is not None:
        more[call] = step
    for number, node in enumerate(nodes):
        valid, some, both = node.products
        for operand, maker in enumerate(node.producers):
            change = more.get(maker, 0.0)
            if node.kind == Kind.VIEW:
                more[number] += change * min(1, node.elements / sum(nodes[made].elements for made in node.producers))
            if operand == 0:
                some *= 1 + change / node.read[0]
            both *= 1 + change / node.read[operand]
        if number == weight:
            both *= 1 + step / node.weight[1]
            node.weight = node.weight[0], node.weight[1] + step
        node.products = valid, some, both
    for number, node in enumerate(nodes):
        node.nonzeros += more[number]
    readings(nodes)
    return nodes


def counts_of(nodes: Sequence[Node]) -> Counts:
    """Rows and batches of IMAGES such images; floats, where a count would be a whole number."""
    rows: list[Any] = []
    for call, node in enumerate(nodes):
        input_elements = sum(IMAGE[0] if maker < 0 else nodes[maker].elements for maker in node.producers)
        numbers = {
            "input_elements": input_elements,
            "input_nonzeros": sum(node.read),
            "output_elements": node.elements,
            "output_nonzeros": node.nonzeros,
            "computations": node.computations,
            "macs_valid": node.products[0],
            "macs_input_nonzero": node.products[1],
            "macs_both_nonzero": node.products[2],
        }
        rows.append(
            LayerCounts(
                split="test",
                call=call,
                name=f"{node.op}{call}",
                op=node.op,
                kind=node.kind,
                producers=node.producers,
                functional=not node.module,
                inplace=node.inplace,
                activation=node.activation,
                images=IMAGES,
                weight_elements=node.weight[0],
                weight_nonzeros=node.weight[1],
                **{name: IMAGES * number for name, number in numbers.items()},
            )
        )
    modules = [row for row in rows if not row.functional]

    def batch(number: int, images: int) -> BatchCounts:
        part = images / IMAGES
        return BatchCounts(
            split="test",
            batch=number,
            images=images,
            input_elements=part * sum(row.input_elements for row in modules),
            input_nonzeros=part * sum(row.input_nonzeros for row in modules),
            input_nonzeros_as_built=part * sum(r.output_nonzeros if r.inplace else r.input_nonzeros for r in modules),
            input_nonzeros_all=part * sum(r.output_nonzeros if r.activation else r.input_nonzeros for r in modules),
            output_elements=part * sum(row.output_elements for row in modules),
            output_nonzeros=part * sum(row.output_nonzeros for row in modules),
            parameter_elements=sum(row.weight_elements for row in modules),
            parameter_nonzeros=sum(row.weight_nonzeros for row in modules),
            statistics_elements=4_000,
            statistics_nonzeros=3_000,
            computations=part * sum(row.computations for row in modules),
        )

    return Counts(with_consumers(rows), [batch(number, images) for number, images in enumerate(BATCHES)])


def step_of(hardware: HardwareConfig) -> int:
    """So many more non-zeros an image that run lengths show their mean, for a half of a tensor too: twice the longest
    run of zeros."""
    return 2 * 2 ** max(hardware.run_bits) if isinstance(hardware, FusedHardware) else 64


def differences(hardware: HardwareConfig, **calls: int) -> float:
    """pJ of one more non-zero, by pricing the network with some more."""
    readings(plain := network())
    more = energy_pj(counts_of(moved(step=step_of(hardware), **calls)), hardware)
    return (more - energy_pj(counts_of(plain), hardware)) / step_of(hardware)


def at_the_cap(elements: float, nonzeros: float, hardware: FusedHardware) -> bool:
    """Whether a tensor takes as much as a dense one in this format, which then has no slope in ``price``."""
    bits = hardware.bits
    bitmask = nonzeros * bits + elements
    run_length = min((nonzeros + (elements - nonzeros) / 2**run) * (bits + run) for run in hardware.run_bits)
    best = {"bitmask": bitmask, "run_length": run_length, "auto": min(bitmask, run_length)}[hardware.format]
    return best >= elements * bits


@pytest.mark.parametrize("skip", SKIPS)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", FUSED_FILES)
def test_fused_prices_are_the_slope_of_the_energy(name: str, format: str, skip: str) -> None:
    hardware = replace(load_hardware(name), format=format, skip=skip)
    prices = marginal(counts_of(moved()), hardware)
    nodes = network()
    # of conv, batch norm and ReLU only the result is stored; views are no tensors; the Sigmoid is in no group
    assert list(prices.activations) == [2, 4, 7, 10, 12, 13, 14, 16]
    assert list(prices.weights) == [0, 3, 5, 10, 12, 14, 16]
    compared = 0
    for call, price in prices.activations.items():
        if format == "dense" or not at_the_cap(nodes[call].elements, nodes[call].nonzeros, hardware):
            assert price == pytest.approx(differences(hardware, call=call), rel=1e-6, abs=1e-9), call
            compared += 1
    for call, price in prices.weights.items():
        if format == "dense" or not at_the_cap(*nodes[call].weight, hardware):
            assert price == pytest.approx(differences(hardware, weight=call), rel=1e-6, abs=1e-9), call
            compared += 1
    assert compared >= 13  # of 15: batch norm's output and scale are dense


@pytest.mark.parametrize("inplace", INPLACE)
@pytest.mark.parametrize("repeats", [1, 10])
def test_published_prices_are_the_slope_of_the_energy(inplace: str, repeats: int) -> None:
    hardware = replace(load_hardware("published"), inplace=inplace, bn_statistics_repeats=repeats)
    prices = marginal(counts_of(moved()), hardware)
    assert list(prices.activations) == [0, 1, 2, 3, 4, 5, 6, 7, 10, 12, 13, 14, 16]
    assert list(prices.weights) == [0, 3, 5, 10, 12, 14, 16]
    for call, price in prices.activations.items():
        assert price == pytest.approx(differences(hardware, call=call), rel=1e-6, abs=1e-6), call
    for call, price in prices.weights.items():
        assert price == pytest.approx(differences(hardware, weight=call), rel=1e-6), call


# --- marginal prices: by hand --------------------------------------------------------------------------------------

# 8-bit values; a bit costs 1 pJ in the buffer, 10 in DRAM, a weight's bit 10 / 2 + 1; a product 2 + 1 + 1, with 4-bit
# weights 0.5 + 0.25 + 1
ROUND = FusedHardware(
    bits=8,
    buffer_bits=1000,
    buffer_pj_per_bit=1.0,
    dram_pj_per_bit=10.0,
    multiply_pj=2.0,
    accumulate_pj=1.0,
    mac_pj_by_bits={4: OperationPrices(multiply_pj=0.5, accumulate_pj=0.25, add_pj=0.125)},
    register_pj_per_mac=1.0,
    weight_reuse=2,
    format="bitmask",
)


def call(number: int, op: str, kind: Kind, outputs: tuple[int, int], **values: Any) -> LayerCounts:
    """A call of two images that reads the one before; outputs: elements and non-zeros of both images."""
    return LayerCounts(
        **{"producers": (number - 1,), "name": f"{op}{number}", "images": 2} | values,
        split="test",
        call=number,
        op=op,
        kind=kind,
        output_elements=outputs[0],
        output_nonzeros=outputs[1],
    )


def chain(**last: Any) -> Counts:
    """Convolution and ReLU, then a convolution that reads 20 non-zeros an image."""
    numbers = {"weight_nonzeros": 12, "macs_valid": 900, "macs_input_nonzero": 400, "macs_both_nonzero": 240}
    rows = [
        call(0, "Conv2d", Kind.CONV, (160, 150), input_elements=40, input_nonzeros=40),
        call(1, "ReLU", Kind.RELU, (160, 40), activation=True, inplace=True, input_elements=160, input_nonzeros=150),
        call(
            2,
            "Conv2d",
            Kind.CONV,
            (80, 20),
            input_elements=160,
            input_nonzeros=40,
            weight_elements=64,
            **numbers | last,
        ),
    ]
    return Counts(with_consumers(rows), [BatchCounts(split="test", batch=0, images=2)], batch_size=2)


@pytest.mark.parametrize(
    ("skip", "activation_macs", "weight_macs"),
    [("both", 120 / 20, 120 / 12), ("input", 200 / 20, 0), ("none", 0, 0)],
)
def test_a_chain_by_hand(skip: str, activation_macs: float, weight_macs: float) -> None:
    prices = marginal(chain(), replace(ROUND, skip=skip))
    # 80 values of 8 bits are in the buffer: written and read once, 8 bits each; the last one is written alone
    assert prices.activations == pytest.approx({1: 8 * 1 + 8 * 1 + 4 * activation_macs, 2: 8})
    assert prices.weights == pytest.approx({2: 8 * 6 + 4 * weight_macs})


def test_a_tensor_in_dram_costs_what_dram_costs() -> None:
    assert marginal(chain(), replace(ROUND, buffer_bits=639, skip="none")).activations == {1: 160, 2: 8}


@pytest.mark.parametrize(
    ("format", "nonzeros", "slope"),
    [
        ("bitmask", 10, 8),
        ("bitmask", 64, 8),  # as large as a dense one, and still the way to the break-even
        ("run_length", 10, 13 * 31 / 32),
        ("run_length", 64, 13 * 31 / 32),
        ("dense", 10, 0),
        ("auto", 2, 13 * 31 / 32),  # (2 + 1 + 1) x 13 = 52 bits, with a bitmask 80
        ("auto", 20, 8),  # (20 + 1 + 1) x 13 = 286, with a bitmask 224
        ("auto", 64, 8),
    ],
)
def test_the_slope_of_the_format_in_force(format: str, nonzeros: int, slope: float) -> None:
    assert slope_bits(64, nonzeros, 8, format) == slope


@pytest.mark.parametrize(
    ("format", "nonzeros", "slope"),
    [
        # of 640 values: 5-bit runs (2 + 19 + 1) x 13 = 286, 8-bit runs (2 + 2 + 1) x 16 = 80; a bitmask 656
        ("run_length", 2, 16 * 255 / 256),
        ("auto", 2, 16 * 255 / 256),
        # (64 + 18 + 1) x 13 = 1079, (64 + 2 + 1) x 16 = 1072; 1152
        ("auto", 64, 16 * 255 / 256),
        # (80 + 17 + 1) x 13 = 1274, (80 + 2 + 1) x 16 = 1328; 1280
        ("auto", 80, 13 * 31 / 32),
        ("auto", 100, 8),  # (100 + 16 + 1) x 13 = 1521; 1440
        ("run_length", 100, 13 * 31 / 32),
    ],
)
def test_the_slope_of_the_best_runs(format: str, nonzeros: int, slope: float) -> None:
    assert slope_bits(640, nonzeros, 8, format, [5, 8]) == slope


@pytest.mark.parametrize(("weight_buffer_bits", "pj_per_bit"), [(0, 6), (159, 6), (160, 1)])
def test_a_weight_that_stays_on_chip_costs_the_buffer(weight_buffer_bits: int, pj_per_bit: int) -> None:
    # 12 x 8 + 64 = 160 bits are stored; 10 products of an image for each, 4 pJ
    prices = marginal(chain(), replace(ROUND, weight_buffer_bits=weight_buffer_bits))
    assert prices.weights == pytest.approx({2: 8 * pj_per_bit + 4 * 10})
    assert prices.activations == marginal(chain(), ROUND).activations


def test_nothing_is_known_of_a_tensor_without_non_zeros_but_its_storage() -> None:
    counts = chain(macs_input_nonzero=0, macs_both_nonzero=0, weight_nonzeros=0)
    counts.layers[1] = replace(counts.layers[1], output_nonzeros=0)
    prices = marginal(counts, ROUND)
    assert (prices.activations[1], prices.weights[2]) == (16, 48)


def test_widths_of_their_own_have_slopes_of_their_own() -> None:
    counts = chain(weight_bits=4)
    counts.layers[1] = replace(counts.layers[1], output_bits=2)
    prices = marginal(counts, replace(ROUND, skip="none"))
    assert prices == MarginalPrices({1: 2 + 2, 2: 8}, {2: 4 * 6})


def test_a_view_that_adds_zeros_shows_a_tensor_once() -> None:
    conv, relu, reader = chain().layers
    pad = call(2, "ZeroPad2d", Kind.VIEW, (320, 40), input_elements=160, input_nonzeros=40)
    reader = replace(reader, call=3, producers=(2,), input_elements=320)
    counts = replace(chain(), layers=with_consumers([conv, relu, pad, reader]))
    assert marginal(counts, replace(ROUND, skip="none")).activations == {1: 8 + 8, 3: 8}
    # an output and an input of the ReLU (in place), of the padding and of the convolution: four readings, two writings
    published = PublishedHardware(dram_pj_per_value=10.0, multiply_pj=0.0, batch_size=2)
    assert marginal(counts, published).activations == {0: 10, 1: 10 * (2 + 2 + 1), 3: 10}


@pytest.mark.parametrize(
    ("inplace", "convolution", "activation"),
    # convolution: an output, and an input of the ReLU unless that is overwritten. ReLU: an output, an input of the
    # convolution, and an input of its own if it is counted after it was overwritten
    [("as_built", (1, 0), (1, 2)), ("all", (1, 0), (1, 2)), ("none", (1, 1), (1, 1))],
)
def test_published_by_hand(inplace: str, convolution: tuple[int, int], activation: tuple[int, int]) -> None:
    batch = BatchCounts(
        split="test",
        batch=0,
        images=2,
        input_elements=400,
        input_nonzeros=200,
        input_nonzeros_as_built=100,
        input_nonzeros_all=100,
        parameter_elements=50,
        parameter_nonzeros=20,
        statistics_elements=10,
        statistics_nonzeros=10,
        computations=4_800,
    )
    hardware = PublishedHardware(dram_pj_per_value=10.0, multiply_pj=0.5, inplace=inplace, batch_size=2)
    prices = marginal(replace(chain(), batches=[batch]), hardware)
    # 2,400 pJ of computations; parameters 30 of 60. An input more is worth 2400 x 1/2 / 400 = 3 pJ
    assert prices.activations == pytest.approx(
        {0: 10 * sum(convolution) + 3 * convolution[1], 1: 10 * sum(activation) + 3 * activation[1], 2: 10}
    )
    # a parameter more, for two images: 10 pJ and 2400 / 60 x the density of the inputs
    assert prices.weights == pytest.approx({2: (10 + 40 * (200 if inplace == "none" else 100) / 400) / 2})


# --- marginal prices: flipping values of a network -----------------------------------------------------------------


class Overwrite:
    """A hook that counts as a part of the layer, which then makes another output."""

    is_part_of_module = True

    def __init__(self, network: "Checkered") -> None:
        self.network = network

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return self.network.overwritten(output)


class Checkered(nn.Module):
    """Convolution, ReLU, convolution. Whatever the first one computes, its output is put to 1 at every other position,
    -1 elsewhere, and 1 at ``flipped`` (channel, row, column)."""

    def __init__(self, padding_mode: Any, weight_nonzero: Tensor) -> None:
        super().__init__()
        self.first, self.relu = nn.Conv2d(1, 4, 1), nn.ReLU(inplace=True)
        self.second = nn.Conv2d(4, 3, 3, padding=1, padding_mode=padding_mode, bias=False)
        self.flipped: tuple[int, int, int] | None = None
        with torch.no_grad():
            self.second.weight.copy_(weight_nonzero)
        row, column = torch.arange(6)[:, None], torch.arange(6)
        self.pattern = torch.where((row + column) % 2 == 0, 1.0, -1.0)
        self.first.register_forward_hook(Overwrite(self))

    def overwritten(self, output: Tensor) -> Tensor:
        output = self.pattern.expand_as(output).clone()
        if self.flipped is not None:
            channel, row, column = self.flipped
            output[:, channel, row, column] = 1
        return output

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.relu(self.first(x)))


def metered_pj(model: nn.Module, hardware: HardwareConfig) -> float:
    return energy_pj(metered(model), hardware)


def metered(model: nn.Module) -> Counts:
    return measure(model, [torch.ones(2, 1, 6, 6)], MeterConfig(batch_size=2), floor=False)


def sparse_weight() -> Tensor:
    """A third of all weights, another number for each input channel."""
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(3, 4, 3, 3, generator=generator) < 1 / 3).float()


# where the mean over non-zeros is the mean over zeros: padding that wraps around makes all positions alike; with zeros
# for padding and all weights, the pattern is its own mirror image with zeros and non-zeros exchanged
NETWORKS = {"circular": sparse_weight(), "zeros": torch.ones(3, 4, 3, 3)}
METERED = ["published", "fused_45nm", "fused_7nm_int8"]


@pytest.mark.parametrize("padding_mode", NETWORKS)
@pytest.mark.parametrize("name", METERED)
def test_an_activation_that_is_flipped_costs_its_price_on_average(name: str, padding_mode: str) -> None:
    hardware = replace(load_hardware(name), batch_size=2)
    model = Checkered(padding_mode, NETWORKS[padding_mode])
    before = metered_pj(model, hardware)
    price = marginal(metered(model), hardware).activations[1]
    changes: list[float] = []
    for channel, row, column in torch.cartesian_prod(torch.arange(4), torch.arange(6), torch.arange(6)).tolist():
        if (row + column) % 2:
            model.flipped = channel, row, column
            changes.append(metered_pj(model, hardware) - before)
    assert len(changes) == 4 * 18
    assert price == pytest.approx(sum(changes) / len(changes), rel=1e-9)
    # one by one they differ where products are counted
    assert (max(changes) > min(changes) * (1 + 1e-6)) == (name != "published")


@pytest.mark.parametrize("name", METERED)
def test_a_weight_that_is_flipped_costs_its_price_on_average(name: str) -> None:
    hardware = replace(load_hardware(name), batch_size=2)
    model = Checkered("circular", sparse_weight())
    before = metered_pj(model, hardware)
    price = marginal(metered(model), hardware).weights[2]
    changes: list[float] = []
    for position in (sparse_weight() == 0).nonzero().tolist():
        weight = sparse_weight()
        weight[tuple(position)] = 1
        changes.append(metered_pj(Checkered("circular", weight), hardware) - before)
    assert len(changes) > 50
    assert price == pytest.approx(sum(changes) / len(changes), rel=1e-9)


# --- widths --------------------------------------------------------------------------------------------------------

PRICES = replace(ROUND, weight_reuse=1, register_pj_per_mac=0.0, input_bits=4)
CONV = replace(
    call(0, "Conv2d", Kind.CONV, (40, 10)),
    images=1,
    input_elements=20,
    input_nonzeros=20,
    weight_elements=10,
    weight_nonzeros=3,
    bias_elements=4,
    bias_nonzeros=1,
)
LINEAR = replace(call(1, "Linear", Kind.LINEAR, (5, 5)), images=1, input_elements=40, input_nonzeros=10)
INPUT_PJ = 10 * 20 * 4  # 4 bits a value, in DRAM


def layers(*rows: LayerCounts, hardware: FusedHardware = PRICES) -> list[LayerEnergy]:
    counts = Counts(with_consumers(rows), [BatchCounts(split="test", batch=0, images=1)])
    return estimate(counts, hardware).layers


def test_the_width_of_weights() -> None:
    # 8 bits: 3 x 8 + 10 = 34 of 80; bias 1 x 8 + 4 = 12 of 32. A weight's bit costs 11
    [plain] = layers(CONV)
    assert plain.energy_pj == INPUT_PJ + (10 * 8 + 40) + 11 * (34 + 12)
    assert plain.dense_pj == INPUT_PJ + 320 + 11 * (80 + 32)
    # 4 bits: 3 x 4 + 10 = 22 of 40; the bias has 32 bits, 1 x 32 + 4 = 36 of 128
    [narrow] = layers(replace(CONV, weight_bits=4))
    assert narrow.energy_pj == INPUT_PJ + (10 * 8 + 40) + 11 * (22 + 36)
    assert narrow.dense_pj == INPUT_PJ + 320 + 11 * (40 + 128)


@pytest.mark.parametrize(("bits", "mac_pj", "add_pj"), [(0, 3, 2), (8, 3, 2), (4, 0.75, 0.125)])
def test_the_width_of_weights_picks_the_prices_of_operations(bits: int, mac_pj: float, add_pj: float) -> None:
    products = {"weight_elements": 0, "bias_elements": 0, "macs_valid": 100, "macs_both_nonzero": 30}
    conv = replace(CONV, weight_bits=bits, **products)
    second = replace(conv, call=1, producers=(0,))
    added = replace(call(2, "add", Kind.ADD, (40, 10)), images=1, producers=(1, 0))
    pool = replace(call(3, "MaxPool2d", Kind.MAX_POOL, (10, 10)), images=1, window=4)
    found = layers(conv, second, added, pool, hardware=replace(PRICES, add_pj=2.0))
    assert [layer.op for layer in found] == ["Conv2d", "Conv2d+add", "MaxPool2d"]
    # 40 values, 10 of them not zero, take 10 x 8 + 40 = 120 bits; the pool has no weights and keeps the file's price
    assert [layer.energy_pj for layer in found] == [
        INPUT_PJ + 120 + 30 * mac_pj,
        120 + 120 + 120 + 30 * mac_pj + 40 * add_pj,
        120 + 80 + 10 * 3 * 2,
    ]
    assert [layer.dense_pj for layer in found] == [
        INPUT_PJ + 320 + 100 * mac_pj,
        3 * 320 + 100 * mac_pj + 40 * add_pj,
        320 + 80 + 10 * 3 * 2,
    ]


def test_the_width_of_weights_is_in_the_marginal_prices() -> None:
    # 120 products of an image: 20 non-zeros come in, 12 weights; 0.5 + 0.25 + 1 pJ a product, 4 bits a weight
    prices = marginal(chain(weight_bits=4), ROUND)
    assert prices.activations == pytest.approx({1: 8 + 8 + 1.75 * 120 / 20, 2: 8})
    assert prices.weights == pytest.approx({2: 4 * 6 + 1.75 * 120 / 12})


def test_a_width_without_prices_is_refused() -> None:
    for rule in (RULES["fused"].price, RULES["fused"].marginal_pj):
        with pytest.raises(UserError, match="no price for layers of 2-bit weights: choose one of 8, 4 bits"):
            rule(chain(weight_bits=2), ROUND)


def test_the_width_of_a_folded_bias() -> None:
    norm = replace(call(1, "BatchNorm2d", Kind.BATCH_NORM, (40, 10)), images=1, statistics_elements=8)
    # 4 channels of 32 bits, all of them
    [group] = layers(replace(CONV, weight_bits=4), norm)
    assert group.energy_pj == INPUT_PJ + (10 * 8 + 40) + 11 * (22 + 128)


def test_what_a_call_writes_is_read_in_its_width() -> None:
    conv, linear = layers(replace(CONV, output_bits=4), LINEAR)
    # 10 x 4 + 40 = 80 bits, dense 160; the linear layer writes 5 x 8
    assert conv.energy_pj == INPUT_PJ + 80 + 11 * (34 + 12)
    assert conv.dense_pj == INPUT_PJ + 160 + 11 * (80 + 32)
    assert (linear.energy_pj, linear.dense_pj) == (80 + 40, 160 + 40)


@pytest.mark.parametrize(("buffer_bits", "pj_per_bit"), [(160, 1), (159, 10)])
def test_a_tensor_lives_where_its_own_width_fits(buffer_bits: int, pj_per_bit: int) -> None:
    hardware = replace(PRICES, buffer_bits=buffer_bits)
    _, linear = layers(replace(CONV, output_bits=4), LINEAR, hardware=hardware)
    assert linear.energy_pj == pj_per_bit * 80 + 40


def test_the_hardwares_own_width_said_twice() -> None:
    assert layers(replace(CONV, output_bits=8), LINEAR) == layers(CONV, LINEAR)
    assert layers(replace(CONV, bias_elements=0, weight_bits=8)) == layers(replace(CONV, bias_elements=0))


@pytest.mark.parametrize("widths", [{"weight_bits": 8}, {"output_bits": 4}, {"weight_bits": 32, "output_bits": 16}])
def test_published_refuses_other_widths(widths: dict[str, int]) -> None:
    hardware = PublishedHardware(batch_size=2)
    counts = chain(**widths)
    for rule in (RULES["published"].price, RULES["published"].marginal_pj):
        with pytest.raises(UserError) as error:
            rule(counts, hardware)
        bits = next(bits for bits in widths.values() if bits != 32)
        assert str(error.value) == (
            f"hardware published prices 32-bit values, Conv2d2 has {bits} bits: use hardware with rule: fused"
        )
    same = chain(weight_bits=32, output_bits=32)
    assert marginal(same, hardware) == marginal(chain(), hardware)


def test_published_refuses_other_widths_of_a_run_though_it_reads_no_layers(tmp_path: Path) -> None:
    folder = run_folders.write_run(tmp_path, run_folders.config(0.0))
    narrow = run_folders.write_run(tmp_path, run_folders.config(1.0))
    counts = narrow.read_counts()
    narrow.write_counts(replace(counts, layers=[replace(counts.layers[0], weight_bits=8), *counts.layers[1:]]))
    narrow.write_record(narrow.read_record())
    assert folder.read_counts(layers=False).layers == []
    runs = collate(tmp_path, PublishedHardware())
    assert is_priced(runs).tolist() == [True, False]
    assert runs["reason"][0] == ""
    assert "layer1.0.conv has 8 bits" in runs["reason"][1]
    int8 = OperationPrices(multiply_pj=1.0, accumulate_pj=1.0, add_pj=1.0)
    assert is_priced(collate(tmp_path, FusedHardware(dram_pj_per_bit=1.0, mac_pj_by_bits={8: int8}))).all()


def test_a_file_has_columns_of_widths_only_where_a_row_has_one(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_counts(chain())
    assert "bits" not in folder.layers.read_text().splitlines()[0]
    wide = replace(chain(), layers=[CONV, replace(CONV, call=1, output_bits=4)])
    folder.write_counts(wide)
    assert folder.layers.read_text().splitlines()[0].endswith(",macs_both_nonzero,output_bits")
    folder.write_record(run_folders.RunRecord(run_id="x", meter={"batch_size": 2, "threshold": wide.threshold}))
    assert folder.read_counts().layers == wide.layers
    assert folder.read_counts(layers=False).layers == wide.layers


# --- a rule from outside -------------------------------------------------------------------------------------------


@dataclass(kw_only=True, slots=True)
class FlatHardware:
    """Every value that moves costs the same."""

    name: str = "flat"
    rule: str = "flat"
    process_nm: int = 28
    value_pj: float = 1.0
    scales: list[float] = field(default_factory=list)
    batch_size: int | None = None
    threshold: float = 2.0**-126
    relative: bool = False
    note: str = ""
    source: dict[str, str] = field(default_factory=dict)
    ranges: dict[str, Any] = field(default_factory=dict)
    skips_zeros: bool = True

    def check(self) -> None:
        if self.value_pj <= 0:
            raise UserError("hardware.value_pj must be above 0")

    def check_bits(self, bits: int) -> None:
        pass


class Flat:
    reads_layers = False

    def price(self, counts: Counts, hardware: FlatHardware) -> EnergyReport:
        batches = [batch for batch in counts.batches if not batch.is_floor]
        values = sum(batch.output_elements for batch in batches)
        nonzeros = sum(batch.output_nonzeros for batch in batches)
        energies = (hardware.value_pj * total / counts.images / 1e6 for total in (nonzeros, values))
        return EnergyReport(hardware.name, nonzeros / values, None, *energies)

    def marginal_pj(self, counts: Counts, hardware: FlatHardware) -> MarginalPrices:
        return MarginalPrices({row.call: hardware.value_pj for row in counts.layers}, {})


def test_a_rule_from_outside_prices_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, "flat", Flat())
    monkeypatch.setitem(SCHEMAS, "flat", FlatHardware)
    (tmp_path / "mine.yaml").write_text("rule: flat\nvalue_pj: 3\nscales: [1, 2]\nsource: {value_pj: me}\n")
    hardware = load_hardware(str(tmp_path / "mine.yaml"))
    folder = run_folders.write_run(tmp_path, run_folders.config(1.0, hardware=hardware))
    assert hardware_of([tmp_path]) == hardware
    [run] = collate(tmp_path, hardware).itertuples()
    batches = [batch for batch in folder.read_counts().select("test").batches if batch.batch >= 0]
    nonzeros, values = (sum(getattr(b, name) for b in batches) for name in ("output_nonzeros", "output_elements"))
    assert (run.hardware, run.energy_ratio) == ("mine", pytest.approx(nonzeros / values))
    assert run.energy_uj_per_image == pytest.approx(3 * nonzeros / 400 / 1e6)
    (tmp_path / "mine.yaml").write_text("rule: flat\nbitz: 3\n")
    with pytest.raises(UserError, match=r"mine\.yaml: .*'bitz' not in 'FlatHardware'"):
        load_hardware(str(tmp_path / "mine.yaml"))
