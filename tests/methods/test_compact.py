"""Compact: which channels go, by hand; outputs in float64 before and after; blocks that died; records and runs."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import ln_structured

import eat_runner
from eat_runner import models, run
from eat_runner.config import MeterConfig, ModelConfig
from eat_runner.config.compact import CompactConfig
from eat_runner.config.hardware import PublishedHardware
from eat_runner.config.pruning import PruningConfig
from eat_runner.energy.estimate import estimate
from eat_runner.energy.hardware import load_hardware
from eat_runner.energy.meter import measure
from eat_runner.errors import UserError
from eat_runner.methods.base import Trained
from eat_runner.methods.channels import Shift
from eat_runner.methods.compact import Compact, take_out
from eat_runner.records import RunFolder
from examples import trained

EXACT, FIRED = CompactConfig(name="exact"), CompactConfig(name="fired")
SAME = {"rtol": 1e-6, "atol": 1e-6}  # constants are rounded to float32, 6e-8 each


def outputs(model, x):
    with torch.no_grad():
        return deepcopy(model).double().eval()(x.double())


def randomised(model):
    """With batch norms that have seen something."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value in (module.weight, module.running_var):
                value.detach().uniform_(0.5, 2.0)
            for value in (module.bias, module.running_mean):
                value.detach().normal_()
    return model


def set_to(model, **values):
    """Values of parameters and buffers, ``layer__weight=...``, or of a part of them: (index, value)."""
    with torch.no_grad():
        for name, value in values.items():
            tensor = model.get_submodule(".".join(name.split("__")[:-1])).__getattr__(name.split("__")[-1])
            index, value = value if isinstance(value, tuple) else (..., value)
            tensor[index] = torch.as_tensor(value)


def shapes(model):
    return {n: tuple(p.shape) for n, p in model.named_parameters() if n.endswith("weight") and p.dim() > 1}


def compacted(model, x, silent=None):
    """Taken out of a copy; outputs are the same."""
    small = deepcopy(model)
    replaced = take_out(small, x, silent) if silent else take_out(small, x)
    torch.testing.assert_close(outputs(small, x), outputs(model, x), **SAME)
    return small, replaced


class Net(nn.Module):
    """Two convolutions, each with a batch norm, and a linear layer on the mean of each channel."""

    def __init__(self, padding=1, kernel=3, norm=True, act=nn.ReLU):
        super().__init__()
        self.a = nn.Conv2d(2, 3, 3, padding=1, bias=False)
        self.an = nn.BatchNorm2d(3)
        self.act = act()
        self.b = nn.Conv2d(3, 4, kernel, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(4) if norm else nn.Identity()
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4, 5)

    def forward(self, x):
        x = self.act(self.an(self.a(x)))
        return self.fc(self.pool(self.relu(self.bn(self.b(x)))).flatten(1))


X = torch.randn(3, 2, 6, 6, generator=torch.Generator().manual_seed(1))


def with_constant(net, constant):
    """Channel 1 of the first convolution is ``constant`` before the activation function, whatever the image."""
    randomised(net)
    set_to(net, a__weight=(1, 0.0), an__running_mean=(1, 0.0), an__bias=(1, constant))
    return net


def test_nothing_goes_where_everything_is_needed():
    net = randomised(Net())
    small, replaced = compacted(net, X)
    assert shapes(small) == shapes(net)
    assert replaced == []
    assert torch.equal(outputs(small, X), outputs(net, X))


def test_a_channel_that_nobody_reads_goes_and_so_does_what_it_alone_has_read():
    net = randomised(Net())
    # of b's outputs the linear layer does not read the third; of a's outputs only that one reads the first
    set_to(net, fc__weight=((slice(None), 2), 0.0), b__weight=((torch.tensor([0, 1, 3]), 0), 0.0))
    small, _ = compacted(net, X)
    assert shapes(small) == {"a.weight": (2, 2, 3, 3), "b.weight": (3, 2, 3, 3), "fc.weight": (5, 3)}
    assert torch.equal(small.a.weight, net.a.weight[1:])
    assert torch.equal(small.bn.running_var, net.bn.running_var[[0, 1, 3]])
    assert (small.b.in_channels, small.b.out_channels, small.bn.num_features, small.fc.in_features) == (2, 3, 3, 3)


