"""The front of each family: the settings that no other beats, the area below them, and the one that the rule picks."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

import pandas as pd

from eat_runner.analysis.columns import OF_PRICES, Column, X, Y
from eat_runner.analysis.families import (
    DESCRIBING,
    MEASURES,
    at_same_seed,
    full_names,
    knobs_of,
    line_names,
    over_seeds,
    point_names,
    setting_names,
    settings,
)
from eat_runner.analysis.table import is_priced

POINTS = 0.03  # how much accuracy a selected setting may lose: 3 points
TOLERANCE = 1e-9  # a rounding error in a mean costs no setting its place
# the split that a rule looks at, and the columns that it compares there: accuracy, energy ratio, energy
SPLITS = {"validation": "validation split", "paper": "test split"}
ACCURACY = {"validation": "accuracy_validation", "paper": "accuracy"}
ENERGY_RATIO = {"validation": "energy_ratio_validation", "paper": "energy_ratio"}
ENERGY = {"validation": "energy_validation", "paper": "energy"}


@dataclass(frozen=True)
class Axes:
    """What a front compares: columns of columns.X and columns.Y. All are of the test split, but for y=validation."""

    x: Column = field(default_factory=lambda: X["ratio"])
    y: Column = field(default_factory=lambda: Y["accuracy"])

    @property
    def of_one_network(self) -> bool:
        """Whether x compares a network with itself: without zero-skipping."""
        return self.x is X["ratio"]

    def selected_by(self, selection: str) -> tuple[str, str]:
        """The columns of accuracy and energy that the rule looks at."""
        return ACCURACY[selection], (ENERGY_RATIO if self.of_one_network else ENERGY)[selection]


def rule(selection: str, axes: Axes) -> str:
    """What the rule picks, in words."""
    paper = "the paper's rule: " if selection == "paper" else ""
    energy, standard = ("energy ratio", "standard training") if axes.of_one_network else ("energy", "the reference")
    return f"{paper}lowest {energy} within 3 points of {standard}'s accuracy, both on the {SPLITS[selection]}"


@dataclass
class Front:
    """One family's result.

    settings: by setting_id, as ``families.settings``, sorted by x; on_front: no other beats it; selected: what the rule
    picks; knee: see ``knee``; name: what tells it from the others; short: from those of its network; line, point: which
    line of the front it is on, and what it is called there; full_name: where it stands alone. runs: theirs, by setting
    and seed. reference: the setting_id of the standard training (lambda 0) that the rule and relative energies look at.
    floor: mean of the runs' floors, where x is the ratio. worst: x of the point that hypervolume is taken against; its
    accuracy is 0. remarks: what is missing or should be known, in sentences.
    selected_at_corners: what the rule picks under the prices at each corner of the hardware's ranges
    (config/hardware.py, ``corners``), in order.
    """

    family: str
    axes: Axes
    settings: pd.DataFrame
    runs: pd.DataFrame
    reference: str | None
    floor: float | None
    worst: float
    hypervolume: float
    remarks: list[str]
    selected_at_corners: list[str | None] = field(default_factory=list[str | None])

    @property
    def selected(self) -> str | None:
        """The setting_id of what the rule picks."""
        return _only(self.settings, "selected")

    @property
    def seeds(self) -> tuple[int, int]:
        """Least and largest number of seeds of a setting."""
        return int(self.settings["n"].min()), int(self.settings["n"].max())

    def name_of(self, setting_id: str) -> str:
        """A name that tells it from all others of the front (``families.full_names``)."""
        return str(self.settings.at[setting_id, "full_name"])

    def runs_of(self, setting_id: str) -> pd.DataFrame:
        """A setting's runs, by seed."""
        return self.runs[self.runs["setting_id"] == setting_id]

    def own_baseline(self, setting_id: str) -> str | None:
        """Standard training of that setting's network."""
        network = self.settings["network"] == self.settings.at[setting_id, "network"]
        return _only(self.settings[network], "is_baseline")


def _only(settings: pd.DataFrame, mark: str) -> str | None:
    return next(iter(settings.index[settings[mark]]), None)


def fronts(
    runs: pd.DataFrame, selection: str = "validation", points: float = POINTS, axes: Axes | None = None
) -> list[Front]:
    """The front of every family among the runs of ``table.collate``, by name; runs without x or y are left out, and so
    are families without a reference where x is relative to it.

    selection: a key of SPLITS. points: how much accuracy (0.03 = 3 points) the selected setting may lose.
    """
    axes = axes or Axes()
    usable = runs[is_priced(runs) & runs[axes.y.key].notna()].sort_values(["family", "setting_id", "seed"])
    found = [_front(str(family), group, selection, points, axes) for family, group in usable.groupby("family")]
    return [front for front in found if front is not None]


