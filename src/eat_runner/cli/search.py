"""``eat-search``: accuracy against energy, over ranges and choices, by any number of processes on one study.

Exit codes: 0 all is done; 1 a trial's run failed; 2 bad input, nothing was started; 75 stopped, the same command
continues.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eat_runner.cli.errors import one_line, tell
from eat_runner.cli.help import COMBINATIONS
from eat_runner.cli.hydra.arguments import with_paths
from eat_runner.cli.hydra.callbacks import agreeing
from eat_runner.cli.hydra.completion import BOOLS, OverridesParser
from eat_runner.cli.hydra.points import Points, choices_of
from eat_runner.cli.jobs import begin_runs, run_job
from eat_runner.cli.parser import COMPLETION, Parser, answer_shell, install
from eat_runner.cli.run import AS_TIMED, begin, collate
from eat_runner.cli.stoppable import importing_torch, run_stoppable
from eat_runner.config.checks import one_of
from eat_runner.config.identity import digest, run_id
from eat_runner.config.root import ExperimentConfig
from eat_runner.errors import RUN_FAILED, UserError
from eat_runner.ranks import world_size
from eat_runner.records import FINAL

if TYPE_CHECKING:
    from eat_runner.search.space import Space
    from eat_runner.search.study import Search, Turn

PROGRAM = "eat-search"
FAILED = "failed"
TRIALS = 50
SAMPLERS = ("tpe", "random", "grid")
# what all trials share: they would compare different things, or leave their folder
SHARED = frozenset(
    "dataset hardware loggers seed name results_dir data_dir download device threads selection on_error plan".split()
)

NO_PATH = "path: a trial is one network, not a path of them: leave path out, and search its key instead"

HELP = """\
Searches for networks that are accurate and cost little: validation accuracy against energy on the chosen hardware.

  eat-search hardware=my_chip.yaml trials=100 'lambda=log(0.1,10)' 'pruning.density=uniform(0.05,0.5)' \\
      model.width=8,16 pruning=energy dataset=digits

Searched (in quotes, since shells know parentheses); each bound and choice is checked before anything is trained:
  'key=log(LOW,HIGH)'        a number, evenly on a logarithmic scale
  'key=uniform(LOW,HIGH)'    a number
  'key=int(LOW,HIGH)'        a whole number, both ends included
  key=a,b,c                  one of these: numbers, or choices of a group

Keys of the search:
  trials=50                  in all, by all processes and commands on this study
  sampler=tpe                tpe (multi-objective TPE), random, or grid (evenly spaced levels of each range)
  stop_early=true            end trials that cannot reach the front any more
  plan=true                  only say what would be done, and how long it takes

Everything else is as in eat-run (eat-run --help). Each trial is an ordinary run in results_dir/name, and is not trained
again where it is there; the folder's finished runs that lie in the space are what the study begins with. The same
command in several terminals, or on machines that share the folder, works on the same study; again, it continues it.

