"""The command itself: what is planned, run and reported. Needs torch for everything but ``--report-only``."""

import argparse
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from eat_runner.cli.errors import tell
from eat_runner.cli.hydra.launch import compose_sweep
from eat_runner.cli.jobs import run_job, take_over, written
from eat_runner.config.identity import run_id
from eat_runner.config.penalty import L0Config
from eat_runner.config.root import ExperimentConfig
from eat_runner.errors import CONTINUE_ME, RUN_FAILED, UserError
from eat_runner.progress import duration
from eat_runner.records import FINAL
from reproduction import cells, report
from reproduction.cells import Cell, Job, Plan, Scale, job, read_plan, run_folder, status_of

PROGRAM = "reproduce-paper"
SIGMA = L0Config().sigma


def command(arguments: Sequence[str], description: str | None = None) -> int:
    """Run the command line; the exit code. description: for --help. Raises UserError for bad input."""
    parser = argparse.ArgumentParser(prog=PROGRAM, description=description, allow_abbrev=False)
    add, scale = parser.add_argument, "default: full with a CUDA GPU, slim without; of a report, what is planned"
    add("--scale", choices=cells.SCALES, help=scale)
    add("--data-dir", type=Path, default=Path("data"), help="where data sets lie (default: data)")
    add("--results", type=Path, default=Path("results/reproduction"), help="results go to <this>/<scale>")
    add("--download", action="store_true", help="fetch a missing data set where that is possible")
    add("--report-only", action="store_true", help="write tables and figures from what is done; needs no torch")
    options = parser.parse_args(arguments)
    if options.report_only:
        planned_scales = (name for name in cells.SCALES if (options.results / name / cells.PLAN).exists())
        folder = options.results / (options.scale or next(planned_scales, "slim"))
        print(report.write(folder))
        return exit_code(read_plan(folder).cells, folder)
    scale, on_gpu = choose_scale(options.scale)
    folder: Path = options.results / scale.name
    where = f"({'a' if on_gpu else 'no'} CUDA GPU), results in {folder}"
    print(f"{PROGRAM}: scale {scale.name} {where}", *dict.fromkeys(scale.captions.values()), sep="\n", flush=True)
    jobs = [job(scale, experiment, options.data_dir, options.download) for experiment in scale.experiments]
    planned = plan_all(jobs, scale, folder, on_gpu, options.download)
    made_by = f"make reproduce-paper SCALE={scale.name}"
    plan = Plan(scale.name, scale.captions, scale.briefs, made_by, tuple(one.cell for one in planned))
    refuse_to_forget(plan.cells, folder)
    plan.write(folder)
    print(summary(planned), flush=True)
    try:
        run_all(planned, folder)
    except SystemExit as stopped:
        tell(f"{PROGRAM}: stopped: --report-only shows what is done")
        return CONTINUE_ME if stopped.code == CONTINUE_ME else RUN_FAILED
    print(report.write(folder), flush=True)
    return exit_code(plan.cells, folder)


def choose_scale(name: str | None) -> tuple[Scale, bool]:
    """The named scale, or full with a CUDA GPU and slim without; and whether there is such a GPU."""
    import torch

    on_gpu = torch.cuda.is_available()
    return cells.SCALES[name or ("full" if on_gpu else "slim")], on_gpu


def refuse_to_forget(planned: Iterable[Cell], folder: Path) -> None:
    """UserError where the folder's plan has finished runs that the new one has no place for: with other settings (bf16
    on a GPU) or other data (the JPEG copy) the tables would drop them."""
    now = {cell.experiment: set(cell.run_ids) for cell in planned}
    for name, cell in _planned_before(folder).items():
        others = set(cell.run_ids) - now.get(name, set())
        if lost := sum(status_of(folder, identity) == "finished" for identity in others):
            raise UserError(
                f"{folder} holds {lost} finished runs of {name} that this plan has no place for (made with "
                "other settings, or of other data): give another --results, or move the folder away"
            )


def _planned_before(folder: Path) -> dict[str, Cell]:
    """The cells of an earlier plan, by experiment; without one, or where it is damaged and written anew, none."""
    with suppress(UserError):
        return {cell.experiment: cell for cell in read_plan(folder).cells}
    return {}


def plan_all(jobs: Sequence[Job], scale: Scale, folder: Path, on_gpu: bool, download: bool) -> list[Job]:
    """Plan every cell, and say so line by line: the first looks at the data and steps can take minutes."""
    width = max(len(_title(one.cell)) for one in jobs)
    planned: list[Job] = []
    for one in jobs:
        elsewhere = {identity for earlier in planned for identity in earlier.cell.run_ids}
        planned.append(plan_cell(one, scale, folder, on_gpu, download, elsewhere))
        print(f"  {_title(planned[-1].cell):{width}}  {_state(planned[-1], folder)}", flush=True)
    return planned


