"""timm's image classifiers (the extra timm)."""

import importlib
from functools import cache
from typing import Any

from torch import nn

from eat_runner.errors import UserError
from eat_runner.models.external import Library, Preset
from eat_runner.models.weights import first_line


@cache
def _timm() -> Any:
    """The package, imported when somebody asks for it."""
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise UserError("model=timm needs timm 1.0 or later: pip install 'eat-runner[timm]'") from error


@cache
def _names() -> list[str]:
    """Architectures, and architectures with the tag of their weights (``resnet50.a1_in1k``)."""
    return sorted({*_timm().list_models(), *_timm().list_pretrained()})


def _create(arch: str, classes: int, image_size: int) -> nn.Module:
    return _timm().create_model(arch, num_classes=classes, **_size_of_the_image(arch, image_size))


def _size_of_the_image(arch: str, image_size: int) -> dict[str, int]:
    """The key of the networks that are made for one image size, such as transformers with position embeddings."""
    return {"img_size": image_size} if _published(arch).fixed_input_size else {}


def _trained(arch: str, image_size: int) -> nn.Module:
    """timm's weights in their network, brought to the image size where they depend on it."""
    if not _published(arch).has_weights:
        raise UserError(f"model.pretrained=true: timm publishes no weights of {arch}: use model.pretrained=false")
    try:
        return _timm().create_model(arch, pretrained=True, **_size_of_the_image(arch, image_size))
    except Exception as error:  # no connection, no room; and a damaged file can raise anything
        raise UserError(
            f"model.pretrained=true: the weights of {arch} could not be fetched ({first_line(error)}): start from a"
            " file with init=PATH, or use model.pretrained=false"
        ) from error


def _preset(arch: str) -> Preset:
    published = _published(arch)
    return Preset(int(published.input_size[-1]), tuple(published.mean), tuple(published.std))


def _published(arch: str) -> Any:
    """What timm says of the architecture's weights, or would if there were any."""
    return _timm().get_pretrained_cfg(arch) or _timm().models.PretrainedCfg()


TIMM = Library(_names, _create, _trained, _preset)