def test_a_channel_that_is_always_zero_goes_even_in_front_of_padding():
    small, _ = compacted(with_constant(Net(), -0.7), X)
    assert shapes(small)["a.weight"] == (2, 2, 3, 3)
    assert shapes(small)["b.weight"] == (4, 2, 3, 3)


def test_a_constant_in_front_of_padding_stays():
    net = with_constant(Net(), 0.7)
    small, _ = compacted(net, X)
    assert shapes(small) == shapes(net)


def test_a_constant_in_front_of_an_unpadded_convolution_is_taken_up_by_the_batch_norm_behind():
    net = with_constant(Net(padding=0), 0.7)
    small, _ = compacted(net, X)
    assert shapes(small)["b.weight"] == (4, 2, 3, 3)
    expected = net.bn.running_mean.double() - 0.7 * net.b.weight[:, 1].double().sum((1, 2))
    torch.testing.assert_close(small.bn.running_mean.double(), expected, **SAME)
    assert small.b.bias is None


def test_without_a_batch_norm_behind_the_layer_gets_a_bias():
    net = with_constant(Net(padding=0, kernel=1, norm=False), 0.7)
    small, _ = compacted(net, X)
    torch.testing.assert_close(small.b.bias.double(), 0.7 * net.b.weight[:, 1, 0, 0].double(), **SAME)


def test_a_batch_norm_that_lets_nothing_through_makes_a_constant():
    net = randomised(Net())
    set_to(net, bn__weight=(0, 0.0), bn__bias=(0, 1.25))
    small, _ = compacted(net, X)
    assert shapes(small)["b.weight"] == (3, 3, 3, 3)
    expected = net.fc.bias.double() + 1.25 * net.fc.weight[:, 0].double()
    torch.testing.assert_close(small.fc.bias.double(), expected, **SAME)


@pytest.mark.parametrize(("constant", "left"), [(0.4, 2), (0.6, 3)])
def test_another_activation_function_is_asked_what_it_makes_of_the_constant(constant, left):
    """A threshold of 0.5 lets 0.4 be 0, which goes, and 0.6 stay, in front of padding."""
    small, _ = compacted(with_constant(Net(act=lambda: nn.Threshold(0.5, 0.0)), constant), X)
    assert shapes(small)["a.weight"][0] == left


def test_a_layer_of_which_nothing_is_needed_keeps_one_channel():
    net = randomised(Net())
    set_to(net, fc__weight=0.0)
    small, _ = compacted(net, X)
    assert shapes(small) == {"a.weight": (1, 2, 3, 3), "b.weight": (1, 1, 3, 3), "fc.weight": (5, 1)}


def test_of_a_dead_first_layer_a_constant_is_left():
    net = randomised(Net(padding=0))
    set_to(net, a__weight=0.0)
    small, _ = compacted(net, X)
    assert shapes(small) == {"a.weight": (1, 2, 3, 3), "b.weight": (1, 1, 3, 3), "fc.weight": (5, 1)}


# --- what is not understood is left alone


class Around(nn.Module):
    """A convolution, something, a convolution; what goes into the first and out of the second is needed."""

    def __init__(self, between):
        super().__init__()
        self.a, self.between, self.b = nn.Conv2d(2, 4, 1), between, nn.Conv2d(4, 3, 1)

    def forward(self, x):
        return self.b(self.between(self.a(x)))


