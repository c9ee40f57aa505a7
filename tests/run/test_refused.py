"""What cannot be counted or priced is refused before any training."""

import importlib.metadata
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from eat_runner.config import L0Config, ModelConfig, PenaltyConfig
from eat_runner.energy.hardware import load_hardware
from eat_runner.errors import UserError
from eat_runner.run import locate_and_build


class Uncounted(nn.Module):
    def __init__(self, channels: int, classes: int, function: str) -> None:
        super().__init__()
        self.conv, self.head, self.function = nn.Conv2d(channels, 4, 3), nn.Linear(4, classes), function

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = torch.erfinv(x.tanh()) if self.function == "erfinv" else x @ x.mT
        return self.head(x.mean((2, 3)))


def erfinv(image_size: int, channels: int, classes: int) -> nn.Module:
    return Uncounted(channels, classes, "erfinv")


def product(image_size: int, channels: int, classes: int) -> nn.Module:
    return Uncounted(channels, classes, "matmul")


class Scaled(nn.Module):
    """Overwrites what a layer returned, in training alone."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(channels, 4, 3), nn.Linear(4, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.training:
            x.mul_(2.0)
        return self.head(x.relu().mean((2, 3)))


def scaled(image_size: int, channels: int, classes: int) -> nn.Module:
    return Scaled(channels, classes)


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch) -> None:
    made = [
        importlib.metadata.EntryPoint(f.__name__, f"{__name__}:{f.__name__}", "m") for f in (erfinv, product, scaled)
    ]
    monkeypatch.setattr("eat_runner.models.external.entry_points", lambda group: made)


@pytest.mark.usefixtures("offered")
@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("erfinv", r"^no rule counts erfinv: meter\.ignore_uncounted=true"),
        ("product", r"^hardware published never saw the products of matmul: use hardware with rule: fused"),
    ],
)
def test_before_the_first_epoch(small_config, arch: str, message: str) -> None:
    config = replace(small_config, model=ModelConfig(name="entry_point", arch=arch))
    config.trainer.evaluate_every = 5
    with pytest.raises(UserError, match=message):
        locate_and_build(config)
    assert not list(Path(config.results_dir).rglob("history.csv"))
    config.meter.ignore_uncounted = True
    assert locate_and_build(config).run_id


@pytest.mark.usefixtures("offered")
def test_what_the_chosen_hardware_prices_is_welcome(small_config) -> None:
    model, hardware = ModelConfig(name="entry_point", arch="product"), load_hardware("fused_7nm_int8")
    assert locate_and_build(replace(small_config, model=model, hardware=hardware)).run_id


@pytest.mark.usefixtures("offered")
def test_what_only_a_training_step_shows(small_config) -> None:
    config = replace(
        small_config,
        model=ModelConfig(name="entry_point", arch="scaled"),
        penalty=PenaltyConfig(name="hoyer"),
        lambda_=1.0,
    )
    with pytest.raises(UserError, match=r"^what conv returns is overwritten in training before its penalty was taken"):
        locate_and_build(config)
    assert not list(Path(config.results_dir).rglob("history.csv"))
    assert locate_and_build(replace(config, penalty=L0Config())).run_id
