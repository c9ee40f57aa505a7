"""Programs in processes of their own that can be killed; they start in no time, since one server has torch imported.

Used by the tests of kills, of several processes on one sweep, of disks that fail, and by scripts/soak.py.
"""

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from eat_runner.records import RunFolder

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["eat_runner.run", "eat_runner.report", "eat_runner.cli.run", "sklearn.datasets"])
PATIENCE_S = 600.0
OUTPUT = "output.txt"
# of a record; the commit may change while somebody works on the source
UNTIMED = {"timings", "checksum", "git_commit"}

# a run of a second or two in which everything that is random, and everything that changes with time, takes part
SMALL = (
    "dataset.train_limit=256",
    "dataset.crop_padding=1",
    "dataset.rotation_degrees=5",
    "model.width=4",
    "schedule=cosine",
    "trainer.batch_size=32",
    "trainer.compile=off",
    "threads=1",
    "device=cpu",
)


def eat_run(
    folder: Path, arguments: str, before: Callable[[], None] | None = None, program: str = "run"
) -> ForkServerProcess:
    """Start ``eat-run ARGUMENTS`` in ``folder``, the store of its data beside it; output goes to ``output.txt`` there.

    before: called in the new process first. program: another command of cli/.
    """
    folder.mkdir(parents=True, exist_ok=True)
    process = SERVER.Process(target=_command, args=(folder, arguments.split(), before, program))
    process.start()
    return process


def command_line(folder: Path, arguments: Sequence[str]) -> list[str]:
    """The arguments, and what all runs of the tests have in common where they do not say otherwise."""
    said = {argument.partition("=")[0] for argument in arguments}
    common = [value for value in SMALL if value.partition("=")[0] not in said]
    return [*arguments, *common, f"data_dir={folder.parent / 'data'}"]


def _command(folder: Path, arguments: list[str], before: Callable[[], None] | None, program: str) -> None:
    os.chdir(folder)
    output = os.open(OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if before is not None:
        before()
    sys.argv = [f"eat-{program}", *command_line(folder, arguments)]
    import_module(f"eat_runner.cli.{program}").main()


def finish(folder: Path, arguments: str, before: Callable[[], None] | None = None) -> int:
    """``eat-run ARGUMENTS`` to its end; the exit code."""
    return ended(eat_run(folder, arguments, before))


def ended(process: ForkServerProcess) -> int:
    """The exit code, minus the signal's number where one killed it."""
    process.join(PATIENCE_S)
    if process.is_alive():
        process.kill()
        raise AssertionError(f"still running after {PATIENCE_S:.0f} s")
    assert process.exitcode is not None
    return process.exitcode


def kill_when(process: ForkServerProcess, happened: Callable[[], bool], number: int = signal.SIGKILL) -> int:
    """Send a signal as soon as ``happened()`` is true; the exit code, that of a process which was faster included."""
    while process.exitcode is None and not happened():
        time.sleep(0.0005)
    if process.exitcode is None:
        assert process.pid is not None
        os.kill(process.pid, number)
    return ended(process)


def pause_after(name: str) -> None:
    """Stop the process as a SIGSTOP does once that file is written for the first time."""
    from eat_runner import records
    from eat_runner.run import resume, stages

    def pauses(path: Path, data: bytes) -> None:
        write(path, data)
        if path.name == name:
            records.write_atomically = resume.write_atomically = stages.write_atomically = write
            os.kill(os.getpid(), signal.SIGSTOP)

    write = records.write_atomically
    records.write_atomically = resume.write_atomically = stages.write_atomically = pauses


@contextmanager
def paused(process: ForkServerProcess) -> Iterator[None]:
    """Wait until the process has stopped; it goes on after the block, if it is still there."""
    assert process.pid is not None
    stat = Path(f"/proc/{process.pid}/stat")
    while stat.read_text().rpartition(")")[2].split()[0] != "T":
        assert process.is_alive()
        time.sleep(0.005)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGCONT)


def results(folder: Path) -> Path:
    return folder / "results" / "default"


def run_folders(folder: Path) -> list[RunFolder]:
    return [RunFolder(path) for path in sorted(results(folder).iterdir()) if path.is_dir() and path.name[0] != "."]


def outcome(run: RunFolder) -> dict[str, Any]:
    """Everything that a run leaves, without times: the files that are there, and what is in them."""
    record = json.loads(run.record.read_text())
    history = run.read_history()
    for row in history:
        del row["seconds"]
    return {
        "files": sorted(path.name for path in run.path.iterdir()),
        "record": {key: value for key, value in record.items() if key not in UNTIMED},
        "history": history,
        "weights": run.weights.read_bytes(),
        "layers": run.layers.read_bytes(),
        "batches": run.batches.read_bytes(),
        "config": run.config.read_bytes(),
    }


def outcomes(folder: Path) -> dict[str, dict[str, Any]]:
    """What each run leaves, by its name."""
    return {run.path.name: outcome(run) for run in run_folders(folder)}


def output(folder: Path) -> str:
    path = folder / OUTPUT
    return path.read_text() if path.exists() else ""


def stamp(path: Path) -> Any:
    """What changes when a file is written again; None while there is no such file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def appears(folder: Path, pattern: str) -> Callable[[], bool]:
    """True once a file below ``folder`` that matches is there or is another one than now."""
    before = {path: stamp(path) for path in folder.glob(pattern)}
    return lambda: any(stamp(path) not in (None, before.get(path)) for path in folder.glob(pattern))


def after(seconds: float) -> Callable[[], bool]:
    """True once so much time has passed."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end
