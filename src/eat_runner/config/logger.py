"""The config group ``loggers``: who is told about a run while it trains. It takes a list: loggers=[csv,progress]."""

from dataclasses import dataclass


@dataclass(kw_only=True, slots=True)
class LoggerConfig:
    """A logger without knobs; one with knobs is a subclass. Its name is a key of loggers.LOGGERS."""

    def check(self) -> None:
        """Raise UserError where a value is out of range."""


def default_loggers() -> dict[str, LoggerConfig]:
    return {"csv": LoggerConfig(), "progress": LoggerConfig()}


# by logger, for those with knobs of their own
SCHEMAS: dict[str, type[LoggerConfig]] = {}
