"""What determines a run's result, and the names that follow from it."""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import chain
from typing import Any

from eat_runner.config.groups import DEFAULT, GROUPS
from eat_runner.config.hardware import HardwareConfig
from eat_runner.config.root import ExperimentConfig, is_baseline
from eat_runner.config.schedule import ScheduleConfig

# what names a price list and says where its prices come from
NOT_PRICES = frozenset({"name", "process_nm", "note", "float_note", "source", "ranges"})
BY_BITS = "mac_pj_by_bits"  # prices that only a run with layers of these widths reads
# root keys that an experiment varies within a family, beside the groups that it varies
BUDGETS = ("budget", "budget_uj")
VARIED_KEYS = frozenset({"lambda", "seed", *BUDGETS})
HASH_DIGITS = 8


@dataclass(frozen=True)
class Start:
    """What a network starts from: nothing (fresh weights), a file of weights, by its hash, or another run, its parent.

    A parent counts by its run id, so that a child's name is known before the parent is trained; the checksum of the
    parent's weights stands in the child's record. widths: of the parent's integers, in bits, none of floats.
    """

    file_hash: str | None = None
    parent: str | None = None
    widths: frozenset[int] = frozenset()


FRESH = Start()


def determinants(config: ExperimentConfig, data_fingerprint: str, start: Start = FRESH) -> dict[str, Any]:
    """The values that determine a run's result, schema defaults left out so that a key added later keeps old hashes.

    data_fingerprint: hash of the data set's content. Hardware is among them, by its prices, if and only if something
    that shapes the network reads them. Paths, names, loggers, selection, launcher, threads and the device's name are
    not.
    """
    config = config.canonical()
    chosen = {name: config.group(name) for name, group in GROUPS.items() if group.hashed and not group.method}
    chosen = {name: schema for name, schema in chosen.items() if not GROUPS[name].later or schema != type(schema)()}
    chosen |= config.chosen_methods
    values = {name: _differing(schema, GROUPS[name].without_effect) for name, schema in chosen.items()}
    if config.reads_hardware:
        values["hardware"] = _prices(config.hardware, config.widths | start.widths)
    values |= {key: limit for key in BUDGETS if (limit := getattr(config, key)) is not None}
    values |= {"lambda": config.lambda_, "seed": config.seed, "data": data_fingerprint}
    if start.parent is not None:
        values["parent"] = start.parent
    elif start.file_hash is not None:
        values["init"] = start.file_hash
    return values


def _prices(hardware: HardwareConfig, widths: Collection[int]) -> dict[str, Any]:
    """The prices that can have a part in a run with layers of these widths. Keys marked ``later`` came when there were
    runs already: they are left out at their defaults."""
    values, default = asdict(hardware), asdict(type(hardware)())
    if BY_BITS in values:
        values[BY_BITS] = {str(bits): prices for bits, prices in values[BY_BITS].items() if bits in widths}
    later = {f.name for f in fields(hardware) if f.metadata.get("later")}
    left_out = NOT_PRICES | {key for key in later if values[key] == default[key]}
    return {key: value for key, value in values.items() if key not in left_out}


def _differing(chosen: Any, ignored: frozenset[str]) -> dict[str, Any]:
    """The name, and the values that are not their schema's defaults."""
    default = type(chosen)()
    return {
        f.metadata.get("hashed_as", f.name): getattr(chosen, f.name)
        for f in fields(chosen)
        if f.name not in ignored and (f.name == "name" or getattr(chosen, f.name) != getattr(default, f.name))
    }


def digest(values: Any) -> str:
    """Short hash of the canonical JSON of ``values``: keys sorted, no spaces."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_DIGITS]


def run_id(config: ExperimentConfig, data_fingerprint: str, start: Start = FRESH) -> str:
    """Readable name that ends in the hash, e.g. ``digits-resnet18-l0-lambda1-seed0-3f9c12ab``."""
    config = config.canonical()
    return "-".join(
        [
            config.dataset.name,
            config.model.arch or config.model.name,
            config.penalty.name,
            *(f"{group}_{method.name}" for group, method in config.chosen_methods.items()),
            f"lambda{config.lambda_:g}",
            f"seed{config.seed}",
            digest(determinants(config, data_fingerprint, start)),
        ]
    )


def varied() -> frozenset[str]:
    """The determinants that an experiment varies within a family: the others are the same for all of its points."""
    return VARIED_KEYS | {name for name, group in GROUPS.items() if group.varied or group.method}


def baseline_id(config: ExperimentConfig, data_fingerprint: str, start: Start = FRESH) -> str:
    """Hash of everything but penalty, schedule, lambda and methods: a run and the baseline that it is compared with
    share it."""
    values = determinants(config, data_fingerprint, start)
    return digest({key: value for key, value in values.items() if key == "seed" or key not in varied()})


def is_plain_baseline(values: Mapping[str, Any]) -> bool:
    """``ExperimentConfig.is_baseline`` of a configuration that ``as_plain`` wrote, or of a run's determinants."""
    methods = (values[name]["name"] for name, group in GROUPS.items() if group.method and name in values)
    untaught = values.get("teacher", {}).get("name", DEFAULT) == DEFAULT
    return untaught and is_baseline(values["lambda"], values["penalty"]["name"], methods)


def preparation(config: ExperimentConfig) -> str:
    """A key that configurations share which need the same data, network and measurements made ready: seeds, lambdas
    and schedules need no preparation of their own, nor does it matter where results go."""
    config = config.canonical()
    return repr(
        replace(
            config,
            lambda_=float(config.is_penalised),
            seed=0,
            schedule=ScheduleConfig(),
            name="any",
            results_dir="any",
        )
    )


def distinctions(configs: Mapping[str, ExperimentConfig]) -> dict[str, str]:
    """What tells runs apart whose ids differ in the hash alone, as on the command line (``model.width=8``): by run id,
    empty for all others."""
    alike: dict[str, list[str]] = {}
    for identity in configs:
        alike.setdefault(identity.rpartition("-")[0], []).append(identity)
    told = dict.fromkeys(configs, "")
    for ids in alike.values():
        if len(ids) > 1:
            told |= zip(ids, _told_apart([configs[identity] for identity in ids]), strict=True)
    return told


def _told_apart(configs: Sequence[ExperimentConfig]) -> list[str]:
    """The values that determine a result and are not the same for all. A file that weights come from, which may be a
    run of the same sweep, is named where nothing else differs."""
    determining = {key for config in configs for key in determinants(config, "")}
    runs = [_by_key(config) for config in configs]
    keys = [key for key in dict.fromkeys(chain(*runs)) if len({run.get(key) for run in runs}) > 1]
    chosen = [key for key in keys if key.partition(".")[0] in determining and key.rpartition(".")[0] not in keys]
    return [" ".join(f"{key}={run[key]}" for key in chosen or ["init"] if key in run) for run in runs]


def _by_key(config: ExperimentConfig) -> dict[str, str]:
    """Values as text under the keys of the command line; a group's name stands under the group alone."""
    texts: dict[str, str] = {}
    for key, value in as_plain(config.canonical()).items():
        inner = value.items() if isinstance(value, dict) else [("", value)]
        texts |= {f"{key}.{name}".removesuffix(".").removesuffix(".name"): _text(found) for name, found in inner}
    return texts


def _text(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def as_plain(config: ExperimentConfig) -> dict[str, Any]:
    """The configuration as nested plain values, under the names of the command line (``lambda``, not ``lambda_``)."""
    values = asdict(config)
    values["lambda"] = values.pop("lambda_")
    return values | values.pop("methods") | values.pop("others")
