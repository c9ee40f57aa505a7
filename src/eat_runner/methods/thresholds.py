"""Thresholds: after the training, ReLU outputs at or below a threshold become zero, where that saves the most energy
for the accuracy that it costs."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eat_runner.config.hardware import HardwareConfig
from eat_runner.config.thresholds import ThresholdsConfig
from eat_runner.energy.budget import Budget
from eat_runner.energy.rules import RULES
from eat_runner.energy.rules.base import share
from eat_runner.errors import UserError
from eat_runner.methods.base import Method, Trained
from eat_runner.taps import looking

SHARES = (0.25, 0.5, 0.75, 0.9)  # of a ReLU's positive outputs: the steps in which its threshold rises
MEASUREMENTS = 5  # of the network, for each ReLU, at most
SAMPLED = 10_000  # positive outputs of a call, at most, that thresholds are taken from


class FATReLU(nn.ReLU):
    """x where it is above ``threshold``, else 0 (Kurtz et al., ICML 2020; arXiv 2402.13516). The gradient passes where
    x does. threshold: a buffer of one value."""

    threshold: Tensor

    def __init__(self, threshold: float = 0.0, inplace: bool = False):
        super().__init__(inplace)
        self.register_buffer("threshold", torch.tensor(threshold))

    def forward(self, input: Tensor) -> Tensor:
        if input.device.type == "cpu" and not torch.compiler.is_compiling():  # tens of times faster there
            return F.threshold(input, self.threshold.item(), 0.0, self.inplace)
        zeros = input <= self.threshold
        return input.masked_fill_(zeros, 0.0) if self.inplace else input.masked_fill(zeros, 0.0)


def set_threshold(relu: nn.ReLU, threshold: Tensor | None) -> None:
    """Make it a FATReLU, where it stands, so that its hooks stay; None: a ReLU again."""
    relu.__class__ = nn.ReLU if threshold is None else FATReLU
    if hasattr(relu, "threshold"):
        del relu.threshold
    if threshold is not None:
        relu.register_buffer("threshold", threshold)


def relus_of(model: nn.Module) -> dict[str, nn.ReLU]:
    """The modules that can have a threshold, by their paths."""
    modules: Iterable[tuple[str, nn.Module]] = model.named_modules()
    return {name: m for name, m in modules if isinstance(m, nn.ReLU) and type(m) in (nn.ReLU, FATReLU)}


class Measured(NamedTuple):
    """A network's right answers on the split that accuracy is judged by, and its energy on the look, in pJ per image
    (in multiply-accumulates where prices are relative)."""

    correct: int
    energy_pj: float


def choose_steps(
    steps: Sequence[int], start: Measured, measure: Callable[[Sequence[int]], Measured], least: int, limit: int
) -> list[int]:
    """How many of its ``steps`` each layer goes: greedily the step that saves the most energy for each right answer
    that it loses (and one more, since many lose none), while ``least`` right answers are left.

    start: measured before any step. measure: the network that has gone so many steps, at most ``limit`` times. What
    was measured before others went on is taken for a promise, and measured again before it is kept.
    """
    taken = [0] * len(steps)
    following = [1] * len(steps)
    promised = {layer: math.inf for layer, n in enumerate(steps) if n}
    now, fresh = start, dict[int, Measured]()
    while promised:
        layer = max(promised, key=promised.__getitem__)
        if layer in fresh:
            taken[layer], now = following[layer], fresh[layer]
            fresh.clear()
            following[layer] += 1
        elif limit > 0:
            limit -= 1
            then = measure([*taken[:layer], following[layer], *taken[layer + 1 :]])
            saved = now.energy_pj - then.energy_pj
            if then.correct < least:
                following[layer] = steps[layer] + 1
            elif saved <= 0:  # as where a tensor is stored dense until more of it is zero
                following[layer] += 1
            else:
                promised[layer] = saved / (max(now.correct - then.correct, 0) + 1)
                fresh[layer] = then
        else:
            break
        if following[layer] > steps[layer]:
            del promised[layer]
    return taken


def may_lose(allow: float, images: int) -> int:
    """Right answers that make up at most ``allow`` points of the accuracy on so many images, as it was written."""
    return math.floor(Fraction(str(allow)) * images / 100)


class Thresholds(Method):
    """Chooses after the training. The network never loses more accuracy than allowed, nor gains energy: both are
    measured on the network that is kept, and it stays as it was where they do not hold."""

    def __init__(self, config: ThresholdsConfig, hardware: HardwareConfig, budget: Budget | None = None):
        super().__init__(config, hardware, budget)
        self.allow = config.allow
        self.done: dict[str, Any] = {"thresholds": {}}

    def on_build(self, model: nn.Module) -> None:
        if not relus_of(model):
            raise UserError(
                "thresholds: the network has no module nn.ReLU, and nothing else can be given a threshold: choose "
                "another network, or leave thresholds out"
            )

    def after_training(self, trained: Trained) -> None:
        """Raises UserError where the hardware cannot price the network's counts."""
        ladders = self._ladders(trained)
        relus = list(ladders)
        limit, measured = MEASUREMENTS * len(relus), 0

        def at(taken: Sequence[int]) -> Measured:
            for relu, step in zip(relus, taken, strict=True):
                set_threshold(relu, ladders[relu][step])
            return self._measure(trained)

        def report(taken: Sequence[int]) -> Measured:
            nonlocal measured
            trained.report(f"thresholds: measured {measured} times, at most {limit}")
            measured += 1
            return at(taken)

        start = [0] * len(relus)
        before = at(start)
        least = before.correct - may_lose(self.allow, trained.images)
        taken = choose_steps([len(ladders[relu]) - 1 for relu in relus], before, report, least, limit)
        after = at(taken)
        if after.correct < least or after.energy_pj > before.energy_pj:  # on a device that rounds as it likes
            taken, after = start, at(start)
        names = {relu: name for name, relu in relus_of(trained.model).items()}
        moved = [relu for relu, step in zip(relus, taken, strict=True) if step]
        self.done = {
            "thresholds": {names[relu]: relu.get_buffer("threshold").item() for relu in moved},
            "split": trained.split,
            "accuracy": [before.correct / trained.images, after.correct / trained.images],
            "energy": share(after.energy_pj, before.energy_pj),
        }

    def changes(self) -> dict[str, Any]:
        """The thresholds by module; accuracy before and after, and on which split; the share of the energy on the look
        that is left."""
        return self.done

    @classmethod
    def restore(cls, model: nn.Module, changes: Mapping[str, Any]) -> None:
        relus = relus_of(model)
        for name, threshold in changes["thresholds"].items():
            if name in relus:
                set_threshold(relus[name], torch.tensor(threshold))

    def _measure(self, trained: Trained) -> Measured:
        report = RULES[self.hardware.rule].price(trained.count(), self.hardware)
        correct = round(trained.accuracy() * trained.images)
        return Measured(correct, sum(layer.energy_pj for layer in report.layers))

    def _ladders(self, trained: Trained) -> dict[nn.ReLU, list[Tensor | None]]:
        """For each ReLU its threshold as it is and those that it may rise to."""
        outputs: dict[nn.ReLU, list[Tensor]] = {}

        def sample(relu: nn.ReLU, inputs: Any, output: Tensor) -> None:
            positive = output[output > 0]
            outputs.setdefault(relu, []).append(positive[:: max(1, -(-len(positive) // SAMPLED))])

        with ExitStack() as stack:
            for relu in relus_of(trained.model).values():
                stack.callback(relu.register_forward_hook(sample).remove)
            stack.enter_context(looking(trained.model))
            for x_nchw in trained.looked_at():
                trained.model(x_nchw)
        return {
            relu: [relu.threshold if isinstance(relu, FATReLU) else None, *_quantiles(torch.cat(found))]
            for relu, found in outputs.items()
        }


def _quantiles(positive: Tensor) -> list[Tensor]:
    """The values below or at which SHARES of them lie, each once."""
    if not len(positive):
        return []
    ordered = positive.sort().values
    return list(torch.unique(ordered[[math.ceil(share * len(ordered)) - 1 for share in SHARES]]))
