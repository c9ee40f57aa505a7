"""penalty.sample: the first images of a batch are penalised, for all of them."""

import math
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from eat_runner import models
from eat_runner.config import L0Config, ModelConfig, PenaltyConfig
from eat_runner.penalties.base import Adder
from eat_runner.penalties.in_backward import BLOCK, penalise
from eat_runner.penalties.l0 import L0
from eat_runner.penalties.observer import Observer

SIGMA, LAMBDA = 1e-2, 3.0


def config(sample: float, **more: Any) -> L0Config:
    return L0Config(sigma=SIGMA, sample=sample, **more)


def resnet(width: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return models.build(ModelConfig(width=width), 32, 3, 4).module.double()


def gradients(model: nn.Module, x: Tensor, y: Tensor, config: PenaltyConfig, in_backward: bool) -> tuple[Tensor, float]:
    """All parameters' gradients in a row, and the penalty's value."""
    model.zero_grad()
    with Observer(model, config, x, in_backward) as observer:
        value = observer.backward(F.cross_entropy(model(x), y), LAMBDA, len(x))
    assert value is not None
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]), value.item()


def naive(
    model: nn.Module, x: Tensor, y: Tensor, many: int, kinds: tuple[type[nn.Module], ...]
) -> tuple[Tensor, float]:
    """The same by hooks that copy the first images of each output, and autograd."""
    kept: list[Tensor] = []
    hooks = [
        module.register_forward_hook(lambda module, args, output: kept.append(output.clone()[:many]))
        for module in model.modules()
        if isinstance(module, kinds)
    ]
    model.zero_grad()
    loss = F.cross_entropy(model(x), y)
    means = [(part**2 / (part**2 + SIGMA)).sum() / part.numel() for part in kept]
    penalty = torch.stack(means).mean()
    (loss + LAMBDA * penalty).backward()
    for hook in hooks:
        hook.remove()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]), penalty.item()


@pytest.mark.parametrize("in_backward", [False, True])
@pytest.mark.parametrize("scope", ["leaf_modules", "activations"])
@pytest.mark.parametrize(("sample", "many"), [(0.01, 1), (0.25, 2), (0.4, 2), (0.99, 5), (1.0, 5)])
def test_gradient_and_value_are_those_of_the_first_images(
    sample: float, many: int, scope: str, in_backward: bool
) -> None:
    model = torchvision.models.resnet18(weights=None, num_classes=4).double()  # its ReLUs work in place, twice a block
    x, y = torch.randn(5, 3, 32, 32, dtype=torch.float64), torch.tensor([1, 3, 0, 2, 1])
    leaves = (nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.Linear)
    expected, penalty = naive(model, x, y, many, (nn.ReLU,) if scope == "activations" else leaves)
    found, value = gradients(model, x, y, config(sample, scope=scope), in_backward)
    assert value == pytest.approx(penalty, rel=1e-10)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-13)


@pytest.mark.parametrize("in_backward", [False, True])
def test_the_mean_over_samples_is_the_penalty_of_all(in_backward: bool) -> None:
    """Every image once in the sample: in evaluation mode, where images do not see each other, exactly."""
    model = resnet().eval()
    x, y = torch.randn(4, 3, 32, 32, dtype=torch.float64), torch.tensor([1, 3, 0, 2])
    whole, value = gradients(model, x, y, config(1.0), in_backward)
    turns = [gradients(model, x.roll(i, 0), y.roll(i), config(0.25), in_backward) for i in range(4)]
    torch.testing.assert_close(torch.stack([found for found, _ in turns]).mean(0), whole, rtol=1e-9, atol=1e-14)
    assert math.fsum(value for _, value in turns) / 4 == pytest.approx(value, rel=1e-12)


class Counting(L0):
    """Notes the rows and elements of each part that it adds to."""

    def __init__(self) -> None:
        super().__init__(config(1.0))
        self.parts: list[tuple[int, int]] = []

    def adder(self, below: float, above: float) -> Adder:
        add = super().adder(below, above)

        def count(gradient: Tensor, x: Tensor, out: Tensor) -> None:
            self.parts.append((len(x), x.numel()))
            add(gradient, x, out)

        return count


@pytest.mark.parametrize("behind", ["ReLU", "addition"])
def test_only_the_rows_of_the_sample_are_gone_over_and_those_in_blocks(behind: str) -> None:
    surrogate = Counting()
    leaf = torch.randn(32, 16, 64, 64, dtype=torch.float64, requires_grad=True)
    x = F.relu(leaf) if behind == "ReLU" else leaf + 1.0
    penalise(x, surrogate, lambda values: 2.0, rows=slice(0, 16))
    (3.0 * x).sum().backward()
    values, flows = x.detach(), (leaf > 0) if behind == "ReLU" else torch.ones_like(leaf)
    added = 2.0 * 2 * SIGMA * values / (values**2 + SIGMA) ** 2
    added[16:] = 0
    torch.testing.assert_close(leaf.grad, 3.0 * flows + added)
    assert sum(rows for rows, _ in surrogate.parts) == 16
    assert len(surrogate.parts) > 1
    assert max(elements for _, elements in surrogate.parts) <= BLOCK


@pytest.mark.parametrize("in_backward", [False, True])
def test_an_output_without_the_images_in_front_is_penalised_whole(in_backward: bool) -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.second(self.first(x.flatten(1).unflatten(1, (2, 6)).transpose(0, 1)))  # (2, batch, 6)
            return self.head(y.mean(0))

    model = Turned().double()
    x, y = torch.randn(3, 3, 2, 2, dtype=torch.float64), torch.tensor([0, 1, 2])
    h = F.relu(model.first(x.flatten(1).unflatten(1, (2, 6)).transpose(0, 1)))
    outputs = [model.first(x.flatten(1).unflatten(1, (2, 6)).transpose(0, 1)), h, model.head(h.mean(0))[:2]]
    expected = sum((part**2 / (part**2 + SIGMA)).mean().item() for part in outputs) / 3
    _, value = gradients(model, x, y, config(0.5), in_backward)
    assert value == pytest.approx(expected, rel=1e-12)


def test_a_smaller_last_batch_has_a_sample_of_its_own() -> None:
    model = resnet().eval()
    x, y = torch.randn(4, 3, 32, 32, dtype=torch.float64), torch.tensor([1, 3, 0, 2])
    found: list[float] = []
    with Observer(model, config(0.5), x, in_backward=True) as observer:
        for many in (4, 2):
            value = observer.backward(F.cross_entropy(model(x[:many]), y[:many]), LAMBDA, many)
            assert value is not None
            found.append(value.item())
    expected = [gradients(model, x[:many], y[:many], config(1.0), False)[1] for many in (2, 1)]
    assert found == pytest.approx(expected, rel=1e-12)
