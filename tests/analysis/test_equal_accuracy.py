"""What each method needs at equal accuracy: choices by hand on small tables; intervals against numpy and by formula."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from eat_runner.analysis.columns import X
from eat_runner.analysis.equal_accuracy import COLUMNS, bootstrap, equal_accuracy, verdict
from eat_runner.analysis.pareto import Axes, fronts
from eat_runner.analysis.table import collate
from eat_runner.config.hardware import PublishedHardware
from eat_runner.config.pruning import PruningConfig
from eat_runner.records import RunFolder
from frames import UJ, run, table
from run_folders import answers, config, write_run

ENERGY = Axes(X["energy"])


def found(*rows: dict[str, Any]) -> pd.DataFrame:
    (front,) = fronts(table(*rows), axes=ENERGY)
    equal, _ = equal_accuracy(front)
    assert list(equal.columns) == COLUMNS
    return equal


def chosen(equal: pd.DataFrame, points: int) -> dict[str, str]:
    rows = equal[equal["allowance"] == points]
    return dict(zip(rows["method"], rows["setting_id"], strict=True))


def runs(
    name: str, validation: list[float], ratio: list[float], lambda_: float = 0.0, seeds: Any = None, **changes: Any
) -> list[dict[str, Any]]:
    """A setting over its seeds. On the test split it is 5 points worse and needs a tenth more."""
    settings = [("accuracy_validation", validation), ("energy_validation", [UJ * each for each in ratio])]
    return [
        run(lambda_, v - 0.05, 1.1 * r, s, setting_id=name, **{key: values[i] for key, values in settings}, **changes)
        for i, (v, r, s) in enumerate(zip(validation, ratio, seeds or range(len(ratio)), strict=True))
    ]


PRUNED = {"method": "pruning=magnitude"}
NARROW = {"width": 8, "network": "resnet18, width 8", "dense": UJ / 2}
ST = runs("st", [0.95, 0.97], [0.8, 0.8])  # mean 0.96
EXAMPLE = [
    *ST,
    *runs("narrow", [0.93, 0.93], [0.3, 0.32], **NARROW),  # 3 points below
    *runs("tenth", [0.955, 0.955], [0.2, 0.24], **PRUNED),  # half a point
    *runs("twentieth", [0.90, 0.97], [0.1, 0.1], **PRUNED),  # 2.5 points
    *runs("a", [0.96, 0.96], [0.7, 0.9], 0.5),  # none
    *runs("b", [0.95, 0.95], [0.6, 0.6], 1.0),  # 1 point
    *runs("c", [0.80, 0.80], [0.05, 0.05], 3.0),  # 16 points
]


def test_the_lowest_energy_within_each_allowance_by_the_means_on_the_validation_split() -> None:
    equal = found(*EXAMPLE)
    assert chosen(equal, 0) == {"standard training": "st", "EAT": "a"}
    assert chosen(equal, 1) == {"standard training": "st", "EAT": "b", "pruning=magnitude": "tenth"}
    assert chosen(equal, 3) == {
        "standard training": "st",
        "EAT": "b",
        "pruning=magnitude": "twentieth",
        "dense narrow networks": "narrow",
    }


def test_the_test_split_chooses_nothing() -> None:
    worse = [row | {"accuracy": 0.1, "energy": 10 * UJ} if row["setting_id"] == "tenth" else row for row in EXAMPLE]
    assert chosen(found(*worse), 1)["pruning=magnitude"] == "tenth"


def test_a_row_says_what_the_setting_has_on_the_test_split_seed_by_seed() -> None:
    row = found(*EXAMPLE).set_index(["allowance", "setting_id"]).loc[(1, "tenth")]
    assert (row["n"], row["seeds"], row["accuracy_validation"]) == (2, "0 1", pytest.approx(0.955))
    assert (row["accuracy"], row["energy_uj_per_image"]) == pytest.approx((0.905, 1.1 * 0.22 * UJ))
    # 0.2 / 0.8 and 0.24 / 0.8; the runs lose 0.5 points more than nothing and 1.5 points
    assert row["energy_ratios"] == "0.25 0.3"
    assert (row["energy_ratio_min"], row["energy_ratio_max"]) == pytest.approx((0.25, 0.3))
    assert (row["energy_relative"], row["energy_decrease"]) == pytest.approx((0.275, 0.725))
    assert row["accuracy_difference"] == pytest.approx((0.005 - 0.015) / 2)
    assert row["energy_verdict"] == "lower energy in every one of 2 seeds"


def test_methods_stand_beside_the_better_of_magnitude_pruning_and_narrow_networks() -> None:
    equal = found(*EXAMPLE).set_index(["allowance", "setting_id"])
    assert equal.loc[0, "simple"].isna().all()  # neither comes that close
    assert equal.at[(1, "b"), "simple"] == "pruning=magnitude"
    assert equal.at[(1, "b"), "simple_ratios"] == "3 2.5"  # 0.6 / 0.2, 0.6 / 0.24
    assert equal.at[(1, "b"), "simple_verdict"] == "higher energy in every one of 2 seeds"
    assert pd.isna(equal.at[(1, "tenth"), "simple"])  # itself
    assert (equal.at[(3, "narrow"), "simple"], equal.at[(3, "narrow"), "simple_ratio_max"]) == (
        "pruning=magnitude",
        pytest.approx(3.2),
    )
    # where only narrow networks come close enough, they are what others stand beside
    close = found(*ST, *runs("narrow", [0.96, 0.96], [0.3, 0.3], **NARROW), *runs("a", [0.96, 0.96], [0.2, 0.4], 1.0))
    beside = close.set_index(["allowance", "setting_id"]).loc[(0, "a")]
    assert (beside["simple"], beside["simple_ratios"]) == ("dense narrow networks", "0.6667 1.333")
    assert beside["simple_verdict"] == "lower energy in 1 of 2 seeds"


def test_seeds_are_compared_in_pairs() -> None:
    """Seed 1 alone is 1 point below the reference's seed 1, and at its mean; seed 7 the reference has not."""
    one = runs("one", [0.96], [0.5], 1.0, seeds=[1])
    far = runs("far", [0.99], [0.1], 1.0, seeds=[7])
    equal = found(*ST, *one, *far)
    assert chosen(equal, 0) == {"standard training": "st"}
    assert chosen(equal, 1) == {"standard training": "st", "EAT": "one"}
    row = equal.set_index(["allowance", "setting_id"]).loc[(1, "one")]
    assert (row["n"], row["seeds"], row["energy_verdict"]) == (1, "1", "one seed, no claim")


