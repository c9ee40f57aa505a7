"""A finished run as something to use: its network with trained weights, and how to prepare an image for it."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from eat_runner import models
from eat_runner.config import ModelConfig
from eat_runner.methods import restore
from eat_runner.records import RunFolder


@dataclass(frozen=True)
class Preprocessing:
    """What the network expects: images of ``image_size`` pixels a side with ``channels`` channels, normalised.

    mean, std: per channel, for values in [0, 1].
    """

    image_size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images_nchw: Tensor) -> Tensor:
        """uint8 images of shape (N, C, image_size, image_size), C = 1 or ``channels``, as the network takes them."""
        return self.normalised(images_nchw.float().div(255))

    def normalised(self, images_nchw: Tensor) -> Tensor:
        """The same for values in [0, 1]."""
        x = images_nchw.expand(-1, self.channels, -1, -1)
        mean, std = (torch.tensor(v, device=x.device).view(1, -1, 1, 1) for v in (self.mean, self.std))
        return (x - mean) / std


@dataclass(frozen=True)
class LoadedRun:
    """model: in evaluation mode, on the CPU. class_names: in the order of the network's outputs."""

    model: nn.Module
    preprocessing: Preprocessing
    class_names: tuple[str, ...]


def load_run(folder: Path | str) -> LoadedRun:
    """The network that a run trained. UserError where the run is not finished, or its weights are gone or
    damaged."""
    run = RunFolder(folder)
    record = run.check_finished("loaded")
    prepared = record.preprocessing
    config = ModelConfig(**record.config["model"])
    config.pretrained = False  # the run's own weights follow
    network = models.build(config, prepared["image_size"], prepared["channels"], len(prepared["class_names"]))
    run.check_weights()
    restore(network.module, record.changes)
    models.load_weights(network.module, run.weights)
    preprocessing = Preprocessing(
        prepared["image_size"], prepared["channels"], tuple(prepared["mean"]), tuple(prepared["std"])
    )
    return LoadedRun(network.module.eval(), preprocessing, tuple(prepared["class_names"]))
