"""Several processes on one sweep: every run is done once, by whoever is alive, and the table is complete."""

import csv
import re
import signal
from collections import Counter
from pathlib import Path

from processes import eat_run, ended, kill_when, output

SWEEP = "-m lambda=0,0.5,1 seed=0,1 trainer.epochs=3"
RUNS, EPOCHS = 6, 3
EPOCH = re.compile(r"^(digits-\S+)  epoch (\d+) ", re.MULTILINE)


def epochs_done(text: str) -> Counter[tuple[str, str]]:
    """How often each epoch of each run was trained to its checkpoint, as the processes tell."""
    return Counter(EPOCH.findall(text))


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "results" / "default" / "summary.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def assert_complete(folder: Path, runs: int = RUNS) -> None:
    rows = table(folder)
    assert len(rows) == len({row["run_id"] for row in rows}) == runs
    assert all(row["status"] == "finished" and row["energy_ratio"] and row["energy_decrease_percent"] for row in rows)
    with (folder / "results" / "default" / "pareto.csv").open(newline="") as file:
        assert sum(int(row["n"]) for row in csv.DictReader(file)) == runs
    leftovers = [path for path in folder.rglob("*") if path.name.endswith((".tmp", ".pt"))]
    assert not leftovers


def test_four_processes_share_a_sweep_and_one_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    processes = [eat_run(folder, SWEEP) for _ in range(4)]

    def owner_in_the_middle() -> bool:
        return bool(EPOCH.search(output(folder)))

    killed = kill_when(processes[0], owner_in_the_middle)
    codes = [ended(process) for process in processes[1:]]
    assert killed in {-signal.SIGKILL, 0}
    assert set(codes) == {0}, output(folder)
    done = epochs_done(output(folder))
    assert max(done.values()) == 1, f"an epoch was trained twice: {done}"
    assert len({run for run, _ in done}) == RUNS
    assert_complete(folder)
