"""The training loop: epochs and state.

Everything random is seeded by (seed, epoch, step), so a trainer that is loaded from a checkpoint goes on bit for bit on
the same machine. Where torchrun started several processes (ranks.py), each has a trainer in the same state, and its
part of each batch.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eat_runner.config import ExperimentConfig, TrainerConfig
from eat_runner.config.hardware import PublishedHardware
from eat_runner.data import Dataset, ImageSet
from eat_runner.data.batches import evaluation_batches, steps_per_epoch, training_batches
from eat_runner.distributed import data_parallel, mean_over_all, same_everywhere, whole_batches
from eat_runner.energy.counts import Counts
from eat_runner.energy.estimate import estimate
from eat_runner.errors import UserError
from eat_runner.methods import foreseen
from eat_runner.methods.base import Method, Progress, Trained
from eat_runner.methods.masks import Held
from eat_runner.models import Network
from eat_runner.penalties.base import Penalty
from eat_runner.penalties.observer import Observer
from eat_runner.ranks import part_of, rank, weight_in, world_size
from eat_runner.train.ascent import Ascent
from eat_runner.train.evaluate import LOOK, LOOKED_AT, TRAIN, VALIDATION, Evaluation, evaluate_together, pixels_of
from eat_runner.train.history import EpochRow
from eat_runner.train.schedules import lambda_at, lr_at
from eat_runner.train.step import Step, StepResult
from eat_runner.train.strided import avoid_faulty_gradients
from eat_runner.train.teacher import Teacher

STEPS_BETWEEN_REPORTS = 10  # of the progress bar; reading a loss waits for the device
STEPS_BETWEEN_PENALTIES = 20  # whose value is taken for the record; its gradient is added in every step
PUBLISHED = PublishedHardware()
COMPILE_FROM_STEPS = 5_000  # compile=auto: a few times the steps after which compiling paid (docs/performance.md)


class Trainer:
    """A network on its way through the epochs.

    ``for row in trainer.epochs(...)`` trains an epoch, looks at the network, and hands out the whole row; ``state()``
    after any step is all that is needed to go on. Mean figures of an unfinished epoch are part of it.
    """

    def __init__(
        self,
        network: Network,
        dataset: Dataset,
        config: ExperimentConfig,
        device: torch.device,
        methods: Mapping[str, Method] | None = None,
        held: Held | None = None,
        teacher: Teacher | None = None,
    ):
        """methods: by config group, in the order in which they act; they have seen the network already (on_build).
        held: zeros that stay. teacher: whose answers are learnt, too."""
        self.network, self.dataset, self.config = network, dataset, config
        self.methods = dict(methods or {})
        self.held = held
        self.model = network.module.to(device)
        settings = config.trainer
        self.terms = () if teacher is None else (teacher,)
        for module in (self.model, *(term.network.to(device) for term in self.terms)):
            if settings.channels_last:
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if device.type == "cpu":
            avoid_faulty_gradients(self.model)
        self.pixels = pixels_of(network, dataset, device)
        self.steps = steps_per_epoch(len(dataset.train), settings.batch_size)
        batch_size = min(settings.batch_size, len(dataset.train))
        self.part, self.weight = part_of(batch_size), weight_in(batch_size)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
        )
        self.penalty = self._penalty()
        self.ascent = Ascent(config.schedule)
        self.epoch = 0  # of these, finished
        self.step = 0  # of these, done in the epoch that is under way
        exact = torch.float32 if device.type == "mps" else torch.float64  # mps has no float64
        self.sums = torch.zeros(3, device=device, dtype=exact)  # cross-entropy, penalty, correct answers
        self.history: list[EpochRow] = []
        self.seconds = 0.0
        self.validation: Evaluation | None = None  # of the trained network, once its last epoch was looked at

    @property
    def parameters(self) -> int:
        """Of the network as it is: a method may have made it smaller."""
        return sum(p.numel() for p in self.model.parameters())

    @property
    def diverged(self) -> bool:
        """True when the loss stopped being finite."""
        last = self.history[-1] if self.history else None
        return last is not None and not last.is_finite

    @property
    def done(self) -> bool:
        return self.diverged or self.epoch >= self.config.trainer.epochs

    @property
    def steps_done(self) -> int:
        return self.epoch * self.steps + self.step

    def epochs(self, stop: Callable[[], bool], report: Callable[[int, str], None]) -> Iterator[EpochRow]:
        """Train epoch by epoch; ends early, at a step, when ``stop()`` turns true.

        report: called every few steps with the number of steps done so far and a line of figures.
        """
        if self.done:
            return
        with whole_batches(), self.penalty:
            if self.steps_done == 0:
                self._look_for_who_wants_it(None)
            step = self._step()
            while not self.done:
                self._train_epoch(step, stop, report)
                if self.step < self.steps:
                    return
                self._finish_epoch()
                yield self.history[-1]

    def seconds_per_step(self, steps: int = 5) -> float:
        """Time of a training step, from a few that are made now; leaves the trainer trained by them."""
        marks: list[float] = []

        def enough() -> bool:
            marks.append(time.perf_counter())
            return len(marks) > steps + 1

        next(self.epochs(enough, lambda done, text: None), None)
        laps = [after - before for before, after in pairwise(marks)]
        return sorted(laps)[len(laps) // 2] if laps else 0.0

    def state(self) -> dict[str, Any]:
        """Everything to go on bit for bit: tensors and plain values only, so that it loads with weights_only=True."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "penalty": self.penalty.state(),
            "methods": {name: method.state() for name, method in self.methods.items()},
            "ascent": self.ascent.state(),
            "epoch": self.epoch,
            "step": self.step,
            "sums": self.sums,
            "seconds": self.seconds,
            "history": [asdict(row) for row in self.history],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` was taken. Raises KeyError or RuntimeError where it is of another network."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.penalty.load_state(state.get("penalty", {}))  # a checkpoint of the first version has none
        for name, method in self.methods.items():
            method.load_state(state["methods"][name])
        if "ascent" in state:  # an older checkpoint has none
            self.ascent.load_state(state["ascent"])
        self.epoch, self.step, self.seconds = state["epoch"], state["step"], state["seconds"]
        self.sums.copy_(state["sums"])
        self.history = [EpochRow(**row) for row in state["history"]]

    def change(self, report: Callable[[str], None] = lambda figures: None) -> None:
        """The stage after the training: each method changes the network once more. None of its looks counts then.
        report: as in ``Trained``."""
        trained = Trained(
            model=self.model,
            accuracy=self._accuracy,
            count=self._foreseen,
            split=VALIDATION if len(self.dataset.validation) else TRAIN,
            images=len(self._judged),
            looked_at=lambda: self._batches(self.dataset.train.first(LOOKED_AT)),
            judged=lambda: self._batches(self._judged),
            report=report,
        )
        for method in self.methods.values():
            method.after_training(trained)
            same_everywhere(self.model)
        if self.methods:
            self.validation = None

    def _foreseen(self) -> Counts:
        return foreseen(self.methods.values(), self.look())

    def look(self) -> Counts:
        """Counts of the network as it is, on the first training images, unaugmented."""
        images = self.dataset.train.first(LOOKED_AT)
        return self.evaluate(images, LOOK, floor=False).counts

    def _accuracy(self) -> float:
        return self.evaluate(self._judged, VALIDATION, floor=False).accuracy

    def evaluate(self, images: ImageSet, split: str, floor: bool = True) -> Evaluation:
        """The network as it is, as ``evaluate`` of evaluate.py does."""
        return evaluate_together(self.model, images, self.pixels, self.config.meter, split, floor)

    @property
    def _judged(self) -> ImageSet:
        """The validation split, or some training images where none was cut."""
        return self.dataset.validation if len(self.dataset.validation) else self.dataset.train.first(LOOKED_AT)

    def _batches(self, images: ImageSet) -> Iterator[Tensor]:
        """As the network takes them."""
        pixels, size = self.pixels, self.config.meter.batch_size
        batches = evaluation_batches(images, size, pixels.mean, pixels.std, pixels.device, pixels.channels)
        return (x_nchw for x_nchw, _ in batches)

    # --- parts of a training ---------------------------------------------------------------------------------------

    def _penalty(self) -> Penalty:
        if not (self.config.is_penalised and self.config.trainer.epochs):
            return Penalty()
        size = self.dataset.image_size
        example = torch.zeros(2, self.network.channels, size, size, device=self.pixels.device)
        if self.config.trainer.channels_last:
            example = example.contiguous(memory_format=torch.channels_last)
        in_backward = not self.compiled
        return Observer(self.model, self.config.penalty, example, in_backward, self.config.hardware)

    def _step(self) -> Step:
        return Step(
            forward=self._compile() if self.compiled else data_parallel(self.model),
            optimizer=self.optimizer,
            penalty=self.penalty,
            methods=tuple(self.methods.values()),
            terms=self.terms,
            autocast=self._autocast,
            weight=self.weight,
        )

    def _compile(self) -> Callable[[Tensor], Tensor]:
        torch.compiler.reset()  # a network compiled before looks the same to it where only the observer differs
        return torch.compile(self.model)

    def _autocast(self) -> AbstractContextManager[Any]:
        """bf16 where the configuration asks for it."""
        enabled = self.config.trainer.precision == "bf16"
        return torch.autocast(self.pixels.device.type, torch.bfloat16, enabled=enabled)

    @property
    def compiled(self) -> bool:
        """Whether torch.compile is used."""
        return is_compiled(self.config.trainer, len(self.dataset.train))

    # --- an epoch --------------------------------------------------------------------------------------------------

    def _train_epoch(self, step: Step, stop: Callable[[], bool], report: Callable[[int, str], None]) -> None:
        config, pixels = self.config, self.pixels
        self.model.train()
        started = time.perf_counter()
        for x_nchw, labels in training_batches(
            self.dataset.train,
            config.dataset,
            config.trainer.batch_size,
            pixels.mean,
            pixels.std,
            seed=config.seed,
            epoch=self.epoch,
            device=pixels.device,
            first_step=self.step,
            channels=pixels.channels,
            part=self.part,
        ):
            if stop():
                break
            torch.manual_seed(_step_seed(config.seed, self.epoch, self.step))  # dropout
            self._set_lr(lr_at(config.trainer, self.steps_done, self.steps))
            wanted = self.step % STEPS_BETWEEN_PENALTIES == 0
            made = step(x_nchw, labels, self.lambda_t_at(self.step), self._progress(self.step), wanted)
            if self.held is not None:
                self.held.apply()
            self._note(made, labels)
            self.step += 1
            if self.step % STEPS_BETWEEN_REPORTS == 0:
                report(self.steps_done, self._figures())
        self.seconds += time.perf_counter() - started

    def _note(self, made: StepResult, labels: Tensor) -> None:
        """Add a step's figures, over all processes' parts of the batch, to the epoch's."""
        figures = [made.cross_entropy, (made.logits.argmax(1) == labels).float().mean()]
        if made.penalty is not None:
            figures.append(made.penalty)
        cross_entropy, correct, *penalties = mean_over_all(figures, self.weight)
        self.sums[0] += cross_entropy
        self.sums[2] += correct
        for penalty in penalties:
            self.sums[1] += penalty
            if self.config.schedule.target is not None:  # reading it waits for the device
                self.ascent.follow(float(penalty) / float(self.penalty.largest))

    def _set_lr(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def _finish_epoch(self) -> None:
        """The epoch's row, whole, at the end of the history; then who wants it gets a look."""
        settings, last = self.config.trainer, self.steps - 1
        cross_entropy, penalty, accuracy = self._means(self.steps)
        # the rate that comes next, but for one that is the epoch's
        at = self.steps_done - (settings.lr_schedule == "exponential")
        row = EpochRow(
            epoch=self.epoch + 1,
            lr=lr_at(settings, at, self.steps),
            lambda_t=self.lambda_t_at(last),
            cross_entropy=cross_entropy,
            penalty=penalty if self.config.is_penalised else None,
            train_accuracy=accuracy,
            seconds=self.seconds,
        )
        progress = self._progress(last)
        self.epoch, self.step, self.seconds = self.epoch + 1, 0, 0.0
        self.sums.zero_()
        ends = self.epoch >= settings.epochs or not row.is_finite
        try:
            if (row.epoch % settings.evaluate_every == 0 or ends) and row.is_finite:
                row = self._looked_at(row, ends)
        finally:  # where a value that is not finite is found, the epoch was trained all the same
            self.history.append(row)
        self._look_for_who_wants_it(progress)

    def _looked_at(self, row: EpochRow, ends: bool) -> EpochRow:
        """The row with the figures of the validation split, or of some training images where none was cut.

        At the end of training this is the validation split's measurement too, with its floor batch.
        """
        split, meter = self.dataset.validation, self.config.meter
        found = self.evaluate(self._judged, VALIDATION, floor=ends)
        if len(split):
            row = replace(row, validation_loss=found.loss, validation_accuracy=found.accuracy)
            self.validation = found if ends else None
        row = replace(row, firing_rate=found.counts.firing_rate)
        if meter.batch_size == PUBLISHED.batch_size and meter.threshold == PUBLISHED.threshold:
            with suppress(UserError):  # of a network that its simulator has never seen
                row = replace(row, energy_ratio=estimate(found.counts, PUBLISHED, VALIDATION).ratio)
        with suppress(UserError):  # a parent's network may have what this hardware has no price for
            behind_methods = foreseen(self.methods.values(), found.counts)
            row = replace(row, energy=estimate(behind_methods, self.config.hardware, VALIDATION).cost)
        return row

    def _look_for_who_wants_it(self, progress: Progress | None) -> None:
        """progress: of the epoch's last step; None in front of the first."""
        looking = [method for method in self.methods.values() if method.wants_look]
        if self.done or not (looking or self.penalty.wants_look):
            return
        counts = self.look()
        if self.penalty.wants_look:
            self.penalty.look(counts)
        counts = foreseen(self.methods.values(), counts)
        for method in looking:
            if progress is None:
                method.before_training(counts)
            else:
                method.after_epoch(progress, counts)

    def _means(self, steps: int) -> tuple[float, float, float]:
        """Cross-entropy, penalty and accuracy, over the epoch's first steps."""
        cross_entropy, penalty, correct = self.sums.tolist()
        return cross_entropy / steps, penalty / math.ceil(steps / STEPS_BETWEEN_PENALTIES), correct / steps

    def _progress(self, step: int) -> Progress:
        return Progress(self.epoch * self.steps + step, self.steps, self.config.trainer.epochs)

    def lambda_t_at(self, step: int) -> float:
        """lambda of a step of the epoch that is under way: the schedule's, times the ascent's multiplier."""
        config = self.config
        if not config.is_penalised:
            return 0.0
        step += self.epoch * self.steps
        return self.ascent.multiplier * lambda_at(
            config.schedule, config.lambda_, step, self.steps, config.trainer.epochs
        )

    def _figures(self) -> str:
        cross_entropy, penalty, accuracy = self._means(max(self.step, 1))
        text = f"loss {cross_entropy:.3f}  accuracy {accuracy:.3f}"
        if self.config.is_penalised:
            text += f"  penalty {penalty:.3f}"
        fired = next((row.firing_rate for row in reversed(self.history) if row.firing_rate is not None), None)
        return text + (f"  firing {fired:.3f}" if fired is not None else "")


def is_compiled(settings: TrainerConfig, images: int) -> bool:
    """Whether training on so many images uses torch.compile; ``auto`` decides by the planned number of steps alone.
    Several processes train eagerly."""
    planned = settings.epochs * steps_per_epoch(images, settings.batch_size)
    if world_size() > 1:
        return False
    return settings.compile == "on" or (settings.compile == "auto" and planned >= COMPILE_FROM_STEPS)


def _step_seed(seed: int, epoch: int, step: int) -> int:
    """A seed for what a step draws (dropout); well mixed, and the same wherever the step is made. Processes with parts
    of a batch draw numbers of their own."""
    part = (rank(),) if rank() else ()
    return int(np.random.SeedSequence((seed, epoch, step, *part)).generate_state(1, np.uint64)[0])
