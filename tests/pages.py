"""report.html of a folder of runs, without the tables and figures that a report also writes."""

from pathlib import Path

from eat_runner.analysis.pareto import fronts
from eat_runner.analysis.table import collate
from eat_runner.energy.hardware import builtin_hardware, load_hardware
from eat_runner.report import choose_axes, html
from eat_runner.report.view import Report

HARDWARE = "fused_45nm"


def written(folder: Path, output: Path, most_read: int = 1000) -> Path:
    """The page of all that are on the same data, under HARDWARE, with every other built-in hardware."""
    hardware = load_hardware(HARDWARE)
    axes = choose_axes(hardware, "dataset")
    runs = collate(folder, hardware, "dataset")
    report = Report(hardware, "validation", axes, runs, fronts(runs, axes=axes))
    others = [load_hardware(name) for name in builtin_hardware() if name != hardware.name]
    output.mkdir(exist_ok=True)
    return html.write_page(report, folder.name, others, output, most_read)
