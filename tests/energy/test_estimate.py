"""Counts x prices, each expectation worked out by hand beside it."""

from dataclasses import replace
from typing import Any

import pytest

from eat_runner.config.hardware import FusedHardware, PublishedHardware
from eat_runner.energy.counts import FLOOR_BATCH, BatchCounts, Counts, Kind, LayerCounts, with_consumers
from eat_runner.energy.estimate import estimate
from eat_runner.energy.rules.base import EnergyReport
from eat_runner.energy.rules.storage import stored_bits
from eat_runner.errors import UserError

# round numbers: 8-bit values; a bit costs 1 pJ in the buffer (up to 1000 bits), 10 in DRAM; a product 2 + 1
PRICES = FusedHardware(
    name="round",
    bits=8,
    input_bits=4,
    buffer_bits=1000,
    buffer_pj_per_bit=1.0,
    dram_pj_per_bit=10.0,
    multiply_pj=2.0,
    accumulate_pj=1.0,
    add_pj=0.5,
    activation_pj=7.0,
    format="bitmask",
)
KINDS = {"Conv2d": Kind.CONV, "Linear": Kind.LINEAR, "BatchNorm2d": Kind.BATCH_NORM, "ReLU": Kind.RELU, "add": Kind.ADD}


def call(number: int, op: str, inputs: tuple[int, int], outputs: tuple[int, int], **values: Any) -> LayerCounts:
    """One image's call that follows the one before; inputs, outputs: (elements, non-zeros)."""
    defaults: dict[str, Any] = {"producers": (number - 1,), "images": 1, "name": f"call{number}"}
    return LayerCounts(
        split="test",
        call=number,
        op=op,
        **({"kind": KINDS.get(op)} | defaults | values),
        input_elements=inputs[0],
        input_nonzeros=inputs[1],
        output_elements=outputs[0],
        output_nonzeros=outputs[1],
    )


def price(*rows: LayerCounts, hardware: FusedHardware = PRICES) -> EnergyReport:
    images = rows[0].images
    counts = Counts(with_consumers(rows), [BatchCounts(split="test", batch=0, images=images)])
    return estimate(counts, hardware)


CONV = call(
    0,
    "Conv2d",
    (20, 15),
    (40, 30),
    weight_elements=10,
    weight_nonzeros=6,
    bias_elements=4,
    bias_nonzeros=1,
    macs_valid=100,
    macs_input_nonzero=70,
    macs_both_nonzero=50,
)
# weights cost DRAM and buffer, 11 pJ a bit: weight 6 x 8 + 10 = 58 bits, bias 1 x 8 + 4 = 12; dense 80 and 32
CONV_WEIGHTS_PJ = 11 * (58 + 12)
CONV_DENSE_WEIGHTS_PJ = 11 * (80 + 32)
# the image is always in DRAM, 4 bits a value: 15 x 4 + 20 = 80 bits, no more than 20 x 4 = 80 dense
IMAGE_PJ = 10 * 80


def test_one_convolution() -> None:
    report = price(CONV)
    # output 30 x 8 + 40 = 280 bits, dense 320 (in the buffer); a product costs 3 pJ
    energy_pj = IMAGE_PJ + 1 * 280 + CONV_WEIGHTS_PJ + 50 * 3
    dense_pj = IMAGE_PJ + 1 * 320 + CONV_DENSE_WEIGHTS_PJ + 100 * 3
    assert report.energy_uj_per_image == pytest.approx(energy_pj / 1e6)
    assert report.dense_uj_per_image == pytest.approx(dense_pj / 1e6)
    assert report.ratio == pytest.approx(energy_pj / dense_pj)
    assert report.floor is None
    [layer] = report.layers
    assert (layer.name, layer.op, layer.firing_rate) == ("call0", "Conv2d", 30 / 40)


@pytest.mark.parametrize(("skip", "macs"), [("both", 50), ("input", 70), ("none", 100)])
def test_which_products_are_skipped(skip: str, macs: int) -> None:
    with_pj = IMAGE_PJ + 280 + CONV_WEIGHTS_PJ + macs * 3
    assert price(CONV, hardware=replace(PRICES, skip=skip)).layers[0].energy_pj == pytest.approx(with_pj)


