"""What stands beside each other: families of runs, settings over their seeds, and pairs of the same seed."""

from collections.abc import Iterable
from statistics import fmean, stdev
from typing import Any

import pandas as pd

from eat_runner.analysis.columns import AGAINST_REFERENCE, COLUMNS
from eat_runner.analysis.rows import Common
from eat_runner.config.groups import method_groups
from eat_runner.config.identity import digest
from eat_runner.config.method import NONE
from eat_runner.errors import printable

# what runs of a family by data set share
SPLIT = frozenset({"data", "dataset.name", "dataset.image_size", "dataset.validation"})
NAMED = frozenset({"dataset.name", "model.name", "model.arch", "model.width"})
DESCRIBING = [column.key for column in COLUMNS if column.describes]
MEASURES = [column.key for column in (*COLUMNS, *AGAINST_REFERENCE) if column.measure]


def label_families(runs: pd.DataFrame, by: str = "family") -> pd.DataFrame:
    """The runs with ``family``, a readable name of what they share, and ``network``, of what else tells them apart.

    by: what a family is (columns.BY). Runs that do not say what determined them share a family without a name.
    """
    groups: dict[Common, tuple[str, str]] = {}
    for common, dataset, model in zip(runs["common"], runs["dataset"], runs["model"], strict=True):
        groups.setdefault(common, (dataset, model))
    telling = _telling(groups)
    owners: dict[str, Common] = {}
    labels: dict[Common, tuple[str, str]] = {(): ("", "")}
    for common in sorted(filter(None, groups)):
        dataset, model = groups[common]
        width = dict(common).get("model.width")  # only there where it is not the standard network's
        network = model if width is None else f"{model}, width {width}"
        told = {key: f"{key}={value:.40}" for key, value in common if key in telling}
        if by == "dataset":
            shared = tuple(item for item in common if item[0] in SPLIT)
            family = _name(dataset, *(text for key, text in told.items() if key in SPLIT - {"data"}))
        else:
            shared = common
            family = _name(f"{dataset} · {network}", *told.values())
        if owners.setdefault(family, shared) != shared:
            family = f"{family} ({digest(shared)})"
        labels[common] = family, _name(network, *(text for key, text in told.items() if key not in SPLIT))
    names = pd.DataFrame([labels[common] for common in runs["common"]], runs.index, ["family", "network"], "object")
    return runs.assign(family=names["family"], network=names["network"])


def _telling(groups: Iterable[Common]) -> set[str]:
    """The keys, of those that have no place of their own in a name, whose values are not the same everywhere."""
    known = [dict(common) for common in groups if common]
    keys = {key for values in known for key in values} - NAMED
    return {key for key in keys if len({values.get(key) for values in known}) > 1}


def _name(*parts: str) -> str:
    return printable(", ".join(parts))


def settings(runs: pd.DataFrame) -> pd.DataFrame:
    """A row a setting, by its setting_id: what describes it, n (its seeds), mean and sample deviation (``_std``, of two
    or more) of every measure over the seeds that have it. Exactly rounded: the order of the runs changes no bit."""
    by_setting = runs["setting_id"]
    constant = ["family", *DESCRIBING, *knobs_of(runs), "hardware", "is_baseline", "network"]
    table = runs.drop_duplicates("setting_id").set_index("setting_id")[constant]
    table["n"] = runs.groupby("setting_id").size()
    for measure in [key for key in MEASURES if key in runs.columns]:
        table[measure] = over_seeds(runs[measure], by_setting)
        table[f"{measure}_std"] = runs[measure].dropna().groupby(by_setting).agg(_deviation)
    for key in ("energy_floor", "energy", "dense"):
        table[key] = over_seeds(runs[key], by_setting)
    return table


def setting_names(table: pd.DataFrame) -> pd.Series:
    """A short name for each setting: its lambda, and whatever else, beside its network, differs among the settings that
    are no standard training."""
    trained = table[~table["is_baseline"]]
    keys = ["sigma", "schedule", "penalty", "scope", "weighting", *knobs_of(table)]
    differing = [key for key in keys if len(set(filter(_says_something, trained[key]))) > 1]
    names: list[str] = []
    for setting in table.to_dict("records"):
        methods = [f"{key} {setting[key]}" for key in method_groups() if isinstance(setting.get(key), str)]
        name = methods if methods and not setting["lambda"] else [f"λ {setting['lambda']:g}", *methods]
        if not setting["is_baseline"]:
            told = [key for key in differing if key not in method_groups() and _says_something(setting[key])]
            name += [_told(key, setting[key]) for key in told]
        names.append(", ".join(name))
    return pd.Series(names, table.index, dtype="object")


def _says_something(value: Any) -> bool:
    return value not in {"", NONE, None} and value == value


def _told(key: str, value: Any) -> str:
    if key == "sigma":
        return f"σ {_power(value)}"
    return f"{key.partition('.')[2]} {value}" if "." in key else str(value)


def _power(value: float) -> str:
    """1e-4 for 0.0001; short and with no leading zeros in the exponent."""
    mantissa, _, exponent = f"{value:e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}" if value < 0.01 or value >= 1000 else f"{value:g}"


def knobs_of(runs: pd.DataFrame) -> list[str]:
    """The columns that are there because their values vary: what no list has."""
    return [key for key in runs.columns if "." in key or key in method_groups()]


def over_seeds(values: pd.Series, by_setting: pd.Series) -> pd.Series:
    """Each setting's mean over the runs that have a value."""
    return values.dropna().groupby(by_setting).agg(fmean)


def _deviation(values: pd.Series) -> float:
    return stdev(values) if len(values) > 1 else float("nan")


def at_same_seed(runs: pd.DataFrame, reference_id: str, measure: str) -> pd.Series:
    """For each run the measure of the reference's run with the same seed; NaN where the reference lacks the seed."""
    reference = runs[runs["setting_id"] == reference_id].drop_duplicates("seed").set_index("seed")[measure]
    return runs["seed"].map(reference).astype("float64")
