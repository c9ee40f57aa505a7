"""Fronts of paths (path=…) beside the front of independent trainings: what each is worth, and what it costs.

``python scripts/compare_paths.py INDEPENDENT PATH … --hardware NAME [--output FILE.csv]``: folders of finished runs,
each with its own standard training, of the same seeds.
"""

import argparse
from pathlib import Path

import pandas as pd

from eat_runner.analysis.pareto import TOLERANCE, hypervolume
from eat_runner.analysis.table import collate, is_priced
from eat_runner.energy.hardware import load_hardware

POINTS = (0, 1)  # below standard training


def main() -> None:
    """Print the table, and write it where that is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--hardware", required=True)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    found = compare(options.folders, options.hardware)
    print(found.to_string(index=False, float_format="%.4f"))
    if options.output:
        found.to_csv(options.output, index=False, lineterminator="\n")


def compare(folders: list[Path], hardware: str) -> pd.DataFrame:
    """A row for each folder, means over the seeds that all have; the first is what the others are compared with.

    points: runs of a seed. epochs, core_seconds: of all of a seed's trainings. hypervolume: on the validation split,
    against accuracy 0 at what standard training needs without zero-skipping, as a share of that energy; gain: what it
    has more than standard training alone. energy_N: the lowest energy at most N points below standard training, as
    a share of its energy, both on the validation split. _share: beside the first folder's.
    """
    tables = {folder: _runs(folder, hardware) for folder in folders}
    worst = max(table.loc[table["is_baseline"], "dense"].max() for table in tables.values())
    seeds = set[int].intersection(*({*table["seed"]} for table in tables.values()))
    rows = [
        {"folder": folder.name, "seeds": len(seeds)} | pd.DataFrame(measured).mean().to_dict()
        for folder, table in tables.items()
        for measured in [[of_seed(runs, worst) for seed, runs in table.groupby("seed") if seed in seeds]]
    ]
    found = pd.DataFrame(rows)
    for key in ("epochs", "core_seconds", "hypervolume", "gain"):
        found[f"{key}_share"] = found[key] / found[key].iloc[0]
    return found.assign(hardware=hardware)


def _runs(folder: Path, hardware: str) -> pd.DataFrame:
    runs = collate(folder, load_hardware(hardware), "dataset")
    return runs[is_priced(runs)]


def of_seed(runs: pd.DataFrame, worst: float) -> dict[str, float]:
    accuracy, energy = runs["accuracy_validation"], runs["energy_validation"]
    standard = runs[runs["is_baseline"]].iloc[0]
    volume = hypervolume([*accuracy], [*energy], worst) / worst
    alone = hypervolume([standard["accuracy_validation"]], [standard["energy_validation"]], worst) / worst
    least = {
        f"energy_{points}": energy[accuracy >= standard["accuracy_validation"] - points / 100 - TOLERANCE].min()
        / standard["energy_validation"]
        for points in POINTS
    }
    cost = {"epochs": runs["epochs"].sum(), "core_seconds": runs["seconds"].sum()}
    return {"points": len(runs), **cost, "hypervolume": volume, "gain": volume - alone, **least}


if __name__ == "__main__":
    main()
