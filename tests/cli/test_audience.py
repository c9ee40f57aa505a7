"""Training outlives its audience: whoever reads the output may go, be full, or never have been there."""

import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eat_runner.progress import Audience, ProgressBar
from eat_runner.records import RunFolder

RUN = [sys.executable, "-m", "eat_runner.cli.run", "-m", "lambda=0,1", "seed=0,1", "model.width=2", "threads=1"]
RUN += ["trainer.epochs=2", "dataset.train_limit=64", "trainer.compile=off", "device=cpu"]


def gone(folder: Path) -> int:
    """Both streams are a pipe whose reader goes after the first line."""
    process = subprocess.Popen(RUN, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    assert process.stdout.readline()
    process.stdout.close()
    return process.wait()


def full(folder: Path) -> int:
    with open("/dev/full", "w") as device:
        return subprocess.run(RUN, cwd=folder, stdout=device, stderr=device).returncode


def closed(folder: Path) -> int:
    return subprocess.run(["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *RUN], cwd=folder).returncode


def hung_up(folder: Path) -> int:
    """The terminal that the command was started from is closed: the system sends its session SIGHUP."""
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(folder)
        os.execv(RUN[0], RUN)
    assert os.read(terminal, 1)
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def gone_terminal(folder: Path) -> int:
    """A terminal that is not the session's is closed while the command runs."""
    ours, theirs = os.openpty()
    process = subprocess.Popen(RUN, cwd=folder, stdout=theirs, stderr=theirs, stdin=subprocess.DEVNULL)
    os.close(theirs)
    assert os.read(ours, 1)
    os.close(ours)
    return process.wait()


def no_errors(folder: Path) -> int:
    return subprocess.run(["sh", "-c", 'exec "$@" 2>&- >/dev/null', "sh", *RUN], cwd=folder).returncode


def no_output(folder: Path) -> int:
    return subprocess.run(["sh", "-c", 'exec "$@" >&- 2>/dev/null', "sh", *RUN], cwd=folder).returncode


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize(
    "audience",
    [gone, full, closed, hung_up, gone_terminal, no_errors, no_output],
    ids=lambda audience: audience.__name__,
)
@pytest.mark.long
def test_every_run_is_finished(audience: Callable[[Path], int], tmp_path: Path) -> None:
    assert audience(tmp_path) in {0, 1}  # 1: the report could not be shown
    records = [RunFolder(path.parent).read_record() for path in tmp_path.glob("results/default/*/record.json")]
    assert [(record.status, record.reason) for record in records] == [("finished", "")] * 4
    assert (tmp_path / "results/default/pareto.csv").exists()


def test_a_stream_that_cannot_be_written_is_written_no_further(tmp_path: Path) -> None:
    class Broken:
        encoding, closed = "utf-8", False

        def __init__(self) -> None:
            self.asked = 0

        def write(self, text: str) -> int:
            self.asked += 1
            raise BrokenPipeError

        def flush(self) -> None:
            raise BrokenPipeError

        def isatty(self) -> bool:
            return False

    broken: Any = Broken()
    with ProgressBar("a", 10, broken) as bar:
        bar.say("hello")
        bar.update(10)
    assert broken.asked
    assert Audience(None).write("hello") == 5
    assert not Audience(None).isatty()


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", pytest.param("latin-1", marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "arguments",
    [
        "--cfg job name=λ± init=/größe/猫",
        "--help",
        pytest.param("-m name=猫 plan=true lambda=0,1 model.width=2", marks=pytest.mark.long),
    ],
)
def test_what_an_encoding_does_not_have_is_escaped(arguments: str, encoding: str, tmp_path: Path) -> None:
    command = [*RUN[:3], *arguments.split()]
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, env=environment, check=False)
    assert (done.returncode, done.stderr.count(b"Traceback")) == (0, 0), done.stderr
    assert done.stdout.decode(encoding)
