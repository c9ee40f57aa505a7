"""penalty.weighting=energy: factors against finite differences of the price on a real network, identity, resume."""

from dataclasses import replace

import pytest
import torch

from eat_runner import run
from eat_runner.config import L0Config, MeterConfig, ModelConfig
from eat_runner.config.identity import determinants, run_id
from eat_runner.energy.counts import Counts, Kind, LayerCounts
from eat_runner.energy.hardware import builtin_hardware, load_hardware
from eat_runner.energy.meter import measure
from eat_runner.energy.rules import RULES
from eat_runner.errors import UserError
from eat_runner.models import build
from eat_runner.penalties import penalty
from eat_runner.penalties.observer import Observer
from eat_runner.penalties.weighting import Energy, numbered
from examples import trained

PRODUCTS = {Kind.CONV, Kind.LINEAR}
WEIGHTED = [name for name in builtin_hardware() if load_hardware(name).skips_zeros]
FUSED = [name for name in WEIGHTED if name != "published"]


@pytest.fixture(scope="module")
def counts() -> Counts:
    torch.manual_seed(0)
    model = build(ModelConfig(width=4), 16, 3, 10).module
    return measure(model, [torch.randn(100, 3, 16, 16)], MeterConfig(), "look", floor=False)


def energy_pj(counts: Counts, hardware) -> float:
    return sum(layer.energy_pj for layer in RULES[hardware.rule].price(counts, hardware).layers)


def with_more(counts: Counts, call: int, step: float) -> Counts:
    """The counts with ``step`` more non-zeros an image in what that call makes, each with a mean one's products."""
    rows: list[LayerCounts] = []
    for row in counts.layers:
        if row.call == call:
            row = replace(row, output_nonzeros=row.output_nonzeros + step * row.images)  # type: ignore[arg-type]
        readings = row.producers.count(call)
        if readings:
            grown = 1 + step * row.images / row.input_nonzeros if row.kind in PRODUCTS else 1
            row = replace(
                row,
                input_nonzeros=row.input_nonzeros + readings * step * row.images,  # type: ignore[arg-type]
                macs_input_nonzero=row.macs_input_nonzero * grown,  # type: ignore[arg-type]
                macs_both_nonzero=row.macs_both_nonzero * grown,  # type: ignore[arg-type]
            )
        rows.append(row)
    return replace(counts, layers=rows)


@pytest.mark.parametrize("name", FUSED)
def test_a_factor_is_the_slope_of_the_price_over_the_dense_energy_of_the_batch(name: str, counts: Counts) -> None:
    hardware = load_hardware(name)
    weighting = Energy(hardware)
    weighting.look(counts)
    dense = sum(layer.dense_pj for layer in RULES[hardware.rule].price(counts, hardware).layers)
    outputs = numbered([row.name for row in counts.layers], [row.output_elements for row in counts.layers])
    factors = weighting.factors(outputs, 7, 1)
    # in front of a view there is a reader that this test does not follow
    direct = [row for row in counts.layers if all(counts.layers[c].kind != Kind.VIEW for c in row.consumers)]
    compared = 0
    for row in direct:
        up = energy_pj(with_more(counts, row.call, 0.5), hardware)
        down = energy_pj(with_more(counts, row.call, -0.5), hardware)
        slope = (up - down) / (7 * dense)
        density = row.output_nonzeros / row.output_elements
        if density < 0.9 and hardware.format == "auto":  # type: ignore[attr-defined]  (else stored dense, or in runs)
            assert factors[row.call] == pytest.approx(slope, rel=1e-6)
            compared += factors[row.call] > 0
    assert compared >= 8 or name == "eyeriss_65nm"
    # nothing is stored between a convolution, its batch norm and its ReLU
    for row in counts.layers:
        inside = any(counts.layers[c].kind in {Kind.BATCH_NORM, Kind.RELU} for c in row.consumers)
        if inside and len(row.consumers) == 1:
            assert factors[row.call] == 0


@pytest.mark.parametrize("name", WEIGHTED)
def test_the_penalty_is_energy_over_dense_energy(name: str, counts: Counts) -> None:
    """With a sigma so small that the surrogate counts non-zeros: what the priced outputs cost, in units of E_dense."""
    hardware = load_hardware(name)
    torch.manual_seed(0)
    model = build(ModelConfig(width=4), 16, 3, 10).module.eval()
    x = torch.randn(100, 3, 16, 16)
    config = L0Config(weighting="energy", sigma=1e-30)
    with Observer(model, config, x[:2], hardware=hardware) as observer:
        observer.look(counts)
        model(x)
        value = observer.collect(len(x)).item()
    rule = RULES[hardware.rule]
    prices = rule.marginal_pj(counts, hardware).activations
    modules = [row for row in counts.layers if not row.functional]
    dense = sum(layer.dense_pj for layer in rule.price(counts, hardware).layers)
    expected = sum(prices.get(row.call, 0.0) * row.output_nonzeros for row in modules) / 100 / dense
    assert 0 < expected < 1
    assert value == pytest.approx(expected, rel=1e-5)


def test_the_prices_of_the_hardware_are_a_part_of_the_identity(small_config) -> None:
    config = replace(small_config, penalty=L0Config(weighting="energy"), hardware=load_hardware("fused_45nm"))
    dearer = replace(config.hardware, dram_pj_per_bit=30.0)
    renamed = replace(config.hardware, name="mine", note="", source={})
    names = [run_id(replace(config, hardware=h), "data") for h in (config.hardware, dearer, renamed)]
    assert names[0] == names[2] != names[1]
    assert determinants(config, "data")["hardware"]["dram_pj_per_bit"] == 20.3125
    # without a penalty nobody reads them
    assert "hardware" not in determinants(replace(config, lambda_=0.0), "data")


def test_where_zeros_save_nothing_no_output_has_a_price(counts: Counts) -> None:
    hardware = load_hardware("dense_7nm_int8")
    prices = RULES["fused"].marginal_pj(counts, hardware)
    assert {*prices.activations.values(), *prices.weights.values()} == {0.0}
    assert not hardware.skips_zeros
    assert replace(hardware, skip="input").skips_zeros
    assert replace(hardware, format="bitmask").skips_zeros


@pytest.mark.parametrize("name", ["published", "fused_7nm_int8", "eyeriss_65nm"])
def test_training_resumes_to_the_bit(name: str, small_config) -> None:
    config = replace(small_config, penalty=L0Config(weighting="energy"), hardware=load_hardware(name), lambda_=5.0)

    whole, resumed = trained(config), trained(config, 3, 4)
    states = (whole.model.state_dict(), resumed.model.state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert whole.penalty.state() == resumed.penalty.state()
    # the factors change with the looks, E_dense does not
    first = Energy(config.hardware)
    first.look(run.locate_and_build(config).trainer().look())
    assert first.dense_pj == whole.penalty.weighting.dense_pj
    assert first.prices_pj != whole.penalty.weighting.prices_pj


def test_without_hardware_there_are_no_prices() -> None:
    with pytest.raises(UserError, match="needs prices: give the hardware"):
        penalty([torch.ones(3)], 1, 1, L0Config(weighting="energy"))


def test_a_run_with_energy_weighting(small_config) -> None:
    config = replace(small_config, penalty=L0Config(weighting="energy"), hardware=load_hardware("fused_45nm"))
    record = run.run(config)
    assert (record.status, record.reason) == ("finished", "")
    assert record.determinants["hardware"]["rule"] == "fused"
    assert record.determinants["penalty"] == {"name": "l0", "normalisation": "energy"}
