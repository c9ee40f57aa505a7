"""eat-run around an experiment that does not train: what is prepared, run, reported, and the exit code."""

import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import eat_runner
from eat_runner.claims import claim
from eat_runner.cli import jobs, run
from eat_runner.cli.help import choices
from eat_runner.cli.hydra.compose import compose_experiment as composed
from eat_runner.config.groups import GROUPS
from eat_runner.config.hardware import HardwareConfig
from eat_runner.config.identity import FRESH, Start, run_id
from eat_runner.config.paths import conf_dir
from eat_runner.config.root import ExperimentConfig
from eat_runner.errors import UserError
from eat_runner.records import RunFolder, RunRecord

FINGERPRINT = "0" * 8
FAILING, STOPPED = 5, 7  # what these lambdas do in the fake


class FakeExperiment(ModuleType):
    """experiment.py without data, network and training; remembers what it was asked for."""

    def __init__(self) -> None:
        super().__init__("eat_runner.run")
        self.prepared: list[tuple[str, float]] = []
        self.ran: list[tuple[float, int]] = []

    def import_optimizers(self) -> None:
        pass

    def prepare(self, config: ExperimentConfig) -> tuple[str, Start]:
        self.prepared.append((config.model.name, config.lambda_))
        return FINGERPRINT, FRESH

    def run(self, config: ExperimentConfig) -> RunRecord:
        if config.lambda_ == STOPPED:
            sys.exit(75)
        self.ran.append((config.lambda_, config.seed))
        status = "failed" if config.lambda_ == FAILING else "finished"
        record = RunRecord(run_id=run_id(config, FINGERPRINT), status=status, reason="ValueError: boom")
        folder = RunFolder(Path(config.results_dir) / config.name / record.run_id)
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.write_record(record)
        return record

    def plan(self, configs: list[ExperimentConfig], program: str) -> list[SimpleNamespace]:
        states = ["finished", "missing", "interrupted"]
        return [
            SimpleNamespace(run_id=f"run{i}", status=states[i], seconds=90.0 * i, reason="", budget="", differs="")
            for i, _ in enumerate(configs)
        ]


Command = Callable[[str], int]


REPORT = SimpleNamespace(paths=[])


class FakeReport(ModuleType):
    """eat_runner.report without files; remembers where a report was asked for, with which hardware and selection."""

    def __init__(self) -> None:
        super().__init__("eat_runner.report")
        self.QUICK_PAGE = 7
        self.asked: list[tuple[str, str, str]] = []
        self.by: list[str] = []

    def choose_axes(self, hardware: HardwareConfig, by: str) -> str:
        return f"axes of a {by}"

    def write_report(
        self, folder: Path, hardware: HardwareConfig, selection: str, by: str, axes: str, page_of: int
    ) -> Any:
        assert (axes, page_of) == (f"axes of a {by}", self.QUICK_PAGE)
        self.asked.append((str(folder), hardware.name, selection))
        self.by.append(by)
        return REPORT

    def show(self, made: Any) -> None:
        assert made is REPORT


