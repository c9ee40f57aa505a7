"""What a section finds: tables by the name of their file, and figures by theirs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from eat_runner.report.plots import save

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Tables:
    """tables, figures: by path below the folder of the results, without a suffix."""

    tables: Mapping[str, pd.DataFrame]
    figures: Mapping[str, Figure] = field(default_factory=dict[str, Figure])


def write(found: Tables, output: Path) -> None:
    """A CSV a table, a PNG and an SVG a figure."""
    for name, table in found.tables.items():
        path = output / f"{name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(path, index=False, float_format="%.10g", lineterminator="\n")
    for name, figure in found.figures.items():
        save(figure, output / name)
