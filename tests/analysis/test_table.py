"""Folders of runs become one table: nothing finished is lost, nothing counts twice, what is broken is named."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

import run_folders
from eat_runner.analysis.rows import hardware_of
from eat_runner.analysis.table import cell, collate, is_priced, to_csv
from eat_runner.config.hardware import FusedHardware, PublishedHardware
from eat_runner.config.penalty import PenaltyConfig
from eat_runner.config.trainer import MeterConfig, TrainerConfig
from eat_runner.errors import UserError, printable
from eat_runner.records import RunFolder, Scalar
from run_folders import config, write_run, write_sweep

PUBLISHED = PublishedHardware()
FUSED = FusedHardware(name="mine", dram_pj_per_bit=20.0, buffer_pj_per_bit=1.0, multiply_pj=3.0, accumulate_pj=1.0)


def rows(runs: pd.DataFrame) -> list[SimpleNamespace]:
    """The table's rows, None where there is nothing; ``lambda_`` for lambda."""
    there = runs.astype("object").where(runs.notna(), None).rename(columns={"lambda": "lambda_"})
    return [SimpleNamespace(**row) for row in there.to_dict("records")]


def collated(*arguments: Any) -> list[SimpleNamespace]:
    return rows(collate(*arguments))


def by_id(runs: list[SimpleNamespace]) -> dict[str, SimpleNamespace]:
    return {run.run_id: run for run in runs}


def published_ratio(folder: RunFolder, split: str) -> float:
    """The published rule by hand (simulator.md's formula), in floats, batch by batch."""
    ratios: list[float] = []
    for batch in folder.read_counts().batches:
        if batch.split == split and batch.batch >= 0:
            parameters = batch.parameter_elements + batch.statistics_elements
            fired = batch.parameter_nonzeros + batch.statistics_nonzeros
            inputs = batch.input_nonzeros_as_built
            dense = 1950 * (parameters + batch.input_elements + batch.output_elements) + 3.7 * batch.computations
            density = fired / parameters * inputs / batch.input_elements
            energy = 1950 * (fired + inputs + batch.output_nonzeros) + 3.7 * batch.computations * density
            ratios.append(energy / dense)
    return sum(ratios) / len(ratios)


def test_a_row_a_run_priced_from_its_counts(tmp_path: Path) -> None:
    folders = write_sweep(tmp_path, (0, 2), (0, 1))
    runs = by_id(collated(tmp_path, PUBLISHED))
    assert sorted(runs) == sorted(folder.path.name for folder in folders)
    for folder in folders:
        run = runs[folder.path.name]
        assert run.energy_ratio == pytest.approx(published_ratio(folder, "test"), rel=1e-12)
        assert run.energy_ratio_validation == pytest.approx(published_ratio(folder, "validation"), rel=1e-12)
        assert run.accuracy == folder.read_record().accuracy["test"]
        assert run.energy_floor is not None
        assert run.energy_ratio is not None
        assert run.energy_floor < run.energy_ratio


def test_what_was_priced_when_the_run_ended_is_never_used(tmp_path: Path) -> None:
    folder = write_run(tmp_path, config(1.0), energy={"published": {"test": {"ratio": 0.001}}})
    (run,) = collated(tmp_path, PUBLISHED)
    assert run.energy_ratio == pytest.approx(published_ratio(folder, "test"))


def test_energy_decrease_is_against_the_baseline_of_the_same_seed(tmp_path: Path) -> None:
    write_sweep(tmp_path, (0, 2), (0, 1))
    runs = collated(tmp_path, PUBLISHED)
    for seed in (0, 1):
        standard, trained = sorted((run for run in runs if run.seed == seed), key=lambda run: run.lambda_)
        assert standard.energy_ratio is not None
        assert trained.energy_ratio is not None
        expected = (standard.energy_ratio - trained.energy_ratio) / standard.energy_ratio * 100
        assert trained.energy_decrease_percent == pytest.approx(expected)
        assert standard.energy_decrease_percent == 0
        assert expected > 5


def test_without_a_baseline_the_decrease_is_empty(tmp_path: Path) -> None:
    write_run(tmp_path, config(1.0, seed=0))
    write_run(tmp_path, config(0.0, seed=1))
    write_run(tmp_path, config(0.0, seed=0, trainer=TrainerConfig(epochs=3)))
    decreases = {run.lambda_: run.energy_decrease_percent for run in collated(tmp_path, PUBLISHED)}
    assert decreases[1.0] is None


def test_lambda_zero_and_no_penalty_are_the_same_baseline(tmp_path: Path) -> None:
    write_run(tmp_path, config(0.0))
    write_run(tmp_path, config(3.0, penalty=PenaltyConfig(name="none")))
    (run,) = collated(tmp_path, PUBLISHED)
    assert (run.penalty, run.lambda_, run.sigma, run.schedule) == ("none", 0.0, None, "")


