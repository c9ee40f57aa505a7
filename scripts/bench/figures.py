"""A figure is a ratio (or another number) measured several times, beside its goal."""

import csv
import gc
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any

AT_MOST, AT_LEAST = "at most", "at least"


@dataclass(frozen=True)
class Figure:
    """One line of the table. bound: whether ``goal`` is an upper or a lower limit; empty where there is no goal.

    median, min, max: over ``repetitions`` measurements, each a ratio of two times that were taken one after the other.
    """

    figure: str
    network: str
    bound: str
    goal: float | None
    stretch_goal: float | None
    median: float
    min: float
    max: float
    repetitions: int
    unit: str

    @property
    def verdict(self) -> str:
        """``stretch``, ``met`` or ``missed``, from the median; empty where there is no goal."""
        if self.goal is None:
            return ""
        if self.stretch_goal is not None and self._reaches(self.stretch_goal):
            return "stretch"
        return "met" if self._reaches(self.goal) else "missed"

    def _reaches(self, limit: float) -> bool:
        return self.median <= limit if self.bound == AT_MOST else self.median >= limit


def figure(
    name: str,
    network: str,
    values: Sequence[float],
    goal: float | None = None,
    stretch: float | None = None,
    bound: str = AT_MOST,
    unit: str = "ratio",
) -> Figure:
    """The figure that ``values`` make."""
    bound = bound if goal is not None else ""
    ends = min(values), max(values)
    return Figure(name, network, bound, goal, stretch, median(values), *ends, len(values), unit)


def ratios(ours: Sequence[float], other: Sequence[float]) -> list[float]:
    """Round by round, ours / other."""
    return [a / b for a, b in zip(ours, other, strict=True)]


def interleaved(
    variants: Mapping[str, Callable[[], object]],
    rounds: int,
    calls: int = 1,
    synchronise: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds a call, for each variant one value a round.

    Every variant runs once to warm up; then each round times ``calls`` calls of one variant after the other, in a
    random order (the same in every run), so that what changes on the machine, and what the one before leaves in the
    caches, meets all alike. synchronise: waits for the device.
    """
    for variant in variants.values():
        variant()
    order, names = random.Random(0), list(variants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            order.shuffle(names)
            for name in names:
                synchronise()
                started = time.perf_counter()
                for _ in range(calls):
                    variants[name]()
                synchronise()
                seconds[name].append((time.perf_counter() - started) / calls)
    finally:
        gc.enable()
    return seconds


def write(path: Path, figures: Sequence[Figure]) -> None:
    """A CSV, a row a figure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Figure)], lineterminator="\n")
        writer.writeheader()
        for row in figures:
            writer.writerow({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in asdict(row).items()})


def read(path: Path) -> list[Figure]:
    """What ``write`` wrote."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    numbers = {f.name: int if f.name == "repetitions" else float for f in fields(Figure) if f.type is not str}
    values: list[dict[str, Any]] = [{k: numbers.get(k, str)(v) if v else None for k, v in row.items()} for row in rows]
    return [Figure(**row) for row in values]


COLUMNS = "figure | network | goal | median | smallest to largest | n | unit | verdict"


def markdown(sections: Iterable[Sequence[Figure]]) -> str:
    """The figures of several sections as one table."""
    lines = [f"| {COLUMNS} |", "|---" * len(COLUMNS.split(" | ")) + "|"]
    for row in (row for section in sections for row in section):
        goal = f"{row.bound} {row.goal:g}" if row.goal is not None else ""
        ends = f"{_short(row.min)} to {_short(row.max)}" if row.repetitions > 1 else ""
        cells = [row.figure, row.network, goal, _short(row.median), ends, row.repetitions, row.unit, row.verdict]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def show(figures: Sequence[Figure]) -> str:
    """A line a figure: goal and measurement side by side."""
    return "\n".join(_line(row) for row in figures)


HEADER = (
    f"{'figure':66} {'network':18} {'goal':>15} {'stretch':>8} {'median':>9} {'min':>9} {'max':>9}  n  "
    f"{'unit':9} verdict"
)


def _line(row: Figure) -> str:
    goal = f"{row.bound} {row.goal:g}" if row.goal is not None else ""
    stretch = f"{row.stretch_goal:g}" if row.stretch_goal is not None else ""
    measured = " ".join(f"{_short(value):>9}" for value in (row.median, row.min, row.max))
    return (
        f"{row.figure:66} {row.network:18} {goal:>15} {stretch:>8} {measured} {row.repetitions:2}  "
        f"{row.unit:9} {row.verdict}"
    ).rstrip()


def _short(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"
