"""What the page shows, as plain values: settings, their runs, what these cost on each hardware, layers and epochs."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from eat_runner.analysis.details import Details, Price, read_details
from eat_runner.analysis.families import parameters
from eat_runner.analysis.makers import command_of, in_words, makers_of
from eat_runner.analysis.methods import STANDARD
from eat_runner.config.hardware import HardwareConfig
from eat_runner.errors import UserError, printable
from eat_runner.progress import ProgressBar
from eat_runner.records import RunFolder
from eat_runner.report.plots import EAT_COLOUR, INK, ST_COLOUR, line_styles
from eat_runner.report.view import EQUAL_RULE, Report

MOST_RUNS = 1000
MOST_DETAILS_BYTES = 3_000_000  # of layers and epochs, as JSON
DIGITS = 5
CURVES = ("validation_accuracy", "train_accuracy", "cross_entropy", "firing_rate", "energy_ratio")


def page_data(
    report: Report, name: str, hardware: Sequence[HardwareConfig], output: Path, most_read: int
) -> dict[str, Any]:
    """The page's values; those that JSON has not are None. At most MOST_RUNS runs: the settings on a front, standard
    training and what is selected first.

    name: of the whole. hardware: beside the report's own, what a reader may switch to. most_read: how many runs'
    folders are read for that and for layers and epochs; where there are more runs, there is no other hardware. Layers
    and epochs end where they would be more than MOST_DETAILS_BYTES.
    """
    settings = _settings(report)
    runs = pd.concat([front.runs for front in report.fronts])
    runs = runs.assign(setting=runs["setting_id"].map({key: i for i, key in enumerate(settings["setting_id"])}))
    runs = runs[runs["setting"].notna()].sort_values(["setting", "seed"])
    kept = max(int((runs.groupby("setting").size().cumsum() <= MOST_RUNS).sum()), 1)
    total, settings, runs = len(runs), settings.head(kept), runs[runs["setting"] < kept]
    shown = [report.hardware, *(hardware if len(runs) <= most_read else ())]
    found = _read(runs["folder"].head(most_read), shown)
    told = parameters(runs.drop_duplicates("setting_id"))
    styles = _styles(report)
    details, layers = _details(found, runs["folder"], len(shown))
    return {
        "name": printable(name),
        "facts": [line for line in report.facts if line != EQUAL_RULE],
        "missing": [*report.missing, *_left_out(total, len(runs), len(found), len(details))],
        "makers": [in_words(maker) for maker in makers_of(each.record for each in found.values() if each)],
        "hardware": [
            {"name": each.name, "nm": each.process_nm, "unit": "M MACs" if each.relative else "µJ"} for each in shown
        ],
        "x": report.axes.x.option,
        "y": report.axes.y.option,
        "families": [
            {"name": front.family, "facts": told_of.facts, "remarks": list(told_of.remarks)}
            for front, told_of in zip(report.fronts, report.families, strict=True)
        ],
        "lines": [{"name": name, "colour": style[0], "shape": style[1]} for name, style in styles.items()],
        "ink": INK,
        "parameters": [*told.columns],
        "settings": [
            {
                "family": row["family_number"],
                "line": list(styles).index(row["line"]),
                "name": row["full_name"],
                "baseline": row["is_baseline"],
                "reference": row["is_reference"],
                "selected": row["selected"],
                "values": values,
            }
            for row, values in zip(settings.to_dict("records"), told.to_numpy().tolist(), strict=True)
        ],
        "runs": {
            "id": runs["run_id"].tolist(),
            "folder": [os.path.relpath(folder, output) for folder in runs["folder"]],
            "setting": runs["setting"].tolist(),
            **{key: runs[key].tolist() for key in ("seed", "accuracy", "firing_rate", "parameters", "seconds")},
            "validation": runs["accuracy_validation"].tolist(),
        },
        "prices": [_own_prices(runs), *(_prices(found, runs["folder"], i) for i in range(1, len(shown)))],
        "details": details,
        "layers": layers,
    }


def _settings(report: Report) -> pd.DataFrame:
    """All fronts' settings, those first that a page must have."""
    tables = [
        front.settings.assign(
            family_number=number,
            is_reference=front.settings.index == front.reference,
        )
        for number, front in enumerate(report.fronts)
    ]
    every = pd.concat(tables).reset_index()
    needed = every["on_front"] | every["is_baseline"] | every["selected"]
    return every.assign(needed=needed).sort_values("needed", ascending=False, kind="stable", ignore_index=True)


