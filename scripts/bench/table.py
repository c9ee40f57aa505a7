"""The figures of a section as a CSV, as lines on the terminal, and those of all sections as Markdown."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from bench.figures import Figure

LINE = "{:66} {:18} {:>15} {:>8} {:>9} {:>9} {:>9} {:>2}  {:9} {}"
HEADER = LINE.format("figure", "network", "goal", "stretch", "median", "min", "max", "n", "unit", "verdict")
COLUMNS = "figure | network | goal | median | smallest to largest | n | unit | verdict"


def write(path: Path, figures: Iterable[Figure]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(figures).to_csv(path, index=False, float_format="%.4g", lineterminator="\n")


def read(path: Path) -> list[Figure]:
    """What ``write`` wrote; limits that there are not are NaN."""
    table = pd.read_csv(path, keep_default_na=False, na_values={"goal": [""], "stretch_goal": [""]})
    return [Figure(*row) for row in table.itertuples(index=False)]


def markdown(figures: Iterable[Figure]) -> str:
    lines = [f"| {COLUMNS} |", "|---" * len(COLUMNS.split(" | ")) + "|"]
    for name, network, goal, _, middle, low, high, n, unit, verdict in map(_texts, figures):
        ends = f"{low} to {high}" if n != "1" else ""
        lines.append("| " + " | ".join([name, network, goal, middle, ends, n, unit, verdict]) + " |")
    return "\n".join(lines) + "\n"


def show(figures: Iterable[Figure]) -> str:
    """A line a figure: goal and measurement side by side."""
    return "\n".join(LINE.format(*_texts(row)).rstrip() for row in figures)


def _texts(row: Figure) -> list[str]:
    goal = f"{row.bound} {row.goal:g}" if row.bound else ""
    stretch = "" if row.stretch_goal is None else f"{row.stretch_goal:g}"
    measured = [f"{x:.3f}" if abs(x) < 100 else f"{x:,.0f}" for x in (row.median, row.min, row.max)]
    return [row.figure, row.network, goal, stretch, *measured, str(row.repetitions), row.unit, row.verdict]
