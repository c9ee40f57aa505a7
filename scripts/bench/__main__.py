"""``PYTHONPATH=scripts python -m bench`` (``make bench``): run the sections, print goal and figure side by side, and
write a CSV a section to results/bench/."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from bench import commands, gpu, passes, table, training
from bench.figures import Figure
from bench.sizes import TINY, Sizes
from eat_runner.environment import git_commit, machine, versions

SECTIONS: dict[str, Callable[[Sizes], Iterable[Figure]]] = {
    "training": training.eager,
    "evaluation": passes.evaluation,
    "data": passes.data,
    "threads": training.threads,
    "compiled": training.compiled,
    "memory": training.memory,
    "help": commands.help_text,
    "report": commands.report,
    "whole": commands.whole,
    "gpu": gpu.gpu,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench", description="Measure what the penalty, the meter and the rest cost.")
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; all without one")
    parser.add_argument("--output", type=Path, help="folder for the CSV files (results/bench; tiny: none)")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: only to see that everything runs")
    options = parser.parse_args()
    if unknown := set(options.sections) - set(SECTIONS):
        parser.error(f"no section {', '.join(sorted(unknown))}: choose from {', '.join(SECTIONS)}")
    output = options.output or (None if options.tiny else commands.ROOT / "results" / "bench")
    training.set_up()
    print(table.HEADER)
    for name in options.sections or SECTIONS:
        run(name, TINY if options.tiny else Sizes(), output)


def run(name: str, sizes: Sizes, output: Path | None) -> None:
    """Measure one section, print it and write it beside those that were measured at another time."""
    if name == "gpu" and not torch.cuda.is_available():
        print("gpu: skipped, there is no CUDA device")
        return
    facts = {
        "command": " ".join(["PYTHONPATH=scripts", "python", "-m", "bench", *sys.argv[1:]]),
        "git_commit": git_commit(),
        "versions": versions(),
        "machine": machine(torch.device("cuda" if name == "gpu" else "cpu")),
        "load_average_before": round(os.getloadavg()[0], 2),
        "environment": {key: os.environ.get(key) for key in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")},
    }
    started = time.perf_counter()
    found = list(SECTIONS[name](sizes))
    facts["seconds"] = round(time.perf_counter() - started, 1)
    print(table.show(found), flush=True)
    print(f"{name}: {facts['seconds']} s", file=sys.stderr, flush=True)
    if output is not None and found:
        table.write(output / f"{name}.csv", found)
        machines = output / "machine.json"
        known = json.loads(machines.read_text()) if machines.exists() else {}
        machines.write_text(json.dumps(known | {name: facts}, indent=2, sort_keys=True) + "\n")
        there = [path for section in SECTIONS if (path := output / f"{section}.csv").exists()]
        every = [row for path in there for row in table.read(path)]
        (output / "table.md").write_text(table.markdown(every), encoding="utf-8")


if __name__ == "__main__":
    main()
