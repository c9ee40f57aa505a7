"""What there is to say about a folder of runs, once, in words and numbers; text, plots, markdown and latex draw it."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from eat_runner.analysis.columns import ALWAYS, BY_KEY, ENERGY, RATIO, Column
from eat_runner.analysis.equal_accuracy import COLUMNS, CONFIDENCE
from eat_runner.analysis.equal_accuracy import SIMPLE as SIMPLE_METHODS
from eat_runner.analysis.layers import LayerPanel
from eat_runner.analysis.pareto import Axes, Front, rule
from eat_runner.analysis.table import is_priced
from eat_runner.config.hardware import HardwareConfig, corners
from eat_runner.errors import printable

SUMMARY, PARETO, LAYERS = "summary.csv", "pareto.csv", "layer_comparison.csv"
EQUAL_ACCURACY = "equal_accuracy.csv"
MAX_ROWS = 40  # settings of a family that are printed; pareto.csv has all
MAX_REASONS = 20  # runs without a result that are named; summary.csv has all
EQUAL_RULE = (
    "at equal accuracy: E/E_ST is each seed's energy beside the reference's of the same seed, E/E_simple beside that "
    f"of the better of {' and '.join(SIMPLE_METHODS)}; [ ]: {CONFIDENCE:.0%} bootstrap over the test images"
)
ON_CHIP = "weights_on_chip"
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
    """Texts in rows. bold: numbers of rows. below: a line under the table. file: what has every column and row."""

    heads: Sequence[Head]
    rows: Sequence[Sequence[str]]
    title: str = ""
    bold: frozenset[int] = frozenset()
    below: str = ""
    file: str = PARETO


@dataclass(frozen=True)
class Family:
    """What is said of one family: its settings, what should be known of them, and facts about its front. equal: its
    methods at equal accuracy, a table an allowance."""

    table: Table
    remarks: Sequence[str]
    facts: Sequence[str]
    equal: Sequence[Table] = ()


class Told(Protocol):
    """What can be shown: tables with remarks and facts, then what holds for all of them, what is missing, and the files
    that were written."""

    @property
    def families(self) -> Sequence[Family]: ...
    @property
    def facts(self) -> Sequence[str]: ...
    @property
    def missing(self) -> Sequence[str]: ...
    @property
    def paths(self) -> Sequence[Path]: ...


@dataclass
class Report:
    """What a report is made of, and what it says.

    runs: every run found, as ``table.collate``. fronts: one a family. layers: standard training beside what is
    selected, where both can be read. missing: which runs have no result, and why, and which layers could not be
    compared, a line each. equal: the fronts' methods at equal accuracy, where that was asked for. paths: the files that
    were written.
    """

    hardware: HardwareConfig
    selection: str
    axes: Axes
    runs: pd.DataFrame
    fronts: list[Front]
    layers: list[LayerPanel] = field(default_factory=list[LayerPanel])
    missing: list[str] = field(default_factory=list[str])
    equal: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=COLUMNS))
    paths: list[Path] = field(default_factory=list[Path])

    @property
    def families(self) -> list[Family]:
        return [family(front, self.hardware, self.equal[self.equal["family"] == front.family]) for front in self.fronts]

    @property
    def facts(self) -> list[str]:
        """What holds for all families."""
        lines = [
            hardware_line(self.hardware, self.runs),
            f"selection={self.selection}: {rule(self.selection, self.axes)}",
        ]
        equal = "" if self.equal.empty else EQUAL_RULE
        return [*lines, *filter(None, [equal, budgets_line(self.runs)])]

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


def hardware_line(hardware: HardwareConfig, runs: pd.DataFrame) -> str:
    """The hardware in a line: name, process, metered batch, what its numbers are. What it says of floating-point values
    is left out where all priced runs have networks of integers."""
    batch = "" if hardware.batch_size is None else f", metered in batches of {hardware.batch_size}"
    of_floats = str(getattr(hardware, "float_note", ""))
    of_integers = runs.loc[is_priced(runs), "method"].str.contains(r"\bbits=")
    if len(of_integers) and of_integers.all():
        of_floats = ""
    elif of_floats and of_integers.any():
        of_floats += " (runs without bits)"
    note = "; ".join(filter(None, [of_floats, hardware.note]))
    return printable(f"hardware {hardware.name} ({hardware.process_nm} nm{batch}){note and ': '}{note}")


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


def family(front: Front, hardware: HardwareConfig, equal: pd.DataFrame) -> Family:
    """equal: of this family alone."""
    facts = [reference_line(front), hypervolume_line(front), on_chip_line(front), ranges_line(front, hardware)]
    tables = [equal_table(front, int(points), rows) for points, rows in equal.groupby("allowance")]
    return Family(settings_table(front), front.remarks, [*filter(None, facts)], tables)


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


def on_chip_line(front: Front) -> str:
    """How many settings have their weights on chip; empty where the hardware has no memory for them."""
    if ON_CHIP not in front.settings.columns:
        return ""
    there = int((front.settings[ON_CHIP] == 1).sum())
    return (
        f"weights stay on chip in {there} of {len(front.settings)} settings: as stored, they fit the memory for weights"
    )


def ranges_line(front: Front, hardware: HardwareConfig) -> str:
    """Whether the selected setting stays selected wherever in their ranges the prices are; empty without ranges."""
    if front.selected is None or not front.selected_at_corners:
        return ""
    ranges = ", ".join(f"{key} {low:g} to {high:g}" for key, (low, high) in hardware.ranges.items())
    ends = corners(hardware)
    others = [i for i, setting in enumerate(front.selected_at_corners) if setting != front.selected]
    if not others:
        return f"stays selected at {'both' if len(ends) == 2 else f'all {len(ends)}'} ends of {ranges}"
    where = ", ".join(f"{key}={getattr(ends[others[0]], key):g}" for key in hardware.ranges)
    other = front.selected_at_corners[others[0]]
    name = "nothing" if other is None else front.settings.at[other, "name"]
    return f"does not stay selected at {len(others)} of {len(ends)} ends of {ranges}: at {where} it is {name}"


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
    there = [mark for mark, is_there in marks.items() if is_there]
    share = setting.get(ON_CHIP, 0.0)
    if share > 0:
        seeds = f" ({round(share * setting['n'])} of {setting['n']} seeds)" if share < 1 else ""
        there.append(f"weights on chip{seeds}")
    return " ".join(there)


def equal_table(front: Front, points: int, rows: pd.DataFrame) -> Table:
    """The methods of a front that come within so many points of the reference's accuracy, by energy."""
    simple = rows.loc[rows["method"].isin(rows["simple"]), ["method", "setting"]]
    left_out = {UJ} if rows["energy_uj_per_image"].isna().any() else set[str]()
    left_out |= {SIMPLE, SIMPLE_SEEDS} if simple.empty else set()
    columns = [(head, text) for head, text in EQUAL_COLUMNS if head.name not in left_out]
    absent = [line for line in dict.fromkeys(front.settings["line"]) if line not in set(rows["method"])]
    below = [f"{SIMPLE}: beside {method}, {setting}" for method, setting in simple.to_numpy()]
    below += [f"nothing within it: {', '.join(absent)}"] if absent else []
    return Table(
        heads=[head for head, _ in columns],
        rows=[[text(row) for _, text in columns] for row in rows.to_dict("records")],
        title=f"{front.family}: lowest energy at most {points} point{'' if points == 1 else 's'} below the reference "
        "(mean on the validation split)",
        below="\n".join(below),
        file=EQUAL_ACCURACY,
    )


