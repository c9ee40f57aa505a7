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
from itertools import takewhile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from eat_runner.cli.errors import one_line_errors
from eat_runner.errors import CONTINUE_ME, UserError
from eat_runner.records import RENAMED

ROOT = Path(__file__).resolve().parents[1]
SAME_BYTES = {"model.safetensors", "layers.csv", "batches.csv", "predictions.csv.gz"}
KEYS_LEFT_OUT = {"timings", "machine", "versions", "git_commit", "config", "checksum"}
EMPTY: tuple[Any, ...] = (None, [], {}, "")

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", metavar="BEFORE", help="a commit")
    parser.add_argument("after", metavar="AFTER", nargs="?", help="a commit; without one, the working tree as it is")
    parser.add_argument("--quick", action="store_true", help="two tiny runs only")
    parser.add_argument("--output", type=Path, help="a new folder for runs and reports, which stay there")
    options = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):  # on the way out processes are ended and work trees removed
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    with one_line_errors("same_results"), ExitStack() as stack:
        place = options.output or Path(stack.enter_context(TemporaryDirectory(prefix="same-results-")))
        if options.output and place.exists():
            raise UserError(f"{place} is there already: name a new folder")
        commits = {"before": options.before, "after": options.after}
        trees = {name: stack.enter_context(work_tree(commit)) for name, commit in commits.items()}
        sides = [Side(name, tree, place.resolve() / name) for name, tree in trees.items()]
        for side in sides:
            side.work(options.quick)
        same = show(*sides)
    sys.exit(0 if same else 1)


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
                raise UserError(f"{commit}: {added.stderr.strip()}")
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
        for name, arguments in (QUICK_RUNS if quick else RUNS).items():
            if name == "compiled" and not any(map(shutil.which, [os.environ.get("CXX", ""), "g++", "clang++"])):
                print(f"{self.name}  {name}: left out, there is no C++ compiler", flush=True)
            else:
                self.command(name, "run", f"{arguments} {COMMON} name={name}")
        for name, code in () if quick else (("undisturbed", 0), ("resumed", CONTINUE_ME), ("resumed", 0)):
            self.command(name, "run", f"{LONG_RUN} {COMMON} name={name}", code)
        for name in QUICK_HARDWARE if quick else HARDWARE:
            self.command(f"report_{name}", "report", f"results --hardware {name} --output reports/{name}")

    def command(self, name: str, program: str, arguments: str, wanted: int = 0) -> None:
        """Run it to its end or, where that is ``wanted``, to a SIGTERM."""
        started, log = time.monotonic(), self.folder / f".{name}.log"
        environment = os.environ | {"PYTHONPATH": str(self.tree / "src"), "OMP_NUM_THREADS": "1"}
        environment["TORCHINDUCTOR_CACHE_DIR"] = str(self.folder.parent / ".compiled")
        command = [sys.executable, "-m", f"eat_runner.cli.{program}", *arguments.split()]
        with (
            log.open("ab") as out,
            subprocess.Popen(command, cwd=self.folder, env=environment, stdout=out, stderr=out) as process,
        ):
            try:
                if wanted == CONTINUE_ME:
                    stop_in_the_middle(process, self.folder / "results" / name)
                code = process.wait()
            finally:
                process.kill()  # where this script is stopped; nothing happens to one that has ended
        print(f"{self.name}  {name}: {time.monotonic() - started:.1f} s", flush=True)
        if code != wanted:
            last = (log.read_text(errors="replace").splitlines() or [""])[-1]
            self.wrong.append(f"{self.name}  {name}: exit code {code}, not {wanted}: {last}")


def stop_in_the_middle(process: subprocess.Popen[bytes], folder: Path) -> None:
    """SIGTERM in the middle of the second epoch: half an epoch's time after the first one's row in history.csv."""
    while process.poll() is None and not list(folder.glob("*/history.csv")):
        time.sleep(0.01)
    for history in folder.glob("*/history.csv"):
        time.sleep(pd.read_csv(history)["seconds"][0] / 2)
        process.terminate()


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
    here, there = ({path.name: path for path in folder.glob("[!.]*") if path.is_file()} for folder in (before, after))
    if not (here and there):
        return [f"only {'before' if here else 'after'}"]
    found: list[str] = []
    for name in sorted({*here, *there}):
        if name in here and name in there:
            first, *more = *differences(name, here[name].read_bytes(), there[name].read_bytes()), ""
            found += [f"{name}: {first}" + (f" and {len(more) - 1} more" if len(more) > 1 else "")] if first else []
        else:
            found.append(f"{name}: only {'before' if name in here else 'after'}")
    return found


def differences(name: str, before: bytes, after: bytes) -> Iterator[str]:
    """Of tables and records the values, to type and last digit, and the first byte where nothing else differs and all
    bytes should be the same. Of other files (configurations, plots) only the name is looked at."""
    one, other = (values(name, data) for data in (before, after))
    unequal = [key for key in sorted({**one, **other}) if one.get(key) != other.get(key)]
    for key in unequal:
        yield f"{key} {one.get(key, 'nothing')} → {other.get(key, 'nothing')}"
    if name in SAME_BYTES and before != after and not unequal:
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, after, strict=False)))
        yield f"byte {same} of {len(before)}, after of {len(after)}"


def values(name: str, data: bytes) -> dict[str, str]:
    """What is compared of a file, by place. A key of a record that came later and is empty says no more than one that
    is not there; columns and keys have their new names."""
    said: dict[str, Any] = {}
    if name.endswith(".csv"):
        table = pd.read_csv(io.BytesIO(data), dtype=str, keep_default_na=False).rename(columns=RENAMED["penalty"])
        said = table.drop(columns="seconds", errors="ignore").to_dict("list")
    elif name == "record.json":
        record = json.loads(data)
        record["meter"] = {RENAMED["meter"].get(key, key): value for key, value in record.get("meter", {}).items()}
        said = {key: value for key, value in record.items() if key not in KEYS_LEFT_OUT and value not in EMPTY}
    return dict(leaves(said))


def leaves(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Every value inside of lists and dicts, by its place."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inside:
        yield from leaves(item, f"{place} {key}".strip())
    if not inside:
        yield place, repr(value)


if __name__ == "__main__":
    main()
