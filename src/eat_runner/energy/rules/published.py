"""The published simulator (Shumailov et al., Sponge Examples, EuroS&P 2021, its energy estimator), quirks included.

Every tensor goes to DRAM and comes back, 32 bits a value; one network-wide density of parameters and one of inputs
scale all computations. Only module calls are seen. Totals are those of batches.csv; layers.csv says how they divide.
"""

from typing import NamedTuple

from eat_runner.config.hardware import PUBLISHED_BITS, PublishedHardware
from eat_runner.energy.counts import BatchCounts, Counts, Kind, LayerCounts
from eat_runner.energy.rules.base import PJ_PER_UJ, EnergyParts, EnergyReport, LayerEnergy, MarginalPrices, share
from eat_runner.errors import UserError, one_line


class Published:
    """Ratio: the mean over batches of the batch's ratio. Energy per image: all batches together / images."""

    reads_layers = False

    def price(self, counts: Counts, hardware: PublishedHardware) -> EnergyReport:
        """Energies in uJ, ratio and floor. Raises UserError for values of other widths than 32 bits, and for products
        that the simulator has never seen, unless it may leave them out."""
        _refuse_other_widths(counts, hardware)
        _refuse_unseen(counts, hardware)
        batches = [_batch_energy(batch, hardware) for batch in counts.batches if not batch.is_floor]
        floors = [_batch_energy(batch, hardware).ratio for batch in counts.batches if batch.is_floor]
        energy_pj = sum(batch.memory_pj + batch.compute_pj for batch in batches)
        dense_pj = sum(batch.dense_pj for batch in batches)
        return EnergyReport(
            hardware=hardware.name,
            ratio=sum(batch.ratio for batch in batches) / len(batches),
            floor=floors[0] if floors else None,
            energy_uj_per_image=energy_pj / counts.images / PJ_PER_UJ,
            dense_uj_per_image=dense_pj / counts.images / PJ_PER_UJ,
            layers=_layers(counts, hardware, sum(batch.compute_pj for batch in batches), len(batches)),
            uncounted=counts.uncounted,
            note=hardware.note,
        )

    def marginal_pj(self, counts: Counts, hardware: PublishedHardware) -> MarginalPrices:
        """A non-zero costs ``dram_pj_per_value`` wherever it is counted: as an output, and as an input of each module
        that reads it; a weight once a batch. And it raises the network's density of inputs, or of parameters, and with
        it the energy of all computations. Weights of functions are not seen and cost nothing."""
        _refuse_other_widths(counts, hardware)
        _refuse_unseen(counts, hardware)
        batches = [(batch, _pool(batch, hardware)) for batch in counts.batches if not batch.is_floor]
        compute_pj_per_input = compute_pj_per_parameter = 0.0  # of all images
        for batch, pooled in batches:
            dense_pj = hardware.multiply_pj * batch.computations
            of_inputs, of_parameters = share(dense_pj, batch.input_elements), share(dense_pj, pooled.parameters)
            compute_pj_per_input += batch.images * of_inputs * pooled.parameter_density
            compute_pj_per_parameter += of_parameters * pooled.input_density
        images = counts.images
        input_pj = hardware.dram_pj_per_value + compute_pj_per_input / images
        weight_pj = (len(batches) * hardware.dram_pj_per_value + compute_pj_per_parameter) / images
        counted = _times_counted(counts.layers, hardware)
        return MarginalPrices(
            activations={
                row.call: counted[row.call].outputs * hardware.dram_pj_per_value + counted[row.call].inputs * input_pj
                for row in counts.layers
                if row.kind != Kind.VIEW
            },
            weights={row.call: 0.0 if row.functional else weight_pj for row in counts.layers if row.weight_elements},
        )


def _refuse_other_widths(counts: Counts, hardware: PublishedHardware) -> None:
    for row in counts.layers:
        for bits in (row.weight_bits, row.output_bits):
            if bits not in (0, PUBLISHED_BITS):
                raise UserError(
                    f"hardware {hardware.name} prices {PUBLISHED_BITS}-bit values, {one_line(row.name)} has {bits} "
                    "bits: use hardware with rule: fused"
                )


def _refuse_unseen(counts: Counts, hardware: PublishedHardware) -> None:
    """The simulator knows the products of convolutions and linear layers that are modules, and of nothing else."""
    if counts.ignore_uncounted or not any(batch.unseen_macs for batch in counts.batches):
        return
    rows = [row for row in counts.layers if row.macs_dense and (row.functional or not row.computations)]
    names = ", ".join(dict.fromkeys(row.op for row in rows)) or "functions"
    raise UserError(
        f"hardware {hardware.name} never saw the products of {one_line(names)}: use hardware with rule: fused, or "
        "meter.ignore_uncounted=true to leave them out"
    )


class _Pooled(NamedTuple):
    """A batch's sums over the whole network, as the simulator reads them."""

    parameters: int
    parameter_nonzeros: int
    inputs: int
    input_nonzeros: int

    @property
    def parameter_density(self) -> float:
        return share(self.parameter_nonzeros, self.parameters)

    @property
    def input_density(self) -> float:
        return share(self.input_nonzeros, self.inputs)


