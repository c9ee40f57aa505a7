"""The stages of a run, on one page: train, change, measure, keep."""

from collections.abc import Callable
from dataclasses import dataclass, field

from eat_runner import models
from eat_runner.config.identity import as_plain
from eat_runner.energy.counts import merge
from eat_runner.energy.meter import NonFiniteError
from eat_runner.environment import keep_freed_memory
from eat_runner.errors import CONTINUE_ME, one_line
from eat_runner.loggers import Loggers, listening
from eat_runner.loggers.base import About
from eat_runner.ranks import is_first
from eat_runner.records import RunRecord, write_atomically
from eat_runner.run.build import Experiment
from eat_runner.run.record import add_measurements, budget_of, record_of
from eat_runner.run.resume import checkpoint, resumed
from eat_runner.train.evaluate import Evaluation
from eat_runner.train.history import EpochRow
from eat_runner.train.loop import Trainer


class Interrupted(SystemExit):
    """A signal stopped the run after its checkpoint was written: the same command continues it."""

    def __init__(self) -> None:
        super().__init__(CONTINUE_ME)


# (an epoch's row) -> why the run is to end here, None to go on
EndsEarly = Callable[[EpochRow], str | None]


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


def train(work: Work) -> None:
    """Epoch by epoch; a checkpoint and the loggers' rows as they come."""
    trainer, settings = work.trainer, work.experiment.config.trainer
    for row in trainer.epochs(work.stop, work.loggers.step):
        reason = None if trainer.done else work.ends_early(row)
        if row.epoch % settings.checkpoint_every == 0 or trainer.done or reason:
            checkpoint(trainer, work.experiment)
        work.loggers.log(row)
        if reason:
            raise Ended("stopped", reason)
    if not trainer.done:
        raise _interrupted(work)
    if trainer.diverged:
        raise Ended("diverged", "the loss stopped being finite")


def change(work: Work) -> None:
    """What methods do to the trained network, in the order of METHODS."""
    work.changed = bool(work.experiment.methods)

    def report(figures: str) -> None:
        if work.stop():
            raise _interrupted(work)
        work.loggers.step(work.trainer.steps_done, figures)

    work.trainer.change(report)


def measure(work: Work) -> None:
    """Accuracy and counts on the validation and test splits."""
    trainer, dataset = work.trainer, work.experiment.dataset
    if trainer.validation is not None:  # the look after the last epoch
        work.evaluations["validation"] = trainer.validation
    for split, images in (("validation", dataset.validation), ("test", dataset.test)):
        if work.stop():
            raise _interrupted(work)
        if len(images) and split not in work.evaluations:
            work.evaluations[split] = trainer.evaluate(images, split)


def keep(work: Work) -> None:
    """Weights, counts and answers as files; the record follows when everything else is there."""
    if not is_first():
        return
    folder = work.experiment.folder
    write_atomically(folder.weights, models.safetensors_bytes(work.trainer.model))
    folder.write_counts(merge(evaluation.counts for evaluation in work.evaluations.values()))
    folder.write_predictions({split: (e.labels, e.predicted) for split, e in work.evaluations.items()})


STAGES: tuple[Callable[[Work], None], ...] = (train, change, measure, keep)


def go_through(experiment: Experiment, stop: Callable[[], bool], ends_early: EndsEarly) -> RunRecord:
    """All stages of a run that this process has the claim on, from its checkpoint if it has one; the record, which lies
    in the folder when everything else does. Of several processes the first one writes. Raises Interrupted, and
    whatever makes a run fail."""
    config, folder = experiment.config, experiment.folder
    keep_freed_memory()
    if is_first():
        folder.remove_leftovers()
        folder.write_config(as_plain(config))
    trainer, message = resumed(experiment)
    steps = config.trainer.epochs * trainer.steps
    about = About(experiment.run_id, folder, as_plain(config), steps, trainer.steps_done, trainer.history)
    with listening(config.loggers if is_first() else {}, about) as loggers:
        if message:
            loggers.say(message)
        work = Work(experiment, trainer, loggers, stop, ends_early)
        try:
            for stage in STAGES:
                stage(work)
            record = record_of(experiment, trainer, "finished")
            add_measurements(record, work.evaluations, merge(e.counts for e in work.evaluations.values()))
            record.budget = budget_of(experiment.budget, work.evaluations)
        except Ended as end:
            record = record_of(experiment, trainer, end.status, end.reason)
        except NonFiniteError as error:
            record = record_of(experiment, trainer, "diverged", one_line(str(error)))
        if is_first():
            folder.write_record(record)
        loggers.record = record
    return record


def _interrupted(work: Work) -> Interrupted:
    if not work.changed:
        checkpoint(work.trainer, work.experiment)
    record = record_of(work.experiment, work.trainer, "interrupted", "stopped by a signal")
    if is_first():
        work.experiment.folder.write_record(record)
    return Interrupted()
