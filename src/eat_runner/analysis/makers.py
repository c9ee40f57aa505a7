"""What made a set of runs: commits, versions and machines, and how long it took."""

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from eat_runner.errors import UserError
from eat_runner.records import RunFolder


def makers(folders: Iterable[RunFolder]) -> list[dict[str, Any]]:
    """An entry for each combination of commit, versions, machine, device and threads, with its number of runs and
    seconds of training. Folders without a record that can be read are left out."""
    made: dict[str, dict[str, Any]] = {}
    for folder in folders:
        with suppress(UserError):
            record = folder.read_record()
            by = {key: getattr(record, key) for key in ("git_commit", "versions", "machine", "device", "threads")}
            entry = made.setdefault(json.dumps(by, sort_keys=True), by | {"runs": 0, "training_s": 0.0})
            entry["runs"] += 1
            entry["training_s"] += sum(seconds or 0.0 for seconds in record.timings.values())
    return [made[key] for key in sorted(made)]


def in_words(maker: Mapping[str, Any]) -> str:
    """An entry of ``makers`` in a line."""
    versions = ", ".join(f"{name} {version}" for name, version in maker["versions"].items() if version)
    threads = f"{maker['threads']} thread{'s' * (maker['threads'] > 1)} a run"
    where = maker["machine"].get("accelerator") or f"{maker['machine'].get('processor')}, {threads}"
    hours = maker["training_s"] / 3600
    return f"{maker['runs']} runs, {hours:.2f} hours of training on {where}; commit {maker['git_commit']}; {versions}"
