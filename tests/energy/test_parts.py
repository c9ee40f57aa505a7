"""Where a layer's energy goes: the parts are the whole, of every rule, on networks with everything that costs."""

from dataclasses import astuple

import pytest
import torch
from torch import nn

from eat_runner.config import MeterConfig
from eat_runner.energy.counts import Counts
from eat_runner.energy.estimate import estimate
from eat_runner.energy.hardware import builtin_hardware, load_hardware
from eat_runner.energy.measured import without_zeros
from eat_runner.energy.meter import measure


class Mixed(nn.Module):
    """Convolutions with and without batch norm, a residual, gating, pools, a norm that stands alone, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.act = nn.GELU()
        self.pool = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(4, 4, 1)
        self.norm = nn.GroupNorm(2, 4)
        self.average = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.act(self.bn(self.conv1(x))))
        x = self.norm(self.conv2(x).relu() + x) * x.sigmoid()
        return self.fc(self.average(x).flatten(1))


@pytest.fixture(scope="module")
def counts() -> Counts:
    torch.manual_seed(0)
    x = torch.randn(3, 3, 8, 8) * (torch.rand(3, 3, 8, 8) < 0.5)
    return measure(Mixed(), [x], MeterConfig(batch_size=100))


@pytest.mark.parametrize("name", builtin_hardware())
def test_the_parts_are_the_whole_and_the_calls_each_once(counts: Counts, name: str) -> None:
    layers = estimate(counts, load_hardware(name)).layers
    for layer in layers:
        assert sum(astuple(layer.parts)) == pytest.approx(layer.energy_pj, rel=1e-12)
        assert sum(astuple(layer.dense_parts)) == pytest.approx(layer.dense_pj, rel=1e-12)
        rows = [counts.layers[call] for call in layer.calls]
        assert (layer.name, layer.op) == (rows[0].name, "+".join(row.op for row in rows))
    calls = [call for layer in layers for call in layer.calls]
    assert len(set(calls)) == len(calls)


@pytest.mark.parametrize("name", builtin_hardware())
def test_without_zeros_everything_costs_what_it_would_dense(counts: Counts, name: str) -> None:
    hardware = load_hardware(name)
    actual, dense = estimate(counts, hardware), estimate(without_zeros(counts), hardware)
    assert dense.ratio == pytest.approx(1.0)
    for layer, other in zip(actual.layers, dense.layers, strict=True):
        assert other.energy_pj == pytest.approx(layer.dense_pj)
        assert astuple(other.parts) == pytest.approx(astuple(layer.dense_parts))


def test_what_is_no_product_is_in_the_others(counts: Counts) -> None:
    hardware = load_hardware("fused_45nm")
    parts = {layer.op: layer.parts for layer in estimate(counts, hardware).layers}
    # a max-pool of 2 x 2: three additions for each of its 4 x 4 x 4 outputs; no weights, no products
    assert parts["MaxPool2d"].others_pj == pytest.approx(4 * 4 * 4 * 3 * hardware.add_pj)  # type: ignore[attr-defined]
    assert (parts["MaxPool2d"].weights_pj, parts["MaxPool2d"].products_pj) == (0.0, 0.0)
    assert parts["Linear"].others_pj == 0.0
