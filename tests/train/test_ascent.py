"""Dual ascent on lambda: its steps by hand, in a real training, and through a stop."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from eat_runner import run
from eat_runner.config import ScheduleConfig
from eat_runner.config.identity import run_id
from eat_runner.config.penalty import L0Config
from eat_runner.energy.hardware import load_hardware
from eat_runner.penalties.observer import Observer
from eat_runner.train.ascent import Ascent
from examples import trained


def test_the_steps_by_hand():
    ascent = Ascent(ScheduleConfig(target=0.5, rate=0.1, cap=1.15))
    ascent.follow(0.8)  # the first density is the mean: 1 + 0.1 x (0.8 / 0.5 - 1)
    assert ascent.multiplier == pytest.approx(1.06)
    ascent.follow(0.4)  # 0.9 x 0.8 + 0.1 x 0.4 = 0.76: 1.06 + 0.1 x 0.52
    assert (ascent.density, ascent.multiplier) == pytest.approx((0.76, 1.112))
    ascent.follow(0.96)  # 0.78: 1.112 + 0.056 is more than the cap
    assert ascent.multiplier == 1.15
    for _ in range(100):
        ascent.follow(0.0)
    assert ascent.multiplier == 0.0  # the mean goes to 0, the multiplier not below it


def test_without_a_target_nothing_moves():
    ascent = Ascent(ScheduleConfig())
    ascent.follow(0.8)
    assert (ascent.multiplier, ascent.density) == (1.0, None)


def test_in_a_training_lambda_follows_the_penalty_of_each_epochs_first_step(small_config):
    """Five steps an epoch, so the penalty is taken once in each, at the first; its layer mean is the density itself."""
    schedule = ScheduleConfig(target=0.3, rate=0.5)
    config = replace(small_config, lambda_=2.0, schedule=schedule, trainer=replace(small_config.trainer, epochs=4))
    multiplier, mean = 1.0, None
    for row in trained(config).history:
        mean = row.penalty if mean is None else 0.9 * mean + 0.1 * row.penalty
        multiplier += 0.5 * (mean / 0.3 - 1.0)
        assert row.lambda_t == pytest.approx(2.0 * multiplier, rel=1e-5)
    assert multiplier > 1.5


@pytest.mark.parametrize("weighting", ["layer_mean", "energy"])
@pytest.mark.long
def test_a_density_far_away_is_approached(weighting, small_config):
    """The ascent is on what fires in training, so the firing rate falls well below that of a small lambda alone."""
    settings = {"penalty": L0Config(weighting=weighting, scope="activations"), "hardware": load_hardware("published")}
    trainer = replace(small_config.trainer, epochs=12)
    base = replace(small_config, lambda_=0.1, trainer=trainer, **settings)
    rates = [
        trained(replace(base, schedule=schedule)).history[-1].firing_rate
        for schedule in (ScheduleConfig(), ScheduleConfig(target=0.05, rate=1.0, cap=100.0))
    ]
    assert rates[1] < 0.8 * rates[0]


def test_a_stop_in_between_changes_nothing(small_config):
    config = replace(small_config, lambda_=1.0, schedule=ScheduleConfig(target=0.2))
    whole, resumed = trained(config), trained(config, 3, 6)
    assert whole.history[-1].lambda_t == resumed.history[-1].lambda_t
    states = whole.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize("in_backward", [True, False])
@pytest.mark.parametrize("weighting", ["layer_mean", "elements", "parameters", "energy"])
def test_the_largest_penalty_is_that_of_outputs_which_all_count(weighting, in_backward):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten())
    with torch.no_grad():
        for module in (model[0], model[2]):
            module.bias.fill_(1e3)  # so no output is near 0
    config = L0Config(weighting=weighting, scope="activations", sigma=1e-8)
    x = torch.randn(5, 2, 6, 6)
    observer = Observer(model, config, x, in_backward, load_hardware("fused_45nm"))
    if observer.wants_look:
        from eat_runner.config import MeterConfig
        from eat_runner.energy.meter import measure

        observer.look(measure(model, [x], MeterConfig(batch_size=5), floor=False))
    with observer:
        penalty = observer.backward(model(x).sum(), 1.0, 5)
    assert penalty is not None
    assert float(penalty) > 0
    assert float(observer.largest) == pytest.approx(float(penalty), rel=1e-5)


def test_the_target_names_the_run_and_its_rate_only_with_it(small_config):
    config = replace(small_config, lambda_=1.0)
    plain, rate = (replace(config, schedule=ScheduleConfig(rate=r)) for r in (0.1, 0.7))
    assert run_id(plain, "data") == run_id(rate, "data") == run_id(config, "data")
    targets = [replace(config, schedule=ScheduleConfig(target=0.3, rate=r)) for r in (0.1, 0.7)]
    assert len({run_id(c, "data") for c in (config, *targets)}) == 3


def test_a_target_without_a_count_is_refused(small_config):
    from eat_runner.config import PenaltyConfig
    from eat_runner.errors import UserError

    config = replace(small_config, penalty=PenaltyConfig(name="hoyer"), schedule=ScheduleConfig(target=0.3))
    with pytest.raises(UserError, match="penalty=hoyer counts none"):
        run.locate_and_build(config)
