"""The penalty of a running network against a naive float64 version on plain clones, made without taps."""

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from eat_runner import models
from eat_runner.config import L0Config, ModelConfig
from eat_runner.errors import UserError
from eat_runner.penalties.in_backward import Addition, penalise
from eat_runner.penalties.l0 import L0
from eat_runner.penalties.observer import Observer

# Mean over the 7 calls without dropout of sum(x²/(x²+sigma))/n of the network below, batch 4, float64
PUBLISHED_FIXTURE = {1e-1: 0.907586545906165, 1e-4: 0.909178013847845, 1e-8: 0.909179687332626}
GRADIENT_NORM = {1e-1: 0.0130911821176172, 1e-4: 1.55288866274793e-05}


def ar(shape, mod, offset):
    """Integers that repeat, so that every activation up to the last layer is an exact integer."""
    n = torch.Size(shape).numel()
    return (torch.arange(n, dtype=torch.float64) % mod - offset).reshape(shape)


def integer_network():
    conv, bn, linear = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4, eps=0), nn.Linear(4, 5)
    model = nn.Sequential(
        conv, bn, nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), linear
    ).double()
    with torch.no_grad():
        conv.weight.copy_(ar(conv.weight.shape, 7, 3))
        conv.bias.copy_(ar((4,), 3, 1))
        bn.weight.fill_(1)
        bn.bias.copy_(ar((4,), 3, 1))
        bn.running_mean.copy_(ar((4,), 2, 0))
        bn.running_var.fill_(1)
        linear.weight.copy_(ar((5, 4), 5, 2))
        linear.bias.copy_(ar((5,), 2, 0))
    return model.eval(), ar((4, 3, 8, 8), 11, 5)


def penalty_of(model, x, config):
    with Observer(model, config, x[:2]) as observer:
        out = model(x)
        return out, observer.collect(len(x))


@pytest.mark.parametrize("sigma", PUBLISHED_FIXTURE)
def test_published_fixture(sigma):
    model, x = integer_network()
    _, penalty = penalty_of(model, x, L0Config(sigma=sigma))
    assert penalty.item() == pytest.approx(PUBLISHED_FIXTURE[sigma], rel=1e-12)
    if sigma in GRADIENT_NORM:
        penalty.backward()
        assert model[0].weight.grad.norm().item() == pytest.approx(GRADIENT_NORM[sigma], rel=1e-9)


class Tangle(nn.Module):
    """Batch norms whose outputs are read twice, rectified twice, added to in place, or rectified out of place."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(4))
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(4))
        self.relus = nn.ModuleList(nn.ReLU(inplace=i % 2 == 0) for i in range(4))
        self.head = nn.Linear(3, 4)

    def forward(self, x):
        x = self.norms[0](self.convs[0](x))
        x = 1.5 * x + self.relus[0](x)
        x = self.relus[1](self.relus[2](self.norms[1](self.convs[1](x))))
        out = self.norms[2](self.convs[2](x))
        out += x
        out = self.norms[3](self.convs[3](out))
        return self.head((self.relus[3](out) * out).mean((2, 3)))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "build", [lambda: torchvision.models.resnet18(weights=None, num_classes=4), Tangle], ids=["resnet18", "tangle"]
)
def test_the_gradient_in_backward_is_that_of_the_penalty_in_the_loss(build, training, layout):
    """Up to rounding: batch norms' outputs are computed again, and one of these with its ReLU is one operation."""
    torch.manual_seed(0)
    model = build().double().train(training).to(memory_format=layout)
    x, y = torch.randn(2, 3, 32, 48, dtype=torch.float64).to(memory_format=layout), torch.tensor([1, 3])
    with Observer(model, L0Config(sigma=1e-2), x) as observer:
        out = model(x)
        penalty = observer.collect(2)
        (F.cross_entropy(out, y) + 3.0 * penalty).backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    with Observer(model, L0Config(sigma=1e-2), x, in_backward=True) as observer:
        value = observer.backward(F.cross_entropy(model(x), y), 3.0, 2)
        assert value.item() == pytest.approx(penalty.item(), rel=1e-12)
    for p, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("bf16", "difference"),
    [(False, 1e-5), (True, 0.03)],  # relative; sums in another order, and every gradient on its way rounded to 8 bits
)
def test_how_close_the_gradient_in_backward_is_in_lower_precision(bf16, difference, layout):
    torch.manual_seed(0)
    model = models.build(ModelConfig(width=4), 32, 3, 10).module.to(memory_format=layout)
    x = torch.randn(8, 3, 32, 32).to(memory_format=layout)
    found = []
    for in_backward in (False, True):
        model.zero_grad()
        with Observer(model, L0Config(sigma=1e-2), x, in_backward) as observer:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = 0.0 * model(x).sum()  # so that the gradient is the penalty's alone
            observer.backward(loss, 1.0, 8)
        found.append(torch.cat([p.grad.flatten().double() for p in model.parameters()]))
    assert (found[1] - found[0]).norm() < difference * found[0].norm()


