"""What the config groups of methods have in common: a method changes a network beside its penalty."""

from dataclasses import dataclass
from typing import Self

from eat_runner.config.hardware import HardwareConfig

NONE = "none"


@dataclass(kw_only=True, slots=True)
class MethodConfig:
    """A method's group: a subclass has its knobs. name: which variant of it; ``none`` leaves the network as it
    is, and then the other keys mean nothing."""

    name: str = NONE

    @property
    def is_chosen(self) -> bool:
        return self.name != NONE

    @property
    def reads_hardware(self) -> bool:
        """Whether the prices of the hardware decide what the method does to the network."""
        return False

    def settled(self, has_budget: bool) -> Self:
        """With the values that follow from the rest of the configuration. has_budget: whether an energy budget is
        set."""
        return self

    @property
    def widths(self) -> frozenset[int]:
        """The widths, in bits, that the method gives weights, where the hardware needs prices for them."""
        return frozenset()

    def check(self) -> None:
        """Raise UserError where a value is out of range."""

    def check_under_budget(self) -> None:
        """Raise UserError where a value does not go with an energy budget."""

    def check_hardware(self, hardware: HardwareConfig) -> None:
        """Raise UserError where the method, which is chosen, can do nothing for that hardware."""
