"""What a terminal, a file or a pipe is shown: at every width whole numbers, in every encoding text."""

import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.cells import cell_len

from eat_runner.analysis.equal_accuracy import equal_accuracy
from eat_runner.analysis.pareto import Axes, fronts
from eat_runner.config.hardware import PublishedHardware
from eat_runner.report.text import fitting, plain, show, spelled
from eat_runner.report.view import Report
from frames import run, table
from run_folders import write_sweep

WIDE = "データ集合 · ネットワーク"
ROOT = Path(__file__).parents[2]


def report(family: str = "digits · resnet18", network: str = "resnet18") -> Report:
    points = [(0, 0.95125, 0.8), (0.5, 0.9475, 0.7), (1, 0.93, 0.72), (2, 0.92, 0.6)]
    rows = [
        run(lambda_, accuracy + 0.004 * seed, ratio, seed, family=family, network=network, firing_rate=0.123)
        for lambda_, accuracy, ratio in points
        for seed in (0, 1)
    ]
    runs = table(*rows)
    return Report(PublishedHardware(), "validation", Axes(), runs, fronts(runs), paths=[Path("/a/path.csv")])


def shown(monkeypatch: pytest.MonkeyPatch, made: Report, width: int, encoding: str = "utf-8") -> str:
    """On a terminal of that width."""

    class Terminal(io.TextIOWrapper):
        def isatty(self) -> bool:
            return True

    stream = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", Terminal(stream, encoding=encoding))
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("LINES", "50")  # without it rich takes a dumb terminal for one of 80 columns
    monkeypatch.setenv("TERM", "dumb")
    show(made)
    sys.stdout.flush()
    return stream.getvalue().decode(encoding)


NUMBERS = re.compile(r"\d\.\d+( ± \d\.\d+)?")


