"""``eat-export``: a finished run's network for other programs, as ONNX or as weights with a model card.

Exit codes: 0 it is written; 1 onnxruntime answers otherwise than the run, and nothing is left of the file; 2 bad input.
"""

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from eat_runner.cli.errors import one_line_errors, tell
from eat_runner.cli.parser import Parser, answer_shell, folders, paths
from eat_runner.cli.stoppable import ensure_stdout, importing_torch
from eat_runner.errors import RUN_FAILED, UserError
from eat_runner.records import RunFolder, write_atomically

if TYPE_CHECKING:
    from eat_runner.run.export import Checked

PROGRAM = "eat-export"
NEEDED = ("onnx", "onnxruntime", "onnxscript")
SUFFIX = ".onnx"
CARD = "README.md"
BESIDE = "model.onnx", "card"  # in the run's folder, where nobody names another place


def main() -> None:
    """Entry point of the console script."""
    answer_shell(_parser)
    ensure_stdout()
    with one_line_errors(PROGRAM):
        code = command(sys.argv[1:])
    sys.exit(code)


def command(arguments: Sequence[str]) -> int:
    """Run ``eat-export ARGUMENTS``; the exit code. Raises UserError for bad input, OSError where output cannot be
    written."""
    options = _parser().parse_args(arguments)
    run = _finished(options.run)
    _check(options, run)
    code = 0
    with importing_torch():
        from eat_runner.run import export
    if options.onnx is not None:
        exported = export.onnx_of(run, options.preprocessing or "normalised", options.data_dir, options.unchecked)
        for message in exported.messages:
            print(message)
        print(_said(exported.checked))
        if exported.checked.passed:
            write_atomically(options.onnx, exported.content)
            print(options.onnx)
        else:
            tell(f"{PROGRAM}: error: onnxruntime answers otherwise than the run: {options.onnx} is not written")
            code = RUN_FAILED
    if options.safetensors is not None:
        from eat_runner.report.card import model_card

        folder = RunFolder(options.safetensors)
        record = export.write_weights(run, folder)
        write_atomically(folder.path / CARD, model_card(record, export.energy_uj(record)).encode())
        print(folder.path)
    return code


def _said(checked: "Checked") -> str:
    """What the check found, in a few lines."""
    same = checked.count - checked.differing
    lines = [
        f"onnxruntime on {checked.count} {checked.images}: {same} answers as the run's, largest difference of a logit "
        f"{checked.largest_difference:.2g} (largest logit {checked.largest_logit:.3g})"
    ]
    if checked.accuracy is not None:
        own, here, _ = checked.accuracy
        lines.append(f"accuracy {100 * here:.2f} %, the run's network {100 * own:.2f} %")
    if checked.integers:
        optimised = f", accuracy {100 * checked.accuracy[2]:.2f} %" if checked.accuracy is not None else ""
        lines.append(
            f"with onnxruntime's optimisations, which round biases: {checked.differing_optimised} other answers"
            f"{optimised}"
        )
    return "\n".join(lines)


def _finished(path: Path) -> RunFolder:
    """A run whose network is there."""
    run = RunFolder(path)
    if not run.record.exists():
        raise UserError(f"{path} is no run's folder: it has no {run.record.name}")
    run.check_finished("exported")
    if not run.weights.exists():
        raise UserError(f"{run.weights} is not there: only a run with its weights can be exported")
    return run


def _check(options: argparse.Namespace, run: RunFolder) -> None:
    """UserError for what means nothing, and for files that could not be written, before anything is imported. Fills in
    the places that nobody named."""
    if options.onnx is None and options.safetensors is None:
        raise UserError("what is to be written? give --onnx, --safetensors, or both")
    if options.onnx is None:
        for name in ("preprocessing", "data_dir", "unchecked"):
            if getattr(options, name):
                raise UserError(f"--{name.replace('_', '-')} is for --onnx: leave it out, or add --onnx")
    else:
        options.onnx = options.onnx or run.path / BESIDE[0]
        _check_onnx(options.onnx)
        if options.data_dir is not None and options.unchecked:
            raise UserError("--data-dir and --unchecked: give one of them")
    if options.safetensors is not None:
        folder = options.safetensors = options.safetensors or run.path / BESIDE[1]
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--safetensors {folder}: a file is there: name a folder")
        if RunFolder(folder).config.exists() or RunFolder(folder).layers.exists():
            raise UserError(f"--safetensors {folder}: that is a run's folder, which stays as it is: name another one")
        if not folder.absolute().parent.is_dir():
            raise UserError(f"--safetensors {folder}: there is no folder {folder.absolute().parent}")


def _check_onnx(file: Path) -> None:
    if file.suffix.lower() != SUFFIX:
        raise UserError(f"--onnx {file}: its name must end in {SUFFIX}")
    folder = file.absolute().parent
    if file.is_dir() or not folder.is_dir():
        raise UserError(f"--onnx {file}: {'a folder is there' if file.is_dir() else f'there is no folder {folder}'}")
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"--onnx needs {', '.join(missing)}: pip install 'eat-runner[onnx]'")


def _place(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("an empty name")
    return Path(text)


def _parser() -> Parser:
    parser = Parser(
        prog=PROGRAM,
        description="A finished run's network for other programs. Channels that change no output are left out.",
        epilog="Exit codes: 0 it is written; 1 onnxruntime answers otherwise than the run, and no file is left; "
        "2 bad input.",
    )
    parser.add_argument("run", metavar="RUN", type=_place, completer=folders, help="the folder of a finished run")
    parser.add_argument(
        "--onnx",
        type=_place,
        nargs="?",
        const=False,
        metavar="FILE.onnx",
        completer=lambda prefix, **_: paths(prefix, (SUFFIX,)),
        help="batch norms folded, integers as QuantizeLinear and DequantizeLinear (bits=8, bits=4), checked in "
        f"onnxruntime (the extra onnx); default: RUN/{BESIDE[0]}",
    )
    parser.add_argument(
        "--safetensors",
        type=_place,
        nargs="?",
        const=False,
        metavar="FOLDER",
        completer=folders,
        help=f"model.safetensors, record.json and a model card, {CARD}; default: RUN/{BESIDE[1]}",
    )
    parser.add_argument(
        "--preprocessing",
        choices=("uint8", "float"),
        help="put the normalisation into the graph, which then takes uint8 or float32 in [0, 1] (default: normalised "
        "float32); images already have the network's size",
    )
    parser.add_argument(
        "--data-dir",
        type=_place,
        metavar="FOLDER",
        completer=folders,
        help="where the data lie (default: as in the run)",
    )
    parser.add_argument("--unchecked", action="store_true", help="check with random images instead of the run's data")
    return parser


if __name__ == "__main__":
    main()
