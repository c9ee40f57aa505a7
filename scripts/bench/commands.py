"""The commands as a person runs them: the whole of eat-run, its --help, and eat-report on many folders."""

import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bench.baselines import Training, minimal_loop, training
from bench.figures import Figure, Seconds, figure, interleaved
from bench.sizes import CLASSES, Sizes
from bench.training import worker
from eat_runner.config import DatasetConfig
from eat_runner.data import load
from eat_runner.records import RunFolder

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
LAUNCHERS = ("hydra_joblib_launcher", "hydra_submitit_launcher")
TUNED, AS_WRITTEN = "minimal loop, set up alike", "minimal loop, torch's defaults"
LAYOUTS = {TUNED: torch.channels_last, AS_WRITTEN: torch.contiguous_format}
WHOLE = (
    "dataset=image_folder dataset.image_size={s.image_size} model={network.name} model.width={network.width} "
    "name=bench trainer.epochs={s.epochs} trainer.batch_size={s.batch} lambda=0 device=cpu threads=1"
)


def whole(sizes: Sizes) -> Iterator[Figure]:
    """eat-run on one core while the minimal loops take turns on the other, so that both have the same neighbour."""
    network = sizes.networks[0]
    with tempfile.TemporaryDirectory() as folder:
        data_dir, results = Path(folder) / "data", Path(folder) / "results"
        write_images(data_dir, sizes)
        dataset = DatasetConfig(name="image_folder", image_size=sizes.image_size)
        images = len(load(dataset, data_dir, download=False).train)  # builds the store, which is not timed
        steps = max(images // sizes.batch, 1) * sizes.epochs
        arguments = WHOLE.format(s=sizes, network=network).split()
        command = [str(BIN / "eat-run"), *arguments, f"data_dir={data_dir}", f"results_dir={results}"]
        seconds, step_s = _beside_loops(command, sizes)
        [run_folder] = (results / "bench").glob("*/record.json")
        training_s = RunFolder(run_folder.parent).read_record().timings["training_s"] or 0.0
    for loop in step_s:
        yield figure(f"eat-run / {loop}", network, seconds / (step_s[loop] * steps), 1.15)
    yield figure(f"eat-run's training steps alone / {TUNED}", network, training_s / (step_s[TUNED] * steps))
    yield figure("eat-run", network, seconds, unit="s")
    yield figure("eat-run, all but its training steps", network, seconds - training_s, unit="s")


def write_images(folder: Path, sizes: Sizes) -> None:
    """Ten classes that can be told apart: a colour and a place each, and noise."""
    rng, size = np.random.default_rng(0), sizes.image_size
    for split, count in (("train", sizes.per_class), ("test", max(sizes.per_class // 10, 2))):
        for label in range(CLASSES):
            target = folder / split / f"class{label}"
            target.mkdir(parents=True)
            images = rng.integers(0, 128, (count, size, size, 3), dtype=np.uint8)
            start = label * (size // 2) // CLASSES
            images[:, start : start + size // 2, :, label % 3] += 64
            for number, image in enumerate(images):
                Image.fromarray(image).save(target / f"{number:04d}.png", compress_level=1)


def _beside_loops(command: list[str], sizes: Sizes) -> tuple[float, Seconds]:
    """Seconds of the command, and seconds a step of each minimal loop, turn by turn while it runs."""
    with worker() as tuned, worker(keep_freed=False) as as_written, ThreadPoolExecutor(1) as beside:
        loops = {TUNED: tuned, AS_WRITTEN: as_written}
        for name, loop in loops.items():
            loop.submit(_loop_s, sizes, LAYOUTS[name]).result()
        running = beside.submit(run, command)
        seconds: dict[str, list[float]] = {name: [] for name in loops}
        while not running.done():
            for name, loop in loops.items():
                seconds[name].append(loop.submit(_loop_s, sizes, LAYOUTS[name]).result())
        return running.result()[0], {name: np.array(values) for name, values in seconds.items()}


def _loop_s(sizes: Sizes, layout: torch.memory_format) -> float:
    """Seconds a step, over a few steps."""
    t, images, labels = _in_memory(sizes, layout)
    started = time.perf_counter()
    minimal_loop(t, images, labels, sizes.thread_steps)
    return (time.perf_counter() - started) / sizes.thread_steps


@cache
def _in_memory(sizes: Sizes, layout: torch.memory_format) -> tuple[Training, Tensor, Tensor]:
    t = training(sizes.networks[0], sizes, channels_last=layout == torch.channels_last)
    count = max(sizes.per_class * CLASSES, sizes.batch)
    images = torch.randn(count, 3, sizes.image_size, sizes.image_size).contiguous(memory_format=layout)
    return t, images, torch.randint(CLASSES, (count,))


def help_text(_: Sizes) -> Iterator[Figure]:
    """Wall time of eat-run --help against that of importing Hydra. Launcher plugins would be imported too."""
    help_, hydra = [str(BIN / "eat-run"), "--help"], [sys.executable, "-c", "import hydra"]
    seconds = interleaved({"help": partial(run, help_), "hydra": partial(run, hydra)})
    plugins = any(importlib.util.find_spec(f"hydra_plugins.{name}") for name in LAUNCHERS)
    suffix = " (with launcher plugins)" if plugins else ""
    yield figure(f"eat-run --help / importing hydra{suffix}", "", seconds["help"] / seconds["hydra"], 2)
    yield figure("eat-run --help", "", seconds["help"], unit="s")


def report(sizes: Sizes) -> Iterator[Figure]:
    """eat-report on many run folders, collated as they were priced and priced again: wall time and peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        runs = f"{folder}/runs"
        run([sys.executable, str(ROOT / "tests" / "run_folders.py"), runs, str(sizes.folders)])
        for suffix, options in (("", []), (", priced again", ["--hardware", "fused_45nm"])):
            seconds, peak = run([str(BIN / "eat-report"), runs, "--output", f"{folder}/report", *options])
            name = f"eat-report on {sizes.folders:,} run folders{suffix}"
            yield figure(name, "", seconds, 30, unit="s")
            yield figure(f"{name}, peak memory of a process", "", peak / 1e6, 1000, unit="MB")


# A process that a large one starts counts the large one's memory as its own peak; this small one stands between them.
BETWEEN = """
import json, resource, subprocess, sys, time
started = time.perf_counter()
code = subprocess.run(sys.argv[1:], stdout=sys.stderr).returncode
seconds = time.perf_counter() - started
print(json.dumps([code, seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss]))
"""


def run(command: list[str]) -> tuple[float, int]:
    """Run a command that must succeed: seconds, and its peak memory in bytes."""
    between = subprocess.run([sys.executable, "-c", BETWEEN, *command], capture_output=True, text=True, check=True)
    code, seconds, peak = json.loads(between.stdout)
    if code:
        raise RuntimeError(f"{' '.join(command)} ended with {code}:\n{between.stderr[-2000:]}")
    return seconds, peak * (1 if sys.platform == "darwin" else 1024)
