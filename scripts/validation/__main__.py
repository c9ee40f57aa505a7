"""``PYTHONPATH=scripts python -m validation`` (``make validation``): run the sections and write their tables and
figures to results/validation/."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from eat_runner.environment import git_commit, machine, versions
from validation import eyeriss, prices, products, simulator, zigzag
from validation.tables import ROOT, Tables, write

SECTIONS: dict[str, Callable[[], Tables]] = {
    "products": products.tables,
    "simulator": simulator.tables,
    "eyeriss": eyeriss.tables,
    "zigzag": zigzag.tables,
    "prices": prices.tables,
}
NEEDS = {"zigzag": ("zigzag-dse",)}  # packages of the extra ``validation``


def main() -> None:
    parser = argparse.ArgumentParser(prog="validation", description="Compare counts and prices with what others found.")
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; all without one")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "validation", help="folder of the results")
    options = parser.parse_args()
    if unknown := set(options.sections) - set(SECTIONS):
        parser.error(f"no section {', '.join(sorted(unknown))}: choose from {', '.join(SECTIONS)}")
    torch.set_num_threads(1)
    for name in options.sections or SECTIONS:
        run(name, options.output)


def run(name: str, output: Path) -> None:
    """Compute one section and write it beside those that were computed at another time."""
    try:
        needed = {package: version(package) for package in NEEDS.get(name, ())}
    except PackageNotFoundError as error:
        print(f"{name}: skipped: there is no {error.name} (pip install 'eat-runner[validation]')")
        return
    facts = {
        "command": " ".join(["PYTHONPATH=scripts", "python", "-m", "validation", *sys.argv[1:]]),
        "git_commit": git_commit(),
        "versions": versions() | needed,
        "machine": machine(torch.device("cpu")),
        "load_average_before": round(os.getloadavg()[0], 2),
    }
    started = time.perf_counter()
    write(SECTIONS[name](), output)
    facts["seconds"] = round(time.perf_counter() - started, 1)
    print(f"{name}: {facts['seconds']} s", file=sys.stderr, flush=True)
    machines = output / "machine.json"
    known = json.loads(machines.read_text()) if machines.exists() else {}
    machines.write_text(json.dumps(known | {name: facts}, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
