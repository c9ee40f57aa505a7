"""The penalty of networks as people train them, against a naive version in float64: value and gradient of the
cross-entropy plus lambda times the mean over penalised outputs y of the mean of y² / (y² + sigma), out of place."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

from eat_runner.config import L0Config, PenaltyConfig
from eat_runner.errors import UserError
from eat_runner.penalties.observer import Observer

SIGMA, LAMBDA = 1e-2, 3.0
torch.manual_seed(0)
X = torch.randn(4, 3, 8, 8, dtype=torch.float64)
WAYS = pytest.mark.parametrize("in_backward", [False, True])

# (x) -> the network's answer, and the outputs that are penalised
Naive = Callable[[Tensor], tuple[Tensor, Sequence[Tensor]]]


def loss_of(answer: Any) -> Tensor:
    return (answer[0] if isinstance(answer, tuple) else answer).square().mean()


def gradients(model: nn.Module) -> list[Tensor]:
    """Of all parameters; those that nothing depends on have a zero gradient or none."""
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]


def compare(model: nn.Module, naive: Naive, in_backward: bool, config: PenaltyConfig | None = None) -> None:
    """In training, twice, since the second step must not depend on what was left of the first one."""
    model.double().train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    found: list[tuple[Tensor | None, list[Tensor]]] = []
    observer = Observer(model, config or L0Config(sigma=SIGMA), X[:2], in_backward)
    rehearsed_in_vain(observer, model)
    with observer:
        for step in range(2):
            begin(model, state, step)
            value = observer.backward(loss_of(model(X)), LAMBDA, len(X))
            found.append((value, gradients(model)))
    for step, (value, mine) in enumerate(found):
        begin(model, state, step)
        answer, outputs = naive(X)
        expected = sum((y**2 / (y**2 + SIGMA)).mean() for y in outputs) / len(outputs)
        (loss_of(answer) + LAMBDA * expected).backward()
        assert value is not None
        assert value.item() == pytest.approx(expected.item(), rel=1e-10)
        torch.testing.assert_close(mine, gradients(model), rtol=1e-8, atol=1e-12)


def rehearsed_in_vain(observer: Observer, model: nn.Module) -> None:
    """It refuses nothing, and leaves everything as it was."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modes, numbers = [module.training for module in model.modules()], torch.get_rng_state()
    observer.rehearse(X[:2])
    torch.testing.assert_close(model.state_dict(), state, rtol=0.0, atol=0.0)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), numbers)
    assert all(p.grad is None for p in model.parameters())


def begin(model: nn.Module, state: dict[str, Tensor], step: int) -> None:
    model.load_state_dict(state)
    model.zero_grad()
    torch.manual_seed(step)


def chain(model: nn.Sequential) -> Naive:
    """Layer by layer, activations out of place."""

    def naive(x: Tensor) -> tuple[Tensor, list[Tensor]]:
        outputs = []
        for layer in model:
            x = F.relu(x) if isinstance(layer, nn.ReLU) else layer(x)
            outputs.append(x)
        return x, outputs

    return naive


def network(inplace: bool = False) -> nn.Sequential:
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace), nn.Flatten(), nn.Linear(216, 4)]
    return nn.Sequential(*layers)


