"""The surrogate against naive float64 arithmetic, finite differences and a network in integers."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from eat_runner.config import L0Config, PenaltyConfig
from eat_runner.errors import UserError
from eat_runner.penalties import penalty
from eat_runner.penalties.in_backward import BLOCK, Addition, Values, penalise
from eat_runner.penalties.l0 import L0, l0_surrogate

SIGMAS = [10.0**-k for k in range(1, 9)]


def naive(x: Tensor, sigma: float) -> tuple[float, Tensor]:
    """The surrogate's value and gradient, in float64, as they are written in a book."""
    x = x.detach().double()
    return (x**2 / (x**2 + sigma)).sum().item(), 2 * sigma * x / (x**2 + sigma) ** 2


def in_forward(x: Tensor, sigma: float) -> tuple[float, Tensor]:
    x = x.detach().requires_grad_()
    value = l0_surrogate(x, sigma)
    (gradient,) = torch.autograd.grad(value, x)
    return value.item(), gradient


def penalised(x: Tensor, sigma: float, weight: Callable[[Values], float], values: Values | None = None) -> Addition:
    return penalise(x, L0(L0Config(sigma=sigma)), weight, values)


def in_backward(x: Tensor, sigma: float) -> tuple[float, Tensor]:
    x = x.detach().requires_grad_()
    held: list[Tensor] = []
    seen = x * 1.0
    penalised(seen, sigma, lambda values: held.append(values(...)) or 1.0)
    (seen * 0.0).sum().backward()
    assert x.grad is not None
    return l0_surrogate(held[0], sigma).item(), x.grad


WAYS = pytest.mark.parametrize("way", [in_forward, in_backward])
Way = Callable[[Tensor, float], tuple[float, Tensor]]


