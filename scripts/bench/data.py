"""The data path: batches of augmented, normalised images per second."""

import numpy as np
import torch

from bench.baselines import pil_loader
from bench.figures import AT_LEAST, Figure, figure, interleaved, ratios
from bench.sizes import CLASSES, Sizes
from eat_runner.config import DatasetConfig
from eat_runner.data import ImageSet
from eat_runner.data.batches import training_batches

MEAN, STD = (0.5, 0.45, 0.4), (0.25, 0.25, 0.3)
ROUNDS = 7


def random_images(count: int, size: int) -> ImageSet:
    """Noise, as the data sets keep their images."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return ImageSet(images, np.arange(count, dtype=np.int64) % CLASSES)


def data(sizes: Sizes) -> list[Figure]:
    """The same augmentation by ours and by the per-image loader, one process, one thread."""
    images = random_images(sizes.augmented, sizes.image_size)
    augmentations = {
        "crop and flip": DatasetConfig(image_size=sizes.image_size, crop_padding=4, flip=True),
        "crop and rotation": DatasetConfig(image_size=sizes.image_size, crop_padding=4, rotation_degrees=10),
    }
    found: list[Figure] = []
    for name, config in augmentations.items():

        def ours(config: DatasetConfig = config) -> None:
            for _ in training_batches(images, config, sizes.batch, MEAN, STD, 0, 0, torch.device("cpu")):
                pass

        def per_image(config: DatasetConfig = config) -> None:
            for _ in pil_loader(images.images_nhwc, images.labels, config, sizes.batch, MEAN, STD):
                pass

        seconds = interleaved({"ours": ours, "per image": per_image}, ROUNDS)
        values = ratios(seconds["per image"], seconds["ours"])
        found.append(figure(f"our data path, {name} / per-image loader (e), images/s", "", values, 5, bound=AT_LEAST))
        found.append(
            figure(f"our data path, {name}", "", [sizes.augmented / s for s in seconds["ours"]], unit="images/s")
        )
    return found