def stand_in(fake: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    monkeypatch.setattr(eat_runner, fake.__name__.rpartition(".")[2], fake, raising=False)
    return fake


@pytest.fixture
def experiment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeExperiment:
    monkeypatch.chdir(tmp_path)
    return stand_in(FakeExperiment(), monkeypatch)


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> FakeReport:
    return stand_in(FakeReport(), monkeypatch)


@pytest.fixture
def command(experiment: FakeExperiment, report: FakeReport) -> Iterator[Command]:
    def call(line: str) -> int:
        try:
            return run.command(line.split())
        except SystemExit as stopped:
            return int(str(stopped.code))

    yield call
    jobs.begin_runs()  # the process knows of no runs any more


def test_one_run_and_its_report(command: Command, experiment: FakeExperiment, report: FakeReport) -> None:
    assert command("lambda=1e-3 seed=4 name=one selection=paper hardware=fused_45nm") == 0
    assert experiment.ran == [(0.001, 4)]
    assert report.asked == [("results/one", "fused_45nm", "paper")]


def test_a_sweep_runs_every_combination_and_reports_once(
    command: Command, experiment: FakeExperiment, report: FakeReport
) -> None:
    assert command("-m lambda=0,0.5,1 seed=0,1") == 0
    assert experiment.ran == [(0.0, 0), (0.0, 1), (0.5, 0), (0.5, 1), (1.0, 0), (1.0, 1)]
    assert report.asked == [("results/default", "published", "validation")]
    assert report.by == ["family"]


def test_each_different_network_is_prepared_once_with_and_without_penalty(
    command: Command, experiment: FakeExperiment
) -> None:
    assert command("-m model=resnet18,vgg11 lambda=0,1,2") == 0
    assert len(experiment.ran) == 6
    assert sorted(experiment.prepared) == [("resnet18", 0.0), ("resnet18", 1.0), ("vgg11", 0.0), ("vgg11", 1.0)]


def test_a_sweep_with_a_method_and_without_it(command: Command, experiment: FakeExperiment) -> None:
    """The keys of the method mean nothing for the run without it, which is one run."""
    assert command("-m pruning=none,magnitude pruning.density=0.3,0.2 lambda=0") == 0
    assert experiment.ran == [(0.0, 0)] * 4
    assert len({path.name for path in Path("results/default").iterdir() if path.is_dir()}) == 3


@pytest.mark.parametrize(
    "line", ["-m pruning=none,magnitude lambda=0", "-m model.width=4,8", "-m model=resnet18,vgg11", "pruning=energy"]
)
def test_networks_and_methods_share_a_front(
    line: str, command: Command, experiment: FakeExperiment, report: FakeReport
) -> None:
    assert command(line) == 0
    assert report.by == ["dataset"]


@pytest.mark.parametrize(
    ("line", "runs"), [("thresholds=none,fatrelu thresholds.allow=0.5,1", 3), ("thresholds.allow=0,0.5,1", 3)]
)
def test_a_sweep_over_a_method_that_a_key_chooses(
    line: str, runs: int, command: Command, experiment: FakeExperiment
) -> None:
    assert command(f"-m {line} lambda=0") == 0
    assert len({path.name for path in Path("results/default").iterdir() if path.is_dir()}) == runs


@pytest.mark.parametrize(
    ("written", "value"),
    [("0", 0.0), ("1", 1.0), ("1e-3", 0.001), (".5", 0.5), ("2.", 2.0), ("1E2", 100.0), ("+3", 3.0), ("'0.25'", 0.25)],
)
def test_the_ways_to_write_a_lambda(written: str, value: float, command: Command, experiment: FakeExperiment) -> None:
    assert command(f"lambda={written}") == 0
    assert experiment.ran == [(value, 0)]


def test_an_experiments_sweep_needs_no_flag_and_yields_to_the_command_line(
    command: Command, experiment: FakeExperiment
) -> None:
    assert command("experiment=gtsrb_slim lambda=0,4 seed=3") == 0
    assert experiment.ran == [(0.0, 3), (4.0, 3)]


def test_a_failed_run_fails_alone(
    command: Command, experiment: FakeExperiment, report: FakeReport, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("-m lambda=0,5,2") == 1
    assert experiment.ran == [(0.0, 0), (5.0, 0), (2.0, 0)]
    assert len(report.asked) == 1
    assert " failed: ValueError: boom\n" in capsys.readouterr().err


def test_a_reader_that_has_gone_takes_nothing_from_the_runs(
    command: Command, report: FakeReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(made: str) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(report, "show", gone)
    assert command("") == 0
    assert len(report.asked) == 1


def test_on_error_stop_ends_at_the_first(command: Command, experiment: FakeExperiment, report: FakeReport) -> None:
    assert command("-m lambda=0,5,2 on_error=stop") == 1
    assert experiment.ran == [(0.0, 0), (5.0, 0)]
    assert len(report.asked) == 1


@pytest.mark.parametrize("on_error", ["stop", "continue"])
def test_a_worker_that_stopped_takes_no_other_job(
    on_error: str, experiment: FakeExperiment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(jobs, "_failed", [])
    first, second = (
        composed([f"lambda={value}", f"on_error={on_error}", f"results_dir={tmp_path}"]) for value in (FAILING, 1)
    )
    for job in (first, second):
        with suppress(SystemExit):
            jobs.run_job(job)
    assert experiment.ran == [(5.0, 0)] + [(1.0, 0)] * (on_error == "continue")


def test_a_stopped_sweep_is_reported_and_says_continue_me(
    command: Command, experiment: FakeExperiment, report: FakeReport
) -> None:
    assert command("-m lambda=0,7,2") == 75
    assert experiment.ran == [(0.0, 0)]
    assert len(report.asked) == 1


RAISED = {
    ZeroDivisionError("boom"): r"ZeroDivisionError: boom \(test_run_command.py:\d+\)",
    MemoryError(): r"MemoryError \(test_run_command.py:\d+\)",
    OSError(28, "No space left on device", "run"): r"OSError: run: No space left on device \(test_run_command.py:\d+\)",
    UserError("weights.pt\x1b[2J is not there"): r"weights.pt\?\[2J is not there",
}


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("stop", [False, True], ids=["continue", "stop"])
def test_what_is_raised_before_a_run_has_its_folder_fails_this_run_alone(
    error: Exception,
    stop: bool,
    command: Command,
    experiment: FakeExperiment,
    report: FakeReport,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def raises(config: ExperimentConfig) -> RunRecord:
        if config.lambda_ == 1:
            raise error
        return finishes(config)

    finishes = experiment.run
    monkeypatch.setattr(experiment, "run", raises)
    assert command(f"-m lambda=0,1,2 on_error={'stop' if stop else 'continue'}") == 1
    assert experiment.ran == [(0.0, 0)] if stop else [(0.0, 0), (2.0, 0)]
    assert len(report.asked) == 1
    [line] = [line for line in capsys.readouterr().err.splitlines() if " of 3: " not in line]  # which run begins
    assert re.fullmatch(f"eat-run: run lambda=1 seed=0 failed: {RAISED[error]}", line)


def test_a_run_that_somebody_held_for_a_moment_is_done_in_the_end(
    command: Command, experiment: FakeExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asks for a run's status holds its claim meanwhile: here at each job's turn and at the first look back."""
    held = ExitStack()

    def has_another(config: ExperimentConfig) -> RunRecord:
        record = RunRecord(run_id=run_id(config, FINGERPRINT), status="running")
        folder = tmp_path / "results" / "default" / record.run_id
        folder.mkdir(parents=True)
        assert held.enter_context(claim(folder))
        monkeypatch.setattr(experiment, "run", finishes)
        return record

    finishes = experiment.run
    monkeypatch.setattr(experiment, "run", has_another)
    monkeypatch.setattr(jobs.time, "sleep", lambda _: held.close())
    assert command("-m lambda=0,1") == 0
    assert experiment.ran == [(1.0, 0), (0.0, 0)]


def test_who_has_a_run_for_long_is_not_waited_for(
    command: Command, experiment: FakeExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    folder = tmp_path / "results" / "default" / run_id(composed(["lambda=1"]), FINGERPRINT)
    folder.mkdir(parents=True)
    RunFolder(folder).write_record(RunRecord(run_id=folder.name, status="interrupted"))

    def has_another(config: ExperimentConfig) -> RunRecord:
        return RunRecord(run_id=folder.name, status="running")

    monkeypatch.setattr(experiment, "run", has_another)
    monkeypatch.setattr(jobs.time, "sleep", waits.append)
    with claim(folder) as mine:
        assert mine
        assert command("lambda=1") == 0
    assert sum(waits) < 1


def test_a_failed_run_is_repeated_by_the_next_command_and_not_by_this_one(
    command: Command, experiment: FakeExperiment
) -> None:
    for _ in range(2):
        assert command("-m lambda=5,0") == 1
    assert experiment.ran == [(5.0, 0), (0.0, 0)] * 2


def test_a_report_that_cannot_be_written_is_told(
    command: Command, report: FakeReport, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full_disk(*_: object, **options: Any) -> None:
        raise OSError(28, "No space left on device", "results/default/summary.csv")

    monkeypatch.setattr(report, "write_report", full_disk)
    assert command("lambda=1") == 1
    assert capsys.readouterr().err == "eat-run: no report: results/default/summary.csv: No space left on device\n"


def test_a_results_folder_that_is_a_file_is_refused_before_anything(
    command: Command, experiment: FakeExperiment, tmp_path: Path
) -> None:
    (tmp_path / "results").write_text("")
    with pytest.raises(ValueError, match=r"^results_dir: cannot make the folder results/default \(.*\): choose anoth"):
        command("-m lambda=0,1")
    assert not experiment.prepared


def test_the_plan_lists_and_runs_nothing(
    command: Command, experiment: FakeExperiment, report: FakeReport, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("-m lambda=0,1,2 plan=true") == 0
    assert not experiment.ran
    assert not report.asked
    assert capsys.readouterr().out.splitlines() == [
        "run0  finished",
        "run1  missing      90 s",
        "run2  interrupted  3 min",
        "3 runs: 1 done, 2 to do, about 4 min, as timed on this machine now",
    ]


def test_the_plan_shows_what_tells_runs_apart(capsys: pytest.CaptureFixture[str]) -> None:
    names = {"a-1": "model.width=3", "a-22": "model.width=4"}
    fields = {"status": "missing", "seconds": 60.0, "reason": "", "budget": ""}
    planned: Any = [SimpleNamespace(run_id=name, differs=differs, **fields) for name, differs in names.items()]
    run.print_plan(planned)
    assert capsys.readouterr().out.splitlines() == [
        "a-1   model.width=3  missing      60 s",
        "a-22  model.width=4  missing      60 s",
        "2 runs: 0 done, 2 to do, about 2 min, as timed on this machine now",
    ]


@pytest.mark.parametrize(
    ("statuses", "code"),
    [
        (["finished", "diverged"], 0),
        (["finished", "failed", "interrupted"], 1),
        (["finished", "interrupted"], 75),
        (["finished", None], 1),
    ],
)
def test_the_exit_code_comes_from_the_records(statuses: list[str | None], code: int, tmp_path: Path) -> None:
    folders = [tmp_path / str(i) for i in range(len(statuses))]
    for folder, status in zip(folders, statuses, strict=True):
        folder.mkdir()
        if status:
            RunFolder(folder).write_record(RunRecord(run_id=folder.name, status=status))
    assert jobs.exit_code(dict.fromkeys(folders, ExperimentConfig())) == code


def test_a_sweep_says_which_run_of_how_many_begins(
    command: Command, experiment: FakeExperiment, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("lambda=0 name=alone") == 0
    assert "eat-run: run " not in capsys.readouterr().err
    assert command(f"-m lambda=0,{STOPPED},2 model.width=4") == 75
    ids = [run_id(composed([f"lambda={value}", "model.width=4"]), FINGERPRINT) for value in (0, STOPPED, 2)]
    first, second = capsys.readouterr().err.splitlines()
    assert first == f"eat-run: run 1 of 3: {ids[0]}"
    assert re.fullmatch(rf"eat-run: run 2 of 3: {ids[1]}, about \d+ s left for all", second)
    assert jobs.unfinished() == "stopped after 1 of 3 runs"
    assert command("-m lambda=0,2 model.width=4,6") == 0  # the first is done
    told = [line.partition(",")[0] for line in capsys.readouterr().err.splitlines()]
    assert [re.sub("digits-\\S*", "ID", line) for line in told] == [
        f"eat-run: run {number} of 4: ID model.width={width}" for number, width in ((2, 6), (3, 4), (4, 6))
    ]


@pytest.mark.parametrize("status", ["failed", "interrupted", "running"])
def test_a_run_that_another_process_repeats_is_running(status: str, tmp_path: Path) -> None:
    """Else `until eat-run …; [ $? -ne 75 ]` would spin until that process has ended."""
    folder = RunFolder(tmp_path)
    folder.write_record(RunRecord(run_id=tmp_path.name, status=status))
    with claim(tmp_path) as mine:
        assert mine
        assert jobs.status(folder) == "running"
        assert jobs.exit_code({tmp_path: ExperimentConfig()}) == 0
    assert jobs.status(folder) == status


def test_a_copied_folder_is_not_taken_for_this_run(tmp_path: Path) -> None:
    RunFolder(tmp_path).write_record(RunRecord(run_id="another\x1b[2J", status="finished"))
    with pytest.raises(UserError) as refused:
        jobs.exit_code({tmp_path: ExperimentConfig()})
    line = f"{tmp_path}/record.json is the record of another run, another?[2J: delete it to do this one"
    assert str(refused.value) == line


def test_hydra_leaves_no_files_of_its_own(command: Command, tmp_path: Path) -> None:
    assert command("lambda=1") == 0
    [folder] = (path for path in (tmp_path / "results" / "default").iterdir() if path.name != ".report.lock")
    assert [file.name for file in folder.iterdir()] == ["record.json"]


# the real program, in processes of its own

WITHOUT_TORCH = """
import sys
from eat_runner.cli.run import main
try:
    main()
finally:
    heavy = {"torch", "pandas", "matplotlib", "tensorboard", "mlflow", "sqlalchemy", "wandb"}
    assert not heavy & set(sys.modules), "a heavy import"
"""


def real(arguments: list[str]) -> str:
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *arguments], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_help_names_every_group_and_choice_and_needs_no_torch() -> None:
    text = real(["--help"])
    whole = text.replace("\n" + " " * 14, " ")  # a long list goes on in the next line
    folders = {"experiment": sorted(conf_dir().glob("experiment/*/*.yaml"))}
    assert {path.parent.name for path in folders["experiment"]} == {"methods", "paper", "paths"}
    for group in (*GROUPS, "recipe", "experiment"):
        names = [*choices(group), *(f"{path.parent.name}/{path.stem}" for path in folders.get(group, []))]
        assert group == "meter" or re.search(f"\n  {group:11} [^:]+: {', '.join(names)}\n", whole)
    assert max(map(len, text.splitlines())) <= 120


def test_cfg_shows_the_configuration_and_needs_no_torch() -> None:
    text = real(["--cfg", "job", "lambda=1e-3", "trainer=paper"])
    assert "\nlambda: 0.001\n" in f"\n{text}"
    assert "  epochs: 100\n  batch_size: 512\n" in text


def test_a_library_that_is_interrupted_makes_no_error_of_bad_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """OmegaConf, stopped while it composes, raises an AttributeError, which the command line takes for bad input."""

    def interrupted(arguments: list[str]) -> int:
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            raise UserError("'NoneType' object has no attribute '_invalidate_flags_cache'") from None
        raise AssertionError("the signal did not arrive")

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(run, "command", interrupted)
    try:
        with pytest.raises(SystemExit) as ended:
            run.main()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert ended.value.code == 75
    assert capsys.readouterr().err == "eat-run: stopped: the same command continues\n"
