"""Compact: channels that change nothing, and residual branches that died, taken out of a trained network.

torch-pruning 1.6.1 has the graph of which channels go together, but neither constants nor dead branches, and its
element-wise operations are anonymous nodes of autograd: the graph is the small part, so we follow the calls ourselves.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from eat_runner.config.hardware import HardwareConfig
from eat_runner.config.method import MethodConfig
from eat_runner.energy.budget import Budget
from eat_runner.errors import UserError
from eat_runner.methods.base import Method, Trained
from eat_runner.methods.channels import Flow, Role, Shift, is_meddled_with, never_fired
from eat_runner.taps import NETWORK_INPUT, Call

COMPARED = 32  # images whose outputs are compared in float64
ROUNDING = 1e-5  # of the largest output: what folding constants into float32 parameters may move
SHIFT = "shift"  # name of a Shift in a block
WITH_CHANNELS = nn.Conv2d | nn.Linear | nn.BatchNorm2d | nn.BatchNorm1d | Shift

Silent = Callable[[nn.Module], Mapping[int, Tensor]]


class Compact(Method):
    """Channels are taken out after the training. ``exact``: those that provably change no output; ``fired``: those that
    are zero on the first training images, too."""

    def __init__(self, config: MethodConfig, hardware: HardwareConfig, budget: Budget | None = None):
        super().__init__(config, hardware, budget)
        self.done: dict[str, Any] = {}

    def on_build(self, model: nn.Module) -> None:
        if sum(_is_plain(module) for module in model.modules()) < 2:
            raise UserError(
                "compact: the network has no two convolutions without groups or linear layers, so no channels between "
                "them: leave compact out"
            )
        if any(map(is_meddled_with, model.modules())):
            raise UserError(
                "compact: something else changes what the network's layers compute (bits, a parametrisation, a hook): "
                "start from a network without it"
            )

    def after_training(self, trained: Trained) -> None:
        """Raises RuntimeError where outputs moved by more than rounding: a network that does what no call shows."""
        model, images = trained.model, list(trained.looked_at())
        some = images[0][:COMPARED]
        before = _sizes(model)
        self.done = take_out_exactly(model, some)
        if self.config.name == "fired":
            logits = _logits(model, trained)
            replaced = take_out(model, some, lambda network: never_fired(network, images))
            self.done["largest_difference_validation"] = (_logits(model, trained) - logits).abs().max().item()
            self.done["replaced"] += replaced
            self.done["channels"] = _resized(model, before)

    def changes(self) -> dict[str, Any]:
        """largest_difference: of an output, in float64. largest_difference_validation: of a logit on the validation
        split, by the channels that never fired. replaced: blocks and what is left of each, in order. channels: of each
        layer that has others now: inputs, outputs, whether it has a bias."""
        return self.done

    @classmethod
    def restore(cls, model: nn.Module, changes: Mapping[str, Any]) -> None:
        channels = changes.get("channels", {})
        for path, children in changes.get("replaced", []):
            _replace(model, path, children, Shift(channels.get(f"{path}.{SHIFT}", [1])[0]))
        for name, (inputs, outputs, biased) in channels.items():
            layer = model.get_submodule(name)
            if biased and getattr(layer, "bias", None) is None:
                _add_bias(layer)
            _resize(layer, torch.arange(outputs), torch.arange(inputs))


def take_out_exactly(model: nn.Module, x_nchw: Tensor) -> dict[str, Any]:
    """``take_out`` of what changes no output; what ``Compact.changes`` says of it.

    Raises RuntimeError where outputs of ``x_nchw`` moved by more than rounding.
    """
    before, expected = _sizes(model), _outputs(model, x_nchw)
    replaced = take_out(model, x_nchw)
    moved = (_outputs(model, x_nchw) - expected).abs().max().item()
    if not moved <= ROUNDING * max(1.0, expected.abs().max().item()):
        raise RuntimeError(f"compact moved an output by {moved:g}, so this network is none for it: leave it out")
    return {"largest_difference": moved, "replaced": replaced, "channels": _resized(model, before)}


def take_out(model: nn.Module, x_nchw: Tensor, silent: Silent = lambda model: {}) -> list[list[Any]]:
    """Take out of ``model`` what changes no output, until nothing is left to take out; what it did to blocks (the
    record's ``replaced``).

    x_nchw: a few images. silent: by call of the network as it is, features that are to count as always zero.
    """
    replaced: list[list[Any]] = []
    while True:
        flow = Flow(model, x_nchw, silent(model))
        dead = next(filter(None, (_dead_branch(flow, call) for call in flow.calls)), None)
        if dead is not None:
            replaced.append([dead.path, dead.children])
            _bypass(model, dead)
        elif not _shrink(flow):
            return replaced


# --- channels ------------------------------------------------------------------------------------------------------


def _shrink(flow: Flow) -> bool:
    """Take out the channels that nobody needs; whether there were any."""
    needed = flow.needed()
    # a layer without any outputs is none: one stays, which nobody reads
    kept = {call: mask if mask.any() else torch.arange(len(mask)) == 0 for call, mask in needed.items()}
    if all(mask.all() for mask in kept.values()):
        return False
    for call in flow.calls:
        if flow.roles[call.index] is Role.LAYER:
            inputs, outputs = needed[call.producers[0]], needed[call.index]
            _fold(flow, call, flow.folded(call, ~inputs) * outputs)
            _leave(call, outputs[:, None] & _features(flow, call, inputs))
    for call in flow.calls:
        if flow.roles[call.index] in {Role.LAYER, Role.NORM}:
            inputs = _features(flow, call, kept[call.producers[0]])
            _resize(call.module, kept[call.index].nonzero()[:, 0], inputs.nonzero()[:, 0])
    return True


def _features(flow: Flow, call: Call, mask: Tensor) -> Tensor:
    """From the channels of what a call reads to the features: the pixels of a flattened channel."""
    return mask.repeat_interleave(call.inputs[0].shape[1] // flow.channels(call.producers[0]))


def _leave(call: Call, mask: Tensor) -> None:
    """Only these weights (outputs, inputs) of a layer."""
    assert isinstance(call.module, nn.Conv2d | nn.Linear)
    weight = call.module.weight
    with torch.no_grad():
        weight.mul_(mask.view(*mask.shape, *[1] * (weight.dim() - 2)).to(weight.device))


def _fold(flow: Flow, call: Call, shift: Tensor) -> None:
    """Add a constant to each output of a layer: in its bias, or in the batch norm that alone reads it."""
    layer, readers = call.module, flow.readers[call.index]
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    if not shift.any():
        return
    norm = readers[0].module if len(readers) == 1 and flow.roles[readers[0].index] is Role.NORM else None
    if layer.bias is None and isinstance(norm, nn.BatchNorm2d | nn.BatchNorm1d) and norm.running_mean is not None:
        _add(norm.running_mean, -shift)
        return
    if layer.bias is None:
        _add_bias(layer)
    assert layer.bias is not None
    _add(layer.bias, shift)


def _add(values: Tensor, shift: Tensor) -> None:
    """Rounded once."""
    with torch.no_grad():
        values.copy_(values.double().cpu() + shift)


def _add_bias(layer: nn.Module) -> None:
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    layer.bias = nn.Parameter(layer.weight.new_zeros(len(layer.weight)), layer.weight.requires_grad)


def _resize(layer: nn.Module | None, outputs: Tensor, inputs: Tensor) -> None:
    """Keep these outputs (a batch norm's channels) and inputs of a layer, by their numbers."""
    assert isinstance(layer, WITH_CHANNELS)
    for name, value in [*layer.named_parameters(), *layer.named_buffers()]:
        if value.dim() == 0:
            continue
        kept = _chosen(value.detach(), outputs, 0)
        if value.dim() > 1:
            kept = _chosen(kept, inputs, 1)
        setattr(layer, name, nn.Parameter(kept, value.requires_grad) if isinstance(value, nn.Parameter) else kept)
    match layer:
        case nn.Conv2d():
            layer.in_channels, layer.out_channels = len(inputs), len(outputs)
        case nn.Linear():
            layer.in_features, layer.out_features = len(inputs), len(outputs)
        case nn.BatchNorm2d() | nn.BatchNorm1d():
            layer.num_features = len(outputs)
        case _:
            pass


def _chosen(value: Tensor, numbers: Tensor, dim: int) -> Tensor:
    return value.index_select(dim, numbers.to(value.device))


# --- residual branches ---------------------------------------------------------------------------------------------


class _Dead(NamedTuple):
    """A block of which one branch is constant. children: its modules that are left, in order, and SHIFT where
    ``constant`` is to be added; if that is not among them, ``norm`` takes it up."""

    path: str
    children: list[str]
    constant: Tensor
    norm: nn.BatchNorm2d | None


def _dead_branch(flow: Flow, call: Call) -> _Dead | None:
    """Of the block that the call is the residual addition of, if what remains is one module after the other."""
    path = call.name.rpartition(":")[0]
    if flow.roles[call.index] is not Role.ADD or not path:
        return None
    for producer, other in (call.producers, call.producers[::-1]):
        constant = flow.constant[producer]
        if constant.isfinite().all() and (dead := _without_branch(flow, call, path, other, constant)):
            return dead
    return None


def _without_branch(flow: Flow, add: Call, path: str, live: int, constant: Tensor) -> _Dead | None:
    inside = [call for call in flow.calls if call.name.startswith((f"{path}.", f"{path}:"))]
    own = {call.index for call in inside}
    entries = {producer for call in inside for producer in call.producers if producer not in own}
    exits = {i for i in own if i in flow.returned or any(reader.index not in own for reader in flow.readers[i])}
    if len(entries) != 1 or len(exits) != 1:
        return None
    head, tail = _chain(flow, live, entries.pop()), _chain(flow, exits.pop(), add.index)
    if head is None or tail is None:
        return None
    norm = _last_norm(flow, head)
    shift = [SHIFT] if constant.any() and norm is None else []
    if not constant.any() and tail and type(tail[0].module) is nn.ReLU and flow.is_nonnegative(live):
        tail = tail[1:]
    before, behind = _children(path, head, inside), _children(path, tail, inside)
    if before is None or behind is None:
        return None
    children = [*before, *shift, *behind]
    return _Dead(path, children, constant, norm) if len(set(children)) == len(children) else None


def _chain(flow: Flow, end: int, start: int) -> list[Call] | None:
    """The calls of modules that lead, one after the other, from the output of ``start`` to that of ``end``; None where
    there is something else between."""
    chain: list[Call] = []
    while end != start:
        call = flow.calls[end] if end != NETWORK_INPUT else None
        if call is None or call.module is None or len(call.producers) != 1:
            return None
        chain.insert(0, call)
        end = call.producers[0]
    return chain


def _last_norm(flow: Flow, chain: Sequence[Call]) -> nn.BatchNorm2d | None:
    """The batch norm at a chain's end, if it has a bias that nobody else sees."""
    last = chain[-1] if chain else None
    if last is None or flow.roles[last.index] is not Role.NORM or len(flow.readers[last.index]) > 1:
        return None
    return last.module if isinstance(last.module, nn.BatchNorm2d) and last.module.affine else None


def _children(path: str, chain: Sequence[Call], inside: Sequence[Call]) -> list[str] | None:
    """The block's direct children that make the chain's calls; None where one of them makes others, too."""

    def child(call: Call) -> str:
        return call.name.removeprefix(f"{path}.").partition(".")[0].partition(":")[0]

    names: list[str] = []
    for name, calls in groupby(chain, child):
        made = [call.index for call in calls]
        is_leaf = all(call.name == f"{path}.{name}" for call in inside if child(call) == name)
        if len(made) > 1 if is_leaf else made != [call.index for call in inside if child(call) == name]:
            return None
        names.append(name)
    return names


def _bypass(model: nn.Module, dead: _Dead) -> None:
    shift = Shift(len(dead.constant))
    if dead.norm is not None:
        _add(dead.norm.bias, dead.constant)
    else:
        _add(shift.bias, dead.constant)
    _replace(model, dead.path, dead.children, shift.to(next(model.parameters()).device))


def _replace(model: nn.Module, path: str, children: Sequence[str], shift: Shift) -> None:
    """Put those of a block's modules that are left, under their names, in its place."""
    parent_path, _, name = path.rpartition(".")
    parent, block = model.get_submodule(parent_path), model.get_submodule(path)
    left = [(child, shift if child == SHIFT else block.get_submodule(child)) for child in children]
    if left:
        setattr(parent, name, nn.Sequential(OrderedDict(left)).train(block.training))
    elif isinstance(parent, nn.Sequential) and len(parent) > 1:
        delattr(parent, name)  # the others keep their names
    else:
        setattr(parent, name, nn.Identity())


# --- looking -------------------------------------------------------------------------------------------------------


def _is_plain(module: nn.Module) -> bool:
    return type(module) is nn.Linear or (type(module) is nn.Conv2d and module.groups == 1)


def _sizes(model: nn.Module) -> dict[str, list[Any]]:
    """By layer: inputs, outputs, whether it has a bias."""
    found: dict[str, list[Any]] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            weight = layer.weight
            found[name] = [weight.shape[1], weight.shape[0], layer.bias is not None]
        elif isinstance(layer, Shift):
            found[name] = [len(layer.bias), len(layer.bias), True]
        elif isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d):
            found[name] = [layer.num_features, layer.num_features, layer.affine]
    return found


def _resized(model: nn.Module, before: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """The layers that have others now."""
    return {name: size for name, size in _sizes(model).items() if size != before.get(name)}


def _outputs(model: nn.Module, x_nchw: Tensor) -> Tensor:
    """In float64, on the CPU, where it is the same everywhere."""
    exact = deepcopy(model).cpu().double().eval()
    with torch.no_grad():
        return exact(x_nchw.cpu().double())


def _logits(model: nn.Module, trained: Trained) -> Tensor:
    """On the validation split."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        logits = torch.cat([model(x) for x in trained.judged()])
    model.train(was_training)
    return logits
