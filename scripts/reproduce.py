"""``make reproduce-paper``: the paper's Table 1 and Figures 1 to 3 (arXiv 2307.00368), ours beside the paper's.

Runs what is missing of conf/experiment/paper/*.yaml at a scale, then writes tables and figures from what lies on disk.
Several processes may run the same command: each run is done by one of them. Stopped at any point, the same command goes
on. Exit codes: 0 all is there; 1 a data set is missing or a run failed; 2 bad input; 75 stopped, or another process
still has runs: the same command continues.
"""

import argparse
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from eat_runner.cli.errors import one_line_errors
from eat_runner.cli.run import CONTINUE_ME, RUN_FAILED, run_hydra, status
from eat_runner.config.identity import run_id
from eat_runner.config.root import ExperimentConfig
from eat_runner.errors import UserError
from eat_runner.records import FINAL, RunFolder
from reproduction import report
from reproduction.cells import CHOICES, JPEG_COPY, PLAN, RUNS, SCALES, TABLE1, Cell, Job, Plan, Scale, jobs, read_plan

PROGRAM = "reproduce-paper"


def main() -> None:
    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        with one_line_errors(PROGRAM):
            code = command(sys.argv[1:])
    except KeyboardInterrupt:
        code = CONTINUE_ME
    if code == CONTINUE_ME:
        print(f"{PROGRAM}: not all is done: the same command continues", file=sys.stderr, flush=True)
    sys.exit(code)


def command(arguments: Sequence[str]) -> int:
    """Run the command line; the exit code. Raises UserError for bad input."""
    options = _parser().parse_args(arguments)
    if options.report_only:
        folder = options.results / (options.scale or "slim")
        print(report.write(folder))
        return exit_code(read_plan(folder).cells, folder)
    scale, on_gpu = choose_scale(options.scale)
    folder: Path = options.results / scale.name
    planned = [plan_cell(job, scale, folder, on_gpu, options.download) for job in jobs(scale, options.data_dir)]
    cells = tuple(one.cell for one in planned)
    Plan(scale.name, scale.caption, scale.brief, f"make reproduce-paper SCALE={scale.name}", cells).write(folder)
    print(introduction(scale, planned, folder, on_gpu), flush=True)
    try:
        run_all(planned, folder)
    except SystemExit as stopped:
        return CONTINUE_ME if stopped.code == CONTINUE_ME else RUN_FAILED
    print(report.write(folder), flush=True)
    return exit_code(cells, folder)


def choose_scale(name: str | None) -> tuple[Scale, bool]:
    """The named scale, or full with a CUDA GPU and slim without; and whether there is such a GPU."""
    import torch

    on_gpu = torch.cuda.is_available()
    return SCALES[name or ("full" if on_gpu else "slim")], on_gpu


@dataclass(frozen=True)
class PlannedCell:
    """A cell, its runs' configurations by run id, those that are not final, and the seconds that these will take."""

    cell: Cell
    configs: dict[str, ExperimentConfig]
    todo: tuple[str, ...] = ()
    seconds: float = 0.0


def plan_cell(job: Job, scale: Scale, folder: Path, on_gpu: bool, download: bool) -> PlannedCell:
    """What a cell needs; where its data are missing, the runs of an earlier plan, or the reason."""
    from eat_runner import experiment

    changes: dict[str, Any] = {"download": download, "data_dir": str(job.data_dir)}
    changes |= {"results_dir": str(folder / RUNS), "name": job.cell.name}
    try:
        configs = [replace(config, **changes) for config in compose(job.overrides)]
        if scale.name == "full" and on_gpu and job.cell.kind != CHOICES:
            # the paper names no precision, and bf16 takes half the time
            configs = [replace(c, trainer=replace(c.trainer, precision="bf16")) for c in configs]
        fingerprint = experiment.prepare(configs[0]).dataset.fingerprint
    except UserError as error:
        return PlannedCell(_as_before(job.cell, folder) or replace(job.cell, missing=_how_to_get(error)), {})
    by_id = {run_id(config, fingerprint, None): config for config in configs}
    cell = replace(job.cell, run_ids=tuple(by_id))
    for identity in by_id:
        take_over(folder / RUNS, cell.name, identity)
    todo = tuple(i for i in by_id if status(_run_folder(folder, cell, i)) not in FINAL)
    seconds = 0.0
    for baseline in (True, False):
        alike = [by_id[i] for i in todo if by_id[i].is_baseline == baseline]
        if alike:
            seconds += len(alike) * experiment.plan(alike[:1])[0].seconds
    return PlannedCell(cell, by_id, todo, seconds)


def compose(overrides: Sequence[str]) -> list[ExperimentConfig]:
    """The configurations of ``eat-run -m OVERRIDES``, composed by Hydra and checked, without running them."""
    configs: list[ExperimentConfig] = []

    def keep(found: list[ExperimentConfig]) -> None:
        configs.extend(found)
        sys.exit(0)

    with suppress(SystemExit):
        run_hydra(["-m", *overrides], keep)
    return configs


