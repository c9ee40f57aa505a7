"""Several processes on one sweep: every run is done once, by whoever is alive, and the table is complete."""

import csv
import errno
import fcntl
import os
import re
import signal
import time
import warnings
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from eat_runner.claims import claim
from eat_runner.records import RunFolder
from processes import appears, eat_run, ended, finish, outcomes, output, pause_after, paused, results

SWEEP = "-m lambda=0,1 seed=0,1 trainer.epochs=2"
RUNS = 4
EPOCH = re.compile(r"^(digits-\S+)  epoch (\d+) ", re.MULTILINE)


def trained_to_a_checkpoint(text: str) -> Counter[tuple[str, str]]:
    """How often each epoch of each run was, as the processes tell: their line comes after the checkpoint."""
    return Counter(EPOCH.findall(text))


def assert_complete(folder: Path) -> None:
    with (results(folder) / "summary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len({row["run_id"] for row in rows}) == RUNS
    assert all(row["status"] == "finished" and row["energy_ratio"] and row["energy_decrease_percent"] for row in rows)
    with (results(folder) / "pareto.csv").open(newline="") as file:
        assert sum(int(row["n"]) for row in csv.DictReader(file)) == RUNS
    assert not [path for path in folder.rglob("*") if path.name.endswith((".tmp", ".pt"))]


@pytest.mark.long
def test_four_processes_share_a_sweep_and_one_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    killed = eat_run(folder, SWEEP, partial(pause_after, "checkpoint.pt"))
    with paused(killed):
        [owned] = results(folder).glob("*/checkpoint.pt")
        with claim(owned.parent) as mine:
            assert not mine
        others = [eat_run(folder, SWEEP) for _ in range(3)]
        begun = appears(folder, "results/default/*/record.json")
        while not begun():
            assert all(process.is_alive() for process in others), output(folder)
            time.sleep(0.005)
        killed.kill()
    assert ended(killed) == -signal.SIGKILL
    codes = [ended(process) for process in others]
    assert set(codes) <= {0, 1}, output(folder)  # 1: found the run of the dead process missing
    if any(codes):
        assert finish(folder, SWEEP) == 0
    assert RunFolder(owned.parent).read_record().status == "finished"
    often = trained_to_a_checkpoint(output(folder))
    assert max(often.values()) == 1, f"trained twice: {often}"
    assert len({run for run, _ in often}) == RUNS
    assert_complete(folder)
    assert finish(tmp_path / "alone", SWEEP) == 0
    assert outcomes(folder) == outcomes(tmp_path / "alone")


@pytest.mark.long
def test_the_run_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    """It dies while the other is at a later run: that one comes back to it before it ends."""
    folder = tmp_path / "shared"
    first = eat_run(folder, SWEEP, partial(pause_after, "checkpoint.pt"))
    with paused(first):
        second = eat_run(folder, SWEEP)
        begun = appears(folder, "results/default/*/record.json")
        while not begun():
            assert second.is_alive(), output(folder)
            time.sleep(0.005)
        first.kill()
    assert ended(first) == -signal.SIGKILL
    assert ended(second) == 0, output(folder)
    assert_complete(folder)
    assert max(trained_to_a_checkpoint(output(folder)).values()) == 1


def test_a_file_system_without_locks_gets_a_warning_and_the_existence_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", missing)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(2):
            with claim(tmp_path) as mine, claim(tmp_path) as again:
                assert mine
                assert not again
            assert not (tmp_path / ".lock").exists()
    assert "flock not supported on this filesystem" in str(told[0].message)
