"""What stands beside each other: families of runs, settings over their seeds, and pairs of the same seed."""

from collections.abc import Iterable, Mapping
from statistics import fmean, stdev
from typing import Any

import pandas as pd

from eat_runner.analysis.columns import AGAINST_REFERENCE, COLUMNS
from eat_runner.analysis.methods import NARROW, STANDARD
from eat_runner.analysis.rows import Common
from eat_runner.config.groups import GROUPS, method_groups
from eat_runner.config.identity import BUDGETS, digest
from eat_runner.config.method import NONE
from eat_runner.errors import printable

# what runs of a family by data set share
SPLIT = frozenset({"data", "dataset.name", "dataset.image_size", "dataset.validation"})
NAMED = frozenset({"dataset.name", "model.name", "model.arch", "model.width"})
DESCRIBING = [column.key for column in COLUMNS if column.describes]
# columns that tell settings apart in their names, beside lambda and knobs
NAMING = ("sigma", "schedule", "penalty", "scope", "weighting", "trained_for")
TOLD_ELSEWHERE = NAMED | {"data"}  # by columns of their own
HOW_MUCH = "pruning.density"
PRICES = "hardware."  # knobs of the hardware that a run was trained for
MEASURES = [column.key for column in (*COLUMNS, *AGAINST_REFERENCE) if column.measure]


def label_families(runs: pd.DataFrame, by: str = "family") -> pd.DataFrame:
    """The runs with ``family``, a readable name of what they share, and ``network``, of what else tells them apart.

    by: what a family is (columns.BY). Runs that do not say what determined them share a family without a name.
    """
    groups: dict[Common, tuple[str, str]] = {}
    for common, dataset, model in zip(runs["common"], runs["dataset"], runs["model"], strict=True):
        groups.setdefault(common, (dataset, model))
    telling, here = _telling(groups), set(runs["run_id"])
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
            told = {key: text for key, text in told.items() if key != "parent" or dict(common)[key] not in here}
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
    are no standard training. A value that is as usual is told only where its method's settings differ in it."""
    trained = table[~table["is_baseline"]]
    differing = [key for key in [*NAMING, *knobs_of(table)] if _differs(trained, key)]
    if "trained_for" in differing:  # the file's name stands for its prices
        differing = [key for key in differing if not key.startswith(PRICES)]
    within = {
        method: {key for key in differing if _differs(settings, key)} for method, settings in trained.groupby("method")
    }
    names: list[str] = []
    for setting in table.to_dict("records"):
        methods = [f"{key} {setting[key]}" for key in method_groups() if isinstance(setting.get(key), str)]
        name = methods if methods and not setting["lambda"] else [f"λ {setting['lambda']:g}", *methods]
        if not setting["is_baseline"]:
            told = [key for key in differing if key not in method_groups() and _says_something(setting[key])]
            told = [key for key in told if key in within[setting["method"]] or not _is_usual(key, setting[key])]
            name += [_told(key, setting[key]) for key in told]
        names.append(", ".join(name))
    return pd.Series(names, table.index, dtype="object")


def line_names(table: pd.DataFrame, reference: str | None) -> pd.Series:
    """For each setting the line of a front that it belongs to: its method, and, where it is not the reference's, its
    model. Standard training of another width of that model is a line of its own."""
    of = None if reference is None else table.loc[[reference]].to_dict("records")[0]
    names: list[str] = []
    for setting in table.to_dict("records"):
        ours = of is None or setting["model"] == of["model"]
        standard = setting["method"] == STANDARD
        if not ours:
            names.append(f"dense {setting['model']}" if standard else f"{setting['method']}, {setting['model']}")
        elif standard and of is not None and str(setting["width"]) != str(of["width"]):
            names.append(NARROW)
        else:
            names.append(setting["method"])
    return pd.Series(names, table.index, dtype="object")


def point_names(table: pd.DataFrame, reference: str | None) -> pd.Series:
    """What tells a setting from the others of its line (column ``line``): network, lambda, knobs."""
    networks = set(table["network"] if reference is None else table.loc[[reference], "network"])
    network = networks.pop() if len(networks) == 1 else ""  # that goes without saying
    names: list[str] = []
    for setting, knobs in zip(table.to_dict("records"), _told_knobs(table), strict=True):
        same = setting["network"] == network and setting["method"] != STANDARD
        names.append(", ".join([*([] if same else [_without_model(setting)]), *knobs]) or setting["line"])
    return pd.Series(names, table.index, dtype="object")


