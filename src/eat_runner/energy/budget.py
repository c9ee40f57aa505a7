"""A budget: how much energy an image may cost. No torch."""

import math
from collections.abc import Mapping, Set
from dataclasses import dataclass, replace

from eat_runner.config.hardware import HardwareConfig
from eat_runner.energy.counts import NETWORK_INPUT, Counts, Kind, LayerCounts
from eat_runner.energy.rules import RULES
from eat_runner.energy.rules.base import PJ_PER_UJ, share


def energy_pj(counts: Counts, hardware: HardwareConfig) -> float:
    """Of an image, with zero-skipping; in units of one multiply-accumulate where prices are relative."""
    return sum(layer.energy_pj for layer in RULES[hardware.rule].price(counts, hardware).layers)


def dense_pj(counts: Counts, hardware: HardwareConfig) -> float:
    """The same without zero-skipping."""
    return sum(layer.dense_pj for layer in RULES[hardware.rule].price(counts, hardware).layers)


@dataclass(frozen=True, slots=True)
class Budget:
    """limit_pj: what an image may cost on ``hardware``. dense_pj: what it costs without zero-skipping in the network
    as it was built, before any method; this never changes. Both in units of one multiply-accumulate where prices are
    relative. compacts: whether channels that are all zero leave the network before it is measured."""

    hardware: HardwareConfig
    limit_pj: float
    dense_pj: float
    compacts: bool = False

    @classmethod
    def of(
        cls, hardware: HardwareConfig, share: float | None, uj: float | None, as_built: Counts, compacts: bool = False
    ) -> "Budget | None":
        """From a share of the dense energy or from uJ; None without either. as_built: counts of the network before any
        method."""
        if share is None and uj is None:
            return None
        dense = dense_pj(as_built, hardware)
        return cls(hardware, uj * PJ_PER_UJ if uj is not None else (share or 0.0) * dense, dense, compacts)

    @property
    def share(self) -> float:
        """The limit, as a share of the dense energy."""
        return self.limit_pj / self.dense_pj

    def share_of(self, counts: Counts) -> float:
        """What the counts cost, as a share of the dense energy."""
        return energy_pj(counts, self.hardware) / self.dense_pj


def with_weights(counts: Counts, nonzeros: Mapping[str, int]) -> Counts:
    """What the counts would be if the weights of these layers, by name, had so many non-zeros each. Their products
    shrink in proportion; the activations stay as they are."""
    layers = [_with_weight(row, nonzeros[row.name]) if row.name in nonzeros else row for row in counts.layers]
    fewer = sum(
        before.weight_nonzeros - after.weight_nonzeros
        for before, after in zip(counts.layers, layers, strict=True)
        if not before.functional
    )
    batches = [replace(batch, parameter_nonzeros=batch.parameter_nonzeros - fewer) for batch in counts.batches]
    return replace(counts, layers=layers, batches=batches)


def _with_weight(row: LayerCounts, nonzeros: int) -> LayerCounts:
    products = row.macs_both_nonzero * nonzeros // row.weight_nonzeros if row.weight_nonzeros else 0
    return replace(row, weight_nonzeros=nonzeros, macs_both_nonzero=products)


def with_activations(counts: Counts, parts: Mapping[int, float]) -> Counts:
    """What the counts would be if of the non-zeros in the outputs of these calls these parts were left. What the
    readers multiply shrinks with the weights that read them (``with_weights``)."""
    gone = {
        row.call: round(row.output_nonzeros * (1.0 - parts[row.call])) for row in counts.layers if row.call in parts
    }
    layers: list[LayerCounts] = []
    for row in counts.layers:
        less = min(sum(gone.get(producer, 0) for producer in row.producers), row.input_nonzeros)
        left = row.input_nonzeros - less
        macs = row.macs_input_nonzero * left // row.input_nonzeros if row.input_nonzeros else 0
        output = row.output_nonzeros - gone.get(row.call, 0)
        layers.append(replace(row, input_nonzeros=left, macs_input_nonzero=macs, output_nonzeros=output))
    before, after = ([row for row in rows if not row.functional] for rows in (counts.layers, layers))
    inputs, outputs = (
        share(sum(getattr(row, key) for row in after), sum(getattr(row, key) for row in before))
        for key in ("input_nonzeros", "output_nonzeros")
    )
    batches = [
        replace(
            batch,
            input_nonzeros=round(batch.input_nonzeros * inputs),
            input_nonzeros_as_built=round(batch.input_nonzeros_as_built * inputs),
            input_nonzeros_all=round(batch.input_nonzeros_all * inputs),
            output_nonzeros=round(batch.output_nonzeros * outputs),
        )
        for batch in counts.batches
    ]
    return replace(counts, layers=layers, batches=batches)


def without_channels(counts: Counts, parts: Mapping[int, float]) -> Counts:
    """What the counts would be without the channels that are all zero in the outputs of these calls, if these parts of
    the channels are left: the same non-zeros, and fewer elements. Of rows alone: per batch, non-zeros decide."""
    if not parts:
        return counts
    layers: list[LayerCounts] = []
    for row in counts.layers:
        left = parts.get(row.call, 1.0)
        read = math.prod(parts.get(producer, 1.0) for producer in row.producers)
        both = left * read if row.kind in {Kind.CONV, Kind.LINEAR} else left
        changed = {
            "input_elements": row.input_elements * read,
            "output_elements": row.output_elements * left,
            "weight_elements": row.weight_elements * both,
            "bias_elements": row.bias_elements * left,
            "statistics_elements": row.statistics_elements * left,
            "statistics_nonzeros": row.statistics_nonzeros * left,
            "macs_valid": row.macs_valid * both,
            "macs_input_nonzero": row.macs_input_nonzero * left,
        }
        layers.append(replace(row, **{key: round(value) for key, value in changed.items()}))
    return replace(counts, layers=layers)


def least(counts: Counts, removable: Set[str]) -> Counts:
    """What the counts would be if every activation were zero, and every weight of these layers, by name: no training
    with pruning can come lower."""
    fewer = with_weights(counts, dict.fromkeys(removable, 0))
    silent = {"input_nonzeros": 0, "input_nonzeros_as_built": 0, "input_nonzeros_all": 0, "output_nonzeros": 0}
    return replace(
        fewer,
        layers=[_without_activations(row) for row in fewer.layers],
        # a batch does not say which of its inputs are the network's: a bound all the same
        batches=[replace(batch, **silent) for batch in fewer.batches],
    )


def _without_activations(row: LayerCounts) -> LayerCounts:
    if NETWORK_INPUT in row.producers:
        return replace(row, output_nonzeros=0)
    return replace(row, output_nonzeros=0, input_nonzeros=0, macs_input_nonzero=0, macs_both_nonzero=0)
