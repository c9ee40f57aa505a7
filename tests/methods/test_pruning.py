"""Magnitude pruning: densities by hand, masks against sorting, exact zeros that survive momentum, decay and resume."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from eat_runner import run
from eat_runner.config import MeterConfig, ModelConfig
from eat_runner.config.identity import run_id
from eat_runner.config.pruning import RANKINGS, PruningConfig
from eat_runner.energy.hardware import load_hardware
from eat_runner.energy.meter import measure
from eat_runner.energy.rules import RULES
from eat_runner.methods.prunable import Layer, prunable
from eat_runner.methods.pruner import Pruner
from eat_runner.records import RunFolder
from examples import trained


@pytest.fixture
def pruned(small_config):
    settings = PruningConfig(name="magnitude", density=0.2, every_steps=2, begin=0.2, end=0.8)
    return replace(small_config, methods={"pruning": settings}, lambda_=0.0)


def folder_of(config, record):
    return RunFolder(Path(config.results_dir) / config.name / record.run_id)


def test_a_magnitude_is_that_of_the_weight_with_its_batch_norm_folded_in():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2)
    )
    norm = model[1]
    with torch.no_grad():
        norm.running_var.copy_(torch.tensor([0.1, 1.0, 9.0]))
        norm.weight.copy_(torch.tensor([1.0, -2.0, 0.5]))
    x = torch.randn(4, 2, 6, 6)
    counts = measure(model, [x], MeterConfig(batch_size=4), floor=False)
    layers = prunable(model, counts, PruningConfig(name="magnitude", first_layer=True))
    assert [layer.name for layer in layers] == ["0", "3"]
    # the folded weight, from what the two layers do to one-hot images: out(x + e) - out(x) is linear in e
    model.eval().double()
    basis = torch.eye(18, dtype=torch.float64).view(18, 2, 3, 3)
    zero = torch.zeros(1, 2, 3, 3, dtype=torch.float64)
    with torch.no_grad():
        folded = (model[:2](basis) - model[:2](zero)).view(18, 3).T.reshape(3, 2, 3, 3)
    torch.testing.assert_close(layers[0].magnitudes().double(), folded.abs(), rtol=1e-6, atol=1e-7)
    assert torch.equal(layers[1].magnitudes(), model[3].weight.abs())


@pytest.mark.parametrize("ranking", RANKINGS)
def test_exactly_so_many_weights_are_zero_in_the_file_and_in_the_counts(ranking: str, pruned):
    config = replace(pruned, methods={"pruning": replace(pruned.methods["pruning"], ranking=ranking)})
    record = run.run(config)
    assert (record.status, record.reason) == ("finished", "")
    folder = folder_of(config, record)
    weights = {n: w for n, w in load_file(folder.weights).items() if n.endswith("weight") and w.dim() > 1}
    inside = [w for n, w in weights.items() if n not in {"conv1.weight", "fc.weight"}]
    sizes, left = [w.numel() for w in inside], [int((w != 0).sum()) for w in inside]
    if ranking == "global":
        assert sum(left) == round(0.2 * sum(sizes))
        assert len({round(a / b, 2) for a, b in zip(left, sizes, strict=True)}) > 3
    elif ranking == "uniform":
        assert left == [round(0.2 * size) for size in sizes]
    else:
        assert sum(left) == pytest.approx(0.2 * sum(sizes), abs=len(sizes))
        assert left[0] / sizes[0] > 2 * left[-1] / sizes[-1]  # layer1 is smaller than layer4
    assert bool((weights["conv1.weight"] != 0).all() and (weights["fc.weight"] != 0).all())
    rows = folder.read_counts().select("test").layers
    counted = {row.name: row.weight_nonzeros for row in rows if row.op in {"Conv2d", "Linear"}}
    assert counted == {name.removesuffix(".weight"): int((w != 0).sum()) for name, w in weights.items()}
    [change] = record.changes
    assert sum(masked for masked, _ in change["masked"].values()) == sum(sizes) - sum(left)


def test_masks_only_grow_and_stay_once_the_window_is_over(pruned):
    trainer = run.locate_and_build(pruned).trainer()
    [method] = trainer.methods.values()
    seen = []

    def look():
        seen.append({name: mask.clone() for name, mask in method.last.masks.items()})
        zeros = [
            bool((layer.weight[~method.last.masks[layer.name]] == 0).all())
            for layer in method.last.layers
            if method.last.masks
        ]
        assert all(zeros)
        return False

    for _ in trainer.epochs(look, lambda *_: None):
        pass
    kept = [sum(int(m.sum()) for m in masks.values()) for masks in seen if masks]
    assert kept == sorted(kept, reverse=True)
    for before, after in pairwise(seen):
        assert all(bool((mask | ~after[name]).all()) for name, mask in before.items())
    # ten steps, the window ends after eight: the last two have the masks of the eighth
    assert [len(masks) > 0 for masks in seen] == [False] * 2 + [True] * 8
    assert all(torch.equal(seen[8][name], mask) for name, mask in seen[9].items())


@pytest.mark.parametrize("stops", [(3,), (5,), (2, 4), (9,)])
def test_a_pruned_training_resumes_to_the_bit(stops, pruned):
    config = replace(pruned, lambda_=1.0)
    whole, resumed = trained(config), trained(config, *stops)
    states = whole.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    masks = whole.methods["pruning"].last.masks, resumed.methods["pruning"].last.masks
    assert all(torch.equal(mask, masks[1][name]) for name, mask in masks[0].items())


def test_a_trained_network_is_pruned_at_once_without_training(small_config, pruned):
    parent = run.run(replace(small_config, lambda_=0.0))
    start = folder_of(small_config, parent)
    config = replace(pruned, init=str(start.path), trainer=replace(pruned.trainer, epochs=0))
    record = run.run(config)
    assert record.status == "finished"
    before, after = load_file(start.weights), load_file(folder_of(config, record).weights)
    for name, weight in after.items():
        assert bool(((weight == before[name]) | (weight == 0)).all())
    inside = [n for n, w in after.items() if n.endswith("weight") and w.dim() == 4 and n != "conv1.weight"]
    left, size = sum(int((after[n] != 0).sum()) for n in inside), sum(after[n].numel() for n in inside)
    assert left == round(0.2 * size)


def test_a_network_without_anything_between_its_first_and_last_layer(small_config, pruned):
    model = ModelConfig(name="vgg11", width=1)
    settings = replace(pruned.methods["pruning"], first_layer=True, last_layer=True)
    record = run.run(replace(pruned, model=model, methods={"pruning": settings}))
    assert record.status == "finished"
    assert "classifier" in record.changes[0]["masked"]


# --- by energy


def test_by_energy_a_weight_counts_its_square_over_what_it_costs():
    """Two layers of the same magnitudes, of which one costs four times as much: it keeps those twice as large."""
    torch.manual_seed(0)
    pruner = Pruner(PruningConfig(name="energy", density=0.3))
    weights = [nn.Parameter(torch.rand(50, 40)) for _ in range(2)]
    for name, weight in zip("ab", weights, strict=True):
        module = nn.Linear(1, 1)
        module.weight = nn.Parameter(weight.detach())
        pruner.layers.append(Layer(name, module, None))
    pruner.prices_pj = {"a": 1.0, "b": 4.0}
    pruner.prune(1.0)
    a, b = (weight.detach()[pruner.masks[name]] for name, weight in zip("ab", weights, strict=True))
    assert len(a) + len(b) == round(0.3 * 4000)
    limit = a.min()
    assert limit == pytest.approx(b.min().item() / 2, rel=0.01)
    assert torch.equal(pruner.masks["a"], weights[0].detach() >= limit)


def test_prices_are_those_of_the_rule_and_move_with_the_looks(pruned):
    settings = replace(pruned.methods["pruning"], name="energy")
    hardware = load_hardware("fused_7nm_int8")
    config = replace(pruned, methods={"pruning": settings}, hardware=hardware)
    trainer = run.locate_and_build(config).trainer()
    counts = trainer.look()
    found = RULES["fused"].marginal_pj(counts, hardware).weights
    expected = {row.name: found[row.call] for row in counts.layers if row.call in found}
    list(trainer.epochs(lambda: True, lambda *_: None))
    first = trainer.methods["pruning"].last.prices_pj
    assert first == {name: expected[name] for name in first}
    assert len(first) == 19  # of 21 convolutions and linear layers
    list(trainer.epochs(lambda: False, lambda *_: None))
    assert trainer.methods["pruning"].last.prices_pj != first


@pytest.mark.parametrize("name", ["published", "fused_45nm", "eyeriss_65nm"])
def test_pruning_by_energy_resumes_to_the_bit_and_is_named_by_prices(name, pruned):
    settings = replace(pruned.methods["pruning"], name="energy")
    config = replace(pruned, methods={"pruning": settings}, hardware=load_hardware(name))
    whole, resumed = trained(config), trained(config, 3, 4)
    states = whole.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    other = replace(config, hardware=replace(config.hardware, multiply_pj=9.0))
    assert run_id(config, "data") != run_id(other, "data")
    magnitude = [replace(c, methods=pruned.methods) for c in (config, other)]
    assert len({run_id(c, "data") for c in magnitude}) == 1