class Do(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function, self.child = function, nn.Identity()

    def forward(self, x):
        return self.function(self.child(x))


LEFT_ALONE = {
    "depthwise": lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4),
    "group norm": lambda: nn.GroupNorm(2, 4),
    "a slope a channel": lambda: nn.PReLU(4),
    "batch norm without statistics": lambda: nn.BatchNorm2d(4, track_running_stats=False),
    "concatenation": lambda: Do(lambda x: torch.cat([x[:, 2:], x[:, :2]], 1)),
    "gating": lambda: Do(lambda x: x * x.mean((2, 3), keepdim=True)),
    "a number added": lambda: Do(lambda x: x + 1.0),
    "channels by number": lambda: Do(lambda x: x.view(-1, 4, 36).view(-1, 4, 6, 6)),
    "softmax over channels": lambda: nn.Softmax(1),
}


@pytest.mark.parametrize("between", LEFT_ALONE)
def test_what_is_not_understood_keeps_its_channels(between):
    net = Around(LEFT_ALONE[between]())
    set_to(net, a__weight=(1, 0.0), a__bias=(1, 0.0), b__weight=((slice(None), 2), 0.0))
    small, _ = compacted(net, X)
    assert shapes(small) == shapes(net)


@pytest.mark.parametrize("between", [nn.ReLU, nn.SiLU, nn.Dropout, lambda: nn.AvgPool2d(2), lambda: Do(torch.relu)])
def test_what_is_understood_lets_them_go(between):
    net = Around(between())
    set_to(net, a__weight=(1, 0.0), a__bias=(1, 0.0), b__weight=((slice(None), 2), 0.0))
    small, _ = compacted(net, X)
    assert shapes(small) == {"a.weight": (2, 2, 1, 1), "b.weight": (3, 2, 1, 1)}


@pytest.mark.parametrize(("pool", "exact"), [(nn.AvgPool2d(2), True), (nn.AvgPool2d(3, padding=1), False)])
def test_an_average_with_padding_makes_no_constant_of_a_constant(pool, exact):
    net = Around(pool)
    set_to(net, a__weight=(1, 0.0), a__bias=(1, 0.5))
    small, _ = compacted(net, X)
    assert len(small.a.weight) == 4 - exact


def test_a_layer_that_is_called_twice_keeps_its_channels():
    net = Around(nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 1)))
    net.between.append(net.between[1])
    set_to(net, between__1__weight=(2, 0.0), between__1__bias=(2, 0.0))
    small, _ = compacted(net, X)
    assert shapes(small) == shapes(net)


def test_weights_that_another_layer_shares_keep_their_channels():
    net = Around(nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 1)))
    set_to(net, a__weight=(1, 0.0), a__bias=(1, 0.0))
    other = nn.Conv2d(4, 4, 1)
    other.weight = net.between[1].weight
    net.between.append(other)
    small, _ = compacted(net, X)
    assert shapes(small) == shapes(net)


def masked(layer):
    ln_structured(layer, "weight", 1, n=1, dim=0)


def halved(layer):
    parametrize.register_parametrization(layer, "weight", Do(lambda x: 0.5 * x))


@pytest.mark.parametrize("make", [masked, halved])
def test_weights_that_something_makes_in_front_of_each_call_keep_their_channels(make):
    net = Around(nn.ReLU())
    with torch.no_grad():
        net.a.weight[1] = 0.0
        make(net.a)
        net.a.bias[(net.a.weight == 0).all(1).flatten()] = 0.0
    small, _ = compacted(net, X)
    assert shapes(small)["b.weight"] == (3, 4, 1, 1)


# --- residual networks


def resnet18(stem="3x3"):
    return randomised(models.build(ModelConfig(width=2, stem=stem), 8, 2, 5).module)


def resnet50():
    return randomised(models.build(ModelConfig(name="resnet50", width=2), 8, 2, 5).module)


