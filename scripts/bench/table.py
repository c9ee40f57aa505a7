"""The table: rows.csv says what its rows are made of and what they should be; here they become figures and texts.

of, per: names of samples, divided value by value. goal: one for every network, or one for each. stretch_goal: what
would be better still. bound: whether goals are upper or lower limits.
"""

import operator
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.engine import Samples, Sizes
from eat_runner.report.markdown import markdown
from eat_runner.report.view import Table, table_of

ROWS = pd.read_csv(Path(__file__).with_name("rows.csv"), dtype=str, keep_default_na=False).to_dict("records")
AT_MOST = "at most"


def figures(section: str, samples: Samples, sizes: Sizes, network: str = "", number: int = 0) -> list[dict[str, Any]]:
    """The section's figures of a network, its ``number``-th; those whose samples there are not are left out."""
    rows = [row for row in ROWS if row["section"] == section and {row["of"], row["per"]} <= {*samples, ""}]
    return [
        {"figure": row["figure"].format(**asdict(sizes)), "network": network} | figure(row, samples, number)
        for row in rows
    ]


def figure(row: Mapping[str, str], samples: Samples, number: int = 0) -> dict[str, Any]:
    """Median, smallest and largest over the repetitions, beside the goal."""
    values = samples[row["of"]] / samples[row["per"]] if row["per"] else samples[row["of"]]
    goals = [float(goal) for goal in row["goal"].split()] or [np.nan]
    return {
        "bound": row["bound"],
        "goal": goals[min(number, len(goals) - 1)],
        "stretch_goal": float(row["stretch_goal"] or "nan"),
        "median": np.median(values),
        "min": values.min(),
        "max": values.max(),
        "repetitions": len(values),
        "unit": row["unit"],
    }


def verdict(found: Mapping[str, Any]) -> str:
    """``stretch``, ``met`` or ``missed``, from the median; empty where there is no goal."""
    reaches = operator.le if found["bound"] == AT_MOST else operator.ge
    limits = {"stretch": found["stretch_goal"], "met": found["goal"]}
    reached = (name for name, limit in limits.items() if reaches(found["median"], limit))  # nothing reaches NaN
    return next(reached, "missed") if found["bound"] else ""


def read(path: Path) -> pd.DataFrame:
    """The figures of a section, as they were written."""
    return pd.read_csv(path, keep_default_na=False, na_values={"goal": [""], "stretch_goal": [""]})


def number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"


def table(found: pd.DataFrame) -> Table:
    """Goal and figure side by side."""
    columns = {
        "figure": lambda f: f["figure"],
        "network": lambda f: f["network"],
        "goal": lambda f: f"{f['bound']} {f['goal']:g}" if f["bound"] else "",
        "median": lambda f: number(f["median"]),
        "smallest to largest": lambda f: f"{number(f['min'])} to {number(f['max'])}" if f["repetitions"] > 1 else "",
        "n": lambda f: str(f["repetitions"]),
        "unit": lambda f: f["unit"],
        "verdict": verdict,
    }
    return table_of(found.to_dict("records"), columns)


def shown(found: pd.DataFrame) -> str:
    """For a terminal."""
    made = table(found)
    lines = [[head.name for head in made.heads], *made.rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def as_markdown(found: pd.DataFrame) -> str:
    return markdown(table(found)) + "\n"
