"""Runs on disk -> one table, priced from their counts with any hardware. No torch."""

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, get_type_hints

from eat_runner.config.hardware import SCHEMAS, HardwareConfig, PublishedHardware
from eat_runner.config.identity import digest, is_plain_baseline, varied
from eat_runner.energy.counts import Counts
from eat_runner.energy.estimate import estimate
from eat_runner.energy.rules import RULES
from eat_runner.energy.rules.base import EnergyReport, LayerEnergy
from eat_runner.errors import UserError
from eat_runner.records import RunFolder, RunRecord, Scalar, fits

if TYPE_CHECKING:
    import pandas as pd

BROKEN = "broken"
# of two copies of a run, from two machines, the one that got further counts
RANK = {"finished": 0, "diverged": 1, "interrupted": 2, "running": 3, "failed": 4, BROKEN: 5}
NAMED = frozenset({"dataset.name", "model.name", "model.arch", "model.width"})
LONGEST_NAME = 200
FORMULA = ("=", "+", "-", "@")  # what a spreadsheet computes begins with one of these
MAX_WORKERS, FOLDERS_PER_WORKER = 8, 1000

Common = tuple[tuple[str, str], ...]  # what determines a result and is not VARIED


@dataclass(kw_only=True, slots=True)
class Run:
    """A row of the table. Empty texts and None where a run has no such value.

    width: of our networks. lambda_, penalty: 0 and ``none`` for a baseline (standard training, ST). accuracy,
    energy_ratio, energy_floor, energy_uj_per_image: on the test split. firing_rate: on the validation split.
    energy_decrease_percent: against the baseline with the same baseline_id. seconds: of training. setting_id: hash of
    everything but the seed. family: readable name of what the points of one front have in common. reason: why the run,
    or its energy, is missing.
    """

    run_id: str
    dataset: str = ""
    model: str = ""
    width: int | None = None
    penalty: str = ""
    scope: str = ""
    weighting: str = ""
    lambda_: float | None = None
    sigma: float | None = None
    schedule: str = ""
    seed: int | None = None
    status: str = BROKEN
    accuracy: float | None = None
    accuracy_validation: float | None = None
    accuracy_train: float | None = None
    energy_ratio: float | None = None
    energy_ratio_validation: float | None = None
    energy_floor: float | None = None
    energy_decrease_percent: float | None = None
    energy_uj_per_image: float | None = None
    dense_uj_per_image: float | None = None
    firing_rate: float | None = None
    firing_rate_test: float | None = None
    epochs: int | None = None
    parameters: int | None = None
    seconds: float | None = None
    hardware: str = ""
    baseline_id: str = ""
    setting_id: str = ""
    family: str = ""
    folder: str = ""
    reason: str = ""

    @property
    def is_baseline(self) -> bool:
        return self.penalty == "none"

    @property
    def priced(self) -> bool:
        """True for a finished run with an accuracy and an energy: a point of the front."""
        return self.status == "finished" and self.energy_ratio is not None and self.accuracy is not None

    def to_row(self) -> dict[str, Scalar]:
        """The fields under the table's column names."""
        return {name.rstrip("_"): getattr(self, name) for name in self.__slots__}


def collate(folders: Path | Sequence[Path], hardware: HardwareConfig) -> "pd.DataFrame":
    """The table of ``collate_runs`` as a data frame: a row a run, columns as the fields of Run."""
    import pandas as pd  # takes longer to import than a small table takes to make

    return pd.DataFrame([run.to_row() for run in collate_runs(folders, hardware)])


def collate_runs(folders: Path | Sequence[Path], hardware: HardwareConfig) -> list[Run]:
    """All runs in and below ``folders``, sorted, priced from their counts.

    A run that lies in several folders (merged from several machines) is taken once. Runs that are not finished have no
    energy; a folder whose files are damaged is a row of status ``broken``.
    Raises UserError if a folder is not there, holds no run, or no finished run can be priced with ``hardware``.
    """
    roots = [folders] if isinstance(folders, Path) else list(folders)
    best: dict[str, tuple[Run, Common]] = {}
    for run, common in _read_all([folder for root in roots for folder in run_folders(root)], hardware):
        if run.run_id not in best or _rank(run) < _rank(best[run.run_id][0]):
            best[run.run_id] = run, common
    runs = [run for run, _ in best.values()]
    if not runs:
        raise UserError(f"{' '.join(map(str, roots))}: no runs in there: name a folder that eat-run wrote")
    finished = [run for run in runs if run.status == "finished"]
    if finished and all(run.reason for run in finished):
        raise UserError(finished[0].reason)
    _label_families(best.values())
    _compare_with_baselines(runs)
    return sorted(runs, key=_order)


