"""A run in one process of several, once: its claim, its signals, and that it fails alone."""

from collections.abc import Callable
from contextlib import suppress

from eat_runner.claims import claim
from eat_runner.config import ExperimentConfig
from eat_runner.environment import stop_signals
from eat_runner.records import RunFolder, RunRecord
from eat_runner.run.build import Experiment, build_or_error
from eat_runner.run.locate import locate
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
    with stop_signals() as stop, claim(folder.path) as ours:
        if not ours:
            return RunRecord(run_id=job.run_id, status="running", reason="another process has it")
        record = folder.read_own_record(job.run_id)
        if record is None or not record.final:
            built = isinstance(experiment, Experiment)
            record = _run_alone(experiment, stop, ends_early) if built else record_failure(job, experiment)
        if record.final:
            _tidy(record, folder)
        if stop():  # at the very end, or while it failed: the runs that would follow must not start
            raise Interrupted
    return record


def _run_alone(experiment: Experiment, stop: Callable[[], bool], ends_early: EndsEarly) -> RunRecord:
    """A run that fails fails alone."""
    try:
        return go_through(experiment, stop, ends_early)
    except Exception as error:
        return record_failure(experiment, error)


def _tidy(record: RunRecord, folder: RunFolder) -> None:
    """Delete what a final run has no more use for; also after a kill between its record and this."""
    trainer = record.config.get("trainer")
    with suppress(OSError):  # what is done is done, even where nothing can be deleted
        folder.traceback.unlink(missing_ok=True)
        if isinstance(trainer, dict) and trainer.get("keep_checkpoint") is False:
            folder.checkpoint.unlink(missing_ok=True)
