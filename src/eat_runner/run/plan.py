"""What would be run, what is done, and how long the rest takes."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from eat_runner.config import ExperimentConfig
from eat_runner.config.identity import Start, preparation, run_id
from eat_runner.config.points import points
from eat_runner.energy.budget import Budget
from eat_runner.energy.rules.base import PJ_PER_UJ
from eat_runner.records import FINAL, RunFolder
from eat_runner.run.build import Experiment, build_or_error
from eat_runner.run.locate import Job, locate
from eat_runner.run.record import reason_of
from eat_runner.train.checkpoint import unpack
from eat_runner.train.evaluate import evaluate


@dataclass(frozen=True)
class PlannedRun:
    """A run that would be made. status: as in its record, or ``missing``. seconds: what is expected to be left; 0 where
    nobody can tell, since the network cannot be built or a step of it cannot be made, which ``reason`` tells.
    budget: in words, empty without one."""

    run_id: str
    folder: Path
    status: str
    seconds: float
    reason: str = ""
    budget: str = ""


def plan(configs: list[ExperimentConfig]) -> list[PlannedRun]:
    """What the configurations would run, what is done, and how long the rest takes: measured over a few steps, once for
    the runs that differ only in lambda and seed. Runs of the same identity are listed once. Nothing is written."""
    planned: dict[str, PlannedRun] = {}
    paces: dict[str, Pace | Exception] = {}
    for config, start, job, built in _prepared(configs):
        key, identity = preparation(job.config), run_id(config, job.dataset.fingerprint, start)
        folder = RunFolder(Path(config.results_dir) / config.name / identity)
        status, left, reason = _status(folder), 0.0, ""
        if status not in FINAL and key not in paces:
            paces[key] = built if isinstance(built, Exception) else _pace_or_error(built)
        pace = paces.get(key, built)
        if isinstance(pace, Exception):
            reason = reason_of(pace)
        elif isinstance(pace, Pace) and status not in FINAL:
            left = pace.seconds(*already_done(folder))
        budget = "" if isinstance(built, Exception) else _in_words(built.budget)
        planned[identity] = PlannedRun(identity, folder.path, status, left, reason, budget)
    return list(planned.values())


def _prepared(
    configs: Sequence[ExperimentConfig],
) -> Iterator[tuple[ExperimentConfig, Start, Job, Experiment | Exception]]:
    """Every run that the configurations stand for, what it starts from, and one like it that was built once for all
    that differ only in lambda and seed; without a parent that is yet to be trained."""
    prepared: dict[str, tuple[Job, Experiment | Exception]] = {}

    def prepare(config: ExperimentConfig) -> tuple[Job, Experiment | Exception]:
        key = preparation(config)
        if key not in prepared:
            job = locate(config)
            prepared[key] = job, build_or_error(job)
        return prepared[key]

    for config in configs:
        job, _ = prepare(config)
        for point, start in points(config, job.dataset.fingerprint, job.origin.start):
            yield point, start, *prepare(replace(point, init=config.init))


def _in_words(budget: Budget | None) -> str:
    if budget is None:
        return ""
    text = f"budget {budget.share:.4g} of the dense energy"
    if budget.hardware.relative:
        return text
    return f"{text}, {budget.limit_pj / PJ_PER_UJ:.4g} of {budget.dense_pj / PJ_PER_UJ:.4g} uJ"


def _status(folder: RunFolder) -> str:
    if record := folder.read_own_record(folder.path.name):
        return record.status
    return "interrupted" if folder.checkpoint.exists() else "missing"


def already_done(folder: RunFolder) -> tuple[int, int]:
    """The epochs that are done, and the steps of the next one, by the checkpoint: the run goes on there."""
    with suppress(OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError):
        state = unpack(folder.checkpoint.read_bytes())
        if state.get("run_id") == folder.path.name:
            return int(state["epoch"]), int(state["step"])
    return 0, 0


@dataclass(frozen=True)
class Pace:
    """How long the parts of a run take: a training step, an epoch's steps and its look at the validation split, the
    final measurement."""

    step_s: float
    steps: int
    epochs: int
    look_s: float
    looks_every: int
    measurement_s: float

    def seconds(self, epochs_done: int = 0, steps_done: int = 0) -> float:
        """Time for what is left."""
        steps = max((self.epochs - epochs_done) * self.steps - steps_done, 0)
        # the look after the last epoch measures the result, too
        looks = max(math.ceil(self.epochs / self.looks_every) - epochs_done // self.looks_every, 1)
        return steps * self.step_s + looks * self.look_s + self.measurement_s


def _pace_or_error(experiment: Experiment) -> Pace | Exception:
    """What goes wrong in a step that is only made to be timed is that run's: the others are planned all the same."""
    try:
        return pace(experiment)
    except Exception as error:
        return error


def pace(experiment: Experiment) -> Pace:
    """From two metered batches and a few training steps that are made now, in that order: steps may make a network that
    cannot be metered."""
    trainer = experiment.trainer()
    settings, dataset, meter = experiment.config.trainer, experiment.dataset, experiment.config.meter
    sample = dataset.test.first(2 * meter.batch_size)
    started = time.perf_counter()
    evaluate(trainer.model, sample, trainer.pixels, meter, "test", floor=False)
    image_s = (time.perf_counter() - started) / len(sample)
    step_s = trainer.seconds_per_step() if settings.epochs else 0.0
    look_s, test_s = len(dataset.validation) * image_s, len(dataset.test) * image_s
    return Pace(step_s, trainer.steps, settings.epochs, look_s, settings.evaluate_every, test_s)
