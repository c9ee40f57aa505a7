"""scripts/same_results.py sees what differs: in small files made here and, in the long test, after a new price."""

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from same_results import compare, folders  # noqa: E402

RUN = "results/sweep/digits-0a1b2c3d"
TABLES = {
    "history.csv": [{"epoch": "1", "lr": "0.1", "seconds": "1.5"}, {"epoch": "2", "lr": "0.05", "seconds": "1.25"}],
    "layers.csv": [{"name": "conv1", "macs": "36864"}, {"name": "fc", "macs": "640"}],
    "batches.csv": [{"batch": "0", "nonzeros": "5"}],
}
SUMMARY = [{"run_id": "digits-0a1b2c3d", "normalisation": "layer_mean", "accuracy": "0.875", "seconds": "2.75"}]
RECORD: dict[str, Any] = {
    "run_id": "digits-0a1b2c3d",
    "status": "finished",
    "config": {"penalty": {"normalisation": "layer_mean"}},
    "energy": {"published": {"test": {"ratio": 0.5, "floor": None}}},
    "messages": ["grey images are repeated"],
    "versions": {"torch": "2.9"},
    "machine": {"cores": 2},
    "git_commit": "abc",
    "timings": {"training_s": 2.75},
    "checksum": "123",
}
WEIGHTS = bytes(range(200))