Shell completion of all commands: eval "$(eat-search -sc install=bash)"   (or zsh, fish)
Exit codes: 0 done, 1 a run failed, 2 bad input, 75 stopped: the same command continues
"""


def main() -> None:
    """Entry point of the console script."""
    answer_shell(_parser)
    run_stoppable(PROGRAM, command)


@dataclass
class Asked:
    """A command line. fixed: what all trials share, as eat-run takes it. ranges, choices: what is searched."""

    trials: int = TRIALS
    sampler: str = "tpe"
    stop_early: bool = True
    fixed: list[str] = field(default_factory=list[str])
    space: "Space" = field(default_factory=dict[str, Any])


def command(arguments: Sequence[str]) -> int:
    """Run the command line ``eat-search ARGUMENTS``; the exit code. Raises UserError for bad input."""
    if {"-h", "--help"} & {*arguments}:
        print(HELP, end="")
        return 0
    if {*COMPLETION} & {*arguments}:
        install(PROGRAM, [argument for argument in arguments if argument not in COMPLETION])
        return 0
    if world_size() > 1:
        raise UserError("torchrun trains one run, and a search has many: leave torchrun out")
    if find_spec("optuna") is None:
        raise UserError("a search needs optuna: pip install 'eat-runner[search]'")
    from eat_runner.search.space import corners

    asked = read(arguments)
    points = Points(asked.fixed)
    configs = agreeing([points(point) for point in corners(asked.space)])
    first = configs[0]
    if not first.dataset.validation:
        raise UserError("dataset.validation=0: a search compares on the validation split, so leave some for it")
    if any(config.group("path").is_chosen for config in configs):
        raise UserError(NO_PATH)
    if first.plan:
        return plan(asked, configs, points)
    begin(configs, PROGRAM)
    begin_runs()
    search, before = open_search(asked, first, points), time.monotonic()
    if seeds := search.take_in():
        tell(f"{PROGRAM}: the study begins with {seeds} finished runs of {search.folder}")
    collated, statuses = False, set[str]()
    try:
        for turn in search.turns():
            statuses.add(run_turn(search, turn, points, asked.stop_early, before))
    finally:
        collated = collate(configs) and tell_outcome(search)
    return RUN_FAILED if not collated or FAILED in statuses or has_failed(search) else 0


def _parser() -> Parser:
    own = {"trials": (), "sampler": SAMPLERS, "stop_early": BOOLS}
    return OverridesParser(PROGRAM, own, refused={"path"})


def read(arguments: Sequence[str]) -> Asked:
    """What a command line asks for; UserError where it says something twice, or nothing to search."""
    from optuna.distributions import CategoricalDistribution

    from eat_runner.search.space import range_of

    asked, given = Asked(), dict[str, str]()
    space: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if argument.startswith("-") or key.startswith("hydra"):
            raise UserError(f"{argument} is no option of {PROGRAM}: start it several times to work in parallel")
        if key.partition(".")[0] == "path":
            raise UserError(NO_PATH)
        if not equals:
            raise UserError(f"{argument}: write key=value")
        if key in given:
            raise UserError(f"{given[key]} and {argument}: {key} is given twice: leave one out")
        given[key] = argument
        if key == "trials":
            asked.trials = _positive(argument, text)
        elif key == "sampler":
            one_of(key, text, SAMPLERS)
            asked.sampler = text
        elif key == "stop_early":
            one_of(key, text, BOOLS)
            asked.stop_early = text == "true"
        elif (dimension := range_of(key, text)) is not None:
            space[key] = dimension
        elif choices := choices_of(argument):
            space[key] = CategoricalDistribution(choices)
        else:
            asked.fixed.append(argument)
    for key in space:
        if key in SHARED:
            raise UserError(f"{given[key]}: all trials of a search share {key}: give it one value")
    if not space:
        raise UserError("there is nothing to search: write a range, such as 'lambda=log(0.1,10)', or a list, key=a,b")
    asked.space = space
    return asked


def _positive(argument: str, text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"{argument}: write a whole number from 1 on")
    return int(text)


def identified(points: Points) -> Callable[[Mapping[str, str]], str]:
    """The run id of a point. The data are loaded once for all points that share them."""
    from eat_runner import run as experiment

    known: dict[str, Any] = {}

    def identify(point: Mapping[str, str]) -> str:
        config = points(point)
        key = repr((config.dataset, config.data_dir, config.init))
        if key not in known:
            job = experiment.locate(config)
            known[key] = job.dataset.fingerprint, job.origin.start
        return run_id(config, *known[key])

    return identify


def open_search(asked: Asked, first: ExperimentConfig, points: Points) -> "Search":
    """The study of this command line: of its space, of what all trials share, and of the prices. first: the first
    corner's configuration."""
    from eat_runner.search.space import corners, described
    from eat_runner.search.study import Search

    identify = identified(points)
    space = {key: described(dimension) for key, dimension in asked.space.items()}
    [corner, *_] = corners(asked.space)
    return Search(
        folder=Path(first.results_dir) / first.name,
        name=digest([space, identify(corner), asdict(first.hardware)]),
        space=asked.space,
        trials=asked.trials,
        sampler=asked.sampler,
        seed=first.seed,
        hardware=first.hardware,
        identify=identify,
        unrecorded=frozenset(COMBINATIONS),
    )


