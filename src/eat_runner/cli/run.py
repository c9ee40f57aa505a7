"""``eat-run``: one run or a sweep, then the summary, the front and the plots.

Exit codes: 0 all is done; 1 a run failed; 2 bad input, nothing was started; 75 stopped, the same command continues.
"""

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from eat_runner.claims import report_lock
from eat_runner.cli.errors import one_line, tell
from eat_runner.cli.help import help_text
from eat_runner.cli.hydra.callbacks import BeforeJobs, Identity, prepare_all
from eat_runner.cli.hydra.completion import OverridesParser
from eat_runner.cli.hydra.launch import check_flags, run_hydra
from eat_runner.cli.jobs import PROGRAM, begin_runs, exit_code, take_over, unfinished, written
from eat_runner.cli.parser import Parser, answer_shell, folders, install
from eat_runner.cli.stoppable import importing_torch, run_stoppable
from eat_runner.config.points import preparations
from eat_runner.config.root import ExperimentConfig
from eat_runner.errors import RUN_FAILED, UserError
from eat_runner.ranks import is_first, world_size
from eat_runner.records import FINAL

if TYPE_CHECKING:
    from eat_runner.run import PlannedRun

AS_TIMED = "as timed on this machine now"
LAUNCHERS = ("basic", "joblib", "slurm")


def main() -> None:
    """Entry point of the console script."""
    answer_shell(_parser)
    run_stoppable(PROGRAM, command, unfinished)


def command(arguments: Sequence[str]) -> int:
    """Run the command line ``eat-run ARGUMENTS``; the exit code. Raises UserError for bad input."""
    flags = check_flags(arguments)
    if flags.help:
        print(help_text(), end="")
        return 0
    if flags.shell_completion:
        install(PROGRAM, flags.overrides)
        return 0
    if flags.multirun and world_size() > 1:
        raise UserError(f"torchrun trains one run: leave out -m (several runs at once: {PROGRAM} -m, several times)")
    runs: dict[Path, ExperimentConfig] = {}
    before: dict[Path, float] = {}

    def accept(jobs: list[ExperimentConfig]) -> None:
        runs.update(begin(jobs))
        before.update({folder: written(folder) for folder in runs})
        begin_runs(runs)

    collated = False
    try:
        run_hydra(arguments, accept)
        if not BeforeJobs.on_cluster and world_size() == 1:  # where this command runs is no place to train
            take_over(runs, before)
    finally:
        collated = not is_first() or collate(list(runs.values()))
    return exit_code(runs) if collated else RUN_FAILED


def _parser() -> Parser:
    parser = OverridesParser(PROGRAM, {"hydra/launcher": LAUNCHERS})
    parser.add_argument("-m", "--multirun", action="store_true", help="sweep over key=a,b,c")
    parser.add_argument("-c", "--cfg", choices=("job", "hydra", "all"), help="show the configuration and do nothing")
    parser.add_argument("--config-dir", completer=folders, help="a folder of files beside those of conf/")
    parser.add_argument("--hydra-help", action="store_true", help="Hydra's own options")
    return parser


def begin(configs: list[ExperimentConfig], program: str = PROGRAM) -> dict[Path, ExperimentConfig]:
    """What happens before the first run: show the plan and leave, or prepare data and networks. The runs' folders."""
    if world_size() > 1 and configs[0].group("path").is_chosen:
        raise UserError("torchrun trains one run, and a path has several: leave out path")
    with importing_torch():
        from eat_runner import run as experiment

        experiment.import_optimizers()
    if any(config.plan for config in configs):
        print_plan(experiment.plan(configs, program))
        sys.exit(0)
    from eat_runner.progress import Counter  # rich takes a while, and --help need not wait for it

    counter = Counter(f"{program}: preparing", preparations(configs))

    def prepare_one(config: ExperimentConfig) -> Identity:
        counter.next()
        return experiment.prepare(config)

    return prepare_all(configs, prepare_one)


def collate(configs: list[ExperimentConfig]) -> bool:
    """Write table, front and plots of each folder that the command ran in, and show them.

    False where that was not possible: runs that were done stay done, so this is told and not raised.
    """
    if not configs:
        return True
    from eat_runner import loggers, report

    reports: dict[tuple[Path, str, str], list[ExperimentConfig]] = {}  # by folder, prices, selection
    for config in configs:
        folder = Path(config.results_dir) / config.name
        reports.setdefault((folder, repr(config.hardware), config.selection), []).append(config)
    try:
        for (folder, _, selection), ours in reports.items():
            hardware, by = ours[0].hardware, "dataset" if _several_methods(ours) else "family"
            axes = report.choose_axes(hardware, by)
            written = report.write_report(folder, hardware, selection, by=by, axes=axes, page_of=report.QUICK_PAGE)
            with suppress(OSError):  # who reads our output has gone, which takes nothing from the runs
                report.show(written)
            with report_lock(folder):
                loggers.show(ours[0].loggers, folder, [path for path in written.paths if path.suffix == ".png"])
    except (UserError, OSError) as error:
        tell(f"{PROGRAM}: no report: {one_line(error)}")
        return False
    return True


def _several_methods(configs: list[ExperimentConfig]) -> bool:
    """Whether there is more than lambda to compare: methods, or networks. Then all of them share a front."""
    networks = {(config.model.name, config.model.arch, config.model.width) for config in configs}
    started = any(config.init is not None for config in configs)
    return len(networks) > 1 or started or any(config.chosen_methods for config in configs)


def print_plan(runs: "list[PlannedRun]") -> None:
    """A line a run, and what is left to do."""
    from eat_runner.progress import duration

    width, most = max(len(run.run_id) for run in runs), max(len(run.differs) for run in runs)
    todo = [run for run in runs if run.status not in FINAL]
    for run in runs:
        left = run.reason or (duration(run.seconds) if run in todo else "")
        differs = f"  {run.differs:{most}}" if most else ""
        print(f"{run.run_id:{width}}{differs}  {run.status:11}  {left:7}  {run.budget}".rstrip())
    time = f", about {duration(sum(run.seconds for run in todo))}, {AS_TIMED}" if todo else ""
    print(f"{len(runs)} runs: {len(runs) - len(todo)} done, {len(todo)} to do{time}")


if __name__ == "__main__":
    main()
