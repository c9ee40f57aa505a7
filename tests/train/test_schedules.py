"""Schedules against values computed by hand."""

from pathlib import Path

import pytest
import torch
from torch.optim import lr_scheduler

from eat_runner.config import ScheduleConfig, TrainerConfig
from eat_runner.config.trainer import LR_SCHEDULES
from eat_runner.errors import UserError
from eat_runner.train.schedules import SCHEDULES, lambda_at, lr_at

CONF = Path(__file__).parents[2] / "conf" / "schedule"


def lambdas(config: ScheduleConfig, steps: list[int], steps_per_epoch: int, epochs: int) -> list[float]:
    return [lambda_at(config, 2.0, step, steps_per_epoch, epochs) for step in steps]


def test_constant():
    assert lambdas(ScheduleConfig(name="constant"), [0, 7, 19], 5, 4) == [2.0, 2.0, 2.0]


def test_linear_rises_until_the_end_of_the_warmup():
    # 21 steps: progress is step / 20, and half of the training is the warm-up
    config = ScheduleConfig(name="linear", warmup=0.5)
    assert lambdas(config, [0, 1, 5, 10, 11, 20], 7, 3) == pytest.approx([0.0, 0.2, 1.0, 2.0, 2.0, 2.0])


def test_linear_over_the_whole_training_ends_at_lambda():
    config = ScheduleConfig(name="linear", warmup=1.0)
    assert lambdas(config, [0, 10, 20], 7, 3) == pytest.approx([0.0, 1.0, 2.0])


def test_cosine():
    # a third of the warm-up: (1 - cos 60°) / 2 = 1/4; half: 1/2; two thirds: 3/4
    config = ScheduleConfig(name="cosine", warmup=0.5)
    assert lambdas(config, [0, 4, 6, 8, 12, 24], 5, 5) == pytest.approx([0.0, 0.5, 1.0, 1.5, 2.0, 2.0], abs=1e-12)


def test_step_changes_between_epochs():
    config = ScheduleConfig(name="step", every_epochs=2, gamma=0.5)
    # 3 steps an epoch: epochs 0, 1 | 2, 3 | 4
    assert lambdas(config, [0, 5, 6, 11, 12, 14], 3, 5) == [2.0, 2.0, 1.0, 1.0, 0.5, 0.5]


def test_exponential():
    config = ScheduleConfig(name="exponential", gamma=0.9)
    assert lambdas(config, [0, 2, 3, 6], 3, 3) == pytest.approx([2.0, 2.0, 1.8, 1.62])


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize(("warmup", "steps_per_epoch", "epochs"), [(0.0, 5, 2), (0.5, 1, 1), (0.5, 5, 0), (0.5, 0, 0)])
def test_without_anything_to_warm_up_lambda_holds_at_once(name: str, warmup: float, steps_per_epoch: int, epochs: int):
    assert lambda_at(ScheduleConfig(name=name, warmup=warmup), 2.0, 0, steps_per_epoch, epochs) == 2.0


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_a_measurement_without_training_has_lambda_itself(name: str):
    assert lambda_at(ScheduleConfig(name=name), 2.0, 0, 0, 0) == 2.0


def test_unknown_schedule():
    with pytest.raises(UserError, match="schedule=sine is unknown: choose one of constant, linear"):
        lambda_at(ScheduleConfig(name="sine"), 1.0, 0, 1, 1)


def test_every_schedule_has_a_yaml_and_back():
    assert {path.stem for path in CONF.glob("*.yaml")} == set(SCHEDULES)


# --- learning rate: to the bit what torch's schedulers arrive at


def torchs_rates(settings: TrainerConfig, steps_per_epoch: int) -> list[float]:
    """The rate of every step, and the one that would follow, as torch sets them."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=settings.lr)
    total = settings.epochs * steps_per_epoch
    scheduler = {
        "exponential": lambda: lr_scheduler.ExponentialLR(optimizer, settings.lr_gamma),
        "cosine": lambda: lr_scheduler.CosineAnnealingLR(optimizer, T_max=total),
        "onecycle": lambda: lr_scheduler.OneCycleLR(
            optimizer, max_lr=settings.lr, total_steps=total + 1, cycle_momentum=False
        ),
        "constant": lambda: lr_scheduler.ConstantLR(optimizer, factor=1.0),
    }[settings.lr_schedule]()
    rates = [optimizer.param_groups[0]["lr"]]
    for step in range(1, total + 1):
        optimizer.step()
        if settings.lr_schedule != "exponential" or step % steps_per_epoch == 0:
            scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


@pytest.mark.parametrize("lr_schedule", LR_SCHEDULES)
@pytest.mark.parametrize(("epochs", "steps_per_epoch"), [(1, 1), (1, 2), (2, 1), (3, 5), (11, 7), (20, 22)])
def test_the_learning_rate_is_torchs_to_the_bit(lr_schedule: str, epochs: int, steps_per_epoch: int):
    settings = TrainerConfig(lr_schedule=lr_schedule, epochs=epochs, lr=0.07, lr_gamma=0.93)
    steps = range(epochs * steps_per_epoch + 1)
    assert [lr_at(settings, step, steps_per_epoch) for step in steps] == torchs_rates(settings, steps_per_epoch)
