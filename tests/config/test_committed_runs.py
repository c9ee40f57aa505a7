"""Every committed run is found again: its configuration, as its record has it, still leads to its folder."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from eat_runner.config import (
    DatasetConfig,
    ExperimentConfig,
    L0Config,
    MeterConfig,
    ModelConfig,
    PenaltyConfig,
    ScheduleConfig,
    TrainerConfig,
)
from eat_runner.config.groups import method_groups
from eat_runner.config.hardware import SCHEMAS
from eat_runner.config.identity import FRESH, Start, baseline_id, determinants, run_id
from eat_runner.config.root import default_methods, default_others

RESULTS = Path(__file__).resolve().parents[2] / "results"
COMMITTED = 351  # at least so many
GROUPS = {
    "dataset": DatasetConfig,
    "model": ModelConfig,
    "schedule": ScheduleConfig,
    "trainer": TrainerConfig,
    "meter": MeterConfig,
}
# what keys of records are called in the schemas, where that is something else
OTHER_NAMES = {"lambda": "lambda_", "normalisation": "weighting", "batch": "batch_size"}


def rebuilt(schema: type[Any], values: dict[str, Any]) -> Any:
    """A configuration from what a record has of it: under the names of then, without the keys that came later."""
    known = {field.name for field in fields(schema)}
    return schema(**{key if key in known else OTHER_NAMES[key]: value for key, value in values.items()})


def config_of(record: dict[str, Any]) -> ExperimentConfig:
    values = dict(record["config"])
    values.pop("others", None)
    others = {name: rebuilt(type(other), values.pop(name, {})) for name, other in default_others().items()}
    chosen = {name: values.pop(name) for name in method_groups() if name in values}
    groups = {name: rebuilt(schema, values[name]) for name, schema in GROUPS.items()}
    groups["methods"] = default_methods() | {
        name: rebuilt(method_groups()[name], method) for name, method in chosen.items()
    }
    groups["hardware"] = rebuilt(SCHEMAS[values["hardware"]["rule"]], values["hardware"])
    # a record of a baseline has a sigma, too
    penalised = values["penalty"]["name"] == "l0"
    groups["penalty"] = rebuilt(L0Config, values["penalty"]) if penalised else PenaltyConfig()
    return rebuilt(ExperimentConfig, values | groups | {"others": others})


def test_every_committed_run_is_found_again_by_its_configuration() -> None:
    paths = sorted(RESULTS.rglob("record.json"))
    assert len(paths) >= COMMITTED
    lost: list[str] = []
    for path in paths:
        record = json.loads(path.read_text())
        assert (record["init_hash"] is None) == (record.get("parent") is None)  # from a run, never from a file
        start = Start(parent=record["parent"]["run_id"]) if record.get("parent") else FRESH
        inputs = config_of(record), record["data_fingerprint"], start
        now = run_id(*inputs), determinants(*inputs), baseline_id(*inputs)
        names = {path.parent.name, record["run_id"]}
        if {now[0]} != names or now[1:] != (record["determinants"], record["baseline_id"]):
            lost.append(f"{path.parent.relative_to(RESULTS)} is now {now}")
    assert lost == []
