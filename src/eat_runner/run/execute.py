"""A run in one process of several, once: its claim, its signals, and that it fails alone."""

from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from eat_runner.claims import claim
from eat_runner.config import ExperimentConfig
from eat_runner.distributed import anyone, first_failure, from_first, together
from eat_runner.environment import stop_signals
from eat_runner.ranks import is_first, world_size
from eat_runner.records import RunFolder, RunRecord
from eat_runner.run.build import Experiment, build_or_error
from eat_runner.run.locate import Job, locate
from eat_runner.run.record import record_failure
from eat_runner.run.stages import EndsEarly, Interrupted, go_through


def run(config: ExperimentConfig, ends_early: EndsEarly = lambda row: None) -> RunRecord:
    """Train and measure, or return the record of what is already done.

    The record says how it ended: finished, diverged, stopped (by ``ends_early``: the same run goes on from there),
    failed (with a reason; nothing is raised), or running where another process has the run. Raises UserError where the
    input is wrong, Interrupted where a signal asked to stop, and what else goes wrong before the run has its folder and
    its claim.
    """
    job = locate(config)
    experiment = build_or_error(job)
    folder = job.folder
    folder.create()
    with stop_signals() as noted, _claim_of_all(folder.path) as ours:
        if not ours:
            return RunRecord(run_id=job.run_id, status="running", reason="another process has it")
        record = from_first(lambda: folder.read_own_record(job.run_id))
        if record is None or not record.final:
            record = _run_alone(job, experiment, lambda: anyone(noted()), ends_early)
        if record.final and is_first():
            _tidy(record, folder)
        ended_by_torchrun = world_size() > 1 and record.status == "failed"  # as soon as one process fails
        if noted() and not ended_by_torchrun:  # at the very end, or while it failed: the next runs must not start
            raise Interrupted
    return record


@contextmanager
def _claim_of_all(folder: Path) -> Generator[bool]:
    """Of processes that train together, the first one has the claim."""
    with claim(folder) if is_first() else nullcontext(False) as ours:
        yield from_first(lambda: ours)


def _run_alone(
    job: Job, experiment: Experiment | Exception, stop: Callable[[], bool], ends_early: EndsEarly
) -> RunRecord:
    """A run that fails fails alone, in all processes that train it."""
    try:
        together(lambda: _check_built(experiment))
        assert isinstance(experiment, Experiment)
        return go_through(experiment, stop, ends_early)
    except Exception as error:
        failed = experiment if isinstance(experiment, Experiment) else job
        return record_failure(failed, first_failure(error))


def _check_built(experiment: Experiment | Exception) -> None:
    if isinstance(experiment, Exception):
        raise experiment


def _tidy(record: RunRecord, folder: RunFolder) -> None:
    """Delete what a final run has no more use for; also after a kill between its record and this."""
    trainer = record.config.get("trainer")
    with suppress(OSError):  # what is done is done, even where nothing can be deleted
        folder.traceback.unlink(missing_ok=True)
        if isinstance(trainer, dict) and trainer.get("keep_checkpoint") is False:
            folder.checkpoint.unlink(missing_ok=True)
