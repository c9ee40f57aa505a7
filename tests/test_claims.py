"""A run belongs to one process at a time, and a dead owner's run to nobody."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eat_runner.claims import check_locks, claim, report_lock
from eat_runner.errors import UserError

HOLD = """
import sys, time
from pathlib import Path
from eat_runner.claims import claim
with claim(Path(sys.argv[1])) as mine:
    print(mine, flush=True)
    time.sleep(float(sys.argv[2]))
"""

COUNT = """
import sys
from pathlib import Path
from eat_runner.claims import report_lock
folder = Path(sys.argv[1])
for _ in range(20):
    with report_lock(folder):
        number = int((folder / "number").read_text())
        (folder / "number").write_text(str(number + 1))
"""


def holder(folder: Path, seconds: float) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), str(seconds)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "True\n"
    return process


def test_a_claim_is_given_once_and_given_back(tmp_path: Path) -> None:
    with claim(tmp_path) as mine:
        assert mine
        with claim(tmp_path) as again:
            assert not again
    with claim(tmp_path) as mine:
        assert mine


def test_a_claim_is_let_go_when_the_block_raises(tmp_path: Path) -> None:
    try:
        with claim(tmp_path):
            raise KeyError
    except KeyError:
        pass
    with claim(tmp_path) as mine:
        assert mine


def test_another_process_holds_it_until_it_is_killed(tmp_path: Path) -> None:
    process = holder(tmp_path, 60)
    with claim(tmp_path) as mine:
        assert not mine
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with claim(tmp_path) as mine:
        assert mine


def test_runs_of_different_folders_do_not_block_each_other(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with claim(tmp_path / "a") as a, claim(tmp_path / "b") as b:
        assert a
        assert b


def test_the_report_lock_waits_and_loses_no_update(tmp_path: Path) -> None:
    (tmp_path / "number").write_text("0")
    with report_lock(tmp_path):
        processes = [subprocess.Popen([sys.executable, "-c", COUNT, str(tmp_path)]) for _ in range(3)]
        time.sleep(0.2)
        assert (tmp_path / "number").read_text() == "0"
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert (tmp_path / "number").read_text() == "60"


def test_who_writes_a_report_shows_that_there_are_locks(tmp_path: Path) -> None:
    with report_lock(tmp_path):
        check_locks(tmp_path)
    check_locks(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_that_refuses_locks_is_refused(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As NFS without its lock server does. Where flock is not known at all (ENOSYS): test_many_processes.py."""

    def refuses(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuses)
    for lock, name in ((claim, ".lock"), (report_lock, ".report.lock")):
        with pytest.raises(UserError) as refused, lock(tmp_path):
            raise AssertionError("it was locked")
        assert str(refused.value) == (
            f"{tmp_path / name} cannot be locked ({os.strerror(number)}): choose a results_dir on a file system with "
            "locks (NFS 4, Lustre mounted with flock, a local disk)"
        )
    with pytest.raises(UserError, match="cannot be locked"):
        check_locks(tmp_path)
