"""Do two commits give the same results, to the bit? ``python scripts/same_results.py BEFORE [AFTER]``

Small trainings with fixed seeds in a temporary work tree of each commit, one of them stopped and continued, then
reports under several price lists. Weights and counts are compared byte by byte, tables and records value by value;
times, versions, the machine and the configuration are left out.
Exit code 0 if all is the same, 1 if something differs or a command fails, 2 for bad input.
"""

import argparse
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

import pandas as pd

from eat_runner.records import RENAMED

ROOT = Path(__file__).resolve().parents[1]
SAME_BYTES = {"model.safetensors", "layers.csv", "batches.csv", "predictions.csv.gz"}
KEYS_LEFT_OUT = {"timings", "machine", "versions", "git_commit", "config", "checksum"}

# folder: what is run in it
RUNS = {
    "scopes": "-m lambda=0,1 penalty.scope=leaf_modules,activations seed=0,1 trainer.epochs=3",
    "vgg": "-m lambda=0,1 model=vgg11 model.head=linear,imagenet trainer.epochs=2",
    "bf16": "-m lambda=0,1 trainer.precision=bf16 trainer.epochs=2 dataset.train_limit=512",
    "learning_rates": "-m trainer.lr_schedule=exponential,onecycle,cosine,constant trainer.epochs=3",
    "schedules": "-m schedule=constant,linear,cosine,step,exponential schedule.every_epochs=1 trainer.epochs=3",
    "weightings": "-m lambda=2 penalty.weighting=layer_mean,elements,parameters trainer.epochs=2",
    "no_validation": "-m lambda=0,1 dataset.validation=0 trainer.epochs=2 dataset.train_limit=512",
    "evaluate_every": "trainer.evaluate_every=2 trainer.epochs=3 dataset.train_limit=512",
    "compiled": "trainer.compile=on model=vgg11 trainer.epochs=1 dataset.train_limit=256",
}
# run twice: undisturbed, and stopped and continued
LONG_RUN = "schedule=cosine dataset.crop_padding=1 dataset.rotation_degrees=5 trainer.epochs=4 trainer.batch_size=16"
HARDWARE = ["published", "fused_45nm", "fused_7nm_int8", "eyeriss_65nm"]
QUICK_RUNS, QUICK_HARDWARE = {"quick": "-m lambda=0,1 trainer.epochs=1 dataset.train_limit=128"}, ["published"]
COMMON = "device=cpu threads=1 model.width=8"

BAD_INPUT, CONTINUE_ME = 2, 75


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", metavar="BEFORE", help="a commit")
    parser.add_argument("after", metavar="AFTER", nargs="?", help="a commit; without one, the working tree as it is")
    parser.add_argument("--quick", action="store_true", help="two tiny runs only")
    parser.add_argument("--output", type=Path, help="a new folder for runs and reports, which stay there")
    options = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):  # on the way out processes are ended and work trees removed
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    with ExitStack() as stack:
        place = options.output or Path(stack.enter_context(TemporaryDirectory(prefix="same-results-")))
        if options.output and place.exists():
            refuse(f"{place} is there already: name a new folder")
        commits = {"before": options.before, "after": options.after}
        trees = {name: stack.enter_context(work_tree(commit)) for name, commit in commits.items()}
        before, after = (Side(name, tree, place.resolve() / name) for name, tree in trees.items())
        before.work(options.quick)
        after.work(options.quick)
        same = show(before, after)
    sys.exit(0 if same else 1)


def refuse(message: str) -> NoReturn:
    print(f"same_results: {message}", file=sys.stderr)
    sys.exit(BAD_INPUT)


@contextmanager
def work_tree(commit: str | None) -> Generator[Path]:
    """A temporary work tree of a commit; this one if None."""
    if commit is None:
        yield ROOT
        return
    with TemporaryDirectory(prefix="same-results-tree-") as folder:
        tree = Path(folder).resolve() / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        try:
            added = subprocess.run([*git, "add", "--detach", tree, commit], capture_output=True, text=True)
            if added.returncode:
                refuse(f"{commit}: {added.stderr.strip()}")
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", tree], capture_output=True)


# --- running ---


