"""What is on disk after a run: written whole, read back to the bit, damage refused in one line."""

import errno
import gzip
import hashlib
import json
import math
import os
import stat
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from eat_runner.energy.counts import BatchCounts, Counts, LayerCounts
from eat_runner.errors import UserError
from eat_runner.records import FORMAT, RunFolder, RunRecord, write_atomically

COUNTS = Counts(
    layers=[
        LayerCounts(split="test", call=0, name="conv1", op="Conv2d", producers=(-1,), consumers=(1, 2), images=7,
                    input_elements=10**15, weight_elements=9),
        LayerCounts(split="test", call=1, name="odd, \"name\"\n", op="ReLU", inplace=True, activation=True),
    ],
    batches=[
        BatchCounts(split="test", batch=0, images=7, computations=3),
        BatchCounts(split="test", batch=-1, images=7),
    ],
    batch_size=50,
    threshold=2.0**-126,
    uncounted=("softmax",),
)  # fmt: skip


def finished(path: Path) -> tuple[RunFolder, RunRecord]:
    folder = RunFolder(path)
    folder.create()
    folder.write_counts(COUNTS)
    record = RunRecord(
        run_id="digits-resnet18-l0-lambda1-seed0-3f9c12ab",
        status="finished",
        config={"lambda": 1.0, "dataset": {"name": "digits"}},
        accuracy={"test": 0.1 + 0.2, "validation": None},
        timings={"total": 1},
        meter={"batch_size": 50, "threshold": 2.0**-126},
        uncounted=["softmax"],
    )
    folder.write_record(record)
    return folder, record


def test_record_reads_back_equal(tmp_path: Path) -> None:
    folder, record = finished(tmp_path / "run")
    assert folder.read_record() == record
    assert record.accuracy["test"] == 0.30000000000000004
    assert sorted(record.files) == ["batches.csv", "layers.csv"]


def test_counts_read_back_equal_and_layers_can_be_left_out(tmp_path: Path) -> None:
    folder, record = finished(tmp_path)
    assert folder.read_counts() == COUNTS
    assert folder.read_counts(record, layers=False) == Counts([], COUNTS.batches, 50, 2.0**-126, ("softmax",))


def test_predictions_are_the_same_bytes_for_the_same_answers_and_belong_to_the_record(tmp_path: Path) -> None:
    answers = {"validation": ([0, 1], [1, 1]), "test": ([2], [0])}
    first, record = finished(tmp_path / "first")
    assert first.predictions_bytes() is None  # as of earlier versions
    first.write_predictions(answers)
    first.write_record(record)
    data = first.predictions_bytes()
    assert data is not None
    assert gzip.decompress(data).decode() == "split,label,predicted\nvalidation,0,1\nvalidation,1,1\ntest,2,0\n"
    assert data[4:8] == bytes(4)  # the header's time (RFC 1952)
    first.write_predictions({"test": ([2], [1])})
    with pytest.raises(UserError, match=r"predictions.csv.gz is damaged: it is not the file that record.json was"):
        first.predictions_bytes()
    first.predictions.unlink()
    with pytest.raises(UserError, match=r"predictions.csv.gz cannot be read: No such file"):
        first.predictions_bytes()