def test_a_residual_channel_goes_only_if_nobody_adds_anything_to_it():
    net = resnet18()
    # channel 1 of the first stage: made by the stem and two blocks, read by two blocks and two downsampling layers
    makers = ("conv1", "layer1.0.conv2", "layer1.1.conv2")
    norms = ("bn1", "layer1.0.bn2", "layer1.1.bn2")
    with torch.no_grad():
        for conv, norm in zip(makers, norms, strict=True):
            net.get_submodule(conv).weight[1] = 0.0
            net.get_submodule(norm).running_mean[1] = 0.0
            net.get_submodule(norm).bias[1] = -0.1
    alive = deepcopy(net)
    with torch.no_grad():
        alive.layer1[1].conv2.weight[1, 0, 1, 1] = 1.0
    small, _ = compacted(alive, X)
    assert shapes(small) == shapes(alive)
    small, _ = compacted(net, X)
    changed = {name: shape for name, shape in shapes(small).items() if shape != shapes(net)[name]}
    assert changed == {
        "conv1.weight": (1, 2, 3, 3),
        "layer1.0.conv1.weight": (2, 1, 3, 3),
        "layer1.0.conv2.weight": (1, 2, 3, 3),
        "layer1.1.conv1.weight": (2, 1, 3, 3),
        "layer1.1.conv2.weight": (1, 2, 3, 3),
        "layer2.0.conv1.weight": (4, 1, 3, 3),
        "layer2.0.downsample.0.weight": (4, 1, 1, 1),
    }


def test_a_branch_that_gives_zero_goes_whole_and_the_identity_remains():
    net = resnet18()
    set_to(net, layer1__0__bn2__weight=0.0, layer1__0__bn2__bias=0.0)
    small, replaced = compacted(net, X)
    assert replaced == [["layer1.0", []]]
    assert [name for name, _ in small.layer1.named_children()] == ["1"]
    assert shapes(small) == {n: s for n, s in shapes(net).items() if not n.startswith("layer1.0.")}


def test_a_stage_of_which_every_branch_died_is_the_identity():
    net = resnet18()
    for block in ("layer1__0", "layer1__1"):
        set_to(net, **{f"{block}__bn2__weight": 0.0, f"{block}__bn2__bias": 0.0})
    small, _ = compacted(net, X)
    assert isinstance(small.layer1[0], nn.Identity)
    assert len(small.layer1) == 1


def test_a_branch_that_gives_a_constant_leaves_its_constant():
    """All weights of the second convolution are zero: what is left is b - m g / sqrt(v + eps)."""
    net = resnet18()
    set_to(net, layer1__1__conv2__weight=0.0)
    norm = net.layer1[1].bn2
    expected = norm.bias - norm.running_mean * norm.weight / (norm.running_var + norm.eps).sqrt()
    small, replaced = compacted(net, X)
    assert replaced == [["layer1.1", ["shift", "relu2"]]]
    torch.testing.assert_close(small.layer1[1].shift.bias, expected, **SAME)


def test_a_downsampling_block_keeps_the_branch_that_lives():
    net = resnet18()
    set_to(net, layer2__0__conv2__weight=0.0, layer3__0__downsample__0__weight=0.0)
    small, replaced = compacted(net, X)
    assert replaced == [
        ["layer2.0", ["downsample", "relu2"]],
        ["layer3.0", ["conv1", "bn1", "relu1", "conv2", "bn2", "relu2"]],
    ]
    norm = net.layer2[0].bn2
    constant = norm.bias - norm.running_mean * norm.weight / (norm.running_var + norm.eps).sqrt()
    torch.testing.assert_close(small.layer2[0].downsample[1].bias, net.layer2[0].downsample[1].bias + constant, **SAME)


def test_behind_a_max_pool_the_block_s_relu_goes_too():
    net = resnet18("7x7")
    set_to(net, layer1__0__bn2__weight=0.0, layer1__0__bn2__bias=0.0)
    assert compacted(net, X)[1] == [["layer1.0", []]]


