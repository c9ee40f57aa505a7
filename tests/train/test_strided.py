"""A strided 1x1 convolution of few channels learns from the right gradient, where oneDNN's own is wrong or fatal."""

import os
import pickle
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eat_runner.taps import leaf_class
from eat_runner.train.strided import avoid_faulty_gradients
from processes import eat_run, ended, output, run_folders

# threads, channels, size and number of images
CASES = [
    *((threads, *case) for threads in (1, 2) for case in [(4, 8, 8, 64), (6, 12, 32, 64), (8, 16, 64, 64)]),
    *[(1, 12, 24, 112, 8), (1, 4, 8, 31, 32)],
]
GRADIENTS = f"""
import torch
from torch import nn
from eat_runner.train.strided import avoid_faulty_gradients

for case in {CASES}:
    print(case, flush=True)
    threads, few, many, size, images = case
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(few, many, 1, stride=2, bias=False)).to(memory_format=torch.channels_last)
    avoid_faulty_gradients(network)
    x = torch.randn(images, few, size, size).contiguous(memory_format=torch.channels_last).requires_grad_()
    for _ in range(4):
        network.zero_grad()
        x.grad = None
        y = network(x)
        g = torch.randn(y.shape).contiguous(memory_format=torch.channels_last)
        y.backward(g)
        # by the definition: y[n, o, i, j] = sum over c of w[o, c] x[n, c, 2 i, 2 j]
        x64, g64, w64 = x.detach().double()[:, :, ::2, ::2], g.double(), network[0].weight.detach().double()[:, :, 0, 0]
        expected = torch.einsum("noij,ncij->oc", g64, x64)
        torch.testing.assert_close(network[0].weight.grad[:, :, 0, 0].double(), expected, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(y.double(), torch.einsum("oc,ncij->noij", w64, x64), rtol=1e-4, atol=1e-4)
        gx = torch.zeros_like(x, dtype=torch.float64)
        gx[:, :, ::2, ::2] = torch.einsum("oc,noij->ncij", w64, g64)
        torch.testing.assert_close(x.grad.double(), gx, rtol=1e-4, atol=1e-4)
"""


@pytest.mark.parametrize("isa", ["AVX2", "ALL"])  # what oneDNN may use; ALL: what the processor has
def test_gradients_are_those_of_the_definition(isa: str) -> None:
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": isa}
    done = subprocess.run([sys.executable, "-c", GRADIENTS], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr[-500:])


def layer(*, few: int = 4, kernel: int = 1, stride: int | tuple[int, int] = 2, **others: Any) -> nn.Conv2d:
    return nn.Conv2d(few, 8, kernel, stride=stride, **others)


@pytest.mark.parametrize(
    ("one", "concerned"),
    [
        (layer(), True),
        (layer(few=15, stride=(1, 2)), True),
        (layer(few=16), False),
        (layer(stride=1), False),
        (layer(kernel=3), False),
        (layer(groups=2), False),
        (layer(padding=1), False),
    ],
)
def test_which_convolutions_are_computed_another_way(one: nn.Conv2d, concerned: bool) -> None:
    avoid_faulty_gradients(one)
    avoid_faulty_gradients(one)
    assert ("_conv_forward" in vars(one)) == concerned
    assert leaf_class(one) is nn.Conv2d  # for the meter and the penalty it is what it was


def test_copies_compute_with_their_own_weights() -> None:
    original = layer()
    avoid_faulty_gradients(original)
    x = torch.randn(2, 4, 6, 6)
    expected = original(x)
    for copy in (deepcopy(original), pickle.loads(pickle.dumps(original))):
        with torch.no_grad():
            original.weight.zero_()
        assert torch.equal(copy(x), expected)
        original.load_state_dict(copy.state_dict())
    assert original.state_dict().keys() == {"weight", "bias"}


class Scaled(nn.Conv2d):
    """Somebody's own convolution."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return 3 * super()._conv_forward(input, weight, bias)


def test_what_computes_in_a_way_of_its_own_is_left_alone_and_looked_into() -> None:
    x = torch.randn(2, 4, 6, 6)
    of_class, of_instance = Scaled(4, 8, 1, stride=2), layer()
    of_instance._conv_forward = lambda x, weight, bias: x  # type: ignore[method-assign]
    expected = [one(x) for one in (of_class, of_instance)]
    for one, before in zip((of_class, of_instance), expected, strict=True):
        avoid_faulty_gradients(one)
        assert torch.equal(one(x), before)
        assert leaf_class(one) is None


@pytest.mark.long
@pytest.mark.parametrize("others", ["width=4", "width=4 trainer.precision=bf16", "width=4 trainer.channels_last=false"])
def test_a_slim_resnet_trains_on_large_images(tmp_path: Path, others: str) -> None:
    """It died of a segmentation fault."""
    settings = "lambda=1 threads=1 dataset.image_size=96 dataset.train_limit=128 trainer.epochs=1 trainer.batch_size=32"
    assert ended(eat_run(tmp_path, f"model.{others} {settings}")) == 0, output(tmp_path)
    [run] = run_folders(tmp_path)
    assert run.read_record().status == "finished"
