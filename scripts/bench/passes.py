"""Passes over images: what metering adds to an evaluation, and how many images the data path makes in a second."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bench.baselines import evaluate, listing_meter, pil_loader, training
from bench.figures import AT_LEAST, Figure, figure, interleaved
from bench.sizes import CLASSES, Sizes
from eat_runner.config import DatasetConfig, MeterConfig
from eat_runner.data import ImageSet
from eat_runner.data.batches import training_batches
from eat_runner.energy.counts import Counts
from eat_runner.energy.meter import measure
from eat_runner.taps import Call, evaluation_mode, tap

MEAN, STD = (0.5, 0.45, 0.4), (0.25, 0.25, 0.3)
AUGMENTATIONS = {
    "crop and flip": DatasetConfig(crop_padding=4, flip=True),
    "crop and rotation": DatasetConfig(crop_padding=4, rotation_degrees=10),
}
METERING_GOALS = (1.5, 1.25)  # by network


def metered(model: nn.Module, batches: list[Tensor]) -> Counts:
    """Ours, as a training looks at the validation split: exact skipped products included, no floor batch."""
    return measure(model, batches, MeterConfig(batch_size=len(batches[0])), floor=False)


def outputs(model: nn.Module, x: Tensor) -> list[NDArray[np.float32]]:
    """What a meter has to look at: the outputs of every call but the activations', whose counts follow from them."""
    found: list[NDArray[np.float32]] = []

    def keep(call: Call) -> None:
        if not call.is_activation:
            y = call.output
            found.append(y.permute(0, 2, 3, 1).numpy().copy() if y.dim() == 4 else y.numpy())

    with evaluation_mode(model), torch.no_grad(), tap(model, keep):
        model(x)
    return found


def compare(arrays: list[NDArray[np.float32]], threshold: float) -> int:
    """The least that counting costs: each value compared once, with one limit, and the flags counted."""
    return sum(int(np.count_nonzero(values > threshold)) for values in arrays)


def evaluation(sizes: Sizes) -> Iterator[Figure]:
    """The listing meter, slow and the same for every batch, gets one batch, the others more."""
    threshold = MeterConfig().threshold
    for network, goal in zip(sizes.networks, METERING_GOALS, strict=True):
        t, count = training(network, sizes), network.metered_batches
        torch.manual_seed(1)
        batches = [torch.randn_like(t.x_nchw) for _ in range(count)]
        variants = {
            "plain": partial(evaluate, t.model, batches),
            "metered": partial(metered, t.model, batches),
            "compared": partial(compare, outputs(t.model, batches[0]), threshold),
            "listed": partial(listing_meter, t.model, batches[:1], threshold),
        }
        seconds = interleaved(variants, network.few_rounds)
        plain, ours, listed = seconds["plain"], seconds["metered"], seconds["listed"] * count
        compared = 1 + count * seconds["compared"] / plain
        yield figure("evaluation with full metering / evaluation (c)", network, ours / plain, goal)
        yield figure("evaluation (c) and one comparison of each output / evaluation (c)", network, compared)
        yield figure("our metered evaluation / evaluation with meter (d)", network, ours / listed, 0.2)
        yield figure("evaluation with meter (d) / evaluation (c)", network, listed / plain)


def random_images(count: int, size: int) -> ImageSet:
    """Noise, as the data sets keep their images."""
    images = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return ImageSet(images, np.arange(count, dtype=np.int64) % CLASSES)


def data(sizes: Sizes) -> Iterator[Figure]:
    """The same augmentation by ours and by the per-image loader, one process, one thread."""
    images = random_images(sizes.augmented, sizes.image_size)
    for name, augmentation in AUGMENTATIONS.items():
        config = replace(augmentation, image_size=sizes.image_size)

        def ours(config: DatasetConfig = config) -> None:
            for _ in training_batches(images, config, sizes.batch, MEAN, STD, 0, 0, torch.device("cpu")):
                pass

        def per_image(config: DatasetConfig = config) -> None:
            for _ in pil_loader(images, config, sizes.batch, MEAN, STD):
                pass

        seconds = interleaved({"ours": ours, "per image": per_image})
        values = seconds["per image"] / seconds["ours"]
        yield figure(f"our data path, {name} / per-image loader (e), images/s", "", values, 5, bound=AT_LEAST)
        yield figure(f"our data path, {name}", "", sizes.augmented / seconds["ours"], unit="images/s")
