"""THE list of columns: what a table holds, where it comes from, what it is called, how it is shown. No pandas.

A row is a run (summary.csv) or a setting: the runs that differ in the seed alone (pareto.csv, the printed table). What
a penalty, a schedule or a method has beyond the columns below is a knob, and becomes a column where its values vary.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eat_runner.analysis.methods import lineage
from eat_runner.config.groups import GROUPS
from eat_runner.config.identity import BUDGETS, BY_BITS, NOT_PRICES, digest, is_plain_baseline
from eat_runner.config.method import NONE
from eat_runner.config.root import is_penalised
from eat_runner.energy.rules.base import EnergyReport
from eat_runner.errors import printable
from eat_runner.records import RunRecord, Scalar

TEXT, REAL, WHOLE, FLAG, OBJECT = "text", "real", "whole", "flag", "object"
DTYPES = {TEXT: "object", REAL: "float64", WHOLE: "Int64", FLAG: "bool", OBJECT: "object"}
EMPTY: dict[str, Any] = {TEXT: "", REAL: None, WHOLE: None, FLAG: False, OBJECT: ()}
LARGER, SMALLER = "larger", "smaller"
ALWAYS, RATIO, ENERGY = "always", "ratio", "energy"
KNOWN, VARIES = "known", "varies"


@dataclass(frozen=True)
class Facts:
    """What a run's row is read from: its record, and what its counts cost on each split that they were measured on;
    corners: at the ends of the hardware's ranges (config/hardware.py, ``corners``), in their order."""

    record: RunRecord
    test: EnergyReport | None = None
    validation: EnergyReport | None = None
    corners: tuple["Facts", ...] = ()

    @property
    def is_baseline(self) -> bool:
        return is_plain_baseline(self.record.config)

    @property
    def is_penalised(self) -> bool:
        return is_penalised(self.record.config["lambda"], self.record.config["penalty"]["name"])

    def chosen(self, group: str, key: str) -> Any:
        """A value of the configuration; None for a penalty's or its schedule's where there is no penalty."""
        return self.record.config[group].get(key) if self.is_penalised else None


@dataclass(frozen=True, kw_only=True)
class Column:
    """key: in data frames and CSV files. kind: of its values. read: its value in a row of a run; None where it follows
    from the other rows. describes: says what a setting is. measure: has a mean and a deviation over seeds in a
    setting's row. written: in the CSV files. only: in a table where a run has a value (KNOWN), where values differ
    (VARIES).

    label, digits, spread: heading and form in printed tables, with ± its deviation. shown: in which of them: always,
    or by what stands on the x axis (the ratio, an energy). rank: what a narrow table leaves out first has the highest.
    better: whether larger or smaller values are. option: what --x (smaller is better) or --y (larger) calls it; axis,
    scale: label and factor of that axis; unit: of an area there; in_words: a value in a sentence.
    """

    key: str
    kind: str = TEXT
    read: Callable[[Facts], Any] | None = None
    describes: bool = False
    measure: bool = False
    written: bool = True
    only: str = ""
    label: str = ""
    digits: int = 4
    spread: bool = True
    shown: str = ""
    rank: int = 0
    better: str = ""
    option: str = ""
    axis: str = ""
    scale: float = 1.0
    unit: str = ""
    in_words: str = ""


def read_columns(facts: Facts) -> dict[str, Any]:
    """A run's row. KeyError, TypeError, ValueError or ArithmeticError where the record is no run's."""
    return {column.key: column.read(facts) for column in COLUMNS if column.read is not None}


# --- values of a record, which may hold anything -------------------------------------------------------------------


def _name(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.50} is no name")
    return printable(value)


def _whole(value: Any) -> int:
    if not isinstance(value, int) or not 0 <= value < 2**63:
        raise ValueError(f"{value!r:.50} is no whole number in range")
    return value


def _real(value: Any) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r:.50} is no finite number")
    return float(value)


def _share(value: float | None) -> float | None:
    if value is not None and not 0 <= value <= 1:
        raise ValueError(f"{value!r:.50} is not between 0 and 1")
    return value


