"""Paths are compared with independent trainings by hypervolume, energy at equal accuracy, and cost."""

import sys
from pathlib import Path

import pandas as pd
import pytest

from run_folders import config, write_run

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from compare_paths import compare, of_seed


def test_one_seed_by_hand():
    runs = pd.DataFrame(
        {
            "is_baseline": [False, True, False, False],
            "accuracy_validation": [0.895, 0.9, 0.91, 0.5],
            "energy_validation": [4.0, 8.0, 6.0, 2.0],
            "epochs": [4, 12, 4, 4],
            "seconds": [10.0, 30.0, 11.0, 9.0],
        }
    )
    found = of_seed(runs, worst=10.0)
    # accuracy 0.5 from 2 to 4, 0.895 to 6, 0.91 to 10; standard training alone 0.9 from 8 on
    volume = (0.5 * 2 + 0.895 * 2 + 0.91 * 4) / 10
    expected = {"points": 4, "epochs": 24, "core_seconds": 60, "hypervolume": volume, "gain": volume - 0.18}
    assert found == pytest.approx(expected | {"energy_0": 6 / 8, "energy_1": 4 / 8})


def test_only_seeds_that_all_have_and_shares_of_the_first(tmp_path):
    for folder, lambdas, seeds in (("independent", (0, 1, 2), (0, 1, 2)), ("path", (0, 2), (1, 2))):
        for lambda_ in lambdas:
            for seed in seeds:
                write_run(tmp_path / folder, config(lambda_, seed))
    first, second = compare([tmp_path / "independent", tmp_path / "path"], "published").to_dict("records")
    assert [first["seeds"], first["points"], second["points"]] == [2, 3, 2]
    assert first["hypervolume_share"] == 1 > second["hypervolume_share"] > 0
    assert second["epochs_share"] == pytest.approx(2 / 3)
    assert second["hypervolume_share"] == pytest.approx(second["hypervolume"] / first["hypervolume"])
