"""Folders of runs -> tables, figures, and what a person is told about them. No torch."""

import io
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.table import Table
from rich.text import Text

from eat_runner import plots
from eat_runner.claims import REPORT_LOCK, report_lock
from eat_runner.config.hardware import HardwareConfig
from eat_runner.energy.hardware import load_hardware
from eat_runner.errors import UserError
from eat_runner.pareto import DESCRIPTION, SELECTION_RULES, Front, Setting, fronts
from eat_runner.records import RunFolder, Scalar, csv_bytes, write_atomically
from eat_runner.sweep import Run, cell, collate_runs, hardware_of, layer_means, printable

SUMMARY, PARETO, LAYERS = "summary.csv", "pareto.csv", "layer_comparison.csv"
PARETO_PLOT, FIRING_PLOT, ENERGY_PLOT = "pareto", "layers_firing", "layers_energy"
MAX_ROWS = 40  # settings of a family that are printed; pareto.csv has all
MAX_REASONS = 20  # runs without a result that are named; summary.csv has all
WIDTH = 132  # columns of the text where there is no terminal


@dataclass
class Report:
    """What a report says. ``print(report)`` gives plain text, a rich console gives colours.

    runs: every run found. fronts: a front a family. paths: the files that were written. missing: which runs have no
    result, and why, and which layers could not be compared, a line each.
    """

    hardware: HardwareConfig
    selection: str
    runs: list[Run]
    fronts: list[Front]
    paths: list[Path]
    missing: list[str]

    def __str__(self) -> str:
        text = io.StringIO()
        Console(file=text, width=WIDTH, color_system=None, highlight=False).print(self)
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines())

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Group(*(part for front in self.fronts for part in self._family(front)))
        for line in [hardware_line(self.hardware), f"selection={self.selection}: {SELECTION_RULES[self.selection]}"]:
            yield Text(line)
        for line in self.missing:
            yield Text(line, style="yellow")
        for path in self.paths:
            yield Text(f"  {printable(str(path), longest=None)}", style="cyan", no_wrap=True, overflow="ignore")

    def _family(self, front: Front) -> list[Table | Text]:
        remarks = [Text(remark, style="yellow") for remark in front.remarks]
        volume = Text(f"hypervolume {front.hypervolume:.4f} (against accuracy 0 at energy ratio 1)")
        return [_table(front), *remarks, volume, Text()]


def write_report(
    folders: Path | Sequence[Path],
    hardware: HardwareConfig,
    selection: str = "validation",
    output: Path | None = None,
) -> Report:
    """Collate the runs in ``folders``, price them with ``hardware``, and write tables and figures into ``output``
    (the first folder if None). Several processes may do so at once: the last one to write has seen every run.

    Raises UserError as ``sweep.collate_runs`` does, OSError where ``output`` cannot be written.
    """
    roots = [folders] if isinstance(folders, Path) else list(folders)
    output = output or roots[0]
    if output in roots and not output.is_dir():
        raise UserError(f"{output}: no such folder")
    output.mkdir(parents=True, exist_ok=True)
    with _lock(output):
        runs = collate_runs(roots, hardware)
        found = fronts(runs, selection)
        absent = missing(runs)
        panels, left_out = _layer_panels(found, hardware)
        paths = [
            *_write_tables(runs, found, output),
            *_write_front(found, hardware, selection, absent[:1], output),
            *_write_layers(panels, hardware, output),
        ]
    return Report(hardware, selection, runs, found, paths, [*absent, *left_out])


def show(report: Report) -> None:
    """Print it: with colours to a terminal, as plain text to a file or pipe."""
    if sys.stdout.isatty():
        Console(highlight=False).print(report)
    else:
        print(report)


def choose_hardware(folders: Sequence[Path], name: str | None) -> HardwareConfig:
    """The price list of that name or file; without a name, the one that the runs were configured with."""
    return hardware_of(folders) if name is None else load_hardware(name)


def selected_folders(folders: Sequence[Path], hardware: HardwareConfig, selection: str = "validation") -> list[str]:
    """The folder of the selected run (of the selected setting, the lowest seed), one for each family.

    UserError where nothing can be selected.
    """
    found = fronts(collate_runs(folders, hardware), selection)
    selected = [front.selected.runs[0].folder for front in found if front.selected is not None]
    if not selected:
        why = "; ".join(dict.fromkeys(front.remarks[0] for front in found)) or "no run is finished"
        raise UserError(f"no run can be selected: {why}")
    return selected


