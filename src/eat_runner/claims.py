"""Who works on what, when several processes share a results folder.

A claim is a lock of the operating system (flock), so a killed process lets go of it at once: no heartbeats, no pid
files. Where a file system has no locks at all, filelock falls back to the existence of a file, which a killed
process leaves behind; there, use one process, or delete the .lock file of a dead one.
"""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

RUN_LOCK = ".lock"
REPORT_LOCK = ".report.lock"


@contextmanager
def claim(folder: Path) -> Generator[bool]:
    """True for the length of the block if the run in ``folder`` is ours, False if another process has it.

    Does not wait. After a True, ask again whether the run is final: its last owner may have finished it meanwhile.
    """
    lock = FileLock(folder / RUN_LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


@contextmanager
def report_lock(folder: Path) -> Generator[None]:
    """Wait for, and hold, the right to write a report into ``folder``.

    Who reads the runs and writes the tables under this lock leaves the whole picture, whoever comes last.
    """
    with FileLock(folder / REPORT_LOCK):
        for left in folder.glob(".*.tmp"):  # of a killed process: only who has the lock writes here
            left.unlink(missing_ok=True)
        yield
