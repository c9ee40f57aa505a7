"""Schedules against values computed by hand."""

from pathlib import Path

import pytest

from eat_runner.config import ScheduleConfig
from eat_runner.errors import UserError
from eat_runner.train.schedules import SCHEDULES, lambda_at

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
