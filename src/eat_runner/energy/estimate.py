"""Counts x prices -> energy. Two rules: the published simulator's, and a fused, zero-skipping accelerator's. No torch.

Every energy inside is in pJ. "With" means with zero-skipping, "dense" without; ratio = with / dense.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from eat_runner.config.hardware import FusedHardware, HardwareConfig, PublishedHardware
from eat_runner.energy.counts import NETWORK_INPUT, BatchCounts, Counts, Kind, LayerCounts
from eat_runner.errors import UserError

PJ_PER_UJ = 1e6
RUN_BITS = 5  # run-length coding of zeros as in Eyeriss (JSSC 2017): a 5-bit run before each value
LONGEST_RUN = 32  # zeros in one code word: a run of 31 and a value that is itself zero
OPENING = frozenset({Kind.CONV, Kind.LINEAR})
ABSORBED = frozenset({Kind.BATCH_NORM, Kind.ADD, Kind.RELU, Kind.ACTIVATION})


@dataclass(frozen=True, slots=True)
class LayerEnergy:
    """One layer's part of an image's energy; the parts add up to the whole.

    name, op: of a call, or of a whole fused group (``Conv2d+BatchNorm2d+ReLU`` under the convolution's name).
    energy_pj, dense_pj: in units of one multiply-accumulate where prices are relative.
    firing_rate: non-zeros / elements of what leaves the layer.
    """

    name: str
    op: str
    energy_pj: float
    dense_pj: float
    firing_rate: float


@dataclass(frozen=True, slots=True)
class EnergyReport:
    """What the counts of a split cost on one hardware.

    ratio: energy with zero-skipping / without. floor: the ratio if every activation output were zero; None where it was
    not measured or means nothing. energy_uj_per_image, dense_uj_per_image: None where prices are relative.
    uncounted: operations whose cost is not in these numbers. note: what the numbers are and are not.
    """

    hardware: str
    ratio: float
    floor: float | None
    energy_uj_per_image: float | None
    dense_uj_per_image: float | None
    layers: list[LayerEnergy] = field(default_factory=list[LayerEnergy])
    uncounted: tuple[str, ...] = ()
    note: str = ""

    def summary(self) -> dict[str, float | None]:
        """The numbers without the layers: ratio, floor and energies per image."""
        return {
            "ratio": self.ratio,
            "floor": self.floor,
            "energy_uj_per_image": self.energy_uj_per_image,
            "dense_uj_per_image": self.dense_uj_per_image,
        }


def estimate(counts: Counts, hardware: HardwareConfig, split: str = "test") -> EnergyReport:
    """Price the counts of ``split``.

    Raises UserError if the split was not measured, or if ``hardware`` asks for counts with another batch size or
    threshold than these have.
    """
    _check_meter(counts, hardware)
    chosen = counts.select(split)
    if not chosen.images:
        raise UserError(f"there are no counts of the split {split!r}: measure it first")
    return _published(chosen, hardware) if isinstance(hardware, PublishedHardware) else _fused(chosen, hardware)


def _check_meter(counts: Counts, hardware: HardwareConfig) -> None:
    if hardware.batch is not None and hardware.batch != counts.batch:
        raise UserError(
            f"hardware {hardware.name} needs counts with meter.batch={hardware.batch}, these have {counts.batch}: "
            "measure again, or use other hardware"
        )
    if hardware.threshold != counts.threshold:
        raise UserError(
            f"hardware {hardware.name} needs counts with meter.threshold={hardware.threshold:g}, these have "
            f"{counts.threshold:g}: measure again, or use other hardware"
        )


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


# --- the published simulator (Shumailov et al., Sponge Examples, EuroS&P 2021) --------------------------------------


class _BatchEnergy(NamedTuple):
    memory_pj: float
    compute_pj: float
    dense_pj: float

    @property
    def ratio(self) -> float:
        return _share(self.memory_pj + self.compute_pj, self.dense_pj)


def _published(counts: Counts, hardware: PublishedHardware) -> EnergyReport:
    """Ratio: the mean over batches of the batch's ratio. Energy per image: all batches together / images."""
    batches = [_published_batch(batch, hardware) for batch in counts.batches if not batch.is_floor]
    floors = [_published_batch(batch, hardware).ratio for batch in counts.batches if batch.is_floor]
    energy_pj = sum(batch.memory_pj + batch.compute_pj for batch in batches)
    dense_pj = sum(batch.dense_pj for batch in batches)
    return EnergyReport(
        hardware=hardware.name,
        ratio=sum(batch.ratio for batch in batches) / len(batches),
        floor=floors[0] if floors else None,
        energy_uj_per_image=energy_pj / counts.images / PJ_PER_UJ,
        dense_uj_per_image=dense_pj / counts.images / PJ_PER_UJ,
        layers=_published_layers(counts, hardware, sum(batch.compute_pj for batch in batches), len(batches)),
        uncounted=counts.uncounted,
        note=hardware.note,
    )


def _published_batch(batch: BatchCounts, hardware: PublishedHardware) -> _BatchEnergy:
    """One network-wide density of parameters and of inputs scales all computations."""
    repeats = hardware.bn_statistics_repeats
    parameters = batch.parameter_elements + repeats * batch.statistics_elements
    parameter_nonzeros = batch.parameter_nonzeros + repeats * batch.statistics_nonzeros
    input_nonzeros = {
        "none": batch.input_nonzeros,
        "as_built": batch.input_nonzeros_as_built,
        "all": batch.input_nonzeros_all,
    }[hardware.inplace]
    density = _share(parameter_nonzeros, parameters) * _share(input_nonzeros, batch.input_elements)
    dense_compute_pj = hardware.multiply_pj * batch.computations
    return _BatchEnergy(
        memory_pj=hardware.dram_pj_per_value * (parameter_nonzeros + input_nonzeros + batch.output_nonzeros),
        compute_pj=dense_compute_pj * density,
        dense_pj=hardware.dram_pj_per_value * (parameters + batch.input_elements + batch.output_elements)
        + dense_compute_pj,
    )


def _published_layers(
    counts: Counts, hardware: PublishedHardware, compute_pj: float, batches: int
) -> list[LayerEnergy]:
    """Each module call's part; of ``compute_pj``, scaled by network-wide densities, by its share of computations."""
    rows = [row for row in counts.layers if not row.functional]
    compute_pj_per_computation = _share(compute_pj, sum(row.computations for row in rows))
    images = counts.images

    def energy(row: LayerCounts) -> LayerEnergy:
        repeats = hardware.bn_statistics_repeats if row.op == "BatchNorm2d" else 0
        parameters = row.parameter_elements + repeats * row.statistics_elements
        parameter_nonzeros = row.parameter_nonzeros + repeats * row.statistics_nonzeros
        overwritten = {"none": False, "as_built": row.inplace, "all": row.activation}[hardware.inplace]
        input_nonzeros = row.output_nonzeros if overwritten else row.input_nonzeros
        values = batches * parameters + row.input_elements + row.output_elements
        nonzeros = batches * parameter_nonzeros + input_nonzeros + row.output_nonzeros
        return LayerEnergy(
            row.name,
            row.op,
            (hardware.dram_pj_per_value * nonzeros + compute_pj_per_computation * row.computations) / images,
            (hardware.dram_pj_per_value * values + hardware.multiply_pj * row.computations) / images,
            _share(row.output_nonzeros, row.output_elements),
        )

    return [energy(row) for row in rows]


# --- the fused family ----------------------------------------------------------------------------------------------


class _Piece(NamedTuple):
    """What is read of a stored tensor, per image: the call that made it, elements and non-zeros that are read."""

    made_by: int
    elements: float
    nonzeros: float


@dataclass(slots=True)
class _Group:
    """Calls that run as one: nothing is stored between them. reads: the stored tensors that come in."""

    rows: list[LayerCounts]
    reads: list[_Piece]


def _fused(counts: Counts, hardware: FusedHardware) -> EnergyReport:
    """Sum of the groups' energies per image (mean over the data set). A lower bound: each tensor is read once."""
    groups = _fuse(counts.layers)
    dense_bits = {row.call: row.output_elements / row.images * hardware.bits for row in counts.layers}
    layers = [_group_energy(group, dense_bits, hardware) for group in groups]
    energy_pj = sum(layer.energy_pj for layer in layers)
    dense_pj = sum(layer.dense_pj for layer in layers)
    return EnergyReport(
        hardware=hardware.name,
        ratio=_share(energy_pj, dense_pj),
        floor=None,
        energy_uj_per_image=None if hardware.relative else energy_pj / PJ_PER_UJ,
        dense_uj_per_image=None if hardware.relative else dense_pj / PJ_PER_UJ,
        layers=layers,
        uncounted=counts.uncounted,
        note=hardware.note,
    )


def _fuse(rows: Sequence[LayerCounts]) -> list[_Group]:
    """Groups in the order of their first call. Convolution and linear layers open one, which takes in the batch norm
    directly behind, and residual additions and activations, while the tensor between has exactly one consumer. Of two
    groups that meet in an addition the later one takes it in. Everything else but views stands alone."""
    by_call = {row.call: row for row in rows}
    outputs: dict[int, list[_Piece]] = {}  # what each call's output is made of, seen through views
    open_groups: dict[int, _Group] = {}  # by the call that made their result so far
    groups: list[_Group] = []
    for row in rows:
        operands = _operands(row, by_call, outputs)
        if row.kind == Kind.VIEW:
            outputs[row.call] = _viewed(row, operands)
            continue
        outputs[row.call] = [_Piece(row.call, row.output_elements / row.images, row.output_nonzeros / row.images)]
        taken = _absorbing(row, by_call, open_groups)
        if taken is not None:
            position, made_by = taken
            group = open_groups.pop(made_by)
            group.rows.append(row)
            group.reads += [piece for i, pieces in enumerate(operands) if i != position for piece in pieces]
        else:
            group = _Group([row], [piece for pieces in operands for piece in pieces])
            groups.append(group)
        if taken is not None or row.kind in OPENING:
            open_groups[row.call] = group
    return groups


def _operands(
    row: LayerCounts, by_call: dict[int, LayerCounts], outputs: dict[int, list[_Piece]]
) -> list[list[_Piece]]:
    """For each input of the call the stored tensors behind it. What no call made is the network's input."""
    if NETWORK_INPUT not in row.producers:
        return [outputs[producer] for producer in row.producers]
    made = [by_call[producer] for producer in row.producers if producer != NETWORK_INPUT]
    inputs = len(row.producers) - len(made)
    elements = row.input_elements - sum(producer.output_elements for producer in made)
    nonzeros = row.input_nonzeros - sum(producer.output_nonzeros for producer in made)
    unit = row.images * inputs
    image = [_Piece(NETWORK_INPUT, elements / unit, nonzeros / unit)]
    return [image if producer == NETWORK_INPUT else outputs[producer] for producer in row.producers]


def _viewed(row: LayerCounts, operands: list[list[_Piece]]) -> list[_Piece]:
    """What a view shows; one that keeps a part (``chunk``) keeps that part of each tensor behind it."""
    pieces = [piece for operand in operands for piece in operand]
    elements = _share(row.output_elements / row.images, sum(piece.elements for piece in pieces))
    nonzeros = _share(row.output_nonzeros / row.images, sum(piece.nonzeros for piece in pieces))
    return [_Piece(piece.made_by, piece.elements * elements, piece.nonzeros * nonzeros) for piece in pieces]


def _absorbing(
    row: LayerCounts, by_call: dict[int, LayerCounts], open_groups: dict[int, _Group]
) -> tuple[int, int] | None:
    """Which operand comes from an open group that can take this call in: (position, call at the group's end)."""
    if row.kind not in ABSORBED:
        return None
    ends = [(_end_behind(producer, by_call), position) for position, producer in enumerate(row.producers)]
    found = [(end, position) for end, position in ends if end in open_groups]
    if not found:
        return None
    end, position = max(found)
    # batch norm is folded into weights and bias, which nothing but the products may come before
    if row.kind == Kind.BATCH_NORM and len(open_groups[end].rows) > 1:
        return None
    return position, end


def _end_behind(call: int, by_call: dict[int, LayerCounts]) -> int | None:
    """The call whose result this is, seen through views, if nobody else reads it on the way."""
    while call != NETWORK_INPUT and len(by_call[call].consumers) == 1:
        row = by_call[call]
        if row.kind != Kind.VIEW:
            return call
        if len(row.producers) != 1:
            return None
        call = row.producers[0]
    return None


def _group_energy(group: _Group, dense_bits: dict[int, float], hardware: FusedHardware) -> LayerEnergy:
    first, last = group.rows[0], group.rows[-1]
    written = _Piece(last.call, last.output_elements / last.images, last.output_nonzeros / last.images)
    energy_pj = dense_pj = 0.0
    for piece in (*group.reads, written):
        from_dram = piece.made_by == NETWORK_INPUT or dense_bits[piece.made_by] > hardware.buffer_bits
        pj_per_bit = hardware.dram_pj_per_bit if from_dram else hardware.buffer_pj_per_bit
        bits = hardware.input_bits if piece.made_by == NETWORK_INPUT else hardware.bits
        energy_pj += pj_per_bit * stored_bits(piece.elements, piece.nonzeros, bits, hardware.format)
        dense_pj += pj_per_bit * piece.elements * bits
    weights_pj_per_bit = hardware.dram_pj_per_bit / hardware.weight_reuse + hardware.buffer_pj_per_bit
    for elements, nonzeros in _weights(group):
        energy_pj += weights_pj_per_bit * stored_bits(elements, nonzeros, hardware.bits, hardware.format)
        dense_pj += weights_pj_per_bit * elements * hardware.bits
    mac_pj = hardware.multiply_pj + hardware.accumulate_pj + hardware.register_pj_per_mac
    macs = {"input": first.macs_input_nonzero, "both": first.macs_both_nonzero, "none": first.macs_valid}
    element_ops_pj = sum(
        _element_ops_pj(row, hardware) for row in group.rows if row is first or row.kind != Kind.BATCH_NORM
    )
    energy_pj += mac_pj * macs[hardware.skip] / first.images + element_ops_pj
    dense_pj += mac_pj * first.macs_valid / first.images + element_ops_pj
    op = "+".join(row.op for row in group.rows)
    return LayerEnergy(first.name, op, energy_pj, dense_pj, _share(written.nonzeros, written.elements))


def stored_bits(elements: float, nonzeros: float, bits: int, format: str) -> float:
    """Bits that a tensor takes: dense, with a bitmask, or run-length coded (an upper bound), or the least of them."""
    dense = elements * bits
    if format == "dense":
        return dense
    bitmask = nonzeros * bits + elements
    if format == "bitmask":
        return min(dense, bitmask)
    run_length = (nonzeros + (elements - nonzeros) // LONGEST_RUN + 1) * (bits + RUN_BITS)
    return min(dense, run_length) if format == "run_length" else min(dense, bitmask, run_length)


def _weights(group: _Group) -> list[tuple[int, int]]:
    """(elements, non-zeros) of the weights and of the bias. A folded batch norm makes the bias one value a channel."""
    first = group.rows[0]
    folded = [row for row in group.rows[1:] if row.kind == Kind.BATCH_NORM]
    channels = folded[0].statistics_elements // 2 if folded else 0
    bias = (channels, channels) if folded else (first.bias_elements, first.bias_nonzeros)
    return [weights for weights in ((first.weight_elements, first.weight_nonzeros), bias) if weights[0]]


def _element_ops_pj(row: LayerCounts, hardware: FusedHardware) -> float:
    """Energy of what is done once for each value, per image. Zeros are not skipped here."""
    multiply, add = hardware.multiply_pj, hardware.add_pj
    inputs, outputs = row.input_elements, row.output_elements
    match row.kind:
        case Kind.BATCH_NORM:  # one scale and one shift
            total = outputs * (multiply + add)
        case Kind.LAYER_NORM:  # mean, variance, then scale and shift
            total = outputs * (2 * multiply + 3 * add)
        case Kind.ADD:
            total = outputs * add
        case Kind.MULTIPLY:
            total = outputs * multiply
        case Kind.ACTIVATION:
            total = outputs * hardware.activation_pj
        case Kind.MAX_POOL:
            total = outputs * (row.window - 1) * add
        case Kind.AVG_POOL:
            total = inputs * add + outputs * multiply
        case _:
            total = 0.0
    return total / row.images
