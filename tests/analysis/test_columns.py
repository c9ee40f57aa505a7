"""The list of columns, and the columns that nobody had to list: knobs that vary."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from eat_runner.analysis.columns import COLUMNS, LARGER, SMALLER, X, Y
from eat_runner.analysis.pareto import fronts, pareto_table
from eat_runner.analysis.table import collate, summary
from eat_runner.config.groups import GROUPS, Group
from eat_runner.config.hardware import PublishedHardware
from eat_runner.config.method import MethodConfig
from eat_runner.config.penalty import PenaltyConfig
from eat_runner.config.schedule import ScheduleConfig
from run_folders import config, write_run

PUBLISHED = PublishedHardware()


def test_every_key_is_there_once_and_axes_say_which_way_is_better() -> None:
    assert len({column.key for column in COLUMNS}) == len(COLUMNS)
    assert (list(X), list(Y)) == (["ratio", "energy", "relative"], ["accuracy", "validation"])
    assert {column.better for column in X.values()} == {SMALLER}
    assert {column.better for column in Y.values()} == {LARGER}
    assert all(column.axis and column.label for column in (*X.values(), *Y.values()))


def header(folder: Path) -> tuple[list[str], list[str]]:
    """Of summary.csv and of pareto.csv."""
    runs = collate(folder, PUBLISHED)
    return list(summary(runs, folder).columns), list(pareto_table(fronts(runs)).columns)


def between(keys: list[str], first: str, last: str) -> list[str]:
    return keys[keys.index(first) + 1 : keys.index(last)]


def test_a_schedules_knob_is_a_column_where_it_varies(tmp_path: Path) -> None:
    write_run(tmp_path, config(0.0))
    write_run(tmp_path, config(1.0, schedule=ScheduleConfig(name="linear", warmup=0.5)))
    for keys in header(tmp_path):
        assert "schedule.warmup" not in keys
    write_run(tmp_path, config(1.0, schedule=ScheduleConfig(name="linear", warmup=0.1)))
    in_summary, in_pareto = header(tmp_path)
    assert between(in_summary, "schedule", "seed") == ["schedule.warmup"]
    assert between(in_pareto, "schedule", "n") == ["schedule.warmup"]
    assert list(collate(tmp_path, PUBLISHED)["schedule.warmup"]) == [None, 0.1, 0.5]
    (front,) = fronts(collate(tmp_path, PUBLISHED))
    assert sorted(front.settings["name"]) == ["λ 0", "λ 1, warmup 0.1", "λ 1, warmup 0.5"]


@dataclass(kw_only=True, slots=True)
class LpConfig(PenaltyConfig):
    name: str = "lp"
    p: float = 0.5


def test_a_new_penaltys_knob_is_a_column_where_it_varies(tmp_path: Path) -> None:
    write_run(tmp_path, config(1.0, penalty=LpConfig(p=0.5)))
    write_run(tmp_path, config(1.0, penalty=LpConfig(p=0.9)))
    runs = collate(tmp_path, PUBLISHED)
    assert list(runs["penalty.p"]) == [0.5, 0.9]
    assert list(runs["penalty"]) == ["lp", "lp"]
    assert runs["sigma"].isna().all()
    assert fronts(runs)[0].reference is None


@dataclass(kw_only=True, slots=True)
class PruningConfig(MethodConfig):
    amount: float = 0.5


@pytest.fixture
def pruning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(GROUPS, "pruning", Group(schemas={"pruning": PruningConfig}, about="weights", method=True))


def pruned(lambda_: float, amount: float, seed: int = 0) -> Any:
    return config(lambda_, seed, methods={"pruning": PruningConfig(name="magnitude", amount=amount)})


@pytest.mark.usefixtures("pruning")
def test_a_methods_name_and_knobs_are_columns_and_it_is_no_standard_training(tmp_path: Path) -> None:
    write_run(tmp_path, config(0.0))
    write_run(tmp_path, config(1.0))
    write_run(tmp_path, pruned(0.0, 0.5))
    runs = collate(tmp_path, PUBLISHED)
    assert "pruning.amount" not in runs.columns
    assert list(runs["is_baseline"]) == [True, False, False]
    write_run(tmp_path, pruned(0.0, 0.9))
    write_run(tmp_path, pruned(1.0, 0.9))
    runs = collate(tmp_path, PUBLISHED)
    in_summary, _ = header(tmp_path)
    assert between(in_summary, "schedule", "seed") == ["pruning", "pruning.amount"]
    (front,) = fronts(runs)
    assert set(front.settings["name"]) == {
        "λ 0",
        "λ 1",
        "pruning magnitude, amount 0.5",
        "pruning magnitude, amount 0.9",
        "λ 1, pruning magnitude, amount 0.9",
    }
    assert front.settings.at[front.reference, "name"] == "λ 0"
    assert runs["energy_decrease_percent"].notna().all()


def test_records_with_hostile_knobs_give_no_column_of_theirs(tmp_path: Path) -> None:
    for seed, value in enumerate(["=1+1", {"a": [1]}, "\x1b[2J"]):
        folder = write_run(tmp_path, config(1.0, seed=seed))
        record = folder.read_record()
        record.config["penalty"] |= {"=cmd|calc": value, "knob": value}
        folder.write_record(record)
    runs = collate(tmp_path, PUBLISHED)
    assert [key for key in runs.columns if "cmd" in key] == []
    assert list(runs["penalty.knob"]) == ["=1+1", "{'a': [1]}", "?[2J"]