def full_names(table: pd.DataFrame) -> pd.Series:
    """A name for each setting that tells it from all others: of several networks its own, with the width where
    widths differ, then method, lambda, knobs. Of one network, ``line`` and ``point``."""
    if table["network"].nunique() < 2:
        both = zip(table["line"], table["point"], strict=True)
        return pd.Series([line if line == point else f"{line}, {point}" for line, point in both], table.index)
    widths = table["width"].nunique() > 1
    names = [
        ", ".join([_with_width(setting) if widths else setting["network"], setting["method"], *knobs])
        for setting, knobs in zip(table.to_dict("records"), _told_knobs(table), strict=True)
    ]
    return pd.Series(names, table.index, dtype="object")


def _told_knobs(table: pd.DataFrame) -> list[list[str]]:
    """For each setting its lambda and knobs, in words. A number that is not as usual is told as soon as it varies among
    all settings, all else where the setting's line has several of it."""
    keys = [key for key in (*NAMING, *knobs_of(table)) if key not in method_groups() and not key.startswith(PRICES)]
    several = {name: {key for key in keys if _differs(line, key)} for name, line in table.groupby("line")}
    knobs: list[list[str]] = []
    for setting in table.to_dict("records"):
        numbers = {key for key in keys if key not in NAMING and _is_number(setting[key])}
        unusual = {key for key in numbers if not _is_usual(key, setting[key])}
        told = [key for key in keys if key in several[setting["line"]] | unusual and _says_something(setting[key])]
        lambda_ = [f"λ {setting['lambda']:g}"] if setting["lambda"] else []
        knobs.append(lambda_ + [_told(key, setting[key]) for key in told])
    return knobs


def _is_usual(key: str, value: Any) -> bool:
    """Whether it is what a knob has where nobody sets it; how much is pruned is always worth telling."""
    group, _, name = key.partition(".")
    if not name or group not in GROUPS or key == HOW_MUCH:
        return False
    defaults = [getattr(schema(), name, None) for schema in GROUPS[group].schemas.values()]
    return value in defaults


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _without_model(setting: Mapping[str, Any]) -> str:
    """A network's name without its model, which the line tells."""
    return setting["network"].removeprefix(setting["model"]).strip(", ") or f"width {setting['width']}"


def _with_width(setting: Mapping[str, Any]) -> str:
    """A network's name with its width, also where it is the standard network's."""
    network, model, width = setting["network"], setting["model"], setting["width"]
    rest = network.removeprefix(model)
    return network if pd.isna(width) or rest.startswith(", width ") else f"{model}, width {width}{rest}"


def _differs(table: pd.DataFrame, key: str) -> bool:
    return len(set(filter(_says_something, table[key]))) > 1


def _says_something(value: Any) -> bool:
    return value not in {"", NONE, None} and value == value


def _told(key: str, value: Any) -> str:
    if key == "sigma":
        return f"σ {_power(value)}"
    if key == "trained_for":
        return f"for {value}"
    return str(value) if key in NAMING else f"{key.rpartition('.')[2]} {value}"


def _power(value: float) -> str:
    """1e-4 for 0.0001; short and with no leading zeros in the exponent."""
    mantissa, _, exponent = f"{value:e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}" if value < 0.01 or value >= 1000 else f"{value:g}"


def knobs_of(runs: pd.DataFrame) -> list[str]:
    """The columns that are there because their values vary: what no list has."""
    return [key for key in runs.columns if "." in key or key in BUDGETS or key in method_groups()]


def parameters(runs: pd.DataFrame) -> pd.DataFrame:
    """A column for each parameter in which these runs differ; None where a run has none. Of what every run has, and
    keeps out of its determinants where it is as usual, None is a value, too."""
    shared = [{key: value for key, value in common if key not in TOLD_ELSEWHERE} for common in runs["common"]]
    own = {key: [_told_or_none(value) for value in runs[key].tolist()] for key in [*DESCRIBING, *knobs_of(runs)]}
    usual = {key: [values.get(key) for values in shared] for key in dict.fromkeys(key for v in shared for key in v)}
    columns = {key: values for key, values in own.items() if len({*map(str, values)} - {"None"}) > 1}
    columns |= {key: values for key, values in usual.items() if len(set(values)) > 1}
    return pd.DataFrame({key: pd.Series(values, runs.index, "object") for key, values in columns.items()}, runs.index)


def _told_or_none(value: Any) -> Any:
    return value if value is not pd.NA and _says_something(value) else None


def over_seeds(values: pd.Series, by_setting: pd.Series) -> pd.Series:
    """Each setting's mean over the runs that have a value."""
    return values.dropna().groupby(by_setting).agg(fmean)


def _deviation(values: pd.Series) -> float:
    return stdev(values) if len(values) > 1 else float("nan")


def at_same_seed(runs: pd.DataFrame, reference_id: str, measure: str) -> pd.Series:
    """For each run the measure of the reference's run with the same seed; NaN where the reference lacks the seed."""
    reference = runs[runs["setting_id"] == reference_id].drop_duplicates("seed").set_index("seed")[measure]
    return runs["seed"].map(reference).astype("float64")
