"""A zero-skipping accelerator that runs a layer, its batch norm, residual addition and activation as one, and stores
tensors compressed. Everything is per image, the mean over the data set. No torch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from eat_runner.config.hardware import FusedHardware
from eat_runner.energy.counts import NETWORK_INPUT, Counts, Kind, LayerCounts
from eat_runner.energy.rules.base import PJ_PER_UJ, EnergyParts, EnergyReport, LayerEnergy, MarginalPrices, share
from eat_runner.energy.rules.storage import slope_bits, stored_bits

BITS_PER_BYTE = 8
BIAS_BITS = 32  # of a layer whose weights have a width of their own: what is added to 32-bit sums
OPENING = frozenset({Kind.CONV, Kind.LINEAR})
ABSORBED = frozenset({Kind.BATCH_NORM, Kind.ADD, Kind.RELU, Kind.ACTIVATION})
MACS = {"input": "macs_input_nonzero", "both": "macs_both_nonzero", "none": "macs_valid"}  # by ``skip``: those made


class Fused:
    """Energy: the sum of the groups'. A lower bound, since each tensor is read once."""

    reads_layers = True

    def price(self, counts: Counts, hardware: FusedHardware) -> EnergyReport:
        """Energies in uJ, or none where prices are relative. "Dense" has the same widths, and no zeros. Raises
        UserError for a layer whose weights have a width that the hardware has no prices for."""
        tensors = _tensors(counts.layers, hardware)
        groups = _fuse(counts.layers)
        memory = _weight_memory(groups, hardware)
        layers = [_group_energy(group, tensors, memory, hardware) for group in groups]
        energy_pj = sum(layer.energy_pj for layer in layers)
        dense_pj = sum(layer.dense_pj for layer in layers)
        return EnergyReport(
            hardware=hardware.name,
            ratio=share(energy_pj, dense_pj),
            floor=None,
            energy_uj_per_image=None if hardware.relative else energy_pj / PJ_PER_UJ,
            dense_uj_per_image=None if hardware.relative else dense_pj / PJ_PER_UJ,
            layers=layers,
            uncounted=counts.uncounted,
            note=_note(counts, hardware),
            stored_weight_bytes=memory.stored_bits / BITS_PER_BYTE,
            peak_activation_bytes=_peak_bits(groups, tensors, hardware) / BITS_PER_BYTE,
            weights_on_chip=memory.on_chip if hardware.weight_buffer_bits else None,
        )

    def marginal_pj(self, counts: Counts, hardware: FusedHardware) -> MarginalPrices:
        """A non-zero costs the slope of the storage format, written once and read by each reader, and the products that
        ``skip`` would leave out without it. Of a reader that sees a part of a tensor, through a view, it costs that
        part, by elements. What is inside a group is not stored and has no price; nor has a bias. Where the weights live
        is taken as it is: the step at which they come to stay on chip is in no slope."""
        tensors = _tensors(counts.layers, hardware)
        groups = _fuse(counts.layers)
        memory = _weight_memory(groups, hardware)
        activations = {group.last.call: 0.0 for group in groups}
        weights: dict[int, float] = {}
        for group in groups:
            for piece, pj in _activation_slopes(group, tensors, hardware):
                if piece.made_by != NETWORK_INPUT:
                    activations[piece.made_by] += pj * min(1.0, share(piece.elements, tensors[piece.made_by].elements))
            if group.first.weight_elements:
                weights[group.first.call] = _weight_slope(group.first, memory, hardware)
        return MarginalPrices(activations, weights)


# --- groups --------------------------------------------------------------------------------------------------------


class _Piece(NamedTuple):
    """What is read of a stored tensor, per image: the call that made it, elements and non-zeros that are read."""

    made_by: int
    elements: float
    nonzeros: float


