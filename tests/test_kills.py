"""A run or a sweep that is killed anywhere goes on with the same command, to the same bits."""

import json
import os
import random
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from eat_runner import records
from eat_runner.records import RunFolder
from processes import after, appears, eat_run, finish, kill_when, output

RUN = "lambda=1 trainer.epochs=5"
FILES = ("config.yaml", "history.csv", "checkpoint.pt", "layers.csv", "batches.csv", "model.safetensors", "record.json")
UNTIMED = ("timings", "git_commit")  # the commit may change under our feet while somebody works on the source


def run_folder(folder: Path) -> RunFolder:
    [path] = [path for path in (folder / "results" / "default").iterdir() if path.is_dir()]
    return RunFolder(path)


def result(run: RunFolder) -> dict[str, Any]:
    """Everything that a run leaves, without times: the files that are there, and what is in them."""
    record = json.loads(run.record.read_text())
    history = run.read_history()
    for row in history:
        del row["seconds"]
    return {
        "files": sorted(path.name for path in run.path.iterdir()),
        "record": {key: value for key, value in record.items() if key not in {*UNTIMED, "checksum"}},
        "history": history,
        "weights": run.weights.read_bytes(),
        "layers": run.layers.read_bytes(),
        "batches": run.batches.read_bytes(),
        "config": run.config.read_bytes(),
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders below it share a store of digits."""
    return tmp_path_factory.mktemp("kills")


@pytest.fixture(scope="module")
def whole(place: Path) -> dict[str, Any]:
    """What the run leaves if nobody disturbs it."""
    assert finish(place / "whole", RUN) == 0
    return result(run_folder(place / "whole"))


def die_writing(name: str, stage: str) -> None:
    """In the process that is to die: a kill at an exact moment of writing that file, which nobody outside can hit."""

    def dies(path: Path, data: bytes) -> None:
        if path.name != name:
            return write(path, data)
        temporary = path.with_name(f".{name}.dead.tmp")
        temporary.write_bytes(data[: len(data) // 2] if stage == "half" else data)
        if stage == "renamed":
            temporary.replace(path)
        return os.kill(os.getpid(), signal.SIGKILL)

    write = records.write_atomically
    records.write_atomically = dies
    from eat_runner import experiment

    experiment.write_atomically = dies


def test_a_run_killed_at_every_file_it_writes_goes_on_to_the_same_bits(place: Path, whole: dict[str, Any]) -> None:
    folder = place / "every_file"
    for name, stage in zip(FILES, ["half", "whole", "renamed", "half", "whole", "half", "renamed"], strict=True):
        assert finish(folder, RUN, partial(die_writing, name, stage)) == -signal.SIGKILL, (name, output(folder))
    assert finish(folder, RUN) == 0
    assert result(run_folder(folder)) == whole


def kill_repeatedly(folder: Path, moments: list[tuple[str, Callable[[], bool] | float]]) -> int:
    """Kill the run at each moment (or after so many seconds); how many kills found it alive."""
    hits = 0
    for name, moment in moments:
        process = eat_run(folder, RUN)
        happened = after(moment) if isinstance(moment, float) else moment
        code = kill_when(process, happened)
        print(f"{name}: {'killed' if code == -signal.SIGKILL else 'had ended'}")
        assert code in {0, -signal.SIGKILL}, output(folder)
        hits += code == -signal.SIGKILL
    return hits


@pytest.mark.long
def test_twenty_kills_half_of_them_at_random_moments(place: Path, whole: dict[str, Any]) -> None:
    seed = int(os.environ.get("KILL_SEED", time.time_ns() % 10**6))
    print(f"KILL_SEED={seed}")
    chance = random.Random(seed)
    watched = ["checkpoint.pt", "history.csv", ".*.tmp", "model.safetensors", "record.json"]
    hits = {"file": 0, "random": 0}
    for number in range(30):
        folder = place / f"round{number}"
        for name in watched:
            process = eat_run(folder, RUN)
            hits["file"] += kill_when(process, appears(folder, f"results/default/*/{name}")) == -signal.SIGKILL
            seconds = chance.uniform(0.1, 3.0)
            process = eat_run(folder, RUN)
            code = kill_when(process, after(seconds))
            assert code in {0, -signal.SIGKILL}, output(folder)
            hits["random"] += code == -signal.SIGKILL
            print(f"round {number}: {name}, then after {seconds:.3f} s: {hits}")
        assert finish(folder, RUN) == 0
        assert result(run_folder(folder)) == whole
        if hits["file"] >= 10 and hits["random"] >= 10:
            return
    raise AssertionError(f"too few kills found the run alive: {hits}")