def test_a_bottleneck_whose_inner_convolution_died_goes_whole():
    """A constant through 1x1 convolutions stays one."""
    net = resnet50()
    block = net.layer2[1]
    set_to(net, layer2__1__conv2__weight=0.0)
    norm = block.bn2
    inner = (norm.bias - norm.running_mean * norm.weight / (norm.running_var + norm.eps).sqrt()).relu()
    outer = block.conv3.weight[:, :, 0, 0] @ inner
    norm = block.bn3
    expected = (outer - norm.running_mean) * norm.weight / (norm.running_var + norm.eps).sqrt() + norm.bias
    small, replaced = compacted(net, X)
    assert replaced == [["layer2.1", ["shift", "relu3"]]]
    torch.testing.assert_close(small.layer2[1].shift.bias, expected, rtol=1e-5, atol=1e-6)


def test_a_bottleneck_s_inner_channels_go():
    net = resnet50()
    set_to(net, layer2__1__bn1__weight=(0, 0.0), layer2__1__bn1__bias=(0, -1.0))  # relu: 0
    set_to(net, layer2__1__bn2__weight=(1, 0.0), layer2__1__bn2__bias=(1, 1.0))  # constant in front of 1x1
    small, _ = compacted(net, X)
    changed = {name: shape for name, shape in shapes(small).items() if shape != shapes(net)[name]}
    assert changed == {
        "layer2.1.conv1.weight": (3, 16, 1, 1),
        "layer2.1.conv2.weight": (3, 3, 3, 3),
        "layer2.1.conv3.weight": (16, 3, 1, 1),
    }


def test_torchvision_s_resnet_whose_relu_is_called_twice():
    net = randomised(torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [2, 1, 1, 1], num_classes=5))
    set_to(net, layer1__0__bn2__weight=0.0, layer1__0__bn2__bias=-0.5, layer1__1__bn1__weight=(0, 0.0))
    set_to(net, layer1__1__bn1__bias=(0, -1.0))
    x = torch.randn(2, 3, 16, 16)
    small, replaced = compacted(net, x)
    assert replaced == [["layer1.0", ["shift", "relu"]]]
    assert small.layer1[1].conv1.weight.shape == (63, 64, 3, 3)


# --- VGG


def test_vgg_s_linear_head_loses_all_pixels_of_a_channel():
    net = randomised(models.build(ModelConfig(name="vgg11", width=1, head="imagenet"), 32, 2, 5).module)
    norm = net.features[-4]  # behind it: relu, max-pool, mean over 7x7 pixels
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        norm.weight[3], norm.bias[3] = 0.0, 0.5
    x = torch.randn(2, 2, 32, 32)
    small, _ = compacted(net, x)
    assert small.classifier[0].weight.shape == (64, 7 * 49)
    expected = net.classifier[0].bias + 0.5 * net.classifier[0].weight[:, 3 * 49 : 4 * 49].sum(1)
    torch.testing.assert_close(small.classifier[0].bias, expected, rtol=1e-5, atol=1e-6)
    assert small.features[-5].weight.shape[0] == 7


# --- many at once


@pytest.mark.parametrize("density", [0.003, 0.02])
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "vgg11"])
def test_random_zeros(name: str, density: float):
    """Outputs are the same, another network gets the same structure, and there is nothing left to take out."""

    def build():
        return models.build(ModelConfig(name=name, width=2), 16, 2, 5).module

    net = randomised(build())
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.mul_(torch.rand_like(module.weight) < density)
    x = torch.randn(2, 2, 16, 16)
    small, _ = compacted(net, x)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in net.parameters())
    method = Compact(EXACT, PublishedHardware())
    method.after_training(around(net, x))
    other = build()
    Compact.restore(other, method.changes())
    other.load_state_dict(net.state_dict())
    assert torch.equal(other.eval()(x), net.eval()(x))
    again = deepcopy(net)
    assert take_out(again, x) == []
    assert shapes(again) == shapes(net)


def around(model, x, validation=None):
    """A trained network, with the images that its stage gets."""
    judged = x if validation is None else validation
    return Trained(model, lambda: 0.0, lambda: None, "validation", len(judged), lambda: [x], lambda: [judged])  # type: ignore


