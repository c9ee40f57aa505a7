"""What a run is, before its network is built, and where its results go."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from eat_runner import data, models
from eat_runner.config import ExperimentConfig, TrainerConfig
from eat_runner.config.checks import one_of
from eat_runner.config.identity import FRESH, Start, run_id
from eat_runner.config.points import points
from eat_runner.config.trainer import AUTO
from eat_runner.data import Dataset
from eat_runner.environment import multiplies_bf16
from eat_runner.errors import UserError
from eat_runner.loggers import LOGGERS
from eat_runner.methods import METHODS
from eat_runner.penalties import PENALTIES
from eat_runner.penalties.weighting import WEIGHTINGS
from eat_runner.ranks import local_rank, world_size
from eat_runner.records import RunFolder, file_hash
from eat_runner.train.schedules import SCHEDULES


@dataclass(frozen=True)
class Origin:
    """Where the first weights come from. start: what the run's identity has of it. checksum: of the weights' file, None
    where they are fresh. changes: what methods did to the parent's network (RunRecord.changes). model: what
    the parent's configuration says of it."""

    start: Start = FRESH
    checksum: str | None = None
    changes: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    model: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass
class Job:
    """A run before its network is built, and the folder that its results go to."""

    config: ExperimentConfig
    dataset: Dataset
    device: torch.device
    origin: Origin
    run_id: str
    folder: RunFolder


def locate(config: ExperimentConfig) -> Job:
    """Check the configuration, load the data, and find out where the run belongs. UserError where a value, a data set
    or a file of weights does not fit."""
    config.check()
    config = settled(config).canonical()
    one_of("penalty.name", config.penalty.name, PENALTIES)
    one_of("schedule.name", config.schedule.name, SCHEDULES)
    one_of("penalty.weighting", config.penalty.weighting, WEIGHTINGS)
    for name, logger in config.loggers.items():
        one_of("loggers", name, LOGGERS)
        LOGGERS[name].check(logger)
    for name in config.chosen_methods:
        one_of("the config group", name, METHODS)
    device = _device(config.device)
    dataset = data.load(config.dataset, Path(config.data_dir), config.download)
    if world_size() > 1:
        _check_together(config.trainer, len(dataset.train), device)
    origin = Origin() if config.init is None else _origin(Path(config.init))
    identity = run_id(config, dataset.fingerprint, origin.start)
    folder = RunFolder(Path(config.results_dir) / config.name / identity)
    return Job(config, dataset, device, origin, identity, folder)


def located_points(config: ExperimentConfig) -> list[ExperimentConfig]:
    """The runs that a configuration stands for, in their order."""
    job, config = locate(config), settled(config)
    return [point for point, _ in points(config, job.dataset.fingerprint, job.origin.start)]


def settled(config: ExperimentConfig) -> ExperimentConfig:
    """The configuration with what this machine decides decided: ``trainer.precision=auto`` is bf16 or fp32, by the
    device that it would run on. So the run's id says which, and another machine may have another run."""
    if config.trainer.precision != AUTO:
        return config
    config.check()
    precision = "bf16" if multiplies_bf16(torch.device(_device_here(config.device))) else "fp32"
    return replace(config, trainer=replace(config.trainer, precision=precision))


def _device(name: str) -> torch.device:
    name = _device_here(name)
    return torch.device(name) if world_size() == 1 else _of_this_process(name)


def _device_here(name: str) -> str:
    """The kind of device. UserError where it is not on this machine."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available[name]:
        there = ", ".join(key for key, here in available.items() if here)
        raise UserError(f"device={name} is not on this machine: choose one of auto, {there}")
    return name


def _of_this_process(name: str) -> torch.device:
    """Each has a GPU of its own."""
    if name != "cuda":
        return torch.device(name)
    if local_rank() >= torch.cuda.device_count():
        raise UserError(
            f"torchrun started more processes here than there are GPUs ({torch.cuda.device_count()}): set "
            "--nproc-per-node to that, or device=cpu"
        )
    torch.cuda.set_device(local_rank())
    return torch.device(name, local_rank())


def _check_together(settings: TrainerConfig, images: int, device: torch.device) -> None:
    """UserError for what one process can do, and several cannot."""
    processes = world_size()
    if min(settings.batch_size, images) < processes:
        raise UserError(
            f"trainer.batch_size={settings.batch_size} has no image for each of {processes} processes"
            f" ({images} images to train with): start fewer, or raise it"
        )
    if settings.compile == "on":
        raise UserError("trainer.compile=on is for one process, and torchrun started several: leave it out")
    if device.type == "mps":
        raise UserError("device=mps is for one process, and torchrun started several: set device=cpu")


def _origin(path: Path) -> Origin:
    """Of what ``init`` names: the weights of a run, which becomes the parent, or any other file. UserError where it
    cannot be read, or its run has a record that was written for another file."""
    file = models.weights_file(path)
    run = RunFolder(file.parent)
    try:
        checksum = file_hash(file)
    except OSError as error:
        raise UserError(f"init={path} cannot be read: {error.strerror}") from error
    if file.name != run.weights.name or not run.record.exists():
        return Origin(Start(file_hash=checksum), checksum)
    run.check_weights()
    record = run.read_record()
    integers = (change["weights"].values() for change in record.changes if change.get("method") == "bits")
    widths = frozenset(bits for layers in integers for bits in layers)
    return Origin(Start(parent=record.run_id, widths=widths), checksum, record.changes, record.config["model"])
