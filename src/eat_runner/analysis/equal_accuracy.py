"""What each method needs at equal accuracy: settings chosen on the validation split, compared seed by seed on the test
split."""

import io
import zlib
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from eat_runner.analysis.methods import MAGNITUDE, NARROW
from eat_runner.analysis.pareto import TOLERANCE, Front
from eat_runner.errors import UserError
from eat_runner.records import RunFolder

ALLOWANCES = (0, 1, 3)  # points below the reference's mean accuracy on the validation split
SIMPLE = (MAGNITUDE, NARROW)  # what every other method is to be compared with, beside the reference
CONFIDENCE, RESAMPLES, SEED = 0.95, 2000, 0  # of the bootstrap
BATCH = 100  # resamples at a time: 10 MB for each 10,000 images
# equal_accuracy.csv. A row is a line of the front at an allowance; a line that nothing of is within it has none.
COLUMNS = """family allowance hardware method setting setting_id n seeds accuracy_validation accuracy
accuracy_difference accuracy_difference_low accuracy_difference_high energy_uj_per_image energy_relative energy_decrease
energy_ratios energy_ratio_min energy_ratio_max energy_verdict
simple simple_ratios simple_ratio_min simple_ratio_max simple_verdict""".split()

Answers = tuple[NDArray[np.int64], NDArray[np.int64]]  # labels and predicted classes of the test split


def equal_accuracy(front: Front) -> tuple[pd.DataFrame, list[str]]:
    """A row (COLUMNS) for each line of the front and each of ALLOWANCES: of the line's settings, the one with the
    lowest mean energy whose mean accuracy, both on the validation split, is at most so many points below the
    reference's, and what it has on the test split. Beside the table: files that could not be used, a line each.

    Means are over the seeds that the reference has, too, and of a line's settings only those with most of them count.
    energy_ratios: E / E_ST of each seed, in energy; energy_decrease: the mean of 1 - E / E_ST. accuracy_difference:
    from the reference's run with the same seed, with the CONFIDENCE interval over test images, which is empty for runs
    without predictions. simple: which of SIMPLE needs less at this allowance, on the validation split; simple_ratios:
    the energy beside that one's.
    """
    pairs = _pairs(front)
    means = _means(front, pairs)
    intervals = Intervals(front, pairs)
    rows: list[dict[str, Any]] = []
    for points in ALLOWANCES:
        within = means[means["loss"] <= points / 100 + TOLERANCE]
        order = within.sort_values(
            ["energy", "accuracy", "lambda", "setting_id"], ascending=[True, False, True, True], kind="stable"
        )
        chosen = order.drop_duplicates("line")
        simple = next(iter(chosen.index[chosen["line"].isin(SIMPLE)]), None)
        rows += [
            {"family": front.family, "allowance": points}
            | _setting(front, pairs[pairs["setting_id"] == setting_id], setting_id, intervals)
            | _beside(front, pairs, setting_id, simple)
            for setting_id in chosen.index
        ]
    return pd.DataFrame(rows, columns=COLUMNS), intervals.problems


def _pairs(front: Front) -> pd.DataFrame:
    """The runs whose seed the reference has, too, each with what the reference's run has (``_st``)."""
    keys = ["setting_id", "seed", "accuracy", "accuracy_validation", "energy", "energy_validation", "folder"]
    more = ["energy_uj_per_image"]
    runs = front.runs.drop_duplicates(["setting_id", "seed"]).dropna(
        subset=["accuracy_validation", "energy_validation"]
    )
    standard = runs.loc[runs["setting_id"] == front.reference, keys].drop(columns="setting_id")
    return runs[keys + more].merge(standard, on="seed", suffixes=("", "_st")).sort_values(["setting_id", "seed"])


def _means(front: Front, pairs: pd.DataFrame) -> pd.DataFrame:
    """By setting_id, on the validation split: accuracy, its loss against the reference, energy; n and line beside."""
    by_setting = pairs.groupby("setting_id")
    keys = {"accuracy": "accuracy_validation", "standard": "accuracy_validation_st", "energy": "energy_validation"}
    means = pd.DataFrame({name: by_setting[key].agg(fmean) for name, key in keys.items()})
    means = means.assign(n=by_setting.size(), loss=means["standard"] - means["accuracy"])
    means = means.join(front.settings[["line", "lambda"]])
    return means[means["n"] == means.groupby("line")["n"].transform("max")]


def _setting(front: Front, pairs: pd.DataFrame, setting_id: str, intervals: "Intervals") -> dict[str, Any]:
    """What a chosen setting has on the test split, beside the reference. pairs: its own."""
    ratios = (pairs["energy"] / pairs["energy_st"]).tolist()
    low, high = intervals.of(setting_id) or (None, None)
    about = front.settings.loc[setting_id]
    return {
        "hardware": about["hardware"],
        "method": about["line"],
        "setting": about["point"],
        "setting_id": setting_id,
        "n": len(pairs),
        "seeds": _listed(pairs["seed"].tolist()),
        "accuracy_validation": fmean(pairs["accuracy_validation"]),
        "accuracy": fmean(pairs["accuracy"]),
        "accuracy_difference": fmean(pairs["accuracy"] - pairs["accuracy_st"]),
        "accuracy_difference_low": low,
        "accuracy_difference_high": high,
        "energy_uj_per_image": fmean(pairs["energy_uj_per_image"]),
        "energy_relative": fmean(pairs["energy"]) / fmean(pairs["energy_st"]),
        "energy_decrease": fmean(1 - ratio for ratio in ratios),
    } | _ratios("energy", ratios, setting_id == front.reference)


