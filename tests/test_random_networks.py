"""Random networks, of layers, functions, wrappers and ways to call them, against an interpreter of their own: counts
and exact products of the meter, value and gradient of the penalty. Everything in float64.

Each step has two forms. ``run`` is how a person writes it, with modules, in place, wrapped. ``naive`` says the same out
of place, with functions, notes what is penalised, and counts products from matrices of the values that meet.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

from eat_runner.config import L0Config, MeterConfig
from eat_runner.energy.meter import measure
from eat_runner.penalties.observer import Observer

IMAGES, CHANNELS, SIDE = 3, 4, 6  # of every tensor between two steps
SIGMA, LAMBDA = 1e-2, 2.0


@dataclass
class Log:
    """training: of the pass. outputs: those that are penalised. macs: (valid, input not zero, both not zero)."""

    training: bool
    outputs: list[Tensor] = field(default_factory=list[Tensor])
    macs: list[int] = field(default_factory=lambda: [0, 0, 0])

    def leaf(self, y: Tensor) -> Tensor:
        self.outputs.append(y)
        return y

    def mm(self, a: Tensor, b: Tensor) -> None:
        """(…, m, k) x (…, k, n)."""
        left, right = (a != 0).double(), (b != 0).double()
        for i, (x, y) in enumerate(
            [(torch.ones_like(left), torch.ones_like(right)), (left, torch.ones_like(right)), (left, right)]
        ):
            self.macs[i] += int((x @ y).sum())

    def conv(self, x: Tensor, weight: Tensor, groups: int = 1, dilation: int = 1, around: str = "zeros") -> None:
        """3x3 or 1x1, as wide as the image: column by column of what its windows hold; beyond the image there is
        nothing, unless something is put there."""
        kernel, pad = weight.shape[2], dilation * (weight.shape[2] // 2)
        inside = torch.ones_like(x)
        if around != "zeros":
            x, inside = (F.pad(y, (pad,) * 4, mode=around) for y in (x, inside))
            pad = 0
        columns = [F.unfold(y, kernel, dilation, pad) for y in ((x != 0).double(), inside)]
        some, valid = (y.unflatten(1, (groups, -1)) for y in columns)
        rows = (weight != 0).double().flatten(1).unflatten(0, (groups, -1))
        for i, (left, right) in enumerate(
            [(torch.ones_like(rows), valid), (torch.ones_like(rows), some), (rows, some)]
        ):
            self.macs[i] += int((left @ right).sum())


@dataclass(frozen=True)
class Step:
    run: Callable[..., Tensor]
    naive: Callable[..., Tensor]
    parts: Callable[[], list[nn.Module]] = list


def sparse(x: Tensor) -> Tensor:
    return x * (torch.rand(x.shape) < 0.7)


def conv(kernel: int = 3, **options: Any) -> nn.Conv2d:
    made = nn.Conv2d(CHANNELS, CHANNELS, kernel, padding=options.get("dilation", 1) * (kernel // 2), **options)
    with torch.no_grad():
        made.weight.copy_(sparse(made.weight))
    return made


def convolved(x: Tensor, log: Log, layer: nn.Conv2d, weight: Tensor | None = None) -> Tensor:
    weight = layer.weight if weight is None else weight
    mode, dilation = layer.padding_mode, layer.dilation[0]
    log.conv(x, weight, layer.groups, dilation, mode)
    pad = dilation * (weight.shape[2] // 2)
    padded = F.pad(x, (pad,) * 4, mode="constant" if mode == "zeros" else mode)
    return F.conv2d(padded, weight, layer.bias, dilation=dilation, groups=layer.groups)


def normed(x: Tensor, log: Log, norm: nn.BatchNorm2d) -> Tensor:
    if log.training:
        return F.batch_norm(x, None, None, norm.weight, norm.bias, True)
    shape = (1, -1, 1, 1)
    scaled = (x - norm.running_mean.view(shape)) / (norm.running_var.view(shape) + norm.eps).sqrt()
    return scaled * norm.weight.view(shape) + norm.bias.view(shape)


def norm() -> nn.BatchNorm2d:
    made = nn.BatchNorm2d(CHANNELS, momentum=0.0)
    nn.init.uniform_(made.bias, -1.0, 1.0)
    nn.init.uniform_(made.running_mean, -0.2, 0.2)
    return made


class Standardised(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(input, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias, padding=1)


class Linear(nn.Module):
    """Of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(sparse(torch.randn(SIDE, SIDE)))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix.t()