def test_of_a_methods_settings_only_those_with_most_seeds_count() -> None:
    whole, half = runs("whole", [0.96, 0.96], [0.5, 0.5], 1.0), runs("half", [0.99], [0.1], 2.0)
    assert chosen(found(*ST, *whole, *half), 0)["EAT"] == "whole"
    assert chosen(found(*ST, *half), 0)["EAT"] == "half"


def test_without_a_reference_or_its_validation_split_nothing_is_chosen() -> None:
    none = {"accuracy_validation": None, "energy_validation": None}
    assert found(run(1, 0.9, 0.5)).empty
    assert found(run(0, 0.9, 0.5, **none), run(1, 0.9, 0.4, **none)).empty
    assert chosen(found(*ST, run(1, 0.9, 0.4, **none)), 3) == {"standard training": "st"}


def test_nothing_is_claimed_that_not_every_seed_shows() -> None:
    assert verdict([0.8, 0.9, 0.99]) == "lower energy in every one of 3 seeds"
    assert verdict([0.8, 1.0, 0.99]) == "lower energy in 2 of 3 seeds"
    assert verdict([1.2, 1.1]) == "higher energy in every one of 2 seeds"
    assert verdict([1.2, 1.0]) == "lower energy in 0 of 2 seeds"
    assert verdict([0.1]) == "one seed, no claim"
    assert verdict([]) == ""


# --- intervals -----------------------------------------------------------------------------------------------------


def gains(images: int) -> Any:
    return np.random.default_rng(1).choice([-1.0, 0.0, 1.0], images, p=[0.06, 0.92, 0.02])


