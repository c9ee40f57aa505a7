"""What several tests need: a method, as somebody would add it, and a training with stops in between."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eat_runner import run
from eat_runner.config.groups import Group
from eat_runner.config.method import MethodConfig
from eat_runner.methods.base import Method, Progress, Trained
from eat_runner.train.checkpoint import pack, unpack
from eat_runner.train.loop import Trainer


@dataclass(kw_only=True, slots=True)
class MaskConfig(MethodConfig):
    """threshold: weights below it are masked; prices: whether the method says that it reads the hardware."""

    threshold: float = 0.05
    prices: bool = False

    @property
    def reads_hardware(self) -> bool:
        return self.prices


class Clip(nn.Module):
    """A ReLU with a limit, which is a buffer: weights of a network with it do not fit one without."""

    def __init__(self, limit: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("limit", torch.tensor(limit))
        self.clip = nn.Hardtanh(0.0, limit)

    def forward(self, x: Tensor) -> Tensor:
        return self.clip(x)


class Mask(Method):
    """Keeps convolutions' small weights at zero from the first step on; after the training the last ReLU becomes a Clip
    at as many as it has taken looks."""

    wants_look = True

    def on_build(self, model: nn.Module) -> None:
        self.model = model
        convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
        self.masks = [(m.weight.detach().abs() >= self.config.threshold) for m in convolutions]  # type: ignore
        self.weights = [m.weight for m in convolutions]
        self.heard: list[Any] = []
        self.looks = 0
        self._apply()

    def before_training(self, counts: Any) -> None:
        self.heard.append(("first look", 0, counts.images))

    def before_step(self, progress: Progress) -> None:
        self.heard.append(("before", progress.step, self.kept()))

    def after_step(self, progress: Progress) -> None:
        self.heard.append(("after", progress.step, self.kept()))
        self._apply()

    def after_epoch(self, progress: Progress, counts: Any) -> None:
        self.heard.append(("look", progress.step, counts.images))
        self.looks += 1

    def after_training(self, trained: Trained) -> None:
        self.limit = 10.0 * (self.looks + 1)
        self.accuracy_before = trained.accuracy()
        self.restore(trained.model, {"limit": self.limit})

    def state(self) -> dict[str, Any]:
        return {"masks": self.masks, "looks": self.looks}

    def load_state(self, state: dict[str, Any]) -> None:
        self.masks, self.looks = state["masks"], state["looks"]

    def changes(self) -> dict[str, Any]:
        return {"limit": getattr(self, "limit", None)}

    @classmethod
    def restore(cls, model: nn.Module, changes: Any) -> None:
        parents = [(m, n) for m in model.modules() for n, c in m.named_children() if isinstance(c, nn.ReLU)]
        parent, name = parents[-1]
        setattr(parent, name, Clip(changes["limit"]))

    def kept(self) -> bool:
        """Whether all that is masked is zero."""
        return all(bool((w[~m] == 0).all()) for w, m in zip(self.weights, self.masks, strict=True))

    def _apply(self) -> None:
        with torch.no_grad():
            for weight, mask in zip(self.weights, self.masks, strict=True):
                weight.mul_(mask)


GROUP = Group(schemas={"mask": MaskConfig}, about="masks small weights", method=True)


def trained(config: Any, *stops: int) -> Trainer:
    """The trainer at the end of a training that was stopped after so many steps each time, and went on in a fresh one
    from its checkpoint."""
    state: dict[str, Any] | None = None
    for steps in stops:
        state = _part(config, state, steps).state()
    return _part(config, state, 10**9)


def _part(config: Any, state: dict[str, Any] | None, steps: int) -> Trainer:
    trainer = run.locate_and_build(config).trainer()
    if state is not None:
        trainer.load_state(unpack(pack(state)))
    left = iter(range(steps))
    for _ in trainer.epochs(lambda: next(left, None) is None, lambda done, figures: None):
        pass
    return trainer
