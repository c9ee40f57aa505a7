"""The training loop: cross-entropy plus lambda times the penalty, in one forward pass.

Reads top to bottom as the algorithm does (EAT, arXiv 2307.00368, Algorithm 1). Everything random is seeded by
(seed, epoch, step), so a trainer that is loaded from a checkpoint goes on bit for bit on the same machine.
"""

import io
import math
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import lr_scheduler

from eat_runner.config import ExperimentConfig, TrainerConfig
from eat_runner.config.hardware import PublishedHardware
from eat_runner.data import Dataset, ImageSet
from eat_runner.data.batches import evaluation_batches, steps_per_epoch, training_batches
from eat_runner.energy.counts import Counts
from eat_runner.energy.estimate import estimate
from eat_runner.energy.meter import measure
from eat_runner.models import Network
from eat_runner.observer import Observer
from eat_runner.schedules import lambda_at

STEPS_BETWEEN_REPORTS = 10  # of the progress bar; reading a loss waits for the device
STEPS_BETWEEN_PENALTIES = 20  # whose value is taken for the record; its gradient is added in every step
MONITORED_WITHOUT_SPLIT = 1000  # training images that stand in for a validation split in the firing rate
PUBLISHED = PublishedHardware()
COMPILE_FROM_STEPS = 5_000  # compile=auto: a few times the steps after which compiling paid (docs/performance.md)


@dataclass
class EpochRow:
    """One row of history.csv. Training figures are means over the epoch's (augmented) batches, ``penalty`` over every
    twentieth; validation figures are None where there was no evaluation. energy_ratio: ``published``, on the validation
    split. seconds: of training."""

    epoch: int
    lr: float
    lambda_t: float
    cross_entropy: float
    penalty: float | None
    train_accuracy: float
    validation_loss: float | None = None
    validation_accuracy: float | None = None
    firing_rate: float | None = None
    energy_ratio: float | None = None
    seconds: float = 0.0

    def __str__(self) -> str:
        figures = {
            "loss": self.cross_entropy,
            "penalty": self.penalty,
            "accuracy": self.train_accuracy,
            "validation": self.validation_accuracy,
            "firing": self.firing_rate,
            "ratio": self.energy_ratio,
        }
        text = "  ".join(f"{name} {value:.3f}" for name, value in figures.items() if value is not None)
        return f"epoch {self.epoch}  {text}  {self.seconds:.1f} s"


@dataclass(frozen=True)
class Evaluation:
    """A network looked at on one split, in float32 and evaluation mode. loss: mean cross-entropy."""

    accuracy: float
    loss: float
    counts: Counts


