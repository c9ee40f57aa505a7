"""The table: a data frame of runs, read from their folders and written as CSV."""

import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from eat_runner.analysis.columns import AGAINST_REFERENCE, COLUMNS, DTYPES, VARIES, knob_columns
from eat_runner.analysis.families import label_families
from eat_runner.analysis.methods import method_name
from eat_runner.analysis.rows import BROKEN, read_rows
from eat_runner.config.hardware import HardwareConfig
from eat_runner.config.identity import digest
from eat_runner.errors import UserError, printable
from eat_runner.records import Scalar

# of two copies of a run, from two machines, the one that got further counts
RANK = {"finished": 0, "diverged": 1, "stopped": 2, "interrupted": 3, "running": 4, "failed": 5, BROKEN: 6}
ORDER = "dataset model width family lambda penalty sigma schedule seed setting_id run_id".split()
FORMULA = ("=", "+", "-", "@")  # what a spreadsheet computes begins with one of these
LAST_BEFORE_KNOBS = "schedule"


def collate(folders: Path | Sequence[Path], hardware: HardwareConfig, by: str = "family") -> pd.DataFrame:
    """All runs in and below ``folders``: a row a run (columns.COLUMNS, and knobs that vary), sorted, priced from their
    counts. by: what a family is (columns.BY).

    A run that lies in several folders (merged from several machines) is taken once. Runs that are not finished have no
    energy; a folder whose files are damaged is a row of status ``broken``.
    Raises UserError if a folder is not there, holds no run, or no finished run can be priced with ``hardware``.
    """
    roots = [folders] if isinstance(folders, Path) else list(folders)
    runs = read_runs(roots, hardware, by)
    if runs.empty:
        raise UserError(f"{' '.join(map(str, roots))}: no runs in there: name a folder that eat-run wrote")
    finished = runs[runs["status"] == "finished"]
    if len(finished) and (finished["reason"] != "").all():
        raise UserError(finished["reason"].iloc[0])
    return runs


def read_runs(roots: Sequence[Path], hardware: HardwareConfig, by: str = "family") -> pd.DataFrame:
    """``collate``, but where there is no run, or none with an energy, the table says so."""
    rows = list(read_rows(roots, hardware))
    runs = pd.DataFrame(
        {c.key: pd.Series([row[c.key] for row in rows], dtype=DTYPES[c.kind]) for c in COLUMNS},
    )
    runs = _without_what_says_nothing(_with_parents(_each_once(runs)))
    runs = label_families(_with_knobs(runs), by)
    runs["energy_decrease_percent"] = _decrease_percent(runs)
    empty_is_zero = lambda values: values if values.dtype == "object" else values.fillna(0)  # noqa: E731
    return runs.sort_values(ORDER, key=empty_is_zero, ignore_index=True)


def is_priced(runs: pd.DataFrame) -> pd.Series:
    """True for finished runs with an accuracy and an energy: the points of the fronts."""
    return (runs["status"] == "finished") & runs["energy_ratio"].notna() & runs["accuracy"].notna()


def _each_once(runs: pd.DataFrame) -> pd.DataFrame:
    best = runs.assign(rank=runs["status"].map(RANK), lacks=runs["reason"] != "")
    kept = best.sort_values(["rank", "lacks"], kind="stable").drop_duplicates("run_id").index
    return runs.loc[runs.index.isin(kept)].reset_index(drop=True)


def _with_parents(runs: pd.DataFrame) -> pd.DataFrame:
    """The table with each run's method, and with setting_ids in which a parent that is there counts by its setting: the
    seeds of a setting have parents of different seeds, and what was done to these was done to their children, too."""
    rows = runs.set_index("run_id")[["parent", "lineage", "setting_id", "bare_setting"]].to_dict("index")

    def known(run_id: str, below: frozenset[str] = frozenset()) -> tuple[tuple[str, ...], str]:
        """What was done to its network, and its setting. below: the run's children, who are no parents of it."""
        row = rows[run_id]
        own, inherited = row["lineage"] or ((), ())
        if row["parent"] not in rows or row["parent"] in {*below, run_id}:
            return inherited + own, row["setting_id"]
        parts, setting = known(row["parent"], below | {run_id})
        return parts + own, digest([row["bare_setting"], setting])

    found = [known(run_id) for run_id in runs["run_id"]]
    methods = [
        method_name(parts) if row["lineage"] else "" for (parts, _), row in zip(found, rows.values(), strict=True)
    ]
    columns = {"method": methods, "setting_id": [setting for _, setting in found]}
    return runs.assign(**{key: pd.Series(values, runs.index, "object") for key, values in columns.items()})


def _without_what_says_nothing(runs: pd.DataFrame) -> pd.DataFrame:
    """The table without columns that are only there where a run has a value, or where values differ."""
    values = {column: runs[column.key].nunique() for column in COLUMNS if column.only}
    return runs.drop(columns=[c.key for c, different in values.items() if different < (2 if c.only == VARIES else 1)])


def _with_knobs(runs: pd.DataFrame) -> pd.DataFrame:
    """The table with a column for each knob that varies, behind those that every run has."""
    chosen = runs.loc[~runs["is_baseline"], "knobs"]
    place = runs.columns.get_loc(LAST_BEFORE_KNOBS)
    for offset, column in enumerate(knob_columns([knobs for knobs in chosen if knobs]), start=1):
        values = [dict(knobs).get(column.key) for knobs in runs["knobs"]]
        runs.insert(place + offset, column.key, pd.Series(values, dtype="object"))
    return runs


def _decrease_percent(runs: pd.DataFrame) -> pd.Series:
    """Against the energy ratio of standard training with the same baseline_id (data, network, training, seed)."""
    standard = runs[runs["is_baseline"] & (runs["energy_ratio"] > 0)].drop_duplicates("baseline_id", keep="last")
    against = runs["baseline_id"].map(standard.set_index("baseline_id")["energy_ratio"])
    return (against - runs["energy_ratio"]) / against * 100


# --- CSV -----------------------------------------------------------------------------------------------------------


def summary(runs: pd.DataFrame, output: Path) -> pd.DataFrame:
    """summary.csv: every run, its folder relative to the table's, so that a results folder can be moved."""
    folders = [os.path.relpath(folder, output) for folder in runs["folder"]]
    return runs.assign(folder=pd.Series(folders, index=runs.index, dtype="object")).drop(columns=_not_written(runs))


def _not_written(frame: pd.DataFrame) -> list[str]:
    hidden = {column.key for column in (*COLUMNS, *AGAINST_REFERENCE) if not column.written}
    return [key for key in frame.columns if key in hidden]


def to_csv(frame: pd.DataFrame) -> bytes:
    """UTF-8 with \\n. Floats keep every bit (repr), nothing is an empty cell, texts are as ``cell`` has them."""
    safe = frame.copy()
    for key in frame.select_dtypes(exclude=["number", "bool"]).columns:
        safe[key] = pd.Series([cell(value) for value in frame[key]], index=frame.index, dtype="object")
    return safe.rename(columns=cell).to_csv(index=False, lineterminator="\n").encode(errors="backslashreplace")


def cell(value: Scalar) -> Scalar:
    """``value`` as a table may hold it: text is printable, and an apostrophe stands before what a spreadsheet would
    compute."""
    if not isinstance(value, str):
        return value
    text = printable(value, longest=None)
    return f"'{text}" if text.lstrip().startswith(FORMULA) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
