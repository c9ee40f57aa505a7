"""Loggers: the two that there are, and that each is told everything and closed, however a run ends."""

from contextlib import nullcontext
from typing import Any

import pytest

from eat_runner.config.logger import LoggerConfig, default_loggers
from eat_runner.loggers import LOGGERS, Logger, listening
from eat_runner.loggers.base import About
from eat_runner.records import RunFolder, RunRecord
from eat_runner.train.history import EpochRow

ROWS = [EpochRow(epoch, 0.1, 1.0, 2.5 / epoch, None, 0.5, seconds=1.0) for epoch in (1, 2, 3)]


@pytest.fixture
def about(tmp_path):
    return About("digits-7", RunFolder(tmp_path), {"lambda": 1.0}, steps=30, steps_done=0, history=[])


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


def test_the_defaults_are_those_of_conf():
    from eat_runner.cli.hydra.compose import compose_experiment

    assert compose_experiment().loggers == default_loggers()
