"""One thread a process: the tests run in several processes, and more threads than cores only wait for each other."""

import os

import pytest

os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture
def small_config(tmp_path):
    """Real digits and a network of width 4: a run takes a second."""
    from eat_runner.config import DatasetConfig, ExperimentConfig, ModelConfig, TrainerConfig

    return ExperimentConfig(
        dataset=DatasetConfig(train_limit=160, crop_padding=1),
        model=ModelConfig(width=4),
        trainer=TrainerConfig(epochs=2, batch_size=32, lr=0.05, compile="off"),
        results_dir=str(tmp_path / "results"),
        data_dir=str(tmp_path / "data"),
        threads=1,
        device="cpu",
    )


@pytest.fixture
def mask_method(monkeypatch):
    """The method of examples.py, added to the registries as a line in each would."""
    import examples
    from eat_runner.config.groups import GROUPS
    from eat_runner.methods import METHODS

    monkeypatch.setitem(GROUPS, "mask", examples.GROUP)
    monkeypatch.setitem(METHODS, "mask", examples.Mask)
    return examples.Mask
