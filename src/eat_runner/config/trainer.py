"""The config groups ``trainer`` and ``meter``."""

from dataclasses import dataclass, field

from eat_runner.config.checks import above, at_least, between, one_of

LR_SCHEDULES = ("exponential", "onecycle", "cosine", "constant")
AUTO = "auto"
PRECISIONS = ("fp32", "bf16", AUTO)
COMPILE = ("auto", "on", "off")


@dataclass(kw_only=True, slots=True)
class TrainerConfig:
    """How a network is trained: SGD with momentum, and what the machine does for speed.

    epochs: 0 only measures. lr_schedule: exponential (times lr_gamma after each epoch), onecycle, cosine, constant.
    precision: fp32, bf16 autocast, or auto, which becomes one of the two before the run has its id: bf16 where the
    device multiplies it in hardware. compile: torch.compile; auto decides by the planned number of steps alone.
    evaluate_every: epochs between two evaluations on the validation split (the last epoch is always evaluated).
    checkpoint_every: epochs between two checkpoints. keep_checkpoint: leave the last one beside a finished run.
    The last two and evaluate_every change no result.
    """

    epochs: int = 20
    batch_size: int = 64
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    lr_schedule: str = "onecycle"
    lr_gamma: float = 0.95
    precision: str = "fp32"
    channels_last: bool = True
    compile: str = "auto"
    evaluate_every: int = 1
    checkpoint_every: int = 1
    keep_checkpoint: bool = False

    def check(self) -> None:
        between("trainer.epochs", self.epochs, 0, 100_000)
        between("trainer.batch_size", self.batch_size, 1, 1_000_000)
        above("trainer.lr", self.lr, 0.0)
        between("trainer.momentum", self.momentum, 0.0, 1.0)
        at_least("trainer.weight_decay", self.weight_decay, 0.0)
        one_of("trainer.lr_schedule", self.lr_schedule, LR_SCHEDULES)
        above("trainer.lr_gamma", self.lr_gamma, 0.0)
        one_of("trainer.precision", self.precision, PRECISIONS)
        one_of("trainer.compile", self.compile, COMPILE)
        above("trainer.evaluate_every", self.evaluate_every, 0)
        above("trainer.checkpoint_every", self.checkpoint_every, 0)


@dataclass(kw_only=True, slots=True)
class MeterConfig:
    """How activations are counted. batch_size: images of a metered batch (the published ratio depends on it).
    threshold: a value counts as non-zero where its magnitude exceeds it (2^-126, the smallest normal float32).
    ignore_uncounted: report operations that have no handler by name and go on, instead of failing the run.
    """

    batch_size: int = field(default=100, metadata={"hashed_as": "batch"})
    threshold: float = 2.0**-126
    ignore_uncounted: bool = False

    def check(self) -> None:
        between("meter.batch_size", self.batch_size, 1, 1_000_000)
        at_least("meter.threshold", self.threshold, 0.0)