def run_folders(root: Path) -> list[RunFolder]:
    """The run folders in and below ``root``, sorted. A folder is one if it has a record.json or a config.yaml."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder")
    found: list[RunFolder] = []

    def closed(error: OSError) -> None:
        if isinstance(error, PermissionError):  # it may be a run: reading its record says what is wrong
            found.append(RunFolder(error.filename))

    for path, folders, files in os.walk(root, onerror=closed):
        if "record.json" in files or "config.yaml" in files:
            found.append(RunFolder(path))
            folders.clear()
        folders[:] = sorted(name for name in folders if not name.startswith("."))
    return found


def hardware_of(folders: Sequence[Path]) -> HardwareConfig:
    """The hardware that the first readable run was configured with; ``published`` if none says."""
    for folder in (folder for root in folders for folder in run_folders(root)):
        try:
            values = folder.read_record().config["hardware"]
            schema = SCHEMAS[values["rule"]]
            hardware = schema(**values)
            hardware.check()
            types = get_type_hints(schema)
            if all(fits(value, types[key]) for key, value in values.items()):
                return hardware
        except (ValueError, LookupError, TypeError, ArithmeticError):
            continue
    return PublishedHardware()


@dataclass(frozen=True, slots=True)
class LayerMeans:
    """A layer's means over seeds: test split, per image, energies in units of a MAC where prices are relative."""

    name: str
    op: str
    firing_rate: float
    energy_pj: float
    dense_pj: float


def layer_means(runs: Sequence[Run], hardware: HardwareConfig) -> list[LayerMeans]:
    """The layers of runs of one setting, in the order of their calls.

    Raises UserError, which names the folder, where counts are damaged, cannot be priced, or are of other layers.
    """
    reports: list[list[LayerEnergy]] = []
    for run in runs:
        folder = RunFolder(run.folder)
        layers = _estimate(folder, folder.read_counts(), hardware, "test").layers
        if not layers:
            raise UserError(f"{folder.layers}: there are no layers of the test split")
        if reports and [layer.name for layer in layers] != [layer.name for layer in reports[0]]:
            raise UserError(f"{folder.layers}: its layers are others than those in {runs[0].folder}")
        reports.append(layers)
    return [
        LayerMeans(
            name=printable(layers[0].name),
            op=printable(layers[0].op),
            firing_rate=fmean(layer.firing_rate for layer in layers),
            energy_pj=fmean(layer.energy_pj for layer in layers),
            dense_pj=fmean(layer.dense_pj for layer in layers),
        )
        for layers in zip(*reports, strict=True)
    ]


def printable(text: str, longest: int | None = LONGEST_NAME) -> str:
    """``text`` in one line that no terminal, table or image takes for a command; cut where it is longer than that."""
    clean = "".join(character if character.isprintable() else "?" for character in text)
    return clean if longest is None or len(clean) <= longest else f"{clean[:longest]}…"


def cell(value: Scalar) -> Scalar:
    """``value`` as a table may hold it: text is printable, and an apostrophe stands before what a spreadsheet would
    compute."""
    if not isinstance(value, str):
        return value
    text = printable(value, longest=None)
    return f"'{text}" if text.lstrip().startswith(FORMULA) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _order(run: Run) -> tuple[Any, ...]:
    numbers = (run.lambda_ or 0.0, run.penalty, run.sigma or 0.0, run.schedule, run.seed or 0)
    return run.dataset, run.model, run.width or 0, run.family, *numbers, run.setting_id, run.run_id


def _rank(run: Run) -> tuple[int, bool]:
    return RANK[run.status], bool(run.reason)