@pytest.mark.parametrize("width", [20, 30, 40, 60, 80, 100, 132, 200])
def test_fewer_columns_and_never_half_a_number(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    text = shown(monkeypatch, report(), width)
    whole = {found.group() for found in NUMBERS.finditer(plain(report()))}
    for line in text.splitlines():
        for found in NUMBERS.finditer(line):
            assert found.group() in whole, line
    assert "…" not in text
    # accuracy and energy ratio of every setting, at every width: seeds differ by 0.004, and their means by 0.0028
    for accuracy in ("0.9533 ± 0.0028", "0.9495 ± 0.0028", "0.9320 ± 0.0028", "0.9220 ± 0.0028"):
        assert accuracy in text
    assert max(map(cell_len, text.splitlines())) <= width
    left_out = re.search(r"not shown: ([^(]*) \(see pareto.csv\)", " ".join(text.split()))
    assert (left_out is None) == (width >= 160)


RANGES = re.compile(r"-?\d+\.\d+(–\d+\.\d+| \[-?\d+\.\d+, -?\d+\.\d+\])?")


@pytest.mark.parametrize("width", [30, 40, 60, 80, 100, 132, 200])
def test_methods_at_equal_accuracy_lose_columns_and_no_part_of_a_number(
    monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    made = report()
    made.equal, _ = equal_accuracy(made.fronts[0])
    made.equal["accuracy_difference_low"], made.equal["accuracy_difference_high"] = -0.0123, 0.0045
    made.equal["energy_ratio_max"] += 0.05
    text = shown(monkeypatch, made, width)
    whole = {found.group() for found in RANGES.finditer(plain(made))}
    assert {"0.875–0.925", "0.00 [-1.23, 0.45]"} <= whole
    assert all(found.group() in whole for line in text.splitlines() for found in RANGES.finditer(line))
    assert max(map(cell_len, text.splitlines())) <= width
    assert "E/E_ST" in text
    left_out = "(see equal_accuracy.csv)" in " ".join(text.split())
    assert left_out == (width < 132)


def test_where_nobody_knows_the_width_it_is_the_usual_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, report(), 0) == shown(monkeypatch, report(), 80)


def test_what_is_left_out_first_is_what_matters_least() -> None:
    assert fitting([0, 3, 0, 5], [10, 7, 10, 7], None) == [0, 1, 2, 3]
    assert fitting([0, 3, 0, 5], [10, 7, 10, 7], 34) == [0, 1, 2, 3]
    assert fitting([0, 3, 0, 5], [10, 7, 10, 7], 33) == [0, 1, 2]
    assert fitting([0, 3, 0, 5], [10, 7, 10, 7], 5) == [0, 2]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
@pytest.mark.parametrize("width", [80, 132])
def test_every_encoding_gets_its_text_and_columns_stay_aligned(
    monkeypatch: pytest.MonkeyPatch, encoding: str, width: int
) -> None:
    text = shown(monkeypatch, report(WIDE), width, encoding)
    assert ("λ 0.5" if encoding == "utf-8" else "lambda 0.5") in text
    assert ("+/-" if encoding == "ascii" else "±") in text
    rows = [line for line in text.splitlines() if re.match(r" (λ|lambda) [\d.]", line)]
    assert len(rows) == 4
    assert len({line.index("0.9") for line in rows}) == 1


def test_a_character_that_has_no_other_spelling_becomes_a_question_mark() -> None:
    assert spelled("λ ± é 集", "latin-1") == "lambda ± é ?"
    assert spelled("λ ± é 集", "ascii") == "lambda +/- ? ?"
    assert spelled("λ ± é 集", "utf-8") == "λ ± é 集"


def test_long_and_wide_names_fold_and_take_no_number_away(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = table(
        *(
            run(lambda_, 0.95, 0.8, network=network, setting_id=f"{lambda_}{network}")
            for lambda_ in (0, 1)
            for network in ("名" * 40, "n" * 90)
        )
    )
    made = Report(PublishedHardware(), "validation", Axes(), runs, fronts(runs))
    for width in (60, 80, 132):
        text = shown(monkeypatch, made, width)
        assert max(map(cell_len, text.splitlines())) <= width
        assert text.count("0.9500") == 4 * (2 if "validation" in text.splitlines()[1] else 1)


def test_markup_in_names_stays_text_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "[bold]x[/bold] :smile:" in shown(monkeypatch, report("[bold]x[/bold] :smile:"), 132)


def test_a_file_gets_all_columns_however_wide_and_no_trailing_spaces() -> None:
    text = plain(report(network="n" * 150))
    assert "firing rate" in text
    assert not [line for line in text.splitlines() if line != line.rstrip()]


def test_without_a_stdout_nothing_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    show(report())


def test_a_long_path_is_whole_on_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    made = report()
    made.paths = [Path("/" + "a" * 100)]
    assert "/" + "a" * 100 in shown(monkeypatch, made, 60)


@pytest.mark.parametrize("closed", [">&-", "> /dev/null"])
def test_the_command_with_its_stdout_closed_writes_the_report(tmp_path: Path, closed: str) -> None:
    write_sweep(tmp_path, (0, 1), (0,))
    command = f"{sys.executable} -m eat_runner.cli.report {tmp_path} {closed}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "summary.csv").read_text().startswith("run_id,dataset,")


def test_a_real_terminal_of_80_columns(tmp_path: Path) -> None:
    write_sweep(tmp_path, (0, 1), (0, 1))
    leader, follower = pty.openpty()
    environment = os.environ | {"COLUMNS": "80", "TERM": "xterm", "PYTHONIOENCODING": "ascii"}
    process = subprocess.Popen(
        [sys.executable, "-m", "eat_runner.cli.report", str(tmp_path)], stdout=follower, env=environment
    )
    os.close(follower)
    output = b""
    while True:
        try:
            output += os.read(leader, 65536)
        except OSError:  # the terminal's other end is closed
            break
    os.close(leader)
    assert process.wait() == 0
    text = re.sub(r"\x1b\[[\d;]*m", "", output.decode("ascii"))
    assert re.search(r"lambda 1 +0\.\d{4} \+/- 0\.\d{4} +0\.\d{4} \+/- 0\.\d{4}", text)
