"""``eat-measure``: what somebody's network costs, layer by layer. Nothing is trained.

Exit codes: 0 it is measured and every file is written; 2 bad input, or output that could not be written.
"""

import argparse
import difflib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from eat_runner.cli.errors import one_line_errors
from eat_runner.cli.parser import Parser, answer_shell, folders, price_lists
from eat_runner.cli.stoppable import ensure_stdout, importing_torch
from eat_runner.config import MeterConfig
from eat_runner.config.hardware import HardwareConfig
from eat_runner.config.paths import conf_dir
from eat_runner.energy.hardware import load_hardware
from eat_runner.errors import UserError
from eat_runner.records import RunFolder

PROGRAM = "eat-measure"
HARDWARE = "fused_7nm_int8"  # where nobody names any: today's process and number format, zeros skipped
BATCH_SIZE = 8
REAL_IMAGES = 100  # of a folder, where nobody says how many
PLOTS = (".png", ".svg")
MOST = 1_000_000
# what messages say to people who use eat-run, and what it is here
OPTIONS = {
    ", or a network that takes them, such as model=resnet18": "",
    ": use model=resnet18": "",
    "dataset.image_size=": "--image-size ",
    "meter.ignore_uncounted=true": "--ignore-uncounted",
    "meter.batch_size=": "--batch-size ",
    "init=": "--weights ",
    "model.arch=": "",
    "model=": "",
}


def main() -> None:
    """Entry point of the console script."""
    answer_shell(_parser)
    ensure_stdout()
    with one_line_errors(PROGRAM):
        command(sys.argv[1:])


def command(arguments: Sequence[str]) -> None:
    """Run ``eat-measure ARGUMENTS``. Raises UserError for bad input, OSError where output cannot be written."""
    options = _parser().parse_args(arguments)
    hardware = _hardware(options.hardware or [HARDWARE])
    meter = _meter(options, hardware)
    source, name = _network(options.network)
    _check(options, of_a_run=not source)
    anew = (options.data, options.batch_size, options.images, options.batches, options.seed)
    images = REAL_IMAGES if options.data else meter.batch_size
    with importing_torch():
        from eat_runner.run.measure import Wanted, measure_network
    wanted = Wanted(
        source=source,
        name=name,
        image_size=options.image_size,
        classes=options.classes,
        weights=options.weights,
        data=options.data,
        images=options.images or (options.batches * meter.batch_size if options.batches else images),
        seed=options.seed or 0,
        meter=meter,
        counted_already=not source and all(option is None for option in anew),
    )
    try:
        measured = measure_network(wanted)
        from eat_runner.report import network, show

        report = network.NetworkReport(measured, network.price(measured, hardware), options.depth)
    except UserError as error:
        raise UserError(_with_options(str(error))) from error
    errors = network.write(report, options.csv, options.json, options.plot)
    show(report)
    if errors:
        raise errors[0]


def _with_options(message: str) -> str:
    """With this command's options in place of eat-run's keys, where these begin a word."""
    for key, option in OPTIONS.items():
        begins = r"(?<![^\s(])" if key[0].isalpha() else ""
        message = re.sub(begins + re.escape(key), option, message)
    return message


def _network(text: str) -> tuple[str, str]:
    """Source and name, or no source and a run's folder."""
    source, _, name = text.partition(":")
    sources = _sources()
    if source in sources and name:
        return source, name
    run = RunFolder(text)
    if run.record.exists():
        run.check_finished("measured")
        return "", text
    if run.path.is_dir():
        raise UserError(
            f"{text} is no run's folder: it has no {run.record.name}; images are measured on by a network, as in "
            f"torchvision:resnet50 --data {text}"
        )
    near = difflib.get_close_matches(source, sources, n=1)
    hint = f"did you mean {near[0]}:{name or 'NAME'}?" if near else "for example torchvision:resnet50"
    raise UserError(
        f"{text} is no network: give {', '.join(f'{known}:NAME' for known in sources)}, or the folder of a finished "
        f"run; {hint}"
    )


def _sources() -> list[str]:
    """The models that have their networks by name (model.arch)."""
    files = sorted((conf_dir() / "model").glob("*.yaml"))
    return [path.stem for path in files if "arch" in yaml.safe_load(path.read_text(encoding="utf-8"))]


def _hardware(names: Sequence[str]) -> list[HardwareConfig]:
    """Each once, under a name of its own."""
    hardware = [load_hardware(name) for name in dict.fromkeys(names)]
    called = [each.name for each in hardware]
    for name in called:
        if called.count(name) > 1:
            raise UserError(f"--hardware: two price lists are called {name}: give one of them another name")
    return hardware


