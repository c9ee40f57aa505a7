"""Layers: means over seeds, two settings side by side."""

from pathlib import Path

import pytest

import run_folders
from eat_runner.analysis.layers import layer_means, layer_panel
from eat_runner.analysis.pareto import fronts
from eat_runner.analysis.table import collate
from eat_runner.config.hardware import PublishedHardware
from eat_runner.errors import UserError
from run_folders import config, write_run, write_sweep

PUBLISHED = PublishedHardware()


def test_layer_means_average_over_seeds(tmp_path: Path) -> None:
    write_sweep(tmp_path, (1,), (0, 3))
    runs = collate(tmp_path, PUBLISHED)
    layers = layer_means(runs, PUBLISHED)
    expected = [
        sum(r.output_nonzeros for r in run_folders.counts(1, seed).select("test").layers if r.name == "layer1.0.relu")
        / (400 * 16 * 64)
        for seed in (0, 3)
    ]
    assert layers.set_index("name").at["layer1.0.relu", "firing_rate"] == pytest.approx(sum(expected) / 2, rel=1e-12)
    assert len(layers) == 25
    # the generated totals of a batch are whole numbers, so they differ in the seventh digit
    assert sum(layers["energy_pj"]) / 1e6 == pytest.approx(sum(runs["energy_uj_per_image"]) / 2, rel=1e-6)


def test_layers_of_runs_that_differ_are_refused_and_the_folder_is_named(tmp_path: Path) -> None:
    write_run(tmp_path, config(1.0, seed=0), blocks=8)
    other = write_run(tmp_path, config(1.0, seed=1), blocks=4)
    with pytest.raises(UserError, match="its layers are others than those in") as error:
        layer_means(collate(tmp_path, PUBLISHED), PUBLISHED)
    assert str(error.value).startswith(str(other.layers))


def test_two_settings_side_by_side_in_the_order_of_the_calls(tmp_path: Path) -> None:
    write_sweep(tmp_path, (0, 2), (0,))
    (front,) = fronts(collate(tmp_path, PUBLISHED))
    trained = front.settings.index[~front.settings["is_baseline"]][0]
    panel = layer_panel(front, front.reference, trained, PUBLISHED, "family", "ST", "EAT")
    assert list(panel.layers["name"][:3]) == ["layer1.0.conv", "layer1.0.bn", "layer1.0.relu"]
    relu = panel.layers.set_index("name").loc["layer1.0.relu"]
    assert relu["firing_rate_st"] == pytest.approx(run_folders.firing(0, 0), abs=1e-5)
    assert relu["firing_rate_eat"] == pytest.approx(run_folders.firing(2, 0), abs=1e-5)
