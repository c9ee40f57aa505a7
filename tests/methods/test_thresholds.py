"""Thresholds: FATReLU against its formula, the choice by hand and brute force, and that what is promised holds."""

import itertools
import json
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

import eat_runner
from eat_runner import run
from eat_runner.cli.hydra.compose import compose_experiment
from eat_runner.config import L0Config, MeterConfig, ModelConfig
from eat_runner.config.hardware import FusedHardware, PublishedHardware
from eat_runner.config.identity import run_id
from eat_runner.config.penalty import PenaltyConfig
from eat_runner.config.pruning import PruningConfig
from eat_runner.config.thresholds import ThresholdsConfig
from eat_runner.data import load as load_data
from eat_runner.energy.counts import Kind
from eat_runner.energy.estimate import estimate
from eat_runner.energy.hardware import load_hardware
from eat_runner.energy.meter import measure
from eat_runner.errors import UserError
from eat_runner.methods.base import Trained
from eat_runner.methods.thresholds import (
    MEASUREMENTS,
    FATReLU,
    Measured,
    Thresholds,
    choose_steps,
    may_lose,
    relus_of,
    set_threshold,
)
from eat_runner.penalties.observer import Observer
from eat_runner.records import RunFolder
from eat_runner.run.stages import Interrupted, go_through
from examples import trained as trained_in_parts

# --- FATReLU -------------------------------------------------------------------------------------------------------

VALUES = [-2.0, -0.0, 0.0, 0.25, 0.5, math.nextafter(0.5, 1.0), 0.75, 3.0, math.inf]


def fatrelu(values, threshold):
    return [value if value > threshold else 0.0 for value in values]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_fatrelu_is_x_above_the_threshold_and_so_is_its_gradient(threshold, inplace, compiled):
    x = torch.tensor(VALUES, dtype=torch.float64, requires_grad=True)
    layer = FATReLU(threshold, inplace)
    forward = torch.compile(layer, backend="eager", fullgraph=True) if compiled else layer
    given = x * 1
    y = forward(given)
    assert y.tolist() == fatrelu(VALUES, threshold)
    assert (y is given) == inplace or compiled
    weights = torch.arange(1.0, 1.0 + len(VALUES))
    (y * weights).backward(torch.ones_like(y))
    assert x.grad.tolist() == [
        w if value > threshold else 0.0 for w, value in zip(weights.tolist(), VALUES, strict=True)
    ]


def test_what_is_not_a_number_stays_one():
    assert FATReLU(0.5)(torch.tensor([math.nan])).isnan().all()


def test_a_relu_becomes_one_where_it_stands_and_its_hooks_stay():
    model = nn.Sequential(nn.ReLU(inplace=True))
    seen = []
    handle = model[0].register_forward_hook(lambda module, args, output: seen.append(output.tolist()))
    set_threshold(model[0], torch.tensor(0.5))
    assert model(torch.tensor([0.25, 0.75])).tolist() == [0.0, 0.75]
    assert seen == [[0.0, 0.75]]
    assert list(model.state_dict()) == ["0.threshold"]
    handle.remove()
    set_threshold(model[0], None)
    assert model(torch.tensor([0.25, 0.75])).tolist() == [0.25, 0.75]
    assert len(seen) == 1
    assert not model.state_dict()
    assert type(model[0]) is nn.ReLU


def test_counts_of_a_thresholded_layer_against_a_naive_count():
    torch.manual_seed(0)
    first, second = nn.Conv2d(2, 3, 3), nn.Conv2d(3, 4, 1)
    model = nn.Sequential(first, FATReLU(0.3, inplace=True), second, nn.Flatten())
    x = torch.randn(6, 2, 5, 5)
    counts = measure(model, x.split(1), MeterConfig(batch_size=1), floor=False)  # several: some counts are reused
    conv, relu, reader, _ = counts.layers
    made = F.conv2d(x, first.weight, first.bias)
    left = int((made > 0.3).sum())
    assert 0 < left < int((made > 0).sum())
    assert (relu.op, relu.kind, relu.activation, relu.inplace) == ("FATReLU", Kind.RELU, True, True)
    assert (conv.output_nonzeros, relu.input_nonzeros) == (made.numel(), made.numel())
    assert (relu.output_nonzeros, reader.input_nonzeros) == (left, left)
    assert reader.macs_input_nonzero == 4 * left
    assert counts.firing_rate == left / made.numel()


