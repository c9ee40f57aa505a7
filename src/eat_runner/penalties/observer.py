"""The penalty of a network while it trains: what its scope sees, summed call by call in the same pass."""

import math
import random
import sys
import weakref
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils.checkpoint import CheckpointFunction

from eat_runner.config import PenaltyConfig
from eat_runner.config.hardware import HardwareConfig
from eat_runner.energy.counts import Counts
from eat_runner.errors import UserError, one_line
from eat_runner.penalties import build_surrogate
from eat_runner.penalties.base import InBackward, Penalty
from eat_runner.penalties.in_backward import Addition, Kept, Rows, Values, part, penalise
from eat_runner.penalties.weighting import LayerMean, build_weighting, numbered
from eat_runner.taps import Call, looking, overwritten_calls, refuse_opaque, tap, tensors_in, writes

NOT_TAKEN = torch.zeros(())  # the sum of an activation that nobody has asked for yet


@dataclass(slots=True)
class _Seen:
    """A penalised output of the pass that was just made.

    rows: which of it are penalised, for ``scale`` times as many. output: itself. kept: its values, until backward has
    used them. node: of autograd, that made it. addition: to its gradient. Without ``in_backward`` there is a reference
    to it alone, and the version that it had.
    """

    name: str
    elements: int
    rows: Rows = ...
    scale: float = 1.0
    output: Tensor | None = None
    kept: Kept | None = None
    node: Node | None = None
    addition: Addition | None = None
    reference: weakref.ref[Tensor] | None = None
    version: int = 0

    @property
    def is_lost(self) -> bool:
        """Whether it was overwritten, though it was to be left as it is."""
        x = self.reference() if self.reference is not None else None
        return (x is not None and x._version != self.version) or (self.kept is not None and self.kept.is_lost)