class Trainer:
    """A network on its way through the epochs.

    ``for row in trainer.epochs(...)`` trains an epoch and hands out its row; ``state()`` after any step is all that is
    needed to go on. Mean figures of an unfinished epoch are part of it.
    """

    def __init__(self, network: Network, dataset: Dataset, config: ExperimentConfig, device: torch.device):
        self.network, self.dataset, self.config, self.device = network, dataset, config, device
        self.model = network.module.to(device)
        if config.trainer.channels_last:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.steps = steps_per_epoch(len(dataset.train), config.trainer.batch_size)
        self.parameters = sum(p.numel() for p in self.model.parameters())
        settings = config.trainer
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
        )
        self.lr_schedule = _lr_schedule(self.optimizer, settings, self.steps)
        self.epoch = 0  # of these, finished
        self.step = 0  # of these, done in the epoch that is under way
        exact = torch.float32 if device.type == "mps" else torch.float64  # mps has no float64
        self.sums = torch.zeros(3, device=device, dtype=exact)  # cross-entropy, penalty, correct answers
        self.history: list[EpochRow] = []
        self.seconds = 0.0
        self.validation: Evaluation | None = None  # of the trained network, once ``monitor`` has looked at it

    @property
    def diverged(self) -> bool:
        """True when the loss stopped being finite."""
        last = self.history[-1] if self.history else None
        return last is not None and not math.isfinite(last.cross_entropy + (last.penalty or 0.0))

    @property
    def done(self) -> bool:
        return self.diverged or self.epoch >= self.config.trainer.epochs

    def epochs(self, stop: Callable[[], bool], report: Callable[[int, str], None]) -> Iterator[EpochRow]:
        """Train epoch by epoch; ends early, at a step, when ``stop()`` turns true.

        report: called every few steps with the number of steps done so far and a line of figures.
        """
        if self.done:
            return
        with self._observing() as observer:
            forward = self._compile() if self.compiled else self.model
            while not self.done:
                self._train_epoch(forward, observer, stop, report)
                if self.step < self.steps:
                    return
                yield self._finish_epoch()

    def _compile(self) -> Callable[[Tensor], Tensor]:
        torch.compiler.reset()  # a network compiled before looks the same to it where only the observer differs
        return torch.compile(self.model)

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
            "lr_schedule": self.lr_schedule.state_dict() if self.lr_schedule else {},
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
        if self.lr_schedule:
            self.lr_schedule.load_state_dict(state["lr_schedule"])
        self.epoch, self.step, self.seconds = state["epoch"], state["step"], state["seconds"]
        self.sums.copy_(state["sums"])
        self.history = [EpochRow(**row) for row in state["history"]]

    def weights(self) -> bytes:
        """The network's parameters and buffers as a safetensors file."""
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.model.state_dict().items()}
        return safetensors.torch.save(tensors)

    def evaluate(self, images: ImageSet, split: str, floor: bool = True) -> Evaluation:
        """Accuracy, loss and counts of ``images`` in one metered pass. floor: meter the floor batch too."""
        batch = self.config.meter.batch
        batches = evaluation_batches(images, batch, *self.normalisation, self.device, self.network.channels)
        logits: list[Tensor] = []
        counts = measure(self.model, (x for x, _ in batches), self.config.meter, split, floor, logits.append)
        answers = torch.cat(logits).float()
        labels = torch.as_tensor(images.labels, device=self.device)
        return Evaluation(
            accuracy=float((answers.argmax(1) == labels).float().mean()),
            loss=float(F.cross_entropy(answers, labels)),
            counts=counts,
        )

    def monitor(self) -> None:
        """Look at the validation split, or at some training images where none was cut, and complete the last row.

        At the end of training this is the validation split's measurement too, with its floor batch.
        """
        if self.diverged:
            return
        split = self.dataset.validation
        images = split if len(split) else self.dataset.train.first(MONITORED_WITHOUT_SPLIT)
        evaluation = self.evaluate(images, "validation", floor=self.done)
        row = self.history[-1]
        if len(split):
            row.validation_loss, row.validation_accuracy = evaluation.loss, evaluation.accuracy
            self.validation = evaluation if self.done else None
        row.firing_rate = evaluation.counts.firing_rate
        if self.config.meter.batch == PUBLISHED.batch and self.config.meter.threshold == PUBLISHED.threshold:
            row.energy_ratio = estimate(evaluation.counts, PUBLISHED, "validation").ratio

    @property
    def _penalised(self) -> bool:
        return self.config.is_penalised

    def _train_epoch(
        self,
        forward: Callable[[Tensor], Tensor],
        observer: Observer | None,
        stop: Callable[[], bool],
        report: Callable[[int, str], None],
    ) -> None:
        config, images = self.config, self.config.trainer.batch_size
        self.model.train()
        started = time.perf_counter()
        for x_nchw, labels in training_batches(
            self.dataset.train,
            config.dataset,
            images,
            *self.normalisation,
            seed=config.seed,
            epoch=self.epoch,
            device=self.device,
            first_step=self.step,
            channels=self.network.channels,
        ):
            if stop():
                break
            torch.manual_seed(_step_seed(config.seed, self.epoch, self.step))  # dropout
            with self.autocast():
                logits = forward(x_nchw)
                cross_entropy = F.cross_entropy(logits, labels)
            self.optimizer.zero_grad(set_to_none=True)
            penalty = self._backward(cross_entropy, observer, len(labels))
            self.sums[0] += cross_entropy.detach()
            if penalty is not None:
                self.sums[1] += penalty
            self.sums[2] += (logits.detach().argmax(1) == labels).float().mean()
            self.optimizer.step()
            if self.lr_schedule and config.trainer.lr_schedule != "exponential":
                self.lr_schedule.step()
            self.step += 1
            if self.step % STEPS_BETWEEN_REPORTS == 0:
                report(self.epoch * self.steps + self.step, self._figures())
        self.seconds += time.perf_counter() - started

    def _backward(self, cross_entropy: Tensor, observer: Observer | None, images: int) -> Tensor | None:
        """Gradients of cross-entropy + lambda x penalty; returns the penalty, in the steps whose value is taken."""
        wanted = self.step % STEPS_BETWEEN_PENALTIES == 0
        if observer is None:
            cross_entropy.backward()
            return None
        if observer.penalise is None:
            penalty = observer.collect(images, self.parameters)
            (cross_entropy + self.lambda_t * penalty).backward()
            return penalty.detach() if wanted else None
        observer.weigh(self.lambda_t, images, self.parameters, value=wanted)
        cross_entropy.backward()
        return observer.value()

    def _finish_epoch(self) -> EpochRow:
        cross_entropy, penalty, accuracy = self._means(self.steps)
        row = EpochRow(
            epoch=self.epoch + 1,
            lr=self.optimizer.param_groups[0]["lr"],
            lambda_t=self.lambda_t_at(self.steps - 1),
            cross_entropy=cross_entropy,
            penalty=penalty if self._penalised else None,
            train_accuracy=accuracy,
            seconds=self.seconds,
        )
        if self.lr_schedule and self.config.trainer.lr_schedule == "exponential":
            self.lr_schedule.step()
        self.history.append(row)
        self.epoch, self.step, self.seconds = self.epoch + 1, 0, 0.0
        self.sums.zero_()
        return row

    def _means(self, steps: int) -> tuple[float, float, float]:
        """Cross-entropy, penalty and accuracy, over the epoch's first steps."""
        cross_entropy, penalty, correct = self.sums.tolist()
        return cross_entropy / steps, penalty / math.ceil(steps / STEPS_BETWEEN_PENALTIES), correct / steps

    @property
    def lambda_t(self) -> float:
        """lambda of the step that is under way."""
        return self.lambda_t_at(self.step)

    def lambda_t_at(self, step: int) -> float:
        """lambda of a step of the epoch that is under way."""
        config = self.config
        if not config.is_penalised:
            return 0.0
        step += self.epoch * self.steps
        return lambda_at(config.schedule, config.lambda_, step, self.steps, config.trainer.epochs)

    @property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of the images' normalisation: the pretrained network's, else the data set's."""
        if self.network.mean is not None and self.network.std is not None:
            return self.network.mean, self.network.std
        return self.dataset.mean, self.dataset.std

    def autocast(self) -> AbstractContextManager[Any]:
        """bf16 autocast where the configuration asks for it."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.trainer.precision == "bf16")

    def _example(self) -> Tensor:
        size = self.dataset.image_size
        x = torch.zeros(2, self.network.channels, size, size, device=self.device)
        return x.contiguous(memory_format=torch.channels_last) if self.config.trainer.channels_last else x

    @property
    def compiled(self) -> bool:
        """Whether torch.compile is used."""
        return is_compiled(self.config.trainer, len(self.dataset.train))

    def _observing(self) -> AbstractContextManager[Observer | None]:
        if not self._penalised:
            return nullcontext()
        return Observer(self.model, self.config.penalty, self._example(), in_backward=not self.compiled)

    def _figures(self) -> str:
        cross_entropy, penalty, accuracy = self._means(max(self.step, 1))
        text = f"loss {cross_entropy:.3f}  accuracy {accuracy:.3f}"
        if self._penalised:
            text += f"  penalty {penalty:.3f}"
        fired = next((row.firing_rate for row in reversed(self.history) if row.firing_rate is not None), None)
        return text + (f"  firing {fired:.3f}" if fired is not None else "")


def is_compiled(settings: TrainerConfig, images: int) -> bool:
    """Whether training on so many images uses torch.compile; ``auto`` decides by the planned number of steps alone."""
    planned = settings.epochs * steps_per_epoch(images, settings.batch_size)
    return settings.compile == "on" or (settings.compile == "auto" and planned >= COMPILE_FROM_STEPS)


def _lr_schedule(
    optimizer: torch.optim.Optimizer, settings: TrainerConfig, steps: int
) -> lr_scheduler.LRScheduler | None:
    """exponential moves once an epoch, the others every step."""
    total = settings.epochs * steps
    if total == 0 or settings.lr_schedule == "constant":
        return None
    if settings.lr_schedule == "exponential":
        return lr_scheduler.ExponentialLR(optimizer, settings.lr_gamma)
    if settings.lr_schedule == "cosine":
        return lr_scheduler.CosineAnnealingLR(optimizer, T_max=total)
    return lr_scheduler.OneCycleLR(optimizer, max_lr=settings.lr, total_steps=total + 1, cycle_momentum=False)


def _step_seed(seed: int, epoch: int, step: int) -> int:
    """A seed for what a step draws (dropout); well mixed, and the same wherever the step is made."""
    return int(np.random.SeedSequence((seed, epoch, step)).generate_state(1, np.uint64)[0])


def pack(state: dict[str, Any]) -> bytes:
    """A state as a file: torch's zip format, every part with its CRC-32."""
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def unpack(data: bytes) -> dict[str, Any]:
    """The state that ``pack`` wrote; no code of the file is run. ValueError where it is damaged or something else."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            damaged = archive.testzip()
        state = None if damaged else torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except Exception as error:  # a flipped bit can make zipfile, zlib, struct or pickle raise anything
        raise ValueError("it is damaged, or no checkpoint of this program") from error
    if damaged:
        raise ValueError(f"it is damaged: {damaged} does not match its checksum")
    if not isinstance(state, dict):
        raise ValueError("it is no checkpoint of this program")
    return state