class Twice(nn.Module):
    """A ReLU of two convolutions, and batch norms whose outputs are penalised before they are rectified in place."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(2))
        self.relu, self.head = nn.ReLU(inplace=True), nn.Linear(3, 4)

    def forward(self, x):
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = self.relu(norm(conv(x)))
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("scope", ["activations", "leaf_modules"])
def test_penalties_see_it_as_an_activation_in_the_loss_and_in_backward(scope):
    torch.manual_seed(0)
    model = Twice().double().eval()
    set_threshold(model.relu, torch.tensor(0.2, dtype=torch.float64))
    x, labels = torch.randn(2, 3, 6, 6, dtype=torch.float64), torch.tensor([1, 3])
    config = L0Config(sigma=1e-2, scope=scope)

    # by plain calls, without taps
    def outputs():
        at = x
        for conv, norm in zip(model.convs, model.norms, strict=True):
            made = conv(at)
            normed = norm(made)
            at = torch.where(normed > 0.2, normed, 0.0)
            yield from (made, normed) if scope == "leaf_modules" else ()
            yield at
        logits = model.head(at.mean((2, 3)))
        yield from (logits,) if scope == "leaf_modules" else ()
        yield logits

    *seen, logits = outputs()
    penalty = sum((v**2 / (v**2 + 1e-2)).mean() for v in seen) / len(seen)
    (F.cross_entropy(logits, labels) + 3.0 * penalty).backward()
    expected = [p.grad.clone() for p in model.parameters()]
    for in_backward in (False, True):
        model.zero_grad()
        with Observer(model, config, x, in_backward) as observer:
            value = observer.backward(F.cross_entropy(model(x), labels), 3.0, 2)
        assert value.item() == pytest.approx(penalty.item(), rel=1e-12)
        for p, gradient in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(p.grad, gradient, rtol=1e-9, atol=1e-14)


# --- the choice ----------------------------------------------------------------------------------------------------


def additive(saved, lost, calls=None):
    """A network in which every step saves and loses what it does alone. saved, lost: by layer, of each of its steps."""

    def measured(taken):
        if calls is not None:
            calls.append(list(taken))
        energy = 100.0 - sum(sum(of[:n]) for of, n in zip(saved, taken, strict=True))
        return Measured(1000 - sum(sum(of[:n]) for of, n in zip(lost, taken, strict=True)), energy)

    return measured


def chosen(saved, lost, allowed, limit=1000, calls=None):
    measured = additive(saved, lost, calls)
    steps = [len(of) for of in saved]
    return choose_steps(steps, additive(saved, lost)([0] * len(saved)), measured, 1000 - allowed, limit)


@pytest.mark.parametrize(("allowed", "expected"), [(0, [1, 0]), (1, [1, 1]), (2, [1, 2]), (4, [1, 2]), (5, [2, 2])])
def test_the_largest_saving_for_what_it_loses_comes_first(allowed, expected):
    # the first layer's steps save 10 and 10 and lose 0 and 3, the second's 6 and 20, and lose 1 each
    assert chosen([[10, 10], [6, 20]], [[0, 3], [1, 1]], allowed) == expected


def test_where_every_step_loses_the_same_and_saves_less_than_the_one_before_nothing_is_better():
    draw = random.Random(0)
    for _ in range(30):
        saved = [sorted((draw.random() for _ in range(3)), reverse=True) for _ in range(3)]
        lost = [[2] * 3] * 3
        allowed = draw.randrange(20)
        every = itertools.product(range(4), repeat=3)
        measured = additive(saved, lost)
        best = min((m for m in map(measured, every) if m.correct >= 1000 - allowed), key=lambda m: m.energy_pj)
        assert measured(chosen(saved, lost, allowed)).energy_pj == pytest.approx(best.energy_pj, abs=1e-12)


def test_a_promise_is_measured_again_before_it_is_kept():
    """The second layer saves 9 alone, and nothing once the first has taken its step."""
    energies = {(0, 0): 100.0, (1, 0): 90.0, (0, 1): 91.0, (1, 1): 90.0}
    taken = choose_steps([1, 1], Measured(10, 100.0), lambda taken: Measured(10, energies[tuple(taken)]), 10, 99)
    assert taken == [1, 0]


def test_a_step_that_saves_nothing_is_passed_over_for_the_next():
    """As where a tensor is stored dense until more of it is zero."""
    assert chosen([[0, 5], [0, 0]], [[1, 1], [0, 0]], 2) == [2, 0]


@pytest.mark.parametrize("limit", range(12))
def test_it_measures_so_often_at_most_and_stays_within_the_allowance(limit):
    calls = []
    saved, lost = [[5, 4, 3], [6, 2, 1], [7, 7, 7]], [[0, 1, 1], [1, 0, 2], [2, 2, 2]]
    taken = chosen(saved, lost, 5, limit, calls)
    assert len(calls) <= limit
    assert additive(saved, lost)(taken).correct >= 995
    assert (taken == [0, 0, 0]) == (limit < 3)  # a first step is taken when all three were measured


@pytest.mark.parametrize(
    ("allow", "images", "lost"), [(0.5, 199, 0), (0.5, 200, 1), (1.14, 5000, 57), (0.7, 1000, 7), (100, 3, 3)]
)
def test_points_of_accuracy_in_right_answers(allow, images, lost):
    assert may_lose(allow, images) == lost  # 1.14 * 5000 / 100 is less than 57 in floats


# --- the stage, on a small network ---------------------------------------------------------------------------------


def small_network():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 5),
    ).eval()  # fmt: skip


X = torch.randn(100, 1, 8, 8, generator=torch.Generator().manual_seed(2))
METER = MeterConfig(batch_size=50)


def judged(model):
    """The network after a training, by plain forward passes; the labels are its own answers, a fifth of them wrong."""
    with torch.no_grad():
        labels = model(X).argmax(1)
    labels[::5] = (labels[::5] + 1) % 5

    def accuracy():
        with torch.no_grad():
            return (model(X).argmax(1) == labels).float().mean().item()

    def count():
        return measure(model, X.split(50), METER, "look", floor=False)

    return Trained(model, accuracy, count, "validation", len(X), looked_at=lambda: X.split(50))


def stage(model, trained, allow, hardware):
    method = Thresholds(ThresholdsConfig(allow=allow), hardware)
    method.on_build(model)
    method.after_training(trained)
    return method.changes()


def energy_of(trained, hardware):
    return estimate(trained.count(), hardware, "look").energy_uj_per_image


@pytest.mark.parametrize("name", ["published", "fused_45nm", "fused_7nm_int8"])
def test_the_allowance_holds_and_more_of_it_gives_no_more_energy(name):
    hardware = replace(load_hardware(name), **({"batch_size": 50} if name == "published" else {}))
    energies = []
    for allow in (0.5, 1, 3, 10, 40, 100):
        model = small_network()
        trained = judged(model)
        before, energy_before = trained.accuracy(), energy_of(trained, hardware)
        done = stage(model, trained, allow, hardware)
        after, energy = trained.accuracy(), energy_of(trained, hardware)
        assert round(100 * (before - after)) <= allow  # of 100 images, so whole points
        assert done["accuracy"] == [pytest.approx(before), pytest.approx(after)]
        assert done["energy"] == pytest.approx(energy / energy_before)
        assert energy < energy_before
        kept = {name: m.threshold.item() for name, m in model.named_modules() if type(m) is FATReLU}
        assert done["thresholds"] == kept
        energies.append(energy)
    assert energies == sorted(energies, reverse=True)
    assert energies[-1] < energies[0]


def test_the_stage_does_the_same_again():
    done = [
        stage(model, judged(model), 5.0, load_hardware("fused_45nm")) for model in (small_network(), small_network())
    ]
    assert done[0] == done[1]
    assert json.loads(json.dumps(done[0])) == done[0]


def test_it_measures_so_often_for_each_relu_at_most():
    model = small_network()
    heard = []
    trained = replace(judged(model), report=heard.append)
    stage(model, trained, 100.0, load_hardware("fused_45nm"))
    assert 3 < len(heard) <= 3 * MEASUREMENTS


def test_a_relu_that_is_called_twice_has_one_threshold():
    torch.manual_seed(0)
    model = Twice().eval()
    x = torch.randn(20, 3, 6, 6)

    def count():
        return measure(model, [x], MeterConfig(batch_size=20), "look", floor=False)

    before = [row.output_nonzeros for row in count().layers if row.activation]
    trained = Trained(model, lambda: 1.0, count, "train", 20, looked_at=lambda: [x])
    done = stage(model, trained, 1.0, load_hardware("fused_45nm"))
    after = [row.output_nonzeros for row in count().layers if row.activation]
    assert list(done["thresholds"]) == ["relu"]
    assert len(before) == len(after) == 2
    assert sum(after) < 0.2 * sum(before)  # nothing is lost here, so it goes all the way: nine in ten


def test_where_no_zero_has_a_price_the_network_stays_as_it_is():
    """A bitmask saves bits, but these cost nothing in the buffer, and no product is skipped."""
    hardware = FusedHardware(dram_pj_per_bit=1.0, multiply_pj=1.0, skip="none", format="bitmask")
    model = small_network()
    done = stage(model, judged(model), 5.0, hardware)
    assert (done["thresholds"], done["energy"]) == ({}, 1.0)
    assert {type(relu) for relu in relus_of(model).values()} == {nn.ReLU}


def test_a_network_without_relu_modules_is_refused():
    method = Thresholds(ThresholdsConfig(allow=1.0), PublishedHardware())
    with pytest.raises(UserError, match=r"^thresholds: the network has no module nn\.ReLU, .*: choose another network"):
        method.on_build(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sigmoid()))


# --- runs ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def plain(small_config, monkeypatch):
    """Few ReLUs, few steps, few batches, and a layout that does not change the last bits of a loaded network."""
    monkeypatch.setattr("eat_runner.methods.thresholds.SHARES", (0.4, 0.9))
    trainer = replace(small_config.trainer, channels_last=False)
    model = ModelConfig(name="vgg11", width=2)
    return replace(
        small_config, trainer=trainer, model=model, hardware=load_hardware("fused_45nm"), lambda_=0.0,
        meter=MeterConfig(batch_size=500),
    )  # fmt: skip


@pytest.fixture
def thresholded(plain):
    return replace(plain, methods={"thresholds": ThresholdsConfig(allow=5.0)})


def folder_of(config, record):
    return RunFolder(Path(config.results_dir) / config.name / record.run_id)


def finished(config):
    record = run.run(config)
    assert (record.status, record.reason) == ("finished", "")
    return record, folder_of(config, record)


def test_a_finished_run_without_training_is_the_run_that_was_trained_with_thresholds(plain, thresholded):
    parent, place = finished(plain)
    together, whole = finished(thresholded)
    stages = replace(thresholded, init=str(place.path), trainer=replace(plain.trainer, epochs=0))
    child, folder = finished(stages)
    assert len({parent.run_id, together.run_id, child.run_id}) == 3
    assert child.determinants["parent"] == child.parent["run_id"] == parent.run_id
    assert child.determinants["thresholds"] == {"name": "fatrelu", "allow": 5.0}
    assert folder.weights.read_bytes() == whole.weights.read_bytes()
    assert child.changes == together.changes
    [change] = child.changes
    added = {f"{name}.threshold": value for name, value in change["thresholds"].items()}
    before, after = load_file(place.weights), load_file(folder.weights)
    assert {name: after[name].item() for name in set(after) - set(before)} == added
    assert len(added) > 1
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    # the validation split's accuracies in the two records are those before and after
    assert change["split"] == "validation"
    assert change["accuracy"] == [pytest.approx(r.accuracy["validation"]) for r in (parent, child)]
    lost = parent.accuracy["validation"] - child.accuracy["validation"]
    assert lost <= 0.05
    assert (
        child.energy["fused_45nm"]["test"]["energy_uj_per_image"]
        < parent.energy["fused_45nm"]["test"]["energy_uj_per_image"]
    )


def test_loading_gives_back_the_very_network(thresholded):
    trainer = trained_in_parts(thresholded)
    trainer.change()
    _, folder = finished(thresholded)
    loaded = eat_runner.load_run(folder.path)
    images = load_data(thresholded.dataset, Path(thresholded.data_dir), False).test.images_nhwc[:64]
    x = loaded.preprocessing(torch.from_numpy(images.copy()).permute(0, 3, 1, 2))
    assert torch.equal(loaded.model(x), trainer.model.eval()(x))
    assert sum(type(relu) is FATReLU for relu in relus_of(loaded.model).values()) > 1


def test_the_stage_repeated_from_a_checkpoint_after_a_stop_in_it_is_the_same(thresholded):
    whole, place = finished(replace(thresholded, name="whole"))
    experiment = run.locate_and_build(thresholded)
    experiment.folder.create()
    asked = []

    def stop():
        """Five times into the stage that follows the last epoch."""
        asked.append(len(experiment.folder.read_history()) if experiment.folder.history.exists() else 0)
        return asked.count(thresholded.trainer.epochs) == 5

    with pytest.raises(Interrupted):
        go_through(experiment, stop, lambda row: None)
    record = experiment.folder.read_record()
    assert (record.status, record.epochs_done) == ("interrupted", 2)
    assert record.changes == [{"method": "thresholds", "choice": "fatrelu", "thresholds": {}}]
    again, folder = finished(thresholded)
    assert again.changes == whole.changes
    assert folder.weights.read_bytes() == place.weights.read_bytes()


def test_without_a_validation_split_training_images_judge(thresholded):
    config = replace(thresholded, dataset=replace(thresholded.dataset, validation=0.0))
    record, _ = finished(config)
    [change] = record.changes
    assert change["split"] == "train"
    assert change["accuracy"][1] >= change["accuracy"][0] - 0.05


def test_a_child_of_a_thresholded_run_trains_on_and_may_be_thresholded_again(thresholded):
    parent, place = finished(thresholded)
    penalty = PenaltyConfig(name="l1", scope="activations")
    child = replace(thresholded, init=str(place.path), methods={}, lambda_=1.0, penalty=penalty)
    record, folder = finished(child)
    assert record.changes == parent.changes
    first, then = load_file(place.weights), load_file(folder.weights)
    moved = {name for name, weight in then.items() if not torch.equal(weight, first[name])}
    assert not any(name.endswith("threshold") for name in moved)
    assert any(name.endswith("weight") for name in moved)
    assert record.firing_rate == folder.read_counts().select("validation").firing_rate > 0
    again = replace(thresholded, init=str(folder.path), trainer=replace(child.trainer, epochs=0))
    last, end = finished(again)
    assert last.changes[0] == parent.changes[0]
    for name, threshold in last.changes[1]["thresholds"].items():
        assert threshold > last.changes[0]["thresholds"].get(name, 0.0)
    network = eat_runner.load_run(end.path).model
    found = {name: relu.threshold.item() for name, relu in relus_of(network).items() if type(relu) is FATReLU}
    assert found == last.changes[0]["thresholds"] | last.changes[1]["thresholds"]


def test_pruning_acts_first_in_the_same_run(plain):
    settings = PruningConfig(name="magnitude", density=0.3, every_steps=2)
    pruned, place = finished(replace(plain, methods={"pruning": settings}))
    both = {"thresholds": ThresholdsConfig(allow=5.0), "pruning": settings}
    record, folder = finished(replace(plain, methods=both))
    assert [change["method"] for change in record.changes] == ["pruning", "thresholds"]
    assert record.changes[1]["accuracy"][0] == pytest.approx(pruned.accuracy["validation"])
    before, after = load_file(place.weights), load_file(folder.weights)
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert len(after) > len(before)


# --- what is chosen, and what it is called -------------------------------------------------------------------------


def test_the_allowance_alone_chooses_it():
    alone = compose_experiment(["thresholds.allow=0.5"])
    assert alone.methods["thresholds"] == ThresholdsConfig(name="fatrelu", allow=0.5)
    assert (
        alone
        == compose_experiment(["thresholds=fatrelu", "thresholds.allow=0.5"])
        == compose_experiment(["thresholds=fatrelu"])
    )
    assert alone.lambda_ == 0.0  # as beside any method
    assert not compose_experiment([]).methods["thresholds"].is_chosen
    assert not compose_experiment(["thresholds.allow=0"]).methods["thresholds"].is_chosen
    assert not compose_experiment(["thresholds=none", "thresholds.allow=1"]).methods["thresholds"].is_chosen


def test_prices_are_in_the_name_and_what_is_not_chosen_is_not(plain, thresholded):
    other = replace(plain.hardware, multiply_pj=9.0)
    names = {run_id(replace(thresholded, hardware=hardware), "data") for hardware in (plain.hardware, other)}
    assert len(names) == 2
    assert all("-none-thresholds_fatrelu-lambda0-" in name for name in names)
    unchosen = replace(plain, methods={"thresholds": ThresholdsConfig()})
    ignored = replace(plain, methods={"thresholds": ThresholdsConfig(name="none", allow=1.0)}, hardware=other)
    assert run_id(plain, "data") == run_id(unchosen, "data") == run_id(ignored, "data")


@pytest.mark.parametrize(
    ("format", "skip", "refused"),
    [("dense", "none", True), ("dense", "input", False), ("auto", "none", False), ("run_length", "both", False)],
)
def test_hardware_to_which_all_values_are_alike_is_refused(format, skip, refused, thresholded, plain):
    hardware = replace(load_hardware("fused_45nm"), format=format, skip=skip)
    replace(plain, hardware=hardware).check()
    config = replace(thresholded, hardware=hardware)
    if refused:
        with pytest.raises(UserError, match=r"^thresholds save nothing on hardware=fused_45nm"):
            config.check()
    else:
        config.check()
