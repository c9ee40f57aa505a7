"""Convolutions whose weights' gradient oneDNN writes beside its place, computed in a way that it does right.

For a 1x1 convolution with a stride, of fewer input channels than a vector register holds (16 with AVX-512, 8 with
AVX2), in channels_last, oneDNN's workspace is too small (uxlfoundation/oneDNN issue 6035, open in November 2026):
depending on sizes, threads and processor the gradient is right, silently wrong, or the process dies. The shortcuts of
slim ResNets are such convolutions.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eat_runner.taps import leaf_class

FEW = 16  # input channels, below which no processor's vectors are full


@dataclass(frozen=True)
class Strided:
    """The ``_conv_forward`` of a 1x1 convolution without padding: at the places where the stride leads, with stride 1,
    which is the same sum of the same products, bit by bit.

    computes_the_same: it changes nothing of what the layer computes (taps.py).
    """

    stride: tuple[int, ...]
    computes_the_same: ClassVar[bool] = True

    def __call__(self, x_nchw: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if x_nchw.dim() != 4 or not (torch.is_grad_enabled() and weight.requires_grad):
            return F.conv2d(x_nchw, weight, bias, self.stride)
        rows, columns = self.stride
        return F.conv2d(x_nchw[:, :, ::rows, ::columns].contiguous(memory_format=torch.channels_last), weight, bias)


def avoid_faulty_gradients(network: nn.Module) -> None:
    """Let every convolution of the network that oneDNN may get wrong compute as ``Strided``; again does no harm. Those
    that compute in a way of their own are left alone."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and _is_concerned(module):
            module._conv_forward = Strided(module.stride)  # type: ignore[method-assign]


def _is_concerned(layer: nn.Conv2d) -> bool:
    strided = layer.kernel_size == (1, 1) and max(layer.stride) > 1
    plain = layer.groups == 1 and layer.padding in ("valid", (0, 0)) and leaf_class(layer) is nn.Conv2d
    return strided and plain and layer.in_channels < FEW
