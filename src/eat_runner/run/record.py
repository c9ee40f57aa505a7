"""What is written down about a run."""

import traceback
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch

from eat_runner.config.identity import as_plain, baseline_id, determinants
from eat_runner.energy.budget import Budget
from eat_runner.energy.counts import Counts
from eat_runner.energy.estimate import estimate
from eat_runner.energy.hardware import builtin_hardware, load_hardware
from eat_runner.energy.rules.base import PJ_PER_UJ
from eat_runner.environment import git_commit, machine, versions
from eat_runner.errors import UserError, one_line
from eat_runner.ranks import is_first, world_size
from eat_runner.records import RunRecord, write_atomically
from eat_runner.run.build import Experiment
from eat_runner.run.locate import Job
from eat_runner.train.evaluate import Evaluation
from eat_runner.train.loop import Trainer

LONGEST_REASON = 1000  # characters


def record_of(experiment: Experiment, trainer: Trainer, status: str, reason: str = "") -> RunRecord:
    """The record of a run that ends here, without what was measured."""
    config, dataset, network = experiment.config, experiment.dataset, experiment.network
    origin, last = experiment.origin, trainer.history[-1] if trainer.history else None
    parent = origin.start.parent
    return RunRecord(
        run_id=experiment.run_id,
        status=status,
        reason=reason,
        config=as_plain(config),
        baseline_id=baseline_id(config, dataset.fingerprint, origin.start),
        determinants=determinants(config, dataset.fingerprint, origin.start),
        data_fingerprint=dataset.fingerprint,
        init_hash=origin.checksum,
        parent={"run_id": parent, "checksum": origin.checksum or ""} if parent is not None else None,
        changes=[*origin.changes, *_changes(experiment)],
        versions=versions(),
        machine=machine(experiment.device),
        git_commit=git_commit(),
        device=str(experiment.device),
        threads=torch.get_num_threads(),
        world_size=world_size(),
        timings={"training_s": sum(row.seconds for row in trainer.history) + trainer.seconds},
        epochs_done=trainer.epoch,
        parameters=trainer.parameters,
        accuracy={"train": last.train_accuracy if last else None, "validation": None, "test": None},
        loss={"train": last.cross_entropy if last else None, "validation": None, "test": None},
        meter={"batch_size": config.meter.batch_size, "threshold": config.meter.threshold},
        preprocessing={
            "image_size": dataset.image_size,
            "channels": network.channels,
            "mean": list(trainer.pixels.mean),
            "std": list(trainer.pixels.std),
            "class_names": list(dataset.class_names),
        },
        messages=experiment.messages,
    )


def _changes(experiment: Experiment) -> list[dict[str, object]]:
    return [
        {"method": name, "choice": method.config.name, **method.changes()}
        for name, method in experiment.methods.items()
    ]


def add_measurements(record: RunRecord, evaluations: Mapping[str, Evaluation], counts: Counts) -> None:
    """Accuracies, losses, firing rates, and the prices of every built-in hardware. counts: of all splits."""
    record.accuracy |= {split: e.accuracy for split, e in evaluations.items()}
    record.loss |= {split: e.loss for split, e in evaluations.items()}
    record.firing_rate = evaluations["validation"].counts.firing_rate if "validation" in evaluations else None
    record.firing_rate_test = evaluations["test"].counts.firing_rate
    record.uncounted = list(counts.uncounted)
    for name in builtin_hardware():
        with suppress(UserError):  # metered otherwise, or in other widths, than it prices; or its file is damaged
            hardware = load_hardware(name)
            # the layers can be priced from the counts at any time
            record.energy[name] = {split: estimate(counts, hardware, split).summary() for split in evaluations}


def budget_of(budget: Budget | None, evaluations: Mapping[str, Evaluation]) -> dict[str, Any] | None:
    """Whether the budget is met (RunRecord.budget)."""
    if budget is None:
        return None
    split = "validation" if "validation" in evaluations else "test"
    share = budget.share_of(evaluations[split].counts)
    return {
        "hardware": budget.hardware.name,
        "limit": budget.share,
        "limit_uj": None if budget.hardware.relative else budget.limit_pj / PJ_PER_UJ,
        "split": split,
        "share": share,
        "met": share <= budget.share,
    }


def record_failure(job: Job, error: Exception) -> RunRecord:
    """The record of a run that raised, with the traceback in a file beside it; written if the disk still allows it, by
    the first of several processes."""
    record = RunRecord(
        run_id=job.run_id,
        status="failed",
        reason=reason_of(error),
        config=as_plain(job.config),
        versions=versions(),
        world_size=world_size(),
        messages=job.messages if isinstance(job, Experiment) else [],
    )
    folder, text = job.folder, "".join(traceback.format_exception(error))
    if not is_first():
        return record
    try:
        write_atomically(folder.traceback, text.encode(errors="backslashreplace"))
        folder.write_record(record)
    except OSError as unwritable:
        record.messages.append(f"the record could not be written: {unwritable}")
        with suppress(OSError):  # an older record, such as interrupted, would tell something else
            folder.record.unlink(missing_ok=True)
    return record


def reason_of(error: Exception) -> str:
    """The error's type and first line."""
    return f"{type(error).__name__}: {first_line(error)}"


def first_line(error: Exception) -> str:
    """What an exception says, as a record and a terminal can hold it."""
    lines = str(error).strip().splitlines()
    return one_line(lines[0])[:LONGEST_REASON] if lines else ""
