"""A run or a sweep that is killed anywhere goes on with the same command, to the same bits."""

import json
import os
import random
import resource
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from eat_runner.cli import run as command
from eat_runner.config.root import ExperimentConfig
from eat_runner.records import RunFolder, RunRecord
from eat_runner.train.checkpoint import unpack
from processes import after, appears, eat_run, finish, kill_when, outcome, outcomes, output, results, run_folders, stamp

RUN = "lambda=1 trainer.epochs=4"
SWEEP = "-m lambda=0,1 trainer.epochs=2"
MOMENTS = {  # of writing a file; temporary files are written half or whole, then renamed
    "history.csv": "whole",
    "checkpoint.pt": "renamed",
    "layers.csv": "half",
    "model.safetensors": "half",
    "record.json": "renamed",
}
KILLED = -signal.SIGKILL
ENOUGH = {"checkpoint.pt": 3, "history.csv": 3, "record.json": 3, "another file": 1}  # kills


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders below it share a store of digits."""
    return tmp_path_factory.mktemp("kills")


@pytest.fixture(scope="module")
def whole(place: Path) -> dict[str, Any]:
    """What the run leaves if nobody disturbs it."""
    assert finish(place / "whole", RUN) == 0, output(place / "whole")
    return outcomes(place / "whole")


@pytest.fixture(scope="module")
def whole_sweep(place: Path) -> dict[str, Any]:
    assert finish(place / "whole_sweep", SWEEP) == 0, output(place / "whole_sweep")
    return outcomes(place / "whole_sweep")


def die_writing(name: str, stage: str) -> None:
    """In the process that is to die: a kill at an exact moment of writing that file, which nobody outside can hit."""
    from eat_runner import records, report
    from eat_runner.run import resume, stages

    def dies(path: Path, data: bytes) -> None:
        if path.name != name:
            return write(path, data)
        temporary = path.with_name(f".{name}.dead.tmp")
        temporary.write_bytes(data[: len(data) // 2] if stage == "half" else data)
        if stage == "renamed":
            temporary.replace(path)
        return os.kill(os.getpid(), signal.SIGKILL)

    write = records.write_atomically
    records.write_atomically = resume.write_atomically = stages.write_atomically = report.write_atomically = dies


def test_a_run_killed_at_every_file_it_writes_goes_on_to_the_same_bits(place: Path, whole: dict[str, Any]) -> None:
    folder = place / "every_file"
    for name, stage in MOMENTS.items():
        assert finish(folder, RUN, partial(die_writing, name, stage)) == KILLED, (name, output(folder))
    assert finish(folder, RUN) == 0
    assert outcomes(folder) == whole


@pytest.mark.long
def test_ten_kills_when_a_file_appears(place: Path, whole: dict[str, Any]) -> None:
    hits = dict.fromkeys(ENOUGH, 0)
    for number in range(30):
        folder = place / f"file_round{number}"
        for name in ("checkpoint.pt", "history.csv", ".*.tmp", "model.safetensors", "record.json"):
            code = kill_when(eat_run(folder, RUN), appears(folder, f"results/default/*/{name}"))
            assert code in {0, KILLED}, output(folder)
            hits[name if name in hits else "another file"] += code == KILLED
            print(f"round {number}, {name}: {hits}")
        assert finish(folder, RUN) == 0
        assert outcomes(folder) == whole
        if all(hits[what] >= enough for what, enough in ENOUGH.items()):
            return
    raise AssertionError(f"too few kills found the run alive: {hits}")


@pytest.mark.long
def test_ten_kills_at_random_moments(place: Path, whole: dict[str, Any]) -> None:
    seed = int(os.environ.get("KILL_SEED", time.time_ns() % 10**6))
    print(f"KILL_SEED={seed}")
    chance = random.Random(seed)
    [run_id] = whole
    start = time.monotonic()
    assert finish(place / "timed", RUN) == 0
    longest = time.monotonic() - start
    hits = 0
    for number in range(60):
        folder = place / f"random_round{number}"
        run = RunFolder(results(folder) / run_id)
        for _ in range(2):  # the second kill finds a run that goes on
            seconds = chance.uniform(0.0, longest)
            start = time.monotonic()
            code = kill_when(eat_run(folder, RUN), after(seconds))
            assert code in {0, KILLED}, output(folder)
            hits += code == KILLED and run.config.exists() and not run.is_final()
            print(f"round {number}: killed after {seconds:.3f} of {longest:.3f} s: {hits}")
            if code == 0:  # faster than before
                longest = min(longest, time.monotonic() - start)
            if run.is_final():
                break
        assert finish(folder, RUN) == 0
        assert outcomes(folder) == whole
        if hits >= 10:
            return
    raise AssertionError(f"only {hits} kills found the run alive")


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)])
def test_a_run_asked_to_stop_writes_a_checkpoint_and_goes_on_to_the_same_bits(
    number: signal.Signals, place: Path, whole: dict[str, Any]
) -> None:
    folder = place / number.name
    rare = f"{RUN} trainer.checkpoint_every=100"  # so that the checkpoint is the one that the signal asks for
    assert kill_when(eat_run(folder, rare), appears(folder, "results/default/*/history.csv"), number) == 75
    assert output(folder).endswith("eat-run: stopped: the same command continues\n")
    [run] = run_folders(folder)
    record = run.read_record()
    assert (record.status, record.reason) == ("interrupted", "stopped by a signal")
    checkpoint = unpack(run.checkpoint.read_bytes())
    assert checkpoint["epoch"] >= 1
    assert finish(folder, RUN) == 0
    assert outcomes(folder) == whole


@pytest.mark.long
def test_a_compiled_run_goes_on_to_the_same_bits(place: Path) -> None:
    compiled = "model=vgg11 lambda=1 trainer.epochs=3 trainer.compile=on"
    assert finish(place / "compiled", compiled) == 0, output(place / "compiled")
    folder = place / "compiled_killed"
    assert kill_when(eat_run(folder, compiled), appears(folder, "results/default/*/checkpoint.pt")) == KILLED
    assert finish(folder, compiled) == 0
    assert outcomes(folder) == outcomes(place / "compiled")


def stop_while_writing(name: str, numbers: list[int]) -> None:
    from eat_runner import records

    def stops(path: Path, data: bytes) -> None:
        if path.name == name:
            for number in numbers:
                signal.raise_signal(number)
        write(path, data)

    write = records.write_atomically
    records.write_atomically = stops


@pytest.mark.long
def test_a_signal_at_the_very_end_of_a_run_stops_the_sweep(place: Path, whole_sweep: dict[str, Any]) -> None:
    folder = place / "at_the_end"
    assert finish(folder, SWEEP, partial(stop_while_writing, "record.json", [signal.SIGTERM])) == 75
    [first] = run_folders(folder)
    assert first.read_record().status == "finished"
    assert finish(folder, SWEEP) == 0
    assert outcomes(folder) == whole_sweep


@pytest.mark.long
def test_a_second_ctrl_c_stops_at_once(place: Path, whole: dict[str, Any]) -> None:
    folder = place / "twice"
    assert finish(folder, RUN, partial(stop_while_writing, "history.csv", [signal.SIGINT, signal.SIGINT])) == 75
    [run] = run_folders(folder)
    assert not run.history.exists()
    checkpoint = unpack(run.checkpoint.read_bytes())
    assert (checkpoint["epoch"], checkpoint["step"]) == (1, 0)  # the epoch's own: none was written any more
    assert finish(folder, RUN) == 0
    assert outcomes(folder) == whole


@pytest.mark.long
def test_a_killed_sweep_repeats_nothing_that_is_finished(place: Path, whole_sweep: dict[str, Any]) -> None:
    folder = place / "sweep"
    assert kill_when(eat_run(folder, SWEEP), appears(folder, "results/default/*/record.json")) == KILLED
    [finished] = [run for run in run_folders(folder) if run.record.exists()]
    before = [stamp(path) for path in (finished.record, finished.weights, finished.history)]
    second = partial(die_writing, "checkpoint.pt", "renamed")
    assert finish(folder, SWEEP, second) == KILLED
    assert finish(folder, SWEEP, partial(die_writing, "pareto.csv", "half")) == KILLED
    assert finish(folder, SWEEP) == 0
    assert [stamp(path) for path in (finished.record, finished.weights, finished.history)] == before
    assert outcomes(folder) == whole_sweep
    table, complete = (results(place / name) / "summary.csv" for name in ("sweep", "whole_sweep"))
    assert table.read_text().count("finished") == complete.read_text().count("finished") == 2
    assert not list(results(folder).rglob("*.tmp"))


@pytest.mark.long
def test_a_sweep_killed_at_random_moments_ends_complete(place: Path, whole_sweep: dict[str, Any]) -> None:
    seed = int(os.environ.get("KILL_SEED", time.time_ns() % 10**6))
    print(f"KILL_SEED={seed}")
    chance = random.Random(seed)
    folder, written = place / "random_sweep", {}
    for _ in range(10):
        kill_when(eat_run(folder, SWEEP), after(chance.uniform(0.5, 4.0)))
        for run in run_folders(folder) if results(folder).exists() else ():
            if run.is_final():
                assert written.setdefault(run.path, stamp(run.record)) == stamp(run.record)
    assert finish(folder, SWEEP) == 0
    assert outcomes(folder) == whole_sweep


@pytest.mark.long
def test_another_configuration_gets_another_folder(place: Path, whole: dict[str, Any]) -> None:
    folder = place / "changed"
    assert finish(folder, RUN) == 0
    assert finish(folder, f"{RUN} trainer.lr=0.05") == 0
    assert len(run_folders(folder)) == 2
    [name] = whole
    assert outcome(RunFolder(results(folder) / name)) == whole[name]


# --- a run that fails ---


def little_memory() -> None:
    """Leave the process 600 MB more than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + 600 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