@dataclass
class Side:
    """One of two commits. tree: its source. folder: where it works; what is hidden in it is no result.
    wrong: which commands did not end as they should."""

    name: str
    tree: Path
    folder: Path
    wrong: list[str] = field(default_factory=list[str])

    def work(self, quick: bool) -> None:
        """Do all runs and reports, with a line for each command."""
        self.folder.mkdir(parents=True)
        self.command("conf", "run", "--info searchpath")
        if f"file://{self.tree / 'conf'} " not in self.log("conf").read_text():
            refuse(f"{self.name}: eat-run does not read {self.tree / 'conf'}: {self.last_line('conf')}")
        for name, arguments in (QUICK_RUNS if quick else RUNS).items():
            if name == "compiled" and not any(map(shutil.which, [os.environ.get("CXX", ""), "g++", "clang++"])):
                print(f"{self.name}  {name}: left out, there is no C++ compiler", flush=True)
            else:
                self.eat_run(name, arguments)
        if not quick:
            for name, code in (("undisturbed", 0), ("resumed", CONTINUE_ME), ("resumed", 0)):
                self.eat_run(name, LONG_RUN, code)
            times = self.log("resumed").read_text().count("  epoch 1 ")
            self.expect(times == 1, f"resumed: the first epoch was trained {times} times")
        for name in QUICK_HARDWARE if quick else HARDWARE:
            self.command(f"report_{name}", "report", f"results --hardware {name} --output reports/{name}")

    def eat_run(self, name: str, arguments: str, wanted: int = 0) -> None:
        """``eat-run`` with the name NAME; with the old names of keys if this commit does not know the new ones."""
        known = (self.tree / "conf" / "penalty" / "l0.yaml").read_text()
        for old, new in RENAMED["penalty"].items():
            if f"\n{new}:" not in known:
                arguments = arguments.replace(f"penalty.{new}=", f"penalty.{old}=")
        self.command(name, "run", f"{arguments} {COMMON} name={name}", wanted)

    def command(self, name: str, program: str, arguments: str, wanted: int = 0) -> None:
        """Run it to its end or, where that is ``wanted``, to a SIGTERM."""
        started = time.monotonic()
        environment = os.environ | {"PYTHONPATH": str(self.tree / "src"), "OMP_NUM_THREADS": "1"}
        environment["TORCHINDUCTOR_CACHE_DIR"] = str(self.folder.parent / ".compiled")
        command = [sys.executable, "-m", f"eat_runner.cli.{program}", *arguments.split()]
        with (
            self.log(name).open("ab") as log,
            subprocess.Popen(command, cwd=self.folder, env=environment, stdout=log, stderr=log) as process,
        ):
            try:
                if wanted == CONTINUE_ME:
                    self.stop_in_the_middle(process, self.folder / "results" / name)
                code = process.wait()
            finally:
                process.kill()  # where this script is stopped; nothing happens to one that has ended
        print(f"{self.name}  {name}: {time.monotonic() - started:.1f} s", flush=True)
        self.expect(code == wanted, f"{name}: exit code {code}, not {wanted}: {self.last_line(name)}")

    def stop_in_the_middle(self, process: subprocess.Popen[bytes], folder: Path) -> None:
        """SIGTERM in the middle of the second epoch: half an epoch's time after the first one's row in history.csv."""
        while process.poll() is None and not list(folder.glob("*/history.csv")):
            time.sleep(0.01)
        for history in folder.glob("*/history.csv"):
            first_s = pd.read_csv(history)["seconds"][0]
            time.sleep(first_s / 2)
            process.terminate()
            if process.wait() == CONTINUE_ME:
                training_s = json.loads((history.parent / "record.json").read_bytes())["timings"]["training_s"]
                begun_s = training_s - pd.read_csv(history)["seconds"].sum()  # in the epoch under way
                self.expect(begun_s > first_s / 10, f"resumed: stopped {begun_s:.3f} s after the start of an epoch")

    def expect(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.wrong.append(f"{self.name}  {otherwise}")

    def log(self, name: str) -> Path:
        return self.folder / f".{name}.log"

    def last_line(self, name: str) -> str:
        return (self.log(name).read_text(errors="replace").splitlines() or [""])[-1]


# --- comparing ---


def show(before: Side, after: Side) -> bool:
    """Compare all folders with a line for each, and say what was compared; True if all is the same."""
    pairs = {name: (before.folder / name, after.folder / name) for name in folders(before.folder, after.folder)}
    for side in (before, after):
        for run in sorted(side.folder.glob("results/undisturbed/*/")):
            pairs[f"{side.name}: undisturbed, resumed"] = run, side.folder / "results" / "resumed" / run.name
    found = {name: compare(*pair) for name, pair in pairs.items()}
    for name, said in found.items():
        print(f"{name}  {'; '.join(said) or 'same'}")
    wrong, different = before.wrong + after.wrong, sum(map(bool, found.values()))
    print(*wrong, *about(before, after), sep="\n")
    print(f"{different} of {len(found)} folders differ, {len(wrong)} commands went wrong")
    return bool(found) and not different and not wrong


def about(*sides: Side) -> list[str]:
    """The commits that ran, versions and machines, as the records have them."""
    records = {side.name: json.loads(path.read_bytes()) for side in sides for path in side.folder.rglob("record.json")}
    commits = [f"{name}  {record['git_commit']}" for name, record in records.items()]
    return commits + sorted({str(record[key]) for record in records.values() for key in ("versions", "machine")})


def folders(before: Path, after: Path) -> list[str]:
    """The folders below either that hold files, by their paths in there; hidden ones left out."""
    below = [path.relative_to(root) for root in (before, after) for path in root.rglob("*") if path.is_file()]
    return sorted({str(path.parent) for path in below if not any(part.startswith(".") for part in path.parts)})


def compare(before: Path, after: Path) -> list[str]:
    """What differs between two folders: a line for each file that does."""
    here, there = ({path.name for path in folder.glob("[!.]*") if path.is_file()} for folder in (before, after))
    if not (here and there):
        return [f"only {'before' if here else 'after'}"]
    found = [f"{name}: only {'before' if name in here else 'after'}" for name in sorted(here ^ there)]
    for name in sorted(here & there):
        said = list(file_differences(name, (before / name).read_bytes(), (after / name).read_bytes()))
        more = f" and {len(said) - 1} more" if len(said) > 1 else ""
        found += [f"{name}: {said[0]}{more}"] if said else []
    return found


def file_differences(name: str, before: bytes, after: bytes) -> Iterator[str]:
    """Of tables and records the values, and the first byte where nothing else differs and all bytes should be the same.
    Of other files (configurations, plots) only the name is looked at."""
    said: list[str] = []
    if values := columns if name.endswith(".csv") else said_in if name == "record.json" else None:
        yield from (said := list(differences(values(before), values(after))))
    if name in SAME_BYTES and before != after and not said:
        unequal = (i for i, (one, other) in enumerate(zip(before, after, strict=False)) if one != other)
        yield f"byte {next(unequal, min(len(before), len(after)))} of {len(before)}, after of {len(after)}"


def said_in(record: bytes) -> dict[str, Any]:
    """What is compared of a record. A key that came later and is empty says no more than one that is not there."""
    said = json.loads(record)
    said["meter"] = {RENAMED["meter"].get(key, key): value for key, value in said.get("meter", {}).items()}
    return {key: value for key, value in said.items() if key not in KEYS_LEFT_OUT and value not in (None, [], {}, "")}


def columns(table: bytes) -> dict[str, list[str]]:
    """The columns of a CSV file that are compared, as they are written, under their new names."""
    cells = pd.read_csv(io.BytesIO(table), dtype=str, keep_default_na=False).rename(columns=RENAMED["penalty"])
    return cells.drop(columns="seconds", errors="ignore").to_dict("list")


def differences(before: Any, after: Any, where: str = "") -> Iterator[str]:
    """Names that only one side has, and values that are not of the same type and printed alike, to the last digit."""
    if isinstance(before, list) and isinstance(after, list):
        if len(before) != len(after):
            yield f"{where}{len(before)} values, after {len(after)}"
        for i, (one, other) in enumerate(zip(before, after, strict=False)):
            yield from differences(one, other, f"{where}[{i}] ")
    elif isinstance(before, dict) and isinstance(after, dict):
        sides = {"before": before.keys() - after.keys(), "after": after.keys() - before.keys()}
        only = [f"only {side} {' '.join(sorted(names))}" for side, names in sides.items() if names]
        yield from [where + ", ".join(only)] if only else []
        for name in sorted(before.keys() & after.keys()):
            yield from differences(before[name], after[name], f"{where}{name} ")
    elif repr(before) != repr(after):
        yield f"{where}{before} → {after}"


if __name__ == "__main__":
    main()