def _read_all(folders: Sequence[RunFolder], hardware: HardwareConfig) -> Iterator[tuple[Run, Common]]:
    """``_read`` of every folder, in order; on several cores where layer by layer prices make it worth while."""
    read = partial(_read, hardware=hardware)
    workers = min(MAX_WORKERS, os.cpu_count() or 1, len(folders) // FOLDERS_PER_WORKER)
    if workers < 2 or not RULES[hardware.rule].reads_layers:
        yield from map(read, folders)
        return
    # spawn: a fork of a process with threads (torch's, in eat-run) may hang
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        yield from pool.map(read, folders, chunksize=FOLDERS_PER_WORKER // 10)


def _read(folder: RunFolder, hardware: HardwareConfig) -> tuple[Run, Common]:
    """A folder's run: running where there is no record yet, broken where its files cannot be read, without energy where
    its counts cannot be priced."""
    run = Run(run_id=printable(folder.path.name), folder=str(folder.path), hardware=printable(hardware.name))
    common: Common = ()
    try:
        record = folder.read_record()
        run = replace(run, **_from_record(record, folder))
        common = _in_common(record.determinants)
        if record.status == "finished":
            run = replace(run, **_energy(folder, record, hardware))
    except UserError as error:
        if isinstance(error.__cause__, FileNotFoundError) and error.__cause__.filename == str(folder.record):
            run = replace(run, status="running", reason="no record yet: a process has it, or was killed")
        else:
            run = replace(run, reason=printable(str(error)))
    return run, common


def _from_record(record: RunRecord, folder: RunFolder) -> dict[str, Any]:
    try:
        if record.status == "finished" and not record.determinants:
            raise ValueError("a finished run without determinants")
        return {
            "run_id": printable(record.run_id),
            "status": record.status,
            "reason": printable(record.reason),
            **_from_config(record.config),
            "accuracy": _share(record.accuracy.get("test")),
            "accuracy_validation": _share(record.accuracy.get("validation")),
            "accuracy_train": _share(record.accuracy.get("train")),
            "firing_rate": _share(record.firing_rate),
            "firing_rate_test": _share(record.firing_rate_test),
            "epochs": _whole(record.epochs_done),
            "parameters": _whole(record.parameters),
            "seconds": _real(sum(seconds or 0.0 for seconds in record.timings.values())),
            "baseline_id": printable(record.baseline_id),
            "setting_id": _setting_id(record.determinants),
        }
    except (KeyError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
        raise UserError(f"{folder.record} is no run's ({type(error).__name__}: {error})") from error


def _setting_id(determinants: dict[str, Any]) -> str:
    """Hash of what a run's setting is: everything that determines its result but the seed."""
    return digest({key: value for key, value in determinants.items() if key != "seed"}) if determinants else ""


def _from_config(config: dict[str, Any]) -> dict[str, Any]:
    """What was chosen. A baseline (ST) has lambda 0 and no penalty, under whatever penalty it was started."""
    model, penalty = config["model"], config["penalty"]
    baseline = is_plain_baseline(config)
    chosen = {
        "dataset": _name(config["dataset"]["name"]),
        "model": _name(model["arch"] or model["name"]),
        "width": _whole(model["width"]),
        "seed": _whole(config["seed"]),
        "lambda_": 0.0 if baseline else _real(config["lambda"]),
        "penalty": "none" if baseline else _name(penalty["name"]),
    }
    if baseline:
        return chosen
    return chosen | {
        "schedule": _name(config["schedule"]["name"]),
        "scope": _name(penalty["scope"]),
        "weighting": _name(penalty["weighting"] if "weighting" in penalty else penalty["normalisation"]),
        "sigma": _real(penalty["sigma"]),
    }


def _name(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.50} is no name")
    return printable(value)


def _whole(value: Any) -> int:
    if not isinstance(value, int) or not 0 <= value < 2**63:
        raise ValueError(f"{value!r:.50} is no whole number in range")
    return value


def _real(value: Any) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r:.50} is no finite number")
    return float(value)


def _share(value: float | None) -> float | None:
    if value is not None and not 0 <= value <= 1:
        raise ValueError(f"{value!r:.50} is not between 0 and 1")
    return value


def _energy(folder: RunFolder, record: RunRecord, hardware: HardwareConfig) -> dict[str, Any]:
    counts = folder.read_counts(record, layers=RULES[hardware.rule].reads_layers)
    measured = {batch.split for batch in counts.batches}
    test = _estimate(folder, counts, hardware, "test")
    validation = _estimate(folder, counts, hardware, "validation") if "validation" in measured else None
    return {
        "energy_ratio": test.ratio,
        "energy_ratio_validation": validation.ratio if validation else None,
        "energy_floor": test.floor,
        "energy_uj_per_image": test.energy_uj_per_image,
        "dense_uj_per_image": test.dense_uj_per_image,
    }


def _estimate(folder: RunFolder, counts: Counts, hardware: HardwareConfig, split: str) -> EnergyReport:
    try:
        report = estimate(counts, hardware, split)
        if not all(math.isfinite(value) for value in report.summary().values() if value is not None):
            raise OverflowError("energy without end")
    except (ArithmeticError, LookupError) as error:
        raise UserError(f"{folder.path}: the counts make no sense ({type(error).__name__}: {error})") from error
    return report


def _compare_with_baselines(runs: list[Run]) -> None:
    standard = {run.baseline_id: run.energy_ratio for run in runs if run.is_baseline and run.energy_ratio}
    for run in runs:
        against = standard.get(run.baseline_id)
        if against is not None and run.energy_ratio is not None:
            run.energy_decrease_percent = (against - run.energy_ratio) / against * 100


def _in_common(determinants: dict[str, Any]) -> Common:
    """Everything that an experiment does not vary, one level deep: ``("trainer.epochs", "20")``. A family shares it."""
    flat: dict[str, str] = {}
    for group, value in determinants.items():
        if group not in varied():
            inner = value if isinstance(value, dict) else {"": value}
            flat |= {f"{group}.{key}".rstrip("."): str(item) for key, item in inner.items()}
    return tuple(sorted(flat.items()))


def _label_families(runs: Iterable[tuple[Run, Common]]) -> None:
    """Give runs a readable name of their family: data set, model, and what tells the families apart."""
    families: dict[Common, list[Run]] = {}
    for run, common in runs:
        families.setdefault(common, []).append(run)
    values: dict[str, set[str | None]] = {}
    for key in {key for common in families for key, _ in common} - NAMED:
        values[key] = {dict(common).get(key) for common in families if common}
    telling = {key for key, found in values.items() if len(found) > 1}
    taken: set[str] = set()
    for common in sorted(families):
        first = families[common][0]
        name = f"{first.dataset} · {first.model}" if common else ""
        if width := dict(common).get("model.width"):  # only there where it is not the standard network's
            name = f"{name}, width {width}"
        label = printable(", ".join([name, *(f"{key}={value:.40}" for key, value in common if key in telling)]))
        if label in taken:
            label = f"{label} ({digest(common)})"
        taken.add(label)
        for run in families[common]:
            run.family = label