def test_products_of_values_that_are_not_zero_are_the_same_and_the_energy_falls():
    net = resnet18()
    # channels of layer2.0's inside that are zero by their weights and their batch norm; a block that adds nothing
    set_to(net, layer2__0__conv1__weight=(slice(2), 0.0), layer2__0__bn1__running_mean=(slice(2), 0.0))
    set_to(net, layer2__0__bn1__bias=(slice(2), -0.1), layer3__1__conv2__weight=0.0)
    set_to(net, layer3__1__conv1__weight=0.0, layer3__1__bn2__running_mean=0.0, layer3__1__bn2__bias=0.0)
    set_to(net, layer3__1__bn1__running_mean=0.0, layer3__1__bn1__bias=-0.1)
    x = torch.randn(4, 2, 8, 8)
    small, replaced = compacted(net, x)
    assert replaced == [["layer3.1", []]]
    counts = [measure(model, [x], MeterConfig(batch_size=4), floor=False) for model in (net, small)]
    by_layer = [{r.name: r.macs_both_nonzero for r in c.layers if r.op in {"Conv2d", "Linear"}} for c in counts]
    gone = {name: products for name, products in by_layer[0].items() if name not in by_layer[1]}
    assert gone == {"layer3.1.conv1": 0, "layer3.1.conv2": 0}
    assert by_layer[1] == {name: products for name, products in by_layer[0].items() if name not in gone}
    for hardware in ("fused_45nm", "fused_7nm_int8"):
        before, after = (estimate(c, load_hardware(hardware), "test").energy_uj_per_image for c in counts)
        assert after < before


def test_a_shift_is_an_addition_and_its_constants_are_stored():
    net = nn.Sequential(nn.Conv2d(2, 3, 1, bias=False), Shift(3), nn.ReLU())
    set_to(net, **{"1__bias": [0.5, -0.5, 0.0]})
    torch.testing.assert_close(net[:2](X), net[0](X) + torch.tensor([0.5, -0.5, 0.0]).view(3, 1, 1))
    counts = [measure(m, [X], MeterConfig(batch_size=3), floor=False) for m in (net, nn.Sequential(net[0], net[2]))]
    hardware = replace(load_hardware("fused_45nm"), format="dense", skip="none")
    with_it, without = (estimate(c, hardware, "test").energy_uj_per_image * 1e6 for c in counts)
    stored = 3 * hardware.bits * (hardware.dram_pj_per_bit / hardware.weight_reuse + hardware.buffer_pj_per_bit)
    assert with_it - without == pytest.approx(stored + 3 * 36 * hardware.add_pj)


# --- the method


def test_channels_that_never_fired_go_by_option_and_the_difference_is_recorded():
    net = randomised(Net())
    # channel 0 is the sum of the colours: it fires where that is above 0
    set_to(net, a__weight=(0, 0.0), an__running_mean=(0, 0.0), an__bias=(0, 0.0))
    set_to(net, a__weight=((0, slice(None), 1, 1), 1.0))
    looked, validation = -X.abs(), X
    exact, fired = deepcopy(net), deepcopy(net)
    Compact(EXACT, PublishedHardware()).after_training(around(exact, looked, validation))
    assert shapes(exact) == shapes(net)
    method = Compact(FIRED, PublishedHardware())
    method.after_training(around(fired, looked, validation))
    assert len(fired.a.weight) == 2
    without = deepcopy(net)
    set_to(without, b__weight=((slice(None), 0), 0.0))  # the same without anything that channel says
    torch.testing.assert_close(outputs(fired, looked), outputs(net, looked), **SAME)
    torch.testing.assert_close(outputs(fired, validation), outputs(without, validation), **SAME)
    moved = (outputs(without, validation) - outputs(net, validation)).abs().max().item()
    assert moved > 0.01
    assert method.changes()["largest_difference_validation"] == pytest.approx(moved, rel=1e-4)
    assert method.changes()["largest_difference"] == 0.0


