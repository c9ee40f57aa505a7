"""``PYTHONPATH=scripts python -m bench`` (``make bench``): run the sections, print goal and figure side by side, and
write a CSV a section to results/bench/."""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from bench import table
from bench.engine import TINY, Sizes, set_up
from bench.sections import ROOT, SECTIONS
from eat_runner.environment import git_commit, machine, versions


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench", description="Measure what the penalty, the meter and the rest cost.")
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; all without one")
    parser.add_argument("--output", type=Path, help="folder for the CSV files (results/bench; tiny: none)")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: only to see that everything runs")
    options = parser.parse_args()
    if unknown := set(options.sections) - set(SECTIONS):
        parser.error(f"no section {', '.join(sorted(unknown))}: choose from {', '.join(SECTIONS)}")
    output = options.output or (None if options.tiny else ROOT / "results" / "bench")
    set_up()
    for name in options.sections or SECTIONS:
        run(name, TINY if options.tiny else Sizes(), output)


def run(name: str, sizes: Sizes, output: Path | None) -> None:
    """Measure one section, print it and write it beside those that were measured at another time."""
    section = SECTIONS[name]
    if not section.possible():
        print(f"{name}: skipped, this machine has not what it needs")
        return
    facts = {
        "command": " ".join(["PYTHONPATH=scripts", "python", "-m", "bench", *sys.argv[1:]]),
        "git_commit": git_commit(),
        "versions": versions(),
        "machine": machine(torch.device("cuda" if name == "gpu" else "cpu")),
        "load_average_before": round(os.getloadavg()[0], 2),
        "environment": {key: os.environ.get(key) for key in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")},
    }
    started, figures = time.perf_counter(), list[dict[str, Any]]()
    for number, network in enumerate(section.networks(sizes)):
        figures += table.figures(name, section.measure(network, sizes), sizes, str(network), number)
    facts["seconds"] = round(time.perf_counter() - started, 1)
    found = pd.DataFrame(figures)
    print(table.shown(found), flush=True)
    print(f"{name}: {facts['seconds']} s", file=sys.stderr, flush=True)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        found.to_csv(output / f"{name}.csv", index=False, float_format="%.4g", lineterminator="\n")
        machines = output / "machine.json"
        known = json.loads(machines.read_text()) if machines.exists() else {}
        machines.write_text(json.dumps(known | {name: facts}, indent=2, sort_keys=True) + "\n")
        there = [path for section in SECTIONS if (path := output / f"{section}.csv").exists()]
        (output / "table.md").write_text(table.as_markdown(pd.concat(map(table.read, there))), encoding="utf-8")


if __name__ == "__main__":
    main()