def _with_interval(row: Mapping[str, Any]) -> str:
    """A difference in points of accuracy, and where it lies with 95 %, if that is known."""
    low, high = row["accuracy_difference_low"], row["accuracy_difference_high"]
    mean = number(100 * row["accuracy_difference"], None, 2)
    return mean if low is None or low != low else f"{mean} [{100 * low:.2f}, {100 * high:.2f}]"


def _range(row: Mapping[str, Any], name: str) -> str:
    """The least and the largest of the seeds' ratios."""
    least, most = (number(row[f"{name}_ratio_{end}"], None, 3, none="") for end in ("min", "max"))
    return least if least == most else f"{least}–{most}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


UJ, SIMPLE, SIMPLE_SEEDS = "uJ/image", "E/E_simple", "E beside E_simple"
EQUAL_COLUMNS: tuple[tuple[Head, Callable[[Mapping[str, Any]], str]], ...] = (
    (Head("method", right=False), lambda row: row["method"]),
    (Head("setting", right=False, rank=5), lambda row: row["setting"]),
    (Head("seeds", rank=6), lambda row: str(row["n"])),
    (Head("validation", rank=7), lambda row: number(row["accuracy_validation"], None, 4)),
    (Head("accuracy"), lambda row: number(row["accuracy"], None, 4)),
    (Head("points vs ST", rank=3), _with_interval),
    (Head(UJ, rank=4), lambda row: number(row["energy_uj_per_image"], None, 2)),
    (Head("E/E_ST"), lambda row: _range(row, "energy")),
    (Head("decrease of energy %", rank=1), lambda row: number(100 * row["energy_decrease"], None, 1)),
    (Head(SIMPLE, rank=2), lambda row: _range(row, "simple")),
    (Head(SIMPLE_SEEDS, right=False, rank=8), lambda row: _text(row["simple_verdict"])),
)


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
