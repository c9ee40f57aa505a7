"""One training in several processes that torchrun starts: the same as in one, to rounding."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import trained_together
from eat_runner import ranks
from eat_runner.records import RunFolder
from processes import command_line, finish, outcome, output, run_folders

PATIENCE_S = 600
# little moves, so that rounding stays small for a whole training in float32
GENTLE = "lambda=1 trainer.epochs=3 trainer.lr=1e-4 trainer.batch_size=33"
LONG = "lambda=1 trainer.epochs=10"


def torchrun(arguments: list[str], folder: Path, processes: int = 2) -> "subprocess.Popen[str]":
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.Popen(
        [*command, *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def eat_run(folder: Path, arguments: str, processes: int = 2) -> "subprocess.Popen[str]":
    return torchrun(["-m", "eat_runner.cli.run", *command_line(folder, arguments.split())], folder, processes)


def ended(process: "subprocess.Popen[str]") -> str:
    """What it said."""
    return process.communicate(timeout=PATIENCE_S)[0]


def only_run(folder: Path) -> RunFolder:
    [run] = run_folders(folder)
    return run


def record_of(folder: Path) -> dict[str, Any]:
    return json.loads(only_run(folder).record.read_text())


def wait_for(happened: Any, process: "subprocess.Popen[str]") -> None:
    while not happened():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders below it share a store of digits."""
    return tmp_path_factory.mktemp("together")


# --- parts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 7, 8, 33])
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_every_thing_is_in_one_part_and_the_weighted_mean_of_means_is_the_mean(
    monkeypatch: pytest.MonkeyPatch, count: int, size: int
) -> None:
    values = [float(value**2) for value in range(count)]
    parts: list[list[float]] = []
    weighted = 0.0
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    monkeypatch.setenv("WORLD_SIZE", str(size))
    for rank in range(size):
        monkeypatch.setenv("RANK", str(rank))
        part = values[ranks.part_of(count)]
        parts.append(part)
        if part:
            weighted += ranks.weight_in(count) * sum(part) / len(part) / size
    assert [value for part in parts for value in part] == values
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert weighted == pytest.approx(sum(values) / count)


def test_without_torchrun_the_names_in_the_environment_mean_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "3")
    assert (ranks.rank(), ranks.local_rank(), ranks.world_size(), ranks.is_first()) == (0, 0, 1, True)


# --- two processes and one -------------------------------------------------------------------------------------------