def _model(facts: Facts) -> str:
    model = facts.record.config["model"]
    return _name(model["arch"] or model["name"])


def _chosen_name(facts: Facts, group: str, key: str) -> str:
    value = facts.chosen(group, key)
    return "" if value is None else _name(value)


def _sigma(facts: Facts) -> float | None:
    sigma = facts.chosen("penalty", "sigma")
    return None if sigma is None else _real(sigma)


def _budget_met(facts: Facts) -> str:
    """Empty without a budget."""
    budget = facts.record.budget
    return "" if budget is None else "met" if budget["met"] else "missed"


def _seconds(facts: Facts) -> float:
    return _real(sum(seconds or 0.0 for seconds in facts.record.timings.values()))


def _setting_id(facts: Facts) -> str:
    """Hash of what a run's setting is: everything that determines its result but the seed."""
    determinants = facts.record.determinants
    return digest({key: value for key, value in determinants.items() if key != "seed"}) if determinants else ""


def _bare_setting(facts: Facts) -> str:
    """``_setting_id`` without the parent, of a run that has one: parents are told apart by their settings, too."""
    determinants = facts.record.determinants
    if "parent" not in determinants:
        return ""
    return digest({key: value for key, value in determinants.items() if key not in ("seed", "parent")})


def _trained_for(facts: Facts) -> str:
    """The hardware whose prices had a part in the result."""
    return _name(facts.record.config["hardware"]["name"]) if "hardware" in facts.record.determinants else ""


def _of(report: EnergyReport | None, name: str) -> float | None:
    return None if report is None else getattr(report, name)


def _on_chip(report: EnergyReport | None) -> float | None:
    return None if report is None or report.weights_on_chip is None else float(report.weights_on_chip)


def _at_corners(facts: Facts) -> tuple[dict[str, float | None], ...]:
    """The columns that a selection looks at (``OF_PRICES``), under the prices of each corner."""
    return tuple(
        {key: column.read(corner) for key, column in OF_PRICES.items() if column.read is not None}
        for corner in facts.corners
    )


# --- knobs ---------------------------------------------------------------------------------------------------------

# what a group has a column of its own for
OWN_COLUMN = {
    "penalty": {"name", "scope", "weighting", "sigma"},
    "schedule": {"name"},
    "hardware": NOT_PRICES | {BY_BITS},
}
AFTER_PENALTY = ("penalty", "schedule")  # of which nothing matters without a penalty


def knobs(facts: Facts) -> dict[str, Scalar]:
    """What a run chose of the groups that vary within a family, beyond the columns below: ``pruning`` (which variant of
    a method) and ``pruning.amount``. Groups that had no part in the result are left out. And its budget."""
    found: dict[str, Scalar] = {
        key: _real(facts.record.determinants[key]) for key in BUDGETS if key in facts.record.determinants
    }
    for group, entry in GROUPS.items():
        varies = entry.varied or entry.method
        if not varies or group not in facts.record.determinants or (group in AFTER_PENALTY and not facts.is_penalised):
            continue
        values: Mapping[str, Any] = facts.record.config[group]
        if entry.method and values["name"] != NONE:
            found[group] = _name(values["name"])
        keys = set(values) - OWN_COLUMN.get(group, {"name"})
        found |= {f"{group}.{key}": _knob(values[key]) for key in values if key in keys and key.isidentifier()}
    return found


def _knob(value: Any) -> Scalar:
    return value if isinstance(value, bool | int | float) else printable(str(value))


def knob_columns(chosen: Sequence[Mapping[str, Scalar]]) -> list[Column]:
    """The columns of knobs that vary among these runs (penalised, or with a method), in the order of their groups. A
    method's name is there as soon as one run has it, and so is a budget."""
    values: dict[str, dict[str, Scalar]] = {}
    for run in chosen:
        for key, value in run.items():
            values.setdefault(key, {})[repr(value)] = value
    order = [*GROUPS, *BUDGETS]
    varied = [key for key, found in values.items() if len(found) > 1 or key in order]
    varied.sort(key=lambda key: order.index(key.partition(".")[0]))
    return [Column(key=key, kind=OBJECT, describes=True) for key in varied]


