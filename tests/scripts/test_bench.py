"""The benchmark runs, at tiny sizes, and its baselines compute what ours computes. Nothing here looks at a clock."""

import csv
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

from bench import baselines, engine, sections, table  # noqa: E402
from bench.engine import TINY, Network  # noqa: E402
from bench.sections import LAMBDA, SECTIONS, SIGMA, metered, observer_of, peak_bytes, random_images, step_of  # noqa: E402
from eat_runner.config import DatasetConfig  # noqa: E402
from eat_runner.data.batches import training_batches  # noqa: E402
from eat_runner.environment import multiplies_bf16  # noqa: E402

RESNET = Network("resnet18", 2)


def small_training():
    return baselines.training(RESNET, TINY)


def test_our_steps_and_the_two_pass_step_train_alike():
    torch.set_num_threads(1)
    penalties, weights = {}, {}
    plain = small_training()
    baselines.plain_step(plain)
    for name in ("two passes", "in backward", "in the loss"):
        t = small_training()
        if name == "two passes":
            penalties[name] = baselines.two_pass_step(t, SIGMA, LAMBDA)
        else:
            with observer_of(t, "leaf_modules", in_backward=name == "in backward") as observer:
                assert (observer.in_backward is None) == (name == "in the loss")
                penalties[name] = step_of(t, observer)(value=True).penalty
        weights[name] = torch.cat([p.detach().flatten() for p in t.model.parameters()])
    without = torch.cat([p.detach().flatten() for p in plain.model.parameters()])
    moved = (weights["two passes"] - without).norm()  # by the penalty
    assert moved > 0
    for name in ("in backward", "in the loss"):
        assert penalties[name].item() == pytest.approx(penalties["two passes"].item(), rel=1e-5)
        assert (weights[name] - weights["two passes"]).norm() < 1e-2 * moved


def test_the_naive_surrogate_by_hand():
    assert baselines.naive_surrogate(torch.tensor([0.0, 1.0, -3.0]), 1.0).item() == pytest.approx(0.5 + 0.9)


def test_a_plain_step_by_hand():
    t = small_training()
    before = [p.detach().clone() for p in t.model.parameters()]
    F.cross_entropy(small_training().model(t.x_nchw), t.labels)
    baselines.plain_step(t)
    for p, old in zip(t.model.parameters(), before, strict=True):
        assert p.grad is not None
        # the first step of SGD with momentum and weight decay
        torch.testing.assert_close(p.detach(), old - 0.01 * (p.grad + 5e-4 * old))


def test_the_listing_meter_counts_what_ours_counts():
    t = small_training()
    batches = [t.x_nchw, t.x_nchw.relu()]
    for _ in range(2):  # statistics that are not those of a fresh network
        t.model(t.x_nchw)
    listed = baselines.listing_meter(t.model, batches, 2.0**-126)
    ours = metered(t.model, batches).batches
    assert len(ours) == len(listed) == 2
    for totals, counted in zip(listed, ours, strict=True):
        assert totals == {
            "input_elements": counted.input_elements,
            "input_nonzeros": counted.input_nonzeros_as_built,
            "output_elements": counted.output_elements,
            "output_nonzeros": counted.output_nonzeros,
            "parameter_elements": counted.parameter_elements,
            "parameter_nonzeros": counted.parameter_nonzeros,
        }
    assert listed[0]["output_nonzeros"] < listed[0]["output_elements"]


def test_the_per_image_loader_yields_the_images_that_ours_yields():
    images = random_images(10, 8)
    config = DatasetConfig(image_size=8)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    both = []
    for batches in (
        baselines.pil_loader(images, config, 4, mean, std),
        training_batches(images, config, 5, mean, std, 0, 0, torch.device("cpu")),
    ):
        rows = torch.cat([torch.cat([x.flatten(1), y[:, None].float()], 1) for x, y in batches]).numpy()
        both.append(rows)
    assert both[0].shape == (8, 3 * 64 + 1)  # the last, smaller batch is dropped
    assert both[1].shape == (10, 3 * 64 + 1)
    for row in both[0]:
        assert np.abs(both[1] - row).max(1).min() < 1e-5


