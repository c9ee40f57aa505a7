"""The config group ``schedule``: how lambda changes while a network trains."""

from dataclasses import dataclass

from eat_runner.config.checks import above, between


@dataclass(kw_only=True, slots=True)
class ScheduleConfig:
    """The factor that multiplies lambda, as a function of training progress p in [0, 1] (or of whole epochs).

    name: key of schedules.SCHEDULES. warmup: share of the training over which ``linear`` and ``cosine`` rise from 0
    to 1. every_epochs, gamma: ``step`` multiplies by gamma every so many epochs; ``exponential`` by gamma every epoch.
    """

    name: str = "constant"
    warmup: float = 0.5
    every_epochs: int = 10
    gamma: float = 0.5

    def check(self) -> None:
        between("schedule.warmup", self.warmup, 0.0, 1.0)
        above("schedule.every_epochs", self.every_epochs, 0)
        above("schedule.gamma", self.gamma, 0.0)
