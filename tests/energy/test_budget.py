"""Budgets: shares by hand, counts with fewer weights against networks that have them, bounds that nothing undercuts."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from eat_runner.config import MeterConfig
from eat_runner.energy.budget import (
    Budget,
    dense_pj,
    energy_pj,
    least,
    with_activations,
    with_weights,
    without_channels,
)
from eat_runner.energy.estimate import estimate
from eat_runner.energy.hardware import load_hardware
from eat_runner.energy.meter import measure

HARDWARE = ["published", "fused_45nm", "fused_7nm_int8", "eyeriss_65nm"]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 16, 5),
    ).eval()


def counts_of(model: nn.Module, images: int = 200):
    torch.manual_seed(1)
    batches = torch.randn(images, 2, 6, 6).split(100)
    return measure(model, batches, MeterConfig(), "look", floor=False)


@pytest.mark.parametrize("name", HARDWARE)
def test_a_budget_is_a_share_of_the_dense_energy_or_in_uj(name: str):
    hardware, counts = load_hardware(name), counts_of(network())
    report = estimate(counts, hardware, "look")
    share = Budget.of(hardware, 0.25, None, counts)
    assert share is not None
    assert (share.share, share.limit_pj) == pytest.approx((0.25, 0.25 * dense_pj(counts, hardware)))
    assert Budget.of(hardware, None, None, counts) is None
    if hardware.relative:
        return
    assert energy_pj(counts, hardware) == pytest.approx(report.energy_uj_per_image * 1e6)
    assert dense_pj(counts, hardware) == pytest.approx(report.dense_uj_per_image * 1e6)
    uj = Budget.of(hardware, None, 0.5 * report.dense_uj_per_image, counts)
    assert uj is not None
    assert uj.share == pytest.approx(0.5)
    assert uj.share_of(counts) == pytest.approx(report.energy_uj_per_image / report.dense_uj_per_image)


@pytest.mark.parametrize("name", HARDWARE)
def test_counts_with_fewer_weights_are_those_of_a_network_that_has_so_many(name: str):
    """Any quarter of the weights, so that a product is missing as often as a weight; the layer behind sees other
    activations, so only the layer itself is compared."""
    hardware, model = load_hardware(name), network()
    before = counts_of(model)
    with torch.no_grad():
        mask = torch.rand(model[3].weight.shape, generator=torch.Generator().manual_seed(2)) < 0.25
        model[3].weight.mul_(mask)
    after, expected = counts_of(model), with_weights(before, {"3": int(mask.sum())})
    rows = {row.name: (row, other) for row, other in zip(after.layers, expected.layers, strict=True)}
    real, said = rows["3"]
    assert said.weight_nonzeros == real.weight_nonzeros
    assert said.macs_both_nonzero == pytest.approx(real.macs_both_nonzero, rel=0.02)
    assert all(said == before.layers[i] for i, said in enumerate(expected.layers) if said.name != "3")
    for real_batch, said_batch in zip(after.batches, expected.batches, strict=True):
        assert said_batch.parameter_nonzeros == real_batch.parameter_nonzeros
    assert energy_pj(expected, hardware) < energy_pj(before, hardware)


def test_counts_without_channels_are_those_of_the_smaller_network():
    """Two channels of eight are silent: in the wide network as zeros, in the narrow one not at all."""
    wide = network()
    narrow = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 16, 3, bias=False),
        *wide[4:],
    ).eval()
    with torch.no_grad():
        wide[0].weight[6:], wide[1].weight[6:], wide[1].bias[6:], wide[3].weight[:, 6:] = 0, 0, 0, 0
        narrow[0].weight.copy_(wide[0].weight[:6])
        narrow[3].weight.copy_(wide[3].weight[:, :6])
    before, expected = counts_of(wide), counts_of(narrow)
    found = without_channels(before, {0: 0.75, 1: 0.75, 2: 0.75})
    for hardware in map(load_hardware, ("fused_45nm", "fused_7nm_int8", "eyeriss_65nm", "dense_7nm_int8")):
        assert energy_pj(found, hardware) == pytest.approx(energy_pj(expected, hardware))
        assert dense_pj(found, hardware) == pytest.approx(dense_pj(expected, hardware))
    assert without_channels(before, {}) == before


@pytest.mark.parametrize("name", HARDWARE)
def test_nothing_comes_below_the_least(name: str):
    """A network that gives nothing but zeros, with no weight in its second layer, costs that and no less."""
    hardware, model = load_hardware(name), network()
    bound = energy_pj(least(counts_of(model), {"3"}), hardware)
    with torch.no_grad():
        for norm in (model[1], model[4]):
            norm.weight.zero_()
            norm.bias.fill_(-1.0)
        model[3].weight.zero_()
    assert bound <= energy_pj(counts_of(model), hardware)
    assert bound > 0
    if hardware.rule == "fused":  # what is left: the dense first layer's products, fixed costs, five logits
        assert bound == pytest.approx(energy_pj(counts_of(model), hardware), rel=0.1)


def test_a_layer_without_weights_makes_no_products():
    counts = counts_of(network())
    [row] = [row for row in with_weights(counts, {"3": 0}).layers if row.name == "3"]
    assert (row.weight_nonzeros, row.macs_both_nonzero) == (0, 0)
    again = with_weights(replace(counts, layers=[row]), {"3": 4}).layers
    assert [row.macs_both_nonzero for row in again] == [0]


@pytest.mark.parametrize("name", HARDWARE)
def test_counts_without_channels_are_those_of_a_network_without_them(name: str):
    """Half of the first layer's channels give nothing, and nothing reads them."""
    hardware, model = load_hardware(name), network()
    before = counts_of(model)
    fired = {row.name: row.output_nonzeros for row in before.layers}
    with torch.no_grad():
        for tensor in (model[0].weight, model[1].weight, model[1].bias):
            tensor[:4] = 0
        model[3].weight[:, :4] = 0
    after = counts_of(model)
    parts = {row.call: row.output_nonzeros / fired[row.name] for row in after.layers if row.name in {"0", "1", "2"}}
    said = with_activations(before, parts)
    said = with_weights(said, {"0": model[0].weight[4:].numel(), "3": model[3].weight[:, 4:].numel()})
    for real, row in zip(after.layers[:3], said.layers[:3], strict=True):
        assert row.output_nonzeros == pytest.approx(real.output_nonzeros, abs=1)
        assert row.input_nonzeros == pytest.approx(real.input_nonzeros, abs=1)
    assert said.layers[3].input_nonzeros == pytest.approx(after.layers[3].input_nonzeros, abs=1)
    assert said.layers[3].macs_input_nonzero == pytest.approx(after.layers[3].macs_input_nonzero, rel=0.1)
    assert said.layers[3].macs_both_nonzero == pytest.approx(after.layers[3].macs_both_nonzero, rel=0.1)
    # batch norm's own zeros are not among them, and the layers behind see other activations
    assert energy_pj(said, hardware) == pytest.approx(energy_pj(after, hardware), rel=0.08)
    assert energy_pj(said, hardware) < energy_pj(before, hardware)
