"""Runs -> settings (means over seeds), the front of each family, and the setting that the rule picks.

A setting is everything but the seed. A family is what shares a baseline, seeds aside: the points of one plot.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from statistics import fmean, stdev

from eat_runner.records import Scalar
from eat_runner.sweep import Run

POINTS = 0.03  # how much accuracy a selected setting may lose: 3 points
SELECTION_RULES = {
    "validation": "lowest energy ratio within 3 points of standard training's accuracy, both on the validation split",
    "paper": "the paper's rule: lowest energy ratio within 3 points of standard training's accuracy, both on the "
    "test split",
}
# measures that a rule looks at
ACCURACY = {"validation": "accuracy_validation", "paper": "accuracy"}
ENERGY = {"validation": "energy_ratio_validation", "paper": "energy_ratio"}
DESCRIPTION = (
    "family",
    "dataset",
    "model",
    "width",
    "penalty",
    "scope",
    "weighting",
    "lambda",
    "sigma",
    "schedule",
)
MEASURES = (
    "accuracy",
    "accuracy_validation",
    "energy_ratio",
    "energy_ratio_validation",
    "energy_decrease_percent",
    "energy_uj_per_image",
    "firing_rate",
    "firing_rate_test",
)
TOLERANCE = 1e-9  # a rounding error in a mean costs no setting its place


@dataclass(eq=False)
class Setting:
    """The finished runs that differ in the seed alone, by seed. Equal to itself alone."""

    runs: list[Run]

    @property
    def setting_id(self) -> str:
        return self.runs[0].setting_id

    @property
    def lambda_(self) -> float:
        return self.runs[0].lambda_ or 0.0

    @property
    def is_baseline(self) -> bool:
        return self.runs[0].is_baseline

    @property
    def n(self) -> int:
        """How many seeds."""
        return len(self.runs)

    def mean(self, measure: str) -> float | None:
        """Mean of a field of Run over the seeds that have it; None without one."""
        values = self._values(measure)
        return fmean(values) if values else None

    def std(self, measure: str) -> float | None:
        """Sample standard deviation over the seeds that have it; None for fewer than two."""
        values = self._values(measure)
        return stdev(values) if len(values) > 1 else None

    @cached_property
    def accuracy(self) -> float:
        """Mean accuracy on the test split."""
        return self.mean("accuracy") or 0.0

    @cached_property
    def energy_ratio(self) -> float:
        """Mean energy ratio on the test split."""
        return self.mean("energy_ratio") or 0.0

    def _values(self, measure: str) -> list[float]:
        return [value for run in self.runs if (value := getattr(run, measure)) is not None]


@dataclass
class Front:
    """One family's result. settings: by energy ratio. on_front: those that no other beats, by energy ratio.

    baseline: standard training (lambda 0). selected: what the rule picks. knee: see ``knee``. floor: mean of the runs'
    floors. hypervolume: see ``hypervolume``. remarks: what is missing or should be known, in sentences.
    """

    family: str
    settings: list[Setting]
    on_front: list[Setting]
    baseline: Setting | None
    selected: Setting | None
    knee: Setting | None
    floor: float | None
    hypervolume: float
    remarks: list[str]

    @property
    def seeds(self) -> tuple[int, int]:
        """Least and largest number of seeds of a setting."""
        counts = [setting.n for setting in self.settings]
        return min(counts), max(counts)

    def rows(self) -> list[dict[str, Scalar]]:
        """A row a setting, for pareto.csv: description, n, means, standard deviations, marks."""
        return [self._row(setting) for setting in self.settings]

    def _row(self, setting: Setting) -> dict[str, Scalar]:
        first = setting.runs[0].to_row()
        row = {key: first[key] for key in DESCRIPTION} | {"n": setting.n}
        for measure in MEASURES:
            row |= {measure: setting.mean(measure), f"{measure}_std": setting.std(measure)}
        return row | {
            "energy_floor": setting.mean("energy_floor"),
            "hardware": first["hardware"],
            "on_front": setting in self.on_front,
            "selected": setting is self.selected,
            "knee": setting is self.knee,
            "setting_id": setting.setting_id,
        }


def fronts(runs: Iterable[Run], selection: str = "validation", points: float = POINTS) -> list[Front]:
    """The front of every family among the runs of ``sweep.collate_runs``, by name; runs without energy are left out.

    selection: a key of SELECTION_RULES. points: how much accuracy (0.03 = 3 points) the selected setting may lose.
    """
    usable = sorted((run for run in runs if run.priced), key=lambda run: (run.family, run.setting_id, run.seed or 0))
    return [_front(family, list(group), selection, points) for family, group in groupby(usable, lambda r: r.family)]


def non_dominated(accuracy: Sequence[float], energy: Sequence[float]) -> list[int]:
    """Indices of the points that no other beats (at least as accurate for at most the energy, and better in one of
    the two), by energy. Of equal points all are kept."""
    front: list[int] = []
    for index in sorted(range(len(energy)), key=lambda i: (energy[i], -accuracy[i])):
        equal = front and (accuracy[index], energy[index]) == (accuracy[front[-1]], energy[front[-1]])
        if not front or equal or accuracy[index] > accuracy[front[-1]]:
            front.append(index)
    return front


def hypervolume(accuracy: Sequence[float], energy: Sequence[float]) -> float:
    """Area that the points dominate, against the worst case: accuracy 0 at energy ratio 1. From 0 to 1, the ideal."""
    front = [index for index in non_dominated(accuracy, energy) if energy[index] < 1]
    edges = [*(energy[index] for index in front), 1.0]
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
    settings: Iterable[Setting], baseline: Setting, selection: str = "validation", points: float = POINTS
) -> Setting | None:
    """What the rule picks (SELECTION_RULES); None where the baseline was not measured on the split it looks at.

    Seeds are compared in pairs: a setting that lacks a seed of the baseline (it diverged, or is not done) is no
    candidate, and of one with more seeds only the baseline's count. Of equals the more accurate setting is taken, then
    the smaller lambda. The baseline itself is a candidate.
    """
    accuracy_of, energy_of = ACCURACY[selection], ENERGY[selection]
    standard, seeds = baseline.mean(accuracy_of), {run.seed for run in baseline.runs}
    if standard is None:
        return None
    candidates: list[tuple[float, float, float, str, Setting]] = []
    for setting in settings:
        paired = Setting([run for run in setting.runs if run.seed in seeds])
        if paired.n < baseline.n:
            continue
        accuracy, energy = paired.mean(accuracy_of), paired.mean(energy_of)
        if accuracy is not None and energy is not None and accuracy >= standard - points - TOLERANCE:
            candidates.append((energy, -accuracy, setting.lambda_, setting.setting_id, setting))
    return min(candidates, key=lambda candidate: candidate[:-1])[-1] if candidates else None


def _front(family: str, runs: list[Run], selection: str, points: float) -> Front:
    settings = [Setting(list(group)) for _, group in groupby(runs, lambda run: run.setting_id)]
    settings.sort(key=lambda setting: (setting.energy_ratio, -setting.accuracy, setting.setting_id))
    accuracy = [setting.accuracy for setting in settings]
    energy = [setting.energy_ratio for setting in settings]
    on_front = [settings[index] for index in non_dominated(accuracy, energy)]
    bend = knee([setting.accuracy for setting in on_front], [setting.energy_ratio for setting in on_front])
    baseline = next((setting for setting in settings if setting.is_baseline), None)
    selected = None if baseline is None else select(settings, baseline, selection, points)
    floors = [run.energy_floor for run in runs if run.energy_floor is not None]
    return Front(
        family=family,
        settings=settings,
        on_front=on_front,
        baseline=baseline,
        selected=selected,
        knee=None if bend is None else on_front[bend],
        floor=fmean(floors) if floors else None,
        hypervolume=hypervolume(accuracy, energy),
        remarks=_remarks(settings, baseline, selected),
    )


def _remarks(settings: list[Setting], baseline: Setting | None, selected: Setting | None) -> list[str]:
    remarks: list[str] = []
    if baseline is None:
        remarks.append("no finished run with lambda=0: energy decrease is left empty and nothing is selected")
    elif selected is None:
        remarks.append("nothing is selected: there is no validation split (selection=paper looks at the test split)")
    elif selected is baseline:
        remarks.append("standard training itself is selected: nothing within 3 points of it needs less energy")
    lonely = sum(run.energy_decrease_percent is None for setting in settings for run in setting.runs)
    if baseline is not None and lonely:
        remarks.append(f"{lonely} of the runs have no baseline (lambda=0 with the same seed): no energy decrease")
    seeds = sorted({setting.n for setting in settings})
    if seeds == [1]:
        remarks.append("one seed a setting: there is no standard deviation")
    elif len(seeds) > 1:
        remarks.append(
            f"settings have {seeds[0]} to {seeds[-1]} seeds; only those with every seed of lambda=0 are selected"
        )
    return remarks