@dataclass(slots=True)
class _Group:
    """Calls that run as one: nothing is stored between them. operands: for each input of the first call, the stored
    tensors behind it; added: those that come in later, as residual operands."""

    rows: list[LayerCounts]
    operands: list[list[_Piece]]
    added: list[_Piece] = field(default_factory=list[_Piece])

    @property
    def first(self) -> LayerCounts:
        return self.rows[0]

    @property
    def last(self) -> LayerCounts:
        return self.rows[-1]

    @property
    def written(self) -> _Piece:
        return _output(self.last)

    @property
    def reads(self) -> list[_Piece]:
        """The stored tensors that come in."""
        return [piece for operand in self.operands for piece in operand] + self.added


def _output(row: LayerCounts) -> _Piece:
    return _Piece(row.call, row.output_elements / row.images, row.output_nonzeros / row.images)


def stored_calls(rows: Sequence[LayerCounts]) -> list[int]:
    """The calls of one split whose outputs are stored, in the order in which their groups begin."""
    return [group.last.call for group in _fuse(rows)]


def _fuse(rows: Sequence[LayerCounts]) -> list[_Group]:
    """Groups in the order of their first call. Convolution and linear layers open one, which takes in the batch norm
    directly behind, and residual additions and activations, while the tensor between has exactly one consumer. Of two
    groups that meet in an addition the later one takes it in. Everything else but views stands alone."""
    by_call = {row.call: row for row in rows}
    outputs: dict[int, list[_Piece]] = {}  # what each call's output is made of, seen through views
    open_groups: dict[int, _Group] = {}  # by the call that made their result so far
    groups: list[_Group] = []
    for row in rows:
        if row.kind == Kind.CONSTANT:  # made once: it is a weight of those who read it
            continue
        operands = _operands(row, by_call, outputs)
        if row.kind == Kind.VIEW:
            outputs[row.call] = _viewed(row, operands)
            continue
        outputs[row.call] = [_output(row)]
        taken = _absorbing(row, by_call, open_groups)
        if taken is not None:
            position, made_by = taken
            group = open_groups.pop(made_by)
            group.rows.append(row)
            group.added += [piece for i, pieces in enumerate(operands) if i != position for piece in pieces]
        else:
            group = _Group([row], operands)
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
    """What a view shows; one that keeps a part (``chunk``) keeps that part of each tensor behind it, and one that
    repeats it, or puts zeros around it, the tensor itself, which is read once."""
    pieces = [piece for operand in operands for piece in operand]
    elements = min(1.0, share(row.output_elements / row.images, sum(piece.elements for piece in pieces)))
    nonzeros = min(1.0, share(row.output_nonzeros / row.images, sum(piece.nonzeros for piece in pieces)))
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


# --- prices --------------------------------------------------------------------------------------------------------


def _note(counts: Counts, hardware: FusedHardware) -> str:
    """What is said of floating-point values is not said of counts of a network of integers, which have widths."""
    of_integers = any(row.weight_bits or row.output_bits for row in counts.layers)
    return "; ".join(filter(None, ["" if of_integers else hardware.float_note, hardware.note]))


class _Tensor(NamedTuple):
    """A call's output as it would be stored: elements of an image, bits of a value, price of a bit where it lives."""

    elements: float
    bits: int
    pj_per_bit: float


def _tensors(rows: Sequence[LayerCounts], hardware: FusedHardware) -> dict[int, _Tensor]:
    """By call. A tensor lives in the buffer if it fits there dense, so that no training moves it; the network's input
    lives in DRAM."""
    tensors = {NETWORK_INPUT: _Tensor(0.0, hardware.input_bits, hardware.dram_pj_per_bit)}
    for row in rows:
        elements, bits = row.output_elements / row.images, row.output_bits or hardware.bits
        from_dram = elements * bits > hardware.buffer_bits
        pj_per_bit = hardware.dram_pj_per_bit if from_dram else hardware.buffer_pj_per_bit
        tensors[row.call] = _Tensor(elements, bits, pj_per_bit)
    return tensors


