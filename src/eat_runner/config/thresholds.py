"""The config group ``thresholds``: ReLUs that let through what is above a threshold, chosen after the training."""

from dataclasses import dataclass

from eat_runner.config.checks import above, between
from eat_runner.config.hardware import HardwareConfig
from eat_runner.config.method import NONE, MethodConfig
from eat_runner.errors import UserError

AUTO = "auto"


@dataclass(kw_only=True, slots=True)
class ThresholdsConfig(MethodConfig):
    """name: ``fatrelu`` (methods/thresholds.py), or ``auto``, which becomes ``fatrelu`` where ``allow`` is given: so
    ``thresholds.allow=0.5`` is enough to choose it.
    allow: how much accuracy on the validation split the thresholds may cost, in points (percent).
    """

    name: str = AUTO
    allow: float = 0.0

    def __post_init__(self) -> None:
        if self.name == AUTO:
            self.name = "fatrelu" if self.allow != 0 else NONE

    @property
    def reads_hardware(self) -> bool:
        return True

    def check(self) -> None:
        if self.is_chosen:
            above("thresholds.allow", self.allow, 0.0)
            between("thresholds.allow", self.allow, 0.0, 100.0)

    def check_hardware(self, hardware: HardwareConfig) -> None:
        if not hardware.skips_zeros:
            raise UserError(
                f"thresholds save nothing on hardware={hardware.name}, where a zero costs as much as any value: choose "
                "other hardware, or leave thresholds out"
            )
