"""Observing a network while it runs: every call of a leaf module or of a functional operation, in order.

Plain forward hooks miss functional activations (57 in torchvision's googlenet) and keep tensors that a later in-place
operation overwrites (``out += identity`` in torchvision's ResNets). So a tap is hooks on the leaf modules and one
TorchFunctionMode that is active outside of them; in-place activation flags are off while it looks (``out_of_place``),
and ``overwritten_calls`` finds the outputs that a listener must not keep without a copy.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

NETWORK_INPUT = -1


@dataclass(slots=True)
class Call:
    """One call of a leaf module or functional operation.

    index: position in the forward pass, from 0. name: the module's path, or ``<path of the calling module>:<op>``.
    op: class name of the module (``Conv2d``) or name of the function (``relu``, ``add``, ``flatten``).
    module: None for a functional operation. inputs: its tensors, in order. output: what it returned.
    args, kwargs: of a functional operation, as it was called. inplace: the module's flag as it was built, or, for a
    functional operation, whether it returned one of its inputs.
    producers: for each input the index of the call that made it; NETWORK_INPUT for a tensor that no call made.
    """

    index: int
    name: str
    op: str
    module: nn.Module | None
    inputs: tuple[Tensor, ...]
    output: Tensor
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict[str, Any])
    inplace: bool = False
    producers: tuple[int, ...] = ()


# A listener sees a call right after it was made and may return a tensor that takes the output's place.
Listener = Callable[[Call], Tensor | None]


def leaf_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules without children, with their paths; a module that stands at two places comes once."""
    return ((name, module) for name, module in model.named_modules() if not any(module.children()))


@contextmanager
def out_of_place(model: nn.Module) -> Iterator[frozenset[nn.Module]]:
    """Switch every ``inplace`` flag off for the time of the block; yields the modules that had it on."""
    built_in_place = [module for module in model.modules() if getattr(module, "inplace", False) is True]
    for module in built_in_place:
        setattr(module, "inplace", False)  # noqa: B010  (nn.Module has no such attribute of its own)
    try:
        yield frozenset(built_in_place)
    finally:
        for module in built_in_place:
            setattr(module, "inplace", True)  # noqa: B010


@contextmanager
def tap(model: nn.Module, listener: Listener, functional: bool = True) -> Iterator[None]:
    """Report every call of ``model`` to ``listener`` while the block runs; nothing stays attached afterwards.

    A module must return one tensor to be reported. functional: report functional operations too, those made outside of
    leaf modules (attribute reads and what returns no tensor are left out). Each forward pass counts from index 0.
    """
    with ExitStack() as stack:
        built_in_place = stack.enter_context(out_of_place(model))
        recorder = _Recorder(listener, built_in_place)
        stack.callback(recorder.forget)
        stack.callback(model.register_forward_pre_hook(recorder.start, prepend=True).remove)
        for name, module in model.named_modules():
            leaf = not any(module.children())
            enter, leave = recorder.hooks(name, leaf)
            if leaf or functional:
                stack.callback(module.register_forward_pre_hook(enter).remove)
                stack.callback(module.register_forward_hook(leave, always_call=not leaf).remove)
        if functional:
            stack.enter_context(_FunctionalCalls(recorder))
        yield
