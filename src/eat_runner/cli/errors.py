"""What both commands do with an error: one line, exit code 2."""

import os
import sys
import time
import traceback
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress

from eat_runner import errors
from eat_runner.errors import BAD_INPUT, UserError
from eat_runner.ranks import is_first

FIRST_SPEAKS_WITHIN_S = 60.0


@contextmanager
def one_line_errors(program: str, stopped: Sequence[int] = ()) -> Generator[None]:
    """Within the block a UserError or OSError (disk full, read-only) ends the program: ``<program>: error: <line>`` on
    stderr, exit code 2. With HYDRA_FULL_ERROR=1 in the environment the traceback stands before it.

    Everything else is a defect and passes with its traceback. stopped: the signals that came; after one, what looks
    like an error is a library that was interrupted, and becomes KeyboardInterrupt.
    """
    full = os.environ.get("HYDRA_FULL_ERROR") == "1"
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # who read our output (head, less) has gone: stop quietly, also when Python flushes at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (UserError, OSError) as error:
        if stopped:
            raise KeyboardInterrupt from error
        if not is_first():  # which says the same, and ends us
            time.sleep(FIRST_SPEAKS_WITHIN_S)
        if full:
            traceback.print_exc()
        say(f"{program}: error: {one_line(error)}")
        sys.exit(BAD_INPUT)


def tell(line: str) -> None:
    """``say`` it, in the first of several processes."""
    if is_first():
        say(line)


def say(line: str) -> None:
    """On stderr, to whoever is still there: a command outlives its audience."""
    with suppress(OSError, ValueError):  # a pipe or terminal that is gone, a full device, closed
        print(line, file=sys.stderr, flush=True)


def one_line(error: Exception) -> str:
    """The error's message without line breaks and control characters; of an OSError, the file and what is wrong."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return errors.one_line(text) or type(error).__name__
