"""TensorBoard's event files in the folder ``tensorboard`` of a run, and of a sweep (the extra tensorboard)."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from eat_runner.loggers.base import About, Logger, metrics_of, package, results_of
from eat_runner.records import RunRecord
from eat_runner.train.history import EpochRow

FOLDER = "tensorboard"
NAME = "events.out.tfevents"  # what TensorBoard looks for
VERSION = "brain.Event:2"  # of the file format: the first that can take back what an earlier file of a log said


class TensorBoard(Logger):
    """A file that has the whole run: the rows of earlier processes come first, and their files go then."""

    def __init__(self, config: object, about: About):
        super().__init__(config, about)
        self.file = EventFile(about.folder.path / FOLDER)
        parameters = {key: _plain(value) for key, value in about.parameters.items()}
        hparams = package("torch.utils.tensorboard.summary", FOLDER).hparams
        # without a description of the experiment the page HPARAMS takes all parameters and scalars that there are
        _, begin, self.end = hparams({"run_id": about.run_id, **parameters}, {})
        self.file.add(begin, 0)
        for row in about.history:
            self.log(row)
        self.file.replace_others()

    @classmethod
    def check(cls, config: object) -> None:
        _modules()

    def log(self, row: EpochRow) -> None:
        self.file.scalars(metrics_of(row), row.epoch)

    def close(self, record: RunRecord | None = None) -> None:
        if record is not None:
            self.file.scalars(results_of(record), record.epochs_done)
            self.file.add(self.end, record.epochs_done)
        self.file.close()

    @classmethod
    def show(cls, config: object, folder: Path, figures: Sequence[Path]) -> None:
        file = EventFile(folder / FOLDER)
        for path in figures:
            file.image(path)
        file.close()
        file.replace_others()


class EventFile:
    """One event file. Written in the caller's thread, unlike SummaryWriter's: a full disk is the caller's exception."""

    def __init__(self, folder: Path):
        """A new file in ``folder``."""
        self.events, summaries, writers = _modules()
        self.Summary = summaries.Summary
        folder.mkdir(exist_ok=True)
        self.path = folder / f"{NAME}.{time.time_ns()}"
        self.file = self.path.open("xb")
        self.records = writers.RecordWriter(self.file)
        self._write(file_version=VERSION)
        # takes back, in a TensorBoard that has it open, what the earlier files of the folder said
        self._write(step=0, session_log=self.events.SessionLog(status=self.events.SessionLog.START))

    def scalars(self, values: dict[str, float], step: int) -> None:
        value = self.Summary.Value
        self.add(self.Summary(value=[value(tag=tag, simple_value=number) for tag, number in values.items()]), step)

    def image(self, path: Path) -> None:
        with Image.open(path) as opened:
            width, height = opened.size
        image = self.Summary.Image(width=width, height=height, encoded_image_string=path.read_bytes())
        self.add(self.Summary(value=[self.Summary.Value(tag=path.stem, image=image)]), 0)

    def add(self, summary: Any, step: int) -> None:
        self._write(step=step, summary=summary)

    def _write(self, **event: Any) -> None:
        self.records.write(self.events.Event(wall_time=time.time(), **event).SerializeToString())
        self.records.flush()

    def close(self) -> None:
        self.file.close()

    def replace_others(self) -> None:
        """Delete the earlier files of the folder."""
        for path in self.path.parent.glob(f"{NAME}.*"):
            if path != self.path:
                path.unlink(missing_ok=True)


def _modules() -> tuple[Any, Any, Any]:
    """Of tensorboard: events, what is in them, and what puts them into a file."""
    proto = "tensorboard.compat.proto"
    names = (f"{proto}.event_pb2", f"{proto}.summary_pb2", "tensorboard.summary.writer.record_writer")
    events, summaries, writers = (package(name, FOLDER) for name in names)
    return events, summaries, writers


def _plain(value: Any) -> str | int | float:
    """What a hyper-parameter can be there."""
    return value if isinstance(value, str | int | float) else json.dumps(value)
