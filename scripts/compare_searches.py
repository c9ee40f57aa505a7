"""Hypervolume of several searches after so many trials, all against the same point.

``python scripts/compare_searches.py results/tpe-0 results/random-0 … [--output FILE.csv]``: folders that eat-search
wrote. A folder called NAME-SEED is one of NAME's seeds; a row is the mean over them. FILE.png and .svg draw it.
"""

import argparse
import math
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from eat_runner.analysis.pareto import hypervolume
from eat_runner.report.plots import STYLE, save

AFTER = (10, 20, 30, 40, 60, 80, 100)  # trials


def main() -> None:
    """Print the table, and write it where that is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    found = compare(options.folders)
    print(found.to_string(index=False, float_format="%.4f"))
    if options.output:
        found.to_csv(options.output, index=False, lineterminator="\n")
        save(drawn(found), options.output.with_suffix(""))


def compare(folders: list[Path]) -> pd.DataFrame:
    """A row for each name and number of trials, with the mean, the least and the largest over its seeds.

    hypervolume: as a share of accuracy 1 for no energy, against accuracy 0 at the largest energy without zero-skipping
    in any of the folders. logarithmic: the same with energy on a logarithmic axis, on which 1 is the least energy of
    any trial: halving it counts alike everywhere.
    """
    tables = {folder: _finished(pd.read_csv(folder / "search.csv")) for folder in folders}
    worst = max(table["dense"].max() for table in tables.values())
    least = min(table["energy"].min() for table in tables.values())
    rows = [
        {"search": folder.name.rpartition("-")[0] or folder.name, "trials": number}
        | {"hypervolume": _share(first["energy"], first, worst)}
        | {"logarithmic": _share(np.log(first["energy"] / least), first, math.log(worst / least))}
        for folder, table in tables.items()
        for number in AFTER
        if number <= len(table)
        for first in [table.head(number).dropna(subset=["energy"])]
    ]
    by = pd.DataFrame(rows).groupby(["search", "trials"])
    found = by.agg(["mean", "min", "max"])
    found.columns = [key if how == "mean" else f"{key}_{how}" for key, how in found.columns]
    return found.assign(seeds=by.size(), least=least, worst=worst).reset_index()


def drawn(found: pd.DataFrame) -> Figure:
    """Both hypervolumes over the trials: a line a search, the band from its least to its largest seed."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8, 3.6), layout="constrained")
        FigureCanvasAgg(figure)
        for axes, key, title in zip(
            figure.subplots(1, 2), ("hypervolume", "logarithmic"), ("energy", "logarithm of the energy"), strict=True
        ):
            for name, rows in found.groupby("search"):
                [line] = axes.plot(rows["trials"], rows[key], marker="o", label=f"{name}, {rows['seeds'].max()} seeds")
                axes.fill_between(
                    rows["trials"], rows[f"{key}_min"], rows[f"{key}_max"], color=line.get_color(), alpha=0.15
                )
            axes.set_title(f"accuracy against {title}")
            axes.set_xlabel("trials")
        figure.axes[0].set_ylabel("hypervolume (1: all of it)")
        figure.axes[0].legend()
    return figure


def _finished(table: pd.DataFrame) -> pd.DataFrame:
    """energy: of an image of the validation split, in the unit of the folder; empty where a trial did not come to its
    end."""
    [energy] = [column for column in table.columns if column.startswith("energy_validation_")]
    return table.rename(columns={energy: "energy"})


def _share(energy: pd.Series, table: pd.DataFrame, worst: float) -> float:
    return hypervolume(table["accuracy_validation"].tolist(), energy.tolist(), worst) / worst


if __name__ == "__main__":
    main()
