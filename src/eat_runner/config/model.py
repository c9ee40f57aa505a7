"""The config group ``model``."""

from dataclasses import dataclass

from eat_runner.config.checks import between, one_of
from eat_runner.errors import UserError

STEMS = ("auto", "3x3", "7x7")
HEADS = ("linear", "imagenet")


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """Which network is trained.

    name: key of models.MODELS. arch: of ``torchvision``, ``timm``, ``entry_point``: the network's name there.
    width: channels of the first stage of our ResNets and VGGs; 64 is the standard network, 16 a quarter of it.
    stem: first layer of our ResNets: 3x3 stride 1 (CIFAR form), 7x7 stride 2 with max-pool (ImageNet form), or by
    image size (auto: 3x3 below 64 px). head: classifier of our VGGs: one linear layer (CIFAR form), or the three of the
    ImageNet form, the hidden ones of ``64 * width`` features, with dropout. pretrained: start from torchvision's
    ImageNet weights.
    """

    name: str = "resnet18"
    arch: str = ""
    width: int = 64
    stem: str = "auto"
    head: str = "linear"
    pretrained: bool = False

    def check(self) -> None:
        between("model.width", self.width, 1, 1024)
        one_of("model.stem", self.stem, STEMS)
        one_of("model.head", self.head, HEADS)
        if self.head != "linear" and not self.name.startswith("vgg"):
            raise UserError(f"model.head={self.head} is for our VGGs only: leave it out for model={self.name}")
