"""``eat-report``: collate, price and draw runs that lie on disk. Needs neither torch nor Hydra.

Exit codes: 0 the report is written, also where runs failed or are missing, which it names; 2 bad input. (eat-run's
exit code is 1 where a run failed.)
"""

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from eat_runner.analysis.columns import BY, X, Y
from eat_runner.analysis.rows import run_folders
from eat_runner.cli.errors import one_line_errors
from eat_runner.cli.parser import Parser, answer_shell, folders, price_lists
from eat_runner.cli.stoppable import ensure_stdout
from eat_runner.config.root import SELECTIONS
from eat_runner.errors import UserError, printable

PROGRAM = "eat-report"
MANY_RUNS = 200  # more take so long that a person wants to know what is going on


def main() -> None:
    """Entry point of the console script."""
    answer_shell(_parser)
    ensure_stdout()
    with one_line_errors(PROGRAM):
        command(sys.argv[1:])


def command(arguments: Sequence[str]) -> None:
    """Run ``eat-report ARGUMENTS``. Raises UserError for bad input, OSError where the report cannot be written."""
    options = _parser().parse_args(arguments)
    folders: list[Path] = options.folders
    if len(folders) > 1 and options.output is None and not options.select:
        raise UserError("several folders: add --output FOLDER to say where the report goes")
    if not options.select and (options.max_uj is not None or options.min_accuracy is not None):
        raise UserError("--max-uj and --min-accuracy choose a run to print: add --select")
    # matplotlib takes a second to import: --help and mistakes need not wait for it
    from eat_runner import report

    hardware = report.choose_hardware(folders, options.hardware)
    if (runs := sum(len(run_folders(folder)) for folder in folders)) > MANY_RUNS:
        _say(f"reading {runs} runs" + ("" if options.select else "; the figures, a panel a family, take longest"))
    if options.max_uj is not None or options.min_accuracy is not None:
        limits = options.max_uj, options.min_accuracy
        choice = report.choose_run(folders, hardware, options.selection, *limits, say=_say)
        _say(printable(f"{choice.told}, {hardware.name}", longest=None))
        _print_path(choice.folder)
        return
    axes = report.choose_axes(hardware, options.by, options.x, options.y)
    if options.select:
        for path in report.selected_folders(folders, hardware, options.selection, options.by, axes):
            _print_path(path)
        return
    page_of = report.MOST_RUNS if options.html else 0
    report.show(report.write_report(folders, hardware, options.selection, options.output, options.by, axes, page_of))


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _print_path(path: str) -> None:
    """A program gets the path as it is, a terminal what it can show."""
    shown = printable(path, longest=None) if sys.stdout.isatty() else path
    sys.stdout.buffer.write(os.fsencode(shown) + b"\n")


def _energy(text: str) -> float:
    value = _number(text)
    return _checked(text, value, 0 < value < math.inf, "a number above 0")


def _accuracy(text: str) -> float:
    number = text.removesuffix("%")
    value = _number(number) / (1 if number == text else 100)
    return _checked(text, value, 0 <= value <= 1, "a share between 0 and 1, as 0.95 or 95%")


def _number(text: str) -> float:
    """NaN where it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _checked(text: str, value: float, fits: bool, what: str) -> float:
    if not fits:
        raise argparse.ArgumentTypeError(f"{text} is not {what}")
    return value


def _parser() -> Parser:
    parser = Parser(
        prog=PROGRAM,
        description="Collate, price and draw the runs in folders that eat-run wrote: summary.csv, pareto.csv, "
        "pareto.png/svg, layer_comparison.csv and its plots; with --by dataset also equal_accuracy.csv: what each "
        "method needs at most 0, 1 and 3 points below standard training.",
        epilog="Runs of several machines: eat-report A B --output C takes each run once, the finished copy first. "
        "Exit codes: 0 the report is written, also where runs failed or are missing, which it names; 2 bad input.",
    )
    parser.add_argument(
        "folders",
        nargs="+",
        type=Path,
        metavar="FOLDER",
        completer=folders,
        help="results/<name>, or a run's folder",
    )
    parser.add_argument(
        "--hardware",
        metavar="NAME|FILE.yaml",
        completer=price_lists,
        help="price list (conf/hardware/*.yaml or your own file); default: the one the runs were configured with",
    )
    parser.add_argument(
        "--selection",
        choices=SELECTIONS,
        default=SELECTIONS[0],
        help="how the best setting is picked: lowest energy within 3 points of standard training, on the validation "
        "split, or on the test split as in the paper (default: %(default)s)",
    )
    parser.add_argument(
        "--by",
        choices=BY,
        default=BY[0],
        help="what shares a front: one network and training (family), or every network, penalty and method on the same "
        "data (dataset), compared with standard training of the network that needs most (default: %(default)s)",
    )
    parser.add_argument(
        "--x",
        choices=X,
        help="energy: uJ per image; relative: to the reference, standard training; ratio: with / without zero-skipping "
        "of the same network (default: ratio by family; by dataset energy, relative where the prices are relative)",
    )
    parser.add_argument(
        "--y",
        choices=Y,
        default="accuracy",
        help="accuracy on the test split, or on the validation split (default: %(default)s)",
    )
    parser.add_argument("--html", action="store_true", help="also write report.html, one page that compares the runs")
    parser.add_argument("--select", action="store_true", help="print the path of the selected run, and nothing else")
    parser.add_argument(
        "--max-uj",
        type=_energy,
        metavar="UJ",
        help="with --select: of the runs that need at most so much an image, the most accurate on validation",
    )
    parser.add_argument(
        "--min-accuracy",
        type=_accuracy,
        metavar="SHARE",
        help="with --select: of the runs with at least this validation accuracy (0.95 or 95%%), the one that needs "
        "least; with --max-uj both hold",
    )
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", completer=folders, help="where the report goes; default: FOLDER"
    )
    return parser


if __name__ == "__main__":
    main()
