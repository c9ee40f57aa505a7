"""What shares a family, what a setting is called, and means over seeds."""

import math
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest

from eat_runner.analysis.families import at_same_seed, setting_names, settings
from eat_runner.analysis.table import collate
from eat_runner.config.dataset import DatasetConfig
from eat_runner.config.hardware import PublishedHardware
from eat_runner.config.model import ModelConfig
from eat_runner.config.trainer import TrainerConfig
from frames import run, table
from run_folders import config, write_run

PUBLISHED = PublishedHardware()


def families(folder: Path, by: str) -> list[tuple[Any, ...]]:
    runs = collate(folder, PUBLISHED, by)
    return list(zip(runs["model"], runs["lambda"], runs["family"], strict=True))


def test_families_are_told_apart_by_what_differs(tmp_path: Path) -> None:
    write_run(tmp_path, config(0.0))
    write_run(tmp_path, config(1.0))
    write_run(tmp_path, config(0.0, trainer=TrainerConfig(epochs=3)))
    write_run(tmp_path, config(0.0, model="vgg16"))
    assert families(tmp_path, "family") == [
        ("resnet18", 0.0, "digits · resnet18, width 16"),
        ("resnet18", 1.0, "digits · resnet18, width 16"),
        ("resnet18", 0.0, "digits · resnet18, width 16, trainer.epochs=3"),
        ("vgg16", 0.0, "digits · vgg16, width 16"),
    ]


def test_by_data_set_networks_and_trainings_share_a_family(tmp_path: Path) -> None:
    write_run(tmp_path, config(0.0))
    write_run(tmp_path, config(1.0, trainer=TrainerConfig(epochs=3)))
    write_run(tmp_path, config(0.0, model="vgg16"))
    write_run(tmp_path, config(0.0, dataset="cifar10"))
    runs = collate(tmp_path, PUBLISHED, "dataset").set_index("run_id")
    found = sorted(zip(runs["family"], runs["network"], strict=True))
    assert found == [
        ("cifar10", "resnet18, width 16"),
        ("digits", "resnet18, width 16"),
        ("digits", "resnet18, width 16, trainer.epochs=3"),
        ("digits", "vgg16, width 16"),
    ]


def test_another_validation_split_is_another_family_by_data_set(tmp_path: Path) -> None:
    for dataset in (DatasetConfig(), DatasetConfig(validation=0.3), DatasetConfig(crop_padding=1)):
        chosen = config(0.0)
        chosen.dataset = dataset
        write_run(tmp_path, chosen)
    assert [family for *_, family in families(tmp_path, "dataset")] == [
        "digits",
        "digits",
        "digits, dataset.validation=0.3",
    ]


def test_data_of_one_name_and_other_content_stay_apart(tmp_path: Path) -> None:
    """As image folders do: a hash tells them apart where nothing else does."""
    write_run(tmp_path, config(0.0))
    determinants = {"dataset": {"name": "digits"}, "model": {"name": "resnet18"}, "lambda": 0.0, "data": "other"}
    write_run(tmp_path, config(0.0, seed=1), determinants=determinants)
    for by in ("family", "dataset"):
        assert len({family for *_, family in families(tmp_path, by)}) == 2


def test_families_with_very_long_names_stay_apart(tmp_path: Path) -> None:
    """They differ where the name is cut."""
    long = {"determinants": {"a": "x" * 40, "b": "x" * 40, "c": "x" * 40, "d": "x" * 40, "e": "x" * 40, "f": "1"}}
    other = {key: "y" + value[1:] for key, value in long["determinants"].items()}
    for number, values in enumerate([long["determinants"], other, long["determinants"] | {"f": "2"}]):
        write_run(tmp_path, config(float(number)), determinants=values)
    assert len({family for *_, family in families(tmp_path, "family")}) == 3


def test_means_and_deviations_over_seeds_against_plain_loops() -> None:
    values = {0: [0.9, 0.96, 0.7], 1: [0.5], 2: [0.3, 0.1]}
    rows = [run(lambda_, a, a / 2, seed) for lambda_, found in values.items() for seed, a in enumerate(found)]
    rows[1]["firing_rate"] = 0.25  # of one seed alone
    found = settings(table(*reversed(rows)))
    for lambda_, accuracies in values.items():
        setting = found.loc[f"s{lambda_}"]
        assert setting["n"] == len(accuracies)
        assert setting["accuracy"] == fmean(accuracies)
        assert setting["energy_ratio"] == fmean(a / 2 for a in accuracies)
        deviation = stdev(accuracies) if len(accuracies) > 1 else math.nan
        assert setting["accuracy_std"] == pytest.approx(deviation, rel=0, abs=0, nan_ok=True)
    assert found.at["s0", "firing_rate"] == 0.25
    assert found[["firing_rate_std", "energy_floor"]].isna().all(axis=None)


def test_pairs_are_of_the_same_seed() -> None:
    runs = table(run(0, 0.9, 1, 0), run(0, 0.8, 1, 1), run(1, 0.5, 1, 1), run(1, 0.6, 1, 2))
    assert at_same_seed(runs, "s0", "accuracy").fillna(-1).tolist() == [0.9, 0.8, 0.8, -1]


def names(*rows: dict[str, Any]) -> list[str]:
    return list(setting_names(settings(table(*rows))))


def test_names_say_what_differs_and_no_more() -> None:
    assert names(run(0, 1, 1), run(0.5, 1, 1)) == ["λ 0", "λ 0.5"]
    one = run(1, 1, 1, sigma=1e-4, schedule="constant", setting_id="a")
    assert names(one, one | {"sigma": 0.01, "setting_id": "b"}) == ["λ 1, σ 1e-4", "λ 1, σ 0.01"]
    assert names(one, one | {"schedule": "linear", "setting_id": "b"}) == ["λ 1, constant", "λ 1, linear"]
    knobs = {"schedule.warmup": 0.5}, {"schedule.warmup": 0.1}
    assert names(one | knobs[0], one | knobs[1] | {"setting_id": "b"}) == ["λ 1, warmup 0.5", "λ 1, warmup 0.1"]


@pytest.mark.parametrize("width", [64, 8])
def test_the_standard_width_is_not_named(tmp_path: Path, width: int) -> None:
    chosen = config(0.0)
    chosen.model = ModelConfig(width=width)
    write_run(tmp_path, chosen)
    assert families(tmp_path, "family")[0][2] == ("digits · resnet18" if width == 64 else "digits · resnet18, width 8")


def test_what_is_as_usual_is_told_only_where_it_tells_settings_of_a_method_apart():
    from eat_runner.analysis.families import _is_usual

    assert [_is_usual("pruning.begin", value) for value in (0.1, 0.2)] == [True, False]
    assert not _is_usual("pruning.density", 0.1)
    assert not _is_usual("budget", 0.1)
    assert not _is_usual("hydra.x", 0.1)
