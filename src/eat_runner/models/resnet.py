"""ResNets (He et al., CVPR 2016, arXiv 1512.03385), in the form used for CIFAR and in the one used for ImageNet.

Layers are named as in torchvision, so that its state dicts fit where the shapes do. The residual addition is out of
place and every ReLU is a module of its own: each output of a layer stays what it was, and has a name.
"""

from typing import ClassVar

from torch import Tensor, nn

from eat_runner.config import ModelConfig
from eat_runner.models.network import Builder, Network

SMALLEST_IMAGE_OF_7X7_STEM = 64


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Convolution with "same" padding and no bias (the batch norm behind it has one)."""
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module | None:
    """1x1 projection where the block changes the shape; None where its input can be added as it is."""
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions."""

    expansion: ClassVar[int] = 1

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(channels, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = _conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(channels, width, stride)
        self.relu2 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        identity = x if self.downsample is None else self.downsample(x)
        return self.relu2(out + identity)


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride) and 1x1 convolution, the last with four times the channels."""

    expansion: ClassVar[int] = 4

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = self.expansion * width
        self.conv1 = _conv(channels, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = _conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv3 = _conv(width, outputs, 1)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = _shortcut(channels, outputs, stride)
        self.relu3 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.relu2(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        identity = x if self.downsample is None else self.downsample(x)
        return self.relu3(out + identity)


Block = type[BasicBlock] | type[Bottleneck]  # its outputs have ``expansion * width`` channels


class ResNet(nn.Module):
    """Stem, four stages of residual blocks (widths w, 2w, 4w, 8w), global average pool, one linear layer.

    large_stem: 7x7 stride-2 convolution and 3x3 stride-2 max-pool, instead of a 3x3 stride-1 convolution.
    Takes images of any size: every stride has padding.
    """

    def __init__(
        self, block: Block, depths: tuple[int, int, int, int], width: int, channels: int, classes: int, large_stem: bool
    ) -> None:
        super().__init__()
        self.conv1 = _conv(channels, width, 7, 2) if large_stem else _conv(channels, width, 3)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if large_stem else None
        widths = [width, 2 * width, 4 * width, 8 * width]
        inputs = [width] + [block.expansion * w for w in widths]
        self.layer1 = _stage(block, depths[0], inputs[0], widths[0], stride=1)
        self.layer2 = _stage(block, depths[1], inputs[1], widths[1], stride=2)
        self.layer3 = _stage(block, depths[2], inputs[2], widths[2], stride=2)
        self.layer4 = _stage(block, depths[3], inputs[3], widths[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs[4], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        if self.maxpool is not None:
            x = self.maxpool(x)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


def _stage(block: Block, depth: int, inputs: int, width: int, stride: int) -> nn.Sequential:
    """``depth`` blocks, the first of which has the stride."""
    first = block(inputs, width, stride)
    return nn.Sequential(first, *(block(block.expansion * width, width, 1) for _ in range(depth - 1)))


def resnet(block: Block, depths: tuple[int, int, int, int]) -> Builder:
    """Builder of a ResNet with ``depths`` blocks in its four stages."""

    def build(config: ModelConfig, image_size: int, channels: int, classes: int) -> Network:
        large = config.stem == "7x7" or (config.stem == "auto" and image_size >= SMALLEST_IMAGE_OF_7X7_STEM)
        return Network(ResNet(block, depths, config.width, channels, classes, large), channels)

    return build
