"""A run's folder -> its row, priced from its counts with any hardware. No pandas: worker processes start with this."""

import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, get_type_hints

from eat_runner.analysis.columns import COLUMNS, EMPTY, Facts, read_columns
from eat_runner.config.hardware import SCHEMAS, HardwareConfig, PublishedHardware, corners
from eat_runner.config.identity import varied
from eat_runner.energy.counts import Counts
from eat_runner.energy.estimate import estimate
from eat_runner.energy.rules import RULES
from eat_runner.energy.rules.base import EnergyReport
from eat_runner.errors import UserError, printable
from eat_runner.records import RunFolder, RunRecord, fits

BROKEN = "broken"
MAX_WORKERS, FOLDERS_PER_WORKER = 8, 1000

Row = dict[str, Any]
Common = tuple[tuple[str, str], ...]  # what determines a result and does not vary within a family


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


def read_rows(roots: Sequence[Path], hardware: HardwareConfig) -> Iterator[Row]:
    """The row of every run in and below ``roots``, in order; read by several processes where pricing layer by layer
    makes it worth while."""
    folders = [folder for root in roots for folder in run_folders(root)]
    read = partial(read_row, hardware=hardware)
    workers = min(MAX_WORKERS, os.cpu_count() or 1, len(folders) // FOLDERS_PER_WORKER)
    if workers < 2 or not RULES[hardware.rule].reads_layers:
        yield from map(read, folders)
        return
    # spawn: a fork of a process with threads (torch's, in eat-run) may hang
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        yield from pool.map(read, folders, chunksize=FOLDERS_PER_WORKER // 10)


def read_row(folder: RunFolder, hardware: HardwareConfig) -> Row:
    """A run's row: of status ``running`` where there is no record yet, ``broken`` where its files cannot be read,
    without energy where its counts cannot be priced; ``reason`` says why."""
    row = {column.key: EMPTY[column.kind] for column in COLUMNS}
    row |= {"run_id": printable(folder.path.name), "status": BROKEN, "folder": str(folder.path)}
    row |= {"hardware": printable(hardware.name)}
    try:
        record = folder.read_record()
        facts = Facts(record)
        row |= _read_facts(facts, folder) | {"common": _in_common(record.determinants)}
        if record.status == "finished":
            row |= _read_facts(_priced(record, folder, hardware), folder)
    except UserError as error:
        if isinstance(error.__cause__, FileNotFoundError) and error.__cause__.filename == str(folder.record):
            row |= {"status": "running", "reason": "no record yet: a process has it, or was killed"}
        else:
            row |= {"reason": printable(str(error))}
    return row


def _read_facts(facts: Facts, folder: RunFolder) -> Row:
    try:
        if facts.record.status == "finished" and not facts.record.determinants:
            raise ValueError("a finished run without determinants")
        return read_columns(facts)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        raise UserError(f"{folder.record} is no run's ({type(error).__name__}: {error})") from error


def _in_common(determinants: Row) -> Common:
    """Everything that an experiment does not vary, one level deep: ``("trainer.epochs", "20")``. A family shares it."""
    flat: dict[str, str] = {}
    for group, value in determinants.items():
        if group not in varied():
            inner = value if isinstance(value, dict) else {"": value}
            flat |= {f"{group}.{key}".rstrip("."): str(item) for key, item in inner.items()}
    return tuple(sorted(flat.items()))


def _priced(record: RunRecord, folder: RunFolder, hardware: HardwareConfig) -> Facts:
    counts = folder.read_counts(record, layers=RULES[hardware.rule].reads_layers)
    validated = any(batch.split == "validation" for batch in counts.batches)

    def facts(prices: HardwareConfig, *corners: Facts) -> Facts:
        test = estimate_split(folder, counts, prices, "test")
        validation = estimate_split(folder, counts, prices, "validation") if validated else None
        return Facts(record, test, validation, corners)

    return facts(hardware, *(facts(corner) for corner in corners(hardware)))


def estimate_split(folder: RunFolder, counts: Counts, hardware: HardwareConfig, split: str) -> EnergyReport:
    """``estimate``, but UserError, which names the folder, where the counts make no sense."""
    try:
        report = estimate(counts, hardware, split)
        if not all(math.isfinite(value) for value in report.summary().values() if value is not None):
            raise OverflowError("energy without end")
    except (ArithmeticError, LookupError) as error:
        raise UserError(f"{folder.path}: the counts make no sense ({type(error).__name__}: {error})") from error
    return report
