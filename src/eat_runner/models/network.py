"""What a builder returns."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from eat_runner.config import ModelConfig


@dataclass(frozen=True)
class Network:
    """A classifier that maps images (N, channels, H, W) to logits (N, classes).

    channels: input channels that it takes; grey images are repeated where it takes three.
    mean, std: per channel, in 0..1 scale: the normalisation that pretrained weights were trained with; None where the
    data set's own is right. messages: what a person should know about how it was built.
    """

    module: nn.Module
    channels: int
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    messages: tuple[str, ...] = ()


# (configuration, image size, channels of the data, classes) -> Network
Builder = Callable[[ModelConfig, int, int, int], Network]
