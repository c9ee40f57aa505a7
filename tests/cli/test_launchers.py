"""hydra/launcher=joblib and ray: several runs at once. hydra/launcher=slurm: test_slurm.py."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest

from processes import PATIENCE_S, appears, command_line, finish, outcomes, output, results, run_folders

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not find_spec("joblib"), reason="the extra joblib is not there"),
]
SWEEP = "-m lambda=0,1 seed=0,1"
JOBLIB = "hydra/launcher=joblib hydra.launcher.n_jobs=2"


def start(folder: Path, arguments: str) -> "subprocess.Popen[str]":
    """``eat-run ARGUMENTS`` as the leader of a session of its own."""
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "eat_runner.cli.run", *command_line(folder, arguments.split())],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def session(leader: int) -> list[int]:
    """The processes of a session."""
    found: list[int] = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == leader and fields[0] != "Z":
                found.append(int(folder.name))
    return found


def test_runs_side_by_side_are_those_of_one_after_the_other(tmp_path: Path) -> None:
    """With two threads each, as the configuration says, whatever joblib would give them: another number of threads
    gives other last bits."""
    sweep = "-m lambda=0,1 trainer.epochs=1 threads=2"
    assert finish(tmp_path / "basic", sweep) == 0, output(tmp_path / "basic")
    process = start(tmp_path / "joblib", f"{sweep} {JOBLIB}")
    text, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, text
    assert [run.read_record().threads for run in run_folders(tmp_path / "joblib")] == [2] * 2
    assert outcomes(tmp_path / "joblib") == outcomes(tmp_path / "basic")
    assert (results(tmp_path / "joblib") / "summary.csv").read_text().count("finished") == 2
    assert not session(process.pid)


@pytest.mark.parametrize("to_all", [False, True], ids=["to the command", "Ctrl-C to all"])
def test_a_stopped_sweep_leaves_no_process_and_continues(tmp_path: Path, to_all: bool) -> None:
    sweep = f"{SWEEP} trainer.epochs=12"
    process = start(tmp_path / "joblib", f"{sweep} {JOBLIB}")
    begun = appears(tmp_path / "joblib", "results/default/*/checkpoint.pt")
    while not begun():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    (os.killpg if to_all else os.kill)(process.pid, signal.SIGINT if to_all else signal.SIGTERM)
    text, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 75, text
    assert re.search(r"^eat-run: stopped after [0-3] of 4 runs: the same command continues\n\Z", text, re.MULTILINE)
    assert "eat-run: run " not in text  # a worker does not know which of how many it has
    end = time.monotonic() + 20
    while session(process.pid):
        assert time.monotonic() < end, f"still there: {session(process.pid)}"
        time.sleep(0.1)
    assert finish(tmp_path / "joblib", sweep) == 0
    assert finish(tmp_path / "basic", sweep) == 0
    assert outcomes(tmp_path / "joblib") == outcomes(tmp_path / "basic")


def test_a_killed_worker_is_told_and_its_run_continues(tmp_path: Path) -> None:
    sweep = f"{SWEEP} trainer.epochs=12"
    process = start(tmp_path / "joblib", f"{sweep} {JOBLIB}")
    begun = appears(tmp_path / "joblib", "results/default/*/checkpoint.pt")
    while not begun():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    worker = max(pid for pid in session(process.pid) if b"loky" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(worker, signal.SIGKILL)
    text, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1, text
    told = "eat-run: a worker process was killed, as the system does where memory runs out: the same command continues"
    assert text.count(told) == 1, text
    assert "Traceback" not in text
    assert finish(tmp_path / "joblib", sweep) == 0
    assert (results(tmp_path / "joblib") / "summary.csv").read_text().count("finished") == 4


def test_a_failing_run_fails_alone_or_stops_the_others(tmp_path: Path) -> None:
    """A file lies where the folder of lambda=1, seed=0 should be."""
    sweep = f"{SWEEP} trainer.epochs=6"
    folder = tmp_path / "joblib"
    assert finish(folder, f"{sweep} plan=true") == 0
    [name] = re.findall(r"\S+-lambda1-seed0-\S+", output(folder))
    results(folder).mkdir(parents=True)
    (results(folder) / name).touch()
    for line in (f"{JOBLIB} on_error=stop", JOBLIB):
        process = start(folder, f"{sweep} {line}")
        text, _ = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 1, text
        assert "eat-run: run lambda=1 seed=0 failed: FileExistsError: " in text
        assert "Traceback" not in text
        if "on_error=stop" in line:  # the other worker may have begun the last one by then
            assert not any(run.is_final() for run in run_folders(folder) if "-lambda1-seed1-" in run.path.name)
    assert [run.read_record().status for run in run_folders(folder)] == ["finished"] * 3
    (results(folder) / name).unlink()
    assert finish(folder, sweep) == 0
    assert (results(folder) / "summary.csv").read_text().count("finished") == 4


@pytest.mark.skipif(not find_spec("ray"), reason="the extra ray is not there")
def test_ray_makes_the_same_runs_and_a_failing_one_fails_alone(tmp_path: Path) -> None:
    sweep = "-m lambda=0,1 trainer.epochs=1"
    assert finish(tmp_path / "basic", sweep) == 0, output(tmp_path / "basic")
    assert finish(tmp_path / "ray", f"{sweep} plan=true") == 0
    [name] = re.findall(r"\S+-lambda1-seed0-\S+", output(tmp_path / "ray"))
    results(tmp_path / "ray").mkdir(parents=True)
    (results(tmp_path / "ray") / name).touch()  # where its folder should be
    for code, told in ((1, "run lambda=1 seed=0 failed: FileExistsError: "), (0, "")):
        process = start(tmp_path / "ray", f"{sweep} hydra/launcher=ray")
        text, _ = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == code, text
        assert told in text
        if code:
            (results(tmp_path / "ray") / name).unlink()
    assert outcomes(tmp_path / "ray") == outcomes(tmp_path / "basic")
    assert not session(process.pid)