def run_turn(search: "Search", turn: "Turn", points: Points, stop_early: bool, started: float) -> str:
    """Train it, or go on, and write its outcome into the study; its status. started: when this process began, by the
    clock of time.monotonic."""
    from eat_runner.progress import duration

    name = f"{PROGRAM}: trial {turn.number} of {search.trials}"
    tell(f"{name}: {with_paths(' '.join(f'{key}={text}' for key, text in turn.point.items()))}")
    config = points(turn.point)
    watched = {"ends_early": search.hopeless(config.trainer.epochs)} if stop_early else {}
    status = run_job(config, PROGRAM, **watched)
    try:
        row = search.tell(turn)
    except UserError as error:
        search.tried.add(turn.run_id)
        tell(f"{name}: {one_line(error)}")
        return FAILED
    if status != "finished":
        tell(f"{name}: {status}{row['reason'] and ': '}{row['reason']}")
        return status
    unit = "million MACs" if search.hardware.relative else "uJ"
    left = search.seconds_left(time.monotonic() - started)
    tell(
        f"{name}: accuracy {row['accuracy_validation']:.4f}, {row['energy_validation']:.4g} {unit} on the validation "
        f"split; {duration(left)} left"
    )
    return status


def tell_outcome(search: "Search") -> bool:
    """Write table and plot of the trials, and print what they came to; False where that was not possible."""
    from eat_runner.claims import report_lock
    from eat_runner.search.outcome import outcome, write

    try:
        with report_lock(search.folder):
            found = outcome(search)
            paths = write(found, search.folder)
    except (UserError, OSError) as error:
        tell(f"{PROGRAM}: no table of the trials: {one_line(error)}")
        return False
    with suppress(OSError):  # who reads our output has gone
        print(with_paths("\n".join(["", *found.lines, *map(str, paths)])), flush=True)
    return True


def has_failed(search: "Search") -> bool:
    """Whether a trial's run failed, or its point was refused."""
    from optuna.trial import TrialState

    from eat_runner.search.study import RUN

    own = search.own_trials()
    left = [trial.user_attrs[RUN]["run_id"] for trial in own if trial.state == TrialState.RUNNING]
    refused = any(trial.state == TrialState.FAIL for trial in own)
    return refused or any(search.row(run)["status"] == FAILED for run in left)


def plan(asked: Asked, configs: Sequence[ExperimentConfig], points: Points) -> int:
    """Say what is searched, what is done, and about how long the rest takes: as the corners of the space do."""
    with importing_torch():
        from eat_runner import run as experiment

        experiment.import_optimizers()
    from statistics import fmean

    from eat_runner.progress import duration
    from eat_runner.search.space import described
    from eat_runner.search.study import JOURNAL

    planned = experiment.plan(configs, PROGRAM)
    for key, dimension in asked.space.items():
        print(with_paths(f"{key}={described(dimension)}"))
    done = 0
    folder = Path(configs[0].results_dir) / configs[0].name
    if (folder / JOURNAL).exists():
        search = open_search(asked, configs[0], points)
        done = sum(trial.state.is_finished() for trial in search.own_trials())
    left = max(asked.trials - done, 0)
    times = [run.seconds for run in planned if run.status not in FINAL and not run.reason]
    reasons = sorted({f"{run.run_id}: {run.reason}" for run in planned if run.reason})
    print(*reasons, sep="\n", end="\n" if reasons else "")
    takes = f", about {duration(left * fmean(times))} for one process, {AS_TIMED}" if left and times else ""
    print(f"{asked.trials} trials, {asked.sampler}: {done} done, {left} to do{takes}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
