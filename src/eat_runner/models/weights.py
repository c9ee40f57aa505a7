"""Starting a network from weights that somebody already has."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from eat_runner.errors import UserError

WEIGHTS_OF_A_RUN = "model.safetensors"
NESTED_UNDER = ("state_dict", "model", "model_state_dict")
WRAPPERS = ("module.", "_orig_mod.")  # what DataParallel and torch.compile put before every name
SHOWN_DIFFERENCES = 3


def load_weights(module: nn.Module, path: Path) -> list[str]:
    """Load a state dict into ``module``, in place; returns messages for a person.

    path: a .safetensors file, a state dict saved by torch.save (also nested under 'state_dict' or 'model', or of a
    DataParallel), or the folder of a finished run. Pickled code is refused. The last layer keeps its fresh weights
    where the file's is for another number of classes. Raises UserError for every other difference.
    """
    path = weights_file(path)
    return adopt(module, _read(path), str(path))


def weights_file(path: Path) -> Path:
    """The file that ``init`` names, by itself or by its run's folder. UserError where there is none."""
    if path.is_dir():
        path = path / WEIGHTS_OF_A_RUN
    if not path.is_file():
        raise UserError(
            f"init={path} is not there: give a state dict (.safetensors, .pt, .pth) or a finished run's folder"
        )
    return path


def adopt(module: nn.Module, weights: Mapping[str, Tensor], source: str) -> list[str]:
    """Copy ``weights`` into ``module``; a head of another number of classes stays fresh. ``source`` is for messages."""
    expected = module.state_dict()
    heads = _heads(module)
    beginnings = tuple(f"{head}." for head in heads)
    fresh = [
        name for name in weights if name.startswith(beginnings) and _other_classes(weights[name], expected.get(name))
    ]
    differences = list(_differences({k: v for k, v in weights.items() if k not in fresh}, expected, fresh))
    if differences:
        shown = "; ".join(differences[:SHOWN_DIFFERENCES])
        raise UserError(f"{source} does not fit the network: {shown} ({len(differences)} differences in all)")
    for name, tensor in weights.items():
        if name not in fresh:
            expected[name].copy_(tensor)  # the network's own memory
    if not fresh:
        return []
    theirs, ours = weights[fresh[0]].shape[0], expected[fresh[0]].shape[0]
    return [f"{source} has {theirs} classes and the data {ours}: the last layer ({', '.join(heads)}) starts fresh"]


def safetensors_bytes(module: nn.Module) -> bytes:
    """The network's parameters and buffers as a safetensors file."""
    return save({name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()})


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"init={path} is no plain state dict (a file that holds code or other objects is not opened):"
            " save model.state_dict()"
        ) from error
    except Exception as error:  # a damaged file can raise anything
        raise UserError(
            f"init={path} cannot be read as a state dict ({first_line(error)}): save model.state_dict()"
        ) from error
    return _state_dict(content, path)


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """The tensors by name, taken out of the usual nesting and prefixes."""
    for key in NESTED_UNDER:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise UserError(f"init={path} holds no state dict (names with tensors): save model.state_dict()")
    weights = {str(name): tensor for name, tensor in content.items()}
    for prefix in WRAPPERS:
        if all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    return weights


def _heads(module: nn.Module) -> tuple[str, ...]:
    """Paths of the layers that make the logits: timm's networks name them; else the last one with a weight matrix or
    kernel."""
    published: Any = getattr(module, "pretrained_cfg", None)
    named = published.get("classifier") if isinstance(published, Mapping) else None
    if named:
        return (named,) if isinstance(named, str) else tuple(named)
    layers = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    return tuple(layers[-1:])


def _other_classes(theirs: Tensor, ours: Tensor | None) -> bool:
    if ours is None or theirs.dim() != ours.dim() or theirs.dim() == 0:
        return False
    return theirs.shape[0] != ours.shape[0] and theirs.shape[1:] == ours.shape[1:]


def _differences(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], fresh: list[str]) -> list[str]:
    """One phrase for each tensor that has no counterpart of its shape, in the network's order."""
    phrases: list[str] = []
    for name, ours in expected.items():
        if name in fresh:
            continue
        if name not in weights:
            phrases.append(f"{name} is missing in it")
        elif weights[name].shape != ours.shape:
            phrases.append(f"{name} is {tuple(weights[name].shape)} in it and {tuple(ours.shape)} in the network")
    return phrases + [f"{name} is not in the network" for name in weights if name not in expected]


def first_line(error: Exception) -> str:
    """The error's message, of several lines the first; its type's name where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]