class _WeightMemory(NamedTuple):
    """Bits of all weights as they are stored, price of a bit of them, and of a bit of them dense, for an image."""

    stored_bits: float
    on_chip: bool
    pj_per_bit: float
    dense_pj_per_bit: float


def _weight_memory(groups: Sequence[_Group], hardware: FusedHardware) -> _WeightMemory:
    """Weights that fit on chip, all of them, cost the buffer's price; others come from DRAM for ``weight_reuse``
    images, through the buffer for each. Stored and dense weights are decided for apart. A module that is called twice
    is stored once."""
    stored = dense = 0.0
    for group in {group.first.call if group.first.functional else group.first.name: group for group in groups}.values():
        for elements, nonzeros, bits in _weights(group, hardware):
            stored += _stored_bits(elements, nonzeros, bits, hardware)
            dense += elements * bits

    def fits(size: float) -> bool:
        return 0 < hardware.weight_buffer_bits >= size

    streamed = hardware.dram_pj_per_bit / hardware.weight_reuse + hardware.buffer_pj_per_bit
    stored_pj, dense_pj = (hardware.buffer_pj_per_bit if fits(size) else streamed for size in (stored, dense))
    return _WeightMemory(stored, fits(stored), stored_pj, dense_pj)


def _peak_bits(groups: Sequence[_Group], tensors: dict[int, _Tensor], hardware: FusedHardware) -> float:
    """The largest sum of the tensors that are alive in a group, each as it is stored, whole. Groups run one after the
    other, by their last call: by then all that they read is there. A tensor is alive from the group that writes it to
    the last one that reads it, both included; the network's input from the first group on."""
    order = sorted(groups, key=lambda group: group.last.call)
    whole = {group.last.call: group.written for group in order}
    images = [piece for group in order for piece in group.reads if piece.made_by == NETWORK_INPUT]
    whole |= {NETWORK_INPUT: max(images, key=lambda piece: piece.elements)} if images else {}
    born = {NETWORK_INPUT: 0} | {group.last.call: place for place, group in enumerate(order)}
    last_read = born | {piece.made_by: place for place, group in enumerate(order) for piece in group.reads}
    alive = [0.0] * len(order)
    for call, piece in whole.items():
        size = _stored_bits(piece.elements, piece.nonzeros, tensors[call].bits, hardware)
        for place in range(born[call], last_read[call] + 1):
            alive[place] += size
    return max(alive, default=0.0)


def _group_energy(
    group: _Group, tensors: dict[int, _Tensor], memory: _WeightMemory, hardware: FusedHardware
) -> LayerEnergy:
    first, written = group.first, group.written
    moved: list[float] = []  # activations, as stored and dense; weights likewise
    moved_dense: list[float] = []
    for piece in (*group.reads, written):
        _, bits, pj_per_bit = tensors[piece.made_by]
        moved.append(pj_per_bit * _stored_bits(piece.elements, piece.nonzeros, bits, hardware))
        moved_dense.append(pj_per_bit * piece.elements * bits)
    fetched: list[float] = []
    fetched_dense: list[float] = []
    for elements, nonzeros, bits in _weights(group, hardware):
        fetched.append(memory.pj_per_bit * _stored_bits(elements, nonzeros, bits, hardware))
        fetched_dense.append(memory.dense_pj_per_bit * elements * bits)
    mac_pj = _mac_pj(first, hardware)
    element_ops_pj = sum(
        _element_ops_pj(row, first.weight_bits, hardware)
        for row in group.rows
        if row is first or row.kind != Kind.BATCH_NORM
    )
    products_pj = mac_pj * _macs(first, hardware) / first.images
    products_dense_pj = mac_pj * first.macs_valid / first.images
    return LayerEnergy(
        first.name,
        "+".join(row.op for row in group.rows),
        _added([*moved, *fetched, products_pj + element_ops_pj]),
        _added([*moved_dense, *fetched_dense, products_dense_pj + element_ops_pj]),
        share(written.nonzeros, written.elements),
        tuple(row.call for row in group.rows),
        EnergyParts(_added(fetched), _added(moved), products_pj, element_ops_pj),
        EnergyParts(_added(fetched_dense), _added(moved_dense), products_dense_pj, element_ops_pj),
    )