def activations(*shape: int) -> Tensor:
    """Half zeros, the rest over ten orders of magnitude, of both signs."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    return x.relu() * 10.0 ** (10 * torch.rand(shape, generator=torch.Generator().manual_seed(4)) - 8) - x.relu().flip(
        0
    )


@WAYS
@pytest.mark.parametrize("sigma", SIGMAS)
def test_equals_the_naive_version_in_float64(way: Way, sigma: float):
    x = activations(6, 5, 7, 3)
    value, gradient = way(x, sigma)
    expected, expected_gradient = naive(x, sigma)
    assert value == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=2e-6, atol=1e-30)


@WAYS
@pytest.mark.parametrize(
    "layout",
    [
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x.transpose(1, 3),
        lambda x: x[:, 1:, ::2],
        lambda x: x.flatten(1),
        lambda x: x[0, 0, 0, 0],
        lambda x: x[:1, :, :1, :1].expand(4, 5, 2, 2),
    ],
    ids=["channels_last", "transposed", "strided", "matrix", "scalar", "expanded"],
)
def test_any_layout_and_blocks_that_do_not_divide_it(way: Way, layout: Callable[[Tensor], Tensor]):
    x = layout(activations(6, 5, 300, 131))
    assert x.numel() < 1000 or (x.numel() > BLOCK and x.numel() % BLOCK)
    value, gradient = way(x, 1e-2)
    expected, expected_gradient = naive(x, 1e-2)
    assert value == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=2e-6, atol=1e-30)


@WAYS
def test_values_by_hand(way: Way):
    # 0, 1/(1+1), 4/(4+1), 9/(9+1); gradients 2x/(x²+1)²
    value, gradient = way(torch.tensor([0.0, 1.0, -2.0, 3.0]), 1.0)
    assert value == pytest.approx(0.5 + 0.8 + 0.9)
    assert gradient.tolist() == pytest.approx([0.0, 0.5, -4 / 25, 6 / 100])


@pytest.mark.parametrize("sigma", [1.0, 1e-2])
def test_gradient_equals_finite_differences(sigma: float):
    x = activations(3, 2, 4, 4).double().clamp(-3, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: l0_surrogate(t, sigma), x, eps=1e-5)


@WAYS
@pytest.mark.parametrize("sigma", [1e-1, 1e-8, 1e-20])
def test_gradient_at_zero_is_zero(way: Way, sigma: float):
    value, gradient = way(torch.tensor([0.0, -0.0]), sigma)
    assert value == 0.0
    assert gradient.abs().tolist() == [0.0, 0.0]


@WAYS
@pytest.mark.parametrize("sigma", [1e-1, 1e-8])
def test_huge_values_count_as_one_and_pull_nowhere(way: Way, sigma: float):
    # x² overflows float32 beyond 1.8e19
    value, gradient = way(torch.tensor([2e19, -3e38, 1e10, 0.0]), sigma)
    assert value == 3.0
    assert gradient.abs().max() < 1e-20


@WAYS
def test_bf16_is_computed_in_float32(way: Way):
    x = activations(6, 5, 7, 3).bfloat16()
    value, gradient = way(x, 1e-4)
    expected, expected_gradient = naive(x, 1e-4)
    assert value == pytest.approx(expected, rel=1e-6)
    assert gradient.dtype == torch.bfloat16
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=2**-8, atol=1e-30)


def test_value_is_float32_under_autocast():
    x = activations(6, 5, 7, 3).bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = l0_surrogate(x, 1e-4)
        total = penalty([x, x], 6, 1, L0Config(sigma=1e-4))
    assert value.dtype == total.dtype == torch.float32
    assert total.item() == pytest.approx(naive(x, 1e-4)[0] / x.numel(), rel=1e-6)


def test_sum_of_a_million_values_close_to_one_is_unbiased():
    x = torch.full((1 << 20,), 0.1)  # float32 sums of 0.999900… drift; those of sigma / (x² + sigma) do not
    assert l0_surrogate(x, 1e-6).item() == pytest.approx(naive(x, 1e-6)[0], rel=2e-7)


@pytest.mark.parametrize("how", [torch.compile(l0_surrogate, backend="aot_eager", fullgraph=True), l0_surrogate])
def test_traces_without_a_graph_break(how: Callable[[Tensor, float], Tensor]):
    x = activations(4, 3, 5, 5).to(memory_format=torch.channels_last).requires_grad_()
    value = how(x, 1e-3)
    (gradient,) = torch.autograd.grad(3 * value, x)
    expected, expected_gradient = naive(x, 1e-3)
    assert value.item() == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(gradient.double(), 3 * expected_gradient, rtol=2e-6, atol=1e-30)


def test_keeps_nothing_but_the_activation():
    saved: list[Tensor] = []
    x = activations(4, 3, 5, 5).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        l0_surrogate(x, 1e-4)
    assert [t.data_ptr() for t in saved] == [x.data_ptr()]


# -- in backward: the same gradient as adding the penalty to the loss, on a small network


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4)).double()


def test_in_backward_gives_the_gradient_of_loss_plus_weighted_penalties():
    x, y = torch.randn(5, 2, 6, 6, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0])
    net = small_network()
    outputs, hidden = [], x
    for layer in net:
        hidden = layer(hidden)
        outputs.append(hidden)
    loss = nn.functional.cross_entropy(hidden, y) + 0.3 * sum((o**2 / (o**2 + 0.1)).sum() / o.numel() for o in outputs)
    expected = torch.autograd.grad(loss, list(net.parameters()))

    net = small_network()
    reported: list[Tensor] = []  # last layer first, as backward reaches them
    hidden = x
    for layer in net:
        hidden = layer(hidden)
        penalised(hidden, 0.1, lambda values: reported.append(values(...)) or 0.3 / values(...).numel())
    gradients = torch.autograd.grad(nn.functional.cross_entropy(hidden, y), list(net.parameters()))
    torch.testing.assert_close(gradients, expected, rtol=1e-9, atol=1e-12)
    assert all(torch.equal(seen, o) for seen, o in zip(reversed(reported), outputs, strict=True))


def test_in_backward_takes_a_copy_where_the_activation_is_overwritten():
    x = torch.tensor([0.5, -1.0, 2.0], requires_grad=True)
    hidden = x * 1.0
    held: list[Tensor] = []
    copy = hidden.detach().clone()
    penalised(hidden, 1.0, lambda values: held.append(values(...)) or 2.0, lambda rows: copy[rows])
    hidden.add_(1.0)
    hidden.sum().backward()
    expected = [1 + 2 * 2 * v / (v * v + 1) ** 2 for v in (0.5, -1.0, 2.0)]
    assert x.grad is not None
    assert x.grad.tolist() == pytest.approx(expected)
    assert held[0].tolist() == [0.5, -1.0, 2.0]


def test_in_backward_refuses_an_overwritten_activation():
    x = torch.tensor([0.5, -1.0], requires_grad=True)
    hidden = x * 1.0
    penalised(hidden, 1.0, lambda values: 1.0)
    hidden.add_(1.0)
    with pytest.raises(AssertionError, match="overwritten before backward"):
        hidden.sum().backward()


def test_in_backward_leaves_outputs_alone():
    net = small_network().eval()
    x = torch.randn(5, 2, 6, 6, dtype=torch.float64)
    before = net(x)
    for layer in net:
        layer.register_forward_hook(lambda m, i, o: penalised(o, 0.1, lambda values: 1.0) and None)
    assert torch.equal(net(x), before)


# -- the penalty of a pass


def test_penalty_of_activations_by_hand():
    # sums: 1/2 + 0 and 4/5 + 9/10 + 1/2
    layers = [torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 3.0, 1.0]])]
    config = L0Config(sigma=1.0, weighting="elements")
    assert penalty(layers, 1, 7, config).item() == pytest.approx((0.5 + 2.2) / 5)
    assert penalty(layers, 1, 7, PenaltyConfig()).item() == 0.0


def test_penalty_differentiates_through_every_weighting():
    for how, factor in [("layer_mean", 1 / (2 * 2)), ("elements", 1 / 5), ("parameters", 1 / (3 * 7))]:
        x = torch.tensor([1.0, 0.0], requires_grad=True)
        penalty([x, torch.zeros(3)], 3, 7, L0Config(sigma=1.0, weighting=how)).backward()
        assert x.grad is not None
        assert x.grad.tolist() == pytest.approx([0.5 * factor, 0.0])


def test_nothing_to_penalise_and_unknown_names():
    with pytest.raises(UserError, match="matches no output"):
        penalty([], 1, 1, L0Config())
    with pytest.raises(UserError, match="penalty=l2 is unknown: choose one of l0, l1, hoyer, transformed_l1, none"):
        penalty([torch.ones(1)], 1, 1, PenaltyConfig(name="l2"))
    with pytest.raises(UserError, match="weighting=max is unknown"):
        penalty([torch.ones(1)], 1, 1, L0Config(weighting="max"))


# -- a network whose activations are integers up to its last layer; its values were worked out apart from this code


def integers(shape: tuple[int, ...], modulus: int, offset: int) -> Tensor:
    return (torch.arange(math.prod(shape)) % modulus - offset).reshape(shape).double()


def integer_network() -> nn.Sequential:
    norm = nn.BatchNorm2d(4, eps=0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        norm,
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(4, 5),
    ).double()
    values = {
        "0.weight": integers((4, 3, 3, 3), 7, 3),
        "0.bias": integers((4,), 3, 1),
        "1.weight": torch.ones(4),
        "1.bias": integers((4,), 3, 1),
        "1.running_mean": integers((4,), 2, 0),
        "1.running_var": torch.ones(4),
        "1.num_batches_tracked": torch.tensor(0),
        "7.weight": integers((5, 4), 5, 2),
        "7.bias": integers((5,), 2, 0),
    }
    net.load_state_dict(values)
    return net.eval()


@pytest.mark.parametrize(
    ("sigma", "value", "norm"),
    [
        (1e-1, 0.907586545906165, 0.0130911821176172),
        (1e-4, 0.909178013847845, 1.55288866274793e-05),
        (1e-8, 0.909179687332626, 1.55316986985127e-09),
    ],
)
def test_network_in_integers(sigma: float, value: float, norm: float):
    net = integer_network()
    outputs: list[Tensor] = []
    for layer in net:
        if not isinstance(layer, nn.Dropout):
            layer.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    net(integers((4, 3, 8, 8), 11, 5))
    mean = penalty(outputs, 4, 1, L0Config(sigma=sigma))
    mean.backward()
    assert len(outputs) == 7
    assert mean.item() == pytest.approx(value, rel=1e-12)
    assert isinstance(net[0], nn.Conv2d)
    assert net[0].weight.grad is not None
    assert net[0].weight.grad.norm().item() == pytest.approx(norm, rel=1e-9)
