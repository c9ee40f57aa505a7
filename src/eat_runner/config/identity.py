"""What determines a run's result, and the names that follow from it."""

import hashlib
import json
from dataclasses import asdict, fields, replace
from typing import Any

from eat_runner.config.root import ExperimentConfig
from eat_runner.config.schedule import ScheduleConfig

# groups in the hash, and their keys that change no result
GROUPS = ("dataset", "model", "penalty", "schedule", "trainer", "meter")
WITHOUT_EFFECT = {
    "trainer": {"evaluate_every", "checkpoint_every", "keep_checkpoint"},
    "meter": {"ignore_uncounted"},
}
HASH_DIGITS = 8


def determinants(config: ExperimentConfig, data_fingerprint: str, init_hash: str | None) -> dict[str, Any]:
    """The values that determine a run's result, schema defaults left out so that a key added later keeps old hashes.

    data_fingerprint: hash of the data set's content. init_hash: hash of the initial weights' file, None without one.
    Paths, names, hardware, selection, launcher, threads and the device's name are not among them.
    """
    config = config.normalised()
    values: dict[str, Any] = {}
    for group in GROUPS:
        chosen = getattr(config, group)
        default = type(chosen)()
        ignored = WITHOUT_EFFECT.get(group, set())
        values[group] = {
            f.name: getattr(chosen, f.name)
            for f in fields(chosen)
            if f.name not in ignored and (f.name == "name" or getattr(chosen, f.name) != getattr(default, f.name))
        }
    values |= {"lambda": config.lambda_, "seed": config.seed, "data": data_fingerprint}
    if init_hash is not None:
        values["init"] = init_hash
    return values


def digest(values: Any) -> str:
    """Short hash of the canonical JSON of ``values``: keys sorted, no spaces."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_DIGITS]


def run_id(config: ExperimentConfig, data_fingerprint: str, init_hash: str | None) -> str:
    """Readable name that ends in the hash, e.g. ``digits-resnet18-l0-lambda1-seed0-3f9c12ab``."""
    config = config.normalised()
    return "-".join(
        [
            config.dataset.name,
            config.model.arch or config.model.name,
            config.penalty.name,
            f"lambda{config.lambda_:g}",
            f"seed{config.seed}",
            digest(determinants(config, data_fingerprint, init_hash)),
        ]
    )


def baseline_id(config: ExperimentConfig, data_fingerprint: str, init_hash: str | None) -> str:
    """Hash of everything but penalty, schedule and lambda: a run and the baseline it is compared with share it."""
    values = determinants(config, data_fingerprint, init_hash)
    return digest({key: value for key, value in values.items() if key not in {"penalty", "schedule", "lambda"}})


def preparation(config: ExperimentConfig) -> str:
    """A key that configurations share which need the same data, network and measurements made ready: seeds, lambdas
    and schedules need no preparation of their own, nor does it matter where results go."""
    config = config.normalised()
    return repr(
        replace(
            config,
            lambda_=float(not config.is_baseline),
            seed=0,
            schedule=ScheduleConfig(),
            name="any",
            results_dir="any",
        )
    )


def as_plain(config: ExperimentConfig) -> dict[str, Any]:
    """The configuration as nested plain values, under the names of the command line (``lambda``, not ``lambda_``)."""
    values = asdict(config)
    values["lambda"] = values.pop("lambda_")
    return values
