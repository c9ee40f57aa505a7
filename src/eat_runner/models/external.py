"""Networks that others wrote: torchvision's CNN classifiers, and those that installed packages offer."""

import difflib
import re
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from eat_runner.config import ModelConfig
from eat_runner.errors import UserError
from eat_runner.models.network import Network
from eat_runner.models.weights import adopt, first_line

ENTRY_POINT_GROUP = "eat_runner.models"
TORCHVISION_CHANNELS = 3
NOT_CNNS = ("vit_", "swin_", "maxvit")  # attention: functional, with parameters outside leaf modules
WITH_AUXILIARY_HEADS = ("googlenet", "inception_v3")
IMAGE_SIZES = tuple(2**power for power in range(3, 11))


def build_torchvision(config: ModelConfig, image_size: int, channels: int, classes: int) -> Network:
    """The classifier ``model.arch`` of torchvision.models; grey images are repeated to its three channels.

    pretrained: ImageNet weights and their normalisation; the last layer starts fresh unless there are 1000 classes.
    Raises UserError for a name that is none of its CNN classifiers, an image that it cannot take, or weights that
    cannot be had.
    """
    _check_arch(config, torchvision_classifiers())
    if channels not in (1, TORCHVISION_CHANNELS):
        raise UserError(f"model.arch={config.arch} takes images of 1 or 3 channels, not {channels}: use model=resnet18")
    module = _torchvision_module(config.arch, classes)
    _check_image_size(lambda size: _shape_of_logits(module, size), config.arch, image_size, classes)
    messages = (
        [] if channels == TORCHVISION_CHANNELS else [f"{config.arch} takes three channels: grey images are repeated"]
    )
    if not config.pretrained:
        return Network(module, TORCHVISION_CHANNELS, messages=tuple(messages))
    trained, mean, std = _pretrained(config.arch)
    messages += adopt(module, trained.state_dict(), f"torchvision's {config.arch}")
    return Network(module, TORCHVISION_CHANNELS, mean, std, tuple(messages))


def build_entry_point(config: ModelConfig, image_size: int, channels: int, classes: int) -> Network:
    """The network that an installed package offers as ``model.arch`` in the entry-point group ``eat_runner.models``.

    The entry point is a callable (image_size, channels, classes) -> nn.Module. Raises UserError for a name that no
    package offers and for a network that cannot take the image.
    """
    offered = {entry.name: entry for entry in entry_points(group=ENTRY_POINT_GROUP)}
    if config.pretrained:
        raise UserError("model.pretrained=true is for model=torchvision only: start from a file with init=PATH")
    if not offered:
        raise UserError(
            f"model.arch={config.arch}: no installed package has an entry point in the group {ENTRY_POINT_GROUP}"
        )
    _check_arch(config, sorted(offered))
    make: Callable[[int, int, int], Any] = offered[config.arch].load()
    module = make(image_size, channels, classes)
    if not isinstance(module, nn.Module):
        raise UserError(f"model.arch={config.arch} returned {type(module).__name__}: it must return a torch.nn.Module")

    def logits(size: int) -> Any:
        return _logits(module if size == image_size else make(size, channels, classes), channels, size)

    with torch.random.fork_rng(devices=[]):
        _check_image_size(logits, config.arch, image_size, classes)
    return Network(module, channels)


def torchvision_classifiers() -> list[str]:
    """Names of torchvision's CNN image classifiers."""
    names = torchvision.models.list_models(module=torchvision.models)
    return [name for name in names if not name.startswith(NOT_CNNS)]


def _check_arch(config: ModelConfig, known: Sequence[str]) -> None:
    if config.arch in known:
        return
    choices = difflib.get_close_matches(config.arch or "resnet18", known, n=3, cutoff=0.5) or list(known[:3])
    if not config.arch:
        raise UserError(f"model={config.name} needs a network's name: set model.arch, e.g. model.arch={choices[0]}")
    if config.name == "torchvision" and config.arch in torchvision.models.list_models():
        raise UserError(f"model.arch={config.arch} is no CNN image classifier: choose one such as {', '.join(choices)}")
    raise UserError(
        f"model.arch={config.arch} is unknown to model={config.name}: choose one such as {', '.join(choices)}"
    )


