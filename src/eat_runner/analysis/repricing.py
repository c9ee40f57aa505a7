"""The same counts under other readings: other batches, no parameters."""

from dataclasses import fields, replace

from eat_runner.config.hardware import HardwareConfig
from eat_runner.energy.counts import BatchCounts, Counts, LayerCounts
from eat_runner.energy.estimate import EnergyReport, estimate

OF_PARAMETERS = ("weight_", "bias_", "statistics_", "buffer_", "parameter_")


def estimate_regrouped(counts: Counts, hardware: HardwareConfig) -> EnergyReport:
    """``estimate`` of the test split, as if metered in batches of the size that the hardware asks for."""
    return estimate(in_batches_of(counts, hardware.batch_size), hardware, "test")


def in_batches_of(counts: Counts, batch_size: int | None) -> Counts:
    """The counts as if metered in batches of another size: activations add up over images, and parameters are charged
    once a batch. A batch's ratio is then the mean over the smaller ones with the same density; rounded to integers.
    None: as they were metered."""

    def regroup(row: BatchCounts) -> BatchCounts:
        batches = row.images / size
        return replace(
            row,
            parameter_elements=round(row.parameter_elements * batches),
            parameter_nonzeros=round(row.parameter_nonzeros * batches),
            statistics_elements=round(row.statistics_elements * batches),
            statistics_nonzeros=round(row.statistics_nonzeros * batches),
        )

    size = batch_size or counts.batch_size
    if size == counts.batch_size:
        return counts
    return replace(counts, batch_size=size, batches=[regroup(row) for row in counts.batches if not row.is_floor])


def weights_share(counts: Counts, hardware: HardwareConfig) -> float:
    """Which part of the energy without zero-skipping goes into fetching parameters: what is saved if there are none.
    It depends on the network's shapes alone."""
    bare = replace(
        counts,
        layers=[replace(row, **_no_parameters(LayerCounts)) for row in counts.layers],
        batches=[replace(row, **_no_parameters(BatchCounts)) for row in counts.batches],
    )
    whole, without = (
        sum(layer.dense_pj for layer in estimate_regrouped(each, hardware).layers) for each in (counts, bare)
    )
    return 1 - without / whole


def _no_parameters(kind: type[LayerCounts] | type[BatchCounts]) -> dict[str, int]:
    return {field.name: 0 for field in fields(kind) if field.name.startswith(OF_PARAMETERS)}