# --- the list ------------------------------------------------------------------------------------------------------

COLUMNS = (
    Column(key="run_id", read=lambda f: printable(f.record.run_id)),
    Column(key="dataset", describes=True, read=lambda f: _name(f.record.config["dataset"]["name"])),
    Column(key="model", describes=True, read=_model),
    Column(key="width", kind=WHOLE, describes=True, read=lambda f: _whole(f.record.config["model"]["width"])),
    # the line of a front that the run belongs to (methods.py); a child's has its parent's in it (table.py)
    Column(key="method", describes=True),
    # none and 0 for standard training (ST), under whatever penalty it was started
    Column(key="penalty", describes=True, read=lambda f: _chosen_name(f, "penalty", "name") or NONE),
    Column(key="scope", describes=True, read=lambda f: _chosen_name(f, "penalty", "scope")),
    Column(key="weighting", describes=True, read=lambda f: _chosen_name(f, "penalty", "weighting")),
    Column(key="trained_for", describes=True, read=_trained_for),
    Column(
        key="lambda",
        kind=REAL,
        describes=True,
        read=lambda f: _real(f.record.config["lambda"]) if f.is_penalised else 0.0,
    ),
    Column(key="sigma", kind=REAL, describes=True, read=_sigma),
    Column(key="schedule", describes=True, read=lambda f: _chosen_name(f, "schedule", "name")),
    # … knobs come here
    Column(key="seed", kind=WHOLE, read=lambda f: _whole(f.record.config["seed"])),
    Column(key="status", read=lambda f: f.record.status),
    Column(
        key="accuracy",
        kind=REAL,
        measure=True,
        read=lambda f: _share(f.record.accuracy.get("test")),
        label="accuracy",
        shown=ALWAYS,
        better=LARGER,
        option="accuracy",
        axis="test accuracy (%)",
        scale=100,
        in_words="accuracy {}",
    ),
    Column(
        key="accuracy_validation",
        kind=REAL,
        measure=True,
        read=lambda f: _share(f.record.accuracy.get("validation")),
        label="validation",
        shown=ALWAYS,
        rank=5,
        better=LARGER,
        option="validation",
        axis="validation accuracy (%)",
        scale=100,
        in_words="validation accuracy {}",
    ),
    Column(key="accuracy_train", kind=REAL, read=lambda f: _share(f.record.accuracy.get("train"))),
    Column(
        key="energy_ratio",
        kind=REAL,
        measure=True,
        read=lambda f: _of(f.test, "ratio"),
        label="energy ratio",
        shown=RATIO,
        better=SMALLER,
        option="ratio",
        axis="inference energy ratio (with / without zero-skipping)",
        in_words="energy ratio {}",
    ),
    Column(key="energy_ratio_validation", kind=REAL, measure=True, read=lambda f: _of(f.validation, "ratio")),
    Column(
        key="energy_floor",
        kind=REAL,
        read=lambda f: _of(f.test, "floor"),
        label="floor",
        digits=3,
        spread=False,
        shown=RATIO,
        rank=7,
    ),
    Column(
        key="energy_decrease_percent",
        kind=REAL,
        measure=True,
        label="decrease of ratio %",
        digits=2,
        shown=RATIO,
        rank=2,
        better=LARGER,
    ),
    Column(
        key="energy_uj_per_image",
        kind=REAL,
        measure=True,
        read=lambda f: _of(f.test, "energy_uj_per_image"),
        label="uJ/image",
        digits=2,
        spread=False,
        shown=ALWAYS,
        rank=4,
        better=SMALLER,
        option="energy",
        axis="inference energy (µJ per image)",
        unit=" uJ",
        in_words="{} uJ per image",
    ),
    Column(key="dense_uj_per_image", kind=REAL, read=lambda f: _of(f.test, "dense_uj_per_image")),
    Column(
        key="firing_rate",
        kind=REAL,
        measure=True,
        read=lambda f: _share(f.record.firing_rate),
        label="firing rate",
        digits=3,
        shown=ALWAYS,
        rank=6,
    ),
    Column(
        key="stored_weight_bytes",
        kind=REAL,
        measure=True,
        read=lambda f: _of(f.test, "stored_weight_bytes"),
        only=VARIES,
        label="weight bytes",
        digits=0,
        spread=False,
        shown=ALWAYS,
        rank=9,
    ),
    Column(
        key="peak_activation_bytes",
        kind=REAL,
        measure=True,
        read=lambda f: _of(f.test, "peak_activation_bytes"),
        only=VARIES,
        label="peak bytes",
        digits=0,
        spread=False,
        shown=ALWAYS,
        rank=8,
    ),
    # 1 or 0; of a setting, the share of its seeds
    Column(key="weights_on_chip", kind=REAL, measure=True, read=lambda f: _on_chip(f.test), only=KNOWN),
    Column(key="firing_rate_test", kind=REAL, measure=True, read=lambda f: _share(f.record.firing_rate_test)),
    Column(key="budget_met", read=_budget_met),
    Column(key="epochs", kind=WHOLE, read=lambda f: _whole(f.record.epochs_done)),
    Column(key="parameters", kind=WHOLE, read=lambda f: _whole(f.record.parameters)),
    Column(key="seconds", kind=REAL, read=_seconds),
    Column(key="hardware"),
    Column(key="baseline_id", read=lambda f: printable(f.record.baseline_id)),
    Column(key="setting_id", read=_setting_id),
    Column(key="parent", read=lambda f: printable(str(f.record.determinants.get("parent", "")))),
    Column(key="family"),
    Column(key="folder"),
    Column(key="reason", read=lambda f: printable(f.record.reason)),
    # what tables are made with
    Column(key="is_baseline", kind=FLAG, written=False, read=lambda f: f.is_baseline),
    Column(key="lineage", kind=OBJECT, written=False, read=lambda f: lineage(f.record)),
    Column(key="bare_setting", written=False, read=_bare_setting),
    Column(key="network", written=False),
    Column(key="common", kind=OBJECT, written=False),
    Column(key="knobs", kind=OBJECT, written=False, read=knobs),
    Column(key="energy", kind=REAL, written=False, read=lambda f: _of(f.test, "cost")),
    Column(key="energy_validation", kind=REAL, written=False, read=lambda f: _of(f.validation, "cost")),
    Column(key="dense", kind=REAL, written=False, read=lambda f: _of(f.test, "dense_cost")),
    Column(key="corners", kind=OBJECT, written=False, read=_at_corners),
)
# what a setting is beside the reference run, where networks share a front
AGAINST_REFERENCE = (
    Column(
        key="energy_relative",
        kind=REAL,
        measure=True,
        label="relative",
        digits=3,
        shown=ENERGY,
        better=SMALLER,
        option="relative",
        axis="inference energy (1: the reference)",
        in_words="{} times the reference's energy",
    ),
    Column(
        key="accuracy_difference",
        kind=REAL,
        measure=True,
        label="vs reference",
        shown=ENERGY,
        rank=3,
        better=LARGER,
    ),
)
BY_KEY = {column.key: column for column in (*COLUMNS, *AGAINST_REFERENCE)}
# what changes with a price and decides what is selected
OF_PRICES = {
    key: BY_KEY[key] for key in ("energy_ratio", "energy_ratio_validation", "energy", "energy_validation", "dense")
}
# what a family is. family: what shares everything but penalty, schedule, lambda, methods and seed; dataset: what shares
# its images and its validation split, with whatever network and training
BY = ("family", "dataset")
# what a front's axes may be, under the names of --x and --y
X = {column.option: column for column in BY_KEY.values() if column.option and column.better == SMALLER}
Y = {column.option: column for column in BY_KEY.values() if column.option and column.better == LARGER}
