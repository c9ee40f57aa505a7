"""torchvision's image classifiers. The library is imported where one is asked for: with what it brings along it
takes as long as torch itself."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from eat_runner.errors import UserError
from eat_runner.models.external import LIBRARY_CHANNELS, Library, Preset
from eat_runner.models.weights import first_line

WITH_AUXILIARY_HEADS = ("googlenet", "inception_v3")
# what is made for one image size, and how it is told
FIXED_SIZE = {"vit_": lambda size: {"image_size": size}, "maxvit": lambda size: {"input_size": (size, size)}}


def _names() -> list[str]:
    from torchvision import models

    return models.list_models(module=models)


def _create(arch: str, classes: int, image_size: int, initialised: bool = True) -> nn.Module:
    from torchvision import models

    # Auxiliary heads make a second and third output in training; init_weights=True is what they default to, aloud.
    extra: dict[str, Any] = {"aux_logits": False, "init_weights": initialised} if arch in WITH_AUXILIARY_HEADS else {}
    for beginning, keys in FIXED_SIZE.items():
        if arch.startswith(beginning):
            extra |= keys(image_size)
    return models.get_model(arch, weights=None, num_classes=classes, **extra)


def _trained(arch: str, image_size: int) -> nn.Module:
    """torchvision's best ImageNet weights in their network."""
    weights = _best_weights(arch)
    file = Path(torch.hub.get_dir(), "checkpoints", weights.url.rpartition("/")[2])
    # of the weights' own image size: what else it is to be made for is for the caller to see
    module = _create(arch, len(weights.meta["categories"]), _preset(arch).image_size, initialised=False)
    try:
        # get_model(weights=...) would unpickle whatever lies there; the hash is that of a download alone
        state = weights.get_state_dict(check_hash=True, weights_only=True)
        module.load_state_dict(_todays_names(state))
    except Exception as error:  # no connection, no room; and a damaged file can raise anything
        if file.exists():
            raise UserError(
                f"model.pretrained=true: {file} is damaged, or not the weights that torchvision published: delete it"
            ) from error
        raise UserError(
            f"model.pretrained=true: the weights of {arch} could not be downloaded ({first_line(error)}):"
            f" put {weights.url} into {file.parent}, or use model.pretrained=false"
        ) from error
    return module


def _preset(arch: str) -> Preset:
    transforms = _best_weights(arch).transforms()
    if arch in WITH_AUXILIARY_HEADS:
        # Their weights want (x - 0.5) / 0.5, which torchvision computes inside. Outside, it is not charged.
        mean = std = (0.5,) * LIBRARY_CHANNELS
    else:
        mean, std = tuple(transforms.mean), tuple(transforms.std)
    return Preset(int(transforms.crop_size[0]), mean, std)


def _best_weights(arch: str) -> Any:
    from torchvision import models

    offered: Any = models.get_model_weights(arch)
    return offered.DEFAULT


def _todays_names(state: dict[str, Any]) -> Mapping[str, Any]:
    """``state`` without auxiliary heads; DenseNet's file has names with a dot that modules cannot have any more."""
    for name in list(state):
        tensor = state.pop(name)
        if not name.lower().startswith("aux"):
            state[re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", name)] = tensor
    return state  # the same object: it carries the versions of its modules


TORCHVISION = Library(_names, _create, _trained, _preset)
