"""Files of somebody who means harm: nothing of theirs is run. What single parts do is in the tests of those parts.

Archives and tables of data sets: test_data.py. Weights: test_models.py. Names and texts that are shown: analysis/,
report/. Here the commands meet them.
"""

import csv
import io
import json
import pickle
import re
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eat_runner.cli.report import command as report
from eat_runner.errors import UserError
from eat_runner.records import RunFolder, RunRecord
from eat_runner.run import load as loading
from processes import appears, eat_run, finish, kill_when, outcomes, output, run_folders
from run_folders import config, write_run, write_sweep

RUN = "lambda=1 trainer.epochs=2"


class Harm:
    """Runs as soon as it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.mark, "harm done")


def bare(harm: Harm) -> bytes:
    return pickle.dumps(harm)


def in_torchs_format(harm: Harm) -> bytes:
    file = io.BytesIO()
    torch.save({"model": harm, "run_id": harm}, file)
    return file.getvalue()


def in_torchs_old_format(harm: Harm) -> bytes:
    file = io.BytesIO()
    torch.save({"state_dict": harm}, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def as_array(harm: Harm) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([harm], dtype=object), allow_pickle=True)
    return file.getvalue()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


@pytest.mark.parametrize("disguise", [bare, in_torchs_format, in_torchs_old_format])
def test_the_harm_is_real(disguise: Callable[[Harm], bytes], tmp_path: Path) -> None:
    """Otherwise the tests below could not fail."""
    file = tmp_path / "file"
    file.write_bytes(disguise(Harm(tmp_path / "mark")))
    if disguise is bare:
        pickle.loads(file.read_bytes())
    else:
        torch.load(file, weights_only=False)
    assert (tmp_path / "mark").exists()


@pytest.mark.long
def test_a_planted_checkpoint_is_not_run(place: Path) -> None:
    assert finish(place / "clean", RUN) == 0, output(place / "clean")
    [clean] = outcomes(place / "clean").values()
    folder, mark = place / "planted", place / "mark"
    assert kill_when(eat_run(folder, RUN), appears(folder, "results/default/*/checkpoint.pt")) == -signal.SIGKILL
    [run] = run_folders(folder)
    run.checkpoint.write_bytes(in_torchs_format(Harm(mark)))
    assert finish(folder, RUN) == 0
    assert not mark.exists()
    message = "checkpoint.pt could not be used (it is damaged, or no checkpoint of this program): "
    assert run.read_record().messages == [f"{message}training started from the beginning"]
    [found] = outcomes(folder).values()
    assert found["weights"] == clean["weights"]


def test_planted_weights_are_not_run_and_refused_in_one_line(place: Path) -> None:
    folder, mark = place / "weights", place / "mark"
    for number, disguise in enumerate([bare, in_torchs_format, in_torchs_old_format]):
        file = place / f"planted{number}.pt"
        file.write_bytes(disguise(Harm(mark)))
        assert finish(folder, f"{RUN} init={file}") == 2
        assert output(folder).splitlines()[-1].startswith(f"eat-run: error: init={file} is no plain state dict")
    assert "Traceback" not in output(folder)
    assert not mark.exists()
    assert not run_folders(folder)


@pytest.mark.long
def test_a_planted_store_is_not_run(place: Path, tmp_path: Path) -> None:
    """A store whose checksums fit, made by somebody who can write beside the data."""
    import zlib

    from eat_runner.data.store import _checksum_of

    folder, mark = tmp_path / "run", tmp_path / "mark"
    assert finish(folder, RUN) == 0, output(folder)
    [store] = (tmp_path / "data" / ".eat-store").glob("digits-*/")
    clean, planted = (store / "train-labels.npy").read_bytes(), as_array(Harm(mark))
    (store / "train-labels.npy").write_bytes(planted)
    meta = json.loads((store / "meta.json").read_text())
    meta["checksums"]["train-labels.npy"] = zlib.crc32(planted)
    del meta["checksum"]
    (store / "meta.json").write_text(json.dumps(meta | {"checksum": _checksum_of(meta)}))
    assert finish(folder, f"{RUN} seed=1") == 0, output(folder)
    assert not mark.exists()
    assert "Traceback" not in output(folder)
    assert (store / "train-labels.npy").read_bytes() == clean  # it was made again
    np.load(io.BytesIO(planted), allow_pickle=True)
    assert mark.exists()  # it would have run


def test_a_record_names_no_code(tmp_path: Path) -> None:
    """What a config of Hydra's or a YAML file of Python's would make an object of stays text."""
    [folder] = write_sweep(tmp_path, [0], [0])
    record = folder.read_record()
    target = {"_target_": "pathlib.Path.touch", "self": str(tmp_path / "mark")}
    record.config |= {"model": record.config["model"] | target, "hydra": target, "hardware": target}
    folder.write_record(record)
    folder.config.write_text(f"!!python/object/apply:pathlib.Path.touch [{tmp_path / 'mark'}]\n")
    report([str(tmp_path), "--output", str(tmp_path / "report")])
    folder.weights.write_bytes(b"")
    with pytest.raises((UserError, TypeError)):
        loading.load_run(folder.path)
    assert not (tmp_path / "mark").exists()


def test_texts_of_records_are_escaped_wherever_they_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = "<script>alert(1)</script>[red]\x1b]0;title\x07\x1b[2J\r\n=1+1\u202e"
    write_sweep(tmp_path / "runs", [0.0, 1.0], [0])
    broken = RunFolder(tmp_path / "runs" / "a <b>[bold]\x1b[31m")
    broken.create()
    broken.record.write_text("{")
    for number, name in enumerate(["=cmd", "-1+\x1b[31m"]):
        write_run(tmp_path / name, config(float(number), seed=9))
    failed = RunFolder(tmp_path / "runs" / "failed")
    failed.create()
    failed.write_record(RunRecord(run_id=bad, status="failed", reason=bad, config={"dataset": {"name": bad}}))
    (tmp_path / f"={bad.replace('/', '')}.yaml").write_text(
        "rule: published\ndram_pj_per_value: 1950\nmultiply_pj: 3.7\nnote: " + json.dumps(bad)
    )
    monkeypatch.chdir(tmp_path)
    report([".", "--output", ".", "--hardware", f"={bad.replace('/', '')}.yaml"])
    shown = capsys.readouterr().out
    files = {path.name: path.read_text() for path in tmp_path.iterdir() if path.suffix in {".csv", ".svg"}}
    assert {"summary.csv", "pareto.csv", "layer_comparison.csv", "pareto.svg", "layers_energy.svg"} <= set(files)
    for table in ("summary.csv", "pareto.csv", "layer_comparison.csv"):
        cells = [cell for row in csv.reader(io.StringIO(files[table])) for cell in row]
        assert [cell for cell in cells if re.match(r"\s*[=+@]|\s*-(?![\d.]+(e-?\d+)?$)", cell)] == []
    rows = {row["run_id"]: row for row in csv.DictReader(io.StringIO(files["summary.csv"]))}
    assert {"runs/a <b>[bold]?[31m", "runs/failed"} < {row["folder"] for row in rows.values()}
    assert sum(row["folder"].startswith(("'=cmd/", "'-1+?[31m/")) for row in rows.values()) == 2
    assert {row["hardware"][:9] for row in rows.values()} == {"'=<script"}
    for name, text in {"the printed report": shown, **files}.items():
        assert "\x1b" not in text, name
        assert "\x07" not in text, name
        assert "\u202e" not in text, name
    assert "a <b>[bold]?[31m" in shown
    assert not any("<script" in text for name, text in files.items() if name.endswith(".svg"))


def test_an_archive_inside_a_checkpoint_unpacks_nowhere(place: Path, tmp_path: Path) -> None:
    from eat_runner.train.checkpoint import unpack

    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("../../outside", b"x")
        archive.writestr(f"{tmp_path}/outside", b"x")
    with pytest.raises(ValueError, match="no checkpoint of this program"):
        unpack(file.getvalue())
    assert not list(tmp_path.iterdir())
