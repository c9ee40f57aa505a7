"""What a run's folder holds beyond its row of the table: prices on other hardware, layers, epochs, who made it."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, cast

from eat_runner.analysis.rows import estimate_split
from eat_runner.config.hardware import HardwareConfig
from eat_runner.energy.counts import Counts
from eat_runner.energy.rules.base import LayerEnergy
from eat_runner.errors import UserError
from eat_runner.records import RunFolder, RunRecord

OF_DRAM = "dram_pj"  # how the names of DRAM's prices begin


@dataclass(frozen=True)
class Price:
    """What an image costs on one hardware, in uJ; in millions of multiply-accumulates where prices are relative to one.

    energy, dense: with and without zero-skipping, test split. energy_validation: None without that split. layers: of
    the test split. dram_pj: what of their energies goes to and from DRAM, in the unit of theirs.
    """

    energy: float
    dense: float
    ratio: float
    energy_validation: float | None
    dram_pj: float
    layers: list[LayerEnergy]


@dataclass(frozen=True)
class Details:
    """prices: in the order of the hardware; None where it has no price for these counts. history: a row an epoch."""

    record: RunRecord
    prices: list[Price | None]
    history: list[dict[str, float | None]]


def read_details(folder: RunFolder, hardware: Sequence[HardwareConfig]) -> Details:
    """Raises UserError where record or counts cannot be read; a history that cannot be is left out."""
    record = folder.read_record()
    counts = folder.read_counts(record)
    try:
        history = folder.read_history()
    except UserError:
        history = []
    return Details(record, [_price(folder, counts, each) for each in hardware], history)


def _price(folder: RunFolder, counts: Counts, hardware: HardwareConfig) -> Price | None:
    try:
        test = estimate_split(folder, counts, hardware, "test")
        validated = any(batch.split == "validation" for batch in counts.batches)
        validation = estimate_split(folder, counts, hardware, "validation") if validated else None
        without = estimate_split(folder, counts, _without_dram(hardware), "test")
    except UserError:
        return None
    return Price(
        energy=test.cost,
        dense=test.dense_cost,
        ratio=test.ratio,
        energy_validation=None if validation is None else validation.cost,
        # which memory holds a tensor follows from sizes alone, so energy is linear in each price
        dram_pj=sum(layer.energy_pj for layer in test.layers) - sum(layer.energy_pj for layer in without.layers),
        layers=test.layers,
    )


def _without_dram(hardware: HardwareConfig) -> HardwareConfig:
    free = {field.name: 0.0 for field in fields(cast(Any, hardware)) if field.name.startswith(OF_DRAM)}
    return cast(HardwareConfig, replace(cast(Any, hardware), **free))