class Standardised(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(input, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)


CHANGES: dict[str, Callable[[nn.Sequential], Any]] = {
    "nothing": lambda model: None,
    "weight_norm": lambda model: parametrizations.weight_norm(model[0]),
    "spectral_norm": lambda model: parametrizations.spectral_norm(model[4].eval()).eval(),
    "pruned": lambda model: prune.l1_unstructured(model[0], "weight", 0.5),
    "a convolution of one's own": lambda model: model.__setitem__(0, Standardised(3, 6, 3)),
    "frozen convolution": lambda model: model[0].requires_grad_(False),
    "frozen backbone": lambda model: model[:3].requires_grad_(False),
    "frozen head": lambda model: model[4].requires_grad_(False),
    "frozen norm": lambda model: model[1].requires_grad_(False),
}


@WAYS
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("how", [name for name in CHANGES if name != "spectral_norm"])
def test_layers_whose_weights_are_made_masked_or_frozen(how: str, inplace: bool, in_backward: bool) -> None:
    model = network(inplace)
    CHANGES[how](model)
    compare(model, chain(model), in_backward)


@WAYS
def test_a_backbone_without_gradients(in_backward: bool) -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = network(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = self.layers[:3](x)
            return self.layers[3:](x)

    model = Frozen()

    def naive(x: Tensor) -> tuple[Tensor, list[Tensor]]:
        with torch.no_grad():
            _, outputs = chain(model.layers[:3])(x)
        answer, others = chain(model.layers[3:])(outputs[-1])
        return answer, [*outputs, *others]

    compare(model, naive, in_backward)


class WithAuxiliaryHead(nn.Module):
    """Returns a second answer, which the loss leaves out."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.trunk = network(inplace)[:4]
        self.head, self.auxiliary, self.relu = nn.Linear(216, 4), nn.Linear(216, 3), nn.ReLU(inplace)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.trunk(x)
        return self.head(x), self.relu(self.auxiliary(x))


@WAYS
@pytest.mark.parametrize("inplace", [False, True])
def test_an_auxiliary_head_that_is_not_in_the_loss(inplace: bool, in_backward: bool) -> None:
    model = WithAuxiliaryHead(inplace)

    def naive(x: Tensor) -> tuple[Tensor, list[Tensor]]:
        x, outputs = chain(model.trunk)(x)
        answer, auxiliary = model.head(x), model.auxiliary(x)
        return answer, [*outputs, answer, auxiliary, F.relu(auxiliary)]

    compare(model, naive, in_backward)


class Checkpointed(nn.Module):
    """The same part twice, each time in a checkpoint; nested: within another one."""

    def __init__(self, reentrant: bool, inplace: bool, nested: bool) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 6, 1), nn.Linear(6, 4)
        self.part = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace))
        self.reentrant, self.nested = reentrant, nested

    def forward(self, x: Tensor) -> Tensor:
        def again(x: Tensor) -> Tensor:
            return checkpoint(self.part, x, use_reentrant=self.reentrant)

        x = self.stem(x)
        x = checkpoint(again, x, use_reentrant=self.reentrant) if self.nested else again(x)
        return self.head(again(x).mean((2, 3)))


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(("reentrant", "in_backward"), [(False, False), (False, True), (True, True)])
def test_what_backward_computes_again_is_no_second_call(
    reentrant: bool, in_backward: bool, inplace: bool, nested: bool
) -> None:
    model = Checkpointed(reentrant, inplace, nested)
    model.part[1].momentum = 0.0  # running statistics are moved once more by each computation

    def naive(x: Tensor) -> tuple[Tensor, list[Tensor]]:
        outputs = [model.stem(x)]
        for _ in range(2):
            outputs += chain(model.part)(outputs[-1])[1]
        outputs.append(model.head(outputs[-1].mean((2, 3))))
        return outputs[-1], outputs

    compare(model, naive, in_backward)


def test_a_reentrant_checkpoint_in_the_loss_is_refused_by_name() -> None:
    model = Checkpointed(reentrant=True, inplace=False, nested=False).double()
    message = r"^part\.0 is in a reentrant checkpoint, where the loss cannot hold its penalty: use torch\.utils\.check"
    with pytest.raises(UserError, match=message):
        Observer(model, L0Config(), X[:2]).rehearse(X[:2])


class Deep(nn.Module):
    """Stochastic depth over unlike blocks with additions in place, and an operation in training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 6, 1), nn.Linear(6, 4)
        self.small = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1))
        self.large = nn.Sequential(nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Conv2d(6, 6, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in (self.small, self.large, self.small):
            if not self.training or torch.rand(()) < 0.6:
                y = block(x)
                y += x
                x = y
        return self.head(x.mean((2, 3)))


@WAYS
def test_stochastic_depth_over_unlike_blocks(in_backward: bool) -> None:
    model = Deep()

    def naive(x: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = model.stem(x)
        outputs = [x]
        for block in (model.small, model.large, model.small):
            if torch.rand(()) < 0.6:
                y, seen = chain(block)(x)
                outputs += seen
                x = y + x
        outputs.append(model.head(x.mean((2, 3))))
        return outputs[-1], outputs

    compare(model, naive, in_backward)


class Overwrites(nn.Module):
    """In training alone, in one of several ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv, self.tanh, self.head, self.how = nn.Conv2d(3, 6, 1), nn.Identity(), nn.Linear(6, 4), how

    def forward(self, x: Tensor) -> Tensor:
        x = self.tanh(self.conv(x))
        if self.training:
            x = WRITES[self.how](x)
        return self.head(x.mean((2, 3)))


def written(x: Tensor) -> Tensor:
    x[:, 1] = 2.0
    return x


def halved(x: Tensor) -> Tensor:
    x /= 2.0
    return x


WRITES: dict[str, Callable[[Tensor], Tensor]] = {
    "mul_": lambda x: x.mul_(2.0),
    "/=": halved,
    "item": written,
    "through a view": lambda x: x.view(4, -1).mul_(2.0).view(x.shape),
    "relu, by position": lambda x: F.relu(x, True),
    "relu, by name": lambda x: F.relu(x, inplace=True),
    "leaky_relu_": lambda x: F.leaky_relu_(x, 0.1),
    "hardtanh": lambda x: F.hardtanh(x, -0.5, 0.5, True),
    "dropout": lambda x: F.dropout(x, 0.5, True, True),
    "out": lambda x: torch.mul(x.detach(), 2.0, out=x.detach()),
}
EXACT = {"mul_": lambda x: x * 2.0, "/=": lambda x: x / 2.0, "through a view": lambda x: x * 2.0}
EXACT |= {"relu, by position": F.relu, "relu, by name": F.relu, "leaky_relu_": lambda x: F.leaky_relu(x, 0.1)}
EXACT |= {"hardtanh": lambda x: F.hardtanh(x, -0.5, 0.5), "dropout": lambda x: F.dropout(x, 0.5)}
EXACT |= {"item": lambda x: torch.cat([x[:, :1], torch.full_like(x[:, :1], 2.0), x[:, 2:]], 1)}
EXACT |= {"out": lambda x: x.detach() * 2.0}


@pytest.mark.parametrize("how", WRITES)
def test_what_training_alone_overwrites_is_penalised_as_it_was(how: str) -> None:
    model = Overwrites(how)

    def naive(x: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = model.conv(x)
        answer = model.head(EXACT[how](x).mean((2, 3)))
        return answer, [x, x, answer]

    compare(model, naive, in_backward=True)


def test_what_training_alone_overwrites_is_refused_by_name_where_the_penalty_is_in_the_loss() -> None:
    model = Overwrites("mul_").double()
    with pytest.raises(UserError, match=r"^what conv returns is overwritten in training before its"):
        Observer(model, L0Config(), X[:2]).rehearse(X[:2])


@WAYS
def test_an_empty_container_and_rectified_parameters_are_no_outputs(in_backward: bool) -> None:
    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = nn.Parameter(torch.tensor([1.0, 0.5]))
            self.conv, self.shortcut, self.head, self.relu = (
                nn.Conv2d(3, 6, 1),
                nn.Sequential(),
                nn.Linear(6, 4),
                nn.ReLU(),
            )

        def forward(self, x: Tensor) -> Tensor:
            weights = self.relu(self.weights)
            x = self.conv(x)
            return self.head((weights[0] * x + weights[1] * F.relu(self.shortcut(x))).mean((2, 3)))

    model = Weighted()

    def naive(x: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = model.conv(x)
        weights = model.weights.relu()
        answer = model.head((weights[0] * x + weights[1] * x.relu()).mean((2, 3)))
        return answer, [x, answer]

    compare(model, naive, in_backward)


@WAYS
def test_functional_activations_in_a_frozen_part(in_backward: bool) -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 6, 1).requires_grad_(False), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.head(F.relu(self.conv(x), inplace=True).mean((2, 3))), inplace=True)

    model = Functional()

    def naive(x: Tensor) -> tuple[Tensor, list[Tensor]]:
        outputs = [F.relu(model.conv(x))]
        outputs.append(F.relu(model.head(outputs[0].mean((2, 3)))))
        return outputs[1], outputs

    compare(model, naive, in_backward, L0Config(sigma=SIGMA, scope="activations"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("wrap", [lambda m: torch.jit.trace(m.eval(), X), lambda m: torch.compile(m, backend="eager")])
def test_what_nobody_can_look_into_is_refused_by_name(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = nn.Sequential(wrap(network().double()), nn.ReLU()).double()
    with pytest.raises(UserError, match=r"^0 \((TopLevelTraced|Optimized)Module\) is (scripted or traced|compiled)"):
        Observer(model, L0Config(), X[:2], in_backward=True)


def test_an_observer_that_is_made_inside_inference_mode() -> None:
    model = network().double()
    with torch.inference_mode():
        observer = Observer(model, L0Config(sigma=SIGMA), X[:2], in_backward=True)
    with observer:
        assert observer.backward(loss_of(model(X)), LAMBDA, 4) is not None
