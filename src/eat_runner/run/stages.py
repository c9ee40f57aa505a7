"""A run, on one page: where it belongs, its parts, and its stages one after the other."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import torch

from eat_runner import models
from eat_runner.claims import claim
from eat_runner.config import ExperimentConfig
from eat_runner.config.identity import as_plain
from eat_runner.energy.counts import merge
from eat_runner.energy.meter import NonFiniteError
from eat_runner.environment import keep_freed_memory, stop_signals
from eat_runner.errors import one_line
from eat_runner.loggers import Loggers, listening
from eat_runner.loggers.base import About
from eat_runner.records import RunFolder, RunRecord, write_atomically
from eat_runner.run.build import Experiment, build_or_error, locate_and_build
from eat_runner.run.locate import locate
from eat_runner.run.record import add_measurements, first_line, record_failure, record_of
from eat_runner.train.checkpoint import pack, unpack
from eat_runner.train.evaluate import Evaluation, evaluate
from eat_runner.train.history import EpochRow
from eat_runner.train.loop import Trainer

EXIT_CONTINUE_ME = 75

# (an epoch's row) -> why the run is to end here, None to go on
EndsEarly = Callable[[EpochRow], str | None]


class Interrupted(SystemExit):
    """A signal stopped the run after its checkpoint was written: the same command continues it."""

    def __init__(self) -> None:
        super().__init__(EXIT_CONTINUE_ME)


class Ended(Exception):
    """The run has come to its end before its last stage. The rest is for its record."""

    def __init__(self, status: str, reason: str):
        self.status, self.reason = status, reason


@dataclass
class Work:
    """A run that is under way. stop: whether somebody wants to stop. evaluations: by split. changed: by its methods,
    after the training: no checkpoint can hold that network."""

    experiment: Experiment
    trainer: Trainer
    loggers: Loggers
    stop: Callable[[], bool]
    ends_early: EndsEarly
    evaluations: dict[str, Evaluation] = field(default_factory=dict[str, Evaluation])
    changed: bool = False


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
        return _run(experiment, stop, ends_early)
    except Exception as error:
        return record_failure(experiment, error)


def _run(experiment: Experiment, stop: Callable[[], bool], ends_early: EndsEarly) -> RunRecord:
    config, folder = experiment.config, experiment.folder
    keep_freed_memory()
    folder.remove_leftovers()
    folder.write_config(as_plain(config))
    trainer, message = _resumed(experiment)
    steps = config.trainer.epochs * trainer.steps
    about = About(experiment.run_id, folder, as_plain(config), steps, trainer.steps_done, trainer.history)
    with listening(config.loggers, about) as loggers:
        if message:
            loggers.say(message)
        work = Work(experiment, trainer, loggers, stop, ends_early)
        try:
            for stage in STAGES:
                stage(work)
            record = record_of(experiment, trainer, "finished")
            add_measurements(record, work.evaluations, merge(e.counts for e in work.evaluations.values()))
        except Ended as end:
            record = record_of(experiment, trainer, end.status, end.reason)
        except NonFiniteError as error:
            record = record_of(experiment, trainer, "diverged", one_line(str(error)))
        folder.write_record(record)
        loggers.record = record
    return record


def train(work: Work) -> None:
    """Epoch by epoch; a checkpoint and the loggers' rows as they come."""
    trainer, settings = work.trainer, work.experiment.config.trainer
    for row in trainer.epochs(work.stop, work.loggers.step):
        reason = None if trainer.done else work.ends_early(row)
        if row.epoch % settings.checkpoint_every == 0 or trainer.done or reason:
            _checkpoint(trainer, work.experiment)
        work.loggers.log(row)
        if reason:
            raise Ended("stopped", reason)
    if not trainer.done:
        raise _interrupted(work)
    if trainer.diverged:
        raise Ended("diverged", "the loss stopped being finite")


def change(work: Work) -> None:
    """What methods do to the trained network, in the order of METHODS: fold and quantise, thresholds, compact."""
    work.changed = bool(work.experiment.methods)
    work.trainer.change()


def measure(work: Work) -> None:
    """Accuracy and counts on the validation and test splits."""
    trainer, dataset, meter = work.trainer, work.experiment.dataset, work.experiment.config.meter
    if trainer.validation is not None:  # the look after the last epoch
        work.evaluations["validation"] = trainer.validation
    for split, images in (("validation", dataset.validation), ("test", dataset.test)):
        if work.stop():
            raise _interrupted(work)
        if len(images) and split not in work.evaluations:
            work.evaluations[split] = evaluate(trainer.model, images, trainer.pixels, meter, split)


def keep(work: Work) -> None:
    """Weights and counts as files; the record follows when everything else is there."""
    folder = work.experiment.folder
    write_atomically(folder.weights, models.safetensors_bytes(work.trainer.model))
    folder.write_counts(merge(evaluation.counts for evaluation in work.evaluations.values()))


STAGES: tuple[Callable[[Work], None], ...] = (train, change, measure, keep)


def _tidy(record: RunRecord, folder: RunFolder) -> None:
    """Delete what a final run has no more use for; also after a kill between its record and this."""
    trainer = record.config.get("trainer")
    with suppress(OSError):  # what is done is done, even where nothing can be deleted
        folder.traceback.unlink(missing_ok=True)
        if isinstance(trainer, dict) and trainer.get("keep_checkpoint") is False:
            folder.checkpoint.unlink(missing_ok=True)


def _checkpoint(trainer: Trainer, experiment: Experiment) -> None:
    whose = {"run_id": experiment.run_id, "origin": experiment.origin.checksum, "threads": torch.get_num_threads()}
    write_atomically(experiment.folder.checkpoint, pack(trainer.state() | whose))


def _resumed(experiment: Experiment) -> tuple[Trainer, str]:
    """A trainer that goes on from the checkpoint if there is one; a damaged one, or another run's, is passed over, and
    the message says so."""
    path, trainer = experiment.folder.checkpoint, experiment.trainer()
    if not path.exists():
        return trainer, ""
    try:
        state = unpack(path.read_bytes())
        if state.get("run_id") != experiment.run_id:
            raise ValueError("it belongs to another run")
        if state.get("origin", experiment.origin.checksum) != experiment.origin.checksum:
            raise ValueError("it began with other weights of the parent")
        trainer.load_state(state)
        torch.set_num_threads(state["threads"])
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError, OSError) as error:
        reason = first_line(error)  # a planted file can put anything into it
        message = f"{path.name} could not be used ({reason}): training started from the beginning"
        experiment.messages.append(message)
        # a state that was loaded half is worse than none
        anew = locate_and_build(experiment.config)
        experiment.network, experiment.methods = anew.network, anew.methods
        return experiment.trainer(), message
    return trainer, ""


def _interrupted(work: Work) -> Interrupted:
    if not work.changed:
        _checkpoint(work.trainer, work.experiment)
    record = record_of(work.experiment, work.trainer, "interrupted", "stopped by a signal")
    work.experiment.folder.write_record(record)
    return Interrupted()
