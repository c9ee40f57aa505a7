"""l1, Hoyer square and transformed l1 against naive float64 versions with gradient, in the loss and in backward."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eat_runner.config.penalty import PenaltyConfig, TransformedL1Config
from eat_runner.penalties import build_surrogate
from eat_runner.penalties.base import InBackward
from eat_runner.penalties.hoyer import hoyer_square
from eat_runner.penalties.observer import Observer

CONFIGS: dict[str, PenaltyConfig] = {
    "l1": PenaltyConfig(name="l1"),
    "hoyer": PenaltyConfig(name="hoyer"),
    "transformed_l1": TransformedL1Config(beta=0.3),
}


def naive(name: str, x: Tensor) -> tuple[float, Tensor]:
    """Value and gradient as they stand in a book."""
    x = x.detach().double()
    absolute, squares = x.abs().sum(), (x**2).sum()
    return {
        "l1": lambda: (absolute, x.sign()),
        "hoyer": lambda: (
            absolute**2 / squares,
            2 * absolute / squares * x.sign() - 2 * absolute**2 * x / squares**2,
        ),
        "transformed_l1": lambda: (
            1.3 * (x.abs() / (0.3 + x.abs())).sum(),
            1.3 * 0.3 * x.sign() / (0.3 + x.abs()) ** 2,
        ),
    }[name]()


def activations(dtype: torch.dtype) -> Tensor:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 5, 5)
    return torch.where(torch.rand(4, 3, 5, 5) < 0.3, 0.0, x).to(dtype)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 2e-6), (torch.float64, 1e-12), (torch.bfloat16, 2**-7)])
@pytest.mark.parametrize("name", CONFIGS)
def test_value_and_gradient(name: str, dtype: torch.dtype, rtol: float) -> None:
    x = activations(dtype).requires_grad_()
    assert bool((x == 0).any() and (x > 0).any() and (x < 0).any())
    value = build_surrogate(CONFIGS[name])(x)
    (gradient,) = torch.autograd.grad(value, x)
    expected, expected_gradient = naive(name, x)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert gradient.dtype == dtype
    assert value.item() == pytest.approx(float(expected), rel=max(rtol, 1e-6) if dtype != torch.bfloat16 else 1e-6)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=rtol, atol=rtol * 0.1)


def test_values_by_hand() -> None:
    x = torch.tensor([0.0, 1.0, -2.0])
    values = {name: build_surrogate(config)(x).item() for name, config in CONFIGS.items()}
    # 3; 3² / 5; 1.3 (1 / 1.3 + 2 / 2.3)
    assert values == pytest.approx({"l1": 3.0, "hoyer": 9 / 5, "transformed_l1": 1 + 2.6 / 2.3})


def test_the_hoyer_square_of_nothing_is_nothing_and_does_not_see_the_scale() -> None:
    zeros = torch.zeros(4, requires_grad=True)
    value = hoyer_square(zeros)
    value.backward()
    assert value.item() == 0.0
    assert zeros.grad is not None
    assert zeros.grad.tolist() == [0.0] * 4
    x = torch.tensor([1.0, 3.0, 0.0, -2.0])
    assert hoyer_square(100 * x).item() == pytest.approx(hoyer_square(x).item()) == pytest.approx(36 / 14)
    assert hoyer_square(torch.tensor([0.0, 7.0])).item() == 1.0
    assert hoyer_square(torch.full((5,), 0.1)).item() == pytest.approx(5.0)


def test_the_transformed_l1_lies_between_l0_and_l1() -> None:
    x = torch.tensor([0.5, -2.0, 0.0, 1.0])
    near_l0, near_l1 = (build_surrogate(TransformedL1Config(beta=beta))(x).item() for beta in (1e-6, 1e4))
    assert near_l0 == pytest.approx(3.0, rel=1e-4)
    assert near_l1 == pytest.approx(3.5, rel=1e-3)


def network(relu: Callable[[], nn.Module]) -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), relu(), nn.Conv2d(3, 3, 1), nn.Tanh(), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(48, 4)).double()


@pytest.mark.parametrize("relu", [nn.ReLU, lambda: nn.ReLU(inplace=True), nn.Tanh], ids=["relu", "in place", "tanh"])
@pytest.mark.parametrize("scope", ["leaf_modules", "activations"])
@pytest.mark.parametrize("name", CONFIGS)
def test_on_a_network_in_the_loss_and_in_backward(name: str, scope: str, relu: Callable[[], nn.Module]) -> None:
    """The gradient of the whole against plain clones, the fast way too where the penalty has one."""
    x, y = torch.randn(5, 2, 6, 6, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0])
    model = network(relu)
    hidden, sums = x, []
    for layer in model:
        hidden = layer(hidden.clone())
        if scope == "leaf_modules" or isinstance(layer, nn.ReLU | nn.Tanh):
            seen = hidden.clone()
            absolute = seen.abs()
            total = {
                "l1": lambda a=absolute: a.sum(),
                "hoyer": lambda a=absolute, s=seen: a.sum() ** 2 / (s**2).sum(),
                "transformed_l1": lambda a=absolute: 1.3 * (a / (0.3 + a)).sum(),
            }[name]()
            sums.append(total / seen.numel())
    value = sum(sums) / len(sums)
    expected = torch.autograd.grad(F.cross_entropy(hidden, y) + 3.0 * value, list(model.parameters()))

    config = CONFIGS[name]
    config.scope = scope
    for in_backward in (False, True):
        model = network(relu)
        with Observer(model, config, x[:2], in_backward) as observer:
            assert (observer.in_backward is not None) == (in_backward and name != "hoyer")
            penalty = observer.backward(F.cross_entropy(model(x), y), 3.0, 5)
        assert penalty is not None
        assert penalty.item() == pytest.approx(float(value.detach()), rel=1e-9)
        gradients = [p.grad for p in model.parameters()]
        torch.testing.assert_close(gradients, list(expected), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", CONFIGS)
def test_they_trace_without_a_graph_break(name: str) -> None:
    surrogate = build_surrogate(CONFIGS[name])
    x = activations(torch.float32).requires_grad_()
    (gradient,) = torch.autograd.grad(torch.compile(surrogate, backend="aot_eager", fullgraph=True)(x), x)
    torch.testing.assert_close(gradient.double(), naive(name, x)[1], rtol=1e-5, atol=1e-6)


def test_which_have_the_fast_way() -> None:
    assert {name for name, config in CONFIGS.items() if isinstance(build_surrogate(config), InBackward)} == {
        "l1",
        "transformed_l1",
    }
