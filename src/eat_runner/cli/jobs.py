"""The runs of a command, one by one: run them, take over what others left, and what became of them."""

import os
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from eat_runner.claims import claim
from eat_runner.cli.errors import one_line, tell
from eat_runner.config.identity import distinctions
from eat_runner.config.root import ExperimentConfig
from eat_runner.errors import CONTINUE_ME, RUN_FAILED, UserError
from eat_runner.records import FINAL, RunFolder, RunRecord

if TYPE_CHECKING:
    from eat_runner.run.stages import EndsEarly

PROGRAM = "eat-run"
LOOKS, SECONDS_TO_LOOK_AGAIN = 3, 0.2  # at runs that somebody has, perhaps only to ask for their status

_failed: list[ExperimentConfig] = []  # jobs that this process has tried


class Sweep:
    """The runs of a command in the process that it was given to; a launcher's workers know of none. left: those that
    were not done when somebody last looked."""

    def __init__(self, runs: Mapping[Path, ExperimentConfig]) -> None:
        self.runs, self.process = dict(runs), os.getpid()
        self.differs = distinctions({folder.name: config for folder, config in runs.items()})
        self.left = [folder for folder in runs if not _is_final(folder)]
        self.to_do, self.started = len(self.left), time.monotonic()

    @property
    def done(self) -> int:
        """How many are done, in whatever process."""
        self.left = [folder for folder in self.left if not _is_final(folder)]
        return len(self.runs) - len(self.left)

    def tell(self, job: ExperimentConfig) -> None:
        """Say that the run begins, and how long all of them take at the pace so far; nothing of one that is done or
        that another process has."""
        from eat_runner.progress import duration

        folder = next((folder for folder, run in self.runs.items() if run == job), None)
        if os.getpid() != self.process or len(self.runs) == 1 or folder is None or not _is_free(folder):
            return
        done = self.to_do - len(self.runs) + self.done
        waiting = sum(self.runs[folder] not in _failed for folder in self.left)  # what failed is not tried again now
        left = (time.monotonic() - self.started) / done * waiting if done else 0.0
        name = " ".join(filter(None, [folder.name, self.differs[folder.name]]))
        about = f", about {duration(left)} left for all" if done else ""
        tell(f"{PROGRAM}: run {[*self.runs].index(folder) + 1} of {len(self.runs)}: {name}{about}")


def _is_final(folder: Path) -> bool:
    with suppress(UserError):
        return RunFolder(folder).is_final()
    return False


def _is_free(folder: Path) -> bool:
    with suppress(UserError):
        return status(RunFolder(folder)) not in {*FINAL, "running"}
    return False


_sweep = Sweep({})


def begin_runs(runs: Mapping[Path, ExperimentConfig] = MappingProxyType({})) -> None:
    """At the beginning of a command: what another one has tried may be tried again. runs: those that are told of as
    they begin."""
    global _sweep
    _failed.clear()
    _sweep = Sweep(runs)


def unfinished() -> str:
    """How far the command came that has more to do."""
    total = len(_sweep.runs)
    return f"stopped after {_sweep.done} of {total} runs" if total > 1 else "stopped"


def run_job(job: ExperimentConfig, program: str = PROGRAM, **watched: "EndsEarly") -> str:
    """Run it, say so if it fails, in whatever way, and stop then if that is wanted; its status. watched: ``ends_early``
    of a search (run/execute.py)."""
    from eat_runner import run as experiment

    if any(failed.on_error == "stop" for failed in _failed):  # a worker that is not ended yet
        sys.exit(RUN_FAILED)
    try:
        _sweep.tell(job)
        record = experiment.run(job, **watched)
    except Exception as error:  # before the run had a folder for its record
        name = f"lambda={job.lambda_:g} seed={job.seed}"
        record = RunRecord(run_id=name, status="failed", reason=_with_place(error))
    if record.status == "failed":
        _failed.append(job)
        tell(f"{program}: run {record.run_id} failed: {record.reason}")
        if job.on_error == "stop":
            sys.exit(RUN_FAILED)
    return record.status


def run_points(job: ExperimentConfig) -> str:
    """Run all that the job stands for, along a path each where the one before it is done; the status of the last."""
    if not job.group("path").is_chosen:
        return run_job(job)
    from eat_runner import run as experiment

    status = ""
    for point in experiment.located_points(job):
        status = run_job(point)
        if status != "finished":  # a run that another process has is left to it, with all that follow
            if status == "diverged":
                tell(f"{PROGRAM}: lambda={point.lambda_:g} seed={point.seed} diverged, and the path ends there")
            break
    return status


def _with_place(error: Exception) -> str:
    """The error in one line, and where it was raised if it is no mistake of a person's."""
    if isinstance(error, UserError):
        return one_line(error)
    kind, place = type(error).__name__, traceback.extract_tb(error.__traceback__)[-1]
    said = one_line(error).removeprefix(kind)
    return f"{kind}{said and ': '}{said} ({Path(place.filename).name}:{place.lineno})"


def take_over(runs: Mapping[Path, ExperimentConfig], before: Mapping[Path, float]) -> None:
    """Once all jobs had their turn, under whatever launcher: the runs that are not done and that nobody has, since who
    had them died. Waits for nobody; but who only asked for a status holds a run for a moment, so look again.

    before: when each run's record was written; one that failed since then is not tried again.
    """
    for look in range(LOOKS):
        if look:
            time.sleep(SECONDS_TO_LOOK_AGAIN)
        somebody_has = False
        for folder, job in runs.items():
            with suppress(UserError):  # a damaged record: the exit code tells
                found = standing(folder, runs)
                tried = job in _failed or (found == "failed" and written(folder) != before[folder])
                if found not in {*FINAL, "running", "waiting"} and not tried:
                    found = run_job(job)
                somebody_has |= found == "running"
        if not somebody_has:
            return


def written(folder: Path) -> float:
    """When the run's record was written, 0 without one."""
    with suppress(OSError):
        return RunFolder(folder).record.stat().st_mtime
    return 0.0


def standing(folder: Path, runs: Mapping[Path, ExperimentConfig]) -> str:
    """The status of a run of the command: of one that waits for its parent, another of the command's, what that has, or
    ``waiting`` where it will have no network to hand on."""
    found, parent = status(RunFolder(folder)), Path(runs[folder].init or "")
    if found != "missing" or parent not in runs:
        return found
    theirs = standing(parent, runs)
    return found if theirs == "finished" else theirs if theirs in {"running", "interrupted"} else "waiting"


def exit_code(runs: Mapping[Path, ExperimentConfig]) -> int:
    """What the records on disk say about the command's runs, under whatever launcher they ran."""
    statuses = {standing(folder, runs) for folder in runs}
    if statuses & {"failed", "missing", "waiting"}:
        return RUN_FAILED
    return CONTINUE_ME if "interrupted" in statuses else 0


def status(folder: RunFolder) -> str:
    """The status in the record, ``missing`` without one; ``running`` where it is not final and another process has the
    run. UserError where the record is damaged or another run's."""
    found = _recorded(folder)
    if found in FINAL or not folder.path.is_dir():
        return found
    try:
        with claim(folder.path) as ours:
            return _recorded(folder) if ours else "running"  # again: it may have ended meanwhile
    except OSError:  # full or read-only: nobody can work there
        return found


def _recorded(folder: RunFolder) -> str:
    record = folder.read_own_record(folder.path.name)
    return record.status if record else "missing"
