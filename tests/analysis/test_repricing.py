"""Other readings of the same counts, by hand."""

import pytest

from eat_runner.analysis.repricing import in_batches_of, weights_share
from eat_runner.config.hardware import FusedHardware, PublishedHardware
from eat_runner.energy.counts import BatchCounts, Counts, Kind, LayerCounts
from eat_runner.energy.estimate import estimate


def test_the_weights_share_of_one_layer_by_hand() -> None:
    """10 images, 7 weights, 20 inputs and 5 outputs an image, 30 products an image; published: one batch of 10."""
    layer = LayerCounts(
        split="test",
        call=0,
        name="fc",
        op="Linear",
        kind=Kind.LINEAR,
        producers=(-1,),
        images=10,
        input_elements=200,
        output_elements=50,
        weight_elements=7,
        computations=300,
        macs_valid=300,
    )
    batch = BatchCounts(split="test", batch=0, images=10)
    counts = Counts(layers=[layer], batches=[batch], batch_size=10)
    published = PublishedHardware(batch_size=10, dram_pj_per_value=2.0, multiply_pj=1.0)
    assert weights_share(counts, published) == pytest.approx(2 * 7 / (2 * (7 + 200 + 50) + 300))
    prices = {"dram_pj_per_bit": 2.0, "buffer_pj_per_bit": 1.0, "multiply_pj": 1.0}
    fused = FusedHardware(bits=4, input_bits=8, weight_reuse=2, **prices)
    weights = 7 * 4 * (2 / 2 + 1)
    assert weights_share(counts, fused) == pytest.approx(weights / (weights + 20 * 8 * 2 + 5 * 4 * 1 + 30))


def test_other_batch_sizes_charge_the_parameters_more_often() -> None:
    """100 images in batches of 20: five times 7 parameters (and 2 statistics, charged once more)."""
    batch = BatchCounts(
        split="test",
        batch=0,
        images=100,
        input_elements=400,
        input_nonzeros=100,
        input_nonzeros_as_built=100,
        input_nonzeros_all=100,
        output_elements=200,
        output_nonzeros=50,
        parameter_elements=7,
        parameter_nonzeros=7,
        statistics_elements=2,
        statistics_nonzeros=2,
    )
    smaller = in_batches_of(Counts(batches=[batch], batch_size=100), 20)
    hardware = PublishedHardware(batch_size=20, multiply_pj=0.0)
    assert estimate(smaller, hardware).ratio == pytest.approx((5 * 9 + 150) / (5 * 9 + 600))