def test_registers_are_paid_for_each_product() -> None:
    more = price(CONV, hardware=replace(PRICES, register_pj_per_mac=4.0)).layers[0]
    without = price(CONV).layers[0]
    assert more.energy_pj - without.energy_pj == pytest.approx(50 * 4)
    assert more.dense_pj - without.dense_pj == pytest.approx(100 * 4)


@pytest.mark.parametrize(("images", "fetch_pj_per_bit"), [(1, 10), (100, 0.1)])
def test_images_that_share_a_fetch_of_the_weights(images: int, fetch_pj_per_bit: float) -> None:
    report = price(CONV, hardware=replace(PRICES, weight_reuse=images))
    assert report.layers[0].energy_pj == pytest.approx(IMAGE_PJ + 280 + (fetch_pj_per_bit + 1) * 70 + 150)


@pytest.mark.parametrize(("buffer_bits", "pj_per_bit"), [(320, 1), (319, 10)])
def test_a_tensor_lives_where_its_dense_size_fits(buffer_bits: int, pj_per_bit: int) -> None:
    # the output has 40 x 8 = 320 bits dense, 280 stored: what it is stored as does not move it
    report = price(CONV, hardware=replace(PRICES, buffer_bits=buffer_bits))
    assert report.layers[0].energy_pj == pytest.approx(IMAGE_PJ + pj_per_bit * 280 + CONV_WEIGHTS_PJ + 150)
    assert report.layers[0].dense_pj == pytest.approx(IMAGE_PJ + pj_per_bit * 320 + CONV_DENSE_WEIGHTS_PJ + 300)


def on_chip(weight_buffer_bits: int, **other: Any) -> EnergyReport:
    return price(CONV, hardware=replace(PRICES, weight_buffer_bits=weight_buffer_bits, **other))


# stored 58 + 12 bits, dense 80 + 32; on chip a bit costs 1 pJ, streamed 11
@pytest.mark.parametrize(
    ("weight_buffer_bits", "stays", "pj_per_bit", "dense_pj_per_bit"),
    [(0, None, 11, 11), (69, False, 11, 11), (70, True, 1, 11), (111, True, 1, 11), (112, True, 1, 1)],
)
def test_weights_that_fit_stay_on_chip(
    weight_buffer_bits: int, stays: bool | None, pj_per_bit: int, dense_pj_per_bit: int
) -> None:
    report = on_chip(weight_buffer_bits)
    assert report.weights_on_chip is stays
    assert report.layers[0].energy_pj == pytest.approx(IMAGE_PJ + 280 + pj_per_bit * 70 + 150)
    assert report.layers[0].dense_pj == pytest.approx(IMAGE_PJ + 320 + dense_pj_per_bit * 112 + 300)
    assert report.stored_weight_bytes == 70 / 8


def test_weights_on_chip_are_fetched_once_and_not_once_a_few_images() -> None:
    assert on_chip(70, weight_reuse=5).layers[0].energy_pj == pytest.approx(IMAGE_PJ + 280 + 70 + 150)
    assert on_chip(69, weight_reuse=5).layers[0].energy_pj == pytest.approx(IMAGE_PJ + 280 + (10 / 5 + 1) * 70 + 150)


def test_all_weights_of_a_network_fit_or_none_does() -> None:
    linear = call(1, "Linear", (40, 30), (5, 5), weight_elements=200, weight_nonzeros=200)
    # 70 and 1600 bits
    at = [price(CONV, linear, hardware=replace(PRICES, weight_buffer_bits=bits)) for bits in (1669, 1670)]
    assert [report.weights_on_chip for report in at] == [False, True]
    assert [a.energy_pj - b.energy_pj for a, b in zip(at[0].layers, at[1].layers, strict=True)] == [700, 16000]


def test_a_module_that_is_called_twice_is_stored_once_and_read_twice() -> None:
    rows = [replace(CONV, name="shared"), replace(CONV, call=1, producers=(0,), name="shared")]
    report = price(*rows, hardware=replace(PRICES, weight_buffer_bits=70))
    assert (report.weights_on_chip, report.stored_weight_bytes) == (True, 70 / 8)
    assert [layer.energy_pj for layer in report.layers] == [IMAGE_PJ + 280 + 70 + 150, 280 + 280 + 70 + 150]
    # two functions have a weight each, whatever they are called
    apart = price(*(replace(row, functional=True) for row in rows), hardware=replace(PRICES, weight_buffer_bits=70))
    assert (apart.weights_on_chip, apart.stored_weight_bytes) == (False, 140 / 8)


