"""The config group ``model``."""

from dataclasses import dataclass

from eat_runner.config.checks import between, one_of

STEMS = ("auto", "3x3", "7x7")


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """Which network is trained.

    name: key of models.MODELS. arch: for ``torchvision`` and ``entry_point``, the network's name there.
    width: channels of the first stage of our ResNets and VGGs; 64 is the standard network, 16 a quarter of it.
    stem: first layer of our ResNets: 3x3 stride 1 (CIFAR form), 7x7 stride 2 with max-pool (ImageNet form), or by
    image size (auto: 3x3 below 64 px). pretrained: start from torchvision's ImageNet weights.
    """

    name: str = "resnet18"
    arch: str = ""
    width: int = 64
    stem: str = "auto"
    pretrained: bool = False

    def check(self) -> None:
        between("model.width", self.width, 1, 1024)
        one_of("model.stem", self.stem, STEMS)