def test_the_per_image_loader_augments():
    images = random_images(8, 8)
    config = DatasetConfig(image_size=8, crop_padding=2, flip=True, rotation_degrees=10.0)
    loaded = baselines.pil_loader(images, config, 8, (0.0,) * 3, (1.0,) * 3)
    x, labels = next(loaded)
    assert x.shape == (8, 3, 8, 8)
    assert sorted(labels.tolist()) == list(range(8))
    stored = torch.from_numpy(images.images_nhwc[labels.numpy()]).permute(0, 3, 1, 2) / 255
    assert (x - stored).abs().flatten(1).amax(1).gt(0.1).all()


def test_the_minimal_loop_is_plain_steps_over_consecutive_batches():
    a, b = small_training(), small_training()
    images, labels = torch.randn(8, 3, 8, 8), torch.arange(8)
    baselines.minimal_loop(a, images, labels, 2)
    for first in (0, 4):
        b.x_nchw, b.labels = images[first : first + 4], labels[first : first + 4]
        baselines.plain_step(b)
    for p, q in zip(a.model.parameters(), b.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_interleaved_calls_every_variant_equally_often_and_in_changing_order():
    calls = []
    seconds = engine.interleaved({k: lambda k=k: calls.append(k) for k in "abc"}, rounds=20, calls=2)
    assert calls[:3] == ["a", "b", "c"]  # to warm up
    rounds = ["".join(calls[i : i + 6]) for i in range(3, len(calls), 6)]
    assert len(rounds) == 20
    assert {"".join(sorted(order)) for order in rounds} == {"aabbcc"}
    assert all(order[0::2] == order[1::2] for order in rounds)  # both calls of a variant, then the next
    assert {order[0] for order in rounds} == {"a", "b", "c"}
    assert {k: len(v) for k, v in seconds.items()} == dict.fromkeys("abc", 20)


def test_the_mean_of_steps_one_of_which_is_special():
    samples = {"step": np.array([1.0, 2.0]), "with masks": np.array([11.0, 2.0])}
    assert engine.mean_of(samples, "step", "with masks", 10).tolist() == [2.0, 2.0]


@pytest.mark.parametrize(
    ("values", "bound", "goal", "stretch", "verdict"),
    [
        ([1.06, 1.0, 1.2], "at most", "1.07", "1.05", "met"),
        ([1.04, 1.0, 1.2], "at most", "1.07", "1.05", "stretch"),
        ([1.08], "at most", "1.07", "", "missed"),
        ([5.0], "at least", "5", "", "met"),
        ([4.9], "at least", "5", "", "missed"),
        ([4.9], "", "", "", ""),
    ],
)
def test_verdict(values, bound, goal, stretch, verdict):
    row = {"of": "x", "per": "", "bound": bound, "goal": goal, "stretch_goal": stretch, "unit": "ratio"}
    assert table.verdict(table.figure(row, {"x": np.array(values)})) == verdict


def test_a_figure_is_the_median_of_ratios_beside_the_goal_of_its_network():
    samples = {"leaf_modules": np.array([1.0, 6.0, 3.0]), "plain": np.array([1.0, 2.0, 2.0])}
    of_networks = [table.figures("training", samples, TINY, str(n), i) for i, n in enumerate(TINY.networks)]
    [first], [second] = of_networks  # of all rows of the section, the one whose samples there are
    assert first["figure"] == "training step, penalty on all leaf modules / plain step (a)"
    assert (first["median"], first["min"], first["max"], first["repetitions"]) == (1.5, 1.0, 3.0, 3)
    assert [(row["network"], row["goal"]) for row in (first, second)] == [
        ("resnet18 width 2", 1.20),
        ("vgg11 width 2", 1.08),
    ]


def test_every_row_has_a_section_and_every_goal_a_bound():
    assert {row["section"] for row in table.ROWS} == set(SECTIONS)
    for row in table.ROWS:
        assert bool(row["goal"]) == (row["bound"] in {"at most", "at least"})


def test_a_table_that_is_written_and_read_again(tmp_path):
    (tmp_path / "a.csv").write_text(
        "figure,network,bound,goal,stretch_goal,median,min,max,repetitions,unit\n"
        '"a, b",,at most,2,,2.117,1.235,3,2,ratio\n'
        "c,net,,,,1.235e+05,1.235e+05,1.235e+05,1,s\n"
    )
    read = table.read(tmp_path / "a.csv")
    assert table.as_markdown(read).splitlines()[2:] == [
        "| a, b |  | at most 2 | 2.117 | 1.235 to 3.000 | 2 | ratio | missed |",
        "| c | net |  | 123,500 |  | 1 | s |  |",
    ]
    assert table.shown(read).splitlines()[1] == (
        "a, b             at most 2  2.117    1.235 to 3.000       2  ratio  missed"
    )


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_peak_memory_grows_with_the_batch():
    small, large = (
        engine.fresh(partial(peak_bytes, scope="plain"), RESNET, replace(TINY, image_size=32, batch=n))["bytes"][0]
        for n in (2, 128)
    )
    assert large > small + 100 * 2 * 32 * 32 * 4  # the first layer's output alone, with room for noise


def samples_of(section):
    """Names that its rows are made of."""
    return {row[key] for row in table.ROWS if row["section"] == section for key in ("of", "per")} - {""}


def test_the_data_section_runs():
    assert samples_of("data") <= set(sections.data(engine.NO_NETWORK, TINY))


@pytest.mark.long
def test_the_gpu_section_runs_on_the_cpu():
    found = set(sections.gpu_steps(RESNET, TINY, device="cpu"))
    unknown = {name for name in samples_of("gpu") if name.startswith("peak")}  # no share of a peak that is unknown
    assert samples_of("gpu") - unknown <= found
    assert not unknown & found


def bench(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "bench", *arguments],
        env=os.environ | {"PYTHONPATH": str(SCRIPTS), "OMP_NUM_THREADS": "1"},  # the compiler is found on the PATH
        capture_output=True,
        text=True,
    )


