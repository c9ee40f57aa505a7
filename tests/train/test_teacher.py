"""Knowledge distillation from the network that a training starts from."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from eat_runner import run
from eat_runner.cli.hydra.compose import compose_experiment as composed
from eat_runner.config import ExperimentConfig
from eat_runner.config.identity import run_id
from eat_runner.config.points import points
from eat_runner.config.teacher import TeacherConfig
from eat_runner.records import RunFolder, RunRecord
from eat_runner.train.teacher import Teacher

ANSWERS, LOGITS = [[2.0, -1.0, 0.5], [0.0, 3.0, -2.0]], [[1.0, 0.0, -0.5], [0.3, 0.2, 0.1]]
WEIGHT = 0.7


class Fixed(nn.Module):
    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, x: Tensor) -> Tensor:
        return self.logits


def definition(logits: list[list[float]], temperature: float) -> float:
    """WEIGHT x T^2 x the mean over the images of sum p log(p / q)."""

    def softmax(values: list[float]) -> list[float]:
        powers = [math.exp(value / temperature) for value in values]
        return [power / math.fsum(powers) for power in powers]

    images = [zip(softmax(a), softmax(b), strict=True) for a, b in zip(ANSWERS, logits, strict=True)]
    return WEIGHT * temperature**2 * math.fsum(p * math.log(p / q) for image in images for p, q in image) / len(images)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_value_and_gradient_are_those_of_the_definition(temperature: float) -> None:
    teacher = Teacher(Fixed(torch.tensor(ANSWERS)), TeacherConfig(weight=WEIGHT, temperature=temperature))
    logits = torch.tensor(LOGITS, requires_grad=True)
    term = teacher(torch.zeros(2, 1, 1, 1), logits, torch.tensor([0, 1]))
    assert term.item() == pytest.approx(definition(LOGITS, temperature), rel=1e-5)
    term.backward()
    step = 1e-5
    more, less = ([[LOGITS[0][0] + change, *LOGITS[0][1:]], LOGITS[1]] for change in (step, -step))
    slope = (definition(more, temperature) - definition(less, temperature)) / (2 * step)
    assert logits.grad is not None
    assert logits.grad[0, 0].item() == pytest.approx(slope, rel=1e-4)


def test_the_teacher_stays_as_it_is() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(4, 3))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    teacher = Teacher(network.train(), TeacherConfig())
    x, logits = torch.randn(5, 1, 3, 3), torch.zeros(5, 3, requires_grad=True)
    values = {teacher(x, logits, torch.zeros(5, dtype=torch.long)).item() for _ in range(3)}
    assert len(values) == 1  # no dropout
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(p.requires_grad for p in network.parameters())


def made(config: ExperimentConfig) -> tuple[RunRecord, RunFolder]:
    record = run.run(config)
    return record, RunFolder(Path(config.results_dir) / config.name / record.run_id)


def test_a_taught_child_is_another_run_with_other_weights_and_no_standard_training(
    small_config: ExperimentConfig,
) -> None:
    standard = replace(small_config, lambda_=0.0)
    parent, there = made(standard)
    child = replace(standard, init=str(there.path))
    taught = replace(child, others=child.others | {"teacher": TeacherConfig(name="parent")})
    weights: list[Tensor] = []
    for config in (child, taught):
        record, folder = made(config)
        assert (record.status, record.determinants["parent"]) == ("finished", parent.run_id)
        weights.append(torch.cat([value.flatten() for value in _weights(folder)]))
        assert config.is_baseline == (config is child)
        assert ("teacher" in record.determinants) == (config is taught)
    assert not torch.equal(*weights)


def _weights(folder: RunFolder) -> list[Tensor]:
    from safetensors.torch import load_file

    return [value.float() for name, value in sorted(load_file(folder.weights).items()) if name.endswith("weight")]


def test_of_a_path_the_first_run_has_no_teacher() -> None:
    path = ("path=lambda", "path.over=[1,2]")
    taught, untaught = ([*points(composed([*path, *more]), "f" * 8)] for more in (("teacher=parent",), ()))
    assert taught[0] == untaught[0]
    assert [point.group("teacher").is_chosen for point, _ in taught] == [False, True, True]
    names = [run_id(point, "f" * 8, start) for point, start in (*taught[1:], *untaught[1:])]
    assert len({*names}) == 4