def test_a_network_that_does_what_no_call_shows_fails_rather_than_changes():
    class Writes(Net):
        def forward(self, x):
            x = self.an(self.a(x))
            with torch._C.DisableTorchFunction():
                x[:, 1] = 3.0
            return self.fc(self.pool(self.relu(self.bn(self.b(self.act(x))))).flatten(1))

    with pytest.raises(RuntimeError, match=r"^compact moved an output by [0-9.e-]+, so this network is none for it"):
        Compact(EXACT, PublishedHardware()).after_training(around(with_constant(Writes(), -0.7), X))


def test_a_network_without_channels_between_two_layers_is_refused():
    method = Compact(EXACT, PublishedHardware())
    method.on_build(Net())
    with pytest.raises(UserError, match=r"^compact: the network has no two convolutions without groups or linear"):
        method.on_build(nn.Sequential(nn.Flatten(), nn.Linear(8, 2)))


def test_a_network_with_hooks_is_refused():
    net = with_constant(Net(), -0.7)
    net.an.register_forward_hook(lambda module, inputs, output: output + 1.0)
    with pytest.raises(UserError, match=r"^compact: something else changes what the network's layers compute"):
        Compact(EXACT, PublishedHardware()).on_build(net)


# --- runs


@pytest.fixture
def sparse(small_config):
    """Pruned so far that channels die."""
    settings = PruningConfig(name="magnitude", density=0.01, every_steps=2, begin=0.2, end=0.8)
    return replace(small_config, methods={"pruning": settings, "compact": EXACT}, lambda_=0.0)


def folder_of(config, record):
    return RunFolder(Path(config.results_dir) / config.name / record.run_id)


def test_a_run_with_pruning_becomes_smaller_and_loads_and_resumes_to_the_bit(sparse):
    record = run.run(sparse)
    assert (record.status, record.reason) == ("finished", "")
    trainer = trained(sparse, 3, 9)  # with stops in between
    dense = trainer.parameters
    x = torch.randn(2, 1, 8, 8)
    before = outputs(trainer.model, x)
    trainer.change()
    torch.testing.assert_close(outputs(trainer.model, x), before, **SAME)
    loaded = eat_runner.load_run(folder_of(sparse, record).path).model
    assert torch.equal(loaded(x), trainer.model.eval()(x))
    assert record.parameters == sum(p.numel() for p in loaded.parameters()) < dense
    change = record.changes[1]
    assert (change["method"], change["choice"]) == ("compact", "exact")
    assert change["largest_difference"] < 1e-6
    assert change["channels"]
    rows = folder_of(sparse, record).read_counts().select("test").layers
    counted = {row.name: row.weight_elements for row in rows if row.op == "Conv2d"}
    assert counted == {n: m.weight.numel() for n, m in loaded.named_modules() if isinstance(m, nn.Conv2d)}


def test_a_finished_run_is_compacted_and_a_training_goes_on_from_there(sparse):
    pruned = replace(sparse, methods={"pruning": sparse.methods["pruning"]})
    parent = run.run(pruned)
    stage = replace(
        sparse,
        init=str(folder_of(pruned, parent).path),
        methods={"compact": EXACT},
        trainer=replace(sparse.trainer, epochs=0),
    )
    small = run.run(stage)
    assert small.status == "finished"
    assert small.parameters < parent.parameters
    assert small.accuracy["test"] == parent.accuracy["test"]
    assert [change["method"] for change in small.changes] == ["pruning", "compact"]
    further = replace(
        sparse,
        init=str(folder_of(stage, small).path),
        methods={"compact": FIRED},
        trainer=replace(sparse.trainer, lr=0.01),
    )
    record = run.run(further)
    assert (record.status, record.reason) == ("finished", "")
    assert record.parameters <= small.parameters
    loaded = eat_runner.load_run(folder_of(further, record).path).model
    assert sum(p.numel() for p in loaded.parameters()) == record.parameters
