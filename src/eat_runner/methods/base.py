"""What a method is to the training: hooks, all of which do nothing here."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn

from eat_runner.config.hardware import HardwareConfig
from eat_runner.config.method import MethodConfig
from eat_runner.energy.budget import Budget
from eat_runner.energy.counts import Counts


class Progress(NamedTuple):
    """Where a training is. step: from 0, over all epochs."""

    step: int
    steps_per_epoch: int
    epochs: int

    @property
    def part(self) -> float:
        """From 0 at the first step to 1 at the last; 1 where there is but one."""
        last = self.steps_per_epoch * self.epochs - 1
        return self.step / last if last > 0 else 1.0


@dataclass(frozen=True)
class Trained:
    """A network after its training, for the stage in which methods change it once more.

    accuracy: of the network as it is, on the validation split (training images where none was cut). count: its counts
    on the first training images, unaugmented, as methods have ``foreseen`` them. split, images: name and size of what
    ``accuracy`` is of. looked_at, judged: the images of ``count``, and those of ``accuracy``, in batches as the network
    takes them.
    report: says in a few words how far a long stage is; it does not come back where somebody wants to stop.
    """

    model: nn.Module
    accuracy: Callable[[], float]
    count: Callable[[], Counts]
    split: str
    images: int
    looked_at: Callable[[], Iterable[Tensor]] = field(default=tuple)
    judged: Callable[[], Iterable[Tensor]] = field(default=tuple)
    report: Callable[[str], None] = field(default=lambda figures: None)


class Method:
    """One method of a run. A subclass overrides what it needs.

    config: of its group. hardware: the run's; a method that looks at its prices says so in ``reads_hardware`` of its
    config, and they become a part of the run's identity. budget: the run's, if it has one. wants_look: whether the
    network is to be looked at for it, before the training and after each epoch but the last. untrainable: no further
    run can train what it leaves.
    """

    wants_look = False
    untrainable = False

    def __init__(self, config: MethodConfig, hardware: HardwareConfig, budget: Budget | None = None):
        self.config, self.hardware, self.budget = config, hardware, budget

    def on_build(self, model: nn.Module) -> None:
        """The network has its weights and no optimiser yet: modules may be replaced. UserError where the method does
        not fit it."""

    def on_example(self, model: nn.Module, example_nchw: Tensor) -> None:
        """After ``on_build`` of all methods, with an image of the size that the network takes: how its calls hang
        together can be looked at. UserError where the method does not fit it."""

    def removable(self, counts: Counts) -> frozenset[str]:
        """The layers, by name, whose weights it may bring to zero: what a budget is measured against. counts: of the
        network before the training."""
        return frozenset()

    def foreseen(self, counts: Counts) -> Counts:
        """What the counts of a look would be behind the method's own ``after_training``, as far as that is known
        before: the looks that methods get are of the network that is measured in the end."""
        return counts

    def before_training(self, counts: Counts) -> None:
        """The first of the looks that ``after_epoch`` gets."""

    def before_step(self, progress: Progress) -> None:
        """In front of each step."""

    def numbers(self) -> AbstractContextManager[Any]:
        """What the forward pass of a training step computes in (fake quantisation)."""
        return nullcontext()

    def after_step(self, progress: Progress) -> None:
        """Right after each update of the weights."""

    def after_epoch(self, progress: Progress, counts: Counts) -> None:
        """A metered look at the first training images, unaugmented, as methods have ``foreseen`` it. progress: of the
        epoch's last step. Not after the last epoch: what follows it is ``after_training``."""

    def after_training(self, trained: Trained) -> None:
        """The stage between training and measurement: the same network must come out where it is done again."""

    def state(self) -> dict[str, Any]:
        """What a resumed training needs to go on beside the weights: tensors and plain values."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` was taken."""

    def changes(self) -> dict[str, Any]:
        """What it did to the network, as plain values for the record (thresholds, bits, shapes of layers)."""
        return {}

    @classmethod
    def restore(cls, model: nn.Module, changes: Mapping[str, Any]) -> None:
        """Give a freshly built network the structure that ``changes`` tells of; its weights are loaded afterwards."""
