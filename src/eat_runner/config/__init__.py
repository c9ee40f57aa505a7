"""Typed, validated configuration: dataclasses without Hydra, torch or files."""

from eat_runner.config.dataset import DatasetConfig
from eat_runner.config.method import MethodConfig
from eat_runner.config.model import ModelConfig
from eat_runner.config.penalty import L0Config, PenaltyConfig
from eat_runner.config.root import ExperimentConfig
from eat_runner.config.schedule import ScheduleConfig
from eat_runner.config.trainer import MeterConfig, TrainerConfig

__all__ = [
    "DatasetConfig",
    "ExperimentConfig",
    "L0Config",
    "MeterConfig",
    "MethodConfig",
    "ModelConfig",
    "PenaltyConfig",
    "ScheduleConfig",
    "TrainerConfig",
]
