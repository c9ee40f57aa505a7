"""Counts as plain data: rows of a CSV file, selection, firing rate, the graph of calls."""

import csv
import io
import math
import subprocess
import sys
from dataclasses import fields, replace

import pytest

from eat_runner.energy.counts import (
    FLOOR_BATCH,
    BatchCounts,
    Counts,
    Kind,
    LayerCounts,
    from_row,
    merge,
    to_row,
    with_consumers,
)

LAYER = LayerCounts(
    split="test",
    call=3,
    name='layer1.0,"odd"',
    op="Conv2d",
    kind=Kind.CONV,
    producers=(-1, 2),
    consumers=(4,),
    functional=True,
    inplace=True,
    images=7,
    input_elements=2**60,
    weight_nonzeros=5,
    macs_both_nonzero=2**53 + 1,
)
BATCH = BatchCounts(split="test", batch=0, images=100, input_elements=2**61, computations=9)


@pytest.mark.parametrize("counts", [LAYER, replace(LAYER, producers=(), inplace=False, kind=Kind.UNKNOWN), BATCH])
def test_a_row_of_text_gives_back_the_counts(counts: LayerCounts | BatchCounts) -> None:
    file = io.StringIO()
    writer = csv.DictWriter(file, to_row(counts))
    writer.writeheader()
    writer.writerow(to_row(counts))
    [row] = csv.DictReader(io.StringIO(file.getvalue()))
    assert list(row) == [f.name for f in fields(counts)]
    assert from_row(type(counts), row) == counts


def test_a_column_added_later_has_its_default_and_one_from_a_newer_version_is_passed_over() -> None:
    row = to_row(LAYER)
    del row["macs_both_nonzero"]
    row["from_the_future"] = "1"
    assert from_row(LayerCounts, row) == replace(LAYER, macs_both_nonzero=0)


@pytest.mark.parametrize("change", [{"images": "7.5"}, {"inplace": "maybe"}, {"kind": "magic"}, {"producers": "1,2"}])
def test_a_text_of_another_type_is_refused(change: dict[str, str]) -> None:
    with pytest.raises((ValueError, KeyError)):
        from_row(LayerCounts, to_row(LAYER) | change)


def activation(split: str, elements: int, nonzeros: int, active: bool = True) -> LayerCounts:
    return LayerCounts(
        split=split, call=0, name="a", op="ReLU", activation=active, output_elements=elements, output_nonzeros=nonzeros
    )


def test_firing_rate_is_over_activation_outputs() -> None:
    counts = Counts([activation("test", 10, 4), activation("test", 30, 8), activation("test", 99, 99, active=False)])
    assert counts.firing_rate == 12 / 40
    assert math.isnan(Counts([activation("test", 99, 99, active=False)]).firing_rate)


def test_splits_are_merged_and_selected() -> None:
    parts = [
        Counts([activation(split, 10, k)], [BatchCounts(split=split, batch=0, images=k)], 50, 0.5, ("op",))
        for k, split in enumerate(["validation", "test"], start=1)
    ]
    both = merge(parts)
    assert (len(both.layers), len(both.batches), both.batch_size, both.threshold) == (2, 2, 50, 0.5)
    assert both.uncounted == ("op",)
    assert both.select("validation") == parts[0]
    assert both.select("test") == parts[1]


def test_images_leave_the_floor_batch_out() -> None:
    batches = [BatchCounts(split="test", batch=batch, images=10) for batch in (0, 1, FLOOR_BATCH)]
    assert Counts([], batches).images == 20


def test_consumers_are_the_calls_that_name_a_call_as_producer() -> None:
    rows = [
        replace(LAYER, call=call, producers=made_by, consumers=())
        for call, made_by in ((0, (-1,)), (1, (0,)), (2, (0, 0, 1)))
    ]
    assert [row.consumers for row in with_consumers(rows)] == [(1, 2, 2), (2,), ()]


def test_pricing_needs_no_torch() -> None:
    code = "import sys, eat_runner.energy.estimate, eat_runner.energy.hardware; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