class Observer(Penalty):
    """The penalty that ``config`` names, on a network. Inside it, after each forward pass with gradients,

    ``observer.backward(cross_entropy, lambda_, batch_size)`` makes the gradients of cross-entropy + lambda x penalty.
    Where ``in_backward`` is on and the penalty can, they are added while backward flows by, which is faster and needs
    eager mode; else the penalty becomes a part of the loss. For a loss of your own, without ``in_backward``,
    ``observer.collect(batch_size)`` is the penalty with gradient.
    Passes without gradients are not observed, and the network's own outputs are never changed. What backward computes
    a second time (torch.utils.checkpoint) is no second call. Outputs that need no gradient (frozen layers), and those
    that the loss does not depend on, are penalised like the others. Attach it before compiling the network.
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
        UserError: the scope matches nothing, an unknown penalty or weighting, a network that nobody can look into."""
        self.model, self.config = model, config
        self.parameters = sum(p.numel() for p in model.parameters())
        self.surrogate = build_surrogate(config)
        self.weighting = build_weighting(config.weighting, hardware)
        in_backward = in_backward and isinstance(self.surrogate, InBackward)
        self.in_backward = self.surrogate if in_backward and isinstance(self.surrogate, InBackward) else None
        refuse_opaque(model, compiled=False)
        matched = self._matched(example)
        if not matched:
            raise UserError(
                f"penalty.scope={config.scope} matches nothing in this network: use penalty.scope=leaf_modules"
            )
        self.functional = any(call.module is None for call in matched)
        self.modules = {call.module for call in matched if call.module is not None}
        self.overwritten: frozenset[tuple[str, int]] = frozenset()
        if self.in_backward is None:  # else it is seen when it happens
            self.overwritten = overwritten_calls(model, example, self.functional, modules=self.modules)
        self.writes = writes(self._before_write)
        self.watching = False  # whether ``writes`` is active
        self.observing = False  # a pass that began with gradients
        self.images = 0  # of the pass; only where some of them are penalised for all
        self.attached = ExitStack()
        self._forget()

    def __enter__(self) -> Self:
        looking = tap(self.model, self._observe, self.functional, modules=self.modules)
        self.attached.enter_context(looking)
        self.attached.callback(self.model.register_forward_pre_hook(self._start).remove)
        if self.in_backward is not None:
            self.attached.callback(self.model.register_forward_hook(self._end, always_call=True).remove)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.attached.close()

    def rehearse(self, example: Tensor) -> None:
        """One training pass over ``example`` and its way back, eagerly, for what nothing else shows; network, gradients
        and random numbers are as before. UserError, by name, where the penalty cannot be taken."""
        gradients = [(p, p.grad) for p in self.model.parameters()]
        buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        modes = [(module, module.training) for module in self.model.modules()]
        devices = [example.device] if example.is_cuda else []
        weighting, self.weighting = self.weighting, LayerMean()  # another may need a look first
        numbers = random.getstate(), np.random.get_state()
        try:
            with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices), self:
                self.model.train()
                outputs = [x for x in tensors_in(self.model(example.clone())) if x.is_floating_point()]
                loss = torch.stack([x.sum() for x in outputs]).sum()
                if loss.requires_grad:
                    self.backward(loss, 1.0, len(example), value=False)
        finally:
            self.weighting = weighting
            random.setstate(numbers[0])
            np.random.set_state(numbers[1])
            for p, gradient in gradients:
                p.grad = gradient
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
            for module, training in modes:
                module.training = training

    def backward(self, loss: Tensor, lambda_: float, batch_size: int, value: bool = True) -> Tensor | None:
        if self.in_backward is None:
            penalty = self.collect(batch_size)  # which notes the largest, too
            (loss + lambda_ * penalty).backward()
            return penalty.detach() if value else None
        self.factors = self._factors(batch_size)
        self.lambda_, self.wants_value = lambda_, value
        self._refuse_lost()
        roots = self._unreached(loss)
        for k, seen in enumerate(self.seen):
            seen.output = seen.node = None
            if value and seen.kept is not None and seen.addition is None:
                self.sums[k] = self._sum(seen.kept, seen)
        self.in_memory.clear()
        # backward comes by the others, too, with nothing in its hands
        torch.autograd.backward([loss, *roots], [None, *map(torch.zeros_like, roots)])
        self._refuse_untaken()
        sums, factors = self.sums, self.factors
        if value:
            self.largest = _largest([seen.elements for seen in self.seen], factors)
        self._forget()
        return _weighted(sums, factors) if value else None

    def collect(self, batch_size: int) -> Tensor:
        """The penalty of the pass that was just made, a float32 scalar with gradient; forgets the pass. UserError where
        an output was overwritten that is not when the network is evaluated."""
        sums, factors = self.sums, self._factors(batch_size)
        self._refuse_lost()
        self.largest = _largest([seen.elements for seen in self.seen], factors)
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
        self.seen: list[_Seen] = []
        self.times: Counter[str] = Counter()
        self.factors: Sequence[float | Tensor] = []
        self.lambda_, self.wants_value = 1.0, True
        self.in_memory: dict[int, list[Kept]] = {}  # by where the values lie
        self.awaited: dict[Any, deque[int]] = defaultdict(deque)  # by checkpoint: outputs that backward makes again

    def _factors(self, batch_size: int) -> Sequence[float | Tensor]:
        if not self.seen:
            raise UserError("penalty.scope matches no output of this network: use penalty.scope=leaf_modules")
        outputs = numbered([seen.name for seen in self.seen], [seen.elements for seen in self.seen])
        return self.weighting.factors(outputs, batch_size, self.parameters)

    # --- what is penalised -----------------------------------------------------------------------------------------

    def _in_scope(self, call: Call) -> bool:
        if self.config.scope == "activations":
            return call.is_activation and not call.is_constant
        return call.module is not None and not isinstance(call.module, _DROPOUT)

    def _matched(self, example: Tensor) -> list[Call]:
        """Without the modules that see nothing of an image."""
        traced: list[Call] = []
        plain: list[Call] = []
        with (
            looking(self.model),
            tap(self.model, traced.append),
            tap(self.model, plain.append, functional=False),
        ):
            self.model(example)
        if self.config.scope == "activations":
            return [call for call in traced if self._in_scope(call)]
        of_images = {call.module for call in traced if not call.is_constant}
        constant = {call.module for call in traced} - of_images
        return [call for call in plain if self._in_scope(call) and call.module not in constant]

    # --- the forward pass ------------------------------------------------------------------------------------------

    def _start(self, module: nn.Module, args: Any) -> None:
        if self.config.sample < 1:
            self.images = len(next(iter(tensors_in(args))))
        if torch.compiler.is_compiling():
            return
        self.observing = torch.is_grad_enabled()
        if self.observing and self.in_backward is not None and not self.watching:
            self.writes.__enter__()
            self.watching = True

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        if self.watching:
            self.writes.__exit__(None, None, None)
            self.watching = False

    def _observe(self, call: Call) -> None:
        if not self._in_scope(call):
            return
        if torch.compiler.is_compiling():
            if torch.is_grad_enabled():
                self._put_into_loss(call)
        elif torch._C._current_graph_task_id() != -1:  # pyright: ignore[reportPrivateUsage]  (backward is under way)
            self._observe_again(call)
        elif self.observing:
            checkpoints = [] if torch.is_grad_enabled() else list(_checkpoints())
            if checkpoints and any(checkpoints[-1].needs_input_grad):  # the outermost one is computed again
                self._await(call, checkpoints[-1])
            elif self.in_backward is None:
                self._put_into_loss(call)
            else:
                with torch._C.DisableTorchFunction():  # pyright: ignore[reportPrivateUsage]  (else ``writes`` sees it)
                    self._keep(call)

    def _put_into_loss(self, call: Call) -> None:
        place = call.name, self.times[call.name]
        self.times[call.name] += 1
        x, seen = call.output, self._new(call)
        if place in self.overwritten:
            x = x.clone()
        elif not torch.compiler.is_compiling():
            seen.reference, seen.version = weakref.ref(x), x._version
        self.sums.append(self._sum(lambda rows: part(x, rows), seen))
        self.seen.append(seen)

    def _new(self, call: Call) -> _Seen:
        """Of an output that has the batch first, the sample is its first images: batches are in random order."""
        x = call.output
        if self.config.sample == 1 or x.dim() == 0 or len(x) != self.images:
            return _Seen(call.name, x.numel())
        many = math.ceil(self.config.sample * self.images)
        return _Seen(call.name, x.numel(), slice(0, many), self.images / many)

    def _sum(self, values: Values, seen: _Seen) -> Tensor:
        total = self.surrogate(values(seen.rows))
        return total if seen.rows is ... else total * seen.scale

    def _keep(self, call: Call) -> None:
        k = len(self.seen)
        self.seen.append(self._new(call))
        self.sums.append(NOT_TAKEN)
        self._penalise_in_backward(k, call)

    def _penalise_in_backward(self, k: int, call: Call) -> None:
        assert self.in_backward is not None
        x, seen = call.output, self.seen[k]
        kept = seen.kept = Kept(call, seen.rows)
        self.in_memory.setdefault(x.untyped_storage().data_ptr(), []).append(kept)
        if not x.requires_grad:
            return
        seen.output, node, before = x, x.grad_fn, None
        last = self.seen[k - 1] if k else None
        if node is not None and last is not None and last.node is not None:
            # not by the tensors: what is changed in place stays the same tensor
            made = last.node
            before = last.addition if any(parent is made for parent, _ in node.next_functions) else None
        seen.node = node
        seen.addition = penalise(x, self.in_backward, self._weight(k), kept, before, seen.rows)

    def _weight(self, k: int) -> Callable[[Values], float]:
        """The factor of an activation's gradient; asked for it, the observer takes the penalty's value too."""

        def weight(values: Values) -> float:
            seen = self.seen[k]
            if self.wants_value:
                self.sums[k] = self._sum(values, seen)
            seen.kept = None
            return self.lambda_ * float(self.factors[k]) * seen.scale

        return weight

    def _before_write(self, x: Tensor) -> None:
        for kept in self.in_memory.pop(x.untyped_storage().data_ptr(), ()):
            kept.protect()

    # --- the way back ----------------------------------------------------------------------------------------------

    def _unreached(self, loss: Tensor) -> list[Tensor]:
        """The penalised outputs that the loss does not depend on, as an auxiliary head's."""
        reached = _nodes_behind(loss)
        leaves = {id(node.variable) for node in reached if hasattr(node, "variable")} if reached else set[int]()  # pyright: ignore
        return [
            seen.output
            for seen in self.seen
            if seen.output is not None
            and (seen.node not in reached if seen.node is not None else id(seen.output) not in leaves)
        ]

    def _refuse_lost(self) -> None:
        for seen in self.seen:
            if seen.is_lost:
                self._forget()
                raise UserError(
                    f"what {one_line(seen.name)} returns is overwritten in training before its penalty was taken: "
                    "build what follows it with inplace=False"
                )

    def _refuse_untaken(self) -> None:
        left = [k for awaited in self.awaited.values() for k in awaited]
        left += [k for k, seen in enumerate(self.seen) if seen.addition is not None and not seen.addition.taken]
        if left:
            name = one_line(self.seen[left[0]].name)
            self._forget()
            raise UserError(
                f"the penalty's gradient cannot be added at {name}, where backward does not come by: use "
                "trainer.compile=on, which makes the penalty a part of the loss"
            )

    # --- what is computed twice (torch.utils.checkpoint) -------------------------------------------------------------

    def _await(self, call: Call, checkpoint: Any) -> None:
        """A checkpoint of the reentrant kind computes without gradients now, and once more in backward, with them."""
        if self.in_backward is None:
            self._forget()
            raise UserError(
                f"{one_line(call.name)} is in a reentrant checkpoint, where the loss cannot hold its penalty: use "
                "torch.utils.checkpoint with use_reentrant=False"
            )
        self.awaited[checkpoint].append(len(self.seen))
        self.seen.append(self._new(call))
        self.sums.append(NOT_TAKEN)

    def _observe_again(self, call: Call) -> None:
        if self.in_backward is None:
            # autograd wants to save the same tensors as it did the first time
            self.surrogate(call.output.clone())
            return
        inner, outer = [*_checkpoints(), None, None][:2]
        if inner is None or (not self.awaited[inner] and not (outer is not None and self.awaited[outer])):
            return  # of the other kind, whose first pass was observed
        if torch.is_grad_enabled():
            k = self.awaited[inner].popleft()
            self._penalise_in_backward(k, call)
            if (kept := self.seen[k].kept) is not None:
                kept.protect()  # nobody sees here what works in place
        else:  # a checkpoint within a checkpoint, which is to be computed once more
            self.awaited[inner].append(self.awaited[outer].popleft())


def _checkpoints() -> Iterator[Any]:
    """The reentrant checkpoints that are running, innermost first: autograd's contexts."""
    codes = (CheckpointFunction.forward.__code__, CheckpointFunction.backward.__code__)
    frame = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
    while frame is not None:
        if frame.f_code in codes:
            yield frame.f_locals["ctx"]
        frame = frame.f_back


def _nodes_behind(loss: Tensor) -> set[Node]:
    """All nodes of autograd that backward from ``loss`` comes by."""
    reached: set[Node] = set()
    waiting = [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in reached:
            reached.add(node)
            waiting += [parent for parent, _ in node.next_functions]
    return reached


def _largest(elements: Sequence[int], factors: Sequence[float | Tensor]) -> float | Tensor:
    return sum((count * factor for count, factor in zip(elements, factors, strict=True)), start=0.0)


def _weighted(sums: Sequence[Tensor], factors: Sequence[float | Tensor]) -> Tensor:
    return torch.stack([total * factor for total, factor in zip(sums, factors, strict=True)]).sum()


# the code that the paper builds on leaves dropout out
_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