def _torchvision_module(arch: str, classes: int, initialised: bool = True) -> nn.Module:
    # Auxiliary heads make a second and third output in training; init_weights=True is what they default to, aloud.
    extra: dict[str, Any] = {"aux_logits": False, "init_weights": initialised} if arch in WITH_AUXILIARY_HEADS else {}
    return torchvision.models.get_model(arch, weights=None, num_classes=classes, **extra)


def _pretrained(arch: str) -> tuple[nn.Module, tuple[float, ...], tuple[float, ...]]:
    """torchvision's best ImageNet weights in their network, with the mean and deviation that they expect."""
    offered: Any = torchvision.models.get_model_weights(arch)
    weights = offered.DEFAULT
    file = Path(torch.hub.get_dir(), "checkpoints", weights.url.rpartition("/")[2])
    module = _torchvision_module(arch, len(weights.meta["categories"]), initialised=False)
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
    if arch in WITH_AUXILIARY_HEADS:
        # Their weights want (x - 0.5) / 0.5, which torchvision computes inside. Outside, it is not charged.
        return module, (0.5,) * TORCHVISION_CHANNELS, (0.5,) * TORCHVISION_CHANNELS
    preset = weights.transforms()
    return module, tuple(preset.mean), tuple(preset.std)


def _todays_names(state: dict[str, Any]) -> dict[str, Any]:
    """``state`` without auxiliary heads; DenseNet's file has names with a dot that modules cannot have any more."""
    for name in list(state):
        tensor = state.pop(name)
        if not name.lower().startswith("aux"):
            state[re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", name)] = tensor
    return state  # the same object: it carries the versions of its modules


def _check_image_size(logits: Callable[[int], Any], name: str, image_size: int, classes: int) -> None:
    """Raise UserError unless ``logits(image_size)``, the network's answer to one image, is one row of ``classes``."""
    problem = _problem(logits, image_size, classes)
    if problem is None:
        return
    fitting = [size for size in IMAGE_SIZES if size > image_size and _problem(logits, size, classes) is None][:1]
    if not fitting:
        raise UserError(
            f"model.arch={name} cannot take {image_size}x{image_size} images ({problem}): use model=resnet18"
        )
    raise UserError(
        f"model.arch={name} cannot take {image_size}x{image_size} images: use dataset.image_size={fitting[0]},"
        f" or a network that takes them, such as model=resnet18"
    )


def _problem(logits: Callable[[int], Any], image_size: int, classes: int) -> str | None:
    """Why the network cannot take an image of this size, in one line; None if it can."""
    try:
        answer = logits(image_size)
    except (RuntimeError, ValueError, IndexError, AssertionError) as error:
        return first_line(error)
    if not isinstance(answer, Tensor) or tuple(answer.shape) != (1, classes):
        return f"it returns {tuple(getattr(answer, 'shape', ()))}, not one row of {classes} logits"
    return None


def _shape_of_logits(module: nn.Module, image_size: int) -> Any:
    """The answer to one image as a tensor without content: shapes alone decide, so nothing is computed."""
    state = {name: torch.empty_like(tensor, device="meta") for name, tensor in module.state_dict().items()}

    def without_content(image: Tensor) -> Any:
        return torch.func.functional_call(module, state, image)

    return _evaluate(
        module, without_content, torch.zeros(1, TORCHVISION_CHANNELS, image_size, image_size, device="meta")
    )


def _logits(module: nn.Module, channels: int, image_size: int) -> Any:
    """The answer to one black image."""
    return _evaluate(module, module, torch.zeros(1, channels, image_size, image_size))


def _evaluate(module: nn.Module, forward: Callable[[Tensor], Any], image: Tensor) -> Any:
    """``forward(image)`` with ``module`` in evaluation mode."""
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            return forward(image)
    finally:
        module.train(training)
