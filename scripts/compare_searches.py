"""Hypervolume of several searches after so many trials, all against the same point.

``python scripts/compare_searches.py results/tpe-0 results/random-0 … [--output FILE.csv]``: folders that eat-search
wrote.
A folder called NAME-SEED is one of NAME's seeds; a row is the mean over them.
"""

import argparse
from pathlib import Path

import pandas as pd

from eat_runner.analysis.pareto import hypervolume

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


def compare(folders: list[Path]) -> pd.DataFrame:
    """A row for each name and number of trials: mean, least and largest hypervolume over its seeds, as a share of
    accuracy 1 for no energy, against accuracy 0 at the largest energy without zero-skipping in any of the folders."""
    tables = {folder: pd.read_csv(folder / "search.csv") for folder in folders}
    worst = max(table["dense"].max() for table in tables.values())
    rows = [
        {"search": folder.name.rpartition("-")[0] or folder.name, "trials": number, "hypervolume": volume}
        for folder, table in tables.items()
        for number in AFTER
        if number <= len(table)
        for volume in [_hypervolume(table.head(number), worst)]
    ]
    by = pd.DataFrame(rows).groupby(["search", "trials"])["hypervolume"]
    return by.agg(["mean", "min", "max", "size"]).reset_index().assign(worst=worst)


def _hypervolume(table: pd.DataFrame, worst: float) -> float:
    [energy] = [column for column in table.columns if column.startswith("energy_validation_")]
    done = table.dropna(subset=[energy])
    return hypervolume(done["accuracy_validation"].tolist(), done[energy].tolist(), worst) / worst


if __name__ == "__main__":
    main()
