"""An experiment, on one page: build the parts, train, measure, and return the record."""

import math
import os
import shutil
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from eat_runner import data, models
from eat_runner.claims import claim
from eat_runner.config import ExperimentConfig
from eat_runner.config.checks import one_of
from eat_runner.config.identity import FRESH, Start, as_plain, baseline_id, determinants, preparation, run_id
from eat_runner.data import Dataset
from eat_runner.energy.counts import merge
from eat_runner.energy.estimate import EnergyReport, estimate
from eat_runner.energy.hardware import builtin_hardware, load_hardware
from eat_runner.energy.meter import NonFiniteError
from eat_runner.environment import git_commit, keep_freed_memory, machine, stop_signals, versions
from eat_runner.errors import UserError, one_line
from eat_runner.models import Network
from eat_runner.penalties import PENALTIES
from eat_runner.progress import ProgressBar
from eat_runner.records import FINAL, RunFolder, RunRecord, file_hash, write_atomically
from eat_runner.schedules import SCHEDULES
from eat_runner.training import Evaluation, Trainer, is_compiled, pack, unpack

EXIT_CONTINUE_ME = 75
LONGEST_REASON = 1000  # characters


class Interrupted(SystemExit):
    """A signal stopped the run after its checkpoint was written: the same command continues it."""

    def __init__(self) -> None:
        super().__init__(EXIT_CONTINUE_ME)


@dataclass
class Job:
    """What a run is, before its network is built, and the folder that its results go to."""

    config: ExperimentConfig
    dataset: Dataset
    device: torch.device
    start: Start
    run_id: str
    folder: RunFolder


@dataclass
class Experiment(Job):
    """One run's parts, built and checked."""

    network: Network
    messages: list[str]


def locate(config: ExperimentConfig) -> Job:
    """Check the configuration, load the data, and find out where the run belongs. UserError where a value, a data set
    or a file of weights does not fit."""
    config.check()
    config = config.canonical()
    one_of("penalty.name", config.penalty.name, PENALTIES)
    one_of("schedule.name", config.schedule.name, SCHEDULES)
    device = _device(config.device)
    dataset = data.load(config.dataset, Path(config.data_dir), config.download)
    start = FRESH if config.init is None else Start(_init_hash(Path(config.init)))
    identity = run_id(config, dataset.fingerprint, start)
    folder = RunFolder(Path(config.results_dir) / config.name / identity)
    return Job(config, dataset, device, start, identity, folder)


def build(job: Job) -> Experiment:
    """Every part without training. UserError where the network or its weights do not fit."""
    config, dataset = job.config, job.dataset
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    network = models.build(config.model, dataset.image_size, dataset.channels, len(dataset.class_names))
    if job.device.type == "cpu" and is_compiled(config.trainer, len(dataset.train)) and not _has_cpp_compiler():
        raise UserError(
            f"trainer.compile={config.trainer.compile} compiles this training, and there is no C++ compiler: install "
            "g++, or set trainer.compile=off"
        )
    messages = list(network.messages)
    if config.init is not None:
        messages += models.load_weights(network.module, Path(config.init))
    return Experiment(**vars(job), network=network, messages=messages)


def prepare(config: ExperimentConfig) -> Experiment:
    """``locate`` and ``build``."""
    return build(locate(config))