def test_where_nothing_is_skipped_zeros_save_nothing_and_fewer_bits_do() -> None:
    hardware = replace(PRICES, format="dense", skip="none")
    report = price(CONV, BN, RELU, hardware=hardware)
    assert report.ratio == 1
    narrow = price(replace(CONV, output_bits=4), BN, replace(RELU, output_bits=4), hardware=hardware)
    assert report.layers[0].energy_pj - narrow.layers[0].energy_pj == 40 * 4


def test_energies_are_means_over_the_images() -> None:
    twice = {
        name: 2 * getattr(CONV, name)
        for name in (
            *("images", "input_elements", "input_nonzeros", "output_elements", "output_nonzeros"),
            *("macs_valid", "macs_input_nonzero", "macs_both_nonzero"),
        )
    }
    assert price(replace(CONV, **twice)) == price(CONV)


@pytest.mark.parametrize(
    ("nonzeros", "format", "bits"),
    [
        # 64 values of 8 bits: 512 dense; bitmask z x 8 + 64; run lengths (z + floor((64 - z) / 32) + 1) x 13
        (0, "dense", 512),
        (0, "bitmask", 64),
        (0, "run_length", 39),  # (0 + 2 + 1) x 13
        (0, "auto", 39),
        (55, "bitmask", 504),  # just below break-even, which is at z = 56
        (56, "bitmask", 512),
        (57, "bitmask", 512),  # 520, capped
        (38, "run_length", 507),  # (38 + 0 + 1) x 13
        (39, "run_length", 512),  # 520, capped
        (3, "bitmask", 88),
        (3, "auto", 65),  # (3 + 1 + 1) x 13
        (64, "bitmask", 512),
        (64, "run_length", 512),
        (64, "auto", 512),
    ],
)
def test_stored_size(nonzeros: int, format: str, bits: int) -> None:
    assert stored_bits(64, nonzeros, 8, format) == bits