def test_the_interval_is_that_of_plain_resampling_and_of_the_normal_law() -> None:
    values = gains(1000)
    low, high = bootstrap(values)
    drawn = np.random.default_rng(5).integers(0, len(values), (4000, len(values)))
    naive = np.quantile(values[drawn].mean(axis=1), [0.025, 0.975])
    deviation = values.std() / len(values) ** 0.5
    # an end of 2,000 resamples is within 0.06 deviations (one sigma) of where it belongs
    assert (low, high) == pytest.approx(tuple(naive), abs=0.25 * deviation)
    assert (low, high) == pytest.approx(
        (values.mean() - 1.96 * deviation, values.mean() + 1.96 * deviation), abs=0.25 * deviation
    )
    assert bootstrap(values) == (low, high)  # the same every time
    assert bootstrap(np.zeros(10)) == (0, 0)


def pruned(density: float, seed: int) -> Any:
    return config(0.0, seed, methods={"pruning": PruningConfig(name="magnitude", density=density)})


def intervals(folder: Path) -> tuple[pd.DataFrame, list[str]]:
    (front,) = fronts(collate(folder, PublishedHardware(), "dataset"), axes=ENERGY)
    equal, problems = equal_accuracy(front)
    return equal[equal["allowance"] == 3].set_index("method"), problems


def written(folder: Path, **changes: Any) -> list[RunFolder]:
    """Two seeds of standard training and of a pruned network, which loses 3 of 400 images (0.0076 of the accuracy)."""
    return [
        write_run(folder, chosen(s), predictions=True, **changes) for s in (0, 1) for chosen in (config_of, smaller)
    ]


def config_of(seed: int) -> Any:
    return config(0.0, seed)


def smaller(seed: int) -> Any:
    return pruned(0.05, seed)


def test_intervals_come_from_the_runs_predictions(tmp_path: Path) -> None:
    written(tmp_path)
    equal, problems = intervals(tmp_path)
    assert problems == []
    # seed 0: 0.944 and 0.9364 of 400 images right; seed 1: 0.951 and 0.9434
    lost = [round(0.9364 * 400) - round(0.944 * 400), round(0.9434 * 400) - round(0.951 * 400)]
    both = np.zeros((2, 400))
    both[0, round(0.9364 * 400) : round(0.944 * 400)] = -1
    both[1, round(0.9434 * 400) : round(0.951 * 400)] = -1
    assert both.sum(axis=1).tolist() == lost == [-3, -3]
    ends = ["accuracy_difference_low", "accuracy_difference_high"]
    assert tuple(equal.loc["pruning=magnitude", ends]) == bootstrap(both.mean(axis=0))
    assert equal.loc["standard training", ends].isna().all()


def no_file(folder: RunFolder) -> None:
    """As a run of an earlier version."""
    folder.predictions.unlink()
    folder.write_record(folder.read_record())


def other_images(folder: RunFolder) -> None:
    labels, predicted = answers(0.9, "test")
    folder.write_predictions({"test": (labels[::-1], predicted)})
    folder.write_record(folder.read_record())


def harmed(folder: RunFolder) -> None:
    folder.predictions.write_bytes(folder.predictions.read_bytes()[:-9])


def half(folder: RunFolder) -> None:
    harmed(folder)
    folder.write_record(folder.read_record())


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (no_file, None),
        (other_images, None),
        (harmed, "is damaged: it is not the file that record.json was written for"),
        (half, "is damaged (EOFError: "),
    ],
)
@pytest.mark.parametrize("standard", [True, False])
def test_without_usable_predictions_the_interval_is_empty_and_the_rest_is_there(
    tmp_path: Path, harm: Any, said: str | None, standard: bool
) -> None:
    folders = written(tmp_path)
    harm(folders[0 if standard else 1])
    equal, problems = intervals(tmp_path)
    row = equal.loc["pruning=magnitude"]
    assert row[["accuracy_difference_low", "accuracy_difference_high"]].isna().all()
    assert row["accuracy_difference"] == pytest.approx(-0.0076)
    assert [said in problem for problem in problems] == [True] if said else problems == []
