"""Channels on their way through a network: which of them are one and the same, which are constant, and which anybody
needs. From one forward pass, so that whatever code is between the layers is seen as it runs."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from enum import Enum, auto

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eat_runner.taps import NETWORK_INPUT, Call, evaluation_mode, has_made_weight, tap, tensors_in

POOLS = frozenset(
    "MaxPool2d AvgPool2d AdaptiveMaxPool2d AdaptiveAvgPool2d max_pool2d avg_pool2d adaptive_max_pool2d "
    "adaptive_avg_pool2d".split(" ")
)
# what evaluation passes on as it is
PASSES = frozenset(
    "Identity Dropout Dropout2d AlphaDropout StochasticDepth dropout dropout2d stochastic_depth contiguous clone".split(
        " "
    )
)
ADDS = frozenset({"add", "add_", "iadd"})


class Shift(nn.Module):
    """Adds a constant to each channel of x_nchw: what a residual branch does that gives nothing else any more."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x_nchw: Tensor) -> Tensor:
        return x_nchw + self.bias.view(-1, 1, 1)


class Role(Enum):
    """What a call does to channels. OPAQUE: anything, as far as we know."""

    LAYER = auto()  # mixes them: a convolution without groups, a linear layer
    NORM = auto()  # scales and shifts each
    ELEMENTWISE = auto()
    POOL = auto()
    PASS = auto()
    FLATTEN = auto()
    ADD = auto()
    OPAQUE = auto()


