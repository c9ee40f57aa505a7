"""A few steps of several trainings, by one process or by those of ``torchrun trained_together.py DATA FOLDER``: each of
these writes into FOLDER what has become of its own.

In float64: training makes a rounding error about ten times as large with each of the first steps, and what is left is
still far below what any mistake would move.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from eat_runner import ranks, run
from eat_runner.cli.hydra.launch import compose_sweep
from eat_runner.models import Network

COMMON = (
    "dataset.train_limit=160 dataset.crop_padding=1 dataset.rotation_degrees=5 model.width=4 device=cpu threads=1 "
    "trainer.epochs=2 trainer.batch_size=33 trainer.lr=0.02 trainer.compile=off"
)  # 33 images: not the same number in every process; one epoch and a look, three steps of the next
STEPS = 7
ODD = "an odd network"
CASES = {
    "penalty": "lambda=1",
    "functions": "lambda=1 penalty.scope=activations penalty.weighting=elements model=vgg11",
    "a ratio of sums": "lambda=0.1 penalty=hoyer",
    "prices": "lambda=10 penalty=l1 penalty.weighting=energy hardware=fused_45nm",
    "ascent": "lambda=1 penalty.weighting=parameters schedule.target=0.3",
    "channels": "pruning=energy pruning.channels=0.7 pruning.every_steps=1 hardware=fused_7nm_int8",
    "budget": "pruning=energy budget=0.5 pruning.every_steps=1 hardware=fused_7nm_int8",
    ODD: "lambda=1",
    "integers": "bits=8 bits.begin=0 hardware=fused_7nm_int8",
    "teacher": "lambda=1 teacher=parent teacher.weight=2 init={parent}",
}
PARENT = "parent.pt"  # in the folder of data


class Odd(nn.Module):
    """What nobody uses, what no loss depends on, what does not learn, what is computed twice, statistics that are not
    kept."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU(inplace=True)
        )
        self.twice = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.unused = nn.Linear(3, 3)
        self.beside = nn.Sequential(nn.Conv2d(4, 2, 1), nn.ReLU())
        self.frozen = nn.Conv2d(4, 4, 1).requires_grad_(False)
        self.last = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = checkpoint(self.twice, x, use_reentrant=False) if self.training else self.twice(x)
        self.beside(x)
        return self.last(self.frozen(x).mean((2, 3)))


def make_parent(data_dir: str) -> None:
    """What a training starts from and is taught by."""
    [config] = compose_sweep([*COMMON.split(), "seed=1", f"data_dir={data_dir}"])
    torch.save(run.locate_and_build(config).network.module.state_dict(), Path(data_dir) / PARENT)


def train(case: str, data_dir: str) -> dict[str, Any]:
    """The state of the training after STEPS."""
    settings = CASES[case].format(parent=Path(data_dir) / PARENT)
    [config] = compose_sweep([*COMMON.split(), *settings.split(), f"data_dir={data_dir}"])
    experiment = run.locate_and_build(config)
    if case == ODD:
        torch.manual_seed(0)
        experiment.network = Network(Odd(), channels=1)
    trainer = experiment.trainer()
    for network in (trainer.model, *(teacher.network for teacher in trainer.terms)):
        network.double().register_forward_pre_hook(lambda model, args: (args[0].double(),))
    steps = iter(range(STEPS))
    for _ in trainer.epochs(lambda: next(steps, None) is None, lambda done, figures: None):
        pass
    return trainer.state()


if __name__ == "__main__":
    states = {case: train(case, sys.argv[1]) for case in CASES}
    torch.save(states, Path(sys.argv[2]) / f"{ranks.rank()}.pt")
