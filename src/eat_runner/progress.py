"""What a person sees while something takes long: a bar on a terminal, a line every few seconds elsewhere."""

import math
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import TextIO, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_COUNTS = 2.0
USUAL_WIDTH = 80  # columns


def duration(seconds: float) -> str:
    """In the unit that fits: ``90 s``, ``12 min``, ``3.5 h``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


class Audience:
    """A stream that nobody need read: what cannot be written (a pipe or terminal that is gone, a full device, a stream
    that was closed from the beginning) is lost, and nothing else happens."""

    def __init__(self, stream: TextIO | None):
        self.stream = stream
        self.encoding = getattr(stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        if self.stream is not None:
            with suppress(OSError, ValueError):
                self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        if self.stream is not None:
            with suppress(OSError, ValueError):
                self.stream.flush()

    def isatty(self) -> bool:
        return self.stream is not None and not self.stream.closed and self.stream.isatty()

    def fileno(self) -> int:
        if self.stream is None:
            raise OSError("there is no stream")
        return self.stream.fileno()


def console_on(stream: TextIO | None = None) -> Console:
    """On stdout or another stream, as wide as it is; of usual width where nobody knows (``COLUMNS=0``)."""
    console = Console(file=stream, highlight=False)
    return console if console.width > 0 else Console(file=stream, highlight=False, width=USUAL_WIDTH)


class Counter:
    """Says on stderr which of how many things begins now, at most once in SECONDS_BETWEEN_COUNTS.

    title: what is done to them, such as ``eat-run: timing``. total: how many there are. at_once: say so of the first,
    too; else nothing is said of what does not take long.
    """

    def __init__(
        self, title: str, total: int, at_once: bool = False, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.title, self.total, self.now = title, total, now
        self.number = 0
        self.told = -math.inf if at_once else now()

    def next(self, name: str = "") -> None:
        """The next one begins."""
        self.number += 1
        now = self.now()
        if now - self.told >= SECONDS_BETWEEN_COUNTS:
            self.told = now
            stderr = Audience(sys.stderr)
            stderr.write(f"{self.title} {self.number} of {self.total}{name and ': '}{name}\n")
            stderr.flush()


class ProgressBar:
    """A context manager: ``bar.update(done, text)`` as often as you like; showing it costs next to nothing.

    title: what is going on. total: how many units of work; time left is estimated from those done since the start.
    """

    def __init__(self, title: str, total: int, stream: TextIO | None = None):
        self.title, self.total, self.stream = title, total, Audience(stream or sys.stderr)
        self.console = console_on(cast(TextIO, self.stream))
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, TextColumn("{task.fields[text]}"), console=self.console, transient=True)
        self.task = self.bar.add_task(title, total=total, text="")
        self.started = self.last_line = time.monotonic()
        self.first = 0
        self.told = -1  # units that were done when a line was last written

    def __enter__(self) -> "ProgressBar":
        if self.console.is_terminal:
            self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.console.is_terminal:
            self.bar.stop()

    def start_at(self, done: int) -> None:
        """Say that ``done`` units were there before, so that they do not count in the time left."""
        self.first = done
        self.bar.reset(self.task, completed=done, total=self.total, text="")

    def update(self, done: int, text: str = "") -> None:
        """Show that ``done`` units are finished."""
        if self.console.is_terminal:
            self.bar.update(self.task, completed=done, text=text)
            return
        now = time.monotonic()
        if now - self.last_line >= SECONDS_BETWEEN_LINES or (
            done == self.total != self.told and self.last_line > self.started
        ):
            self.last_line, self.told = now, done
            per_unit = (now - self.started) / max(done - self.first, 1)
            left = round(per_unit * (self.total - done))
            self.say(f"{self.title}  {done}/{self.total}  {left} s left  {text}")

    def say(self, line: str) -> None:
        """Print a line that stays."""
        if self.console.is_terminal:
            self.bar.console.print(line, highlight=False, markup=False, soft_wrap=True)
        else:
            self.stream.write(f"{line}\n")
            self.stream.flush()