class Flow:
    """The calls of a forward pass of ``model``, and what is known of the channels of their outputs, by call.

    x_nchw: a few images. silent: by call, boolean per feature: outputs that are to count as always zero.
    roles; readers: calls that read the output; returned: whether the network returns it; constant: per channel the
    value that it has for every image and at every position, NaN where it varies (float64).
    """

    def __init__(self, model: nn.Module, x_nchw: Tensor, silent: Mapping[int, Tensor]):
        self.calls: list[Call] = []
        with evaluation_mode(model), torch.no_grad(), tap(model, self.calls.append):
            output = model(x_nchw.clone())
        made = {id(call.output): call.index for call in self.calls}
        results = [id(x) for x in tensors_in(output)]
        # where we have not seen who made it, anything may be in it
        seen = results and all(result in made for result in results)
        self.returned = {made[result] for result in results} if seen else set(range(len(self.calls)))
        self.readers: dict[int, list[Call]] = defaultdict(list)
        for call in self.calls:
            for producer in call.producers:
                self.readers[producer].append(call)
        self._times = Counter(call.module for call in self.calls)
        self._holders = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
        self._features = {NETWORK_INPUT: x_nchw.shape[1]}
        self._block = {NETWORK_INPUT: 1}  # features of one channel: its pixels, in a flattened tensor
        self._parent = {NETWORK_INPUT: NETWORK_INPUT}  # tensors whose channels are one and the same, as a forest
        self._pinned = {NETWORK_INPUT} | self.returned
        self.constant = {NETWORK_INPUT: torch.full((x_nchw.shape[1],), torch.nan, dtype=torch.float64)}
        self.roles: list[Role] = []
        for call in self.calls:
            self._connect(call)
            constant = self._constant(call)
            if call.index in silent:
                constant = constant.masked_fill(silent[call.index].view(len(constant), -1).all(1), 0.0)
            self.constant[call.index] = constant

    def channels(self, call: int) -> int:
        """Of its output."""
        return self._features[call] // self._block[call]

    def is_nonnegative(self, call: int) -> bool:
        """Whether its output surely has no value below 0."""
        while call != NETWORK_INPUT and self.roles[call] in {Role.POOL, Role.PASS, Role.FLATTEN}:
            call = self.calls[call].producers[0]
        relu = self.calls[call] if call != NETWORK_INPUT else None
        return relu is not None and (isinstance(relu.module, nn.ReLU) or relu.op in {"relu", "relu_"})

    def needed(self) -> dict[int, Tensor]:
        """For each call: which channels of its output have to stay (boolean).

        A channel has to where a layer reads it with a weight that is not zero, for an output that has to stay, unless
        it is constant and the layer can take that up into its bias. It stays or goes wherever it is the same channel:
        before and behind a batch norm, in all that are added up.
        """
        masks = {
            root: torch.zeros(self.channels(root), dtype=torch.bool) for root in set(map(self._root, self._parent))
        }
        for call in self._pinned:
            masks[self._root(call)][:] = True
        self._spread(masks)
        return {call: masks[self._root(call)] for call in self._parent}

    def weight(self, call: Call) -> Tensor:
        """Of a layer, (outputs, input channels, everything else), float64."""
        assert isinstance(call.module, nn.Conv2d | nn.Linear)
        weight = call.module.weight.detach().double().cpu()
        return weight.reshape(weight.shape[0], self.channels(call.producers[0]), -1)

    def foldable(self, call: Call) -> Tensor:
        """Which channels of a layer's input are constants that change each of its outputs by a constant: with zeros
        around the image only those that are zero themselves."""
        constant = self.constant[call.producers[0]]
        return constant.isfinite() if _is_exact(call.module) else constant == 0

    # --- who is whose channel --------------------------------------------------------------------------------------

    def _root(self, call: int) -> int:
        while self._parent[call] != call:
            call = self._parent[call]
        return call

    def _connect(self, call: Call) -> None:
        i, role = call.index, self._role(call)
        self.roles.append(role)
        self._parent[i] = i
        self._features[i] = call.output.shape[1] if call.output.dim() > 1 else 1
        self._block[i] = 1
        if role is Role.OPAQUE:
            self._pinned |= {i, *call.producers}
        elif role is not Role.LAYER:
            self._block[i] = self._block[call.producers[0]]
            if role is Role.FLATTEN:
                self._block[i] *= call.output.shape[1] // call.inputs[0].shape[1]
            for producer in call.producers:
                self._parent[self._root(producer)] = i

    def _role(self, call: Call) -> Role:
        """An operation that is not exactly one of those we know is OPAQUE, such as a layer of a subclass, and one with
        hooks, which may do anything."""
        module, inputs = call.module, call.inputs
        if not inputs or any(x.dim() not in {2, 4} for x in (*inputs, call.output)):
            return Role.OPAQUE
        first = inputs[0]
        if any(x.shape[1] != self._features[made_by] for x, made_by in zip(inputs, call.producers, strict=True)):
            return Role.OPAQUE
        if module is None and not isinstance(next(iter(call.args), None), Tensor):
            return Role.OPAQUE
        if module is not None and is_meddled_with(module):
            return Role.OPAQUE
        blocks = {self._block[producer] for producer in call.producers}
        same_shape = all(x.shape == call.output.shape for x in inputs)
        if call.op in ADDS and len(inputs) == 2 and same_shape and len(blocks) == 1 and "alpha" not in call.kwargs:
            return Role.ADD
        if len(inputs) > 1:
            return Role.OPAQUE
        if isinstance(module, nn.Conv2d | nn.Linear):
            return Role.LAYER if self._is_plain_layer(call) else Role.OPAQUE
        if type(module) in {nn.BatchNorm2d, nn.BatchNorm1d, Shift}:
            return Role.NORM if self._is_plain_norm(module) and blocks == {1} else Role.OPAQUE
        if call.is_activation and same_shape and _is_same_for_all_channels(module):
            return Role.ELEMENTWISE
        if call.op in POOLS and call.output.shape[:2] == first.shape[:2]:
            return Role.POOL
        if call.op in PASSES and same_shape:
            return Role.PASS
        return Role.FLATTEN if _is_flatten(call) else Role.OPAQUE

    def _is_plain_layer(self, call: Call) -> bool:
        module = call.module
        plain = type(module) is nn.Linear or (type(module) is nn.Conv2d and module.groups == 1)
        dims = 2 if isinstance(module, nn.Linear) else 4
        return plain and call.inputs[0].dim() == dims and module is not None and self._is_its_own(module)

    def _is_plain_norm(self, module: nn.Module | None) -> bool:
        stored = isinstance(module, Shift) or getattr(module, "running_mean", None) is not None
        return module is not None and stored and self._is_its_own(module)

    def _is_its_own(self, module: nn.Module) -> bool:
        """Whether nobody else uses its parameters, and it is called once."""
        parameters = list(module.parameters(recurse=False))
        return self._times[module] == 1 and all(self._holders[id(p)] == 1 for p in parameters)

    # --- what is constant ------------------------------------------------------------------------------------------

    def _constant(self, call: Call) -> Tensor:
        before = [self.constant[producer] for producer in call.producers]
        match self.roles[call.index]:
            case Role.LAYER:
                return self._constant_of_layer(call)
            case Role.NORM:
                return _constant_of_norm(call.module, before[0])
            case Role.ELEMENTWISE:
                return _on_constant(call, before[0])
            case Role.POOL:
                return before[0] if _keeps_ones(call) else before[0].where(before[0] == 0, torch.nan)
            case Role.ADD:
                return before[0] + before[1]
            case Role.PASS | Role.FLATTEN:
                return before[0].clone()
            case Role.OPAQUE:
                return torch.full((self.channels(call.index),), torch.nan, dtype=torch.float64)

    def _constant_of_layer(self, call: Call) -> Tensor:
        weight, foldable = self.weight(call), self.foldable(call)
        varies = (weight != 0).any(2)[:, ~foldable].any(1)
        return self.folded(call, foldable).masked_fill(varies, torch.nan) + _bias(call.module)

    def folded(self, call: Call, channels: Tensor) -> Tensor:
        """What those of its input's channels that are foldable and among ``channels`` (boolean) add to each output of a
        layer."""
        constants = self.constant[call.producers[0]].where(self.foldable(call) & channels, 0.0)
        return self.weight(call).sum(2) @ constants

    # --- what is needed --------------------------------------------------------------------------------------------

    def _spread(self, masks: dict[int, Tensor]) -> None:
        """From the outputs that have to stay to the inputs, until there is nothing new; a network's residual channels
        need each other in circles."""
        layers = [call for call in reversed(self.calls) if self.roles[call.index] is Role.LAYER]
        reads = [((self.weight(call) != 0).any(2) & ~self.foldable(call)) for call in layers]
        grown = True
        while grown:
            grown = False
            for call, read in zip(layers, reads, strict=True):
                mask = masks[self._root(call.producers[0])]
                new = read[masks[self._root(call.index)]].any(0) & ~mask
                mask |= new
                grown |= bool(new.any())


