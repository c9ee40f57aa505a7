"""An experiment's whole configuration: the groups and the root keys."""

from dataclasses import dataclass, field, replace

from eat_runner.config.checks import at_least, between, one_of
from eat_runner.config.dataset import DatasetConfig
from eat_runner.config.hardware import HardwareConfig, PublishedHardware
from eat_runner.config.model import ModelConfig
from eat_runner.config.penalty import PenaltyConfig
from eat_runner.config.schedule import ScheduleConfig
from eat_runner.config.trainer import MeterConfig, TrainerConfig
from eat_runner.errors import UserError

DEVICES = ("auto", "cpu", "cuda", "mps")
SELECTIONS = ("validation", "paper")
ON_ERROR = ("continue", "stop")


@dataclass(kw_only=True, slots=True)
class ExperimentConfig:
    """One run. ``lambda_`` is the key ``lambda`` of the command line; conf/config.yaml explains every key."""

    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    penalty: PenaltyConfig = field(default_factory=PenaltyConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    meter: MeterConfig = field(default_factory=MeterConfig)
    hardware: HardwareConfig = field(default_factory=PublishedHardware)
    lambda_: float = 1.0
    seed: int = 0
    name: str = "default"
    results_dir: str = "results"
    data_dir: str = "data"
    download: bool = False
    init: str | None = None
    device: str = "auto"
    threads: int = 2
    selection: str = "validation"
    on_error: str = "continue"
    plan: bool = False

    def check(self) -> None:
        """Raise UserError where a value is out of range. Nothing is read from disk."""
        for group in (self.dataset, self.model, self.penalty, self.schedule, self.trainer, self.meter, self.hardware):
            group.check()
        at_least("lambda", self.lambda_, 0.0)
        between("seed", self.seed, 0, 2**31 - 1)
        between("threads", self.threads, 1, 1024)
        one_of("device", self.device, DEVICES)
        one_of("selection", self.selection, SELECTIONS)
        one_of("on_error", self.on_error, ON_ERROR)
        self._check_counts_fit()
        if not self.name or self.name in {".", ".."} or set(self.name) & set("/\\\0\n"):
            raise UserError(f"name={self.name!r} is no folder name: use letters, digits, '-', '_' and '.'")

    def _check_counts_fit(self) -> None:
        """Hardware that could not price the run's counts is refused now rather than after the training."""
        hardware, meter = self.hardware, self.meter
        for key, wanted, given in (
            ("batch", hardware.batch, meter.batch),
            ("threshold", hardware.threshold, meter.threshold),
        ):
            if wanted not in (None, given):
                raise UserError(
                    f"meter.{key}={given:g} does not fit hardware={hardware.name}, which prices counts made with "
                    f"{wanted:g}: leave meter.{key} as it is or choose other hardware"
                )

    @property
    def is_baseline(self) -> bool:
        """True for standard training (ST): nothing is added to the cross-entropy."""
        return self.lambda_ == 0 or self.penalty.name == "none"

    def normalised(self) -> "ExperimentConfig":
        """The same experiment with what cannot matter set to one value: a baseline has no penalty and no schedule."""
        if not self.is_baseline:
            return self
        return replace(self, lambda_=0.0, penalty=PenaltyConfig(name="none"), schedule=ScheduleConfig())