def _front(family: str, runs: pd.DataFrame, selection: str, points: float, axes: Axes) -> Front | None:
    reference = _reference(runs)
    if not axes.of_one_network and reference is not None:
        runs = _beside(reference, runs)
    x, y = axes.x.key, axes.y.key
    if x not in runs.columns or runs[x].isna().all():
        return None
    table = settings(runs).reset_index().sort_values([x, y, "setting_id"], ascending=[True, False, True])
    table = table.set_index("setting_id")
    table["short"] = table["name"] = setting_names(table)
    if table["network"].nunique() > 1:
        table["name"] = table["network"] + ", " + table["short"]
    table["line"] = line_names(table, reference)
    table["point"] = point_names(table, reference)
    table["full_name"] = full_names(table)
    accuracy, energy = table[y].tolist(), table[x].tolist()
    on_front = non_dominated(accuracy, energy)
    bend = knee([accuracy[i] for i in on_front], [energy[i] for i in on_front])
    table["on_front"] = table.index.isin(table.index[on_front])
    chosen = None if reference is None else select(runs, reference, selection, points, axes)
    table["selected"] = table.index.isin([chosen])
    table["knee"] = table.index.isin([] if bend is None else [table.index[on_front[bend]]])
    floors = runs["energy_floor"].dropna()
    worst = _worst(table, reference, axes)
    return Front(
        family=family,
        axes=axes,
        settings=table,
        runs=runs,
        reference=reference,
        floor=fmean(floors) if len(floors) and axes.of_one_network else None,
        worst=worst,
        hypervolume=hypervolume(accuracy, energy, worst),
        remarks=_remarks(table, runs, reference, axes),
        selected_at_corners=_selected_at_corners(runs, selection, points, axes),
    )


def _selected_at_corners(runs: pd.DataFrame, selection: str, points: float, axes: Axes) -> list[str | None]:
    found: list[str | None] = []
    for corner in range(min(runs["corners"].map(len))):
        there = pd.DataFrame([prices[corner] for prices in runs["corners"]], runs.index, list(OF_PRICES), "float64")
        repriced = runs.assign(**there)
        reference = _reference(repriced)
        found.append(None if reference is None else select(repriced, reference, selection, points, axes))
    return found


def _reference(runs: pd.DataFrame) -> str | None:
    """Standard training of the network that needs most without zero-skipping; of equals the more accurate one on the
    validation split, then the first setting_id. One that began with another run's network counts where all do."""
    standard = runs[runs["is_baseline"]]
    fresh = standard[standard["parent"] == ""]
    means = (standard if fresh.empty else fresh).groupby("setting_id")[["dense", "accuracy_validation"]].mean()
    return next(iter(means.sort_values(["dense", "accuracy_validation"], ascending=False).index), None)


def _beside(reference: str, runs: pd.DataFrame) -> pd.DataFrame:
    """The runs with what columns.AGAINST_REFERENCE needs: energy relative to the reference's mean, and the difference
    in accuracy from its run with the same seed."""
    energy = fmean(runs.loc[runs["setting_id"] == reference, "energy"])
    difference = runs["accuracy"] - at_same_seed(runs, reference, "accuracy")
    return runs.assign(energy_relative=runs["energy"] / energy, accuracy_difference=difference)


def _worst(table: pd.DataFrame, reference: str | None, axes: Axes) -> float:
    """What the reference needs without zero-skipping, in the unit of x; without a reference, what the largest needs."""
    if axes.of_one_network:
        return 1.0
    if reference is None:
        return float(table["dense"].max())
    unit = table.at[reference, "energy"] if axes.x.key == "energy_relative" else 1.0
    return float(table.at[reference, "dense"] / unit)


def pareto_table(found: Sequence[Front]) -> pd.DataFrame:
    """pareto.csv: a row a setting: what describes it, n, means, deviations, marks."""
    tables = [_written(front) for front in found]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=["family", *DESCRIBING])


def _written(front: Front) -> pd.DataFrame:
    table = front.settings.reset_index()
    if "accuracy_difference" in front.runs.columns:
        by_setting = front.runs["accuracy_difference"].notna().groupby(front.runs["setting_id"])
        table["pairs"] = table["setting_id"].map(by_setting.sum())
    measures = [name for key in MEASURES if key in table.columns for name in (key, f"{key}_std")]
    pairs = ["pairs"] if "pairs" in table.columns else []
    marks = ["on_front", "selected", "knee", "setting_id"]
    head = ["family", *DESCRIBING, *knobs_of(front.runs), "n"]
    return table[[*head, *measures, *pairs, "energy_floor", "hardware", *marks]]


