"""The networks: ResNets and VGGs with a width knob, the classifiers of torchvision and timm, and those of installed
packages."""

from collections.abc import Iterable

from eat_runner.config import ModelConfig
from eat_runner.errors import UserError
from eat_runner.models.external import Library, Preset, build_entry_point, check_arch, of_library
from eat_runner.models.network import Builder, Network
from eat_runner.models.resnet import BasicBlock, Bottleneck, resnet
from eat_runner.models.timm import TIMM
from eat_runner.models.torchvision import TORCHVISION
from eat_runner.models.vgg import vgg
from eat_runner.models.weights import load_weights, safetensors_bytes, weights_file

__all__ = ["LIBRARIES", "MODELS", "Network", "build", "load_weights", "preset", "safetensors_bytes", "weights_file"]

# Packages of networks by name; each is a model, too.
LIBRARIES: dict[str, Library] = {
    "torchvision": TORCHVISION,
    "timm": TIMM,
}

# Each key has a conf/model/<key>.yaml.
MODELS: dict[str, Builder] = {
    "resnet18": resnet(BasicBlock, (2, 2, 2, 2)),
    "resnet34": resnet(BasicBlock, (3, 4, 6, 3)),
    "resnet50": resnet(Bottleneck, (3, 4, 6, 3)),
    "vgg11": vgg((1, 1, 2, 2, 2)),
    "vgg13": vgg((2, 2, 2, 2, 2)),
    "vgg16": vgg((2, 2, 3, 3, 3)),
    "vgg19": vgg((2, 2, 4, 4, 4)),
    **{name: of_library(library) for name, library in LIBRARIES.items()},
    "entry_point": build_entry_point,
}


def build(config: ModelConfig, image_size: int, channels: int, classes: int) -> Network:
    """The network that ``config`` names, with fresh (or a library's pretrained) weights, on the CPU.

    image_size: pixels of a side. channels: of the data's images. Its weights depend on torch's global seed.
    Raises UserError, in one line, for an unknown name, a key that means nothing for the network, an image that it
    cannot take, or pretrained weights that cannot be had.
    """
    if config.name not in MODELS:
        raise UserError(f"model={config.name} is unknown: choose one of {', '.join(MODELS)}")
    _check_keys(config)
    return MODELS[config.name](config, image_size, channels, classes)


def preset(config: ModelConfig) -> Preset | None:
    """The images that the network's published weights were trained on; None of a network that is in no library.
    UserError for a name that the library does not have."""
    library = LIBRARIES.get(config.name)
    if library is None:
        return None
    check_arch(config, library.names())
    return library.preset(config.arch)


def _check_keys(config: ModelConfig) -> None:
    """Refuse keys that would be ignored, before somebody trusts a sweep over one of them."""
    default = ModelConfig()
    foreign = config.name in LIBRARIES or config.name == "entry_point"
    if not foreign and config.arch:
        raise UserError(f"model.arch={config.arch} means nothing for model={config.name}: use model=torchvision")
    if config.name not in LIBRARIES and config.pretrained:
        raise UserError(
            f"model.pretrained=true is for {_or(LIBRARIES)} only: start {config.name} from a file with init=PATH"
        )
    if foreign and config.width != default.width:
        raise UserError(f"model.width={config.width} means nothing for model={config.name}: leave it out")
    if not config.name.startswith("resnet") and config.stem != default.stem:
        raise UserError(f"model.stem={config.stem} is for our ResNets only: leave it out for model={config.name}")


def _or(names: Iterable[str]) -> str:
    return " or ".join(f"model={name}" for name in names)