class Scale(nn.Module):
    """Rectified, as BiFPN's weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([1.0, 0.5]))

    def forward(self, x: Tensor) -> Tensor:
        weights = F.relu(self.weights)
        return weights[0] * x + weights[1] * x.flip(3)


def linear() -> nn.Linear:
    made = nn.Linear(SIDE, SIDE)
    with torch.no_grad():
        made.weight.copy_(sparse(made.weight))
    return made


def multiplied(x: Tensor, log: Log, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    log.mm(x, weight.t())
    return x @ weight.t() + (0.0 if bias is None else bias)


def leaf(function: Callable[[Tensor], Tensor], module: Callable[[], nn.Module]) -> Step:
    """A layer, and what it computes."""
    return Step(lambda x, m: m(x), lambda x, log, m: log.leaf(function(x)), lambda: [module()])


def plain(function: Callable[[Tensor], Tensor], naive: Callable[[Tensor], Tensor] | None = None) -> Step:
    """A function, and what it computes, where that can be said more simply."""
    return Step(function, lambda x, log: (naive or function)(x))


def convolution(make: Callable[[], nn.Module]) -> Step:
    return Step(lambda x, m: m(x), lambda x, log, m: log.leaf(convolved(x, log, m)), lambda: [make()])


def pruned() -> nn.Module:
    return prune.random_unstructured(conv(), "weight", 0.5)


def residual(x: Tensor, layer: nn.Module, batch_norm: nn.Module) -> Tensor:
    y = batch_norm(layer(x))
    y += x
    return y


def naive_residual(x: Tensor, log: Log, layer: Any, batch_norm: Any) -> Tensor:
    return log.leaf(normed(log.leaf(convolved(x, log, layer)), log, batch_norm)) + x


def rectified(x: Tensor, log: Log, layer: Any, relu: Any) -> Tensor:
    return log.leaf(F.relu(log.leaf(convolved(x, log, layer))))


def erased(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, 1] = 0.0
    return x


def shifted(x: Tensor) -> Tensor:
    """Along channels, into a new tensor (temporal shift)."""
    out = torch.zeros_like(x)
    out[:, 1:] = x[:, :-1]
    return out


def attention(x: Tensor) -> Tensor:
    tokens = x.flatten(2).mT
    return F.scaled_dot_product_attention(tokens, tokens.roll(1, 1), tokens).mT.unflatten(2, (SIDE, SIDE))


def naive_attention(x: Tensor, log: Log) -> Tensor:
    q = x.flatten(2).mT
    k = q.roll(1, 1)
    weights = (q @ k.mT / CHANNELS**0.5).softmax(-1)
    log.mm(q, k.mT)
    log.mm(weights, q)
    return (weights @ q).mT.unflatten(2, (SIDE, SIDE))


def naive_square(x: Tensor, log: Log) -> Tensor:
    log.mm(x, x.mT)
    return x @ x.mT


def naive_columns(x: Tensor, log: Log) -> Tensor:
    log.mm(x.mT, x)
    return x.mT @ x


def gated(x: Tensor, sigmoid: nn.Module) -> Tensor:
    return x * sigmoid(x.mean((2, 3), keepdim=True))


def squeezed(x: Tensor, layer: nn.Module) -> Tensor:
    """Image by image, without its dimension."""
    return torch.stack([layer(image.squeeze(0)) for image in x.split(1)])


def folded(x: Tensor, layer: nn.Module) -> Tensor:
    return layer(x.transpose(0, 1).flatten(0, 1)).unflatten(0, (CHANNELS, IMAGES)).transpose(0, 1)


def naive_folded(x: Tensor, log: Log, layer: Any) -> Tensor:
    y = multiplied(x, log, layer.weight, layer.bias)
    log.leaf(y)
    return y


STEPS: dict[str, Step] = {
    "conv": convolution(conv),
    "conv, 1x1": convolution(lambda: conv(1)),
    "conv, groups": convolution(lambda: conv(groups=2)),
    "conv, depthwise": convolution(lambda: conv(groups=CHANNELS, bias=False)),
    "conv, dilated": convolution(lambda: conv(dilation=2)),
    "conv, circular": convolution(lambda: conv(padding_mode="circular")),
    "conv, weight norm": convolution(lambda: parametrizations.weight_norm(conv())),
    "conv, pruned": Step(
        lambda x, m: m(x),
        lambda x, log, m: log.leaf(convolved(x, log, m, m.weight_orig * m.weight_mask)),
        lambda: [pruned()],
    ),
    "conv, frozen": convolution(lambda: conv().requires_grad_(False)),
    "conv, of one's own": Step(
        lambda x, m: m(x),
        lambda x, log, m: log.leaf(convolved(x, log, m, m.weight - m.weight.mean((1, 2, 3), keepdim=True))),
        lambda: [Standardised(CHANNELS, CHANNELS, 3)],
    ),
    "conv, its weight alone": Step(
        lambda x, m: F.conv2d(x, m.weight, m.bias, padding=1),
        lambda x, log, m: convolved(x, log, m),
        lambda: [conv()],
    ),
    "conv, rectified in place": Step(lambda x, m, relu: relu(m(x)), rectified, lambda: [conv(), nn.ReLU(inplace=True)]),
    "conv, called twice": Step(
        lambda x, m: m(m(x)),
        lambda x, log, m: log.leaf(convolved(log.leaf(convolved(x, log, m)), log, m)),
        lambda: [conv()],
    ),
    "conv, in a checkpoint": Step(
        lambda x, m: checkpoint(m, x, use_reentrant=False),
        lambda x, log, m: log.leaf(convolved(x, log, m)),
        lambda: [conv()],
    ),
    "conv, without gradients": Step(
        lambda x, m: without_gradients(m, x),
        lambda x, log, m: log.leaf(convolved(x, log, m).detach()),
        lambda: [conv()],
    ),
    "residual in place": Step(residual, naive_residual, lambda: [conv(), norm()]),
    "auxiliary": Step(
        lambda x, m: (m(x), x)[1],
        lambda x, log, m: (log.leaf(convolved(x, log, m)), x)[1],
        lambda: [conv()],
    ),
    "batch norm": Step(lambda x, m: m(x), lambda x, log, m: log.leaf(normed(x, log, m)), lambda: [norm()]),
    "group norm": leaf(lambda x: F.group_norm(x, 2), lambda: nn.GroupNorm(2, CHANNELS, affine=False)),
    "layer norm, function": plain(lambda x: F.layer_norm(x, (SIDE,))),
    "relu": leaf(lambda x: x.clamp(min=0.0), nn.ReLU),
    "relu6": leaf(lambda x: x.clamp(0.0, 6.0), nn.ReLU6),
    "hardtanh": leaf(lambda x: x.clamp(-0.5, 0.5), lambda: nn.Hardtanh(-0.5, 0.5)),
    "silu": leaf(lambda x: x * x.sigmoid(), nn.SiLU),
    "relu, function": plain(F.relu, lambda x: x.clamp(min=0.0)),
    "identity": leaf(lambda x: x, nn.Identity),
    "nothing": Step(lambda x, m: m(x), lambda x, log, m: x, lambda: [nn.Sequential()]),
    "max pool": leaf(lambda x: F.max_pool2d(x, 3, 1, 1), lambda: nn.MaxPool2d(3, 1, 1)),
    "average pool": leaf(lambda x: F.avg_pool2d(x, 3, 1, 1), lambda: nn.AvgPool2d(3, 1, 1)),
    "dropout in evaluation": Step(lambda x, m: m(x), lambda x, log, m: x, lambda: [nn.Dropout(0.0)]),
    "linear": Step(
        lambda x, m: m(x), lambda x, log, m: log.leaf(multiplied(x, log, m.weight, m.bias)), lambda: [linear()]
    ),
    "linear, folded": Step(folded, naive_folded, lambda: [linear()]),
    "linear, function": Step(
        lambda x, m: F.linear(x, m.weight), lambda x, log, m: multiplied(x, log, m.weight), lambda: [linear()]
    ),
    "linear, of one's own": Step(
        lambda x, m: m(x), lambda x, log, m: log.leaf(multiplied(x, log, m.matrix)), lambda: [Linear()]
    ),
    "attention": Step(attention, naive_attention),
    "matmul": Step(lambda x: x @ x.mT, naive_square),
    "einsum": Step(lambda x: torch.einsum("nchw,nchv->ncwv", x, x), naive_columns),
    "softmax": plain(lambda x: x.softmax(1)),
    "gate": Step(
        gated,
        lambda x, log, m: x * log.leaf(1.0 / (1.0 + (-x.mean((2, 3), keepdim=True)).exp())),
        lambda: [nn.Sigmoid()],
    ),
    "rectified parameters": Step(
        lambda x, m: m(x),
        lambda x, log, m: log.leaf(m.weights[0] * x + m.weights[1] * x.flip(3)),
        lambda: [Scale()],
    ),
    "roll": plain(lambda x: x.roll(1, 2)),
    "pad and crop": plain(lambda x: F.pad(x, (1, 1))[..., :SIDE]),
    "index": plain(lambda x: x[:, [0, 0, 3, 1]]),
    "index_select": plain(lambda x: x.index_select(1, torch.tensor([2, 2, 0, 1]))),
    "cat of halves": plain(lambda x: torch.cat(x.chunk(2, 1)[::-1], 1)),
    "repeat": plain(lambda x: x[:, :1].repeat(1, CHANNELS, 1, 1)),
    "masked_fill": plain(lambda x: x.masked_fill(x < 0.2, 0.0)),
    "where": plain(lambda x: torch.where(x > 0.1, x, -x.flip(3))),
    "clamp": plain(lambda x: x.clamp(-1.0, 0.3)),
    "written into": plain(erased),
    "shift": plain(shifted),
}


def without_gradients(layer: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return layer(x)


class Network(nn.Module):
    """The steps, one after the other, then a linear layer."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names
        self.parts = nn.ModuleList(nn.ModuleList(STEPS[name].parts()) for name in names)
        self.head = nn.Linear(CHANNELS, 5)

    def forward(self, x: Tensor) -> Tensor:
        for name, parts in zip(self.names, self.parts, strict=True):
            x = STEPS[name].run(x, *parts)
        return self.head(x.amax((2, 3)))

    def naive(self, x: Tensor, log: Log) -> Tensor:
        for name, parts in zip(self.names, self.parts, strict=True):
            x = STEPS[name].naive(x, log, *parts)
        x = x.amax((2, 3))
        log.mm(x, self.head.weight.t())
        return log.leaf(F.linear(x, self.head.weight, self.head.bias))


