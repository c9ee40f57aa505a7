"""What a search came to: a table of its trials with the hypervolume over them, its plot, and which keys mattered."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import optuna
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.trial import TrialState

from eat_runner.analysis.pareto import hypervolume
from eat_runner.analysis.rows import Row
from eat_runner.records import Scalar, csv_bytes, write_atomically
from eat_runner.report.plots import EAT_COLOUR, STYLE, save
from eat_runner.search.study import RUN, SEEDED, Search

TABLE, PLOT = "search.csv", "search"
REFUSED, UNDER_WAY = "refused", "under way"
ACCURACY, VOLUME = "accuracy_validation", "hypervolume"
LEAST_FOR_IMPORTANCE = 10  # finished trials

Trials = list[dict[str, Scalar]]


@dataclass(frozen=True)
class Outcome:
    """trials: rows of search.csv. volumes: the hypervolume of the first, the first two, … of them. worst: energy per
    image of the point that it is taken against: what the costliest network among the trials needs without
    zero-skipping; accuracy is 0 there. unit: of energies. importance: by key, together 1; empty where too few trials
    are finished."""

    trials: Trials
    volumes: list[float]
    worst: float
    unit: str
    importance: dict[str, float]

    @property
    def lines(self) -> list[str]:
        """What a person is told."""
        statuses = [str(row["status"]) for row in self.trials]
        counts = ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses))
        seeded = sum(bool(row["seeded"]) for row in self.trials)
        there_before = f"; {seeded} of them were there before the search" if seeded else ""
        lines = [f"search: {len(self.trials)} trials: {counts}{there_before}"]
        if self.volumes:
            lines.append(
                f"hypervolume {self.volumes[-1]:.4f} of 1, on the validation split, against accuracy 0 at "
                f"{self.worst:.4g} {self.unit} per image"
            )
        if self.importance:
            shares = "  ".join(f"{key} {share:.2f}" for key, share in self.importance.items())
            lines.append(f"importance for being near the front (PED-ANOVA): {shares}")
        lines += [f"refused: trial {row['trial']}: {row['reason']}" for row in self.trials if row["status"] == REFUSED]
        return lines


def outcome(search: Search) -> Outcome:
    """Of the study as it is."""
    unit = "million MACs" if search.hardware.relative else "uJ"
    energy = "energy_validation_macs" if search.hardware.relative else "energy_validation_uj"
    own, worst = 0, 0.0
    rows: Trials = []
    points: list[tuple[float, float]] = []
    for trial in search.all_trials():
        run, seeded = trial.user_attrs[RUN], SEEDED in trial.user_attrs
        own += not seeded
        row: Row = {"status": REFUSED, "reason": run.get("reason", ""), "dense": None}
        if run["run_id"]:
            row = search.row(run["run_id"])
        status = UNDER_WAY if trial.state == TrialState.RUNNING and row["status"] != "failed" else row["status"]
        worst = max(worst, row["dense"] or 0.0)
        values: list[float] | None = trial.values if trial.state == TrialState.COMPLETE else None
        points.append((values[0], values[1]) if values else (0.0, math.inf))
        rows.append(
            {"trial": None if seeded else own, "seeded": int(seeded), "status": status}
            | {key: run["point"].get(key) for key in search.space}
            | {ACCURACY: values[0] if values else None, energy: values[1] if values else None, "dense": row["dense"]}
            | {VOLUME: None, "run_id": run["run_id"], "reason": row["reason"]}
        )
    volumes = [_share(points[:number], worst) for number in range(1, len(points) + 1)] if worst > 0 else []
    for trial, volume in zip(rows, volumes, strict=False):
        trial[VOLUME] = volume
    return Outcome(rows, volumes, worst, unit, importance(search.study))


def _share(points: Sequence[tuple[float, float]], worst: float) -> float:
    accuracies, energies = zip(*points, strict=True)
    return hypervolume(accuracies, energies, worst) / worst


def importance(study: optuna.Study) -> dict[str, float]:
    """How much each key decides whether a finished trial is among the best by rank of non-domination, together 1, the
    most important first: PED-ANOVA (Watanabe et al., IJCAI 2023, arXiv 2304.10255), as Optuna has it. Empty where too
    few trials are finished, or only one value was tried."""
    if len(study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])) < LEAST_FOR_IMPORTANCE:
        return {}
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))


def write(found: Outcome, folder: Path) -> list[Path]:
    """search.csv, search.png and search.svg; the paths. Raises OSError."""
    write_atomically(folder / TABLE, csv_bytes(found.trials))
    return [folder / TABLE, *save(_figure(found), folder / PLOT)]


def _figure(found: Outcome) -> Figure:
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.8, 3.6), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        axes.step(range(1, len(found.volumes) + 1), found.volumes, where="post", color=EAT_COLOUR)
        axes.set_title(f"Hypervolume against accuracy 0 at {found.worst:.4g} {found.unit} (validation split)")
        axes.set_xlabel("trials, those that were there before the search first")
        axes.set_ylabel("hypervolume (1: all of it)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure
