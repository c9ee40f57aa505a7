"""The training step: forward, loss, backward, update. The loop makes it, and the benchmark times this very one."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from eat_runner.methods.base import Method, Progress
from eat_runner.penalties.base import Penalty

# (x_nchw, logits, labels) -> what is added to the cross-entropy, a scalar with gradient (a teacher's, for instance)
Term = Callable[[Tensor, Tensor, Tensor], Tensor]


class StepResult(NamedTuple):
    """cross_entropy: of the batch. logits: (batch size, classes). penalty: None where its value was not wanted. All
    detached."""

    cross_entropy: Tensor
    logits: Tensor
    penalty: Tensor | None


@dataclass(kw_only=True)
class Step:
    """What a step is made of. forward: the network, compiled or not. penalty: attached to it (inside its context).
    autocast: what the forward pass computes in; methods may add to it (fake quantisation). terms: of the loss, beside
    the cross-entropy. weight: of the whole loss, where several processes have parts of a batch that differ in size."""

    forward: Callable[[Tensor], Tensor]
    optimizer: torch.optim.Optimizer
    penalty: Penalty
    methods: Sequence[Method] = ()
    terms: Sequence[Term] = ()
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    weight: float = 1.0

    def __call__(
        self, x_nchw: Tensor, labels: Tensor, lambda_: float, progress: Progress, value: bool = False
    ) -> StepResult:
        """One step of SGD on cross-entropy + terms + lambda x penalty (arXiv 2307.00368, Eq. 3).

        labels: (batch size,), class numbers. value: whether the penalty's value is wanted.
        """
        for method in self.methods:
            method.before_step(progress)
        with self._numbers():
            logits = self.forward(x_nchw)
            loss = cross_entropy = F.cross_entropy(logits, labels)
            for term in self.terms:
                loss = loss + term(x_nchw, logits, labels)
        if self.weight != 1.0:
            loss, lambda_ = self.weight * loss, self.weight * lambda_
        self.optimizer.zero_grad(set_to_none=True)
        penalty = self.penalty.backward(loss, lambda_, len(labels), value)
        self.optimizer.step()
        for method in self.methods:
            method.after_step(progress)
        return StepResult(cross_entropy.detach(), logits.detach(), penalty)

    def _numbers(self) -> AbstractContextManager[Any]:
        if not self.methods:
            return self.autocast()
        stack = ExitStack()
        stack.enter_context(self.autocast())
        for method in self.methods:
            stack.enter_context(method.numbers())
        return stack
