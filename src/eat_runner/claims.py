"""Who works on what, when several processes share a results folder.

A claim is a lock of the operating system (flock), so a killed process lets go of it at once: no heartbeats, no pid
files. Where a file system does not know flock at all (ENOSYS), filelock warns and falls back to the existence of a
file that names its owner: a dead owner on the same machine is noticed, one on another machine is not. A file system
that knows flock and refuses it is refused here, in one line.
"""

import errno
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from eat_runner.errors import UserError

RUN_LOCK = ".lock"
REPORT_LOCK = ".report.lock"
# mounts without a lock server, with locking switched off, or of a kind that has none
NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL})


@contextmanager
def claim(folder: Path) -> Generator[bool]:
    """True for the length of the block if the run in ``folder`` is ours, False if another process has it.

    Does not wait. After a True, ask again whether the run is final: its last owner may have finished it meanwhile.
    Raises UserError where the file system has no locks.
    """
    lock = FileLock(folder / RUN_LOCK)
    try:
        _acquire(lock, blocking=False)
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
    Raises UserError where the file system has no locks.
    """
    lock = FileLock(folder / REPORT_LOCK)
    _acquire(lock)
    try:
        for left in folder.glob(".*.tmp"):  # of a killed process: only who has the lock writes here
            left.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


def check_locks(folder: Path) -> None:
    """UserError where the file system that ``folder`` is on has no locks."""
    lock = FileLock(folder / REPORT_LOCK)
    with suppress(Timeout):  # somebody writes a report: there are locks
        _acquire(lock, blocking=False)
        lock.release()


def _acquire(lock: FileLock, blocking: bool = True) -> None:
    try:
        lock.acquire(blocking=blocking)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        raise UserError(
            f"{lock.lock_file} cannot be locked ({error.strerror}): choose a results_dir on a file system with locks "
            "(NFS 4, Lustre mounted with flock, a local disk)"
        ) from error
