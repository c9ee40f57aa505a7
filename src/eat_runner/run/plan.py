"""What would be run, what is done, and how long the rest takes."""

import math
import time
from dataclasses import dataclass
from pathlib import Path

from eat_runner.config import ExperimentConfig
from eat_runner.config.identity import preparation, run_id
from eat_runner.energy.budget import Budget
from eat_runner.energy.rules.base import PJ_PER_UJ
from eat_runner.records import FINAL, RunFolder
from eat_runner.run.build import Experiment, build_or_error
from eat_runner.run.locate import Job, locate
from eat_runner.run.record import reason_of
from eat_runner.train.evaluate import evaluate


@dataclass(frozen=True)
class PlannedRun:
    """A run that would be made. status: as in its record, or ``missing``. seconds: what is expected to be left; 0 where
    the network cannot be built, which ``reason`` tells. budget: in words, empty without one."""

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
    prepared: dict[str, tuple[Job, Experiment | Exception]] = {}
    seconds: dict[str, float] = {}
    for config in configs:
        key = preparation(config)
        if key not in prepared:
            job = locate(config)
            prepared[key] = job, build_or_error(job)
        job, built = prepared[key]
        identity = run_id(config, job.dataset.fingerprint, job.origin.start)
        folder = RunFolder(Path(config.results_dir) / config.name / identity)
        status, reason = _status(folder), ""
        if isinstance(built, Exception):
            seconds[key], reason = 0.0, reason_of(built)
        elif status not in FINAL and key not in seconds:
            seconds[key] = expected_seconds(built)
        left = 0.0 if status in FINAL else seconds[key]
        budget = "" if isinstance(built, Exception) else _in_words(built.budget)
        planned[identity] = PlannedRun(identity, folder.path, status, left, reason, budget)
    return list(planned.values())


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


def expected_seconds(experiment: Experiment) -> float:
    """Time for a whole run, from a few training steps and two metered batches made now."""
    trainer = experiment.trainer()
    settings, dataset, meter = experiment.config.trainer, experiment.dataset, experiment.config.meter
    step_s = trainer.seconds_per_step() if settings.epochs else 0.0
    sample = dataset.test.first(2 * meter.batch_size)
    started = time.perf_counter()
    evaluate(trainer.model, sample, trainer.pixels, meter, "test", floor=False)
    image_s = (time.perf_counter() - started) / len(sample)
    looks = max(math.ceil(settings.epochs / settings.evaluate_every), 1)  # the last one measures the result, too
    images = looks * len(dataset.validation) + len(dataset.test)
    return settings.epochs * trainer.steps * step_s + images * image_s
