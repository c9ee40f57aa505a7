"""Taps against what torchvision's networks are known to do, and against plain hooks."""

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from eat_runner.taps import NETWORK_INPUT, Call, overwritten_calls, tap

stacked_modes = _get_current_function_mode_stack


class Residual(nn.Module):
    """conv -> bn -> in-place relu -> conv, plus identity, then a functional activation."""

    def __init__(self, functional_inplace: bool = False):
        super().__init__()
        self.conv1 = nn.Conv2d(2, 2, 3, padding=1)
        self.bn = nn.BatchNorm2d(2)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(2, 2, 3, padding=1)
        self.functional_inplace = functional_inplace

    def forward(self, x):
        out = self.conv2(self.relu(self.bn(self.conv1(x))))
        out += x
        return F.relu(out, inplace=self.functional_inplace)


def calls_of(model, x, functional=True):
    calls: list[Call] = []
    with torch.no_grad(), tap(model.eval(), calls.append, functional):
        model(x)
    return calls


def test_calls_come_in_order_with_their_producers():
    calls = calls_of(Residual(), torch.randn(1, 2, 4, 4))
    assert [call.op for call in calls] == ["Conv2d", "BatchNorm2d", "ReLU", "Conv2d", "add_", "relu"]
    assert [call.name for call in calls][:4] == ["conv1", "bn", "relu", "conv2"]
    # the addition reads conv2's output (call 3) and the network's input; the activation reads the sum (call 4)
    assert [call.producers for call in calls] == [(NETWORK_INPUT,), (0,), (1,), (2,), (3, NETWORK_INPUT), (4,)]
    assert [call.inplace for call in calls] == [False, False, True, False, True, False]
    assert [call.is_activation for call in calls] == [False, False, True, False, False, True]


def test_the_network_runs_in_place_as_it_was_built():
    x = torch.randn(1, 2, 4, 4)
    for functional_inplace in (False, True):
        calls = calls_of(Residual(functional_inplace), x)
        assert [call.inplace for call in calls] == [False, False, True, False, True, functional_inplace]
        assert [call.output is call.inputs[0] for call in calls] == [call.inplace for call in calls]


def test_without_functional_only_leaf_modules_are_reported():
    assert [call.op for call in calls_of(Residual(), torch.randn(1, 2, 4, 4), functional=False)] == [
        "Conv2d",
        "BatchNorm2d",
        "ReLU",
        "Conv2d",
    ]


def test_a_module_called_twice_is_two_calls():
    relu = nn.ReLU()
    model = nn.Sequential(nn.Linear(3, 3), relu, nn.Linear(3, 3), relu)
    assert [call.op for call in calls_of(model, torch.randn(1, 3))] == ["Linear", "ReLU", "Linear", "ReLU"]


def test_a_listener_can_put_something_in_the_place_of_an_output():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad(), tap(model, lambda call: call.output * 0 if call.is_activation else None):
        out = model(torch.randn(5, 3))
    torch.testing.assert_close(out, model[2].bias.expand(5, 2))
    functional = Residual()
    with torch.no_grad(), tap(functional, lambda call: call.output * 0 if call.op == "relu" else None):
        assert functional(torch.randn(1, 2, 4, 4)).abs().sum() == 0


def test_several_outputs_are_several_calls():
    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.leaf = nn.Linear(4, 4)

        def forward(self, x):
            left, right = self.leaf(x).chunk(2, 1)
            return left - right

    calls = calls_of(Halves(), torch.randn(3, 4))
    assert [call.op for call in calls] == ["Linear", "chunk", "chunk", "sub"]
    assert calls[3].producers == (1, 2)


@pytest.mark.parametrize(
    ("arch", "overwritten"),
    [("resnet18", 17), ("mobilenet_v2", 35), ("googlenet", 57)],
)
def test_overwritten_outputs_of_torchvision_networks(arch, overwritten):
    """Batch norms' outputs. resnet18: in-place ReLUs behind the stem's and each of 8 blocks' first, `out += identity`
    behind each block's second. mobilenet_v2: 35 in-place ReLU6, one behind the stem, 16 expansions, 17 depthwise
    convolutions and the last one. googlenet: each of its 57 convolution blocks ends in a functional in-place ReLU."""
    options = {"aux_logits": False, "init_weights": False} if arch == "googlenet" else {}
    model = torchvision.models.get_model(arch, weights=None, **options)
    assert len(overwritten_calls(model, torch.randn(1, 3, 64, 64), functional=False)) == overwritten


def test_looking_changes_nothing():
    model = torchvision.models.resnet18(weights=None).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(2, 3, 64, 64)
    overwritten_calls(model, x)
    assert model.training
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    model.eval()
    expected = model(x)
    with torch.no_grad(), tap(model, lambda call: None):
        assert torch.equal(model(x), expected)
    hooks = [h for m in model.modules() for h in (m._forward_hooks, m._forward_pre_hooks) if h]
    assert not hooks
    assert all(m.inplace for m in model.modules() if isinstance(m, nn.ReLU))


def test_hooks_come_off_when_an_exception_flies():
    model = Residual()

    def fail(call: Call) -> None:
        raise RuntimeError(call.name)

    with pytest.raises(RuntimeError, match="conv1"), tap(model, fail):
        model(torch.randn(1, 2, 4, 4))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert model.relu.inplace


class Outer(TorchFunctionMode):
    """Sees functions, as torch.device does."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen.append(func.__name__)
        return func(*args, **(kwargs or {}))


class UsesAMode(nn.Module):
    def __init__(self, mode: TorchFunctionMode) -> None:
        super().__init__()
        self.relu, self.mode = nn.ReLU(), mode

    def forward(self, x):
        with self.mode:
            return self.relu(x) + 1


def test_other_modes_still_see_what_leaf_modules_do():
    inside, outside = Outer(), Outer()
    with outside:
        calls = calls_of(UsesAMode(inside), torch.randn(2, 3))
    assert [call.op for call in calls] == ["ReLU", "add"]
    assert inside.seen == ["relu", "add"]
    assert {"relu", "add"} <= set(outside.seen)
    assert not stacked_modes()


def test_an_error_inside_of_a_leaf_module_leaves_no_mode_behind():
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    with tap(model, lambda call: None):
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            model(torch.randn(1, 4))
        assert len(calls_of(model, torch.randn(1, 3))) == 2
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), tap(model, lambda call: None):
        model(torch.randn(1, 4))
    assert not stacked_modes()
