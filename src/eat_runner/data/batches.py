"""From images in memory to batches: shuffled and augmented as whole batches, in uint8 for as long as possible.

What an epoch and a step draw depends on (seed, epoch, step) alone, so there is no generator state to save.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from eat_runner.config import DatasetConfig
from eat_runner.data.images import ImageSet

Batch = tuple[Tensor, Tensor]  # x_nchw (float32, normalised, channels_last in memory), labels (int64)
ORDER, AUGMENTATION = 0, 1  # what a generator is for
WHOLE = slice(None)


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
    order = torch.from_numpy(_generator(ORDER, seed, epoch).permutation(len(images))).to(device)
    stored, labels = _tensors(images, device)
    normalise = _Normalise(mean, std, device, channels)
    for step in range(first_step, steps_per_epoch(len(images), batch_size)):
        whole = order[step * batch_size : (step + 1) * batch_size]
        chosen, draw = whole[part], _generator(AUGMENTATION, seed, epoch, step)
        x_nhwc = _augment(stored.index_select(0, chosen), config, draw, len(whole), part)
        yield normalise(x_nhwc), labels[chosen]


def evaluation_batches(
    images: ImageSet,
    batch_size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    device: torch.device,
    channels: int | None = None,
) -> Iterator[Batch]:
    """All images in order, nothing augmented, the last batch possibly smaller."""
    if len(images) == 0:
        return
    normalise = _Normalise(mean, std, device, channels)
    stored, labels = _tensors(images, device)
    for x_nhwc, batch_labels in zip(stored.split(batch_size), labels.split(batch_size), strict=True):
        yield normalise(x_nhwc), batch_labels


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


def _tensors(images: ImageSet, device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(images.images_nhwc).to(device), torch.from_numpy(images.labels).to(device)


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
