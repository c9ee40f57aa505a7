"""Folders of runs -> tables, figures, and what a person is told about them. No torch."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

from eat_runner.analysis.choosing import Choice, choose, left_out
from eat_runner.analysis.columns import X, Y
from eat_runner.analysis.equal_accuracy import equal_accuracy
from eat_runner.analysis.layers import LayerPanel, layer_panel
from eat_runner.analysis.pareto import Axes, Front, fronts, pareto_table
from eat_runner.analysis.rows import hardware_of
from eat_runner.analysis.table import collate, is_priced, summary, to_csv
from eat_runner.claims import REPORT_LOCK, report_lock
from eat_runner.config.hardware import HardwareConfig
from eat_runner.energy.hardware import builtin_hardware, load_hardware
from eat_runner.errors import UserError, printable
from eat_runner.records import RunFolder, write_atomically
from eat_runner.report import plots
from eat_runner.report.html import MOST_RUNS, PAGE, write_page
from eat_runner.report.text import show
from eat_runner.report.view import EQUAL_ACCURACY, LAYERS, PARETO, SUMMARY, Report, missing

__all__ = [
    "MOST_RUNS",
    "QUICK_PAGE",
    "Choice",
    "Report",
    "choose_axes",
    "choose_hardware",
    "choose_run",
    "selected_folders",
    "show",
    "write_report",
]

QUICK_PAGE = 100  # runs that a page which nobody asked for reads: a few seconds
PARETO_PLOT, FIRING_PLOT, ENERGY_PLOT = "pareto", "layers_firing", "layers_energy"


def write_report(
    folders: Path | Sequence[Path],
    hardware: HardwareConfig,
    selection: str = "validation",
    output: Path | None = None,
    by: str = "family",
    axes: Axes | None = None,
    page_of: int = 0,
) -> Report:
    """Collate the runs in ``folders``, price them with ``hardware``, and write tables and figures into ``output``
    (the first folder if None). Several processes may do so at once: the last one to write has seen every run.

    by: what a family is (columns.BY). axes: what its front compares. page_of: for report.html, the folders of so many
    runs are read again (html/data.py, ``page_data``); 0: it is only written where there is one.
    Raises UserError as ``table.collate`` does and where no run has what the axes ask for, OSError where ``output``
    cannot be written.
    """
    roots = [folders] if isinstance(folders, Path) else list(folders)
    output = output or roots[0]
    if output in roots and not output.is_dir():
        raise UserError(f"{output}: no such folder")
    output.mkdir(parents=True, exist_ok=True)
    with _lock(output):
        runs = collate(roots, hardware, by)
        report = Report(hardware, selection, axes or Axes(), runs, _fronts(runs, selection, axes))
        report.missing += [*missing(runs), *_without_front(report)]
        _compare_layers(report)
        if by == "dataset":
            _compare_methods(report)
        report.paths += [*_write_tables(report, output), *_write_front(report, output), *_write_layers(report, output)]
        report.paths += _write_page(report, roots, output, page_of)
    return report


def choose_hardware(folders: Sequence[Path], name: str | None) -> HardwareConfig:
    """The price list of that name or file; without a name, the one that the runs were configured with."""
    return hardware_of(folders) if name is None else load_hardware(name)


def choose_axes(hardware: HardwareConfig, by: str = "family", x: str | None = None, y: str = "accuracy") -> Axes:
    """The axes of those names (columns.X, columns.Y). Without an x: the ratio of a family of one network; of several
    networks the energy, or, where prices are relative, the energy relative to the reference.

    Raises UserError where the hardware has no energies in uJ.
    """
    energy = "relative" if hardware.relative else "energy"
    if x == "energy" != energy:
        raise UserError(
            f"--x energy: the prices of {hardware.name} are relative, so there are no joules: use --x relative"
        )
    return Axes(X[x or ("ratio" if by == "family" else energy)], Y[y])


def selected_folders(
    folders: Sequence[Path],
    hardware: HardwareConfig,
    selection: str = "validation",
    by: str = "family",
    axes: Axes | None = None,
) -> list[str]:
    """The folder of the selected run (of the selected setting, the lowest seed), one for each family.

    UserError where nothing can be selected.
    """
    found = _fronts(collate(folders, hardware, by), selection, axes)
    selected = [front.runs_of(front.selected)["folder"].iloc[0] for front in found if front.selected is not None]
    if not selected:
        why = "; ".join(dict.fromkeys(front.remarks[0] for front in found)) or "no run is finished"
        raise UserError(f"no run can be selected: {why}")
    return selected


def choose_run(
    folders: Sequence[Path],
    hardware: HardwareConfig,
    selection: str = "validation",
    max_uj: float | None = None,
    min_accuracy: float | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Choice:
    """The run that ``choosing.choose`` picks among all that share their images. say: is told which finished runs could
    not be looked at, a line a reason. UserError as ``choose`` and ``collate`` raise, and where the runs are of several
    data sets."""
    runs = collate(folders, hardware, "dataset")
    found = fronts(runs, selection)
    if len(found) != 1:
        families = ", ".join(front.family for front in found) or "no run that is finished"
        raise UserError(f"a run can be chosen among those on the same data, here are {families}: name one folder")
    for line in left_out(runs):
        say(line)
    return choose(found[0], hardware, selection, max_uj, min_accuracy)


def _fronts(runs: pd.DataFrame, selection: str, axes: Axes | None) -> list[Front]:
    found = fronts(runs, selection, axes=axes)
    if not found and axes is not None and is_priced(runs).any():
        lacks = "a validation split" if axes.y is Y["validation"] else "a reference (lambda=0) to compare with"
        raise UserError(f"no run has {lacks}: use other axes")
    return found


def _without_front(report: Report) -> list[str]:
    priced = report.runs.loc[is_priced(report.runs), "family"]
    absent = sorted(set(priced) - {front.family for front in report.fronts})
    axes = f"--x {report.axes.x.option} --y {report.axes.y.option}"
    return [f"{family}: no front: its runs do not have what {axes} asks for" for family in absent]


def _lock(output: Path) -> AbstractContextManager[Any]:
    folder = RunFolder(output)
    if any(path.exists() for path in (folder.lock, folder.config, folder.record)):
        # temporary files there are the run's, which may be writing; report_lock would take them for a dead report's
        return FileLock(output / REPORT_LOCK)
    return report_lock(output)


def _compare_layers(report: Report) -> None:
    """Standard training beside the selected setting, for each family in which these are two; of those whose layers
    cannot be had, a line in ``missing``."""
    for front in report.fronts:
        baseline = None if front.selected is None else front.own_baseline(front.selected)
        if front.selected is None or baseline is None or baseline == front.selected:
            continue
        selected = front.settings.loc[front.selected]
        labels = (
            _with_seeds(front, baseline, "ST"),
            _with_seeds(front, front.selected, f"{'EAT, ' if selected['lambda'] else ''}{selected['name']}"),
        )
        try:
            report.layers.append(layer_panel(front, baseline, front.selected, report.hardware, front.family, *labels))
        except UserError as error:
            report.missing.append(printable(f"{front.family}: no comparison of layers: {error}", longest=None))


def _compare_methods(report: Report) -> None:
    """The methods of each front at equal accuracy; files that could not be used are in ``missing``."""
    found = [equal_accuracy(front) for front in report.fronts]
    if tables := [table for table, _ in found if len(table)]:
        report.equal = pd.concat(tables, ignore_index=True)
    report.missing += [printable(problem, longest=None) for _, problems in found for problem in problems]


def _with_seeds(front: Front, setting: str, name: str) -> str:
    n = front.settings.at[setting, "n"]
    return f"{name} (mean of {n} seeds)" if n > 1 else f"{name} (1 seed)"


def _write_tables(report: Report, output: Path) -> list[Path]:
    write_atomically(output / SUMMARY, to_csv(summary(report.runs, output)))
    write_atomically(output / PARETO, to_csv(pareto_table(report.fronts)))
    if report.equal.empty:
        return [output / SUMMARY, output / PARETO, *_remove(output, EQUAL_ACCURACY)]
    write_atomically(output / EQUAL_ACCURACY, to_csv(report.equal))
    return [output / SUMMARY, output / PARETO, output / EQUAL_ACCURACY]


def _write_front(report: Report, output: Path) -> list[Path]:
    if not report.fronts:
        return _remove(output, PARETO_PLOT)
    return plots.save(plots.front_figure(report.fronts, report.front_caption), output / PARETO_PLOT)


def _write_layers(report: Report, output: Path) -> list[Path]:
    if not report.layers:
        return _remove(output, FIRING_PLOT, ENERGY_PLOT, LAYERS)
    write_atomically(output / LAYERS, to_csv(pd.concat(map(_layer_rows, report.layers))))
    energies = plots.energy_figure(report.layers, report.layers_caption, report.hardware.relative)
    return [
        output / LAYERS,
        *plots.save(plots.firing_figure(report.layers, "test split"), output / FIRING_PLOT),
        *plots.save(energies, output / ENERGY_PLOT),
    ]


def _write_page(report: Report, roots: Sequence[Path], output: Path, page_of: int) -> list[Path]:
    if not report.fronts:
        return _remove(output, PAGE)
    if not page_of and not (output / PAGE).exists():
        return []
    others = [load_hardware(name) for name in builtin_hardware() if name != report.hardware.name]
    name = ", ".join(root.resolve().name for root in roots)
    return [write_page(report, name, others, output, page_of or QUICK_PAGE)]


def _layer_rows(panel: LayerPanel) -> pd.DataFrame:
    rows = panel.layers.rename_axis("position").reset_index()
    rows.insert(0, "family", panel.family)
    return rows


def _remove(output: Path, *stems: str) -> list[Path]:
    """Take away what an earlier report wrote and this one has no data for."""
    for stem in stems:
        for name in (stem,) if Path(stem).suffix else (f"{stem}.png", f"{stem}.svg"):
            (output / name).unlink(missing_ok=True)
    return []