def _added(energies: Sequence[float]) -> float:
    """One after the other, so that the last bit is the same in every version of Python, whose sum() differs."""
    total = 0.0
    for energy in energies:
        total += energy
    return total


def _stored_bits(elements: float, nonzeros: float, bits: int, hardware: FusedHardware) -> float:
    return stored_bits(elements, nonzeros, bits, hardware.format, hardware.run_bits)


def _activation_slopes(
    group: _Group, tensors: dict[int, _Tensor], hardware: FusedHardware
) -> Iterator[tuple[_Piece, float]]:
    """The tensors that a group writes and reads; for each, the group's pJ for one more non-zero there."""

    def storage_pj(piece: _Piece) -> float:
        _, bits, pj_per_bit = tensors[piece.made_by]
        return pj_per_bit * slope_bits(piece.elements, piece.nonzeros, bits, hardware.format, hardware.run_bits)

    for piece in (group.written, *group.reads):
        yield piece, storage_pj(piece)
    products_pj = _mac_pj(group.first, hardware) * _macs(group.first, hardware) / group.first.images
    # a zero in the second operand, where there is one, is skipped with skip: both alone
    skipping = {"both": group.operands, "input": group.operands[:1], "none": []}[hardware.skip]
    for operand in skipping:
        product_pj = share(products_pj, sum(piece.nonzeros for piece in operand))
        for piece in operand:
            yield piece, product_pj


def _weight_slope(row: LayerCounts, memory: _WeightMemory, hardware: FusedHardware) -> float:
    bits = row.weight_bits or hardware.bits
    slope = slope_bits(row.weight_elements, row.weight_nonzeros, bits, hardware.format, hardware.run_bits)
    storage_pj = memory.pj_per_bit * slope
    if hardware.skip != "both":
        return storage_pj
    return storage_pj + _mac_pj(row, hardware) * share(row.macs_both_nonzero / row.images, row.weight_nonzeros)


def _macs(row: LayerCounts, hardware: FusedHardware) -> int:
    """The products that are made, of all images."""
    return getattr(row, MACS[hardware.skip])


def _mac_pj(row: LayerCounts, hardware: FusedHardware) -> float:
    one = hardware.operations(row.weight_bits)
    return one.multiply_pj + one.accumulate_pj + hardware.register_pj_per_mac


def _weights(group: _Group, hardware: FusedHardware) -> list[tuple[int, int, int]]:
    """(elements, non-zeros, bits) of the weights, of the bias, and of constants that are added later. A folded batch
    norm makes the bias one value a channel."""
    first = group.first
    folded = [row for row in group.rows[1:] if row.kind == Kind.BATCH_NORM]
    channels = folded[0].statistics_elements // 2 if folded else 0
    bias = (channels, channels) if folded else (first.bias_elements, first.bias_nonzeros)
    shifts = [
        (row.bias_elements + row.weight_elements, row.bias_nonzeros + row.weight_nonzeros)
        for row in group.rows[1:]
        if row.kind == Kind.ADD
    ]
    parts = [
        (first.weight_elements, first.weight_nonzeros, first.weight_bits or hardware.bits),
        *((*values, BIAS_BITS if first.weight_bits else hardware.bits) for values in (bias, *shifts)),
    ]
    return [part for part in parts if part[0]]


def _element_ops_pj(row: LayerCounts, weight_bits: int, hardware: FusedHardware) -> float:
    """Energy of what is done once for each value, per image, by a group whose weights have so many bits. Zeros are not
    skipped here."""
    one = hardware.operations(weight_bits)
    multiply, add = one.multiply_pj, one.add_pj
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
        case Kind.SQUARES:
            total = inputs * (multiply + add)
        case _:
            total = row.inner_elements * hardware.activation_pj
    return total / row.images
