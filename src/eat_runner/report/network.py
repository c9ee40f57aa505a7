"""What is said of one network that was measured: a table a layer, a line a hardware, CSV, JSON and a plot. No torch."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from eat_runner.config.hardware import HardwareConfig
from eat_runner.energy.counts import LayerCounts, to_rows
from eat_runner.energy.estimate import estimate
from eat_runner.energy.measured import Measured, without_zeros
from eat_runner.energy.rules.base import PJ_PER_UJ, EnergyParts, EnergyReport, LayerEnergy, share
from eat_runner.errors import printable
from eat_runner.records import csv_bytes, write_atomically
from eat_runner.report import plots
from eat_runner.report.view import Family, Head, Table

MACS_PER_UNIT = 1e6  # of energies where prices are relative to one MAC
FIGURES = 5  # of the total's energy; every layer has as many decimals
ONLY_DENSE = "only dense numbers mean something"
MOST_DECIMALS = 9
FUSED = "a layer without an energy runs within the one that it is folded into, or moves nothing"


@dataclass(frozen=True)
class Priced:
    """A network on one hardware. actual: with its zeros. dense: if nothing in it were zero. real: whether its zeros are
    real, so that the headline is ``actual``."""

    hardware: HardwareConfig
    actual: EnergyReport
    dense: EnergyReport
    real: bool

    @property
    def headline(self) -> EnergyReport:
        return self.actual if self.real else self.dense

    @property
    def unit(self) -> str:
        return "M MACs" if self.hardware.relative else "uJ"

    def texts(self, energies: EnergyReport, pj: float) -> str:
        """So much energy in the unit, with as many decimals as give the total FIGURES figures; nothing for 0."""
        scale = MACS_PER_UNIT if self.hardware.relative else PJ_PER_UJ
        total = sum(layer.energy_pj for layer in energies.layers) / scale
        decimals = max(0, min(FIGURES - 1 - math.floor(math.log10(total)), MOST_DECIMALS)) if total > 0 else 0
        return f"{pj / scale:,.{decimals}f}" if pj else ""


@dataclass
class NetworkReport:
    """measured, and what it costs on each hardware (at least one). depth: of the modules that the table goes down to;
    None: all. paths, missing: files that were written, and those that could not be."""

    measured: Measured
    priced: Sequence[Priced]
    depth: int | None = None
    paths: list[Path] = field(default_factory=list[Path])
    missing: list[str] = field(default_factory=list[str])

    @property
    def families(self) -> list[Family]:
        label = self.measured.random
        remarks = [f"{label}: {ONLY_DENSE}"] if label else []
        return [Family(layer_table(self), remarks, [FUSED]), Family(hardware_table(self), [], [])]

    @property
    def facts(self) -> list[str]:
        """Each hardware in a line, and what was not counted."""
        lines = [_hardware_line(priced) for priced in self.priced]
        uncounted = self.measured.counts.uncounted
        without = [f"without the cost of {', '.join(uncounted)}, which no rule counts"] if uncounted else []
        return [printable(line, longest=None) for line in (*lines, *without, *self.measured.messages)]


def price(measured: Measured, hardware: Sequence[HardwareConfig]) -> list[Priced]:
    """UserError where one of them has no price for these counts."""
    dense, real = without_zeros(measured.counts), not measured.random
    return [Priced(each, estimate(measured.counts, each), estimate(dense, each), real) for each in hardware]


def _hardware_line(priced: Priced) -> str:
    hardware, note = priced.hardware, priced.actual.note
    batch = "" if hardware.batch_size is None else f", counted in batches of {hardware.batch_size}"
    relative = "energies are relative: in millions of multiply-accumulates" if hardware.relative else ""
    said = "; ".join(filter(None, [relative, note]))
    return f"hardware {hardware.name} ({hardware.process_nm} nm{batch}){said and ': '}{said}"


# --- layer by layer ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Node:
    """A line of the table: a call, or all calls of a module with children in a row. new: those of ``calls`` that are
    the first of their module, so that parameters are added up once. output: what it returns, for one image."""

    label: str
    depth: int
    op: str
    calls: Sequence[LayerCounts]
    new: Sequence[LayerCounts]
    output: tuple[int, ...]
    is_call: bool

    @property
    def parameters(self) -> int:
        return sum(row.weight_elements + row.bias_elements for row in self.new)


def tree(measured: Measured) -> list[Node]:
    """The calls in their order, each below the modules that it lies in; the network itself, by its
    class, comes first. A module that it comes back to later stands there again, with its later calls."""
    rows = measured.counts.layers
    first = {row.name: row.call for row in reversed(rows)}
    new = {row.call for row in rows if row.functional or first[row.name] == row.call}

    def node(label: str, depth: int, op: str, calls: Sequence[LayerCounts], is_call: bool) -> Node:
        output = measured.shapes.get(calls[-1].call, ()) if calls else ()
        return Node(label, depth, op, calls, [row for row in calls if row.call in new], output, is_call)

    def below(path: tuple[str, ...], calls: Sequence[LayerCounts]) -> Iterator[Node]:
        depth = len(path)
        op = measured.modules.get(".".join(path), "") if path else ""
        yield node(path[-1] if path else measured.op, depth, op, calls, is_call=False)
        for inner, group in groupby(calls, key=lambda row: _module_around(row)[: depth + 1]):
            if len(inner) > depth:
                yield from below(inner, list(group))
            else:
                yield from (node(_label(row), depth + 1, row.op, [row], is_call=True) for row in group)

    return list(below((), rows))


def _module_around(row: LayerCounts) -> tuple[str, ...]:
    """The names, from the root on, of the module that makes the call."""
    around = row.name.rpartition(":")[0] if row.functional else row.name.rpartition(".")[0]
    return tuple(around.split(".")) if around else ()


def _label(row: LayerCounts) -> str:
    return f":{row.op}" if row.functional else row.name.rpartition(".")[2]


Cell = Callable[[Node], str]


def layer_table(report: NetworkReport) -> Table:
    """A row a module or call, down to ``report.depth``. Where zeros are random, columns that depend on them are left
    out."""
    measured = report.measured
    images = measured.counts.images
    columns: list[tuple[Head, Cell]] = [
        (Head("layer", right=False), lambda node: "  " * node.depth + node.label),
        (Head("op", right=False, rank=6), lambda node: node.op),
        (Head("output", right=False, rank=5), lambda node: "x".join(map(str, node.output))),
        (Head("parameters", rank=3), lambda node: _parameters(node, measured)),
    ]
    if measured.weights:
        columns.append((Head("weights ≠ 0 %", rank=4), _weights_nonzero))
    if not measured.random:
        columns.append((Head("outputs ≠ 0 %", rank=2), _outputs_nonzero))
    columns.append((Head("products", rank=1), lambda node: _total(node, "macs_valid", images)))
    if not measured.random:
        columns.append((Head("products ≠ 0", rank=1), lambda node: _total(node, "macs_both_nonzero", images)))
    for place, priced in enumerate(report.priced):
        columns += _energy_columns(priced, place, several=len(report.priced) > 1)
    nodes = [node for node in tree(measured) if report.depth is None or node.depth <= report.depth]
    size = "x".join(map(str, (measured.channels, measured.image_size, measured.image_size)))
    source = measured.images or f"{images} of random input"
    return Table(
        heads=[head for head, _ in columns],
        rows=[[printable(cell(node), longest=None) for _, cell in columns] for node in nodes],
        title=printable(
            f"{measured.network} · weights: {measured.weights or 'random'} · images of {size}: {source}", longest=None
        ),
        bold=frozenset({0}),
        file="--csv, --json",
    )


def _parameters(node: Node, measured: Measured) -> str:
    number = measured.parameters if not node.depth else node.parameters
    return f"{number:,}" if number else ""


def _weights_nonzero(node: Node) -> str:
    elements = sum(row.weight_elements for row in node.new)
    return f"{100 * sum(row.weight_nonzeros for row in node.new) / elements:.1f}" if elements else ""


def _outputs_nonzero(node: Node) -> str:
    row = node.calls[-1] if node.calls else None
    return f"{100 * share(row.output_nonzeros, row.output_elements):.1f}" if row and node.is_call else ""


def _total(node: Node, count: str, images: int) -> str:
    total = sum(getattr(row, count) for row in node.calls)
    return f"{total / images:,.0f}" if total else ""


def _energy_columns(priced: Priced, place: int, several: bool) -> list[tuple[Head, Cell]]:
    """What the layers cost, and their share; beside it, where zeros are real, what they would cost without."""

    def of(energies: EnergyReport) -> Callable[[Node], float]:
        by_call = {layer.calls[0]: layer.energy_pj for layer in energies.layers if layer.calls}
        return lambda node: sum(by_call.get(row.call, 0.0) for row in node.calls)

    headline, dense, total = of(priced.headline), of(priced.dense), _whole(priced.headline)
    where = printable(f"{priced.hardware.name}, ") if several else ""
    what = "" if priced.real else "dense "
    columns: list[tuple[Head, Cell]] = [
        (
            Head(f"{where}{what}{priced.unit}", rank=2 * place),
            lambda node: priced.texts(priced.headline, headline(node)),
        ),
        (
            Head(f"{where}share %", rank=2 * place + bool(place)),
            lambda node: f"{100 * share(headline(node), total):.1f}" if headline(node) else "",
        ),
    ]
    if priced.real:
        name = f"{where}dense {priced.unit}"
        columns.append((Head(name, rank=3 + place), lambda node: priced.texts(priced.dense, dense(node))))
    return columns


def _whole(energies: EnergyReport) -> float:
    return sum(layer.energy_pj for layer in energies.layers)


# --- hardware by hardware ------------------------------------------------------------------------------------------


def hardware_table(report: NetworkReport) -> Table:
    """A row a hardware: energy of an image and where it goes, bytes of the weights, and the most bytes of activations
    that are needed at once, both as they are stored."""
    real = not report.measured.random
    columns: list[tuple[Head, Callable[[Priced], str]]] = [(Head("hardware", right=False), lambda p: p.hardware.name)]
    if real:
        columns.append((Head("energy/image"), lambda p: f"{p.texts(p.actual, _whole(p.actual))} {p.unit}"))
    columns.append(
        (Head("dense", rank=3 if real else 0), lambda p: f"{p.texts(p.dense, _whole(p.dense))} {p.unit}"),
    )
    if real:
        columns.append((Head("ratio", rank=2), lambda p: f"{p.actual.ratio:.3f}"))
    columns += [(Head(f"{part} %", rank=4), _part_share(part)) for part in plots.PARTS]
    columns += [
        (Head("weight bytes", rank=1), lambda p: _bytes(p.actual.stored_weight_bytes)),
        (Head("peak activation bytes", rank=1), lambda p: _bytes(p.headline.peak_activation_bytes)),
    ]
    return Table(
        heads=[head for head, _ in columns],
        rows=[[printable(cell(priced)) for _, cell in columns] for priced in report.priced],
        file="--json",
    )


def _part_share(part: str) -> Callable[[Priced], str]:
    def text(priced: Priced) -> str:
        layers = priced.headline.layers
        return f"{100 * share(sum(_parts(layer.parts)[part] for layer in layers), _whole(priced.headline)):.1f}"

    return text


def _parts(parts: EnergyParts) -> dict[str, float]:
    return {part: getattr(parts, f"{part}_pj") for part in plots.PARTS}


def _bytes(number: float | None) -> str:
    return "-" if number is None else f"{math.ceil(number):,}"


# --- files ---------------------------------------------------------------------------------------------------------


def write(report: NetworkReport, csv: Path | None, json: Path | None, plot: Path | None) -> list[OSError]:
    """Write those files that are named, each whole, and note them in the report. One that cannot be written keeps no
    other from being written; the errors."""
    errors: list[OSError] = []
    for path, make in ((csv, _csv), (json, _json), (plot, None)):
        if path is None:
            continue
        try:
            if make is None:
                plots.write(figure(report), path)
            else:
                write_atomically(path, make(report))
            report.paths.append(path)
        except OSError as error:
            errors.append(error)
            report.missing.append(printable(f"{path} could not be written: {error.strerror or error}", longest=None))
    return errors


def figure(report: NetworkReport) -> Any:
    """Where the energy goes, a panel a hardware. Layers that cost nothing are left out."""
    label = report.measured.random
    panels = [
        plots.PartsPanel(
            printable(f"{priced.hardware.name} ({priced.hardware.process_nm} nm)"),
            [(layer.name or layer.op, _parts(layer.parts)) for layer in priced.headline.layers if layer.energy_pj],
            priced.hardware.relative,
        )
        for priced in report.priced
    ]
    dense = f"{label}: dense energy" if label else "with zero-skipping"
    return plots.parts_figure(panels, printable(f"{report.measured.network} · {dense}"))


def _csv(report: NetworkReport) -> bytes:
    """A row a call: its counts, summed over the images, and on each hardware the energy of an image and its parts,
    under the first call of those that run as one."""
    measured = report.measured
    energies = [_by_first_call(priced) for priced in report.priced]
    rows: list[dict[str, Any]] = []
    for row, texts in zip(measured.counts.layers, to_rows(measured.counts.layers), strict=True):
        shape = "x".join(map(str, measured.shapes.get(row.call, ())))
        found: dict[str, Any] = {"output_shape": shape, "random": measured.random}
        for by_call in energies:
            found |= by_call.get(row.call, dict.fromkeys(next(iter(by_call.values()), {}), None))
        rows.append(texts | found)
    return csv_bytes(rows)


def _by_first_call(priced: Priced) -> dict[int, dict[str, float]]:
    name = priced.hardware.name
    return {
        layer.calls[0]: {f"{name}_{key}": value for key, value in _energies(layer, priced).items()}
        for layer in priced.actual.layers
        if layer.calls
    }


def _energies(layer: LayerEnergy, priced: Priced) -> dict[str, float]:
    """In pJ or MACs, as the keys say."""
    unit = "macs" if priced.hardware.relative else "pj"
    parts = {
        f"{dense}{part}_{unit}": value
        for dense, of in (("", layer.parts), ("dense_", layer.dense_parts))
        for part, value in _parts(of).items()
    }
    return {f"energy_{unit}": layer.energy_pj, f"dense_{unit}": layer.dense_pj, **parts}


def _json(report: NetworkReport) -> bytes:
    """All of it: counts as integers, summed over the images; energies of one image."""
    measured = report.measured
    counts = measured.counts
    values: dict[str, Any] = {
        "network": measured.network,
        "class": measured.op,
        "parameters": measured.parameters,
        "channels": measured.channels,
        "image_size": measured.image_size,
        "classes": measured.classes,
        "weights": measured.weights or "random",
        "input": measured.images or "random",
        "zeros_are_real": not measured.random,
        "images": counts.images,
        "batch_size": counts.batch_size,
        "threshold": counts.threshold,
        "uncounted": counts.uncounted,
        "totals": {
            key: sum(getattr(row, key) for row in counts.layers)
            for key in ("macs_nominal", "macs_valid", "macs_input_nonzero", "macs_both_nonzero")
        },
        "layers": [asdict(row) | {"output_shape": measured.shapes.get(row.call)} for row in counts.layers],
        "hardware": [_hardware_values(priced) for priced in report.priced],
    }
    return json.dumps(values, indent=1, allow_nan=False).encode() + b"\n"


def _hardware_values(priced: Priced) -> Mapping[str, Any]:
    actual = priced.actual
    return {
        "name": priced.hardware.name,
        "process_nm": priced.hardware.process_nm,
        "relative": priced.hardware.relative,
        "note": actual.note,
        "energy_uj_per_image": actual.energy_uj_per_image,
        "dense_uj_per_image": actual.dense_uj_per_image,
        "ratio": actual.ratio,
        "stored_weight_bytes": actual.stored_weight_bytes,
        "peak_activation_bytes": actual.peak_activation_bytes,
        "dense_peak_activation_bytes": priced.dense.peak_activation_bytes,
        "layers": [
            {"name": layer.name, "op": layer.op, "calls": layer.calls, **_energies(layer, priced)}
            for layer in actual.layers
        ],
    }
