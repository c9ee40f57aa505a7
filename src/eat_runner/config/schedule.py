"""The config group ``schedule``: how lambda changes while a network trains."""

from dataclasses import dataclass, replace

from eat_runner.config.checks import above, between


@dataclass(kw_only=True, slots=True)
class ScheduleConfig:
    """The factor that multiplies lambda, as a function of training progress p in [0, 1] (or of whole epochs).

    name: key of schedules.SCHEDULES. warmup: share of the training over which ``linear`` and ``cosine`` rise from 0
    to 1. every_epochs, gamma: ``step`` multiplies by gamma every so many epochs; ``exponential`` by gamma every epoch.
    target: the density that activations are held to, weighted as the penalty weights them (penalty.weighting=energy:
    the share of their dense energy): dual ascent multiplies lambda by what that takes (train/ascent.py). rate: of the
    ascent. cap: the largest multiplier. None: no ascent.
    """

    name: str = "constant"
    warmup: float = 0.5
    every_epochs: int = 10
    gamma: float = 0.5
    target: float | None = None
    rate: float = 0.1
    cap: float = 20.0

    def settled(self) -> "ScheduleConfig":
        """Without a target, with the ascent's other values at their defaults: they mean nothing then."""
        default = ScheduleConfig()
        return self if self.target is not None else replace(self, rate=default.rate, cap=default.cap)

    def check(self) -> None:
        between("schedule.warmup", self.warmup, 0.0, 1.0)
        above("schedule.every_epochs", self.every_epochs, 0)
        above("schedule.gamma", self.gamma, 0.0)
        above("schedule.rate", self.rate, 0.0)
        above("schedule.cap", self.cap, 0.0)
        if self.target is not None:
            above("schedule.target", self.target, 0.0)
            between("schedule.target", self.target, 0.0, 1.0)
