"""The data sets, each as training, validation and test images."""

from pathlib import Path

import numpy as np

from eat_runner.config import DatasetConfig
from eat_runner.data.images import Dataset, ImageSet, evenly, validation_cut
from eat_runner.data.sources import Source, celeba, digits, gtsrb, image_folder, torchvision_archive
from eat_runner.data.store import Moments, open_store
from eat_runner.errors import UserError

__all__ = ["DATASETS", "Dataset", "ImageSet", "load"]

# Each key has a conf/dataset/<key>.yaml.
DATASETS: dict[str, Source] = {
    "digits": Source(digits, (1437, 360), 10),
    "cifar10": Source(
        torchvision_archive("CIFAR10", "cifar-10-python.tar.gz", "cifar-10-batches-py", 3), (50_000, 10_000), 10
    ),
    "cifar100": Source(
        torchvision_archive("CIFAR100", "cifar-100-python.tar.gz", "cifar-100-python", 3), (50_000, 10_000), 100
    ),
    "fashion_mnist": Source(
        torchvision_archive("FashionMNIST", "FashionMNIST/raw", "FashionMNIST/raw", 1), (60_000, 10_000), 10
    ),
    "gtsrb": Source(gtsrb, (39_209, 12_630), 43),
    "celeba": Source(celeba, (162_770, 19_962), 8),
    "image_folder": Source(image_folder),
}


def load(config: DatasetConfig, data_dir: Path, download: bool) -> Dataset:
    """The data set that ``config`` names, scaled to its image size and split as it says.

    data_dir: where data sets lie. download: fetch a missing one, where that is possible.
    Raises UserError, one line, where it is unknown, missing, incomplete or damaged.
    """
    if config.name not in DATASETS:
        raise UserError(f"dataset={config.name} is unknown: choose one of {', '.join(DATASETS)}")
    source = DATASETS[config.name]
    store = open_store(config.name, source, config.image_size, data_dir, download, config.background.lower())
    held_out = validation_cut(store.train, config.validation)
    kept = np.flatnonzero(~held_out)
    kept = kept[evenly(store.train.labels[kept], config.train_limit)]
    mean, std = _mean_and_std(store.moments[kept], config.image_size**2)
    return Dataset(
        name=config.name,
        train=store.train.take(kept),
        validation=store.train.take(np.flatnonzero(held_out)),
        test=store.test,
        class_names=store.class_names,
        image_size=config.image_size,
        channels=store.channels,
        mean=mean,
        std=std,
        fingerprint=store.fingerprint,
    )


def _mean_and_std(moments: Moments, pixels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per channel, for values in [0, 1]. A channel that never changes gets 1, so that nothing is divided by 0."""
    count = len(moments) * pixels
    first, second = (moments[:, i].sum(0) / count for i in (0, 1))
    deviation = np.sqrt(np.maximum(second - first**2, 0.0)) / 255
    return tuple((first / 255).tolist()), tuple(np.where(deviation > 0, deviation, 1.0).tolist())
