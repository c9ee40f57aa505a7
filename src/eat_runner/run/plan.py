"""What would be run, what is done, and how long the rest takes."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from eat_runner.config import ExperimentConfig
from eat_runner.config.identity import distinctions, preparation, run_id
from eat_runner.config.points import points, preparations
from eat_runner.energy.budget import Budget
from eat_runner.energy.rules.base import PJ_PER_UJ
from eat_runner.progress import Counter
from eat_runner.records import FINAL, RunFolder
from eat_runner.run.build import Experiment, build_or_error
from eat_runner.run.locate import Job, locate, settled
from eat_runner.run.record import reason_of
from eat_runner.train.checkpoint import unpack
from eat_runner.train.evaluate import evaluate


@dataclass(frozen=True)
class PlannedRun:
    """A run that would be made. status: as in its record, or ``missing``. seconds: what is expected to be left; 0 where
    nobody can tell, since the network cannot be built or a step of it cannot be made, which ``reason`` tells.
    budget: in words, empty without one. differs: what tells it from runs whose ids differ in the hash alone."""

    run_id: str
    folder: Path
    status: str
    seconds: float
    reason: str = ""
    budget: str = ""
    differs: str = ""


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


@dataclass(frozen=True)
class _Prepared:
    """A run that the configurations stand for. job, built: of one like it, made once for all that differ only in lambda
    and seed; without a parent that is yet to be trained."""

    config: ExperimentConfig
    folder: RunFolder
    status: str
    job: Job
    built: Experiment | Exception

    @property
    def key(self) -> str:
        return preparation(self.job.config)

    @property
    def is_timed(self) -> bool:
        return self.status not in FINAL and isinstance(self.built, Experiment)


def plan(configs: Sequence[ExperimentConfig], program: str | None = None) -> list[PlannedRun]:
    """What the configurations would run, what is done, and how long the rest takes: measured over a few steps, once for
    the runs that differ only in lambda and seed. Runs of the same identity are listed once. Nothing is written.

    program: who says on stderr how far this is; None: nobody.
    """
    runs = {run.folder.path.name: run for run in _prepared(configs, program)}
    differs = distinctions({identity: run.config for identity, run in runs.items()})
    paces = _paces([run for run in runs.values() if run.is_timed], differs, program)
    return [_planned(run, paces.get(run.key), differs[identity]) for identity, run in runs.items()]


def _prepared(configs: Sequence[ExperimentConfig], program: str | None) -> Iterator[_Prepared]:
    made: dict[str, tuple[Job, Experiment | Exception]] = {}
    counter = Counter(f"{program}: preparing", preparations(configs)) if program else None

    def prepare(config: ExperimentConfig) -> tuple[Job, Experiment | Exception]:
        key = preparation(config)
        if key not in made:
            if counter is not None:
                counter.next()
            job = locate(config)
            made[key] = job, build_or_error(job)
        return made[key]

    for config in map(settled, configs):
        job, _ = prepare(config)
        for point, start in points(config, job.dataset.fingerprint, job.origin.start):
            folder = RunFolder(Path(point.results_dir) / point.name / run_id(point, job.dataset.fingerprint, start))
            yield _Prepared(point, folder, _status(folder), *prepare(replace(point, init=config.init)))


def _paces(runs: Sequence[_Prepared], differs: Mapping[str, str], program: str | None) -> dict[str, Pace | Exception]:
    """Of each network that the runs have, by ``_Prepared.key``."""
    networks: dict[str, _Prepared] = {}
    for run in runs:
        networks.setdefault(run.key, run)
    counter = Counter(f"{program}: timing", len(networks), at_once=True) if program else None
    paces: dict[str, Pace | Exception] = {}
    for key, run in networks.items():
        if counter is not None:
            counter.next(" ".join(filter(None, [run.folder.path.name, differs[run.folder.path.name]])))
        assert isinstance(run.built, Experiment)
        paces[key] = _pace_or_error(run.built)
    return paces


def _planned(run: _Prepared, pace: Pace | Exception | None, differs: str) -> PlannedRun:
    """pace: None where it was not timed."""
    wrong = pace if isinstance(run.built, Experiment) else run.built
    reason, left = reason_of(wrong) if isinstance(wrong, Exception) else "", 0.0
    if isinstance(pace, Pace) and run.status not in FINAL:
        left = pace.seconds(*already_done(run.folder))
    budget = "" if isinstance(run.built, Exception) else _in_words(run.built.budget)
    return PlannedRun(run.folder.path.name, run.folder.path, run.status, left, reason, budget, differs)


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
