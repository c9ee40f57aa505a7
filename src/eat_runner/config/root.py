"""An experiment's whole configuration: the groups and the root keys."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from eat_runner.config.bits import BitsConfig
from eat_runner.config.checks import above, at_least, between, one_of
from eat_runner.config.dataset import DatasetConfig
from eat_runner.config.groups import GROUPS, method_groups
from eat_runner.config.hardware import HardwareConfig, PublishedHardware
from eat_runner.config.logger import LoggerConfig, default_loggers
from eat_runner.config.method import NONE, MethodConfig
from eat_runner.config.model import ModelConfig
from eat_runner.config.penalty import L0Config, PenaltyConfig
from eat_runner.config.schedule import ScheduleConfig
from eat_runner.config.trainer import MeterConfig, TrainerConfig
from eat_runner.errors import UserError

DEVICES = ("auto", "cpu", "cuda", "mps")
SELECTIONS = ("validation", "paper")
ON_ERROR = ("continue", "stop")


def default_methods() -> dict[str, MethodConfig]:
    """No method at all."""
    return {name: schema() for name, schema in method_groups().items()}


def default_others() -> dict[str, Any]:
    """The groups that are no methods and have no field in ExperimentConfig, at their defaults."""
    named = {*ExperimentConfig.__dataclass_fields__}
    others = {name: group for name, group in GROUPS.items() if not group.method and name not in named}
    return {name: next(iter(group.schemas.values()))() for name, group in others.items()}


def default_lambda(methods: Iterable[MethodConfig]) -> float:
    """lambda where nobody has given one: 1, or 0 beside a method, which then stands alone."""
    return 0.0 if any(method.is_chosen for method in methods) else 1.0


def is_penalised(lambda_: float, penalty: str) -> bool:
    """Whether anything is added to the cross-entropy. penalty: its name."""
    return lambda_ != 0 and penalty != NONE


def is_baseline(lambda_: float, penalty: str, methods: Iterable[str]) -> bool:
    """Standard training (ST): no penalty and no method, and no teacher, which the caller knows of. penalty, methods:
    their names."""
    return not is_penalised(lambda_, penalty) and all(name == NONE for name in methods)


@dataclass(kw_only=True, slots=True)
class ExperimentConfig:
    """One run. ``lambda_`` is the key ``lambda`` of the command line; conf/config.yaml explains every key.

    budget, budget_uj: what an image may cost on ``hardware``, as a share of the dense energy or in uJ.
    methods, others: by group (config/groups.py): methods, and groups that have no field here. loggers: by name.
    """

    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    penalty: PenaltyConfig = field(default_factory=L0Config)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    meter: MeterConfig = field(default_factory=MeterConfig)
    hardware: HardwareConfig = field(default_factory=PublishedHardware)
    methods: dict[str, MethodConfig] = field(default_factory=default_methods)
    others: dict[str, Any] = field(default_factory=lambda: default_others())
    loggers: dict[str, LoggerConfig] = field(default_factory=default_loggers)
    lambda_: float = 1.0
    seed: int = 0
    name: str = "default"
    results_dir: str = "results"
    data_dir: str = "data"
    download: bool = False
    init: str | None = None
    budget: float | None = None
    budget_uj: float | None = None
    device: str = "auto"
    threads: int = 2
    selection: str = "validation"
    on_error: str = "continue"
    plan: bool = False

    def check(self) -> None:
        """Raise UserError where a value is out of range. Nothing is read from disk."""
        groups = (self.group(name) for name, group in GROUPS.items() if not group.method and name != "loggers")
        for group in (*groups, *self.methods.values(), *self.loggers.values()):
            group.check()
        for method in self.chosen_methods.values():
            method.check_hardware(self.hardware)
        at_least("lambda", self.lambda_, 0.0)
        between("seed", self.seed, 0, 2**31 - 1)
        between("threads", self.threads, 1, 1024)
        one_of("device", self.device, DEVICES)
        one_of("selection", self.selection, SELECTIONS)
        one_of("on_error", self.on_error, ON_ERROR)
        self._check_counts_fit()
        self._check_bits_fit()
        self._check_budget()
        self._check_path()
        self._check_teacher()
        if self.schedule.target is not None and self.is_penalised and self.penalty.name != "l0":
            raise UserError(
                f"schedule.target={self.schedule.target:g} is a density, and penalty={self.penalty.name} counts none: "
                "use penalty=l0"
            )
        if self.schedule.target is not None and self.schedule.name != "constant":
            raise UserError(
                f"schedule={self.schedule.name} and schedule.target={self.schedule.target:g} both move lambda: use "
                "schedule=constant"
            )
        if not self.name or self.name in {".", ".."} or set(self.name) & set("/\\\0\n"):
            raise UserError(f"name={self.name!r} is no folder name: use letters, digits, '-', '_' and '.'")

    def _check_bits_fit(self) -> None:
        bits = self.chosen_methods.get("bits")
        if isinstance(bits, BitsConfig) and bits.begin < 1 and "compact" in self.chosen_methods:
            raise UserError(
                f"bits.begin={bits.begin:g} trains in integers, and compact takes no channels out of such a network: "
                "leave compact out, or bits.begin"
            )

    def _check_path(self) -> None:
        path = self.group("path")
        if not path.is_chosen:
            return
        if lasting := sorted({"bits", "compact", "thresholds"} & self.chosen_methods.keys()):
            raise UserError(
                f"path={path.name} trains each network further, and {lasting[0]} changes it for good: do that to the "
                f"finished runs, init=RUN trainer.epochs=0 {lasting[0]}=NAME"
            )
        if path.name == "lambda" and self.penalty.name == NONE:
            raise UserError("path=lambda with penalty=none has nothing that grows: choose a penalty")
        if path.name == "density" and not self.methods["pruning"].is_chosen:
            raise UserError("path=density needs pruning: choose pruning=magnitude or pruning=energy")
        if path.name == "budget" and self.budget_uj is not None:
            raise UserError(f"path=budget and budget_uj={self.budget_uj:g} say the same: leave one out")

    def _check_teacher(self) -> None:
        teacher = self.group("teacher")
        if teacher.is_chosen and self.init is None and not self.group("path").is_chosen:
            raise UserError(
                f"teacher={teacher.name} is the network that a training starts from: give one, init=RUN, or a path"
            )
        if teacher.is_chosen and not self.trainer.epochs:
            raise UserError(f"teacher={teacher.name} has nobody to teach with trainer.epochs=0: leave it out")

    def _check_counts_fit(self) -> None:
        """Hardware that could not price the run's counts is refused now rather than after the training."""
        hardware, meter = self.hardware, self.meter
        for key, wanted, given in (
            ("batch_size", hardware.batch_size, meter.batch_size),
            ("threshold", hardware.threshold, meter.threshold),
        ):
            if wanted not in (None, given):
                raise UserError(
                    f"meter.{key}={given:g} does not fit hardware={hardware.name}, which prices counts made with "
                    f"{wanted:g}: leave meter.{key} as it is or choose other hardware"
                )
        for bits in sorted(self.widths):
            hardware.check_bits(bits)
        if self.is_penalised and self.penalty.reads_hardware and not hardware.skips_zeros:
            raise UserError(
                f"penalty.weighting={self.penalty.weighting} weights by what a zero saves, and "
                f"hardware={hardware.name} saves nothing for zeros: choose another weighting or other hardware"
            )

    def _check_budget(self) -> None:
        """What cannot be a budget. Whether it can be met is known once the network is there (run/build.py)."""
        if not self.has_budget:
            return
        if self.budget is not None and self.budget_uj is not None:
            raise UserError(f"budget={self.budget:g} and budget_uj={self.budget_uj:g} say the same: leave one out")
        if self.budget is not None:
            above("budget", self.budget, 0.0)
            between("budget", self.budget, 0.0, 1.0)
        if self.budget_uj is not None:
            above("budget_uj", self.budget_uj, 0.0)
            if self.hardware.relative:
                raise UserError(
                    f"budget_uj={self.budget_uj:g} needs prices in joules, those of hardware={self.hardware.name} are "
                    "relative: use budget, a share of the dense energy"
                )
        ascends = self.is_penalised and self.schedule.target is not None
        if not ascends and not self.methods["pruning"].is_chosen:
            raise UserError(
                "a budget needs what works towards it: choose pruning=energy, or schedule.target with a penalty"
            )
        for method in self.chosen_methods.values():
            method.check_under_budget()

    @property
    def has_budget(self) -> bool:
        return self.budget is not None or self.budget_uj is not None

    def group(self, name: str) -> Any:
        """The configuration of a group that is no method."""
        return self.others[name] if name in self.others else getattr(self, name)

    @property
    def chosen_methods(self) -> dict[str, MethodConfig]:
        return {name: method for name, method in self.methods.items() if method.is_chosen}

    @property
    def widths(self) -> frozenset[int]:
        """The widths, in bits, that methods give weights."""
        return frozenset(bits for method in self.chosen_methods.values() for bits in method.widths)

    @property
    def is_penalised(self) -> bool:
        return is_penalised(self.lambda_, self.penalty.name)

    @property
    def is_baseline(self) -> bool:
        untaught = not self.group("teacher").is_chosen
        methods = (method.name for method in self.methods.values())
        return untaught and is_baseline(self.lambda_, self.penalty.name, methods)

    @property
    def reads_hardware(self) -> bool:
        """Whether the prices of the hardware decide what comes out: a budget, a method or the penalty looks at them."""
        return (
            self.has_budget
            or any(method.reads_hardware for method in self.chosen_methods.values())
            or (self.is_penalised and self.penalty.reads_hardware)
        )

    def canonical(self) -> "ExperimentConfig":
        """The same experiment with what cannot matter set to one value: penalty and schedule of a training without
        penalty, the knobs of methods that are not chosen."""
        unpenalised: dict[str, Any] = {"lambda_": 0.0, "penalty": PenaltyConfig(), "schedule": ScheduleConfig()}
        changes = {"schedule": self.schedule.settled()} if self.is_penalised else unpenalised
        chosen = {name: method.settled(self.has_budget) for name, method in self.chosen_methods.items()}
        return replace(self, methods=default_methods() | chosen, **changes)
