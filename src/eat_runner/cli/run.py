"""``eat-run``: one run or a sweep, then the summary, the front and the plots.

Exit codes: 0 all is done; 1 a run failed; 2 bad input, nothing was started; 75 stopped, the same command continues.
"""

import atexit
import gc
import os
import sys
import time
import traceback
from argparse import Namespace
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
import yaml
from hydra._internal.utils import get_args_parser
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from eat_runner.claims import claim
from eat_runner.cli.callbacks import BeforeJobs, Identity, Refused, prepare_all
from eat_runner.cli.compose import CONFIG_NAME, HYDRA_VERSION_BASE, no_foreign_code, register, to_experiment
from eat_runner.cli.errors import one_line
from eat_runner.cli.help import help_text
from eat_runner.cli.hydra_errors import explain
from eat_runner.cli.stoppable import CONTINUE_ME, run_stoppable
from eat_runner.config.paths import conf_dir
from eat_runner.config.root import ExperimentConfig
from eat_runner.errors import UserError
from eat_runner.records import FINAL, RunFolder, RunRecord

if TYPE_CHECKING:
    from eat_runner.run import PlannedRun

PROGRAM = "eat-run"
RUN_FAILED = 1
SECONDS_BETWEEN_LOOKS = 10  # at a cluster's queue
LOOKS, SECONDS_TO_LOOK_AGAIN = 3, 0.2  # at runs that somebody has, perhaps only to ask for their status

_failed: list[ExperimentConfig] = []  # jobs that this process has tried


def main() -> None:
    """Entry point of the console script."""
    run_stoppable(PROGRAM, command)


def command(arguments: Sequence[str]) -> int:
    """Run the command line ``eat-run ARGUMENTS``; the exit code. Raises UserError for bad input."""
    if check_flags(arguments).help:
        print(help_text(), end="")
        return 0
    runs: dict[Path, ExperimentConfig] = {}
    before: dict[Path, float] = {}

    def accept(jobs: list[ExperimentConfig]) -> None:
        runs.update(begin(jobs))
        before.update({folder: written(folder) for folder in runs})
        _failed.clear()

    collated = False
    try:
        run_hydra(arguments, accept)
        if not BeforeJobs.on_cluster:  # where this command runs is no place to train
            take_over(runs, before)
    finally:
        collated = collate(list(runs.values()))
    return exit_code(list(runs)) if collated else RUN_FAILED


def begin(configs: list[ExperimentConfig]) -> dict[Path, ExperimentConfig]:
    """What happens before the first run: show the plan and leave, or prepare data and networks. The runs' folders."""
    with _importing_torch():
        from eat_runner import run as experiment

    if any(config.plan for config in configs):
        print_plan(experiment.plan(configs))
        sys.exit(0)

    def prepare_one(config: ExperimentConfig) -> Identity:
        job = experiment.locate(config)
        experiment.build_or_error(job)  # an error that is no UserError is one run's: it will fail alone
        return job.dataset.fingerprint, job.origin.start

    return prepare_all(configs, prepare_one)


@contextmanager
def _importing_torch() -> Generator[None]:
    """Torch brings hundreds of thousands of objects that all stay. Looking for garbage among them would take a quarter
    of its import, and more of the rest of a run: nobody looks, until the process ends."""
    first, enabled = "torch" not in sys.modules, gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if first:
            gc.freeze()
            atexit.register(_look_once)
        if enabled:
            gc.enable()


def _look_once() -> None:
    """When the process ends: Python looks three times then, or once if it is told not to. Not at all would make
    libraries complain about what is left of them."""
    gc.unfreeze()
    gc.disable()


def task(config: DictConfig) -> str:
    """One job, possibly in a worker process of a launcher: run it and return its status."""
    job = to_experiment(config)
    job.check()
    return run_job(job)


def run_job(job: ExperimentConfig) -> str:
    """Run it, say so if it fails, in whatever way, and stop then if that is wanted; its status."""
    from eat_runner import run as experiment

    if any(failed.on_error == "stop" for failed in _failed):  # a worker that is not ended yet
        sys.exit(RUN_FAILED)
    try:
        record = experiment.run(job)
    except Exception as error:  # before the run had a folder for its record
        name = f"lambda={job.lambda_:g} seed={job.seed}"
        record = RunRecord(run_id=name, status="failed", reason=_with_place(error))
    if record.status == "failed":
        _failed.append(job)
        print(f"{PROGRAM}: run {record.run_id} failed: {record.reason}", file=sys.stderr, flush=True)
        if job.on_error == "stop":
            sys.exit(RUN_FAILED)
    return record.status


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
                found = status(RunFolder(folder))
                tried = job in _failed or (found == "failed" and written(folder) != before[folder])
                if found not in {*FINAL, "running"} and not tried:
                    found = run_job(job)
                somebody_has |= found == "running"
        if not somebody_has:
            return


def written(folder: Path) -> float:
    """When the run's record was written, 0 without one."""
    with suppress(OSError):
        return RunFolder(folder).record.stat().st_mtime
    return 0.0


def collate(configs: list[ExperimentConfig]) -> bool:
    """Write table, front and plots of each folder that the command ran in, and show them.

    False where that was not possible: runs that were done stay done, so this is told and not raised.
    """
    if not configs:
        return True
    from eat_runner import report

    reports = {(Path(c.results_dir) / c.name, c.hardware.name, c.selection): c for c in configs}
    try:
        for (folder, _, selection), config in reports.items():
            written = report.write_report(folder, config.hardware, selection)
            with suppress(OSError):  # who reads our output has gone, which takes nothing from the runs
                report.show(written)
    except (UserError, OSError) as error:
        print(f"{PROGRAM}: no report: {one_line(error)}", file=sys.stderr, flush=True)
        return False
    return True