def test_folders_of_several_machines_merge_and_the_finished_copy_wins(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    write_run(here, config(0.0), status="failed", reason="RuntimeError: out of memory")
    write_run(here, config(1.0))
    write_run(there, config(0.0))
    write_run(there, config(1.0), status="interrupted")
    write_run(there, config(2.0))
    for order in ([here, there], [there, here]):
        runs = collated(order, PUBLISHED)
        assert [(run.lambda_, run.status) for run in runs] == [
            (0.0, "finished"),
            (1.0, "finished"),
            (2.0, "finished"),
        ]
        assert [Path(run.folder).parent.name for run in runs] == ["there", "here", "there"]


def test_runs_that_are_not_finished_are_listed_without_energy(tmp_path: Path) -> None:
    write_run(tmp_path, config(0.0))
    for lambda_, status in enumerate(["running", "failed", "interrupted", "diverged"], start=1):
        write_run(tmp_path, config(float(lambda_)), status=status, reason="why")
    runs = collated(tmp_path, PUBLISHED)
    assert [run.status for run in runs] == ["finished", "running", "failed", "interrupted", "diverged"]
    assert all(run.energy_ratio is None and run.reason == "why" for run in runs[1:])
    assert list(is_priced(collate(tmp_path, PUBLISHED))) == [True, False, False, False, False]


def damage_record(folder: RunFolder) -> None:
    folder.record.write_bytes(folder.record.read_bytes()[:-40])


def make_newer(folder: RunFolder) -> None:
    folder.record.write_text(json.dumps(json.loads(folder.record.read_text()) | {"format": 99}))


def empty_config(folder: RunFolder) -> None:
    record = folder.read_record()
    record.config = {"dataset": "digits"}
    folder.write_record(record)


def huge_seed(folder: RunFolder) -> None:
    record = folder.read_record()
    record.config["seed"] = 10**40
    folder.write_record(record)


def huge_lambda(folder: RunFolder) -> None:
    record = folder.read_record()
    record.config["lambda"] = 10**400
    folder.write_record(record)


def endless_time(folder: RunFolder) -> None:
    record = folder.read_record()
    record.timings = {"training_s": 10**400, "other_s": 0.5}
    folder.write_record(record)


@pytest.mark.parametrize("damage", [damage_record, make_newer, empty_config, huge_seed, huge_lambda, endless_time])
def test_one_broken_folder_is_named_and_the_others_are_taken(tmp_path: Path, damage: Any) -> None:
    write_run(tmp_path, config(0.0))
    broken = write_run(tmp_path, config(1.0))
    damage(broken)
    runs = by_id(collated(tmp_path, PUBLISHED))
    assert len(runs) == 2
    run = runs.pop(broken.path.name)
    assert run.status == "broken"
    assert "record.json" in run.reason
    assert "\n" not in run.reason
    assert all(run.energy_ratio for run in runs.values())


def test_a_run_without_a_record_yet_is_running(tmp_path: Path) -> None:
    write_run(tmp_path, config(0.0))
    begun = write_run(tmp_path, config(1.0))
    begun.record.unlink()
    run = by_id(collated(tmp_path, PUBLISHED))[begun.path.name]
    assert (run.status, run.reason) == ("running", "no record yet: a process has it, or was killed")


def test_damaged_counts_keep_the_accuracy_and_say_so(tmp_path: Path) -> None:
    write_run(tmp_path, config(0.0))
    folder = write_run(tmp_path, config(1.0))
    folder.batches.write_bytes(folder.batches.read_bytes()[:-9])
    run = by_id(collated(tmp_path, PUBLISHED))[folder.path.name]
    assert run.status == "finished"
    assert run.energy_ratio is None
    assert run.accuracy is not None
    assert "batches.csv is damaged" in run.reason


def test_counts_of_an_absurd_size_are_named(tmp_path: Path) -> None:
    write_run(tmp_path, config(0.0))
    folder = write_run(tmp_path, config(1.0))
    lines = folder.batches.read_text().splitlines()
    column = lines[0].split(",").index("output_nonzeros")
    cells = lines[1].split(",")
    cells[column] = "9" * 308  # times 1950 it is more than a float holds
    folder.batches.write_text("\n".join([lines[0], ",".join(cells), *lines[2:]]) + "\n")
    folder.write_record(folder.read_record())
    run = by_id(collated(tmp_path, PUBLISHED))[folder.path.name]
    assert run.energy_ratio is None
    assert "the counts make no sense" in run.reason


def test_hardware_that_asks_for_other_counts_is_refused_in_its_own_words(tmp_path: Path) -> None:
    write_run(tmp_path, config(1.0))
    with pytest.raises(UserError, match=r"needs counts with meter\.batch_size=7, these have 100"):
        collated(tmp_path, PublishedHardware(batch_size=7))


def test_some_runs_metered_otherwise_are_left_out_and_named(tmp_path: Path) -> None:
    write_run(tmp_path, config(0.0))
    write_run(tmp_path, config(1.0, meter=MeterConfig(batch_size=50)), meter={"batch": 50, "threshold": 2.0**-126})
    reasons = [run.reason for run in collated(tmp_path, PUBLISHED)]
    assert sorted(reason[:60] for reason in reasons) == [
        "",
        "hardware published needs counts with meter.batch_size=100, these h"[:60],
    ]


def test_folders_without_runs_and_missing_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no runs in there"):
        collated(tmp_path, PUBLISHED)
    with pytest.raises(UserError, match="no such folder"):
        collated(tmp_path / "nowhere", PUBLISHED)


def test_a_run_folder_itself_and_folders_of_folders_are_found(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "results" / "a", config(0.0))
    write_run(tmp_path / "results" / "b", config(1.0))
    assert len(collated(folder.path, PUBLISHED)) == 1
    assert len(collated(tmp_path, PUBLISHED)) == 2


def test_names_from_folders_cannot_steer_a_terminal(tmp_path: Path) -> None:
    write_run(tmp_path, config(1.0, dataset="\x1b[2Jdigits\nx"), status="failed", reason="a\nb\x07\u202ec")
    hardware = FusedHardware(name="\x1b[2Jmine\n", multiply_pj=1.0)
    (run,) = collated(tmp_path, hardware)
    assert run.hardware == "?[2Jmine?"
    assert run.dataset == "?[2Jdigits?x"
    assert run.reason == "a?b??c"
    assert printable("x" * 1000) == "x" * 200 + "…"
    assert printable("x" * 1000, longest=None) == "x" * 1000


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("=1+1", "'=1+1"),
        ("+cmd|' /C calc'!A0", "'+cmd|' /C calc'!A0"),
        ("-2+3", "'-2+3"),
        ("@SUM(A1)", "'@SUM(A1)"),
        (" =1", "' =1"),
        ("\t=1", "?=1"),
        ("\x1b[2J=1\r\n=2", "?[2J=1??=2"),
        ("-1.5e-3", "-1.5e-3"),
        ("digits-resnet18", "digits-resnet18"),
        ("x" * 1000, "x" * 1000),
        (-1.5, -1.5),
        (None, None),
    ],
)
def test_a_cell_is_no_formula_and_steers_no_terminal(value: Scalar, shown: Scalar) -> None:
    assert cell(value) == shown


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is closed to root")
def test_a_closed_folder_is_named(tmp_path: Path) -> None:
    write_run(tmp_path, config(0.0))
    closed = write_run(tmp_path, config(1.0))
    closed.path.chmod(0)
    try:
        run = by_id(collated(tmp_path, PUBLISHED))[closed.path.name]
    finally:
        closed.path.chmod(0o700)
    assert run.status == "broken"
    assert "Permission denied" in run.reason


