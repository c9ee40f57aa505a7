"""The run for a need: the most accurate within an energy, or the one that needs least at an accuracy."""

from dataclasses import dataclass
from functools import partial

import pandas as pd

from eat_runner.analysis.families import over_seeds
from eat_runner.analysis.pareto import ACCURACY, ENERGY, SPLITS, Front
from eat_runner.analysis.table import is_priced
from eat_runner.config.hardware import HardwareConfig
from eat_runner.errors import UserError, printable

BETTER, CHEAPER = ["accuracy", "energy", "id"], ["energy", "accuracy", "id"]  # orders of settings, the first is chosen


@dataclass(frozen=True)
class Choice:
    """folder: of the run with the lowest seed. told: what it is, in a line."""

    folder: str
    told: str


def choose(
    front: Front,
    hardware: HardwareConfig,
    selection: str = "validation",
    max_uj: float | None = None,
    min_accuracy: float | None = None,
) -> Choice:
    """With ``max_uj`` the most accurate setting that needs at most so much an image (and, with ``min_accuracy``, is at
    least so accurate); without it the setting that needs least. Means over seeds, on the split that ``selection``
    names; of equals the cheaper, then the more accurate one, then the first setting_id.

    Raises UserError where none qualifies, which names the nearest setting: the most accurate within ``max_uj``, or,
    where nothing is within it, what needs least; for ``max_uj`` where prices are relative; where that split was not
    measured.
    """
    if max_uj is not None and hardware.relative:
        raise UserError(
            f"--max-uj: the prices of {hardware.name} are relative, so there are no joules: use --min-accuracy"
        )
    runs = front.runs
    accuracy, energy = (over_seeds(runs[key[selection]], runs["setting_id"]) for key in (ACCURACY, ENERGY))
    able = pd.DataFrame({"accuracy": accuracy, "energy": energy}).dropna().rename_axis("id").reset_index()
    if able.empty:
        raise UserError("no run has a validation split to choose on: --selection paper looks at the test split")
    told = partial(_told, front, hardware, SPLITS[selection].removesuffix(" split"))
    cheap = able if max_uj is None else able[able["energy"] <= max_uj]
    good = cheap if min_accuracy is None else cheap[cheap["accuracy"] >= min_accuracy]
    if good.empty:
        if cheap.empty:
            sense, nearest = "what needs least", _first(able, CHEAPER)
        else:
            sense, nearest = f"the most accurate{'' if max_uj is None else ' within the energy'}", _first(cheap, BETTER)
        raise UserError(f"no run {_asked(max_uj, min_accuracy)}: the nearest, {sense}, is {told(nearest)}")
    chosen = _first(good, CHEAPER if max_uj is None else BETTER)
    return Choice(front.runs_of(chosen["id"])["folder"].iloc[0], told(chosen))


def left_out(runs: pd.DataFrame) -> list[str]:
    """Which finished runs no choice can look at, a line a reason."""
    finished = runs[runs["status"] == "finished"]
    counts = finished.loc[~is_priced(finished), "reason"].value_counts()
    return [
        printable(
            f"{number} of {len(finished)} finished runs left out: {reason or 'no accuracy or no energy'} "
            "(--hardware names another price list)",
            longest=None,
        )
        for reason, number in counts.items()
    ]


def _first(settings: pd.DataFrame, by: list[str]) -> pd.Series:
    return settings.sort_values(by, ascending=[key != "accuracy" for key in by]).iloc[0]


def _asked(max_uj: float | None, min_accuracy: float | None) -> str:
    within = [] if max_uj is None else [f"needs at most {max_uj:g} uJ per image"]
    return " and ".join([*within, *([] if min_accuracy is None else [f"is at least {min_accuracy:g} accurate"])])


def _told(front: Front, hardware: HardwareConfig, split: str, setting: pd.Series) -> str:
    runs = front.runs_of(setting["id"])
    unit = "M MACs" if hardware.relative else "uJ"
    seeds = f"mean of {len(runs)} seeds" if len(runs) > 1 else "one seed"
    measured = f"{split} accuracy {setting['accuracy']:.4f}, {setting['energy']:.4g} {unit} per image"
    return f"{front.name_of(setting['id'])}: {measured} ({seeds})"
