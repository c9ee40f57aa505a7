"""What there is to say about a folder of runs, once, in words and numbers; text, plots, markdown and latex draw it."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from eat_runner.analysis.columns import ALWAYS, BY_KEY, ENERGY, RATIO, Column
from eat_runner.analysis.layers import LayerPanel
from eat_runner.analysis.pareto import Axes, Front, rule
from eat_runner.analysis.table import is_priced
from eat_runner.config.hardware import HardwareConfig
from eat_runner.errors import printable

SUMMARY, PARETO, LAYERS = "summary.csv", "pareto.csv", "layer_comparison.csv"
MAX_ROWS = 40  # settings of a family that are printed; pareto.csv has all
MAX_REASONS = 20  # runs without a result that are named; summary.csv has all
RULE_IN_SHORT = {
    "validation": "selected on the validation split",
    "paper": "selected on the test split (the paper's rule)",
}


@dataclass(frozen=True)
class Head:
    """A column of a table of texts. rank: what a narrow table leaves out first has the highest; 0 stays."""

    name: str
    right: bool = True
    rank: int = 0


@dataclass(frozen=True)
class Table:
    """Texts in rows. bold: numbers of rows. below: a line under the table."""

    heads: Sequence[Head]
    rows: Sequence[Sequence[str]]
    title: str = ""
    bold: frozenset[int] = frozenset()
    below: str = ""


@dataclass(frozen=True)
class Family:
    """What is said of one family: its settings, what should be known of them, and facts about its front."""

    table: Table
    remarks: Sequence[str]
    facts: Sequence[str]


@dataclass
class Report:
    """What a report is made of, and what it says.

    runs: every run found, as ``table.collate``. fronts: one a family. layers: standard training beside what is
    selected, where both can be read. missing: which runs have no result, and why, and which layers could not be
    compared, a line each. paths: the files that were written.
    """

    hardware: HardwareConfig
    selection: str
    axes: Axes
    runs: pd.DataFrame
    fronts: list[Front]
    layers: list[LayerPanel] = field(default_factory=list[LayerPanel])
    missing: list[str] = field(default_factory=list[str])
    paths: list[Path] = field(default_factory=list[Path])

    @property
    def families(self) -> list[Family]:
        return [family(front) for front in self.fronts]

    @property
    def facts(self) -> list[str]:
        """What holds for all families."""
        lines = [hardware_line(self.hardware), f"selection={self.selection}: {rule(self.selection, self.axes)}"]
        return [*lines, *filter(None, [budgets_line(self.runs)])]

    @property
    def front_caption(self) -> str:
        """What the figure of the fronts says below its title."""
        least, most = (pick(front.seeds[i] for front in self.fronts) for i, pick in enumerate((min, max)))
        seeds = "one seed" if most == 1 else f"mean ± s.d. over {f'{least} to ' if least < most else ''}{most} seeds"
        batch = f", batch {self.hardware.batch_size}" if self.hardware.batch_size else ""
        where = f"hardware {self.hardware.name} ({self.hardware.process_nm} nm{batch})"
        lines = [printable(f"{where} · {seeds} · {RULE_IN_SHORT[self.selection]}")]
        return "\n".join([*lines, *missing(self.runs)[:1]])

    @property
    def layers_caption(self) -> str:
        return printable(f"hardware {self.hardware.name} ({self.hardware.process_nm} nm) · test split")


def hardware_line(hardware: HardwareConfig) -> str:
    """The hardware in a line: name, process, metered batch, what its numbers are."""
    batch = "" if hardware.batch_size is None else f", metered in batches of {hardware.batch_size}"
    note = f": {hardware.note}" if hardware.note else ""
    return printable(f"hardware {hardware.name} ({hardware.process_nm} nm{batch}){note}")


def budgets_line(runs: pd.DataFrame) -> str:
    """How many of the runs that had a budget met it; empty where none had one."""
    judged = runs[runs["budget_met"] != ""]
    missed = judged[judged["budget_met"] == "missed"]["run_id"]
    names = f": {', '.join(missed.head(MAX_REASONS))} missed it" if len(missed) else ""
    return f"{len(judged) - len(missed)} of {len(judged)} runs met their budget{names}" if len(judged) else ""


def missing(runs: pd.DataFrame) -> list[str]:
    """What the fronts do not show: how many runs of each status, then a line for each of the first MAX_REASONS."""
    absent = runs[~is_priced(runs)]
    if absent.empty:
        return []
    statuses = Counter("finished, not priced" if status == "finished" else status for status in absent["status"])
    counts = ", ".join(f"{number} {status}" for status, number in sorted(statuses.items()))
    lines = [f"{len(absent)} of {len(runs)} runs are not in the front: {counts}"]
    for run in absent.head(MAX_REASONS).to_dict("records"):
        why = f" ({run['reason']})" if run["reason"] else ""
        lines.append(f"  {run['run_id']}: {run['status']}{why}")
    if len(absent) > MAX_REASONS:
        lines.append(f"  … and {len(absent) - MAX_REASONS} more: see {SUMMARY}")
    return lines


def family(front: Front) -> Family:
    reference = reference_line(front)
    return Family(settings_table(front), front.remarks, [*filter(None, [reference]), hypervolume_line(front)])


def reference_line(front: Front) -> str:
    """Which standard training the family's rule and relative energies look at; empty without one."""
    if front.reference is None:
        return ""
    n = int(front.settings.at[front.reference, "n"])
    seeds = f"mean of {n} seeds" if n > 1 else "one seed"
    return f"reference: {front.settings.at[front.reference, 'network']}, lambda 0, {seeds}"