def check(names: list[str], seed: int) -> None:
    torch.manual_seed(seed)
    model = Network(names).double()
    x = sparse(torch.randn(IMAGES, CHANNELS, SIDE, SIDE, dtype=torch.float64))

    log = Log(training=False)
    answers: list[Tensor] = []
    batches = [x[:2].clone(), x[2:].clone()]
    if "linear, folded" in names:  # says how many images there are
        batches = [x.clone()]
    counts = measure(model, batches, MeterConfig(batch_size=len(batches[0])), floor=False, on_output=answers.append)
    with torch.no_grad():
        expected = model.eval().naive(x, log)
    torch.testing.assert_close(torch.cat(answers), expected, rtol=1e-9, atol=1e-12)
    rows = counts.layers
    found = [
        sum(getattr(row, name) for row in rows) for name in ("macs_valid", "macs_input_nonzero", "macs_both_nonzero")
    ]
    assert found == log.macs
    penalised = [row for row in rows if not row.functional and not row.op.startswith("Dropout")]
    own = {name for name in names if name in ("linear, of one's own", "rectified parameters", "conv, of one's own")}
    if not own:  # whose output is a module's for the penalty, and a function's for the meter
        assert [row.output_nonzeros for row in penalised] == [int((y != 0).sum()) for y in log.outputs]

    model.train()
    log = Log(training=True)
    answer = model.naive(x, log)
    penalty = sum((y**2 / (y**2 + SIGMA)).mean() for y in log.outputs) / len(log.outputs)
    (answer.square().mean() + LAMBDA * penalty).backward()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]
    for in_backward in (False, True):
        model.zero_grad()
        with Observer(model, L0Config(sigma=SIGMA), x.clone(), in_backward) as observer:
            value = observer.backward(model(x.clone()).square().mean(), LAMBDA, IMAGES)
        assert value is not None
        assert value.item() == pytest.approx(penalty.item(), rel=1e-9)
        mine = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
        torch.testing.assert_close(mine, gradients, rtol=1e-7, atol=1e-11)


networks = given(st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=6), st.integers(0, 10_000))


def settled(examples: int) -> settings:
    """The same networks each time."""
    quiet = [*HealthCheck]
    return settings(max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=quiet)


@settled(8)
@networks
def test_random_networks(names: list[str], seed: int) -> None:
    check(names, seed)


@pytest.mark.long
@settled(500)
@networks
def test_many_random_networks(names: list[str], seed: int) -> None:
    check(names, seed)


@pytest.mark.long
@pytest.mark.parametrize("name", STEPS)
def test_each_step_alone_and_behind_a_convolution(name: str) -> None:
    check([name], 0)
    check(["conv", name, "relu"], 1)
