"""Schedules: how the penalty's weight lambda and the learning rate change while a network trains.

Both are pure functions of the step, so that a resumed run goes on with the same numbers. Steps count from 0; the
progress of step s among S steps is p = s / (S - 1), from 0 at the first step to 1 at the last.
"""

import math
from collections.abc import Callable
from functools import cache
from itertools import accumulate

from eat_runner.config import ScheduleConfig, TrainerConfig
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


# --- learning rate -------------------------------------------------------------------------------------------------

# torch's OneCycleLR (Smith and Topin, arXiv 1708.07120): the share of the steps that rises, and how much less than the
# highest rate the first one and, than that, the last one are
RISING, FIRST_DIVISOR, LAST_DIVISOR = 0.3, 25.0, 1e4


def lr_at(settings: TrainerConfig, step: int, steps_per_epoch: int) -> float:
    """The learning rate of ``step`` (from 0), to the bit what torch's schedulers of these names arrive at.

    exponential: lr times lr_gamma to the power of the finished epochs. onecycle: along cosines from lr / 25 up to lr
    in three tenths of the steps, then down to lr / 250,000. cosine: half a cosine from lr to 0. constant: lr.
    """
    total = settings.epochs * steps_per_epoch
    match settings.lr_schedule:
        case "exponential":
            return _exponential_rates(settings.lr, settings.lr_gamma, settings.epochs)[step // steps_per_epoch]
        case "onecycle":
            return _onecycle(settings.lr, step, total)
        case "cosine":
            return _cosine_rates(settings.lr, total)[step]
        case _:
            return settings.lr


def _onecycle(highest: float, step: int, total: int) -> float:
    first = highest / FIRST_DIVISOR
    last = first / LAST_DIVISOR
    top = RISING * (total + 1) - 1  # the step, not whole, of the highest rate
    if step <= top:
        return _along_cosine(first, highest, step / top)
    return _along_cosine(highest, last, (step - top) / (total - top))


def _along_cosine(start: float, end: float, part: float) -> float:
    return end + (start - end) / 2.0 * (math.cos(math.pi * part) + 1)


@cache
def _exponential_rates(lr: float, gamma: float, epochs: int) -> list[float]:
    """Of each epoch. Rate by rate, as torch does it: a power would have other last bits."""
    return list(accumulate(range(epochs), lambda rate, _: rate * gamma, initial=lr))


@cache
def _cosine_rates(lr: float, total: int) -> list[float]:
    """Of each step. Rate by rate, as torch does it: the closed form would have other last bits."""

    def next_rate(rate: float, step: int) -> float:
        return (1 + math.cos(math.pi * step / total)) / (1 + math.cos(math.pi * (step - 1) / total)) * rate

    return list(accumulate(range(1, total + 1), next_rate, initial=lr))
