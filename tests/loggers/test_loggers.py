"""Loggers: csv, progress, and that each is told everything and closed, however a run ends, and makes none fail."""

import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eat_runner import run
from eat_runner.config.identity import as_plain
from eat_runner.config.logger import LoggerConfig, WandbConfig, default_loggers
from eat_runner.config.root import ExperimentConfig
from eat_runner.energy.hardware import load_hardware
from eat_runner.errors import UserError
from eat_runner.loggers import LOGGERS, Logger, listening
from eat_runner.loggers.base import About
from eat_runner.records import RunFolder, RunRecord
from eat_runner.train.history import EpochRow
from processes import finish, output

ROWS = [EpochRow(epoch, 0.1, 1.0, 2.5 / epoch, None, 0.5, seconds=1.0) for epoch in (1, 2, 3)]


@pytest.fixture
def about(tmp_path):
    return About(
        "digits-7", RunFolder(tmp_path), {"hardware": {"name": "published"}}, steps=30, steps_done=0, history=[]
    )


def test_csv_has_a_row_an_epoch_those_of_an_earlier_process_first(about, tmp_path):
    config = {"csv": LoggerConfig()}
    with listening(config, about) as loggers:
        assert not about.folder.history.exists()
        for row in ROWS[:2]:
            loggers.log(row)
            assert about.folder.read_history()[-1]["epoch"] == row.epoch
    whole = about.folder.history.read_bytes()
    resumed = About("digits-7", RunFolder(tmp_path), {}, 30, 20, ROWS[:2])
    about.folder.history.unlink()  # the process before was killed between its checkpoint and the row
    with listening(config, resumed) as loggers:
        assert about.folder.history.read_bytes() == whole
        loggers.log(ROWS[2])
    read = about.folder.read_history()
    assert [row["cross_entropy"] for row in read] == [2.5, 1.25, 2.5 / 3]
    assert all(row["penalty"] is None for row in read)


def test_progress_prints_a_line_an_epoch_and_what_is_said(about, capsys):
    with listening({"progress": LoggerConfig()}, about) as loggers:
        loggers.step(10, "loss 1")  # a line comes every few seconds only
        loggers.log(ROWS[0])
        loggers.say("resumed")
    assert capsys.readouterr().err.splitlines() == [
        "digits-7  epoch 1  loss 2.500  accuracy 0.500  1.0 s",
        "digits-7  resumed",
    ]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("published", "ratio 0.735"),
        ("fused_7nm_int8", "energy 12.35 uJ"),
        ("eyeriss_65nm", "energy 12.35 M MACs"),  # its prices are relative
    ],
)
def test_progress_shows_the_energy_on_the_runs_hardware(name, shown, about, capsys):
    config = as_plain(ExperimentConfig(hardware=load_hardware(name)))
    row = replace(ROWS[0], firing_rate=0.25, energy_ratio=0.735, energy=12.3456)
    with listening({"progress": LoggerConfig()}, replace(about, config=config)) as loggers:
        loggers.log(row)
        loggers.log(ROWS[1])  # nobody looked after this one
    assert capsys.readouterr().err.splitlines() == [
        f"digits-7  epoch 1  loss 2.500  accuracy 0.500  firing 0.250  {shown}  1.0 s",
        "digits-7  epoch 2  loss 1.250  accuracy 0.500  1.0 s",
    ]


@pytest.mark.parametrize("error", [None, RuntimeError("out of memory"), KeyboardInterrupt()])
def test_every_logger_hears_everything_and_is_closed(about, error, monkeypatch):
    heard: list[Any] = []

    class Hears(Logger):
        def log(self, row):
            heard.append((self.config, row.epoch))

        def step(self, done, figures):
            heard.append((self.config, done))

        def say(self, line):
            heard.append((self.config, line))

        def close(self, record=None):
            heard.append((self.config, record and record.status))

    monkeypatch.setitem(LOGGERS, "a", Hears)
    monkeypatch.setitem(LOGGERS, "b", Hears)
    with (
        pytest.raises(type(error)) if error else nullcontext(),
        listening({"a": "A", "b": "B"}, about) as loggers,  # type: ignore[dict-item]
    ):
        loggers.say("hello")
        loggers.step(7, "")
        loggers.log(ROWS[0])
        if error:
            raise error
        loggers.record = RunRecord(run_id="digits-7", status="finished")
    expected = None if error else "finished"
    assert heard == [(who, what) for what in ("hello", 7, 1) for who in "AB"] + [("B", expected), ("A", expected)]


