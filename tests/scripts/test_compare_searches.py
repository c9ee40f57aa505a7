"""Searches are compared at the same number of trials, against one point for all."""

import math
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from compare_searches import compare


def write(folder, dense, values):
    folder.mkdir()
    lines = ["accuracy_validation,energy_validation_uj,dense", *(f"{a},{e},{dense}" for a, e in values)]
    (folder / "search.csv").write_text("\n".join(lines) + "\n")


def test_hypervolumes_are_those_of_the_first_trials_against_the_costliest_network_of_all(tmp_path):
    nothing = [("", "")] * 8  # ended early
    write(tmp_path / "tpe-0", 10, [(0.5, 5), *nothing, (0.9, 8)])
    write(tmp_path / "tpe-1", 20, [(0.5, 5), *nothing, ("", ""), (0.9, 5)])
    found = compare([tmp_path / "tpe-0", tmp_path / "tpe-1"])
    [row] = found.to_dict("records")
    # of 20 uJ: accuracy 0.5 from 5 to 8 and 0.9 from 8 on; accuracy 0.5 from 5 on
    volumes = [(0.5 * 3 + 0.9 * 12) / 20, 0.5 * 15 / 20]
    assert (row["search"], row["trials"], row["seeds"], row["worst"], row["least"]) == ("tpe", 10, 2, 20, 5)
    assert [row["hypervolume_min"], row["hypervolume_max"]] == pytest.approx(sorted(volumes))
    assert row["hypervolume"] == pytest.approx(sum(volumes) / 2)
    # from 5 to 20 uJ, two doublings: 0.5 up to 8 uJ, then 0.9; 0.5 all the way
    volumes = [0.5 * math.log2(8 / 5) / 2 + 0.9 * math.log2(20 / 8) / 2, 0.5]
    assert [row["logarithmic_min"], row["logarithmic_max"]] == pytest.approx(sorted(volumes))
    assert row["logarithmic"] == pytest.approx(sum(volumes) / 2)