def _beside(front: Front, pairs: pd.DataFrame, setting_id: str, simple: str | None) -> dict[str, Any]:
    """The energies of a setting beside those of the simple one, of the same seeds; nothing for that one itself."""
    if simple is None or setting_id == simple:
        return {}
    own, other = (pairs[pairs["setting_id"] == each].set_index("seed")["energy"] for each in (setting_id, simple))
    ratios = (own / other).dropna().tolist()
    return {"simple": front.settings.at[simple, "line"]} | _ratios("simple", ratios)


def _ratios(name: str, ratios: Sequence[float], itself: bool = False) -> dict[str, Any]:
    return {
        f"{name}_ratios": _listed([f"{ratio:.4g}" for ratio in ratios]),
        f"{name}_ratio_min": min(ratios, default=None),
        f"{name}_ratio_max": max(ratios, default=None),
        f"{name}_verdict": "" if itself else verdict(ratios),
    }


def verdict(ratios: Sequence[float]) -> str:
    """What pairs of energies say, in words: nothing is claimed of one seed, and no more than every seed shows."""
    n, lower, higher = len(ratios), sum(ratio < 1 for ratio in ratios), sum(ratio > 1 for ratio in ratios)
    if n < 2:
        return "one seed, no claim" if n else ""
    for word, count in (("lower", lower), ("higher", higher)):
        if count == n:
            return f"{word} energy in every one of {n} seeds"
    return f"lower energy in {lower} of {n} seeds"


def _listed(values: Sequence[Any]) -> str:
    return " ".join(map(str, values))


# --- intervals -----------------------------------------------------------------------------------------------------


class Intervals:
    """Of the accuracy that a setting of a front has more than its reference: read for those that are asked for alone.
    problems: files that could not be used, a line each."""

    def __init__(self, front: Front, pairs: pd.DataFrame):
        self.reference, self.pairs = front.reference, pairs
        self.problems: list[str] = []
        self._answers: dict[str, Answers | None] = {}
        self._found: dict[str, tuple[float, float] | None] = {}

    def of(self, setting_id: str) -> tuple[float, float] | None:
        """None for the reference itself, and where a run has no predictions, or they are of other images."""
        if setting_id not in self._found:
            self._found[setting_id] = None if setting_id == self.reference else self._interval(setting_id)
        return self._found[setting_id]

    def _interval(self, setting_id: str) -> tuple[float, float] | None:
        pairs = self.pairs[self.pairs["setting_id"] == setting_id]
        gains: list[NDArray[np.float64]] = []
        for folder, standard in zip(pairs["folder"], pairs["folder_st"], strict=True):
            ours, theirs = self._read(folder), self._read(standard)
            if ours is None or theirs is None or not np.array_equal(ours[0], theirs[0]):
                return None
            gains.append(_right(ours) - _right(theirs))
        if any(len(gain) != len(gains[0]) for gain in gains):
            return None
        return bootstrap(np.mean(gains, axis=0))

    def _read(self, folder: str) -> Answers | None:
        if folder not in self._answers:
            try:
                self._answers[folder] = read_answers(RunFolder(folder))
            except UserError as error:
                self._answers[folder] = None
                self.problems.append(f"no interval: {error}")
        return self._answers[folder]


def read_answers(folder: RunFolder) -> Answers | None:
    """Labels and predicted classes of the test split; None for a run of an earlier version, which kept none. UserError
    where the file is damaged."""
    data = folder.predictions_bytes()
    if data is None:
        return None
    try:
        table = pd.read_csv(io.BytesIO(data), compression="gzip", dtype={"label": "int64", "predicted": "int64"})
        test = table[table["split"] == "test"]
        return test["label"].to_numpy(), test["predicted"].to_numpy()
    except (OSError, EOFError, ValueError, KeyError, zlib.error) as error:
        raise UserError(f"{folder.predictions} is damaged ({type(error).__name__}: {error})") from error


def _right(answers: Answers) -> NDArray[np.float64]:
    labels, predicted = answers
    return (labels == predicted).astype(np.float64)


def bootstrap(gains: NDArray[np.float64]) -> tuple[float, float]:
    """The CONFIDENCE interval of a mean over images: percentiles of resampled means (Efron, Tibshirani 1993, ch. 13).

    gains: for each image 1 where the one network is right and the other wrong, -1 the other way round, averaged over
    the seeds: all seeds have the same images, so an image that is drawn is drawn for all of them.
    """
    from scipy import stats  # half a second to import, and only for runs with predictions

    found = stats.bootstrap(
        (gains,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=BATCH,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(SEED),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)