def exit_code(folders: list[Path]) -> int:
    """What the records on disk say about the command's runs, under whatever launcher they ran."""
    statuses = {status(RunFolder(folder)) for folder in folders}
    if statuses & {"failed", "missing"}:
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


def print_plan(runs: "list[PlannedRun]") -> None:
    """A line a run, and what is left to do."""
    width = max(len(run.run_id) for run in runs)
    todo = [run for run in runs if run.status not in FINAL]
    for run in runs:
        left = run.reason or (_duration(run.seconds) if run in todo else "")
        print(f"{run.run_id:{width}}  {run.status:11}  {left}".rstrip())
    time = f", about {_duration(sum(run.seconds for run in todo))}" if todo else ""
    print(f"{len(runs)} runs: {len(runs) - len(todo)} done, {len(todo)} to do{time}")


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def run_hydra(arguments: Sequence[str], accept: Callable[[list[ExperimentConfig]], None]) -> None:
    """Hand the command line to Hydra, and turn what it complains about into a UserError of one line."""
    register()
    BeforeJobs.accept = staticmethod(accept)
    run = hydra.main(version_base=HYDRA_VERSION_BASE, config_path=str(conf_dir()), config_name=CONFIG_NAME)(task)
    with _arguments(arguments), _errors_from_hydra(), no_foreign_code():
        run()


def compose_sweep(overrides: Sequence[str]) -> list[ExperimentConfig]:
    """The configurations of ``eat-run -m OVERRIDES``, composed by Hydra and checked; nothing is run."""
    configs: list[ExperimentConfig] = []

    def keep(found: list[ExperimentConfig]) -> None:
        configs.extend(found)
        sys.exit(0)

    with suppress(SystemExit):
        run_hydra(["-m", *overrides], keep)
    return configs


def check_flags(arguments: Sequence[str]) -> Namespace:
    """Refuse the flags that Hydra would answer with a page or a traceback, and the one that loads a pickle."""
    parser = get_args_parser()

    def refuse(message: str) -> Any:
        raise UserError(f"{message}: see {PROGRAM} --help")

    parser.error = refuse
    flags, unknown = parser.parse_known_args(list(arguments))
    if unknown and "=" in unknown[0] and not unknown[0].startswith("-"):
        raise UserError(f"{unknown[0]} stands behind an option: write options such as -m in front of key=value")
    if unknown:
        raise UserError(f"{unknown[0]} is no option: see {PROGRAM} --help")
    if flags.experimental_rerun is not None:
        raise UserError("--experimental-rerun is not supported, since it loads a pickle: repeat the command instead")
    if flags.run + flags.multirun + flags.shell_completion + (flags.cfg is not None) + (flags.info is not None) > 1:
        raise UserError("only one of --run, --multirun, --cfg, --info and --shell-completion can be used at a time")
    if flags.resolve and flags.cfg is None:
        raise UserError("--resolve goes with --cfg: write --cfg job --resolve")
    if flags.shell_completion and sum(o.startswith(("install=", "uninstall=", "query=")) for o in flags.overrides) != 1:
        raise UserError(f"--shell-completion needs a shell: write {PROGRAM} -sc install=bash (or zsh, fish)")
    return flags


@contextmanager
def _arguments(arguments: Sequence[str]) -> Generator[None]:
    before = sys.argv
    sys.argv = [PROGRAM, *arguments]
    try:
        yield
    finally:
        sys.argv = before


@contextmanager
def _errors_from_hydra() -> Generator[None]:
    """Inside, Hydra raises instead of printing; what leaves is a UserError where it is a person's mistake."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    except Refused as refused:
        raise _readable(refused.__cause__) from refused.__cause__
    except BrokenProcessPool:
        print(
            f"{PROGRAM}: a worker process was killed, as the system does where memory runs out: "
            "the same command continues (hydra.launcher.n_jobs=N says how many work at once)",
            file=sys.stderr,
            flush=True,
        )
        sys.exit(RUN_FAILED)
    except Exception as error:
        if not _job_vanished(error):
            raise _readable(error) from error
        print(f"{PROGRAM}: {' '.join(str(error).splitlines()[:2])}", file=sys.stderr, flush=True)
        _wait_for_the_others()
    finally:
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before


def _readable(error: BaseException | None) -> BaseException:
    assert error is not None
    theirs = isinstance(error, HydraException | OmegaConfBaseException | yaml.YAMLError)
    return UserError(explain(error)) if theirs or str(error).startswith("Config group override") else error


def _job_vanished(error: Exception) -> bool:
    """True where submitit says that a job on the cluster ended without a result; the run's record says more."""
    return type(error).__module__.startswith("submitit") and "JobError" in type(error).__name__


def _wait_for_the_others() -> None:
    """Until the cluster has ended all jobs: Hydra's launcher turns away from them once one has vanished."""
    from submitit.slurm.slurm import SlurmJob

    watcher = SlurmJob.watcher
    known = watcher._registered  # pyright: ignore[reportPrivateUsage]
    # 7 besides 7_0, 7_1 … is their array, of which the cluster reports nothing
    jobs = [job for job in known if not any(other.startswith(f"{job}_") for other in known)]
    while not all(watcher.is_done(job, mode="cache") for job in jobs):
        time.sleep(SECONDS_BETWEEN_LOOKS)
        watcher.update()


if __name__ == "__main__":
    main()
