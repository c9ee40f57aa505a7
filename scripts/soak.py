"""``make soak``: sweeps that are killed at random for half an hour, then a thousand tiny runs in one process.

Checked: every run ends as it does undisturbed, to the bit; no epoch is trained twice; no run is lost or doubled; no
process, temporary file, open file, thread or memory is left behind. Figures go to results/soak/.
Exit code 0 if all of it holds, 1 with the first thing that does not.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from eat_runner.environment import git_commit, machine, versions
from eat_runner.records import write_atomically

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from processes import eat_run, ended, finish, outcomes, output, results  # noqa: E402

LAMBDAS, SEEDS = ("0", "0.5", "1"), ("0", "1")
SWEEP = "-m lambda={lambdas} seed={seeds} trainer.epochs=3"
TINY = "-m lambda=0 seed=range(0,{runs}) trainer.epochs=1 model.width=2 dataset.train_limit=64"
EPOCH = re.compile(r"^(digits-\S+)  epoch (\d+) ", re.MULTILINE)
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
LONGEST_LIFE_S = 6.0
ALLOWED_GROWTH_MB = 64.0


@dataclass
class Killing:
    """What the sweeps went through. runs: that were compared with the undisturbed ones."""

    seed: int
    minutes: float
    sweeps: int = 0
    processes: int = 0
    killed: int = 0
    stopped: int = 0
    runs: int = 0
    epochs: int = 0


@dataclass
class Leaks:
    """A process that makes many runs. memory_mb, open_files, threads: after so many runs."""

    runs: int
    seconds: float = 0.0
    after_runs: list[int] = field(default_factory=list[int])
    memory_mb: list[float] = field(default_factory=list[float])
    open_files: list[int] = field(default_factory=list[int])
    threads: list[int] = field(default_factory=list[int])


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


def write(path: Path, figures: "Killing | Leaks") -> None:
    """The figures, and what made them."""
    made = {"command": " ".join(["python", "scripts/soak.py", *sys.argv[1:]]), "git_commit": git_commit()}
    made |= {"machine": machine(torch.device("cpu")), "versions": versions()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(asdict(figures) | made, indent=1) + "\n").encode())
    print(path)


# --- sweeps that are killed ---


def killed_sweeps(place: Path, seed: int, minutes: float) -> Killing:
    """Sweeps over parts of a grid, by one to three processes at once, each killed after a random time, until done."""
    chance, end = random.Random(seed), time.monotonic() + 60 * minutes
    expect(finish(place / "whole", sweep_of(LAMBDAS, SEEDS)) == 0, output(place / "whole"))
    whole, counted = outcomes(place / "whole"), Killing(seed, minutes)
    while time.monotonic() < end or not counted.sweeps:
        folder = place / f"sweep{counted.sweeps}"
        lambdas = chance.sample(LAMBDAS, chance.randint(1, len(LAMBDAS)))
        seeds = chance.sample(SEEDS, chance.randint(1, len(SEEDS)))
        torment(folder, sweep_of(lambdas, seeds), chance, counted)
        found = outcomes(folder)
        expect(len(found) == len(lambdas) * len(seeds), f"{folder}: {len(found)} runs")
        expect(all(found[name] == whole[name] for name in found), f"{folder}: another result than undisturbed")
        check_traces(folder, len(found))
        counted.sweeps, counted.runs = counted.sweeps + 1, counted.runs + len(found)
        counted.epochs += len(EPOCH.findall(output(folder)))
        print(f"{counted}", flush=True)
        shutil.rmtree(folder)
    return counted


def sweep_of(lambdas: Any, seeds: Any) -> str:
    return SWEEP.format(lambdas=",".join(lambdas), seeds=",".join(seeds))


def torment(folder: Path, arguments: str, chance: random.Random, counted: Killing) -> None:
    """Start processes and end them at random moments, and let the last one finish the sweep."""
    for _ in range(chance.randint(2, 5)):
        processes = [eat_run(folder, arguments) for _ in range(chance.randint(1, 3))]
        counted.processes += len(processes)
        for process in processes:
            process.join(chance.uniform(0.2, LONGEST_LIFE_S))
            number = chance.choice(SIGNALS)
            if process.exitcode is None and process.pid is not None:
                os.kill(process.pid, number)
            code = ended(process)
            # 1: at the end of its sweep, a run of a process that had just been killed was missing
            expect(code in {0, 1, 75, -signal.SIGKILL}, f"exit code {code}: {output(folder)[-2000:]}")
            counted.killed += code == -signal.SIGKILL
            counted.stopped += code == 75
    counted.processes += 1
    expect(finish(folder, arguments) == 0, output(folder)[-2000:])


def check_traces(folder: Path, runs: int) -> None:
    """No failure, no epoch twice (its line comes after its checkpoint), a whole table, nothing left over."""
    expect(" failed: " not in output(folder), f"{folder}: a run failed")
    often = [epoch for epoch, times in Counter(EPOCH.findall(output(folder))).items() if times > 1]
    expect(not often, f"{folder}: trained twice: {often}")
    table = (results(folder) / "summary.csv").read_text()
    expect(table.count(",finished,") == runs, f"{folder}: {table}")
    left = [path for path in folder.rglob("*") if path.name.endswith((".tmp", ".pt"))]
    expect(not left, f"{folder}: left over: {left}")


# --- many runs in one process ---


def many_runs(folder: Path, runs: int) -> Leaks:
    """A sweep of tiny runs; its process is looked at after every tenth part of them."""
    leaks, started = Leaks(runs), time.monotonic()
    process = eat_run(folder, TINY.format(runs=runs))
    while process.exitcode is None:
        done = sum(1 for _ in results(folder).glob("*/model.safetensors")) if results(folder).exists() else 0
        if done < runs and done >= (len(leaks.after_runs) + 1) * runs // 10:
            look(leaks, process.pid, done)
            print(f"{done} runs: {leaks.memory_mb[-1]:.0f} MB, {leaks.open_files[-1]} files", flush=True)
        process.join(0.5)
    leaks.seconds = time.monotonic() - started
    expect(process.exitcode == 0, output(folder)[-2000:])
    expect(len(outcomes(folder)) == runs, f"{folder}: {len(outcomes(folder))} runs")
    check_traces(folder, runs)
    grown = leaks.memory_mb[-1] - leaks.memory_mb[0]
    expect(grown <= ALLOWED_GROWTH_MB, f"memory grew by {grown:.0f} MB: {leaks.memory_mb}")
    for name, numbers in (("open files", leaks.open_files), ("threads", leaks.threads)):
        half = len(numbers) // 2
        expect(max(numbers[half:]) <= max(numbers[:half]), f"{name} grow: {numbers}")
    return leaks


def look(leaks: Leaks, pid: int | None, done: int) -> None:
    process = Path(f"/proc/{pid}")
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    leaks.after_runs.append(done)
    leaks.memory_mb.append(int(status["VmRSS"].split()[0]) / 1024)
    leaks.open_files.append(len(list((process / "fd").iterdir())))
    leaks.threads.append(int(status["Threads"]))


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