class Fails(Logger):
    def log(self, row):
        raise OSError(f"epoch {row.epoch}\nand more")

    def step(self, done, figures):
        raise ValueError("a step")

    def close(self, record=None):
        assert record is None
        raise RuntimeError("the end")


class FailsAtOnce(Logger):
    def __init__(self, config, about):
        raise ConnectionError("nobody there")


def test_a_logger_that_fails_says_so_once_and_the_run_finishes(small_config, monkeypatch, capsys):
    small_config.trainer.batch_size = 16  # ten steps an epoch
    monkeypatch.setitem(LOGGERS, "fails", Fails)
    monkeypatch.setitem(LOGGERS, "at_once", FailsAtOnce)
    names = ("at_once", "fails", "csv")
    record = run.run(replace(small_config, loggers=dict.fromkeys(names, LoggerConfig())))
    assert record.status == "finished"
    assert capsys.readouterr().err.splitlines() == [
        f"{record.run_id}  loggers={name} failed, which takes nothing from the run: {reason}"
        for name, reason in (("at_once", "ConnectionError: nobody there"), ("fails", "ValueError: a step"))
    ]
    folder = RunFolder(Path(small_config.results_dir) / small_config.name / record.run_id)
    assert len(folder.read_history()) == 2


def test_a_history_that_could_not_be_written_is_whole_once_it_can(about, capsys):
    with listening({"csv": LoggerConfig()}, about) as loggers:
        about.folder.history.mkdir()
        loggers.log(ROWS[0])
        loggers.log(ROWS[1])
        about.folder.history.rmdir()
        loggers.log(ROWS[2])
    assert [row["epoch"] for row in about.folder.read_history()] == [1, 2, 3]
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("digits-7  loggers=csv failed, which takes nothing from the run: IsADirectoryError: ")


@pytest.mark.parametrize(
    ("name", "config"), {"tensorboard": LoggerConfig(), "mlflow": LoggerConfig(), "wandb": WandbConfig()}.items()
)
def test_the_missing_extra_is_named(name, config, small_config, monkeypatch):
    for module in [loaded for loaded in sys.modules if loaded.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError) as refused:
        run.locate(replace(small_config, loggers={name: config}))
    line = str(refused.value)
    assert line.startswith(f"loggers={name} needs packages that cannot be imported (")
    assert line.endswith(f"): pip install 'eat-runner[{name}]'")
    assert "\n" not in line


EXTRAS = ("tensorboard", "mlflow", "sqlalchemy", "wandb")


def test_loggers_import_what_they_need_when_they_are_asked_for():
    code = f"import sys, eat_runner.loggers; sys.exit(bool({{'torch', *{EXTRAS}}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def without_extras() -> None:
    sys.modules.update(dict.fromkeys(EXTRAS))  # type: ignore[arg-type]


@pytest.mark.long
def test_a_run_does_without_what_it_is_not_asked_for_and_is_not_begun_without_what_it_is(tmp_path):
    line = "lambda=0 trainer.epochs=1"
    assert finish(tmp_path / "a", f"{line} loggers=[csv,progress,tensorboard]", without_extras) == 2
    assert output(tmp_path / "a").startswith("eat-run: error: loggers=tensorboard needs packages that cannot be")
    assert not list((tmp_path / "a").glob("results/*/*"))
    assert finish(tmp_path / "b", line, without_extras) == 0, output(tmp_path / "b")


def test_the_defaults_are_those_of_conf():
    from eat_runner.cli.hydra.compose import compose_experiment

    assert compose_experiment().loggers == default_loggers()