def hypervolume_line(front: Front) -> str:
    x, y = front.axes.x, front.axes.y
    who = "the reference" if front.reference else "the largest network"
    unskipped = "" if front.axes.of_one_network else f", what {who} needs without zero-skipping"
    against = f"against {y.in_words.format(0)} at {x.in_words.format(f'{front.worst:.5g}')}{unskipped}"
    return f"hypervolume {front.hypervolume:.4f}{x.unit} ({against})"


# --- tables --------------------------------------------------------------------------------------------------------


def settings_table(front: Front) -> Table:
    """The family's settings by network and lambda: what is shown of each, and marks."""
    kept = front.settings
    if len(kept) > MAX_ROWS:
        kept = kept[kept["on_front"] | kept["is_baseline"] | kept["selected"]].head(MAX_ROWS)
    rest = len(front.settings) - len(kept)
    kept = kept.reset_index().sort_values(["network", "lambda", front.axes.x.key, "setting_id"])
    columns = shown_columns(front)
    several = front.settings["is_baseline"].sum() > 1
    rows = [
        [s["name"], str(s["n"]), *(_cell(s, column, front.axes) for column in columns), _marks(s, front, several)]
        for s in kept.to_dict("records")
    ]
    heads = [Head("setting", right=False), Head("seeds", rank=3)]
    heads += [Head(c.label, rank=0 if c in (front.axes.x, front.axes.y) else c.rank or 1) for c in columns]
    return Table(
        heads=[*heads, Head("", right=False)],
        rows=rows,
        title=front.family,
        bold=frozenset(number for number, selected in enumerate(kept["selected"]) if selected),
        below=f"{rest} more settings: see {PARETO}" if rest else "",
    )


def shown_columns(front: Front) -> list[Column]:
    """What a printed table shows of a setting, beside its name."""
    shown = {ALWAYS, RATIO if front.axes.of_one_network else ENERGY}
    return [column for key, column in BY_KEY.items() if column.shown in shown and key in front.settings.columns]


def _cell(setting: Mapping[str, Any], column: Column, axes: Axes) -> str:
    spread = column.spread or column is axes.x
    std = setting.get(f"{column.key}_std") if spread else None
    return number(setting[column.key], std, column.digits, none="-")


def _marks(setting: Mapping[str, Any], front: Front, several_baselines: bool) -> str:
    marks = {
        "ST": setting["is_baseline"],
        "reference": several_baselines and setting["setting_id"] == front.reference,
        "front": setting["on_front"],
        "selected": setting["selected"],
    }
    return " ".join(mark for mark, there in marks.items() if there)


def number(mean: float | None, std: float | None, digits: int, none: str = "–") -> str:
    """The mean, with ± its deviation where there is one; ``none`` where there is no number."""
    if mean is None or mean != mean:
        return none
    # + 0.0: no minus sign before a zero
    text = f"{round(float(mean), digits) + 0.0:.{digits}f}"
    return text if std is None or std != std else f"{text} ± {std:.{digits}f}"


def table_of(
    rows: Sequence[Mapping[str, Any]], columns: Mapping[str, Callable[[Mapping[str, Any]], str]], title: str = ""
) -> Table:
    """Rows of any kind as a table. columns: heading -> a row's text."""
    heads = [Head(name, right=False) for name in columns]
    return Table(heads, [[text(row) for text in columns.values()] for row in rows], title)
