"""A few steps of several trainings, by one process or by those of ``torchrun trained_together.py DATA FOLDER``: each of
these writes into FOLDER what has become of its own.

In float64: training makes a rounding error about ten times as large with each of the first steps, and what is left is
still far below what any mistake would move.
"""

import sys
from pathlib import Path
from typing import Any

import torch

from eat_runner import ranks, run
from eat_runner.cli.hydra.launch import compose_sweep

COMMON = (
    "dataset.train_limit=160 dataset.crop_padding=1 dataset.rotation_degrees=5 model.width=4 device=cpu threads=1 "
    "trainer.epochs=2 trainer.batch_size=33 trainer.lr=0.02 trainer.compile=off"
)  # 33 images: not the same number in every process; one epoch and a look, three steps of the next
STEPS = 7
CASES = {
    "penalty": "lambda=1",
    "functions": "lambda=1 penalty.scope=activations penalty.weighting=elements model=vgg11",
    "a ratio of sums": "lambda=0.1 penalty=hoyer",
    "prices": "lambda=10 penalty=l1 penalty.weighting=energy hardware=fused_45nm",
    "ascent": "lambda=1 penalty.weighting=parameters schedule.target=0.3",
    "channels": "pruning=energy pruning.channels=0.7 pruning.every_steps=1 hardware=fused_7nm_int8",
    "budget": "pruning=energy budget=0.5 pruning.every_steps=1 hardware=fused_7nm_int8",
    "integers": "bits=8 bits.begin=0 hardware=fused_7nm_int8",
}


def train(case: str, data_dir: str) -> dict[str, Any]:
    """The state of the training after STEPS."""
    [config] = compose_sweep([*COMMON.split(), *CASES[case].split(), f"data_dir={data_dir}"])
    trainer = run.locate_and_build(config).trainer()
    trainer.model.double()
    trainer.model.register_forward_pre_hook(lambda model, args: (args[0].double(),))
    steps = iter(range(STEPS))
    for _ in trainer.epochs(lambda: next(steps, None) is None, lambda done, figures: None):
        pass
    return trainer.state()


if __name__ == "__main__":
    states = {case: train(case, sys.argv[1]) for case in CASES}
    torch.save(states, Path(sys.argv[2]) / f"{ranks.rank()}.pt")