def never_fired(model: nn.Module, batches: Sequence[Tensor]) -> dict[int, Tensor]:
    """For each call of an activation function: which features of its output are zero in all ``batches`` (boolean)."""
    silent: dict[int, Tensor] = {}

    def listen(call: Call) -> None:
        if call.is_activation and call.output.dim() > 1:
            with torch._C.DisableTorchFunction():  # pyright: ignore[reportPrivateUsage]  (not the network's)
                zero = (call.output.detach() == 0).transpose(0, 1).flatten(1).all(1).cpu()
                silent[call.index] = silent[call.index] & zero if call.index in silent else zero

    with evaluation_mode(model), torch.no_grad(), tap(model, listen):
        for x in batches:
            model(x.clone())
    return silent


def is_meddled_with(module: nn.Module) -> bool:
    """Whether something else has a hand in the module's calls: made weights, rounded outputs."""
    hooks = module._forward_pre_hooks or module._forward_hooks  # pyright: ignore[reportPrivateUsage]
    return bool(hooks) or has_made_weight(module)


def _is_exact(layer: nn.Module | None) -> bool:
    """Whether a constant input gives a constant output: no zeros are put around the image."""
    if not isinstance(layer, nn.Conv2d):
        return True
    padding = layer.padding
    return layer.padding_mode != "zeros" or (padding == "valid" if isinstance(padding, str) else not any(padding))


def _is_same_for_all_channels(module: nn.Module | None) -> bool:
    state = [] if module is None else [*module.parameters(), *module.buffers()]
    return all(value.numel() == 1 for value in state)


def _is_flatten(call: Call) -> bool:
    """From (N, C, H, W) to (N, C x H x W), whatever C is."""
    if call.output.dim() != 2 or call.output.shape[1] != call.inputs[0][0].numel():
        return False
    if call.op in {"view", "reshape"}:  # with the number of features written out it fits no other network
        return call.args[1:] in {(len(call.output), -1), ((len(call.output), -1),)}
    return call.op in {"Flatten", "flatten"}


def _bias(layer: nn.Module | None) -> Tensor | float:
    bias = getattr(layer, "bias", None)
    return 0.0 if bias is None else bias.detach().double().cpu()


def _constant_of_norm(norm: nn.Module | None, before: Tensor) -> Tensor:
    if isinstance(norm, Shift):
        return before + _bias(norm)
    assert isinstance(norm, nn.BatchNorm2d | nn.BatchNorm1d)
    assert norm.running_mean is not None and norm.running_var is not None  # noqa: PT018
    scaled = (before - norm.running_mean.double().cpu()) / (norm.running_var.double().cpu() + norm.eps).sqrt()
    if not norm.affine:
        return scaled
    weight = norm.weight.detach().double().cpu()
    return (scaled * weight).masked_fill(weight == 0, 0.0) + _bias(norm)


def _apply(call: Call, x: Tensor) -> Tensor:
    """What the call makes of other values."""
    with torch.no_grad():
        if call.module is not None:
            with evaluation_mode(call.module):
                return call.module(x)
        return getattr(F, call.op.rstrip("_"))(x, *call.args[1:], **call.kwargs)


def _on_constant(call: Call, before: Tensor) -> Tensor:
    """Each constant as the network itself would compute it."""
    known = before.isfinite()
    shape = (1, -1, 1, 1) if call.output.dim() == 4 else (1, -1)
    x = before.where(known, 0.0).to(call.output).view(shape)
    after = _apply(call, x).flatten().double().cpu()
    return after.where(known & after.isfinite(), torch.nan)


def _keeps_ones(call: Call) -> bool:
    """Whether a pool gives a constant for a constant: an average with padding does not."""
    return bool((_apply(call, torch.ones_like(call.inputs[0][:1, :1])) == 1).all())
