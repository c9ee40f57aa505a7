"""Counts x prices -> energy, by the rule that the hardware file names. No torch."""

from eat_runner.config.hardware import HardwareConfig
from eat_runner.energy.counts import Counts
from eat_runner.energy.rules import RULES
from eat_runner.energy.rules.base import EnergyReport
from eat_runner.errors import UserError


def estimate(counts: Counts, hardware: HardwareConfig, split: str = "test") -> EnergyReport:
    """Price the counts of ``split``.

    Raises UserError if the split was not measured, if ``hardware`` asks for counts with another batch size or threshold
    than these have, or if its rule has no price for them.
    """
    _check_meter(counts, hardware)
    chosen = counts.select(split)
    if not chosen.images:
        raise UserError(f"there are no counts of the split {split!r}: measure it first")
    return RULES[hardware.rule].price(chosen, hardware)


def _check_meter(counts: Counts, hardware: HardwareConfig) -> None:
    if hardware.batch_size is not None and hardware.batch_size != counts.batch_size:
        raise UserError(
            f"hardware {hardware.name} needs counts with meter.batch_size={hardware.batch_size}, these have "
            f"{counts.batch_size}: measure again, or use other hardware"
        )
    if hardware.threshold != counts.threshold:
        raise UserError(
            f"hardware {hardware.name} needs counts with meter.threshold={hardware.threshold:g}, these have "
            f"{counts.threshold:g}: measure again, or use other hardware"
        )
