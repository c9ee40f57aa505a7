"""VGGs (Simonyan and Zisserman, ICLR 2015, arXiv 1409.1556) with batch norm, and with one linear layer, as used for
CIFAR, or the three of the ImageNet form."""

from torch import Tensor, nn

from eat_runner.config import ModelConfig
from eat_runner.models.network import Builder, Network

# channels of the five stages, in units of the first stage's
STAGE_WIDTHS = (1, 2, 4, 8, 8)
# the ImageNet form's three linear layers: pixels of a side that the features are brought to, and width of the hidden
# layers in units of the first stage's channels (4096 / 64)
HEAD_PIXELS, HIDDEN_WIDTH = 7, 64


class VGG(nn.Module):
    """Five stages of 3x3 convolution, batch norm and ReLU, each closed by a 2x2 max-pool, and a classifier.

    depths: convolutions in each stage. Pools that would go below one pixel are left out. head ``linear``: one linear
    layer; images that five pools do not bring down to one pixel get further pools at the end (one at 64 px), so that it
    always has ``8 * width`` inputs. head ``imagenet``: the features are averaged over, or repeated on, 7x7 pixels, and
    three linear layers with dropout follow.
    """

    def __init__(
        self, depths: tuple[int, ...], width: int, head: str, image_size: int, channels: int, classes: int
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        pixels = image_size
        for depth, stage_width in zip(depths, STAGE_WIDTHS, strict=True):
            for _ in range(depth):
                layers += _convolution(channels, stage_width * width)
                channels = stage_width * width
            if pixels > 1:
                layers.append(nn.MaxPool2d(2))
                pixels //= 2
        while head == "linear" and pixels > 1:
            layers.append(nn.MaxPool2d(2))
            pixels //= 2
        self.features = nn.Sequential(*layers)
        if head == "imagenet":
            self.features.append(nn.AdaptiveAvgPool2d(HEAD_PIXELS))
        self.classifier = nn.Linear(channels, classes) if head == "linear" else _three_layers(channels, width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


def _convolution(inputs: int, outputs: int) -> list[nn.Module]:
    # The bias is superfluous before a batch norm; the published parameter counts have it.
    return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


def _three_layers(channels: int, width: int, classes: int) -> nn.Sequential:
    hidden = HIDDEN_WIDTH * width
    return nn.Sequential(
        *(nn.Linear(channels * HEAD_PIXELS**2, hidden), nn.ReLU(inplace=True), nn.Dropout()),
        *(nn.Linear(hidden, hidden), nn.ReLU(inplace=True), nn.Dropout()),
        nn.Linear(hidden, classes),
    )


def vgg(depths: tuple[int, ...]) -> Builder:
    """Builder of a VGG with ``depths`` convolutions in its five stages."""

    def build(config: ModelConfig, image_size: int, channels: int, classes: int) -> Network:
        return Network(VGG(depths, config.width, config.head, image_size, channels, classes), channels)

    return build