def missing(runs: Sequence[Run]) -> list[str]:
    """What the front does not show: how many runs of each status, then a line for each of the first MAX_REASONS."""
    absent = [run for run in runs if not run.priced]
    if not absent:
        return []
    statuses = Counter("finished, not priced" if run.status == "finished" else run.status for run in absent)
    counts = ", ".join(f"{number} {status}" for status, number in sorted(statuses.items()))
    lines = [f"{len(absent)} of {len(runs)} runs are not in the front: {counts}"]
    lines += [f"  {run.run_id}: {run.status}{f' ({run.reason})' if run.reason else ''}" for run in absent[:MAX_REASONS]]
    if len(absent) > MAX_REASONS:
        lines.append(f"  … and {len(absent) - MAX_REASONS} more: see {SUMMARY}")
    return lines


def hardware_line(hardware: HardwareConfig) -> str:
    """The hardware in a line: name, process, metered batch, what its numbers are."""
    batch = "" if hardware.batch is None else f", metered in batches of {hardware.batch}"
    note = f": {hardware.note}" if hardware.note else ""
    return printable(f"hardware {hardware.name} ({hardware.process_nm} nm{batch}){note}")


def _lock(output: Path) -> AbstractContextManager[Any]:
    folder = RunFolder(output)
    if any(path.exists() for path in (folder.lock, folder.config, folder.record)):
        # temporary files there are the run's, which may be writing; report_lock would take them for a dead report's
        return FileLock(output / REPORT_LOCK)
    return report_lock(output)


def _write_tables(runs: Sequence[Run], found: Sequence[Front], output: Path) -> list[Path]:
    # folders relative to the table, so that a results folder can be moved
    rows = [run.to_row() | {"folder": os.path.relpath(run.folder, output)} for run in runs]
    settings = [row for front in found for row in front.rows()]
    write_atomically(output / SUMMARY, _csv(rows))
    write_atomically(output / PARETO, _csv(settings, DESCRIPTION))
    return [output / SUMMARY, output / PARETO]


def _csv(rows: Sequence[Mapping[str, Scalar]], columns: Sequence[str] = ()) -> bytes:
    return csv_bytes([{key: cell(value) for key, value in row.items()} for row in rows], columns)


def _write_front(
    found: Sequence[Front], hardware: HardwareConfig, selection: str, absent: Sequence[str], output: Path
) -> list[Path]:
    if not found:
        return _remove(output, PARETO_PLOT)
    least, most = min(front.seeds[0] for front in found), max(front.seeds[1] for front in found)
    seeds = "one seed" if most == 1 else f"mean ± s.d. over {f'{least} to ' if least < most else ''}{most} seeds"
    where = f"{hardware.name} ({hardware.process_nm} nm{f', batch {hardware.batch}' if hardware.batch else ''})"
    rule = {"validation": "selected on the validation split", "paper": "selected on the test split (the paper's rule)"}
    lines = [printable(f"hardware {where} · {seeds} · {rule[selection]}"), *absent]
    return plots.save(plots.front_figure(found, "\n".join(lines)), output / PARETO_PLOT)


def _layer_panels(found: Sequence[Front], hardware: HardwareConfig) -> tuple[list[plots.LayerPanel], list[str]]:
    """Standard training beside the selected setting, for each family in which these are two; and a line for each of
    those whose layers cannot be had."""
    panels: list[plots.LayerPanel] = []
    left_out: list[str] = []
    for front in found:
        if front.baseline is None or front.selected is None or front.selected is front.baseline:
            continue
        try:
            panels.append(_layer_panel(front, front.baseline, front.selected, hardware))
        except UserError as error:
            left_out.append(printable(f"{front.family}: no comparison of layers: {error}", longest=None))
    return panels, left_out


def _layer_panel(front: Front, baseline: Setting, selected: Setting, hardware: HardwareConfig) -> plots.LayerPanel:
    st, eat = layer_means(baseline.runs, hardware), layer_means(selected.runs, hardware)
    if [layer.name for layer in st] != [layer.name for layer in eat]:
        raise UserError(f"{selected.runs[0].folder} has other layers than {baseline.runs[0].folder}")
    return plots.LayerPanel(
        family=front.family,
        st=st,
        eat=eat,
        st_label=_label(baseline, "ST"),
        eat_label=_label(selected, f"EAT, {plots.setting_names(front.settings)[selected.setting_id]}"),
    )


