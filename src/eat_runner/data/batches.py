"""From stored images to batches: shuffled and augmented as whole batches, in uint8 for as long as possible.

What an epoch and a step draw depends on (seed, epoch, step) alone, so there is no generator state to save.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from eat_runner.config import DatasetConfig
from eat_runner.data.ahead import ahead
from eat_runner.data.images import ImageSet

Batch = tuple[Tensor, Tensor]  # x_nchw (float32, normalised, channels_last in memory), labels (int64)
ORDER, AUGMENTATION = 0, 1  # what a generator is for
WHOLE = slice(None)
READ_AHEAD = 4  # batches for a device that does not hold all images
COPIED_AT_ONCE = 2**26  # bytes


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Whole batches in ``images``; the rest is left out of the epoch. One, smaller, where there is no whole one."""
    return max(images // batch_size, 1)


def training_batches(
    images: ImageSet,
    config: DatasetConfig,
    batch_size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    seed: int,
    epoch: int,
    device: torch.device,
    first_step: int = 0,
    channels: int | None = None,
    part: slice = WHOLE,
) -> Iterator[Batch]:
    """The batches of one epoch from ``first_step`` on, augmented as ``config`` says.

    mean, std: per channel, for values in [0, 1]. channels: repeat a grey channel so often. part: of each batch, with
    the images as they are in the whole one.
    """
    order = _generator(ORDER, seed, epoch).permutation(len(images))
    steps = range(first_step, steps_per_epoch(len(images), batch_size))
    whole = [range(len(images))[step * batch_size : (step + 1) * batch_size] for step in steps]
    normalise = _Normalise(mean, std, device, channels)
    read = _read(images, order, [places[part] for places in whole], device)
    for step, places, (x_nhwc, labels) in zip(steps, whole, read, strict=True):
        draw = _generator(AUGMENTATION, seed, epoch, step)
        yield normalise(_augment(x_nhwc, config, draw, len(places), part)), labels


def evaluation_batches(
    images: ImageSet,
    batch_size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    device: torch.device,
    channels: int | None = None,
) -> Iterator[Batch]:
    """All images in order, nothing augmented, the last batch possibly smaller."""
    normalise = _Normalise(mean, std, device, channels)
    order = np.arange(len(images))
    places = [range(len(images))[start : start + batch_size] for start in range(0, len(images), batch_size)]
    for x_nhwc, labels in _read(images, order, places, device):
        yield normalise(x_nhwc), labels


def _read(images: ImageSet, order: NDArray[np.int64], places: Sequence[range], device: torch.device) -> Iterator[Batch]:
    """For each of the places in that order, the images (uint8, NHWC) and labels there, on the device: from a copy of
    all images there, where it has room for one; else they are read while the device computes."""
    labels = torch.from_numpy(images.labels[order]).to(device)
    slices = [slice(place.start, place.stop, place.step) for place in places]
    for x_nhwc, where in zip(_pixels(images, order, slices, device), slices, strict=True):
        yield x_nhwc, labels[where]


def _pixels(
    images: ImageSet, order: NDArray[np.int64], places: Sequence[slice], device: torch.device
) -> Iterator[Tensor]:
    if device.type == "cpu":
        for where in places:
            yield torch.from_numpy(images.pixels(order[where]))
    elif _has_room(device, images.nbytes):
        stored, on_device = copy_on(images, device), torch.from_numpy(order).to(device)
        for where in places:
            yield stored.index_select(0, on_device[where])
    else:
        with ThreadPoolExecutor(READ_AHEAD) as pool:
            for x_nhwc in ahead(pool, lambda where: _pinned(images.pixels(order[where])), places, READ_AHEAD):
                yield x_nhwc.to(device, non_blocking=True)


def _has_room(device: torch.device, nbytes: int) -> bool:
    """Whether images may take so much of the device's memory; of other devices than CUDA's nobody knows."""
    return device.type == "cuda" and nbytes < torch.cuda.mem_get_info(device)[0] / 2


def copy_on(images: ImageSet, device: torch.device) -> Tensor:
    """All images on the device; never all of them in the host's memory."""
    stored = torch.empty((len(images), *images.stored_nhwc.shape[1:]), dtype=torch.uint8, device=device)
    count = max(COPIED_AT_ONCE * len(images) // max(images.nbytes, 1), 1)
    for some in np.split(np.arange(len(images)), range(count, len(images), count)):
        stored[some[0] : some[-1] + 1] = torch.from_numpy(images.pixels(some))
    return stored


def _pinned(x_nhwc: NDArray[np.uint8]) -> Tensor:
    """In memory from which CUDA copies while it computes, where there is CUDA."""
    x = torch.from_numpy(x_nhwc)
    return x.pin_memory() if torch.cuda.is_available() else x


class _Normalise:
    """uint8 NHWC -> float32 NCHW with mean 0 and standard deviation 1, in one pass after the conversion."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device, channels: int | None):
        scale = 1.0 / (255.0 * torch.tensor(std, dtype=torch.float64))
        shift = -torch.tensor(mean, dtype=torch.float64) * 255.0 * scale
        self.scale, self.shift = (v.float().to(device) for v in (scale, shift))
        self.channels = channels

    def __call__(self, x_nhwc: Tensor) -> Tensor:
        x = x_nhwc.to(torch.float32)
        if self.channels is not None and self.channels != x.shape[-1]:
            x = x.expand(*x.shape[:-1], self.channels)
        n, height, width, channels = x.shape
        scale, shift = (v.expand(channels).repeat(width) for v in (self.scale, self.shift))  # whole rows are faster
        return torch.addcmul(shift, x.reshape(n, height, -1), scale).view(x.shape).permute(0, 3, 1, 2)


def _generator(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))


def _augment(x_nhwc: Tensor, config: DatasetConfig, draw: np.random.Generator, whole: int, part: slice) -> Tensor:
    """Random shift (crop from a padded image), flip and rotation, each image its own; black comes in from outside.

    x_nhwc: ``part`` of a batch of ``whole`` images, for all of which is drawn.
    """
    n, size = len(x_nhwc), x_nhwc.shape[1]
    pad = config.crop_padding
    shift = torch.from_numpy(draw.integers(-pad, pad + 1, (2, whole))[:, part]).to(x_nhwc.device)
    flip = torch.from_numpy(draw.random(whole)[part] < 0.5).to(x_nhwc.device) & config.flip
    if config.rotation_degrees > 0:
        angle = draw.uniform(-config.rotation_degrees, config.rotation_degrees, whole)[part]
        return _transform(x_nhwc, shift, flip, torch.from_numpy(np.deg2rad(angle)).float().to(x_nhwc.device))
    if pad:
        # every crop is a window of the padded image, so the crops are one indexing of the view of all windows
        windows_nijchw = F.pad(x_nhwc, (0, 0, pad, pad, pad, pad)).unfold(1, size, 1).unfold(2, size, 1)
        rows, columns = shift + pad
        crops_nchw = windows_nijchw[torch.arange(n, device=x_nhwc.device), rows, columns]
        x_nhwc = crops_nchw.permute(0, 2, 3, 1).contiguous()
    return torch.where(flip[:, None, None, None], x_nhwc.flip(2), x_nhwc) if config.flip else x_nhwc


def _transform(x_nhwc: Tensor, shift: Tensor, flip: Tensor, angle: Tensor) -> Tensor:
    """Shift, flip and rotation as one bilinear resampling; float32, NHWC, still 0 to 255."""
    size = x_nhwc.shape[1]
    # grid_sample's unit is half an image, its origin the centre; x and y are the centres of the pixels
    x = torch.linspace(-1, 1, size, device=x_nhwc.device) * (size - 1) / size
    y = x[:, None]
    rows, columns = 2.0 * shift.float()[:, :, None, None] / size
    mirror, cosine, sine = (v[:, None, None] for v in (1.0 - 2.0 * flip.float(), angle.cos(), angle.sin()))
    from_x = mirror * cosine * x - sine * y + columns
    from_y = mirror * sine * x + cosine * y + rows
    x_nchw = x_nhwc.permute(0, 3, 1, 2).float()
    grid = torch.stack([from_x, from_y], -1)
    return F.grid_sample(x_nchw, grid, align_corners=False).permute(0, 2, 3, 1).contiguous()
