"""Looking at a network: accuracy, loss and counts of a split in one metered pass. Nothing is trained."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from eat_runner.config import MeterConfig
from eat_runner.data import Dataset, ImageSet
from eat_runner.data.batches import evaluation_batches
from eat_runner.distributed import together
from eat_runner.energy.counts import Counts, joined
from eat_runner.energy.meter import measure
from eat_runner.models import Network
from eat_runner.ranks import part_of, world_size

LOOKED_AT = 1000  # training images of a look, and those that stand in for a validation split in the firing rate
LOOK, TRAIN, VALIDATION = "look", "train", "validation"  # names of splits


@dataclass(frozen=True)
class Evaluation:
    """A network looked at on one split, in float32 and evaluation mode. loss: mean cross-entropy. labels, predicted:
    the true class of each image and the one that the network found most likely, int64, in the order of the split."""

    accuracy: float
    loss: float
    counts: Counts
    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]


@dataclass(frozen=True)
class Pixels:
    """How images become what a network takes: mean and std of their normalisation, per channel, for values in [0, 1];
    channels that the network takes; the device that it is on."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels: int
    device: torch.device


def pixels_of(network: Network, dataset: Dataset, device: torch.device) -> Pixels:
    """With the pretrained network's normalisation if it has one, else the data set's."""
    if network.mean is not None and network.std is not None:
        return Pixels(network.mean, network.std, network.channels, device)
    return Pixels(dataset.mean, dataset.std, network.channels, device)


def evaluate(
    model: nn.Module, images: ImageSet, pixels: Pixels, meter: MeterConfig, split: str, floor: bool = True
) -> Evaluation:
    """Accuracy, loss and counts of ``images``, counted under the name ``split``. floor: meter the floor batch too.

    Raises UserError and NonFiniteError as ``measure`` does.
    """
    return _evaluation([_metered(model, images, pixels, meter, split, floor)], images)


def evaluate_together(
    model: nn.Module, images: ImageSet, pixels: Pixels, meter: MeterConfig, split: str, floor: bool = True
) -> Evaluation:
    """``evaluate`` by all processes of a training, each on its part of the batches: the same for all of them."""
    if world_size() == 1:
        return evaluate(model, images, pixels, meter, split, floor)
    size = meter.batch_size
    batches = part_of(-(-len(images) // size))
    here = images.take(np.arange(batches.start * size, min(batches.stop * size, len(images))))

    def metered() -> _Metered | None:
        if not len(here):
            return None
        found = _metered(model, here, pixels, meter, split, floor and batches.start == 0)
        return found._replace(logits=found.logits.cpu())

    return _evaluation([part for part in together(metered) if part is not None], images)


class _Metered(NamedTuple):
    logits: Tensor
    counts: Counts


def _metered(
    model: nn.Module, images: ImageSet, pixels: Pixels, meter: MeterConfig, split: str, floor: bool
) -> _Metered:
    batches = evaluation_batches(images, meter.batch_size, pixels.mean, pixels.std, pixels.device, pixels.channels)
    logits: list[Tensor] = []
    counts = measure(model, (x for x, _ in batches), meter, split, floor, logits.append)
    return _Metered(torch.cat(logits).float(), counts)


def _evaluation(parts: Sequence[_Metered], images: ImageSet) -> Evaluation:
    answers = torch.cat([part.logits for part in parts])
    labels = torch.as_tensor(images.labels, device=answers.device)
    predicted = answers.argmax(1)
    return Evaluation(
        accuracy=float((predicted == labels).float().mean()),
        loss=float(F.cross_entropy(answers, labels)),
        counts=joined(part.counts for part in parts),
        labels=images.labels,
        predicted=predicted.cpu().numpy(),
    )
