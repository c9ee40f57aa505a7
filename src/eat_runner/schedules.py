"""Schedules: how the penalty's weight lambda changes while a network trains.

A schedule is a pure function of the step, so that a resumed run goes on with the same numbers. Steps count from 0; the
progress of step s among S steps is p = s / (S - 1), from 0 at the first step to 1 at the last.
"""

import math
from collections.abc import Callable

from eat_runner.config import ScheduleConfig
from eat_runner.errors import UserError

# (configuration, step, steps per epoch, epochs) -> factor that multiplies lambda, in [0, 1] for gamma <= 1
Schedule = Callable[[ScheduleConfig, int, int, int], float]


def constant(config: ScheduleConfig, step: int, steps_per_epoch: int, epochs: int) -> float:
    """lambda, all the time."""
    return 1.0


def linear(config: ScheduleConfig, step: int, steps_per_epoch: int, epochs: int) -> float:
    """Linear warm-up: min(1, p / warmup)."""
    return _warmup_progress(config, step, steps_per_epoch, epochs)


def cosine(config: ScheduleConfig, step: int, steps_per_epoch: int, epochs: int) -> float:
    """Warm-up along half a cosine, flat at both ends: (1 - cos(pi * min(1, p / warmup))) / 2."""
    return (1.0 - math.cos(math.pi * _warmup_progress(config, step, steps_per_epoch, epochs))) / 2.0


def step(config: ScheduleConfig, step: int, steps_per_epoch: int, epochs: int) -> float:
    """gamma ** floor(epoch / every_epochs)."""
    return config.gamma ** (_epoch(step, steps_per_epoch) // config.every_epochs)


def exponential(config: ScheduleConfig, step: int, steps_per_epoch: int, epochs: int) -> float:
    """gamma ** epoch."""
    return config.gamma ** _epoch(step, steps_per_epoch)


# Each key has a conf/schedule/<key>.yaml.
SCHEDULES: dict[str, Schedule] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "step": step,
    "exponential": exponential,
}


def lambda_at(config: ScheduleConfig, lambda_: float, step: int, steps_per_epoch: int, epochs: int) -> float:
    """lambda_t, the penalty's weight at ``step`` (from 0) of ``steps_per_epoch * epochs``. Raises UserError for an
    unknown schedule."""
    if config.name not in SCHEDULES:
        raise UserError(f"schedule={config.name} is unknown: choose one of {', '.join(SCHEDULES)}")
    return lambda_ * SCHEDULES[config.name](config, step, steps_per_epoch, epochs)


def _warmup_progress(config: ScheduleConfig, step: int, steps_per_epoch: int, epochs: int) -> float:
    """Share of the warm-up done, at most 1; it is 1 without a warm-up and where the last step is the first."""
    last = steps_per_epoch * epochs - 1
    if config.warmup == 0 or last <= 0:
        return 1.0
    return min(1.0, step / last / config.warmup)


def _epoch(step: int, steps_per_epoch: int) -> int:
    return step // max(1, steps_per_epoch)
