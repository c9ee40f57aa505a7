"""What a penalty is to the training, and what it is made of."""

from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from eat_runner.energy.counts import Counts

# (gradient, x, out): into ``out``, which may be ``gradient`` itself, the gradient and what the surrogate adds to it
Adder = Callable[[Tensor, Tensor, Tensor], None]


class Surrogate(Protocol):
    """A penalty of one activation: the sum over all of its elements, a scalar with gradient."""

    def __call__(self, x: Tensor) -> Tensor: ...


@runtime_checkable
class InBackward(Protocol):
    """A surrogate, elementwise and with derivative 0 at 0, whose gradient can be added while backward flows by
    (penalties/in_backward.py): the fast way to train with it in eager mode."""

    def __call__(self, x: Tensor) -> Tensor: ...

    def adder(self, below: float, above: float) -> Adder:
        """Add to a gradient the surrogate's derivative at x: ``above`` times it where x > 0, ``below`` times elsewhere.

        The adder is called for one part of an activation after the other and may keep scratch memory between.
        """
        ...


class Penalty:
    """What training adds to the cross-entropy, times lambda; this one adds nothing, which is standard training.

    A context manager: inside it every forward pass with gradients is penalised.
    wants_look: whether ``look`` wants the counts of a few training images, before the training and after each epoch.
    largest: what a count of non-zeros would have been in the last pass whose value was wanted, if all had counted.
    """

    wants_look = False
    largest: float | Tensor = 1.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        pass

    def backward(self, loss: Tensor, lambda_: float, batch_size: int, value: bool = True) -> Tensor | None:
        """Gradients of loss + lambda x the penalty of the pass that was just made, which is forgotten then.

        loss: of that pass. value: whether the penalty itself is wanted; without it, this may be faster.
        Returns the penalty, a detached float32 scalar, if it is wanted and there is one.
        """
        loss.backward()
        return None

    def look(self, counts: Counts) -> None:
        """The network's counts as it is now, on the first training images, unaugmented."""

    def state(self) -> dict[str, Any]:
        """What a resumed training needs to go on: tensors and plain values."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` was taken."""


def widened(x: Tensor) -> Tensor:
    """x in float32, or in float64 if it is that."""
    return x if x.dtype == torch.float64 else x.to(torch.float32)
