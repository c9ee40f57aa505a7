"""Pruning of whole channels, 2:4, and under a budget: what goes is found by hand in the weights' file, what is left
costs what the budget allows."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from eat_runner import load_run, run
from eat_runner.config import MeterConfig, ModelConfig
from eat_runner.config.bits import BitsConfig
from eat_runner.config.compact import CompactConfig
from eat_runner.config.hardware import PublishedHardware
from eat_runner.config.identity import run_id
from eat_runner.config.pruning import PruningConfig
from eat_runner.energy.estimate import estimate
from eat_runner.energy.hardware import load_hardware
from eat_runner.energy.meter import measure
from eat_runner.energy.rules import RULES
from eat_runner.errors import UserError
from eat_runner.methods.pruning import Pruning
from eat_runner.records import RunFolder
from examples import trained

INT8 = load_hardware("fused_7nm_int8")


@pytest.fixture
def channels(small_config):
    settings = PruningConfig(name="magnitude", structure="channel", density=0.5, every_steps=2, begin=0.2, end=0.8)
    return replace(small_config, methods={"pruning": settings}, lambda_=0.0)


def budgeted(config, share, **settings):
    pruning = replace(config.methods["pruning"], density=None, structure="element")
    return replace(config, methods={"pruning": replace(pruning, **settings)}, budget=share, hardware=INT8)


def folder_of(config, record):
    return RunFolder(Path(config.results_dir) / config.name / record.run_id)


# --- channels


def test_of_a_resnet_the_channels_inside_its_blocks_go(channels):
    record = run.run(channels)
    assert (record.status, record.reason) == ("finished", "")
    masked = record.changes[0]["masked"]
    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]
    assert [*masked] == [f"{block}.conv1" for block in blocks]  # what an addition reads stays whole
    sizes = [4, 4, 8, 8, 16, 16, 32, 32]
    assert [size for _, size in masked.values()] == sizes
    assert sum(count for count, _ in masked.values()) == sum(sizes) - round(0.5 * sum(sizes))
    weights = load_file(folder_of(channels, record).weights)
    for block in blocks:
        first, second = weights[f"{block}.conv1.weight"], weights[f"{block}.conv2.weight"]
        gone = (first == 0).flatten(1).all(1)
        assert int(gone.sum()) == masked[f"{block}.conv1"][0]
        assert bool((first[~gone] != 0).all())
        assert bool(
            (weights[f"{block}.bn1.weight"][gone] == 0).all() and (weights[f"{block}.bn1.bias"][gone] == 0).all()
        )
        assert torch.equal(second == 0, gone.view(1, -1, 1, 1).expand_as(second))
    # so no value of them is ever above zero, and none is stored as one
    rows = folder_of(channels, record).read_counts().select("test").layers
    for row in rows:
        if row.name.endswith("relu1") and row.name != "relu":
            gone, size = masked[row.name.replace("relu1", "conv1")]
            assert row.output_nonzeros <= row.output_elements * (size - gone) // size


def test_of_a_vgg_all_channels_but_the_first_layers_go_and_the_classifier_reads_no_zeros(channels):
    settings = replace(channels.methods["pruning"], first_layer=True)
    config = replace(channels, model=ModelConfig(name="vgg11", width=4), methods={"pruning": settings})
    record = run.run(config)
    weights = load_file(folder_of(config, record).weights)
    names = [name.removesuffix(".weight") for name, w in weights.items() if name.endswith("weight") and w.dim() == 4]
    assert sorted(record.changes[0]["masked"]) == sorted(names)
    last = max(names, key=lambda name: int(name.split(".")[-1]))
    gone = (weights[f"{last}.weight"] == 0).flatten(1).all(1)
    assert 0 < int(gone.sum()) < len(gone)
    assert torch.equal(weights["classifier.weight"] == 0, gone.expand_as(weights["classifier.weight"]))
    # and no layer lost all that it has
    assert all(masked < size for masked, size in record.changes[0]["masked"].values())


def small_network():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)
    )
    with torch.no_grad():
        model[1].running_var.copy_(torch.tensor([0.1, 1.0, 9.0]))
        model[1].weight.copy_(torch.tensor([1.0, -2.0, 0.5]))
    return model.eval()


def looked_at(model, settings, hardware):
    images = torch.randn(4, 2, 6, 6)
    counts = measure(model, [images], MeterConfig(batch_size=4), floor=False)
    pruning = Pruning(settings, hardware)
    pruning.on_build(model)
    pruning.on_example(model, images[:1])
    pruning.before_training(counts)
    return pruning.last, counts


def test_a_channel_is_worth_the_mean_square_of_its_folded_weights():
    model = small_network()
    settings = PruningConfig(name="magnitude", structure="channel", first_layer=True)
    pruner, _ = looked_at(model, settings, PublishedHardware())
    assert {layer.name: [*layer.readers] for layer in pruner.layers} == {"0": ["3"], "3": ["6"]}
    scale = torch.tensor([1.0, 2.0, 0.5]) / (torch.tensor([0.1, 1.0, 9.0]) + 1e-5).sqrt()
    folded = model[0].weight.detach().double() * scale.double().view(-1, 1, 1, 1)
    expected = [float((folded[i] ** 2).mean()) for i in range(3)]
    assert pruner.score(pruner.layers[0]).tolist() == pytest.approx(expected, rel=1e-5)


def test_a_channel_costs_its_weights_and_those_that_read_it():
    model, hardware = small_network(), load_hardware("fused_45nm")
    settings = PruningConfig(name="energy", structure="channel", first_layer=True)
    pruner, counts = looked_at(model, settings, hardware)
    found = RULES["fused"].marginal_pj(counts, hardware).weights
    prices = {row.name: found[row.call] for row in counts.layers if row.call in found}
    # a channel of layer 3: 3 x 9 weights of its own, and 4 of each of two outputs of layer 6
    squares = model[3].weight.detach().double().square().flatten(1).sum(1)
    expected = (squares / (27 * prices["3"] + 8 * prices["6"])).tolist()
    assert pruner.score(pruner.layers[1]).tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "between",
    [nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Flatten(1, 2)), nn.LayerNorm([4, 4, 4]), nn.PixelShuffle(2)],
    ids=["view", "layer_norm", "shuffle"],
)
def test_channels_that_something_else_reads_stay(between):
    last = nn.Conv2d(1 if isinstance(between, nn.PixelShuffle) else 4, 2, 3)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), between, last, nn.Flatten()).eval()
    settings = PruningConfig(name="magnitude", structure="channel", first_layer=True)
    with pytest.raises(UserError, match="there is none that only convolutions and linear layers read"):
        looked_at(model, settings, PublishedHardware())


def test_channels_go_first_and_single_weights_of_the_others_after_them(channels):
    settings = replace(channels.methods["pruning"], structure="element", channels=0.5, density=0.2)
    config = replace(channels, methods={"pruning": settings})
    record = run.run(config)
    assert (record.status, record.reason) == ("finished", "")
    change = record.changes[0]
    assert sum(gone for gone, _ in change["masked_channels"].values()) == 120 - 60  # 4, 4, 8, 8, 16, 16, 32, 32
    sizes = [size for _, size in change["masked"].values()]
    assert sum(gone for gone, _ in change["masked"].values()) == sum(sizes) - round(0.2 * sum(sizes))
    weights = load_file(folder_of(config, record).weights)
    for name, (gone, size) in change["masked_channels"].items():
        block = name.removesuffix(".conv1")
        silent = (weights[f"{block}.bn1.weight"] == 0) & (weights[f"{block}.bn1.bias"] == 0)
        assert (int(silent.sum()), len(silent)) == (gone, size)
        assert bool((weights[f"{name}.weight"][silent] == 0).all())
        assert bool((weights[f"{block}.conv2.weight"][:, silent] == 0).all())
    # taken out, they leave a network of so many channels; its weights are those that are left
    compact = run.run(
        replace(
            config,
            init=str(folder_of(config, record).path),
            methods={"compact": CompactConfig(name="exact")},
            trainer=replace(config.trainer, epochs=0),
        )
    )
    smaller = load_file(folder_of(config, compact).weights)
    for name, (gone, size) in change["masked_channels"].items():
        assert len(smaller[f"{name}.weight"]) <= size - gone
    nonzeros = [sum(int((w != 0).sum()) for w in net.values() if w.dim() == 4) for net in (weights, smaller)]
    assert nonzeros[1] <= nonzeros[0]
    assert compact.accuracy["test"] == record.accuracy["test"]


def test_all_in_one_run_is_the_same_as_one_after_the_other(channels):
    """Channels, single weights, taken out, integers."""
    settings = replace(channels.methods["pruning"], structure="element", channels=0.5, density=0.2)
    one = {"pruning": settings, "compact": CompactConfig(name="exact")}
    two = {"bits": BitsConfig(name="4")}
    channels = replace(channels, hardware=INT8)
    first = folder_of(channels, run.run(replace(channels, methods=one)))
    now = replace(channels.trainer, epochs=0)
    then = run.run(replace(channels, methods=two, init=str(first.path), trainer=now))
    whole = run.run(replace(channels, methods=one | two))
    assert [change["method"] for change in whole.changes] == ["pruning", "compact", "bits"]
    assert whole.changes == then.changes
    assert whole.accuracy["test"] == then.accuracy["test"]
    states = [load_file(folder_of(channels, record).weights) for record in (whole, then)]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert run_folder_loads(folder_of(channels, whole), states[0])


def run_folder_loads(folder, state):
    """Whether load_run builds the very network again: smaller, folded."""
    loaded = load_run(folder.path).model.state_dict()
    return loaded.keys() == state.keys() and all(torch.equal(value, loaded[key]) for key, value in state.items())


def test_channels_and_single_weights_resume_to_the_bit_also_under_a_budget(channels):
    settings = replace(channels.methods["pruning"], structure="element", channels=0.5, density=0.2)
    config = replace(channels, methods={"pruning": settings})
    for each in (config, replace(budgeted(config, 0.25, name="energy"), lambda_=1.0)):
        whole, resumed = trained(each), trained(each, 3, 5, 7)
        states = whole.model.state_dict(), resumed.model.state_dict()
        assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


# --- 2:4


def test_two_of_every_four_inputs_are_left(channels):
    config = replace(channels, methods={"pruning": replace(channels.methods["pruning"], structure="2:4")})
    record = run.run(config)
    assert (record.status, record.reason) == ("finished", "")
    for name, weight in load_file(folder_of(config, record).weights).items():
        if not name.endswith("weight") or weight.dim() == 1:
            continue
        if name in {"conv1.weight", "fc.weight"}:
            assert bool((weight != 0).all())
        else:
            four = weight.movedim(1, -1).reshape(-1, 4)
            assert bool(((four != 0).sum(1) == 2).all())


def test_inputs_that_do_not_divide_by_four_are_refused_before_anything_is_written(channels):
    settings = replace(channels.methods["pruning"], structure="2:4", density=None)
    config = replace(channels, model=replace(channels.model, width=6), methods={"pruning": settings})
    with pytest.raises(
        UserError, match=r"^pruning.structure=2:4: layer1.0.conv1 has 6 inputs for each output, no mult"
    ):
        run.run(config)
    assert not Path(config.results_dir).exists()


# --- a budget


@pytest.mark.parametrize(
    ("share", "settings"),
    [
        (0.3, {"name": "energy"}),
        (0.3, {"name": "magnitude"}),
        (0.3, {"name": "magnitude", "ranking": "uniform"}),
        (0.3, {"name": "magnitude", "ranking": "erk"}),
        (0.4, {"name": "energy", "structure": "channel"}),
    ],
    ids=["energy", "magnitude", "uniform", "erk", "channel"],
)
def test_a_training_ends_at_its_budget(share, settings, channels):
    config = budgeted(channels, share, **settings)
    config = replace(config, dataset=replace(config.dataset, train_limit=320))
    experiment = run.locate_and_build(config)
    dense = estimate(experiment.trainer().look(), INT8, "look").dense_uj_per_image
    record = run.run(config)
    assert (record.status, record.reason) == ("finished", "")
    counts = folder_of(config, record).read_counts()
    spent = estimate(counts, INT8, "validation").energy_uj_per_image / dense
    assert record.budget is not None
    assert record.budget["share"] == pytest.approx(spent)
    assert record.budget["limit"] == pytest.approx(share)
    assert record.budget["limit_uj"] == pytest.approx(share * dense)
    assert record.budget["met"] == (spent <= share)
    # nothing is given away but the margin, and for a whole channel more
    assert share * (0.8 if "structure" in settings else 0.985) < spent <= share * 1.002


def test_a_budget_is_that_of_the_integers_that_come_out(channels):
    """With 4 bits a network of float32 values costs twice what is measured: half of the weights would be given away."""
    config = budgeted(channels, 0.16, name="energy")
    config = replace(config, methods=config.methods | {"bits": BitsConfig(name="4")})
    dense = estimate(run.locate_and_build(config).trainer().look(), INT8, "look").dense_uj_per_image
    record = run.run(config)
    assert (record.status, record.reason) == ("finished", "")
    counts = folder_of(config, record).read_counts()
    assert {row.weight_bits for row in counts.layers if row.weight_elements} == {4, 8}
    spent = estimate(counts, INT8, "validation").energy_uj_per_image / dense
    assert 0.9 * 0.16 < spent <= 0.16
    assert record.budget["met"]
    with pytest.raises(UserError, match=r"^the budget is 0\.02 of the dense energy on fused_7nm_int8, and with every"):
        run.run(replace(config, budget=0.02))


@pytest.mark.parametrize("settings", [{"channels": 0.5}, {"structure": "channel"}], ids=["behind channels", "channel"])
def test_a_budget_is_that_of_the_smaller_network_that_comes_out(settings, channels):
    """Zeros of channels that go cost no mask and no run codes: what they would is left to other weights."""
    channels = replace(channels, dataset=replace(channels.dataset, train_limit=320))
    shares = []
    for compact in ({}, {"compact": CompactConfig(name="exact")}):
        config = budgeted(channels, 0.3, name="energy", **settings)
        config = replace(config, methods=config.methods | compact)
        dense = estimate(run.locate_and_build(config).trainer().look(), INT8, "look").dense_uj_per_image
        record = run.run(config)
        assert (record.status, record.reason) == ("finished", "")
        folder = folder_of(config, record)
        spent = estimate(folder.read_counts(), INT8, "validation").energy_uj_per_image / dense
        assert record.budget["share"] == pytest.approx(spent)
        assert (0.24 if "structure" in settings else 0.29) < spent <= 0.302
        shares.append(sum(int((w != 0).sum()) for w in load_file(folder.weights).values() if w.dim() == 4))
    assert shares[1] > shares[0]


@pytest.mark.parametrize("name", ["energy", "magnitude"])
def test_a_training_under_a_budget_resumes_to_the_bit(name, channels):
    config = replace(budgeted(channels, 0.3, name=name), lambda_=1.0)
    whole, resumed = trained(config), trained(config, 4, 7)
    states = whole.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    masks = whole.methods["pruning"].last.masks, resumed.methods["pruning"].last.masks
    assert all(torch.equal(mask, masks[1][key]) for key, mask in masks[0].items())


def test_channels_resume_to_the_bit(channels):
    whole, resumed = trained(channels), trained(channels, 4, 7)
    states = whole.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@pytest.mark.parametrize("whole_ones", [None, 0.5], ids=["single weights", "behind channels"])
def test_a_finished_network_is_brought_below_a_budget_without_training(whole_ones, channels, small_config):
    parent = run.run(replace(small_config, lambda_=0.0))
    start = folder_of(small_config, parent)
    config = replace(budgeted(channels, 0.25, name="energy", channels=whole_ones), init=str(start.path))
    if whole_ones is not None:
        config = replace(config, methods=config.methods | {"compact": CompactConfig(name="exact")})
    config = replace(config, trainer=replace(config.trainer, epochs=0))
    record = run.run(config)
    assert record.budget is not None
    assert record.budget["met"]
    assert record.budget["share"] > 0.24


def test_what_cannot_be_met_is_refused_before_anything_is_written(channels):
    config = budgeted(channels, 0.01, name="energy")
    with pytest.raises(UserError, match=r"^the budget is 0\.01 of the dense energy on fused_7nm_int8, and with every"):
        run.run(config)
    assert not Path(config.results_dir).exists()


def test_masks_wait_where_the_activations_alone_cost_more_than_the_budget(channels):
    """The published simulator charges weights once a batch: half of the dense energy is out of their reach."""
    config = replace(budgeted(channels, 0.5, name="energy"), hardware=load_hardware("published"), lambda_=0.5)
    record = run.run(config)
    assert (record.status, record.reason) == ("finished", "")
    assert record.budget is not None
    assert not record.budget["met"]
    assert all(masked == 0 for masked, _ in record.changes[0]["masked"].values())


def test_a_budget_above_the_dense_energy_is_refused(channels):
    config = replace(budgeted(channels, None, name="energy"), budget_uj=1000.0)
    with pytest.raises(UserError, match=r"^budget_uj=1000 is more than the [0-9.]+ uJ that the network needs"):
        run.run(config)


@pytest.mark.parametrize("structure", ["element", "channel"])
def test_a_child_keeps_the_zeros_of_its_parent(structure, channels):
    settings = replace(channels.methods["pruning"], structure=structure, density=0.3)
    parent = folder_of(channels, run.run(replace(channels, methods={"pruning": settings})))
    record = run.run(replace(channels, methods={}, init=str(parent.path)))
    before, after = load_file(parent.weights), load_file(folder_of(channels, record).weights)
    names = [name for name, weight in before.items() if weight.dim() > 1]
    assert any(bool((before[name] == 0).any()) for name in names)
    assert all(bool((after[name][before[name] == 0] == 0).all()) for name in names)
    assert any(not torch.equal(before[name], after[name]) for name in names)


def test_a_budget_of_a_child_is_of_the_network_before_any_method(channels):
    whole = run.locate_and_build(budgeted(channels, 0.3, name="energy")).budget
    parent = folder_of(channels, run.run(channels))
    child = run.locate_and_build(replace(budgeted(channels, 0.3, name="energy"), init=str(parent.path))).budget
    assert whole is not None
    assert child is not None
    assert child.dense_pj == pytest.approx(whole.dense_pj)


def test_a_budget_and_its_prices_name_the_run(channels):
    config = budgeted(channels, 0.3, name="magnitude")
    others = [
        replace(config, budget=0.31),
        replace(config, budget=None, budget_uj=0.3),
        replace(config, hardware=replace(INT8, multiply_pj=9.0)),
        replace(config, budget=None),
    ]
    assert len({run_id(c, "data") for c in (config, *others)}) == 5
    assert run_id(replace(config, hardware=replace(INT8, name="another")), "data") == run_id(config, "data")


def test_a_density_that_nobody_gave_is_a_tenth_and_names_the_run_no_other_way(channels):
    settings = PruningConfig(name="magnitude")
    given, none = (replace(channels, methods={"pruning": replace(settings, density=d)}) for d in (0.1, None))
    assert run_id(given, "data") == run_id(none, "data")