def test_csv_keeps_every_bit_and_leaves_nothing_empty() -> None:
    third = pd.DataFrame({"a": [1 / 3, None], "b": pd.Series([7, None], dtype="Int64"), "c": ["=1", "x,y"]})
    assert to_csv(third) == b'a,b,c\n0.3333333333333333,7,\'=1\n,,"x,y"\n'


def test_the_runs_own_hardware_is_the_default(tmp_path: Path) -> None:
    write_run(tmp_path, config(1.0, hardware=FUSED))
    assert hardware_of([tmp_path]) == FUSED
    (run,) = collated(tmp_path, hardware_of([tmp_path]))
    assert (run.hardware, run.energy_floor) == ("mine", None)


def test_hardware_in_a_hostile_record_is_passed_over(tmp_path: Path) -> None:
    folder = write_run(tmp_path, config(1.0))
    record = folder.read_record()
    wrong = [{"rule": "published"} | value for value in ({"name": 5}, {"threshold": "x"}, {"note": ["x"]})]
    for hostile in (
        {"rule": ["x"]},
        {"rule": "published", "multiply_pj": "9"},
        {"rule": "published", "code": 1},
        3,
        *wrong,
    ):
        record.config["hardware"] = hostile
        folder.write_record(record)
        assert hardware_of([tmp_path]) == PublishedHardware()


@pytest.mark.long
def test_many_folders_on_several_cores_give_the_same_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)
    run_folders.write_many(tmp_path, 60, blocks=2)
    alone = collate(tmp_path, FUSED)
    monkeypatch.setattr("eat_runner.analysis.rows.FOLDERS_PER_WORKER", 20)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    pd.testing.assert_frame_equal(collate(tmp_path, FUSED), alone)
