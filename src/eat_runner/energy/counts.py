"""What a network did, as plain integers: one row a call, and the totals of every metered batch.

Counts know no price: the price list can change for ever without measuring again. No torch here. Each of the two files
is the truth about what the other one cannot tell:

- layers.csv (LayerCounts): where. A row a call, summed over the images of a split: what made its inputs, zeros,
  products, widths. Whatever depends on a layer, or on how layers hang together, comes from here: the energy of
  accelerators that fuse layers, marginal prices, firing rates, the parts of a total.
- batches.csv (BatchCounts): when. A row a batch, summed over the calls of modules, as the published simulator adds them
  up. Whatever depends on the batch comes from here: each batch's ratio, the floor (of a batch that is in no layer's
  row), how many images a split has.

Elements, non-zeros and computations of module calls could be summed from either: the meter adds up both from the same
counts of the same pass. What is summed over module calls is taken from batches.csv, and rows only divide it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from functools import cache
from typing import Any, TypeVar, get_type_hints

FLOOR_BATCH = -1  # number of the batch in which every activation output was multiplied by 0
NETWORK_INPUT = -1  # producer of a tensor that no call made


class Kind(StrEnum):
    """What an operation is to an accelerator."""

    CONV = "conv"
    LINEAR = "linear"
    BATCH_NORM = "batch_norm"  # with stored statistics: a scale and a shift
    LAYER_NORM = "layer_norm"  # any normalisation that computes its statistics
    ADD = "add"
    MULTIPLY = "multiply"  # gating, as in squeeze-excitation
    RELU = "relu"  # free
    ACTIVATION = "activation"  # every other activation function
    MAX_POOL = "max_pool"
    AVG_POOL = "avg_pool"
    SQUARES = "squares"  # a sum of squares: norm, variance
    VIEW = "view"  # computes nothing: reshapes, concatenation, padding, identity, dropout in evaluation
    CONSTANT = "constant"  # reads nothing of an image, so it is made once: its result is a weight of who reads it
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCounts:
    """One call of a leaf module or functional operation, summed over the measured images of a split.

    call: position in the forward pass. op: class or function name. kind: what it is to an accelerator (Kind).
    producers: for each of its inputs the call that made it, or NETWORK_INPUT. consumers: calls that read its output.
    functional: not a module.
    inplace: the flag as the module was built. activation: an activation function. input_nonzeros: before the call.
    weight, bias, statistics (running mean and variance), buffer (every other parameter or buffer): of the module, once.
    kernel_area: kernel height x width of a convolution. window: elements of a pooling window.
    computations: operations as the published simulator counts them, pools and batch norm included.
    macs_nominal: multiply-accumulates as it counts them (padding included, groups ignored). macs_valid: products that
    exist (padding left out). macs_input_nonzero, macs_both_nonzero: those whose input, or both operands, are not zero.
    macs_dense: products with padding included and groups respected, as torch.utils.flop_counter has them (half of its
    operations). inner_elements: values of an activation function that are computed and never stored, as the scores of
    scaled_dot_product_attention.
    weight_bits, output_bits: width of a value of its weight, and of what it writes; 0: the hardware's.
    """

    split: str
    call: int
    name: str
    op: str
    kind: Kind = Kind.UNKNOWN
    producers: tuple[int, ...] = ()
    consumers: tuple[int, ...] = ()
    functional: bool = False
    inplace: bool = False
    activation: bool = False
    images: int = 0
    input_elements: int = 0
    input_nonzeros: int = 0
    output_elements: int = 0
    output_nonzeros: int = 0
    weight_elements: int = 0
    weight_nonzeros: int = 0
    bias_elements: int = 0
    bias_nonzeros: int = 0
    statistics_elements: int = 0
    statistics_nonzeros: int = 0
    buffer_elements: int = 0
    buffer_nonzeros: int = 0
    kernel_area: int = 0
    window: int = 0
    stride: int = 0
    groups: int = 0
    computations: int = 0
    macs_nominal: int = 0
    macs_valid: int = 0
    macs_input_nonzero: int = 0
    macs_both_nonzero: int = 0
    macs_dense: int = 0
    inner_elements: int = 0
    weight_bits: int = 0
    output_bits: int = 0

    @property
    def parameter_elements(self) -> int:
        """Elements of all parameters and buffers, each once."""
        return self.weight_elements + self.bias_elements + self.statistics_elements + self.buffer_elements

    @property
    def parameter_nonzeros(self) -> int:
        """Non-zeros of all parameters and buffers, each once."""
        return self.weight_nonzeros + self.bias_nonzeros + self.statistics_nonzeros + self.buffer_nonzeros


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchCounts:
    """Totals over every call of every leaf module in one batch, as the published simulator adds them up.

    batch: its number, or FLOOR_BATCH. Inputs that a module built in place overwrites can be read in three ways: before
    the call (input_nonzeros), after it where the module was built in place (_as_built), after it for every activation
    module (_all). parameter: parameters and buffers, once per call. statistics: running mean and variance of
    BatchNorm2d, which the simulator charges once more. computations: its operation count. unseen_macs: products of
    operations that the simulator has never seen (energy/rules/published.py).
    """

    split: str
    batch: int
    images: int
    input_elements: int = 0
    input_nonzeros: int = 0
    input_nonzeros_as_built: int = 0
    input_nonzeros_all: int = 0
    output_elements: int = 0
    output_nonzeros: int = 0
    parameter_elements: int = 0
    parameter_nonzeros: int = 0
    statistics_elements: int = 0
    statistics_nonzeros: int = 0
    computations: int = 0
    unseen_macs: int = 0

    @property
    def is_floor(self) -> bool:
        """True for the extra batch in which every activation output was multiplied by 0."""
        return self.batch == FLOOR_BATCH


@dataclass(slots=True)
class Counts:
    """All counts of a run. batch_size, threshold: how they were metered (MeterConfig).

    uncounted: operations that only move data in these counts because nothing is known about what they cost.
    ignore_uncounted: whether a price may leave out what it does not know (MeterConfig).
    """

    layers: list[LayerCounts] = field(default_factory=list[LayerCounts])
    batches: list[BatchCounts] = field(default_factory=list[BatchCounts])
    batch_size: int = 100
    threshold: float = 2.0**-126
    uncounted: tuple[str, ...] = ()
    ignore_uncounted: bool = False

    @property
    def firing_rate(self) -> float:
        """Non-zeros / elements over the outputs of all activation functions; NaN without one."""
        activations = [row for row in self.layers if row.activation]
        elements = sum(row.output_elements for row in activations)
        return sum(row.output_nonzeros for row in activations) / elements if elements else float("nan")

    @property
    def images(self) -> int:
        """Measured images, the floor batch left out."""
        return sum(batch.images for batch in self.batches if not batch.is_floor)

    def select(self, split: str) -> "Counts":
        """The rows of one split."""
        return Counts(
            [row for row in self.layers if row.split == split],
            [row for row in self.batches if row.split == split],
            self.batch_size,
            self.threshold,
            self.uncounted,
            self.ignore_uncounted,
        )


def merge(parts: Iterable[Counts]) -> Counts:
    """The counts of several splits, measured in the same way, as one."""
    counts = list(parts)
    assert len({(part.batch_size, part.threshold) for part in counts}) == 1
    return Counts(
        [row for part in counts for row in part.layers],
        [row for part in counts for row in part.batches],
        counts[0].batch_size,
        counts[0].threshold,
        tuple(dict.fromkeys(name for part in counts for name in part.uncounted)),
        any(part.ignore_uncounted for part in counts),
    )


SUMMED = frozenset(
    "images input_elements input_nonzeros output_elements output_nonzeros computations macs_nominal macs_valid "
    "macs_input_nonzero macs_both_nonzero macs_dense inner_elements".split(" ")
)  # over images; everything else in a layer's row is the same whatever they are


def joined(parts: Iterable[Counts]) -> Counts:
    """The counts of one split, of which one part of the batches after the other was measured: sums of integers.

    Raises ValueError where the parts are of different networks.
    """
    counts = list(parts)
    layers = [_summed(rows) for rows in zip(*(part.layers for part in counts), strict=True)]
    batches = [batch for part in counts for batch in part.batches if not batch.is_floor]
    floor = [batch for part in counts for batch in part.batches if batch.is_floor]
    numbered = [replace(batch, batch=number) for number, batch in enumerate(batches)]
    return replace(counts[0], layers=layers, batches=numbered + floor)


def _summed(rows: Sequence[LayerCounts]) -> LayerCounts:
    total = replace(rows[0], **{name: sum(getattr(row, name) for row in rows) for name in SUMMED})
    if any(replace(row, **{name: getattr(total, name) for name in SUMMED}) != total for row in rows):
        raise ValueError(f"{rows[0].name} is not the same network's in all parts")
    return total


def with_consumers(layers: Iterable[LayerCounts]) -> list[LayerCounts]:
    """The same calls of one split, each with the calls that read its output (a call that reads it twice, twice)."""
    rows = list(layers)
    consumers: dict[int, list[int]] = {row.call: [] for row in rows}
    for row in rows:
        for producer in row.producers:
            if producer != NETWORK_INPUT:
                consumers[producer].append(row.call)
    return [replace(row, consumers=tuple(consumers[row.call])) for row in rows]


# One row of a CSV file <-> one dataclass: integers, words, true/false, and tuples of integers with spaces between.

Row = TypeVar("Row", LayerCounts, BatchCounts)
OPTIONAL = (
    "macs_dense",
    "inner_elements",
    "weight_bits",
    "output_bits",
    "unseen_macs",
)  # columns that a file has only where they say something


_BOOLS = {"true": True, "false": False}


def _to_ints(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split()))


_READ: dict[Any, Callable[[str], Any]] = {
    str: str,
    int: int,
    Kind: Kind,
    bool: _BOOLS.__getitem__,
    tuple[int, ...]: _to_ints,
}


@cache
def _readers(cls: type[Any]) -> dict[str, Callable[[str], Any]]:
    hints = get_type_hints(cls)
    return {f.name: _READ[hints[f.name]] for f in fields(cls)}


def _to_text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return str(value)


def to_row(counts: LayerCounts | BatchCounts) -> dict[str, str]:
    """The fields as texts, in order; ``from_row`` gives back an equal object."""
    return {f.name: _to_text(getattr(counts, f.name)) for f in fields(counts)}


def to_rows(counts: Sequence[LayerCounts] | Sequence[BatchCounts]) -> list[dict[str, str]]:
    """The rows of a file: ``to_row`` of each, without the columns of OPTIONAL that none of them has a value for."""
    left_out = {name for name in OPTIONAL if not any(getattr(row, name, 0) for row in counts)}
    return [{name: text for name, text in to_row(row).items() if name not in left_out} for row in counts]


def from_row(cls: type[Row], row: Mapping[str, str]) -> Row:
    """The object that ``to_row`` wrote. Columns that are not there keep their default, unknown ones are passed over.

    Raises ValueError or KeyError where a text is not of the field's type, TypeError where a required column is missing.
    """
    return cls(**{name: read(row[name]) for name, read in _readers(cls).items() if name in row})
