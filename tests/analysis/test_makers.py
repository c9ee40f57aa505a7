"""What made a set of runs."""

import shlex
from pathlib import Path

import pytest

from eat_runner.analysis.makers import command_of, in_words, makers
from eat_runner.cli.hydra.compose import compose_experiment
from eat_runner.config.identity import FRESH, Start, determinants
from eat_runner.records import RunFolder, RunRecord


def write(folder, commit, seconds):
    folder.mkdir()
    record = RunRecord(run_id=folder.name, status="finished", git_commit=commit, threads=2)
    record.versions, record.machine = {"python": "3.11", "absent": None}, {"processor": "a processor"}
    record.timings = {"training_s": seconds, "evaluation_s": None}
    RunFolder(folder).write_record(record)
    return RunFolder(folder)


def test_runs_of_the_same_commit_count_together_and_damaged_ones_do_not(tmp_path):
    runs = [
        write(tmp_path / name, commit, s)
        for name, commit, s in (("a", "x", 1800.0), ("b", "x", 1800.0), ("c", "y", 5.0))
    ]
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "record.json").write_text("{")
    found = makers([*runs, RunFolder(tmp_path / "damaged"), RunFolder(tmp_path / "missing")])
    assert [(maker["git_commit"], maker["runs"], maker["training_s"]) for maker in found] == [
        ("x", 2, 3600.0),
        ("y", 1, 5.0),
    ]
    said = "2 runs, 1.00 hours of training on a processor, 2 threads a run; commit x; python 3.11"
    assert in_words(found[0]) == said
    on_gpu = found[0] | {"machine": {"accelerator": "a GPU"}}
    assert " on a GPU; commit x" in in_words(on_gpu)


@pytest.mark.parametrize(
    "run",
    [
        "gtsrb-slim/*-lambda0-seed0-*",
        "gtsrb-slim/*-lambda2-seed1-*",
        "methods/gtsrb/*-l0-pruning_energy-lambda2-*",
        "methods/gtsrb/*-pruning_energy-compact_exact-*",
        "methods/gtsrb/*-bits_4-lambda0-*",
    ],
)
def test_the_command_of_a_committed_run_leads_to_its_determinants(run):
    folder = next((Path(__file__).parents[2] / "results").glob(run))
    record = RunFolder(folder).read_record()
    program, *arguments = shlex.split(command_of(record))
    start = Start(parent=record.parent["run_id"]) if record.parent else FRESH
    assert program == "eat-run"
    assert determinants(compose_experiment(arguments), record.data_fingerprint, start) == record.determinants


def test_a_record_that_does_not_say_how_has_no_command():
    assert command_of(RunRecord(run_id="old")) == ""
    odd = {"lambda": 1, "penalty": {"name": "l0"}, "dataset": {"name": "../../x"}}
    assert command_of(RunRecord(run_id="odd", determinants={"seed": 0}, config=odd)) == ""
