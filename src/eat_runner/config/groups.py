"""THE list of config groups. A new group is a module beside this one with its schema, a line here, and a folder in
conf/. What nobody chooses needs no file: a method's ``none``, and the ``default`` of any other group."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from eat_runner.config import hardware, logger, penalty
from eat_runner.config.bits import BitsConfig
from eat_runner.config.compact import CompactConfig
from eat_runner.config.dataset import DatasetConfig
from eat_runner.config.method import MethodConfig
from eat_runner.config.model import ModelConfig
from eat_runner.config.path import PathConfig
from eat_runner.config.pruning import PruningConfig
from eat_runner.config.schedule import ScheduleConfig
from eat_runner.config.teacher import TeacherConfig
from eat_runner.config.thresholds import ThresholdsConfig
from eat_runner.config.trainer import MeterConfig, TrainerConfig


@dataclass(frozen=True, kw_only=True)
class Group:
    """schemas: what a file of conf/<group>/ is checked against: its defaults begin with base_<key>.
    about: for --help. hashed: its values determine a run's result; without_effect: but for these keys.
    later: it came when there were runs already, whose ids have nothing of it: at its defaults it is not in the hash.
    varied: an experiment varies it within a family. method: it changes the network beside the penalty (MethodConfig).
    """

    schemas: Mapping[str, type[Any]]
    about: str
    hashed: bool = True
    later: bool = False
    varied: bool = False
    method: bool = False
    without_effect: frozenset[str] = field(default_factory=frozenset[str])


GROUPS: dict[str, Group] = {
    "meter": Group(
        schemas={"meter": MeterConfig},
        about="how non-zeros are counted",
        without_effect=frozenset({"ignore_uncounted"}),
    ),
    "dataset": Group(schemas={"dataset": DatasetConfig}, about="what is trained on"),
    "model": Group(schemas={"model": ModelConfig}, about="which network"),
    "penalty": Group(schemas=penalty.SCHEMAS, about="what is added to the loss, times lambda", varied=True),
    "schedule": Group(schemas={"schedule": ScheduleConfig}, about="how lambda changes", varied=True),
    # in the hash where a method or a penalty read its prices (config/identity.py)
    "hardware": Group(schemas=hardware.SCHEMAS, about="prices of the chip", hashed=False, varied=True),
    "trainer": Group(
        schemas={"trainer": TrainerConfig},
        about="optimiser, epochs, precision",
        without_effect=frozenset({"evaluate_every", "checkpoint_every", "keep_checkpoint"}),
    ),
    "pruning": Group(schemas={"pruning": PruningConfig}, about="weights that become zero", method=True),
    "bits": Group(schemas={"bits": BitsConfig}, about="a network of integers so wide", method=True),
    "thresholds": Group(schemas={"thresholds": ThresholdsConfig}, about="small ReLU outputs become zero", method=True),
    "compact": Group(schemas={"compact": CompactConfig}, about="dead channels that are taken out", method=True),
    "path": Group(
        schemas={"path": PathConfig}, about="a front from one training, point by point", hashed=False, later=True
    ),
    "teacher": Group(
        schemas={"teacher": TeacherConfig}, about="a network whose answers are learnt, too", later=True, varied=True
    ),
    "loggers": Group(schemas=logger.SCHEMAS, about="who is told about a run, a list", hashed=False),
}


DEFAULT = "default"  # the choice of a group of its own that nobody has chosen a file of


def method_groups() -> dict[str, type[MethodConfig]]:
    """The groups of methods, each with its schema."""
    return {name: next(iter(group.schemas.values())) for name, group in GROUPS.items() if group.method}
