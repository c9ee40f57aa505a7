"""Sets of images, and how a training set is divided."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eat_runner.data.mapped import fetch

# the split is the same for every seed: seeds repeat a training, they do not change the data
SPLIT_SEED = 0


@dataclass(frozen=True)
class ImageSet:
    """Some of the images that are stored, which may be a file mapped into memory: no more of it is read than is used.

    stored_nhwc: uint8, shape (M, size, size, channels). labels: int64, shape (N,).

    groups: int64, shape (N,), or None: images of one group (a track of GTSRB) show the same object.

    rows: int64, shape (N,): which of those stored; None: all of them, in their order.
    """

    stored_nhwc: NDArray[np.uint8]
    labels: NDArray[np.int64]
    groups: NDArray[np.int64] | None = None
    rows: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def nbytes(self) -> int:
        """Of the pixels of all images."""
        return len(self) * int(np.prod(self.stored_nhwc.shape[1:]))

    def pixels(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Those images, copied into memory: uint8, shape (len(indices), size, size, channels)."""
        rows = indices if self.rows is None else self.rows[indices]
        if isinstance(self.stored_nhwc, np.memmap):
            fetch(self.stored_nhwc, rows)
        return np.take(self.stored_nhwc, rows, axis=0)

    @property
    def images_nhwc(self) -> NDArray[np.uint8]:
        """The pixels of all images: those stored, or a copy of some of them."""
        return self.stored_nhwc if self.rows is None else self.pixels(np.arange(len(self)))

    def take(self, indices: NDArray[np.int64]) -> "ImageSet":
        """Those images, in that order; nothing is copied."""
        groups = None if self.groups is None else self.groups[indices]
        rows = indices if self.rows is None else self.rows[indices]
        return ImageSet(self.stored_nhwc, self.labels[indices], groups, rows)

    def first(self, count: int) -> "ImageSet":
        """The first ``count`` images, or all if there are fewer."""
        return self.take(np.arange(min(count, len(self))))


@dataclass(frozen=True)
class Dataset:
    """What an experiment trains and measures on.

    validation may be empty. mean, std: of the training split's pixels, per channel, for values in [0, 1].
    fingerprint: hash of the source's content and of the image size.
    """

    name: str
    train: ImageSet
    validation: ImageSet
    test: ImageSet
    class_names: tuple[str, ...]
    image_size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str


def validation_cut(images: ImageSet, share: float) -> NDArray[np.bool_]:
    """True for the images of the validation split: of each class the given share, whole groups where there are any, at
    least one image or group unless that would be the class's only one."""
    chosen = np.zeros(len(images), dtype=bool)
    if share == 0:
        return chosen
    units = np.arange(len(images)) if images.groups is None else images.groups
    rng = np.random.default_rng(SPLIT_SEED)
    for label in np.unique(images.labels):
        of_class = np.flatnonzero(images.labels == label)
        candidates = np.unique(units[of_class])
        count = min(max(round(len(candidates) * share), 1), len(candidates) - 1)
        picked = rng.choice(candidates, count, replace=False)
        chosen[of_class[np.isin(units[of_class], picked)]] = True
    return chosen


def evenly(labels: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    """Indices, ascending, of ``limit`` images spread over the classes as evenly as they allow; all if limit is 0."""
    if limit == 0 or limit >= len(labels):
        return np.arange(len(labels))
    order = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
    rank = np.empty(len(labels), dtype=np.int64)  # how many of the same class come before it in that order
    for label in np.unique(labels):
        of_class = order[labels[order] == label]
        rank[of_class] = np.arange(len(of_class))
    return np.sort(np.lexsort((labels, rank))[:limit])
