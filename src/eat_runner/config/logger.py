"""The config group ``loggers``: who is told about a run while it trains. It takes a list: loggers=[csv,progress]."""

from dataclasses import dataclass

from eat_runner.config.checks import one_of
from eat_runner.errors import UserError

WANDB_MODES = ("offline", "online")


@dataclass(kw_only=True, slots=True)
class LoggerConfig:
    """A logger without knobs; one with knobs is a subclass. Its name is a key of loggers.LOGGERS."""

    def check(self) -> None:
        """Raise UserError where a value is out of range."""


@dataclass(kw_only=True, slots=True)
class WandbConfig(LoggerConfig):
    """mode: offline keeps everything in the run's folder. project: there, on the server."""

    mode: str = "offline"
    project: str = "eat-runner"

    def check(self) -> None:
        one_of("loggers.wandb.mode", self.mode, WANDB_MODES)
        if not self.project:
            raise UserError("loggers.wandb.project is empty: give the project a name")


def default_loggers() -> dict[str, LoggerConfig]:
    return {"csv": LoggerConfig(), "progress": LoggerConfig()}


# by logger, for those with knobs of their own
SCHEMAS: dict[str, type[LoggerConfig]] = {"wandb": WandbConfig}
