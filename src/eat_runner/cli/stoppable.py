"""How a command begins and ends: whoever listens, whatever stops it, and what takes long to import."""

import atexit
import gc
import io
import os
import signal
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from eat_runner.cli.errors import one_line_errors, tell
from eat_runner.errors import CONTINUE_ME


def ensure_stdout() -> None:
    """What is printed goes nowhere where who started us has closed stdout (``>&-``), and is escaped where its encoding
    has no such character: the work is done all the same."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    elif isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def run_stoppable(
    program: str, command: Callable[[Sequence[str]], int], unfinished: Callable[[], str] = lambda: "stopped"
) -> NoReturn:
    """Call ``command`` with the arguments of this process and exit with what it returns; with CONTINUE_ME, and a line
    that says so, after SIGINT or SIGTERM. What takes long to import is best imported in there.

    unfinished: why there is more to do, where there is.
    """
    ensure_stdout()
    stops: list[int] = []

    def stop(number: int, _: FrameType | None) -> None:
        stops.append(number)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    if hasattr(signal, "SIGHUP"):  # a terminal that is closed takes no training with it
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with one_line_errors(program, stops):
            code = command(sys.argv[1:])
    except SystemExit as end:
        code = end.code
    except (KeyboardInterrupt, Exception):
        # libraries that are stopped while they are imported turn the interrupt into errors of their own
        if not stops:
            raise
        code = CONTINUE_ME
    if code == CONTINUE_ME:
        tell(f"{program}: {unfinished()}: the same command continues")
    sys.exit(code)


@contextmanager
def importing_torch() -> Generator[None]:
    """Torch brings hundreds of thousands of objects that all stay. Looking for garbage among them would take a quarter
    of its import, and more of the rest of a run: nobody looks, until the process ends."""
    first, enabled = "torch" not in sys.modules, gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if first:
            gc.freeze()
            atexit.register(_look_once)
        if enabled:
            gc.enable()


def _look_once() -> None:
    """When the process ends: Python looks three times then, or once if it is told not to. Not at all would make
    libraries complain about what is left of them."""
    gc.unfreeze()
    gc.disable()
