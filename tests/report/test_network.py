"""The tree of a network's calls, against networks whose modules are known."""

import torch
from torch import nn

from eat_runner.config import MeterConfig
from eat_runner.energy.measured import Measured
from eat_runner.energy.meter import measure
from eat_runner.report.network import tree


class Block(nn.Module):
    def __init__(self, shared: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU())
        self.shared = shared

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.shared(self.body(x) + x)


class Net(nn.Module):
    """Two blocks, the first of which runs again at the end, with one convolution in both."""

    def __init__(self) -> None:
        super().__init__()
        shared = nn.Conv2d(2, 2, 1, bias=False)
        self.first, self.second = Block(shared), Block(shared)
        self.head = nn.Linear(2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(self.second(self.first(x)))
        return self.head(x.mean((2, 3)))


def measured(net: nn.Module) -> Measured:
    return Measured(
        network="a:b",
        op=type(net).__name__,
        parameters=sum(p.numel() for p in net.parameters()),
        channels=2,
        image_size=4,
        classes=3,
        weights=None,
        images=None,
        counts=measure(net, [torch.randn(1, 2, 4, 4)], MeterConfig(), floor=False),
        shapes={},
        modules={name: type(module).__name__ for name, module in net.named_modules()},
    )


def test_a_network_as_a_tree() -> None:
    nodes = tree(measured(Net()))
    block = [(1, "first", "Block"), (2, "body", "Sequential"), (3, "0", "Conv2d"), (3, "1", "ReLU"), (2, ":add", "add")]
    second = [(1, "second", "Block"), *block[1:]]
    # a module with two paths is known by its first one
    expected = [
        (0, "Net", ""),
        *[*block, (2, "shared", "Conv2d")],
        *second,
        (1, "first", "Block"),
        (2, "shared", "Conv2d"),
        *block[1:],
        (2, "shared", "Conv2d"),
        (1, ":mean", "mean"),
        (1, "head", "Linear"),
    ]
    assert [(node.depth, node.label, node.op) for node in nodes] == expected


def test_parameters_of_what_runs_twice_are_added_up_once() -> None:
    net = Net()
    nodes = tree(measured(net))
    # two convolutions of 2 x 2 weights with 2 biases, one without biases, a linear layer
    assert nodes[0].parameters == 2 * 6 + 4 + (6 + 3) == sum(p.numel() for p in net.parameters())
    firsts = [node.parameters for node in nodes if node.label == "first"]
    assert firsts == [6 + 4, 0]
    assert [len(node.calls) for node in nodes if node.label == "first"] == [4, 5]