def _meter(options: argparse.Namespace, hardware: Sequence[HardwareConfig]) -> MeterConfig:
    """How to count so that all of the hardware can price it. UserError where that cannot be."""
    batches = {each.batch_size: each.name for each in hardware if each.batch_size is not None}
    thresholds = {each.threshold: each.name for each in hardware}
    if len(batches) > 1 or len(thresholds) > 1:
        names = " and ".join([*batches.values(), *thresholds.values()][:2] if len(batches) > 1 else thresholds.values())
        raise UserError(f"--hardware: {names} price counts that are made otherwise: measure for each of them alone")
    batch_size = options.batch_size or next(iter(batches), BATCH_SIZE)
    if batches and batch_size not in batches:
        size, name = next(iter(batches.items()))
        raise UserError(f"--batch-size {batch_size}: {name} prices batches of {size}: leave it out")
    return MeterConfig(
        batch_size=batch_size, threshold=next(iter(thresholds)), ignore_uncounted=options.ignore_uncounted
    )


def _check(options: argparse.Namespace, of_a_run: bool) -> None:
    """UserError for what means nothing, and for files that could not be written, before anything is imported."""
    if of_a_run:
        for name in ("image_size", "classes", "weights"):
            if getattr(options, name) is not None:
                option = f"--{name.replace('_', '-')}"
                raise UserError(f"{option}: a run has its own: leave it out, or give a network such as timm:resnet50")
    outputs = [path for path in (options.csv, options.json, options.plot) if path is not None]
    if len({path.absolute() for path in outputs}) < len(outputs):
        raise UserError("--csv, --json and --plot: each needs a file of its own")
    for path in outputs:
        folder = path.absolute().parent
        if path.is_dir() or not folder.is_dir():
            raise UserError(f"{path}: {'a folder is there' if path.is_dir() else f'there is no folder {folder}'}")
    if options.plot is not None and options.plot.suffix.lower() not in PLOTS:
        raise UserError(f"--plot {options.plot}: its name must end in {' or '.join(PLOTS)}")


def _whole(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MOST:
        raise argparse.ArgumentTypeError(f"{text} is no whole number between 1 and {MOST}")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**31:
        raise argparse.ArgumentTypeError(f"{text} is no whole number between 0 and {2**31 - 1}")
    return int(text)


def _networks(prefix: str, **_: Any) -> list[str]:
    """How a network can begin, for completion: listing those of a package would take its import."""
    return [*(f"{source}:" for source in _sources()), *folders(prefix)]


def _parser() -> Parser:
    parser = Parser(
        prog=PROGRAM,
        description="What a network costs at inference, layer by layer: parameters, non-zeros, exact products, energy. "
        "Zeros are real where weights and images are; of random ones only dense numbers mean something, and the table "
        "shows no others.",
        epilog="Exit codes: 0 it is measured and every file is written; 2 bad input, or a file could not be written.",
    )
    parser.add_argument(
        "network",
        metavar="NETWORK",
        completer=_networks,
        help="torchvision:NAME, timm:NAME (the extra timm), entry_point:NAME (of an installed package), or the folder "
        "of a finished run: alone, with the counts that it made of its test images",
    )
    parser.add_argument("--weights", type=Path, metavar="FILE", help="safetensors, or a state dict saved by torch.save")
    parser.add_argument("--classes", type=_whole, metavar="N", help="outputs of the network (default: 1000)")
    parser.add_argument(
        "--image-size", type=_whole, metavar="N", help="pixels of a side (default: those that it was published for)"
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        completer=folders,
        help="real images, however deep in it (default: random input)",
    )
    parser.add_argument("--batch-size", type=_whole, metavar="N", help=f"(default: the hardware's, else {BATCH_SIZE})")
    many = parser.add_mutually_exclusive_group()
    many.add_argument(
        "--images",
        type=_whole,
        metavar="N",
        help=f"how many, spread evenly over the folder (default: {REAL_IMAGES}; of random input one batch)",
    )
    many.add_argument("--batches", type=_whole, metavar="N", help="the same, in batches")
    parser.add_argument("--seed", type=_seed, metavar="N", help="of random weights and random input (default: 0)")
    parser.add_argument(
        "--hardware",
        action="append",
        metavar="NAME|FILE.yaml",
        completer=price_lists,
        help=f"price list (conf/hardware/*.yaml or your own file), as often as you like (default: {HARDWARE})",
    )
    parser.add_argument("--depth", type=_whole, metavar="N", help="show modules down to this depth (default: all)")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="a row a layer, with all counts and energies")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all of it")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="where the energy goes: .png or .svg")
    parser.add_argument(
        "--ignore-uncounted", action="store_true", help="go on without the cost of operations that no rule counts"
    )
    return parser


if __name__ == "__main__":
    main()
