"""What ours is compared with, each as somebody would write it without the ideas of this project.

(a) ``plain_step``: a training step without any penalty. (b) ``two_pass_step``: the penalty from a second forward pass.
(c) ``evaluate``: an evaluation pass without metering. (d) ``listing_meter``: a meter that lists the non-zeros.
(e) ``pil_loader``: a DataLoader with transforms image by image. And ``minimal_loop``: forward, backward, step.
"""

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from bench.engine import CLASSES, Network, Sizes
from eat_runner.config import DatasetConfig
from eat_runner.data import ImageSet


@dataclass
class Training:
    """A network in training mode, its optimiser, and one batch that stays in memory. forward: the network, compiled or
    not."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    x_nchw: Tensor
    labels: Tensor
    autocast: Callable[[], torch.autocast]
    forward: Callable[[Tensor], Tensor]


def training(
    network: Network, sizes: Sizes, device: str = "cpu", channels_last: bool = True, bf16: bool = False
) -> Training:
    """The same weights and the same batch at every call."""
    torch.manual_seed(0)
    model = network.build(sizes.image_size).module.to(device).train()
    x = torch.randn(sizes.batch, 3, sizes.image_size, sizes.image_size).to(device)
    labels = torch.randint(CLASSES, (sizes.batch,)).to(device)
    if channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        x = x.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    return Training(model, optimizer, x, labels, lambda: torch.autocast(device, torch.bfloat16, enabled=bf16), model)


def plain_step(t: Training) -> None:
    """(a) Forward, backward, step."""
    with t.autocast():
        loss = F.cross_entropy(t.forward(t.x_nchw), t.labels)
    t.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    t.optimizer.step()


def two_pass_step(t: Training, sigma: float, lambda_: float) -> Tensor:
    """(b) As the published code goes about it: the outputs come from a second forward pass. Returns the penalty."""
    loss = F.cross_entropy(t.model(t.x_nchw), t.labels)
    outputs: list[Tensor] = []
    with leaves_hooked(t.model, lambda module, args, output: outputs.append(output.clone())):
        t.model(t.x_nchw)
    penalty = torch.stack([naive_surrogate(x, sigma) / x.numel() for x in outputs]).mean()
    t.optimizer.zero_grad(set_to_none=True)
    (loss + lambda_ * penalty).backward()
    t.optimizer.step()
    return penalty.detach()


def naive_surrogate(x: Tensor, sigma: float) -> Tensor:
    """The formula (arXiv 2307.00368, Eq. 1), left to autograd."""
    return (x**2 / (x**2 + sigma)).sum()


@contextmanager
def leaves_hooked(model: nn.Module, hook: Callable[[nn.Module, Any, Tensor], None]) -> Generator[None]:
    handles = [module.register_forward_hook(hook) for module in model.modules() if not any(module.children())]
    yield
    for handle in handles:
        handle.remove()


def evaluate(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """(c) What any evaluation does."""
    model.eval()
    with torch.no_grad():
        for x in batches:
            model(x)


def listing_meter(model: nn.Module, batches: Iterable[Tensor], threshold: float) -> list[Counter[str]]:
    """(d) A batch's elements and non-zeros of every call's inputs, outputs, parameters and buffers, over the calls of
    all leaf modules; non-zeros by listing them."""
    found: list[Counter[str]] = []

    def count(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        tensors = {"input": args, "output": (output,), "parameter": (*module.parameters(), *module.buffers())}
        for kind, values in tensors.items():
            for x in values:
                found[-1][f"{kind}_elements"] += x.numel()
                found[-1][f"{kind}_nonzeros"] += len((x.detach().abs() > threshold).nonzero())

    model.eval()
    with leaves_hooked(model, count), torch.no_grad():
        for x in batches:
            found.append(Counter())
            model(x)
    return found


def pil_loader(
    images: ImageSet, config: DatasetConfig, batch: int, mean: Sequence[float], std: Sequence[float]
) -> Iterator[tuple[Tensor, Tensor]]:
    """(e) One epoch of an ordinary DataLoader, in this process, with the augmentation that ``config`` asks for."""
    steps: list[v2.Transform] = []
    if config.crop_padding:
        steps.append(v2.RandomCrop(config.image_size, padding=config.crop_padding))
    if config.flip:
        steps.append(v2.RandomHorizontalFlip())
    if degrees := config.rotation_degrees:
        steps.append(v2.RandomRotation([-degrees, degrees], v2.InterpolationMode.BILINEAR))
    steps += [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))]
    transform = v2.Compose(steps)

    def collate(pairs: list[tuple[NDArray[Any], int]]) -> tuple[Tensor, Tensor]:
        return torch.stack([transform(Image.fromarray(x)) for x, _ in pairs]), torch.tensor([y for _, y in pairs])

    data: Any = list(zip(images.images_nhwc, images.labels, strict=True))
    return iter(DataLoader(data, batch, shuffle=True, drop_last=len(data) >= batch, collate_fn=collate))


def minimal_loop(t: Training, images_nchw: Tensor, labels: Tensor, steps: int) -> None:
    """Forward, backward, step, over images in memory, and nothing else."""
    batch = len(t.labels)
    for step in range(steps):
        first = step * batch % (len(labels) - batch + 1)
        plain_step(replace(t, x_nchw=images_nchw[first : first + batch], labels=labels[first : first + batch]))