TOO_MUCH = "-m trainer.epochs=1 lambda=0 dataset.image_size=56,8 trainer.batch_size=230 model.width=16 model.stem=3x3"


@pytest.mark.long
def test_a_run_out_of_memory_fails_alone_and_only_it_is_repeated(place: Path) -> None:
    folder = place / "memory"
    assert finish(folder, TOO_MUCH, little_memory) == 1
    records = {run.read_record().status: run for run in run_folders(folder)}
    assert set(records) == {"finished", "failed"}
    failed, finished = records["failed"], records["finished"]
    assert "allocate memory" in failed.read_record().reason
    assert "RuntimeError" in failed.traceback.read_text()
    text = output(folder)
    assert f"eat-run: run {failed.path.name} failed: RuntimeError: " in text
    assert "1 of 2 runs are not in the front: 1 failed" in text
    before = stamp(finished.record)
    assert finish(folder, TOO_MUCH) == 0
    assert stamp(finished.record) == before
    assert failed.read_record().status == "finished"
    assert not failed.traceback.exists()


TOO_LARGE = "-m model.width=300,4 trainer.epochs=1 lambda=0"  # 1 GB of weights


@pytest.mark.long
def test_a_network_that_cannot_be_built_fails_alone_and_leaves_a_record(place: Path) -> None:
    folder = place / "network"
    assert finish(folder, TOO_LARGE, little_memory) == 1
    records = {run.read_record().status: run for run in run_folders(folder)}
    assert set(records) == {"finished", "failed"}
    failed = records["failed"]
    assert "allocate memory" in failed.read_record().reason
    assert "models.build" in failed.traceback.read_text()
    assert f"eat-run: run {failed.path.name} failed: RuntimeError: " in output(folder)


@pytest.mark.long
def test_on_error_stop_starts_nothing_after_a_failure(place: Path) -> None:
    folder = place / "stop"
    assert finish(folder, f"{TOO_MUCH} on_error=stop", little_memory) == 1
    [run] = run_folders(folder)
    assert run.read_record().status == "failed"


@pytest.mark.long
def test_a_diverged_run_is_a_result_and_not_repeated(place: Path) -> None:
    folder = place / "diverged"
    wild = f"{RUN} trainer.lr=1e30 trainer.lr_schedule=constant"
    assert finish(folder, wild) == 0, output(folder)
    [run] = run_folders(folder)
    assert run.read_record().status == "diverged"
    before = stamp(run.record)
    assert finish(folder, wild) == 0
    assert stamp(run.record) == before


def test_a_run_whose_owner_was_killed_is_missing_and_not_done(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.create()
    assert command.exit_code({run.path: ExperimentConfig()}) == 1
    run.write_record(RunRecord(run_id="run", status="interrupted"))
    assert command.exit_code({run.path: ExperimentConfig()}) == 75
    assert json.loads(run.record.read_text())["status"] == "interrupted"