def _pool(batch: BatchCounts, hardware: PublishedHardware) -> _Pooled:
    repeats = hardware.bn_statistics_repeats
    return _Pooled(
        parameters=batch.parameter_elements + repeats * batch.statistics_elements,
        parameter_nonzeros=batch.parameter_nonzeros + repeats * batch.statistics_nonzeros,
        inputs=batch.input_elements,
        input_nonzeros={
            "none": batch.input_nonzeros,
            "as_built": batch.input_nonzeros_as_built,
            "all": batch.input_nonzeros_all,
        }[hardware.inplace],
    )


class _BatchEnergy(NamedTuple):
    memory_pj: float
    compute_pj: float
    dense_pj: float

    @property
    def ratio(self) -> float:
        return share(self.memory_pj + self.compute_pj, self.dense_pj)


def _batch_energy(batch: BatchCounts, hardware: PublishedHardware) -> _BatchEnergy:
    """One network-wide density of parameters and of inputs scales all computations."""
    pooled = _pool(batch, hardware)
    nonzeros = pooled.parameter_nonzeros + pooled.input_nonzeros + batch.output_nonzeros
    dense_compute_pj = hardware.multiply_pj * batch.computations
    return _BatchEnergy(
        memory_pj=hardware.dram_pj_per_value * nonzeros,
        compute_pj=dense_compute_pj * (pooled.parameter_density * pooled.input_density),
        dense_pj=hardware.dram_pj_per_value * (pooled.parameters + batch.input_elements + batch.output_elements)
        + dense_compute_pj,
    )


def _layers(counts: Counts, hardware: PublishedHardware, compute_pj: float, batches: int) -> list[LayerEnergy]:
    """Each module call's part; of ``compute_pj``, scaled by network-wide densities, by its share of computations."""
    rows = [row for row in counts.layers if not row.functional]
    compute_pj_per_computation = share(compute_pj, sum(row.computations for row in rows))
    images = counts.images

    def energy(row: LayerCounts) -> LayerEnergy:
        repeats = hardware.bn_statistics_repeats if row.op == "BatchNorm2d" else 0
        parameters = row.parameter_elements + repeats * row.statistics_elements
        parameter_nonzeros = row.parameter_nonzeros + repeats * row.statistics_nonzeros
        input_nonzeros = row.output_nonzeros if _input_is_overwritten(row, hardware) else row.input_nonzeros
        values = batches * parameters + row.input_elements + row.output_elements
        nonzeros = batches * parameter_nonzeros + input_nonzeros + row.output_nonzeros
        return LayerEnergy(
            row.name,
            row.op,
            (hardware.dram_pj_per_value * nonzeros + compute_pj_per_computation * row.computations) / images,
            (hardware.dram_pj_per_value * values + hardware.multiply_pj * row.computations) / images,
            share(row.output_nonzeros, row.output_elements),
            (row.call,),
            parts(row, batches * parameter_nonzeros, input_nonzeros + row.output_nonzeros, compute_pj_per_computation),
            parts(row, batches * parameters, row.input_elements + row.output_elements, hardware.multiply_pj),
        )

    def parts(row: LayerCounts, weights: int, activations: int, computation_pj: float) -> EnergyParts:
        """Computations are the products of what multiplies, and everything else's others."""
        multiplies = row.macs_nominal > 0
        computed_pj = computation_pj * row.computations / images
        return EnergyParts(
            hardware.dram_pj_per_value * weights / images,
            hardware.dram_pj_per_value * activations / images,
            computed_pj if multiplies else 0.0,
            0.0 if multiplies else computed_pj,
        )

    return [energy(row) for row in rows]


def _input_is_overwritten(row: LayerCounts, hardware: PublishedHardware) -> bool:
    """Whether the simulator counts the call's input when its output has taken its place."""
    return {"none": False, "as_built": row.inplace, "all": row.activation}[hardware.inplace]


class _Times(NamedTuple):
    """How often a non-zero is counted among outputs and among inputs."""

    outputs: float
    inputs: float


def _times_counted(rows: list[LayerCounts], hardware: PublishedHardware) -> dict[int, _Times]:
    """For each call, where one more non-zero in its output is counted. What a view shows of the tensor is counted there
    and by who reads it, too; of a view that keeps a part, by the part of its input's elements that it keeps."""
    by_call = {row.call: row for row in rows}
    counted: dict[int, _Times] = {}
    for row in reversed(rows):
        outputs = float(not row.functional)
        inputs = float(not row.functional and _input_is_overwritten(row, hardware))
        for reader in (by_call[call] for call in row.consumers):
            inputs += not reader.functional and not _input_is_overwritten(reader, hardware)
            if reader.kind == Kind.VIEW:
                kept = min(1.0, share(reader.output_elements, reader.input_elements))
                outputs += kept * counted[reader.call].outputs
                inputs += kept * counted[reader.call].inputs
        counted[row.call] = _Times(outputs, inputs)
    return counted