def chain(*layers):
    return nn.Sequential(nn.Conv2d(3, 3, 1), *layers, nn.Flatten(), nn.Linear(48, 4))


class AddsAndReLU(nn.Module):
    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        x += 1.0
        return self.relu(x)


@pytest.mark.parametrize(
    ("model", "together"),
    [  # in the order of backward: Linear, Flatten, ..., Conv2d
        (chain(nn.BatchNorm2d(3), nn.ReLU(inplace=True)), [False, False, True, False]),
        (chain(nn.BatchNorm2d(3), nn.ReLU()), [False, False, True, False]),
        (chain(nn.BatchNorm2d(3), nn.Hardtanh(), nn.ReLU()), [False, False, True, False, False]),
        (chain(nn.BatchNorm2d(3), AddsAndReLU()), [False] * 5),
    ],
)
def test_a_batch_norm_and_its_relu_are_penalised_in_one_operation(model, together, monkeypatch):
    seen = []
    add_to = Addition.add_to

    def watch(addition, gradient, out, relu=None):
        seen.append(relu is not None)
        return add_to(addition, gradient, out, relu)

    monkeypatch.setattr(Addition, "add_to", watch)
    x = torch.randn(2, 3, 4, 4)
    with Observer(model, L0Config(), x, in_backward=True) as observer:
        observer.backward(model(x).sum(), 1.0, 2)
    assert seen == together