def write_table(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_side(side: Path) -> Path:
    """What one commit leaves: a sweep of one run."""
    run = side / RUN
    run.mkdir(parents=True)
    for name, rows in TABLES.items():
        write_table(run / name, rows)
    write_table(run.parent / "summary.csv", SUMMARY)
    (run / "record.json").write_text(json.dumps(RECORD))
    (run / "model.safetensors").write_bytes(WEIGHTS)
    (run / "config.yaml").write_text("name: sweep\n")
    (run / ".lock").touch()
    (side / ".sweep.log").touch()
    return side


@pytest.fixture
def before(tmp_path: Path) -> Path:
    return write_side(tmp_path / "before")


@pytest.fixture
def after(tmp_path: Path) -> Path:
    return write_side(tmp_path / "after")


def all_differences(before: Path, after: Path) -> dict[str, list[str]]:
    found = {name: compare(before / name, after / name) for name in folders(before, after)}
    return {name: said for name, said in found.items() if said}


def test_equal_folders_are_the_same(before: Path, after: Path) -> None:
    assert folders(before, after) == ["results/sweep", RUN]
    assert all_differences(before, after) == {}


def test_times_machine_versions_and_configuration_may_differ(before: Path, after: Path) -> None:
    write_table(after / RUN / "history.csv", [row | {"seconds": "9"} for row in TABLES["history.csv"]])
    write_table(after / RUN / "../summary.csv", [row | {"seconds": "9"} for row in SUMMARY])
    of_no_interest = ("config", "versions", "machine", "git_commit", "timings", "checksum")
    (after / RUN / "record.json").write_text(json.dumps(RECORD | dict.fromkeys(of_no_interest, "other")))
    (after / RUN / "config.yaml").write_text("name: other\n")
    (after / RUN / ".lock").unlink()
    assert all_differences(before, after) == {}


def changed_weights(run: Path) -> None:
    (run / "model.safetensors").write_bytes(WEIGHTS[:150] + b"\0" + WEIGHTS[151:])


def shorter_weights(run: Path) -> None:
    (run / "model.safetensors").write_bytes(WEIGHTS[:150])


def changed_history(run: Path) -> None:
    write_table(run / "history.csv", [row | {"lr": "0.1"} for row in TABLES["history.csv"]])


def longer_history(run: Path) -> None:
    write_table(run / "history.csv", [*TABLES["history.csv"], {"epoch": "3", "lr": "0.05", "seconds": "1"}])


def changed_counts(run: Path) -> None:
    write_table(run / "layers.csv", [row | {"macs": "641"} for row in TABLES["layers.csv"]])


def counts_in_other_words(run: Path) -> None:
    write_table(run / "batches.csv", [dict(reversed(row.items())) for row in TABLES["batches.csv"]])


def changed_energy(run: Path) -> None:
    energy = {"published": {"test": {"ratio": 0.5000000000000001, "floor": None}}}
    (run / "record.json").write_text(json.dumps(RECORD | {"energy": energy}))


def other_type(run: Path) -> None:
    (run / "record.json").write_text(json.dumps(RECORD | {"messages": "grey"}))


def other_key(run: Path) -> None:
    record = RECORD | {"remarks": ["grey images are repeated"]}
    del record["messages"]
    (run / "record.json").write_text(json.dumps(record))


def no_counts(run: Path) -> None:
    (run / "batches.csv").unlink()


def traceback(run: Path) -> None:
    (run / "traceback.txt").touch()


CHANGES: dict[Callable[[Path], None], str] = {
    changed_weights: "model.safetensors: byte 150 of 200, after of 200",
    shorter_weights: "model.safetensors: byte 150 of 200, after of 150",
    changed_history: "history.csv: lr 1 '0.05' → '0.1'",
    longer_history: "history.csv: epoch 2 nothing → '3' and 1 more",
    changed_counts: "layers.csv: macs 0 '36864' → '641' and 1 more",
    counts_in_other_words: "batches.csv: byte 0 of 19, after of 19",
    changed_energy: "record.json: energy published test ratio 0.5 → 0.5000000000000001",
    other_type: "record.json: messages nothing → 'grey' and 1 more",
    other_key: "record.json: messages 0 'grey images are repeated' → nothing and 1 more",
    no_counts: "batches.csv: only before",
    traceback: "traceback.txt: only after",
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_differs_in_a_run_is_said_and_where(before: Path, after: Path, change: Callable[[Path], None]) -> None:
    change(after / RUN)
    assert all_differences(before, after) == {RUN: [CHANGES[change]]}


def test_a_missing_run_and_one_more_are_seen(before: Path, after: Path) -> None:
    (after / RUN).rename(after / RUN.replace("0a1b2c3d", "ffffffff"))
    assert all_differences(before, after) == {
        RUN: ["only before"],
        RUN.replace("0a1b2c3d", "ffffffff"): ["only after"],
    }


def test_a_renamed_column_is_the_same_only_if_it_is_known(before: Path, after: Path) -> None:
    summary = after / "results/sweep/summary.csv"
    text = summary.read_text()
    summary.write_text(text.replace("normalisation", "weighting"))
    assert all_differences(before, after) == {}
    summary.write_text(text.replace("normalisation", "weighting").replace("layer_mean", "elements"))
    assert all_differences(before, after) == {
        "results/sweep": ["summary.csv: weighting 0 'layer_mean' → 'elements'"],
    }
    summary.write_text(text.replace("accuracy", "score"))
    assert all_differences(before, after) == {"results/sweep": ["summary.csv: accuracy 0 '0.875' → nothing and 1 more"]}


@pytest.mark.long
def test_a_changed_price_is_seen_in_real_runs_and_no_change_is_not(tmp_path: Path) -> None:
    """In a repository of its own, made of this working tree."""
    for name in ("src", "conf", "scripts"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))

    def call(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    call("git", "init", "--quiet")
    call("git", "add", ".")
    author = ("-c", "user.name=nobody", "-c", "user.email=nobody@example.org")
    assert call("git", *author, "commit", "--quiet", "--message", "as it is").returncode == 0
    quick = (sys.executable, "scripts/same_results.py", "--quick", "HEAD")
    same = call(*quick)
    assert same.returncode == 0, same.stdout + same.stderr
    assert same.stdout.endswith("0 of 4 folders differ, 0 commands went wrong\n")
    prices = tmp_path / "conf" / "hardware" / "published.yaml"
    prices.write_text(prices.read_text().replace("multiply_pj: 3.7", "multiply_pj: 3.8"))
    changed = call(*quick)
    assert changed.returncode == 1, changed.stdout + changed.stderr
    assert changed.stdout.endswith("4 of 4 folders differ, 0 commands went wrong\n")
    lines = [line for line in changed.stdout.splitlines() if line.startswith("results/quick/digits-")]
    assert len(lines) == 2
    assert all("record.json: energy published test" in line and "model.safetensors" not in line for line in lines)
    assert call("git", "worktree", "list").stdout.count("\n") == 1
    assert call(*quick[:-1], "no-such-commit").returncode == 2