def plan_cell(one: Job, scale: Scale, folder: Path, on_gpu: bool, download: bool, elsewhere: Iterable[str] = ()) -> Job:
    """What a cell needs; where its data are missing, the runs of an earlier plan, or the reason. elsewhere: runs that
    other cells make first."""
    from eat_runner import run as experiment

    changes: dict[str, Any] = {"download": download, "data_dir": str(one.data_dir)}
    changes |= {"results_dir": str(folder), "name": cells.RUNS}
    configs = [replace(config, **changes) for config in compose_sweep(one.overrides)]
    if scale.name == "full" and on_gpu and one.cell.kind != cells.CHOICES:
        # the paper names no precision, and bf16 takes half the time
        configs = [replace(c, trainer=replace(c.trainer, precision="bf16")) for c in configs]
    try:
        located = experiment.locate(configs[0])
        experiment.build_or_error(located)  # so that a UserError is this cell's
        content = _content(one.data_dir) if one.cell.dataset == cells.JPEG_LABEL else ""
    except UserError as error:
        return replace(one, cell=_without_data(one.cell, folder, _how_to_get(error)))
    by_id = {run_id(config, located.dataset.fingerprint): config for config in configs}
    todo = tuple(identity for identity in by_id if status_of(folder, identity) not in {*FINAL, cells.DAMAGED})
    alike: dict[tuple[bool, str], list[ExperimentConfig]] = {}
    for config in (by_id[identity] for identity in todo if identity not in elsewhere):
        alike.setdefault((config.is_baseline, repr(config.model)), []).append(config)
    seconds = sum(len(group) * experiment.plan(group[:1])[0].seconds for group in alike.values())
    cell = replace(one.cell, run_ids=tuple(by_id), content=content)
    return replace(one, cell=cell, configs=by_id, todo=todo, seconds=seconds)


def _content(data_dir: Path) -> str:
    """What a folder of images holds, so that nobody has to believe that a copy is complete."""
    from eat_runner.data.sources import TEST, TRAIN, image_folder

    found = image_folder(data_dir, False)
    train, test = (len(found.splits[split]) for split in (TRAIN, TEST))
    return f"{train:,} training and {test:,} test images in {len(found.class_names)} classes"


def _how_to_get(error: UserError) -> str:
    """The error in the words of this command."""
    text = str(error).replace("download=true fetches", "make reproduce-paper DOWNLOAD=true fetches")
    copy = f", or a folder {cells.JPEG_COPY} with train/<class>/ and test/<class>/"
    return f"{text}{copy}" if "CIFAR10 is not" in text else text


def _without_data(cell: Cell, folder: Path, reason: str) -> Cell:
    """The cell with the reason; the runs that an earlier plan, made where the data were, has for it are kept. Where all
    of them are done nothing is missing."""
    before = _planned_before(folder).get(cell.experiment, cell)
    complete = before.run_ids and all(status_of(folder, identity) in FINAL for identity in before.run_ids)
    return replace(before if before.run_ids else cell, missing="" if complete else reason)


def _state(one: Job, folder: Path) -> str:
    """What is done of a cell, what is missing, how long it takes."""
    runs, missing = one.cell.run_ids, one.cell.missing
    if not runs:
        return missing
    done = sum(status_of(folder, identity) in FINAL for identity in runs)
    text = f"{len(runs)} runs, {done} done" + (f", {duration(one.seconds)} to go" if one.todo else "")
    return text + (f"; the others cannot be run: {missing}" if missing else "")


def summary(planned: Sequence[Job]) -> str:
    """All cells together; a run that several of them need is counted once."""
    runs = {identity for one in planned for identity in one.configs}
    todo = {identity for one in planned for identity in one.todo}
    text = f"{len(runs)} runs, {len(runs) - len(todo)} done, {len(todo)} to do"
    if not todo:
        return text
    return (
        f"{text}, about {duration(sum(one.seconds for one in planned))} in one process (measured over a few steps of "
        "each kind)\nThe same command in another shell shares the work; stopped, the same command goes on."
    )


def _title(cell: Cell) -> str:
    return cell.title if cell.kind == cells.TABLE1 else f"{cell.experiment} ({cell.dataset})"


def run_all(planned: Sequence[Job], folder: Path) -> None:
    """Make every run that is not final, then those that another process had, which may have died. Waits for nobody. A
    run that fails fails alone. Every cell at one sigma first, standard training among it, then the rest of the grid."""
    runs: dict[Path, ExperimentConfig] = {}
    for one in planned:
        for identity in one.todo:  # a run that several cells need is the first one's, with its hardware
            runs.setdefault(run_folder(folder, identity).path, one.configs[identity])
    sigmas = {path: getattr(config.canonical().penalty, "sigma", SIGMA) for path, config in runs.items()}
    ordered = {path: runs[path] for path in sorted(runs, key=lambda path: sigmas[path] != SIGMA)}
    before = {path: written(path) for path in ordered}
    for config in ordered.values():
        run_job(config)
    take_over(ordered, before)


def exit_code(planned: Sequence[Cell], folder: Path) -> int:
    """What lies on disk says: 75 there is more to do; 1 done, but data are missing, a run failed, or its record is
    damaged, which is said; 0 complete."""
    there = [cell for cell in planned if not cell.missing]
    statuses = {identity: status_of(folder, identity) for cell in there for identity in cell.run_ids}
    for identity in (identity for identity, found in statuses.items() if found == cells.DAMAGED):
        tell(f"{PROGRAM}: {run_folder(folder, identity).record} is damaged: delete it to repeat the run")
    open_ = {*statuses.values()} - FINAL
    if open_ - {"failed", cells.DAMAGED}:
        return CONTINUE_ME
    return RUN_FAILED if open_ or len(there) < len(planned) else 0