@pytest.mark.long
def test_command_line(tmp_path):
    done = bench("--tiny", "--output", str(tmp_path), "training", "methods", "evaluation")
    assert done.returncode == 0, done.stderr
    with (tmp_path / "training.csv").open() as file:
        rows = list(csv.DictReader(file))
    goals = {(row["figure"], row["network"]): row["goal"] for row in rows if row["goal"]}
    assert goals["training step, penalty on activation outputs / plain step (a)", "vgg11 width 2"] == "1.07"
    assert all(float(row["min"]) <= float(row["median"]) <= float(row["max"]) for row in rows)
    for name in ("methods", "evaluation"):
        with (tmp_path / f"{name}.csv").open() as file:
            rows += csv.DictReader(file)
    table = [line.strip("| ").split(" | ") for line in (tmp_path / "table.md").read_text().splitlines()[2:]]
    assert [[cells[0], cells[1]] for cells in table] == [[row["figure"], row["network"]] for row in rows]
    assert [row["goal"] for row in rows if "weighting=energy" in row["figure"] or "look" in row["figure"]] == [
        "1.05",
        "0.02",
    ]
    assert [cells[2] for cells in table if "/ plain step" in cells[0]][:2] == ["at most 1.07", "at most 1.2"]
    facts = (tmp_path / "machine.json").read_text()
    assert '"command": "PYTHONPATH=scripts python -m bench --tiny' in facts
    refused = bench("speed")
    assert refused.returncode == 2
    assert "no section speed" in refused.stderr


@pytest.mark.long
def test_the_slow_sections_run():
    done = bench("--tiny", "precision", "memory", "compiled", "help", "report", "whole")
    assert done.returncode == 0, done.stderr
    for figure in (
        "bf16 autocast / float32" if multiplies_bf16(torch.device("cpu")) else "precision: skipped",
        "compiled step with the penalty",
        "eat-run --help / ",
        "eat-report on 8",
        "eat-run / minimal loop",
    ):
        assert figure in done.stdout