def run(config: ExperimentConfig) -> RunRecord:
    """Train and measure, or return the record of what is already done.

    The record says how it ended: finished, diverged, failed (with a reason; nothing is raised), or running where
    another process has the run. Raises UserError where the input is wrong, Interrupted where a signal asked to stop,
    and what else goes wrong before the run has its folder and its claim.
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
            record = _run_alone(experiment, stop) if built else _failed(job, experiment)
        if record.final:
            _tidy(record, folder)
        if stop():  # at the very end, or while it failed: the runs that would follow must not start
            raise Interrupted
    return record


def build_or_error(job: Job) -> Experiment | Exception:
    """The experiment, or why it cannot be built though nothing is wrong with what was asked for (out of memory): the
    run is to fail alone, with a record."""
    try:
        return build(job)
    except UserError:
        raise
    except Exception as error:
        return error


@dataclass(frozen=True)
class PlannedRun:
    """A run that would be made. status: as in its record, or ``missing``. seconds: what is expected to be left; 0 where
    the network cannot be built, which ``reason`` tells."""

    run_id: str
    folder: Path
    status: str
    seconds: float
    reason: str = ""


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
        identity = run_id(config, job.dataset.fingerprint, job.start)
        folder = RunFolder(Path(config.results_dir) / config.name / identity)
        status, reason = _status(folder), ""
        if isinstance(built, Exception):
            seconds[key], reason = 0.0, _reason(built)
        elif status not in FINAL and key not in seconds:
            seconds[key] = expected_seconds(built)
        planned[identity] = PlannedRun(identity, folder.path, status, 0.0 if status in FINAL else seconds[key], reason)
    return list(planned.values())


def _status(folder: RunFolder) -> str:
    if record := folder.read_own_record(folder.path.name):
        return record.status
    return "interrupted" if folder.checkpoint.exists() else "missing"


def expected_seconds(experiment: Experiment) -> float:
    """Time for a whole run, from a few training steps and two metered batches made now."""
    trainer = _trainer(experiment)
    settings, dataset = experiment.config.trainer, experiment.dataset
    step_s = trainer.seconds_per_step() if settings.epochs else 0.0
    sample = dataset.test.first(2 * experiment.config.meter.batch)
    started = time.perf_counter()
    trainer.evaluate(sample, "test", floor=False)
    image_s = (time.perf_counter() - started) / len(sample)
    looks = max(math.ceil(settings.epochs / settings.evaluate_every), 1)  # the last one measures the result, too
    images = looks * len(dataset.validation) + len(dataset.test)
    return settings.epochs * trainer.steps * step_s + images * image_s


def _run_alone(experiment: Experiment, stop: Callable[[], bool]) -> RunRecord:
    """A run that fails fails alone."""
    try:
        return _run(experiment, stop)
    except Exception as error:
        return _failed(experiment, error)


def _run(experiment: Experiment, stop: Callable[[], bool]) -> RunRecord:
    config, folder, title = experiment.config, experiment.folder, experiment.run_id
    keep_freed_memory()
    folder.remove_leftovers()
    folder.write_config(as_plain(config))
    trainer, message = _resumed(experiment)
    with ProgressBar(title, config.trainer.epochs * trainer.steps) as progress:
        if message:
            progress.say(f"{title}  {message}")
        progress.start_at(trainer.epoch * trainer.steps + trainer.step)
        try:
            for row in trainer.epochs(stop, progress.update):
                if row.epoch % config.trainer.evaluate_every == 0 or trainer.done:
                    trainer.monitor()
                folder.write_history([asdict(row) for row in trainer.history])
                if row.epoch % config.trainer.checkpoint_every == 0 or trainer.done:
                    _checkpoint(trainer, experiment)
                progress.say(f"{title}  {row}")
            if not trainer.done:
                raise _interrupted(trainer, experiment)
            record = _measure(trainer, experiment, stop)
        except NonFiniteError as error:
            record = _record(trainer, experiment, "diverged", one_line(str(error)))
    folder.write_record(record)
    return record


def _tidy(record: RunRecord, folder: RunFolder) -> None:
    """Delete what a final run has no more use for; also after a kill between its record and this."""
    trainer = record.config.get("trainer")
    with suppress(OSError):  # what is done is done, even where nothing can be deleted
        folder.traceback.unlink(missing_ok=True)
        if isinstance(trainer, dict) and trainer.get("keep_checkpoint") is False:
            folder.checkpoint.unlink(missing_ok=True)


def _measure(trainer: Trainer, experiment: Experiment, stop: Callable[[], bool]) -> RunRecord:
    """Count the trained network on the validation and test splits; price the counts with every built-in hardware."""
    if trainer.diverged:
        return _record(trainer, experiment, "diverged", "the loss stopped being finite")
    dataset, folder = trainer.dataset, experiment.folder
    evaluations: dict[str, Evaluation] = {}
    if trainer.validation is not None:
        evaluations["validation"] = trainer.validation
    for split, images in (("validation", dataset.validation), ("test", dataset.test)):
        if stop():
            raise _interrupted(trainer, experiment)
        if len(images) and split not in evaluations:
            evaluations[split] = trainer.evaluate(images, split)
    write_atomically(folder.weights, trainer.weights())
    counts = merge(evaluation.counts for evaluation in evaluations.values())
    folder.write_counts(counts)
    record = _record(trainer, experiment, "finished")
    record.accuracy |= {split: e.accuracy for split, e in evaluations.items()}
    record.loss |= {split: e.loss for split, e in evaluations.items()}
    record.firing_rate = evaluations["validation"].counts.firing_rate if "validation" in evaluations else None
    record.firing_rate_test = evaluations["test"].counts.firing_rate
    record.uncounted = list(counts.uncounted)
    for name in builtin_hardware():
        hardware = load_hardware(name)
        if hardware.batch in (None, counts.batch) and hardware.threshold == counts.threshold:
            record.energy[name] = {split: _summary(estimate(counts, hardware, split)) for split in evaluations}
    return record


def _summary(report: EnergyReport) -> dict[str, float | None]:
    """What the record keeps of an estimate; the layers can be priced from the counts at any time."""
    return {
        "ratio": report.ratio,
        "floor": report.floor,
        "energy_uj_per_image": report.energy_uj_per_image,
        "dense_uj_per_image": report.dense_uj_per_image,
    }


def _record(trainer: Trainer, experiment: Experiment, status: str, reason: str = "") -> RunRecord:
    config, dataset, network = experiment.config, experiment.dataset, experiment.network
    mean, std = trainer.normalisation
    last = trainer.history[-1] if trainer.history else None
    return RunRecord(
        run_id=experiment.run_id,
        status=status,
        reason=reason,
        config=as_plain(config),
        baseline_id=baseline_id(config, dataset.fingerprint, experiment.start),
        determinants=determinants(config, dataset.fingerprint, experiment.start),
        data_fingerprint=dataset.fingerprint,
        init_hash=experiment.start.file_hash,
        versions=versions(),
        machine=machine(experiment.device),
        git_commit=git_commit(),
        device=str(experiment.device),
        threads=torch.get_num_threads(),
        timings={"training_s": sum(row.seconds for row in trainer.history) + trainer.seconds},
        epochs_done=trainer.epoch,
        parameters=trainer.parameters,
        accuracy={"train": last.train_accuracy if last else None, "validation": None, "test": None},
        loss={"train": last.cross_entropy if last else None, "validation": None, "test": None},
        meter={"batch": config.meter.batch, "threshold": config.meter.threshold},
        preprocessing={
            "image_size": dataset.image_size,
            "channels": network.channels,
            "mean": list(mean),
            "std": list(std),
            "class_names": list(dataset.class_names),
        },
        messages=experiment.messages,
    )


def _checkpoint(trainer: Trainer, experiment: Experiment) -> None:
    state = trainer.state() | {"run_id": experiment.run_id, "threads": torch.get_num_threads()}
    write_atomically(experiment.folder.checkpoint, pack(state))


def _resumed(experiment: Experiment) -> tuple[Trainer, str]:
    """A trainer that goes on from the checkpoint if there is one; a damaged one, or another run's, is passed over, and
    the message says so."""
    path, trainer = experiment.folder.checkpoint, _trainer(experiment)
    if not path.exists():
        return trainer, ""
    try:
        state = unpack(path.read_bytes())
        if state.get("run_id") != experiment.run_id:
            raise ValueError("it belongs to another run")
        trainer.load_state(state)
        torch.set_num_threads(state["threads"])
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError, OSError) as error:
        reason = _first_line(error)  # a planted file can put anything into it
        message = f"{path.name} could not be used ({reason}): training started from the beginning"
        experiment.messages.append(message)
        # a state that was loaded half is worse than none
        return _trainer(prepare(experiment.config)), message
    return trainer, ""


def _trainer(experiment: Experiment) -> Trainer:
    return Trainer(experiment.network, experiment.dataset, experiment.config, experiment.device)


def _interrupted(trainer: Trainer, experiment: Experiment) -> Interrupted:
    _checkpoint(trainer, experiment)
    experiment.folder.write_record(_record(trainer, experiment, "interrupted", "stopped by a signal"))
    return Interrupted()


def _failed(job: Job, error: Exception) -> RunRecord:
    """The record of a run that raised, with the traceback in a file beside it; written if the disk still allows it."""
    record = RunRecord(
        run_id=job.run_id,
        status="failed",
        reason=_reason(error),
        config=as_plain(job.config),
        versions=versions(),
        messages=job.messages if isinstance(job, Experiment) else [],
    )
    folder, text = job.folder, "".join(traceback.format_exception(error))
    try:
        write_atomically(folder.traceback, text.encode(errors="backslashreplace"))
        folder.write_record(record)
    except OSError as unwritable:
        record.messages.append(f"the record could not be written: {unwritable}")
        with suppress(OSError):  # an older record, such as interrupted, would tell something else
            folder.record.unlink(missing_ok=True)
    return record


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {_first_line(error)}"


def _has_cpp_compiler() -> bool:
    return any(map(shutil.which, filter(None, [os.environ.get("CXX"), "g++", "clang++", "cl"])))


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available[name]:
        there = ", ".join(key for key, here in available.items() if here)
        raise UserError(f"device={name} is not on this machine: choose one of auto, {there}")
    return torch.device(name)


def _init_hash(path: Path) -> str:
    """Of the file that ``init`` names. UserError where it cannot be read, or its run has a record that was written for
    another file."""
    file = models.weights_file(path)
    run = RunFolder(file.parent)
    if file.name == run.weights.name and run.record.exists():
        run.check_weights()
    try:
        return file_hash(file)
    except OSError as error:
        raise UserError(f"init={path} cannot be read: {error.strerror}") from error


def _first_line(error: Exception) -> str:
    """What an exception says, as a record and a terminal can hold it."""
    lines = str(error).strip().splitlines()
    return one_line(lines[0])[:LONGEST_REASON] if lines else ""
