"""The progress of a run on stderr: a bar on a terminal, a line every few seconds elsewhere, and a line an epoch."""

from eat_runner.config.hardware import PublishedHardware
from eat_runner.loggers.base import About, Logger
from eat_runner.progress import ProgressBar
from eat_runner.records import RunRecord
from eat_runner.train.history import EpochRow


class Progress(Logger):
    """A ProgressBar over the steps of the training. unit: of the energy that an epoch's line has; None where the run's
    hardware is ``published``, whose lines have the paper's ratio."""

    def __init__(self, config: object, about: About):
        super().__init__(config, about)
        hardware = about.config["hardware"]
        unit = "M MACs" if hardware.get("relative") else "uJ"
        self.unit = None if hardware["name"] == PublishedHardware().name else unit
        self.bar = ProgressBar(about.run_id, about.steps)
        self.bar.__enter__()
        self.bar.start_at(about.steps_done)

    def log(self, row: EpochRow) -> None:
        self.say(row.line(self.unit))

    def step(self, done: int, figures: str) -> None:
        self.bar.update(done, figures)

    def say(self, line: str) -> None:
        self.bar.say(f"{self.about.run_id}  {line}")

    def close(self, record: RunRecord | None = None) -> None:
        self.bar.__exit__(None, None, None)