def non_dominated(accuracy: Sequence[float], energy: Sequence[float]) -> list[int]:
    """Indices of the points that no other beats (at least as accurate for at most the energy, and better in one of
    the two), by energy. Of equal points all are kept."""
    front: list[int] = []
    for index in sorted(range(len(energy)), key=lambda i: (energy[i], -accuracy[i])):
        equal = front and (accuracy[index], energy[index]) == (accuracy[front[-1]], energy[front[-1]])
        if not front or equal or accuracy[index] > accuracy[front[-1]]:
            front.append(index)
    return front


def hypervolume(accuracy: Sequence[float], energy: Sequence[float], worst: float = 1.0) -> float:
    """Area that the points dominate, against accuracy 0 at the energy ``worst``, in the unit of energy. Of ratios,
    whose worst is 1, it goes from 0 to 1, the ideal."""
    front = [index for index in non_dominated(accuracy, energy) if energy[index] < worst]
    edges = [*(energy[index] for index in front), worst]
    return sum((edges[i + 1] - edges[i]) * accuracy[index] for i, index in enumerate(front))


def knee(accuracy: Sequence[float], energy: Sequence[float]) -> int | None:
    """Index of the point farthest above the line between a front's two ends, both axes scaled to [0, 1].

    The points are a front's, by energy. None where none lies above that line.
    """
    if len(accuracy) < 3 or accuracy[0] == accuracy[-1] or energy[0] == energy[-1]:
        return None
    above = [
        (a - accuracy[0]) / (accuracy[-1] - accuracy[0]) - (e - energy[0]) / (energy[-1] - energy[0])
        for a, e in zip(accuracy, energy, strict=True)
    ]
    return above.index(max(above)) if max(above) > TOLERANCE else None


def select(
    runs: pd.DataFrame,
    reference: str,
    selection: str = "validation",
    points: float = POINTS,
    axes: Axes | None = None,
    reference_too: bool = True,
) -> str | None:
    """The setting_id that the rule picks (``rule``); None where the reference was not measured on the split it is for.

    Seeds are compared in pairs: a setting that lacks a seed of the reference (it diverged, or is not done) is no
    candidate, and of one with more seeds only the reference's count. Of equals the more accurate setting is taken, then
    the smaller lambda. reference_too: the reference itself is a candidate.
    """
    accuracy_of, energy_of = (axes or Axes()).selected_by(selection)
    standard = runs[runs["setting_id"] == reference]
    if standard[accuracy_of].isna().all():
        return None
    paired = runs[runs["seed"].isin(standard["seed"])]
    means = pd.DataFrame({key: over_seeds(paired[key], paired["setting_id"]) for key in (accuracy_of, energy_of)})
    by_setting = paired.groupby("setting_id")
    means = means.assign(n=by_setting.size(), lambda_=by_setting["lambda"].first()).rename_axis("id").reset_index()
    least = fmean(standard[accuracy_of].dropna()) - points - TOLERANCE
    candidates = means[(means["n"] >= len(standard)) & (means[accuracy_of] >= least)].dropna(subset=[energy_of])
    candidates = candidates if reference_too else candidates[candidates["id"] != reference]
    best = candidates.sort_values([energy_of, accuracy_of, "lambda_", "id"], ascending=[True, False, True, True])
    return next(iter(best["id"]), None)


def _remarks(table: pd.DataFrame, runs: pd.DataFrame, reference: str | None, axes: Axes) -> list[str]:
    remarks: list[str] = []
    selected = _only(table, "selected")
    if reference is None:
        remarks.append("no finished run with lambda=0: energy decrease is left empty and nothing is selected")
    elif selected is None:
        remarks.append("nothing is selected: there is no validation split (selection=paper looks at the test split)")
    elif selected == reference:
        remarks.append("standard training itself is selected: nothing within 3 points of it needs less energy")
    if axes.of_one_network and table["network"].nunique() > 1:
        remarks.append("a ratio compares a network with itself: --x energy says which of several needs less")
    lonely = int(runs["energy_decrease_percent"].isna().sum())
    if axes.of_one_network and reference is not None and lonely:
        remarks.append(f"{lonely} of the runs have no baseline (lambda=0 with the same seed): no energy decrease")
    least, most = int(table["n"].min()), int(table["n"].max())
    if most == 1:
        remarks.append("one seed a setting: there is no standard deviation")
    elif least < most:
        remarks.append(f"settings have {least} to {most} seeds; only those with every seed of lambda=0 are selected")
    return remarks
