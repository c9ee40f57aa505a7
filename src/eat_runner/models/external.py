"""Networks that others wrote: the image classifiers of a library, and those that installed packages offer."""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

import torch
from torch import Tensor, nn

from eat_runner.config import ModelConfig
from eat_runner.errors import UserError
from eat_runner.models.network import Builder, Network
from eat_runner.models.weights import adopt, first_line

ENTRY_POINT_GROUP = "eat_runner.models"
LIBRARY_CHANNELS = 3
IMAGE_SIZES = tuple(2**power for power in range(3, 11))
# what networks raise for an image that does not fit, when they are made or when they see it
DOES_NOT_FIT = (ArithmeticError, AssertionError, AttributeError, IndexError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class Preset:
    """The images that a library's weights were trained on: pixels of a side; mean and std per channel, for values in
    [0, 1]."""

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Library:
    """A package of image classifiers by name, which take three channels.

    names: all of them. create: (name, classes, image size) -> the network with fresh weights, on torch's default
    device. trained: (name, image size) -> the same with the weights that the library publishes, and their classes.
    preset: of a name. Any may raise UserError: the package is missing, the weights cannot be had.
    """

    names: Callable[[], Sequence[str]]
    create: Callable[[str, int, int], nn.Module]
    trained: Callable[[str, int], nn.Module]
    preset: Callable[[str], Preset]


def of_library(library: Library) -> Builder:
    """Builder of the network ``model.arch`` of a library; grey images are repeated to its three channels.

    pretrained: the library's weights and their normalisation; the last layer starts fresh unless the number of classes
    is theirs. The builder raises UserError for an unknown name, an image that the network cannot take, or weights that
    cannot be had.
    """

    def build(config: ModelConfig, image_size: int, channels: int, classes: int) -> Network:
        arch = config.arch
        check_arch(config, library.names())
        if channels not in (1, LIBRARY_CHANNELS):
            raise UserError(f"model.arch={arch} takes images of 1 or 3 channels, not {channels}: use model=resnet18")

        def logits(size: int) -> Any:
            module = _without_content(lambda: library.create(arch, classes, size))
            with torch.device("meta"):
                return _logits(module, LIBRARY_CHANNELS, size)

        with torch.random.fork_rng(devices=[]):
            _check_image_size(logits, arch, image_size, classes, library.preset(arch).image_size)
        module = library.create(arch, classes, image_size)
        messages = [] if channels == LIBRARY_CHANNELS else [f"{arch} takes three channels: grey images are repeated"]
        if not config.pretrained:
            return Network(module, LIBRARY_CHANNELS, messages=tuple(messages))
        trained, preset = library.trained(arch, image_size), library.preset(arch)
        messages += adopt(module, trained.state_dict(), f"{config.name}'s {arch}")
        return Network(module, LIBRARY_CHANNELS, preset.mean, preset.std, tuple(messages))

    return build


def build_entry_point(config: ModelConfig, image_size: int, channels: int, classes: int) -> Network:
    """The network that an installed package offers as ``model.arch`` in the entry-point group ``eat_runner.models``.

    The entry point is a callable (image_size, channels, classes) -> nn.Module. Raises UserError for a name that no
    package offers and for a network that cannot take the image.
    """
    offered = {entry.name: entry for entry in entry_points(group=ENTRY_POINT_GROUP)}
    if not offered:
        raise UserError(
            f"model.arch={config.arch}: no installed package has an entry point in the group {ENTRY_POINT_GROUP}"
        )
    check_arch(config, sorted(offered))
    make: Callable[[int, int, int], Any] = offered[config.arch].load()
    module = make(image_size, channels, classes)
    if not isinstance(module, nn.Module):
        raise UserError(f"model.arch={config.arch} returned {type(module).__name__}: it must return a torch.nn.Module")

    def logits(size: int) -> Any:
        return _logits(module if size == image_size else make(size, channels, classes), channels, size)

    with torch.random.fork_rng(devices=[]):
        _check_image_size(logits, config.arch, image_size, classes)
    return Network(module, channels)


def check_arch(config: ModelConfig, known: Sequence[str]) -> None:
    """UserError, with the nearest names, unless ``config.arch`` is one of the known ones."""
    if config.arch in known:
        return
    choices = difflib.get_close_matches(config.arch or "resnet18", known, n=3, cutoff=0.5) or list(known[:3])
    if not config.arch:
        raise UserError(f"model={config.name} needs a network's name: set model.arch, e.g. model.arch={choices[0]}")
    raise UserError(
        f"model.arch={config.arch} is no image classifier of model={config.name}: choose one such as "
        f"{', '.join(choices)}"
    )


def _check_image_size(
    logits: Callable[[int], Any], name: str, image_size: int, classes: int, preset: int | None = None
) -> None:
    """Raise UserError unless ``logits(image_size)``, the network's answer to one image, is one row of ``classes``.
    preset: the size that it was made for, if that is known."""
    problem = _problem(logits, image_size, classes)
    if problem is None:
        return
    sizes = [size for size in IMAGE_SIZES if size > image_size] + ([preset] if preset else [])
    fitting = next((size for size in sizes if _problem(logits, size, classes) is None), None)
    if fitting is None:
        raise UserError(
            f"model.arch={name} cannot take {image_size}x{image_size} images ({problem}): use model=resnet18"
        )
    raise UserError(
        f"model.arch={name} cannot take {image_size}x{image_size} images: use dataset.image_size={fitting},"
        f" or a network that takes them, such as model=resnet18"
    )


def _problem(logits: Callable[[int], Any], image_size: int, classes: int) -> str | None:
    """Why the network cannot take an image of this size, in one line; None if it can."""
    try:
        answer = logits(image_size)
    except DOES_NOT_FIT as error:
        return first_line(error)
    if not isinstance(answer, Tensor) or tuple(answer.shape) != (1, classes):
        return f"it returns {tuple(getattr(answer, 'shape', ()))}, not one row of {classes} logits"
    return None


def _without_content(create: Callable[[], nn.Module]) -> nn.Module:
    """The network on the device of tensors without content: shapes alone decide, so nothing is computed."""
    try:
        with torch.device("meta"):
            return create()
    except NotImplementedError:  # it computes with tensors while it is made
        return create().to("meta")


def _logits(module: nn.Module, channels: int, image_size: int) -> Any:
    """The answer to one black image, in evaluation mode."""
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            return module(torch.zeros(1, channels, image_size, image_size))
    finally:
        module.train(training)