def _styles(report: Report) -> dict[str, tuple[str, int]]:
    """The colour of each line, and the number of its shape."""
    styles = line_styles(report.fronts)
    if styles:
        shapes = {marker: number for number, marker in enumerate(dict.fromkeys(s.marker for s in styles.values()))}
        return {line: (style.colour, shapes[style.marker]) for line, style in styles.items()}
    lines = dict.fromkeys(line for front in report.fronts for line in front.settings["line"])
    return {line: (ST_COLOUR, 0) if line == STANDARD else (EAT_COLOUR, 2) for line in lines}


def _read(folders: Iterable[str], hardware: Sequence[HardwareConfig]) -> dict[str, Details | None]:
    """By folder; None where one has changed since the table was made."""
    found: dict[str, Details | None] = {}
    paths = list(folders)
    with ProgressBar("report.html", len(paths)) as bar:
        for number, path in enumerate(paths, start=1):
            try:
                found[path] = read_details(RunFolder(path), hardware)
            except UserError:
                found[path] = None
            bar.update(number)
    return found


def _left_out(total: int, runs: int, read: int, detailed: int) -> list[str]:
    lines = [f"{total - runs} of {total} runs are not on this page: those on no front"] if runs < total else []
    if read < runs:
        lines.append("other hardware is on the page that eat-report FOLDER --html writes")
    if detailed < runs:
        lines.append(f"layers and curves of {detailed} of {runs} runs are on this page, those on a front first")
    return lines


def _own_prices(runs: pd.DataFrame) -> dict[str, list[float | None]]:
    return {
        "energy": runs["energy"].tolist(),
        "dense": runs["dense"].tolist(),
        "ratio": runs["energy_ratio"].tolist(),
        "validation": runs["energy_validation"].tolist(),
    }


def _prices(found: Mapping[str, Details | None], folders: Iterable[str], number: int) -> dict[str, list[float | None]]:
    every = [None if (each := found[folder]) is None else each.prices[number] for folder in folders]
    return {
        "energy": [None if price is None else price.energy for price in every],
        "dense": [None if price is None else price.dense for price in every],
        "ratio": [None if price is None else price.ratio for price in every],
        "validation": [None if price is None else price.energy_validation for price in every],
    }


@dataclass
class _Names:
    """Lists of layers that many runs share, each once."""

    numbers: dict[tuple[str, ...], int] = field(default_factory=dict[tuple[str, ...], int])

    def number(self, names: Iterable[str]) -> int:
        return self.numbers.setdefault(tuple(names), len(self.numbers))


def _details(
    found: Mapping[str, Details | None], folders: Iterable[str], hardware: int
) -> tuple[dict[str, Any], list[list[str]]]:
    """By the run's number what is known of it alone, and the names of layers, to which ``names`` points."""
    details: dict[str, Any] = {}
    names, size = _Names(), 0
    for number, folder in enumerate(folders):
        each = found.get(folder)
        if each is None:
            continue
        told = rounded(_detail(each, names, hardware))
        size += len(json.dumps(told, separators=(",", ":")))
        if size > MOST_DETAILS_BYTES:
            break
        details[str(number)] = told
    return details, [list(each) for each in names.numbers]


def _detail(each: Details, names: _Names, hardware: int) -> dict[str, Any]:
    record = each.record
    known = [key for key in CURVES if any(row.get(key) is not None for row in each.history)]
    return {
        "command": command_of(record),
        "commit": printable(record.git_commit or ""),
        "made": in_words(makers_of([record])[0]),
        "parent": printable((record.parent or {}).get("run_id", "")),
        "epochs": {key: [row.get(key) for row in each.history] for key in known},
        "prices": [None if price is None else _layers(price, names) for price in each.prices[:hardware]],
    }


def _layers(price: Price, names: _Names) -> dict[str, Any]:
    """Energies in millionths of the hardware's unit: weights, activations, products, others of each layer."""
    return {
        "names": names.number(printable(layer.name) for layer in price.layers),
        "parts": [list(astuple(layer.parts)) for layer in price.layers],
        "firing": [layer.firing_rate for layer in price.layers],
        "dram": price.dram_pj,
    }


def rounded(value: Any) -> Any:
    """``value`` with numbers of DIGITS digits; what is no number, or none that JSON has, is None."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if value - value == 0 else None
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value
