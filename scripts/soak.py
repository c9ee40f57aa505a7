"""``make soak``: sweeps that are killed at random for half an hour, then a thousand tiny runs in one process.

Checked: every run ends as it does undisturbed, to the bit; no epoch is trained twice; no run is lost or doubled; no
process, temporary file, open file, thread or memory is left behind. Figures go to results/soak/.
Exit code 0 if all of it holds, 1 with the first thing that does not.
"""

import argparse
import json
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from eat_runner.environment import git_commit, machine, versions
from eat_runner.records import write_atomically

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from processes import after, eat_run, finish, kill_when, outcomes, output, results  # noqa: E402

LAMBDAS, SEEDS = ("0", "0.5", "1"), ("0", "1")
SWEEP = "-m lambda={} seed={} trainer.epochs=3"
TINY = "-m lambda=0 seed=range(0,{runs}) trainer.epochs=1 model.width=2 dataset.train_limit=64"
EPOCH = re.compile(r"^(digits-\S+)  epoch (\d+) ", re.MULTILINE)
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
# 1: at the end of its sweep, a run of a process that had just been killed was missing
EXIT_CODES = {0, 1, 75, -signal.SIGKILL}
LONGEST_LIFE_S = 6.0
ALLOWED_GROWTH_MB = 64.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="of sweeps that are killed; 0: none")
    parser.add_argument("--runs", type=int, default=1000, help="tiny runs in one process; 0: none")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**6, help="of the kills")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "soak")
    options = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="soak-"))
    print(f"seed {options.seed}, in {place}", flush=True)
    if options.minutes:
        write(options.output / "killed_sweeps.json", killed_sweeps(place, options.seed, options.minutes))
    if options.runs:
        write(options.output / "many_runs.json", many_runs(place / "many", options.runs))
    expect(not working_in(place), f"processes are left: {working_in(place)}")
    shutil.rmtree(place)  # what went wrong stays, to be looked at
    print("all is well")


def write(path: Path, figures: dict[str, Any]) -> None:
    """The figures, and what made them."""
    made = {"command": " ".join(["python", "scripts/soak.py", *sys.argv[1:]]), "git_commit": git_commit()}
    made |= {"machine": machine(torch.device("cpu")), "versions": versions()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(figures | made, indent=1) + "\n").encode())
    print(path)


# --- sweeps that are killed ---


def killed_sweeps(place: Path, seed: int, minutes: float) -> dict[str, float]:
    """Sweeps over parts of a grid, by one to three processes at once, each killed after a random time, until done.
    What they went through; runs: that were compared with the undisturbed ones."""
    chance, end = random.Random(seed), time.monotonic() + 60 * minutes
    expect(finish(place / "whole", SWEEP.format(",".join(LAMBDAS), ",".join(SEEDS))) == 0, output(place / "whole"))
    whole, counted = outcomes(place / "whole"), Counter[str]()
    while time.monotonic() < end or not counted["sweeps"]:
        folder = place / f"sweep{counted['sweeps']}"
        lambdas, seeds = (chance.sample(every, chance.randint(1, len(every))) for every in (LAMBDAS, SEEDS))
        codes = torment(folder, SWEEP.format(",".join(lambdas), ",".join(seeds)), chance)
        found, epochs = checked(folder, len(lambdas) * len(seeds))
        expect(all(found[name] == whole[name] for name in found), f"{folder}: another result than undisturbed")
        counted.update(sweeps=1, processes=len(codes), killed=codes.count(-signal.SIGKILL), stopped=codes.count(75))
        counted.update(runs=len(found), epochs=epochs)
        print(dict(counted), flush=True)
        shutil.rmtree(folder)
    return {"seed": seed, "minutes": minutes} | dict(counted)


def torment(folder: Path, arguments: str, chance: random.Random) -> list[int]:
    """Start processes and end them at random moments, and let the last one finish the sweep; their exit codes."""
    codes: list[int] = []
    for _ in range(chance.randint(2, 5)):
        for process in [eat_run(folder, arguments) for _ in range(chance.randint(1, 3))]:
            codes.append(kill_when(process, after(chance.uniform(0.2, LONGEST_LIFE_S)), chance.choice(SIGNALS)))
            expect(codes[-1] in EXIT_CODES, f"exit code {codes[-1]}: {output(folder)[-2000:]}")
    codes.append(finish(folder, arguments))
    expect(codes[-1] == 0, output(folder)[-2000:])
    return codes


def checked(folder: Path, runs: int) -> tuple[dict[str, dict[str, Any]], int]:
    """No failure, no epoch twice (its line comes after its checkpoint), all runs, a whole table, nothing left over.
    What the runs leave, and how many epochs were trained."""
    found, said = outcomes(folder), output(folder)
    expect(len(found) == runs, f"{folder}: {len(found)} runs")
    expect(" failed: " not in said, f"{folder}: a run failed")
    epochs = Counter(EPOCH.findall(said))
    expect(set(epochs.values()) <= {1}, f"{folder}: trained twice: {epochs.most_common(3)}")
    table = (results(folder) / "summary.csv").read_text()
    expect(table.count(",finished,") == runs, f"{folder}: {table}")
    left = [path for path in folder.rglob("*") if path.name.endswith((".tmp", ".pt"))]
    expect(not left, f"{folder}: left over: {left}")
    return found, len(epochs)


# --- many runs in one process ---


def many_runs(folder: Path, runs: int) -> dict[str, Any]:
    """A sweep of tiny runs; its process is looked at after every tenth part of them."""
    looks: list[dict[str, float]] = []
    started, process = time.monotonic(), eat_run(folder, TINY.format(runs=runs))
    while process.exitcode is None:
        done = sum(1 for _ in results(folder).glob("*/model.safetensors"))
        if (len(looks) + 1) * runs // 10 <= done < runs:
            looks.append({"after_runs": done, **look(Path(f"/proc/{process.pid}"))})
            print(f"{done} runs: {looks[-1]['memory_mb']:.0f} MB, {looks[-1]['open_files']} files", flush=True)
        process.join(0.5)
    seconds = time.monotonic() - started
    expect(process.exitcode == 0, output(folder)[-2000:])
    checked(folder, runs)
    seen = pd.DataFrame(looks).to_dict("list")
    grown = seen["memory_mb"][-1] - seen["memory_mb"][0]
    expect(grown <= ALLOWED_GROWTH_MB, f"memory grew by {grown:.0f} MB: {seen['memory_mb']}")
    half = len(looks) // 2
    for name in ("open_files", "threads"):
        expect(max(seen[name][half:]) <= max(seen[name][:half]), f"{name} grow: {seen[name]}")
    return {"runs": runs, "seconds": seconds, **seen}


def look(process: Path) -> dict[str, float]:
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    open_files, threads = len(list((process / "fd").iterdir())), int(status["Threads"])
    return {"memory_mb": int(status["VmRSS"].split()[0]) / 1024, "open_files": open_files, "threads": threads}


def working_in(place: Path) -> list[int]:
    """The processes that work in a folder or below it."""
    found: list[int] = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "cwd").readlink().is_relative_to(place):
                found.append(int(process.name))
    return found


def expect(holds: bool, otherwise: str) -> None:
    if not holds:
        sys.exit(f"soak: {otherwise}")


if __name__ == "__main__":
    main()
