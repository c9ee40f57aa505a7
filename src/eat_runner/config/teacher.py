"""The config group ``teacher``: a network whose answers a training also learns."""

from dataclasses import dataclass

from eat_runner.config.checks import above

PARENT = "parent"


@dataclass(kw_only=True, slots=True)
class TeacherConfig:
    """Knowledge distillation (Hinton, Vinyals, Dean, arXiv 1503.02531, sec. 2): the loss is cross-entropy + weight x
    T^2 x KL(teacher || network) of the softmax at temperature T.

    name: ``parent``, the network that the training starts from (``init``), as it was before; ``default``: none.
    """

    name: str = "default"
    weight: float = 1.0
    temperature: float = 4.0

    @property
    def is_chosen(self) -> bool:
        return self.name == PARENT

    def check(self) -> None:
        above("teacher.weight", self.weight, 0.0)
        above("teacher.temperature", self.temperature, 0.0)