def _how_to_get(error: UserError) -> str:
    """The error in the words of this command."""
    text = str(error).replace("download=true fetches", "make reproduce-paper DOWNLOAD=true fetches")
    return (
        f"{text}, or a folder {JPEG_COPY} with train/<class>/ and test/<class>/" if "CIFAR10 is not" in text else text
    )


def _as_before(cell: Cell, folder: Path) -> Cell | None:
    """The cell of an earlier plan, made where the data were, if all of its runs are done."""
    if not (folder / PLAN).exists():
        return None
    for before in read_plan(folder).cells:
        if before.experiment == cell.experiment and before.run_ids and _finished(before, folder):
            return before
    return None


def _finished(cell: Cell, folder: Path) -> bool:
    return all(status(_run_folder(folder, cell, identity)) in FINAL for identity in cell.run_ids)


def _run_folder(folder: Path, cell: Cell, identity: str) -> RunFolder:
    return RunFolder(folder / RUNS / cell.name / identity)


def take_over(runs: Path, name: str, identity: str) -> None:
    """Copy a run that is final in another cell: the same identity means the same result."""
    target = runs / name / identity
    if target.exists():
        return
    for other in runs.glob(f"*/{identity}"):
        if RunFolder(other).is_final():
            temporary = runs / name / f".{identity}.{os.getpid()}"
            shutil.copytree(other, temporary, ignore=shutil.ignore_patterns(".lock"))
            try:
                temporary.rename(target)
            except OSError:  # another process was faster
                shutil.rmtree(temporary)
            return


def introduction(scale: Scale, planned: Sequence[PlannedCell], folder: Path, on_gpu: bool) -> str:
    """The first lines: which scale, what will run, what is done, how long the rest takes."""
    lines = [f"{PROGRAM}: scale {scale.name} ({'a' if on_gpu else 'no'} CUDA GPU), results in {folder}", scale.caption]
    width = max(len(_title(one.cell)) for one in planned)
    for one in planned:
        runs = len(one.cell.run_ids)
        text = one.cell.missing or f"{runs} runs, {runs - len(one.todo)} done"
        text += f", {_duration(one.seconds)} to go" if one.todo else ""
        lines.append(f"  {_title(one.cell):{width}}  {text}")
    runs, todo = sum(len(one.cell.run_ids) for one in planned), sum(len(one.todo) for one in planned)
    left = f", about {_duration(sum(one.seconds for one in planned))} in one process" if todo else ""
    lines.append(f"{runs} runs, {runs - todo} done, {todo} to do{left} (measured over a few steps of each kind)")
    if todo:
        lines.append("The same command in another shell shares the work; stopped, the same command goes on.")
    return "\n".join(lines)


def _title(cell: Cell) -> str:
    return cell.title if cell.kind == TABLE1 else f"{cell.experiment} ({cell.dataset})"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def run_all(planned: Sequence[PlannedCell], folder: Path) -> None:
    """Make every run that is not final; then look again at those that another process had, which may have died. Waits
    for nobody. A run that fails fails alone."""
    from eat_runner import experiment

    todo = [(one.cell.name, identity, one.configs[identity]) for one in planned for identity in one.todo]
    elsewhere: list[tuple[str, str, ExperimentConfig]] = []
    for turn in (todo, elsewhere):
        for name, identity, config in turn:
            take_over(folder / RUNS, name, identity)
            record = experiment.run(config)
            if record.status == "running" and turn is todo:
                elsewhere.append((name, identity, config))
            if record.status == "failed":
                print(f"{PROGRAM}: run {identity} failed: {record.reason}", file=sys.stderr, flush=True)


def exit_code(cells: Sequence[Cell], folder: Path) -> int:
    """What lies on disk says: 75 there is more to do; 1 done, but data are missing or a run failed; 0 complete."""
    statuses = {status(_run_folder(folder, cell, identity)) for cell in cells for identity in cell.run_ids}
    if statuses - FINAL - {"failed"}:
        return CONTINUE_ME
    return RUN_FAILED if "failed" in statuses or any(cell.missing for cell in cells) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=PROGRAM, description=__doc__, allow_abbrev=False)
    parser.add_argument("--scale", choices=SCALES, help="default: full with a CUDA GPU, slim without")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="where data sets lie (default: data)")
    parser.add_argument(
        "--results", type=Path, default=Path("results/reproduction"), help="results go to <this>/<scale>"
    )
    parser.add_argument("--download", action="store_true", help="fetch a missing data set where that is possible")
    parser.add_argument(
        "--report-only", action="store_true", help="write tables and figures from what is done; needs no torch"
    )
    return parser


if __name__ == "__main__":
    main()
