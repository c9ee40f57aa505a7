"""Disks that are full or read-only, folders that vanish, files that are damaged: a clear line, and nothing is lost."""

import random
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from eat_runner.cli.report import command as report
from eat_runner.errors import UserError
from eat_runner.records import RunFolder
from eat_runner.train.checkpoint import pack, unpack
from processes import (
    appears,
    eat_run,
    ended,
    finish,
    kill_when,
    outcome,
    outcomes,
    output,
    pause_after,
    paused,
    results,
    run_folders,
    stamp,
)

RUN = "lambda=1 trainer.epochs=3"
SWEEP = "-m lambda=0,1 trainer.epochs=2"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders below it share a store of digits."""
    return tmp_path_factory.mktemp("disk")


@pytest.fixture(scope="module")
def whole(place: Path) -> dict[str, Any]:
    assert finish(place / "whole", RUN) == 0, output(place / "whole")
    return outcomes(place / "whole")


@pytest.fixture(scope="module")
def whole_sweep(place: Path) -> dict[str, Any]:
    assert finish(place / "whole_sweep", SWEEP) == 0, output(place / "whole_sweep")
    return outcomes(place / "whole_sweep")


Mount = Callable[[Path, str], None]


@pytest.fixture
def mount() -> Iterator[Mount]:
    """Puts a small disk at a folder, or gives the one that is there another size or mode."""
    mounted: list[Path] = []

    def call(folder: Path, options: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        again = folder in mounted
        options = f"remount,{options}" if again else options
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True, check=False
        )
        if done.returncode and not again:
            pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
        assert done.returncode == 0, done.stderr
        if not again:
            mounted.append(folder)

    if shutil.which("mount") is None:
        pytest.skip("there is no mount here")
    yield call
    for folder in mounted:
        subprocess.run(["umount", "-l", folder], check=True)


def used(folder: Path) -> int:
    disk = shutil.disk_usage(folder)
    return disk.used // 1024


@pytest.mark.long
def test_a_full_disk_fails_the_run_and_keeps_its_last_checkpoint(
    place: Path, whole: dict[str, Any], mount: Mount
) -> None:
    folder = place / "full"
    mount(folder / "results", "size=32m")
    code = kill_when(eat_run(folder, RUN), appears(folder, "results/default/*/checkpoint.pt"))
    assert code == -signal.SIGKILL
    [run] = run_folders(folder)
    checkpoint = run.checkpoint.read_bytes()
    mount(folder / "results", f"size={used(folder / 'results') + 40}k")  # room for a record and not for a checkpoint
    assert finish(folder, RUN) == 1
    assert f"eat-run: run {run.path.name} failed: OSError: [Errno 28] No space left on device" in output(folder)
    assert run.read_record().status == "failed"
    assert unpack(checkpoint)["epoch"] == 1
    assert unpack(run.checkpoint.read_bytes())["epoch"] == 1
    assert not list(run.path.glob("*.tmp"))
    mount(folder / "results", "size=32m")
    assert finish(folder, RUN) == 0
    assert outcomes(folder) == whole


@pytest.mark.long
def test_a_disk_that_fills_up_in_a_sweep_keeps_what_is_finished(
    place: Path, whole_sweep: dict[str, Any], mount: Mount
) -> None:
    folder = place / "full_sweep"
    mount(folder / "results", "size=32m")
    process = eat_run(folder, SWEEP, partial(pause_after, "record.json"))
    with paused(process):
        [first] = run_folders(folder)
        before = outcome(first)
        mount(folder / "results", f"size={used(folder / 'results') + 40}k")
    assert ended(process) == 1
    [second] = [run for run in run_folders(folder) if run.path != first.path]
    assert f"eat-run: run {second.path.name} failed: OSError: [Errno 28] No space left on device" in output(folder)
    assert "Traceback" not in output(folder)
    assert first.read_record().status == "finished"
    written = stamp(first.record)
    mount(folder / "results", "size=32m")
    assert finish(folder, SWEEP) == 0
    assert stamp(first.record) == written
    assert outcomes(folder) == whole_sweep
    assert whole_sweep[first.path.name]["weights"] == before["weights"]


@pytest.mark.long
def test_a_disk_without_any_room_is_a_clear_line(place: Path, whole: dict[str, Any], mount: Mount) -> None:
    folder = place / "no_room"
    mount(folder / "results", "size=8k")  # two pages
    assert finish(folder, RUN) == 1
    assert "failed: OSError: [Errno 28] No space left on device" in output(folder)
    assert "Traceback" not in output(folder)
    mount(folder / "results", "size=32m")
    assert finish(folder, RUN) == 0
    assert outcomes(folder) == whole


def test_a_disk_full_of_files_is_a_clear_line(place: Path, mount: Mount) -> None:
    folder = place / "no_inodes"
    mount(folder / "results", "size=32m,nr_inodes=2")  # the disk's folder, results/default
    assert finish(folder, RUN) == 2
    assert output(folder).splitlines()[-1].endswith(": No space left on device")
    mount(folder / "results", "size=32m,nr_inodes=4")  # … the report's lock, the run's folder
    assert finish(folder, RUN) == 1
    assert "eat-run: run lambda=1 seed=0 failed: OSError: " in output(folder)
    assert "Traceback" not in output(folder)


def test_a_read_only_results_folder_is_refused_and_can_still_be_reported(
    place: Path, whole: dict[str, Any], mount: Mount
) -> None:
    folder = place / "read_only"
    mount(folder / "results", "size=32m")
    assert finish(folder, RUN) == 0
    mount(folder / "results", "ro")
    assert finish(folder, f"{RUN} seed=1") == 2
    assert output(folder).endswith(
        "eat-run: error: results_dir: cannot write into results/default: choose another or change its permissions\n"
    )
    assert outcomes(folder) == whole
    report([str(results(folder)), "--output", str(folder / "report")])
    assert (folder / "report" / "summary.csv").read_text().count("finished") == 1
    with pytest.raises(OSError, match="Read-only"):
        report([str(results(folder))])


@pytest.mark.long
def test_a_results_folder_removed_during_a_run(place: Path, whole_sweep: dict[str, Any]) -> None:
    folder = place / "removed"
    process = eat_run(folder, SWEEP, partial(pause_after, "checkpoint.pt"))
    with paused(process):
        shutil.rmtree(results(folder))
    assert ended(process) == 1
    assert "failed: FileNotFoundError: [Errno 2] No such file or directory" in output(folder)
    assert "Traceback" not in output(folder)
    [second] = run_folders(folder)
    assert second.read_record().status == "finished"
    before = stamp(second.record)
    assert finish(folder, SWEEP) == 0
    assert stamp(second.record) == before
    assert outcomes(folder) == whole_sweep


# --- damaged files ---


def truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def of_another_model(data: bytes) -> bytes:
    state = unpack(data)
    state["model"] = {name: torch.cat([tensor, tensor]) for name, tensor in state["model"].items() if tensor.dim()}
    return pack(state)


def of_another_run(data: bytes) -> bytes:
    return pack(unpack(data) | {"run_id": "digits-resnet18-l0-lambda1-seed0-00000000"})


def of_another_program(data: bytes) -> bytes:
    state = unpack(data)
    state["history"] = [row | {"a_column_of_tomorrow": 1} for row in state["history"]]
    return pack(state)


def emptied(data: bytes) -> bytes:
    return b""


DAMAGE = {
    truncated: "it is damaged, or no checkpoint of this program",
    flipped: "it is damaged",
    of_another_model: "Error(s) in loading state_dict",
    of_another_run: "it belongs to another run",
    of_another_program: "unexpected keyword argument 'a_column_of_tomorrow'",
    emptied: "it is damaged",
}


def use_damaged_checkpoint(folder: Path, damage: Callable[[bytes], bytes], whole: dict[str, Any]) -> None:
    code = kill_when(eat_run(folder, RUN), appears(folder, "results/default/*/checkpoint.pt"))
    assert code == -signal.SIGKILL
    [run] = run_folders(folder)
    run.checkpoint.write_bytes(damage(run.checkpoint.read_bytes()))
    assert finish(folder, RUN) == 0
    [message] = run.read_record().messages
    assert message.startswith("checkpoint.pt could not be used (")
    assert message.endswith("): training started from the beginning")
    assert DAMAGE[damage] in message
    assert f"{run.path.name}  {message}" in output(folder)
    [found], [expected] = outcomes(folder).values(), whole.values()
    assert found == expected | {"record": expected["record"] | {"messages": [message]}}


@pytest.mark.long
def test_a_damaged_checkpoint_is_named_and_training_starts_again(place: Path, whole: dict[str, Any]) -> None:
    use_damaged_checkpoint(place / "flipped", flipped, whole)


@pytest.mark.long
@pytest.mark.parametrize("damage", [damage for damage in DAMAGE if damage is not flipped])
def test_a_checkpoint_that_is_none_of_this_run_is_named_and_training_starts_again(
    place: Path, whole: dict[str, Any], damage: Callable[[bytes], bytes]
) -> None:
    use_damaged_checkpoint(place / damage.__name__, damage, whole)


def test_no_flipped_bit_of_a_checkpoint_is_loaded_as_something_else() -> None:
    state = {"model": {"w": torch.arange(40.0)}, "epoch": 3, "history": [{"loss": 0.25}], "run_id": "a"}
    whole = pack(state)
    chance, seed = random.Random(4), 4
    for position in [*range(80), *range(len(whole) - 200, len(whole)), *chance.sample(range(len(whole)), 400)]:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << chance.randrange(8)
        try:
            found = unpack(bytes(damaged))
        except ValueError:
            continue
        assert torch.equal(found.pop("model")["w"], state["model"]["w"]), (position, seed)
        assert found == {key: value for key, value in state.items() if key != "model"}, (position, seed)


def newer(data: bytes) -> bytes:
    return data.replace(b'"format": 1', b'"format": 2')


@pytest.mark.long
@pytest.mark.parametrize("damage", [truncated, flipped, newer])
def test_a_damaged_or_newer_record_is_refused_kept_and_keeps_nobody_else_from_running(
    place: Path, whole_sweep: dict[str, Any], damage: Callable[[bytes], bytes]
) -> None:
    folder = place / f"record{damage.__name__}"
    assert finish(folder, SWEEP.replace("0,1", "0")) == 0
    [first] = run_folders(folder)
    good = first.record.read_bytes()
    first.record.write_bytes(damage(good))
    with pytest.raises(UserError) as refused:
        RunFolder(first.path).read_record()
    assert finish(folder, SWEEP) == 2
    line = str(refused.value).replace(f"{folder}/", "")
    assert output(folder).endswith(f"eat-run: error: {line}\n")
    assert first.record.read_bytes() == damage(good)
    assert len(run_folders(folder)) == 2
    first.record.write_bytes(good)
    assert finish(folder, SWEEP) == 0
    assert outcomes(folder) == whole_sweep


@pytest.mark.long
def test_a_run_that_lost_its_weights_is_still_finished(place: Path) -> None:
    folder = place / "weights"
    assert finish(folder, RUN) == 0
    [run] = run_folders(folder)
    run.weights.unlink()
    before = stamp(run.record)
    assert finish(folder, RUN) == 0
    assert stamp(run.record) == before
    assert not run.weights.exists()
