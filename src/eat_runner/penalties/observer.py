"""The penalty of a network while it trains: what its scope sees, summed call by call in the same pass."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from eat_runner.config import PenaltyConfig
from eat_runner.config.hardware import HardwareConfig
from eat_runner.energy.counts import Counts
from eat_runner.errors import UserError
from eat_runner.penalties import build_surrogate
from eat_runner.penalties.base import InBackward, Penalty
from eat_runner.penalties.in_backward import Addition, Values, later, penalise
from eat_runner.penalties.weighting import build_weighting, numbered
from eat_runner.taps import Call, evaluation_mode, overwritten_calls, tap

NOT_TAKEN = torch.zeros(())  # the sum of an activation that backward has not reached


class Observer(Penalty):
    """The penalty that ``config`` names, on a network. Inside it, after each forward pass with gradients,

    ``observer.backward(cross_entropy, lambda_, batch_size)`` makes the gradients of cross-entropy + lambda x penalty.
    Where ``in_backward`` is on and the penalty can, they are added while backward flows by, which is faster and needs
    eager mode; else the penalty becomes a part of the loss. For a loss of your own, without ``in_backward``,
    ``observer.collect(batch_size)`` is the penalty with gradient.
    Passes without gradients are not observed, and the network's own outputs are never changed. Attach it before
    compiling the network.
    """

    def __init__(
        self,
        model: nn.Module,
        config: PenaltyConfig,
        example: Tensor,
        in_backward: bool = False,
        hardware: HardwareConfig | None = None,
    ):
        """example: a batch that the network takes (its values do not matter). in_backward: add the gradient on the way
        back instead of the penalty to the loss, where the penalty can. hardware: for weightings that know prices.
        UserError: the scope matches nothing, an unknown penalty or weighting."""
        self.model, self.config = model, config
        self.parameters = sum(p.numel() for p in model.parameters())
        self.surrogate = build_surrogate(config)
        self.weighting = build_weighting(config.weighting, hardware)
        in_backward = in_backward and isinstance(self.surrogate, InBackward)
        self.in_backward = self.surrogate if in_backward and isinstance(self.surrogate, InBackward) else None
        matched = self._matched(example)
        if not matched:
            raise UserError(
                f"penalty.scope={config.scope} matches nothing in this network: use penalty.scope=leaf_modules"
            )
        self.functional = any(call.module is None for call in matched)
        self.modules = {call.module for call in matched if call.module is not None}
        self.overwritten = overwritten_calls(model, example, self.functional, modules=self.modules)
        self.attached = ExitStack()
        self._forget()

    def __enter__(self) -> Self:
        looking = tap(self.model, self._observe, self.functional, modules=self.modules)
        self.attached.enter_context(looking)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.attached.close()

    def backward(self, loss: Tensor, lambda_: float, batch_size: int, value: bool = True) -> Tensor | None:
        if self.in_backward is None:
            penalty = self.collect(batch_size)  # which notes the largest, too
            (loss + lambda_ * penalty).backward()
            return penalty.detach() if value else None
        self.factors = self._factors(batch_size)
        self.before, self.lambda_, self.wants_value = None, lambda_, value
        loss.backward()
        sums, factors = self.sums, self.factors
        if value:
            self.largest = _largest(self.elements, factors)
        self._forget()
        return _weighted(sums, factors) if value else None

    def collect(self, batch_size: int) -> Tensor:
        """The penalty of the pass that was just made, a float32 scalar with gradient; forgets the pass."""
        sums, factors = self.sums, self._factors(batch_size)
        self.largest = _largest(self.elements, factors)
        self._forget()
        return _weighted(sums, factors)

    @property
    def wants_look(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.weighting.wants_look

    def look(self, counts: Counts) -> None:
        self.weighting.look(counts)

    def state(self) -> dict[str, Any]:
        return self.weighting.state()

    def load_state(self, state: dict[str, Any]) -> None:
        self.weighting.load_state(state)

    def _forget(self) -> None:
        self.sums: list[Tensor] = []
        self.elements: list[int] = []
        self.names: list[str] = []
        self.factors: Sequence[float | Tensor] = []
        self.lambda_, self.wants_value = 1.0, True
        self.before: tuple[Node, Addition] | None = None  # what made the activation that was penalised last

    def _factors(self, batch_size: int) -> Sequence[float | Tensor]:
        if not self.elements:
            raise UserError("penalty.scope matches no output of this network: use penalty.scope=leaf_modules")
        return self.weighting.factors(numbered(self.names, self.elements), batch_size, self.parameters)

    def _observe(self, call: Call) -> None:
        if torch.is_grad_enabled() and self._in_scope(call):
            overwritten = call.index in self.overwritten
            if self.in_backward is None:
                self.sums.append(self.surrogate(call.output.clone() if overwritten else call.output))
            else:
                self._penalise_in_backward(self.in_backward, call.output, later(call) if overwritten else None)
            self.elements.append(call.output.numel())
            self.names.append(call.name)

    def _penalise_in_backward(self, surrogate: InBackward, x: Tensor, values: Values | None) -> None:
        node, before = x.grad_fn, None
        if self.before is not None and node is not None:
            # not by the tensors: what is changed in place stays the same tensor
            made, addition = self.before
            before = addition if any(parent is made for parent, _ in node.next_functions) else None
        addition = penalise(x, surrogate, self._next_weight(), values, before)
        self.before = (node, addition) if node is not None else None

    def _next_weight(self) -> Callable[[Values], float]:
        """The factor of the next activation's gradient; asked for it, the observer takes the penalty's value too."""
        k = len(self.sums)
        self.sums.append(NOT_TAKEN)

        def weight(values: Values) -> float:
            if self.wants_value:
                self.sums[k] = self.surrogate(values(...))
            return self.lambda_ * float(self.factors[k])

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


def _largest(elements: Sequence[int], factors: Sequence[float | Tensor]) -> float | Tensor:
    return sum((count * factor for count, factor in zip(elements, factors, strict=True)), start=0.0)


def _weighted(sums: Sequence[Tensor], factors: Sequence[float | Tensor]) -> Tensor:
    return torch.stack([total * factor for total, factor in zip(sums, factors, strict=True)]).sum()


# the code that the paper builds on leaves dropout out
_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