def _write_layers(panels: Sequence[plots.LayerPanel], hardware: HardwareConfig, output: Path) -> list[Path]:
    if not panels:
        return _remove(output, FIRING_PLOT, ENERGY_PLOT, LAYERS)
    write_atomically(output / LAYERS, _csv([row for panel in panels for row in _layer_rows(panel)]))
    caption = printable(f"hardware {hardware.name} ({hardware.process_nm} nm) · test split")
    return [
        output / LAYERS,
        *plots.save(plots.firing_figure(panels, "test split"), output / FIRING_PLOT),
        *plots.save(plots.energy_figure(panels, caption, hardware.relative), output / ENERGY_PLOT),
    ]


def _label(setting: Setting, name: str) -> str:
    return f"{name} (mean of {setting.n} seeds)" if setting.n > 1 else f"{name} (1 seed)"


def _layer_rows(panel: plots.LayerPanel) -> list[dict[str, Scalar]]:
    return [
        {
            "family": panel.family,
            "position": position,
            "name": st.name,
            "op": st.op,
            "firing_rate_st": st.firing_rate,
            "firing_rate_eat": eat.firing_rate,
            "energy_pj_st": st.energy_pj,
            "energy_pj_eat": eat.energy_pj,
            "dense_pj": st.dense_pj,
        }
        for position, (st, eat) in enumerate(zip(panel.st, panel.eat, strict=True))
    ]


def _remove(output: Path, *stems: str) -> list[Path]:
    """Take away what an earlier report wrote and this one has no data for."""
    for stem in stems:
        for name in (stem,) if Path(stem).suffix else (f"{stem}.png", f"{stem}.svg"):
            (output / name).unlink(missing_ok=True)
    return []


# --- the printed table ---------------------------------------------------------------------------------------------


def _table(front: Front) -> Table:
    kept = front.settings
    if len(kept) > MAX_ROWS:
        marked = [s for s in kept if s in front.on_front or s is front.baseline or s is front.selected]
        kept = marked[:MAX_ROWS]
    rest = len(front.settings) - len(kept)
    table = Table(
        title=Text(front.family, style="bold"),
        title_justify="left",
        caption=Text(f"{rest} more settings: see {PARETO}") if rest else None,
        caption_justify="left",
        box=None,
        padding=(0, 1),
    )
    for name, justify in COLUMNS:
        table.add_column(Text(name), justify=justify, no_wrap=True)  # type: ignore[arg-type]
    names = plots.setting_names(front.settings)
    for setting in sorted(kept, key=lambda s: (s.lambda_, s.energy_ratio, s.setting_id)):
        selected, on_front = setting is front.selected, setting in front.on_front
        marks = [m for m, there in (("ST", setting.is_baseline), ("front", on_front), ("selected", selected)) if there]
        table.add_row(*(Text(cell) for cell in _cells(setting, names)), Text(" ".join(marks)), style="bold" * selected)
    return table


COLUMNS = (
    ("setting", "left"),
    ("seeds", "right"),
    ("accuracy", "right"),
    ("validation", "right"),
    ("energy ratio", "right"),
    ("floor", "right"),
    ("decrease %", "right"),
    ("uJ/image", "right"),
    ("firing rate", "right"),
    ("", "left"),
)


def _cells(setting: Setting, names: dict[str, str]) -> list[str]:
    return [
        names[setting.setting_id],
        str(setting.n),
        _number(setting, "accuracy", 4),
        _number(setting, "accuracy_validation", 4),
        _number(setting, "energy_ratio", 4),
        _number(setting, "energy_floor", 3, spread=False),
        _number(setting, "energy_decrease_percent", 2),
        _number(setting, "energy_uj_per_image", 2, spread=False),
        _number(setting, "firing_rate", 3),
    ]


def _number(setting: Setting, measure: str, digits: int, spread: bool = True) -> str:
    mean, std = setting.mean(measure), setting.std(measure)
    if mean is None:
        return "-"
    return f"{mean:.{digits}f}" + (f" ± {std:.{digits}f}" if spread and std is not None else "")