def test_history_keeps_every_bit_and_empty_cells(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_history([{"epoch": 1, "loss": 1 / 3}, {"epoch": 2, "loss": None, "late": math.pi}])
    assert folder.read_history() == [
        {"epoch": 1.0, "loss": 1 / 3, "late": None},
        {"epoch": 2.0, "loss": None, "late": math.pi},
    ]


def test_config_is_plain_yaml(tmp_path: Path) -> None:
    RunFolder(tmp_path).write_config({"lambda": 1e-4, "dataset": {"name": "é"}})
    assert yaml.safe_load((tmp_path / "config.yaml").read_bytes()) == {"lambda": 1e-4, "dataset": {"name": "é"}}


def test_numbers_that_json_does_not_have_become_null(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_record(RunRecord(run_id="r", status="diverged", loss={"train": math.nan, "test": math.inf}))
    assert folder.read_record().loss == {"train": None, "test": None}
    assert "NaN" not in folder.record.read_text()


@pytest.mark.parametrize(("status", "final"), [("finished", True), ("diverged", True), ("failed", False),
                                               ("interrupted", False), ("running", False)])  # fmt: skip
def test_final_statuses(tmp_path: Path, status: str, final: bool) -> None:
    folder = RunFolder(tmp_path)
    assert not folder.is_final()
    folder.write_record(RunRecord(run_id="r", status=status))
    assert folder.is_final() is final


def test_unknown_keys_of_the_same_format_are_passed_over(tmp_path: Path) -> None:
    folder, record = finished(tmp_path)
    values = json.loads(folder.record.read_text())
    del values["checksum"]
    rewrite(folder, values | {"extra": 1})
    assert folder.read_record() == record


def rewrite(folder: RunFolder, values: dict[str, object]) -> None:
    """Put other values into record.json, with the checksum that fits them: canonical JSON, SHA-256."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    folder.record.write_text(json.dumps(values | {"checksum": hashlib.sha256(text.encode()).hexdigest()}))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"format": FORMAT + 1}, "has format 2, this version reads 1: install a newer eat-runner"),
        ({"format": "1"}, "is damaged: it has no format number"),
        ({"status": "done"}, "a record needs a run_id and a status among running"),
        ({"accuracy": {"test": "high"}}, "accuracy is of another type"),
        ({"accuracy": [1]}, "accuracy is of another type"),
        ({"epochs_done": True}, "epochs_done is of another type"),
        ({"uncounted": [1]}, "uncounted is of another type"),
        ({"run_id": None}, "run_id is of another type"),
    ],
)
def test_records_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, object], line: str) -> None:
    folder, _ = finished(tmp_path)
    values = json.loads(folder.record.read_text())
    del values["checksum"]
    rewrite(folder, values | change)
    with pytest.raises(UserError) as error:
        folder.read_record()
    assert str(folder.record) in str(error.value)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_every_truncation_and_every_flipped_bit_of_a_record_is_noticed(tmp_path: Path) -> None:
    folder, record = finished(tmp_path)
    whole = folder.record.read_bytes()
    for length in range(0, len(whole) - 2, 37):
        folder.record.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"record\.json"):
            folder.read_record()
    for position in range(0, len(whole) - 1, 7):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << (position % 8)
        folder.record.write_bytes(flipped)
        with suppress(UserError):  # a flip may turn one white space into another; it never changes what is read
            assert folder.read_record() == record


@pytest.mark.parametrize("name", ["layers.csv", "batches.csv"])
def test_a_checkout_with_other_line_ends_is_the_same_table(tmp_path: Path, name: str) -> None:
    folder, _ = finished(tmp_path)
    path, counts = tmp_path / name, folder.read_counts()
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert folder.read_counts() == counts


def test_checkouts_keep_line_ends() -> None:
    attributes = (Path(__file__).parents[1] / ".gitattributes").read_text().splitlines()
    assert "* text=auto eol=lf" in attributes


@pytest.mark.parametrize("name", ["layers.csv", "batches.csv"])
def test_damaged_and_missing_counts_are_refused(tmp_path: Path, name: str) -> None:
    folder, _ = finished(tmp_path)
    path = tmp_path / name
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b",7,", b",8,", 1))
    with pytest.raises(UserError, match=f"{name} is damaged: it is not the file"):
        folder.read_counts()
    path.unlink()
    with pytest.raises(UserError, match=f"{name} cannot be read: No such file"):
        folder.read_counts()


def test_counts_without_a_checksum_are_still_checked_for_their_form(tmp_path: Path) -> None:
    folder, record = finished(tmp_path)
    record.files = {}
    whole = folder.layers.read_text()
    folder.layers.write_text(whole[:-30])
    with pytest.raises(UserError, match="damaged"):
        folder.read_counts(record)
    folder.layers.write_text(whole.replace("ReLU", "ReLU,1"))
    with pytest.raises(UserError, match="another number of cells"):
        folder.read_counts(record)
    folder.layers.write_text(whole.replace("test,0", "test,zero"))
    with pytest.raises(UserError, match="counts are damaged"):
        folder.read_counts(record)


def test_atomic_write_keeps_the_old_file_when_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "record.json"
    write_atomically(path, b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*record\.json'"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["record.json"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_sync_a_folder_can_be_written_to(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_files_only(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", of_files_only)
    folder, record = finished(tmp_path / "run")
    assert folder.read_record() == record


def test_a_folder_that_fails_to_sync_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="Input/output error"):
        write_atomically(tmp_path / "record.json", b"new")


def test_a_new_runs_folder_is_synced_into_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    RunFolder(tmp_path / "run").create()
    assert synced == [tmp_path.stat().st_ino]


def test_weights_are_those_that_the_record_was_written_for(tmp_path: Path) -> None:
    folder, _ = finished(tmp_path)
    folder.weights.write_bytes(b"weights")
    folder.check_weights()  # of an older version, which did not keep their checksum
    record = folder.read_record()
    folder.write_record(record)
    assert folder.read_record().files["model.safetensors"] == hashlib.sha256(b"weights").hexdigest()
    folder.check_weights()
    folder.weights.write_bytes(b"weighty")
    with pytest.raises(UserError, match=r"model\.safetensors is damaged: it is not the file that record\.json was"):
        folder.check_weights()


def test_the_record_of_another_run_is_refused(tmp_path: Path) -> None:
    folder, record = finished(tmp_path)
    assert folder.read_own_record(record.run_id) == record
    with pytest.raises(UserError) as refused:
        folder.read_own_record("digits-resnet18-l0-lambda1-seed1-aaaaaaaa")
    assert (
        str(refused.value) == f"{folder.record} is the record of another run, {record.run_id}: delete it to do this one"
    )


def test_leftovers_of_a_killed_writer_are_removed_and_nothing_else(tmp_path: Path) -> None:
    folder, record = finished(tmp_path)
    (tmp_path / ".record.json.0badcafe.tmp").write_bytes(b"{")
    before = {p.name for p in tmp_path.iterdir()}
    folder.remove_leftovers()
    assert before - {p.name for p in tmp_path.iterdir()} == {".record.json.0badcafe.tmp"}
    assert folder.read_record() == record
