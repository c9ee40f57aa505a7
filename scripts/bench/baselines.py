"""What ours is compared with, each as somebody would write it without the ideas of this project.

(a) ``plain_step``: a training step without any penalty. (b) ``two_pass_step``: the penalty from a second forward pass.
(c) ``evaluate``: an evaluation pass without metering. (d) ``listing_meter``: a meter that lists the non-zeros.
(e) ``pil_loader``: a DataLoader with transforms image by image. And ``minimal_loop``: forward, backward, step.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from bench.sizes import CLASSES, config_of
from eat_runner import models
from eat_runner.config import DatasetConfig


@dataclass
class Training:
    """A network in training mode, its optimiser, and one batch that stays in memory."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    x_nchw: Tensor
    labels: Tensor
    bf16: bool = False

    @cached_property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.x_nchw.device.type, torch.bfloat16, enabled=self.bf16)


def training(
    network: tuple[str, int],
    image_size: int,
    batch: int,
    device: str = "cpu",
    channels_last: bool = True,
    bf16: bool = False,
) -> Training:
    """The same weights and the same batch at every call."""
    torch.manual_seed(0)
    model = models.build(config_of(network), image_size, 3, CLASSES).module.to(device).train()
    x, labels = torch.randn(batch, 3, image_size, image_size), torch.randint(CLASSES, (batch,))
    x, labels = x.to(device), labels.to(device)
    if channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        x = x.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    return Training(model, optimizer, x, labels, bf16)


def plain_step(t: Training, forward: Callable[[Tensor], Tensor] | None = None) -> None:
    """(a) Forward, backward, step. forward: the compiled network, if it is to be used."""
    with t.autocast():
        loss = F.cross_entropy((t.model if forward is None else forward)(t.x_nchw), t.labels)
    t.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    t.optimizer.step()


def two_pass_step(t: Training, sigma: float, lambda_: float) -> Tensor:
    """(b) As the published code goes about it: the outputs come from a second forward pass. Returns the penalty."""
    loss = F.cross_entropy(t.model(t.x_nchw), t.labels)
    outputs: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Tensor) -> None:
        outputs.append(output.clone())

    with ExitStack() as hooks:
        for module in leaves(t.model):
            hooks.callback(module.register_forward_hook(keep).remove)
        t.model(t.x_nchw)
    penalty = torch.stack([naive_surrogate(x, sigma) / x.numel() for x in outputs]).mean()
    t.optimizer.zero_grad(set_to_none=True)
    (loss + lambda_ * penalty).backward()
    t.optimizer.step()
    return penalty.detach()


def naive_surrogate(x: Tensor, sigma: float) -> Tensor:
    """The formula (arXiv 2307.00368, Eq. 1), left to autograd."""
    return (x**2 / (x**2 + sigma)).sum()


def leaves(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if not any(module.children())]


def evaluate(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """(c) What any evaluation does."""
    model.eval()
    with torch.no_grad():
        for x in batches:
            model(x)


@dataclass
class Totals:
    """Of one batch, over the calls of all leaf modules."""

    input_elements: int = 0
    input_nonzeros: int = 0
    output_elements: int = 0
    output_nonzeros: int = 0
    parameter_elements: int = 0
    parameter_nonzeros: int = 0


def listing_meter(model: nn.Module, batches: Iterable[Tensor], threshold: float) -> list[Totals]:
    """(d) Elements and non-zeros of every call's inputs, outputs, parameters and buffers; non-zeros by listing them."""

    def nonzeros(x: Tensor) -> int:
        return len((x.detach().abs() > threshold).nonzero())

    found: list[Totals] = []

    def count(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        totals = found[-1]
        for x in args:
            totals.input_elements += x.numel()
            totals.input_nonzeros += nonzeros(x)
        totals.output_elements += output.numel()
        totals.output_nonzeros += nonzeros(output)
        for value in (*module.parameters(), *module.buffers()):
            totals.parameter_elements += value.numel()
            totals.parameter_nonzeros += nonzeros(value)

    with ExitStack() as hooks:
        for module in leaves(model):
            hooks.callback(module.register_forward_hook(count).remove)
        model.eval()
        with torch.no_grad():
            for x in batches:
                found.append(Totals())
                model(x)
    return found


class _PilImages(Dataset[tuple[Tensor, int]]):
    def __init__(self, images_nhwc: NDArray[np.uint8], labels: NDArray[np.int64], transform: v2.Transform):
        self.images_nhwc, self.labels, self.transform = images_nhwc, labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images_nhwc[index])), int(self.labels[index])


def pil_loader(
    images_nhwc: NDArray[np.uint8],
    labels: NDArray[np.int64],
    config: DatasetConfig,
    batch: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Iterator[tuple[Tensor, Tensor]]:
    """(e) One epoch of an ordinary DataLoader, in this process, with the augmentation that ``config`` asks for."""
    steps: list[v2.Transform] = []
    if config.crop_padding:
        steps.append(v2.RandomCrop(config.image_size, padding=config.crop_padding))
    if config.flip:
        steps.append(v2.RandomHorizontalFlip())
    if config.rotation_degrees:
        steps.append(
            v2.RandomRotation([-config.rotation_degrees, config.rotation_degrees], v2.InterpolationMode.BILINEAR)
        )
    steps += [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))]
    images = _PilImages(images_nhwc, labels, v2.Compose(steps))
    return iter(DataLoader(images, batch_size=batch, shuffle=True, drop_last=len(labels) >= batch, num_workers=0))


def minimal_loop(t: Training, images_nchw: Tensor, labels: Tensor, steps: int) -> None:
    """Forward, backward, step, over images in memory, and nothing else."""
    batch, first = len(t.labels), 0
    for _ in range(steps):
        x, y = images_nchw[first : first + batch], labels[first : first + batch]
        loss = F.cross_entropy(t.model(x), y)
        t.optimizer.zero_grad()
        loss.backward()
        t.optimizer.step()
        first = (first + batch) % (len(labels) - batch + 1)
