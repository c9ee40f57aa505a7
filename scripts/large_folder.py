"""A folder of images that is larger than memory: made, then read and trained with under a limit of memory.

``python scripts/large_folder.py FOLDER [--gigabytes 20] [--limit 2] [--output FILE.csv]``: FOLDER needs room for twice
the images. The limit is a control group's (of all memory, what the kernel keeps of files included), which needs root.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from eat_runner.config import DatasetConfig
from eat_runner.data import load
from eat_runner.data.ahead import ahead
from eat_runner.data.batches import READ_AHEAD, training_batches
from eat_runner.environment import git_commit, machine, versions

SIZE, CLASSES, BATCH = 224, 10, 256
BYTES = 3 * SIZE * SIZE  # of an image
CONFIG = DatasetConfig(name="image_folder", image_size=SIZE, validation=0.01, crop_padding=0, flip=True)
GROUPS = {"memory/large_folder": "memory.limit_in_bytes", "large_folder": "memory.max"}  # of version 1 and 2


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gigabytes", type=float, default=20.0)
    parser.add_argument("--limit", type=float, default=2.0, help="gigabytes of memory")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(measured(options.step, options.folder)))
        return
    make(options.folder, int(options.gigabytes * 1e9 / BYTES))
    with limited(options.limit) as group:
        found = [alone(step, options.folder, group) for step in STEPS]
    facts = {
        "gigabytes": options.gigabytes,
        "limit_gb": options.limit,
        "machine": json.dumps(machine(torch.device("cpu"))),
    }
    table = pd.DataFrame(found).assign(**facts, versions=json.dumps(versions()), git_commit=git_commit())
    print(table.iloc[:, :6].to_string(index=False, float_format="%.4g"))
    if options.output:
        table.to_csv(options.output, index=False, float_format="%.4g", lineterminator="\n")


def make(folder: Path, images: int) -> None:
    """Noise as .ppm files, one in a hundred for the test, and one of each class at least."""
    draw, header, tests = np.random.default_rng(0), f"P6 {SIZE} {SIZE} 255\n".encode(), max(images // 100, CLASSES)
    for split, count in (("train", images - tests), ("test", tests)):
        for label in range(CLASSES):
            (folder / split / f"{label}").mkdir(parents=True, exist_ok=True)
        for number in range(count):
            path = folder / split / f"{number % CLASSES}" / f"{number:07d}.ppm"
            if not path.exists():
                path.write_bytes(header + draw.bytes(BYTES))


@contextmanager
def limited(gigabytes: float) -> "Generator[Path]":
    """A control group with so much memory."""
    root = Path("/sys/fs/cgroup")
    name = next(name for name in GROUPS if (root / name).parent.joinpath("cgroup.procs").exists())
    group = root / name
    group.mkdir(exist_ok=True)
    (group / GROUPS[name]).write_text(str(int(gigabytes * 1e9)))
    try:
        yield group
    finally:
        group.rmdir()


def alone(step: str, folder: Path, group: Path) -> dict[str, Any]:
    """What a step in a process of its own says of itself; without what the kernel keeps of the files before it."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("1")
    command = [sys.executable, __file__, str(folder), "--step", step]
    joins = lambda: (group / "cgroup.procs").write_text(str(os.getpid()))  # noqa: E731
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, preexec_fn=joins)
    return json.loads(done.stdout.splitlines()[-1])


def measured(step: str, folder: Path) -> dict[str, Any]:
    """own_mb: the most memory that was the process's own, not a part of a file, beyond what it had at the start."""
    ended, before = threading.Event(), own_bytes()
    most = [before]

    def watch() -> None:
        while not ended.wait(0.05):
            most[0] = max(most[0], own_bytes())

    watching = threading.Thread(target=watch)
    watching.start()
    images, seconds = STEPS[step](folder)
    ended.set()
    watching.join()
    rate = images / seconds
    rate = images / seconds
    own_mb = (most[0] - before) / 1e6
    found = {"step": step, "images": images, "seconds": seconds, "images_per_second": rate}
    return found | {"mb_per_second": rate * BYTES / 1e6, "own_mb": own_mb}


def own_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024


def build(folder: Path) -> tuple[int, float]:
    """The store, or, where it is there, its check."""
    started = time.perf_counter()
    found = load(CONFIG, folder, False)
    return len(found.train) + len(found.validation) + len(found.test), time.perf_counter() - started


def read(folder: Path) -> tuple[int, float]:
    """Each training image once, in random order, in batches, by one thread."""
    train = load(CONFIG, folder, False).train
    order = np.random.default_rng(0).permutation(len(train))
    started = time.perf_counter()
    images = sum(len(train.pixels(order[start : start + BATCH])) for start in range(0, len(train), BATCH))
    return images, time.perf_counter() - started


def read_by_threads(folder: Path) -> tuple[int, float]:
    """The same as for a device that does not hold all images."""
    train = load(CONFIG, folder, False).train
    order = np.random.default_rng(0).permutation(len(train))
    places = [order[start : start + BATCH] for start in range(0, len(train), BATCH)]
    started = time.perf_counter()
    with ThreadPoolExecutor(READ_AHEAD) as pool:
        images = sum(map(len, ahead(pool, train.pixels, places, READ_AHEAD)))
    return images, time.perf_counter() - started


def epoch(folder: Path) -> tuple[int, float]:
    """All batches of an epoch as a training on the CPU gets them."""
    found = load(CONFIG, folder, False)
    batches = training_batches(found.train, CONFIG, BATCH, found.mean, found.std, 0, 0, torch.device("cpu"))
    started = time.perf_counter()
    return sum(len(labels) for _, labels in batches), time.perf_counter() - started


STEPS = {"build": build, "check": build, "read": read, "read ahead": read_by_threads, "epoch": epoch}

if __name__ == "__main__":
    main()