class NaiveBasicBlock(nn.Module):
    """A torchvision BasicBlock's parts, called so that nothing is overwritten; hands out each leaf call's output."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x, seen):
        b = self.block

        def see(y):
            seen.append(y)
            return y

        y = see(b.bn1(see(b.conv1(x))))
        y = see(F.relu(y))
        y = see(b.bn2(see(b.conv2(y))))
        identity = x
        if b.downsample is not None:
            identity = see(b.downsample[1](see(b.downsample[0](x))))
        return see(F.relu(y + identity))


def naive_activations(model, x):
    seen = []

    def see(y):
        seen.append(y)
        return y

    y = see(F.relu(see(model.bn1(see(model.conv1(x))))))
    y = see(model.maxpool(y))
    for layer in (model.layer1, model.layer2, model.layer3, model.layer4):
        for block in layer:
            y = NaiveBasicBlock(block)(y, seen)
    y = see(model.avgpool(y))
    see(model.fc(torch.flatten(y, 1)))
    return seen


@pytest.mark.parametrize("normalisation", ["layer_mean", "elements", "parameters"])
def test_torchvision_resnet18_with_in_place_additions(normalisation):
    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None, num_classes=10).double().eval()
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    seen = naive_activations(model, x)
    assert len(seen) == 60
    sums = [(y * y / (y * y + 1e-4)).sum() for y in seen]
    parameters = sum(p.numel() for p in model.parameters())
    expected = {
        "layer_mean": sum(s / y.numel() for s, y in zip(sums, seen, strict=True)) / len(seen),
        "elements": sum(sums) / sum(y.numel() for y in seen),
        "parameters": sum(sums) / (3 * parameters),
    }[normalisation]
    expected.backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()

    _, penalty = penalty_of(model, x, L0Config(weighting=normalisation))
    penalty.backward()
    assert penalty.item() == pytest.approx(expected.item(), rel=1e-10)
    for p, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-6, atol=1e-12)


def test_activation_scope_includes_functional_activations():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 4)
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x):
            return F.relu(self.second(self.relu(self.first(x))), inplace=True)

    torch.manual_seed(0)
    model, x = Functional().double(), torch.randn(7, 6, dtype=torch.float64)
    hidden = torch.relu(x @ model.first.weight.T + model.first.bias)
    out = torch.relu(hidden @ model.second.weight.T + model.second.bias)
    expected = sum((y**2 / (y**2 + 1e-4)).mean() for y in (hidden, out)) / 2
    _, penalty = penalty_of(model, x, L0Config(scope="activations"))
    assert penalty.item() == pytest.approx(expected.item(), rel=1e-10)


def test_a_scope_that_matches_nothing_is_refused():
    with pytest.raises(UserError, match="matches nothing"):
        Observer(nn.Sequential(nn.Linear(2, 2)), L0Config(scope="activations"), torch.zeros(2, 2))


def test_outputs_are_never_changed_and_evaluation_is_not_observed():
    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None, num_classes=4).eval()
    x = torch.randn(2, 3, 32, 32)
    expected = model(x)
    out, _ = penalty_of(model, x, L0Config())
    assert torch.equal(out, expected)
    with Observer(model, L0Config(), x) as observer:
        with torch.no_grad():
            model(x)
        assert observer.sums == []
        model(x)
        first = observer.collect(2)
        model(x)
        assert torch.equal(first, observer.collect(2))


def test_float32_under_autocast():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    x = torch.randn(16, 64)
    with Observer(model, L0Config(), x) as observer, torch.autocast("cpu", torch.bfloat16):
        model(x)
        penalty = observer.collect(16)
    assert penalty.dtype == torch.float32


def test_a_compiled_network_is_observed():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Linear(8, 2)), torch.randn(4, 8)
    _, expected = penalty_of(model, x, L0Config())
    with Observer(model, L0Config(), x) as observer:
        torch.compile(model, backend="eager")(x)
        penalty = observer.collect(4)
    assert penalty.item() == pytest.approx(expected.item(), rel=1e-6)


def test_an_activation_that_another_overwrites_is_still_penalised_as_it_was():
    """Where only activations are penalised they run in place, as built: the first output is gone after the pass."""
    torch.manual_seed(0)
    linear = nn.Linear(3, 50).double()
    model = nn.Sequential(linear, nn.SiLU(), nn.Hardtanh(0.1, 0.4, inplace=True))
    x = torch.randn(4, 3, dtype=torch.float64)

    def both():
        smooth = F.silu(linear(x))
        return smooth, F.hardtanh(smooth, 0.1, 0.4)

    expected = sum((y * y / (y * y + 1e-2)).mean() for y in both()) / 2
    (both()[1].sum() + 3.0 * expected).backward()
    gradient = linear.weight.grad.clone()
    config = L0Config(sigma=1e-2, scope="activations")
    for in_backward in (False, True):
        linear.weight.grad = None
        with Observer(model, config, x, in_backward) as observer:
            value = observer.backward(model(x).sum(), 3.0, 4)
        assert value.item() == pytest.approx(expected.item(), rel=1e-12)
        torch.testing.assert_close(linear.weight.grad, gradient, rtol=1e-9, atol=1e-14)


def test_the_value_is_left_out_where_it_is_not_wanted():
    model, x = integer_network()
    gradients = []
    for wanted in (True, False):
        model.zero_grad()
        with Observer(model, L0Config(sigma=1e-1), x, in_backward=True) as observer:
            value = observer.backward(model(x).sum(), 1.0, 4, value=wanted)
            assert (value is not None) == wanted
        gradients.append(model[0].weight.grad.clone())
    assert torch.equal(*gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_is_added_to_in_float32_and_rounded_once(dtype):
    """Mixed types would take several times as long."""
    types = set()

    class Noting(L0):
        def adder(self, below, above):
            add = super().adder(below, above)
            return lambda *tensors: (types.update(t.dtype for t in tensors), add(*tensors))

    torch.manual_seed(0)
    leaf = torch.randn(6, 4, 16, 16, dtype=dtype, requires_grad=True)
    x = leaf * 1.0
    penalise(x, Noting(L0Config(sigma=1e-1)), lambda values: 2.0)
    flows = torch.randn_like(x)
    x.backward(flows)
    exact, v = flows.double(), leaf.detach().double()
    exact = exact + 2.0 * 2 * 1e-1 * v / (v**2 + 1e-1) ** 2
    assert types == {torch.float32}
    half_a_step = torch.finfo(dtype).eps / 2
    assert ((leaf.grad.double() - exact).abs() <= 1.01 * half_a_step * exact.abs() + 1e-5).all()