@pytest.mark.parametrize(
    ("nonzeros", "run_bits", "bits"),
    [
        # 1000 values of 8 bits, density 0.02: a word for each non-zero and for each longest run, and one more
        (20, [5], (20 + 980 // 32 + 1) * 13),  # 51 words, 663 bits: 640 of them are longest runs
        (20, [8], (20 + 980 // 256 + 1) * 16),  # 24 words, 384 bits
        (20, [12], (20 + 0 + 1) * 20),  # 21 words, 420 bits
        (20, [5, 8, 12], 384),
        (20, [12, 5], 420),
        (0, [5, 8, 12], 20),  # nothing but the last word: (0 + 31 + 1) x 13, (0 + 3 + 1) x 16, 1 x 20
        (200, [5, 8, 12], (200 + 25 + 1) * 13),  # 2938: longer runs than there are cost 3264 and 4020
    ],
)
def test_runs_of_several_widths(nonzeros: int, run_bits: list[int], bits: int) -> None:
    assert stored_bits(1000, nonzeros, 8, "run_length", run_bits) == bits
    # a bitmask takes 1160 bits at a density of 0.02, 1000 at 0, 2600 at 0.2
    assert stored_bits(1000, nonzeros, 8, "auto", run_bits) == min(bits, nonzeros * 8 + 1000)


def test_five_bits_of_a_run_cost_more_than_the_values_where_hardly_any_are_left() -> None:
    # density 0.02: of 5-bit runs' words 31 in 51 stand for no value
    values = 20 * 8
    assert stored_bits(1000, 20, 8, "run_length", [5]) - values > 3 * values
    assert stored_bits(1000, 20, 8, "run_length", [8]) - values < 1.5 * values


BN = call(
    1,
    "BatchNorm2d",
    (40, 30),
    (40, 32),
    weight_elements=4,
    weight_nonzeros=4,
    bias_elements=4,
    bias_nonzeros=2,
    statistics_elements=8,
)
RELU = call(2, "ReLU", (40, 32), (40, 10))


def test_a_folded_group_stores_only_its_result() -> None:
    report = price(CONV, BN, RELU)
    # batch norm makes the bias one value for each of 4 channels, taken as dense: 4 x 8 bits (bitmask 36, capped)
    energy_pj = IMAGE_PJ + (10 * 8 + 40) + 11 * (58 + 32) + 150
    dense_pj = IMAGE_PJ + 320 + 11 * (80 + 32) + 300
    [group] = report.layers
    assert (group.op, group.firing_rate) == ("Conv2d+BatchNorm2d+ReLU", 10 / 40)
    assert group.energy_pj == pytest.approx(energy_pj)
    assert group.dense_pj == pytest.approx(dense_pj)


def test_what_has_two_readers_is_not_folded() -> None:
    second = call(3, "Linear", (40, 30), (5, 5), producers=(0,))
    report = price(CONV, BN, RELU, second)
    assert [layer.op for layer in report.layers] == ["Conv2d", "BatchNorm2d", "ReLU", "Linear"]
    conv, bn, relu, linear = (layer.energy_pj for layer in report.layers)
    assert conv == pytest.approx(IMAGE_PJ + 280 + CONV_WEIGHTS_PJ + 150)
    # reads 280, writes 32 x 8 + 40 = 296; scale 4 x 8 (bitmask 36, capped), shift 2 x 8 + 4; 40 x 2.5
    assert bn == pytest.approx(280 + 296 + 11 * (32 + 20) + 100)
    # batch norm opens no group: the ReLU reads 296 and writes 10 x 8 + 40 = 120
    assert relu == pytest.approx(296 + 120)
    # reads 280; writes 5 values, 40 bits dense (bitmask 45)
    assert linear == pytest.approx(280 + 40)


def test_batch_norm_behind_an_activation_cannot_be_folded() -> None:
    report = price(CONV, call(1, "ReLU", (40, 30), (40, 10)), call(2, "BatchNorm2d", (40, 10), (40, 40)))
    assert [layer.op for layer in report.layers] == ["Conv2d+ReLU", "BatchNorm2d"]


def residual_block() -> list[LayerCounts]:
    """stem -> conv1 -> relu -> conv2 -> add(stem) -> relu, all tensors of 40 values."""
    plain = {"macs_valid": 10, "macs_input_nonzero": 10, "macs_both_nonzero": 10}
    return [
        call(0, "Conv2d", (20, 20), (40, 20), producers=(-1,), **plain),
        call(1, "Conv2d", (40, 20), (40, 40), **plain),
        call(2, "ReLU", (40, 40), (40, 15)),
        call(3, "Conv2d", (40, 15), (40, 40), **plain),
        call(4, "add", (80, 60), (40, 38), producers=(3, 0)),
        call(5, "ReLU", (40, 38), (40, 5)),
    ]


def test_residual_block() -> None:
    report = price(*residual_block())
    assert [layer.op for layer in report.layers] == ["Conv2d", "Conv2d+ReLU", "Conv2d+add+ReLU"]
    stem, first, second = (layer.energy_pj for layer in report.layers)
    # 20 x 8 + 40 = 200 bits, 15 x 8 + 40 = 160, 5 x 8 + 40 = 80; 10 products of 3 pJ; 20 dense 4-bit values in DRAM
    assert stem == pytest.approx(10 * 80 + 200 + 30)
    assert first == pytest.approx(200 + 160 + 30)
    assert second == pytest.approx(160 + 200 + 80 + 30 + 40 * 0.5)
    dense = [layer.dense_pj for layer in report.layers]
    assert dense == pytest.approx([10 * 80 + 320 + 30, 320 + 320 + 30, 320 + 320 + 320 + 30 + 20])
    assert sum(dense) == pytest.approx(report.dense_uj_per_image * 1e6 if report.dense_uj_per_image else 0)


def test_the_most_that_activations_need_at_once() -> None:
    report = price(*residual_block())
    # the image takes 20 x 4 = 80 bits, then three tensors of 200, 160 and 80 (see above): image and stem 280; stem and
    # first 360; the second group reads both and writes its own, 440
    assert report.peak_activation_bytes == (200 + 160 + 80) / 8
    # dense: 80 + 320, 640, 960
    assert price(*residual_block(), hardware=replace(PRICES, format="dense")).peak_activation_bytes == 960 / 8
    # a tensor is gone when its last reader has run: without the residual operand no three are alive
    chain = [row for row in residual_block() if row.op != "add"]
    chain[-1] = replace(chain[-1], call=4, producers=(3,))
    assert price(*chain).peak_activation_bytes == (200 + 160) / 8


def test_of_an_image_that_is_read_late_the_most_is_counted() -> None:
    # the image, 80 bits, is read by both: 80 + 200 in the first group, 80 + 200 + 40 in the second
    rows = [
        call(0, "Conv2d", (20, 20), (40, 20), producers=(-1,)),
        call(1, "Linear", (60, 40), (5, 5), producers=(0, -1)),
    ]
    assert price(*rows).peak_activation_bytes == (80 + 200 + 40) / 8


def test_a_group_runs_when_all_that_it_reads_is_there() -> None:
    # the first convolution ends in an addition that waits for the pool: by its last call it is the last of the three
    rows = [
        call(0, "Conv2d", (20, 20), (40, 20), producers=(-1,)),  # 200 bits
        call(1, "Conv2d", (40, 20), (40, 30)),
        call(2, "pool", (40, 20), (40, 10), producers=(0,), kind=Kind.MAX_POOL),  # 120 bits
        call(3, "add", (80, 40), (40, 15), producers=(1, 2)),  # 160 bits
    ]
    report = price(*rows)
    assert [layer.op for layer in report.layers] == ["Conv2d", "Conv2d+add", "pool"]
    # the pool's group: stem and pool, 320; then stem, pool and sum
    assert report.peak_activation_bytes == (200 + 120 + 160) / 8


def test_of_two_groups_that_meet_in_an_addition_the_later_takes_it() -> None:
    report = price(
        call(0, "Conv2d", (20, 20), (40, 20), producers=(-1,)),
        call(1, "Conv2d", (40, 20), (40, 30)),
        call(2, "Conv2d", (40, 20), (40, 10), producers=(0,)),
        call(3, "add", (80, 40), (40, 40), producers=(1, 2)),
    )
    assert [layer.op for layer in report.layers] == ["Conv2d", "Conv2d", "Conv2d+add"]
    # stored: call 1, 30 x 8 + 40 = 280; read again as the residual operand; call 0 has 200; the sum is dense, 320
    assert [layer.energy_pj for layer in report.layers[1:]] == pytest.approx([200 + 280, 200 + 280 + 320 + 20])


def test_a_network_whose_every_activation_is_zero() -> None:
    rows = [
        replace(
            row,
            output_nonzeros=0,
            input_nonzeros=row.input_nonzeros if row.call == 0 else 0,
            macs_both_nonzero=10 if row.call == 0 else 0,
        )
        for row in residual_block()
    ]
    # four stored tensors are read or written 5 times; only a mask of 40 bits is left of each
    report = price(*rows)
    assert [layer.energy_pj for layer in report.layers] == pytest.approx([800 + 40 + 30, 40 + 40, 40 + 40 + 40 + 20])
    assert report.dense_uj_per_image == price(*residual_block()).dense_uj_per_image


def test_views_are_read_through() -> None:
    view = call(1, "flatten", (40, 30), (40, 30), kind=Kind.VIEW)
    report = price(CONV, view, call(2, "Linear", (40, 30), (5, 5)))
    assert [layer.op for layer in report.layers] == ["Conv2d", "Linear"]
    assert report.layers[1].energy_pj == pytest.approx(280 + 40)
    # a ReLU behind a view is still folded
    assert [layer.op for layer in price(CONV, view, call(2, "ReLU", (40, 30), (40, 9))).layers] == ["Conv2d+ReLU"]


def test_concatenated_tensors_are_read_where_they_were_stored() -> None:
    rows = [
        call(0, "Conv2d", (20, 20), (40, 20), producers=(-1,)),
        call(1, "Conv2d", (40, 20), (200, 50)),
        call(2, "cat", (240, 70), (240, 70), producers=(0, 1), kind=Kind.VIEW),
        call(3, "BatchNorm2d", (240, 70), (240, 240)),
    ]
    report = price(*rows)
    assert [layer.op for layer in report.layers] == ["Conv2d", "Conv2d", "BatchNorm2d"]
    # call 0: 200 bits in the buffer. call 1: 200 x 8 > 1000 bits, so in DRAM: 50 x 8 + 200 = 600. Output in DRAM, 1920
    assert report.layers[2].energy_pj == pytest.approx(200 + 10 * 600 + 10 * 1920 + 240 * 2.5)


def test_a_view_of_a_part_reads_that_part() -> None:
    half = call(1, "chunk", (40, 20), (20, 8), kind=Kind.VIEW)
    report = price(call(0, "Conv2d", (20, 20), (40, 20), producers=(-1,)), half, call(2, "Linear", (20, 8), (5, 5)))
    # 8 x 8 + 20 bits are read
    assert report.layers[1].energy_pj == pytest.approx(84 + 40)


@pytest.mark.parametrize(
    ("kind", "values", "ops_pj"),
    [
        (Kind.MAX_POOL, {"window": 4}, 10 * 3 * 0.5),
        (Kind.AVG_POOL, {"window": 4}, 40 * 0.5 + 10 * 2),
        (Kind.MULTIPLY, {}, 10 * 2),
        (Kind.ACTIVATION, {}, 10 * 7),
        (Kind.RELU, {}, 0),
        (Kind.LAYER_NORM, {}, 10 * (2 * 2 + 3 * 0.5)),
        (Kind.UNKNOWN, {}, 0),
    ],
)
def test_what_stands_alone_reads_writes_and_works(kind: Kind, values: dict[str, int], ops_pj: float) -> None:
    row = call(0, "op", (40, 20), (10, 3), kind=kind, producers=(-1,), **values)
    # image: 20 x 4 + 40 = 120 bits in DRAM, dense 160; output 3 x 8 + 10 = 34 bits, dense 80
    [layer] = price(row).layers
    assert layer.energy_pj == pytest.approx(10 * 120 + 34 + ops_pj)
    assert layer.dense_pj == pytest.approx(10 * 160 + 80 + ops_pj)


def test_a_folded_activation_is_paid_for() -> None:
    plain = price(CONV).layers[0].dense_pj
    sigmoid = price(CONV, call(1, "Sigmoid", (40, 30), (40, 30), kind=Kind.ACTIVATION)).layers[0]
    assert sigmoid.op == "Conv2d+Sigmoid"
    assert sigmoid.dense_pj == pytest.approx(plain + 40 * 7)


def test_relative_prices_give_ratios_and_no_joules() -> None:
    report = price(CONV, hardware=replace(PRICES, relative=True))
    assert (report.energy_uj_per_image, report.dense_uj_per_image) == (None, None)
    assert report.ratio == price(CONV).ratio


# --- the published simulator ---------------------------------------------------------------------------------------

PUBLISHED = PublishedHardware(dram_pj_per_value=100.0, multiply_pj=1.0)
BATCH = BatchCounts(
    split="test",
    batch=0,
    images=100,
    input_elements=200,
    input_nonzeros=160,
    input_nonzeros_as_built=100,
    input_nonzeros_all=80,
    output_elements=300,
    output_nonzeros=150,
    parameter_elements=40,
    parameter_nonzeros=30,
    statistics_elements=10,
    statistics_nonzeros=10,
    computations=1000,
)


@pytest.mark.parametrize(("inplace", "inputs"), [("as_built", 100), ("none", 160), ("all", 80)])
@pytest.mark.parametrize("repeats", [1, 10])
def test_published_batch(inplace: str, inputs: int, repeats: int) -> None:
    hardware = replace(PUBLISHED, inplace=inplace, bn_statistics_repeats=repeats)
    report = estimate(Counts([], [BATCH]), hardware)
    parameters, nonzero = 40 + 10 * repeats, 30 + 10 * repeats
    energy_pj = 100 * (nonzero + inputs + 150) + 1000 * (nonzero / parameters) * (inputs / 200)
    dense_pj = 100 * (parameters + 200 + 300) + 1000
    assert report.ratio == pytest.approx(energy_pj / dense_pj)
    assert report.energy_uj_per_image == pytest.approx(energy_pj / 100 / 1e6)
    assert report.dense_uj_per_image == pytest.approx(dense_pj / 100 / 1e6)


def test_the_published_simulator_knows_no_memory() -> None:
    report = estimate(Counts([], [BATCH]), PUBLISHED)
    assert (report.stored_weight_bytes, report.peak_activation_bytes, report.weights_on_chip) == (None, None, None)


def test_published_ratio_is_the_mean_over_batches_and_the_floor_stands_apart() -> None:
    # no computations: ratios 280 / 550, 550 / 550, and 60 / 550 for the floor
    first = replace(BATCH, computations=0, input_nonzeros_as_built=90)
    last = replace(first, batch=1, images=20, input_nonzeros_as_built=200, output_nonzeros=300, parameter_nonzeros=40)
    floor = replace(first, batch=FLOOR_BATCH, input_nonzeros_as_built=20, output_nonzeros=0, parameter_nonzeros=30)
    report = estimate(Counts([], [first, last, floor]), PUBLISHED)
    assert report.ratio == pytest.approx((280 / 550 + 1) / 2)
    assert report.floor == pytest.approx(60 / 550)
    assert report.energy_uj_per_image == pytest.approx(100 * (280 + 550) / 120 / 1e6)
    assert report.summary() == {
        "ratio": report.ratio,
        "floor": report.floor,
        "energy_uj_per_image": report.energy_uj_per_image,
        "dense_uj_per_image": report.dense_uj_per_image,
    }


def test_published_layers_leave_functions_out_and_add_up() -> None:
    rows = [
        call(0, "Conv2d", (200, 160), (300, 250), weight_elements=30, weight_nonzeros=20, computations=900),
        call(
            1, "BatchNorm2d", (300, 250), (300, 240), statistics_elements=10, statistics_nonzeros=10, computations=100
        ),
        call(2, "ReLU", (300, 240), (300, 100), inplace=True, activation=True),
        call(3, "add", (600, 200), (300, 200), functional=True),
    ]
    batch = BatchCounts(
        split="test",
        batch=0,
        images=100,
        input_elements=800,
        input_nonzeros=650,
        input_nonzeros_as_built=160 + 250 + 100,
        input_nonzeros_all=160 + 250 + 100,
        output_elements=900,
        output_nonzeros=590,
        parameter_elements=40,
        parameter_nonzeros=30,
        statistics_elements=10,
        statistics_nonzeros=10,
        computations=1000,
    )
    report = estimate(Counts(rows, [batch, replace(batch, batch=1)]), PUBLISHED)
    density = (40 / 50) * (510 / 800)
    # two batches: parameters are paid twice, batch norm's statistics two times each; everything else is in the sums
    conv_pj = 100 * (160 + 250 + 2 * 20) + 2 * 1000 * density * 900 / 1000
    bn_pj = 100 * (250 + 240 + 2 * 2 * 10) + 2 * 1000 * density * 100 / 1000
    relu_pj = 100 * (100 + 100)
    assert [layer.name for layer in report.layers] == ["call0", "call1", "call2"]
    assert [layer.energy_pj for layer in report.layers] == pytest.approx([pj / 200 for pj in (conv_pj, bn_pj, relu_pj)])


def test_counts_metered_in_another_way_are_refused() -> None:
    counts = Counts([], [BATCH], batch_size=64)
    with pytest.raises(UserError, match=r"published needs counts with meter.batch_size=100, these have 64"):
        estimate(counts, PUBLISHED)
    with pytest.raises(UserError, match=r"meter.threshold=1.17549e-38, these have 0.5"):
        estimate(Counts([], [BATCH], threshold=0.5), PRICES)
    with pytest.raises(UserError, match=r"no counts of the split 'validation'"):
        estimate(Counts([], [BATCH]), PUBLISHED, "validation")
    assert estimate(Counts([CONV], [BATCH], batch_size=64), PRICES).ratio < 1


def test_what_is_not_counted_is_named() -> None:
    assert estimate(Counts([], [BATCH], uncounted=("einsum",)), PUBLISHED).uncounted == ("einsum",)