def assert_close(found: Any, expected: Any, where: str) -> None:
    """To rounding where they are floating-point numbers, else exactly."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected.keys() - {"seconds"}:
            assert_close(found[key], expected[key], f"{where} {key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), where
        for i, pair in enumerate(zip(found, expected, strict=True)):
            assert_close(*pair, f"{where} {i}")
    elif isinstance(expected, torch.Tensor) and expected.is_floating_point():
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6, msg=lambda text: f"{where}: {text}")
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), where
    else:
        assert found == (pytest.approx(expected, rel=1e-6) if isinstance(expected, float) else expected), where


@pytest.mark.long
def test_steps_of_two_processes_are_those_of_one(place: Path) -> None:
    """Penalties and their weightings, batch norms, pruning, budgets, calibration, a teacher, looks and the epoch's
    figures."""
    folder, data = place / "steps", str(place / "data")
    trained_together.make_parent(data)
    process = torchrun([trained_together.__file__, data, str(folder)], folder)
    said = ended(process)
    assert process.returncode == 0, said
    first, second = (torch.load(folder / f"{rank}.pt") for rank in range(2))
    for case in trained_together.CASES:
        alone = trained_together.train(case, data)
        assert_close(first[case], alone, case)
        for name, weight in first[case]["model"].items():
            assert torch.equal(weight, second[case]["model"][name]), (case, name)


@pytest.mark.long
def test_a_run_of_two_processes_is_that_of_one_and_counts_are_equal(place: Path) -> None:
    assert finish(place / "one", GENTLE) == 0, output(place / "one")
    process = eat_run(place / "two", GENTLE)
    said = ended(process)
    assert process.returncode == 0, said
    one, two = only_run(place / "one"), only_run(place / "two")
    assert one.path.name == two.path.name
    assert sorted(path.name for path in one.path.iterdir()) == sorted(path.name for path in two.path.iterdir())
    assert [record_of(place / name)["world_size"] for name in ("one", "two")] == [1, 2]
    assert said.count("epoch 3  ") == 1  # one process speaks
    for ours, theirs in zip(one.read_history(), two.read_history(), strict=True):
        for key in ours.keys() - {"seconds"}:
            assert theirs[key] == pytest.approx(ours[key], rel=1e-3), key
    ours, theirs = load_file(one.weights), load_file(two.weights)
    for name in ours:
        torch.testing.assert_close(theirs[name], ours[name], rtol=1e-3, atol=1e-4)

    measured = f"init={one.path} trainer.epochs=0 seed=1"
    assert finish(place / "one_measures", measured) == 0, output(place / "one_measures")
    said = ended(eat_run(place / "three_measure", measured, processes=3))
    assert record_of(place / "three_measure")["status"] == "finished", said
    ours, theirs = only_run(place / "one_measures"), only_run(place / "three_measure")
    for name in ("layers", "batches", "predictions", "weights"):
        assert getattr(ours, name).read_bytes() == getattr(theirs, name).read_bytes(), name
    first, third = record_of(place / "one_measures"), record_of(place / "three_measure")
    for key in ("accuracy", "loss", "firing_rate", "energy", "files"):
        assert first[key] == third[key]


# --- interruptions ---------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_signal_ends_all_processes_and_the_same_command_goes_on_to_the_same_bits(place: Path) -> None:
    whole = eat_run(place / "whole", LONG)
    said = ended(whole)
    assert whole.returncode == 0, said

    stopped = eat_run(place / "stopped", LONG)
    folder = place / "stopped" / "results" / "default"
    wait_for(lambda: any(folder.glob("*/checkpoint.pt")), stopped)
    stopped.send_signal(signal.SIGTERM)
    said = ended(stopped)
    assert record_of(place / "stopped")["status"] == "interrupted", said
    assert said.count("the same command continues") == 1
    assert 0 < record_of(place / "stopped")["epochs_done"] < 10

    killed = eat_run(place / "stopped", LONG)
    before = only_run(place / "stopped").checkpoint.stat().st_mtime_ns
    wait_for(lambda: only_run(place / "stopped").checkpoint.stat().st_mtime_ns != before, killed)
    os.kill(process_of_rank(1, killed.pid), signal.SIGKILL)
    said = ended(killed)
    record = record_of(place / "stopped")
    assert (record["status"], "was killed" in record["reason"]) == ("failed", True), said
    assert said.count(" failed: ") == 1

    again = eat_run(place / "stopped", LONG)
    said = ended(again)
    assert again.returncode == 0, said
    found, expected = outcome(only_run(place / "stopped")), outcome(only_run(place / "whole"))
    assert found == expected


def process_of_rank(rank: int, parent: int) -> int:
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    [found] = [
        int(child) for child in children if f"RANK={rank}" in Path(f"/proc/{child}/environ").read_text().split("\0")
    ]
    return found


@pytest.mark.long
def test_one_process_goes_on_where_two_were_stopped(place: Path) -> None:
    process = eat_run(place / "fewer", LONG)
    folder = place / "fewer" / "results" / "default"
    wait_for(lambda: any(folder.glob("*/checkpoint.pt")), process)
    process.send_signal(signal.SIGTERM)
    ended(process)
    done = record_of(place / "fewer")["epochs_done"]
    assert finish(place / "fewer", LONG) == 0, output(place / "fewer")
    record = record_of(place / "fewer")
    assert (record["status"], record["epochs_done"], record["world_size"]) == ("finished", 10, 1)
    assert f"epoch {done}  " not in output(place / "fewer")  # it did not begin again
    assert "could not be used" not in output(place / "fewer")


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize(
    ("program", "arguments", "expected"),
    [
        ("run", "lambda=1 trainer.batch_size=1", "trainer.batch_size=1 has no image for each of 2 processes"),
        ("run", "lamda=1", "lamda is no key"),
        ("run", "-m lambda=0,1", "torchrun trains one run: leave out -m"),
        ("run", "path=lambda path.over=[0,1]", "torchrun trains one run, and a path has several"),
        ("search", "lambda=0,1", "torchrun trains one run, and a search has many"),
    ],
)
def test_bad_input_is_one_line_of_one_process(place: Path, program: str, arguments: str, expected: str) -> None:
    folder = place / "refused"
    said = ended(torchrun(["-m", f"eat_runner.cli.{program}", *command_line(folder, arguments.split())], folder))
    [line] = [line for line in said.splitlines() if line.startswith("eat-")]
    assert line.startswith(f"eat-{program}: error: {expected}")
    assert "(exitcode: 2) local_rank: 0" in said
    assert not list(folder.glob("results/default/*/"))
