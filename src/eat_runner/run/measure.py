"""Anybody's network, counted in one pass over images or random input, without a run."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from eat_runner import models
from eat_runner.config import MeterConfig, ModelConfig
from eat_runner.data.batches import evaluation_batches
from eat_runner.data.folder import find_images, read_images, spread
from eat_runner.energy.counts import Counts
from eat_runner.energy.measured import Measured
from eat_runner.energy.meter import NonFiniteError, measure
from eat_runner.errors import UserError, printable
from eat_runner.records import RunFolder
from eat_runner.run.load import Preprocessing, load_run
from eat_runner.taps import Call, evaluation_mode, tap

ANY_SIZE, CLASSES = 224, 1000  # of a network that nobody says more of
PLAIN = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
SPLIT = "test"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What somebody wants to have measured.

    source, name: a model of models.MODELS and its arch; or "" and a run's folder. image_size, classes: None as the
    network was published, or as the run has them. weights: a file of them. data: a folder of images. images: how many
    of them, or of random ones. counted_already: of a run, the counts that it made itself instead.
    """

    source: str
    name: str
    image_size: int | None
    classes: int | None
    weights: Path | None
    data: Path | None
    images: int
    seed: int
    meter: MeterConfig
    counted_already: bool


@dataclass(frozen=True)
class _Ready:
    """A network to be measured. weights: where they come from; None: random."""

    module: nn.Module
    preprocessing: Preprocessing
    classes: int
    weights: str | None
    messages: tuple[str, ...] = ()


def measure_network(wanted: Wanted) -> Measured:
    """Build or load it, and count one pass. Random weights and random input depend on the seed alone.

    Raises UserError, one line, for a network that is unknown or cannot take the images, weights that do not fit,
    images that cannot be read, operations that nobody counts, and values that are not finite.
    """
    files, others = find_images(wanted.data) if wanted.data is not None else ([], 0)
    torch.manual_seed(wanted.seed)
    ready = _from_library(wanted) if wanted.source else _from_run(wanted)
    images, messages = None, ready.messages
    if wanted.counted_already:
        counts, images = _own_counts(Path(wanted.name))
    elif files:
        chosen = spread(files, wanted.images)
        images = f"{len(chosen)} of the {len(files)} images in {wanted.data}"
        messages += (f"{wanted.data}: files that are no images and were passed over: {others}",) if others else ()
        counts = _count(ready, _real(chosen, ready.preprocessing, wanted.meter.batch_size), wanted)
    else:
        counts = _count(ready, _random(wanted, ready.preprocessing), wanted)
    module, prepared = ready.module, ready.preprocessing
    return Measured(
        network=f"{wanted.source}:{wanted.name}" if wanted.source else wanted.name,
        op=type(module).__name__,
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        channels=prepared.channels,
        image_size=prepared.image_size,
        classes=ready.classes,
        weights=ready.weights,
        images=images,
        counts=counts,
        shapes=_shapes(module, torch.zeros(1, prepared.channels, prepared.image_size, prepared.image_size)),
        modules={name: type(child).__name__ for name, child in module.named_modules()},
        messages=messages,
    )


def _from_library(wanted: Wanted) -> _Ready:
    config = ModelConfig(name=wanted.source, arch=wanted.name)
    preset = models.preset(config)
    size = wanted.image_size or (preset.image_size if preset else ANY_SIZE)
    classes = wanted.classes or CLASSES
    network = models.build(config, size, 3, classes)
    if wanted.weights is not None:
        fresh = models.load_weights(network.module, wanted.weights)
        if fresh:
            said, _, _ = fresh[0].partition(" and the data ")
            raise UserError(f"{said}, the network {classes}: set --classes to that")
    mean, std = (preset.mean, preset.std) if preset else PLAIN
    prepared = Preprocessing(size, network.channels, mean, std)
    return _Ready(network.module, prepared, classes, str(wanted.weights) if wanted.weights else None, network.messages)


def _from_run(wanted: Wanted) -> _Ready:
    weights = RunFolder(wanted.name).weights
    if not weights.exists():
        raise UserError(f"{weights} is not there: only a run with its weights can be measured")
    loaded = load_run(wanted.name)
    return _Ready(loaded.model, loaded.preprocessing, len(loaded.class_names), "the run's own")


def _own_counts(folder: Path) -> tuple[Counts, str]:
    counts = RunFolder(folder).read_counts().select(SPLIT)
    return counts, f"the run's own {counts.images} test images"


def _count(ready: _Ready, batches: Iterator[Tensor], wanted: Wanted) -> Counts:
    try:
        return measure(ready.module, batches, wanted.meter, SPLIT, floor=False)
    except NonFiniteError as error:
        raise UserError(f"{printable(str(error))}: its zeros mean nothing, and nothing is counted") from error


def _random(wanted: Wanted, prepared: Preprocessing) -> Iterator[Tensor]:
    """Normal noise, which normalised images are like in mean and deviation and in nothing else."""
    generator = torch.Generator().manual_seed(wanted.seed)
    for start in range(0, wanted.images, wanted.meter.batch_size):
        count = min(wanted.meter.batch_size, wanted.images - start)
        yield torch.randn(count, prepared.channels, prepared.image_size, prepared.image_size, generator=generator)


def _real(files: list[Path], prepared: Preprocessing, batch_size: int) -> Iterator[Tensor]:
    """Read as they are needed."""
    for start in range(0, len(files), batch_size):
        images = read_images(files[start : start + batch_size], prepared.image_size, prepared.channels)
        for x, _ in evaluation_batches(images, batch_size, prepared.mean, prepared.std, torch.device("cpu")):
            yield x


def _shapes(module: nn.Module, image: Tensor) -> dict[int, tuple[int, ...]]:
    """Of each call's output, without the leading 1 of a batch of one."""
    shapes: dict[int, tuple[int, ...]] = {}

    def note(call: Call) -> None:
        shape = tuple(call.output.shape)
        shapes[call.index] = shape[1:] if shape[:1] == (1,) else shape

    with evaluation_mode(module), torch.no_grad(), tap(module, note):
        module(image)
    return shapes
