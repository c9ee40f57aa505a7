"""The penalty of a network while it trains: what its scope sees, summed call by call in the same pass."""

from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from eat_runner.config import PenaltyConfig
from eat_runner.errors import UserError
from eat_runner.penalties import IN_BACKWARD, PENALTIES, Share, Values, normalise, part, weights
from eat_runner.taps import Call, evaluation_mode, overwritten_calls, tap

NOT_TAKEN = torch.zeros(())  # the sum of an activation that backward has not reached


class Observer:
    """A context manager: inside it, every forward pass with gradients is penalised. Two ways to use it:

    ``loss = cross_entropy + lambda_ * observer.collect(images, parameters)`` after the forward pass, or, where
    ``in_backward`` is on, ``observer.weigh(lambda_, images, parameters)`` after the forward pass, backward through the
    cross-entropy alone, and then ``observer.value()``. The second gives the same gradients faster, in eager mode.
    Passes without gradients are not observed, and the network's own outputs are never changed. Attach it before
    compiling the network.
    """

    def __init__(self, model: nn.Module, config: PenaltyConfig, example: Tensor, in_backward: bool = False):
        """example: a batch that the network takes (its values do not matter). in_backward: add the gradient on the way
        back instead of the penalty to the loss, where the penalty can. UserError: the scope matches nothing."""
        self.model, self.config = model, config
        self.surrogate = PENALTIES[config.name]
        self.penalise = IN_BACKWARD.get(config.name) if in_backward else None
        matched = self._matched(example)
        if not matched:
            raise UserError(
                f"penalty.scope={config.scope} matches nothing in this network: use penalty.scope=leaf_modules"
            )
        self.functional = any(call.module is None for call in matched)
        self.modules = {call.module for call in matched if call.module is not None}
        self.overwritten = overwritten_calls(model, example, self.functional, modules=self.modules)
        self.sums: list[Tensor] = []
        self.elements: list[int] = []
        self.weights: list[float] = []
        self.scale = 1.0
        self.wants_value = True
        self.before: tuple[Node, Share] | None = None  # what made the activation that was penalised last
        self.attached = ExitStack()

    def __enter__(self) -> "Observer":
        looking = tap(self.model, self._observe, self.functional, modules=self.modules)
        self.attached.enter_context(looking)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.attached.close()

    def collect(self, images: int, parameters: int) -> Tensor:
        """The penalty of the pass that was just made, a float32 scalar with gradient; forgets the pass.

        images: in the batch. parameters: of the network. Formulas: penalties.normalise.
        """
        sums, elements = self.sums, self.elements
        self.sums, self.elements = [], []
        return normalise(sums, elements, images, parameters, self.config.weighting)

    def weigh(self, lambda_: float, images: int, parameters: int, value: bool = True) -> None:
        """Fix what backward will add: lambda_ times the penalty of the pass that was just made. value: whether the
        penalty itself is wanted too; without it, backward is faster."""
        self.weights = weights(self.elements, images, parameters, self.config.weighting)
        self.before = None
        self.scale, self.wants_value = lambda_, value

    def value(self) -> Tensor | None:
        """The penalty of the pass whose backward just ended, detached, if it was wanted; forgets the pass."""
        sums, self.sums, self.elements = self.sums, [], []
        return torch.stack([s * w for s, w in zip(sums, self.weights, strict=True)]).sum() if self.wants_value else None

    def _observe(self, call: Call) -> None:
        if torch.is_grad_enabled() and self._in_scope(call):
            overwritten = call.index in self.overwritten
            if self.penalise is None:
                self.sums.append(self.surrogate(call.output.clone() if overwritten else call.output, self.config.sigma))
            else:
                self._penalise_in_backward(call.output, _later(call) if overwritten else None)
            self.elements.append(call.output.numel())

    def _penalise_in_backward(self, x: Tensor, values: Values | None) -> None:
        assert self.penalise is not None
        node, before = x.grad_fn, None
        if self.before is not None and node is not None:
            # not by the tensors: what is changed in place stays the same tensor
            made, share = self.before
            before = share if any(parent is made for parent, _ in node.next_functions) else None
        share = self.penalise(x, self.config.sigma, self._next_weight(), values, before)
        self.before = (node, share) if node is not None else None

    def _next_weight(self) -> Callable[[Values], float]:
        """The factor of the next activation's gradient; asked for it, the observer takes the penalty's value too."""
        k = len(self.sums)
        self.sums.append(NOT_TAKEN)

        def weight(values: Values) -> float:
            if self.wants_value:
                self.sums[k] = self.surrogate(values(...), self.config.sigma)
            return self.scale * self.weights[k]

        return weight

    def _in_scope(self, call: Call) -> bool:
        if self.config.scope == "activations":
            return call.is_activation
        return call.module is not None and not isinstance(call.module, _DROPOUT)

    def _matched(self, example: Tensor) -> list[Call]:
        calls: list[Call] = []

        def keep(call: Call) -> None:
            if self._in_scope(call):
                calls.append(call)

        with evaluation_mode(self.model), torch.no_grad(), tap(self.model, keep):
            self.model(example)
        return calls


def _later(call: Call) -> Values:
    """Give the output of ``call`` when it has been overwritten: what a batch norm made is computed again, from the
    input that its own backward needs anyway; anything else was copied."""
    node, module = call.output.grad_fn, call.module
    on_cpu = node is not None and node.name() == "NativeBatchNormBackward0"
    if on_cpu and isinstance(module, nn.BatchNorm2d) and module.training and module.affine:
        mean, inverse_std = node._saved_result1, node._saved_result2  # pyright: ignore
        scale = module.weight.detach() * inverse_std
        shift = module.bias.detach() - mean * scale
        x = call.inputs[0].detach()
        return lambda rows: _channelwise(part(x, rows), scale, shift)
    copy = call.output.detach().clone()
    return lambda rows: part(copy, rows)


def _channelwise(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """x times scale plus shift, both of shape (channels,), for x of shape (images, channels, height, width).

    A batch norm does the same in twice the time (on a CPU). In channels_last, a line of the image is taken as one
    dimension: the inner loop over the channels alone would be short.
    """
    if not x.is_contiguous(memory_format=torch.channels_last):
        return torch.addcmul(shift[:, None, None], x, scale[:, None, None]).to(x.dtype)
    lines, width = x.permute(0, 2, 3, 1).flatten(2), x.shape[3]
    y = torch.addcmul(shift.repeat(width), lines, scale.repeat(width)).to(x.dtype)
    return y.unflatten(2, (width, -1)).permute(0, 3, 1, 2)


# the code that the paper builds on leaves dropout out
_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
