"""The commands as a person runs them: the whole of eat-run, its --help, and eat-report on many folders."""

import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bench.baselines import Training, minimal_loop, training
from bench.figures import Figure, figure, interleaved, ratios
from bench.sizes import CLASSES, Sizes, label_of
from bench.training import plain_worker, worker
from eat_runner.config import DatasetConfig
from eat_runner.data import load

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
LAUNCHERS = ("hydra_joblib_launcher", "hydra_submitit_launcher")
TUNED, AS_WRITTEN = "minimal loop, set up alike", "minimal loop, torch's defaults"


def whole(sizes: Sizes) -> list[Figure]:
    """eat-run on one core while the minimal loops take turns on the other, so that both have the same neighbour."""
    network = sizes.networks[0]
    found: list[Figure] = []
    with tempfile.TemporaryDirectory() as folder:
        data_dir = Path(folder) / "data"
        write_images(data_dir, sizes)
        dataset = DatasetConfig(name="image_folder", image_size=sizes.image_size)
        images = len(load(dataset, data_dir, download=False).train)  # builds the store, which is not timed
        steps = max(images // sizes.batch, 1) * sizes.epochs
        seconds, loop_s = _beside_loops(eat_run(sizes, Path(folder)), network, sizes)
        for loop, step_s in loop_s.items():
            found.append(figure(f"eat-run / {loop}", label_of(network), [seconds / (s * steps) for s in step_s], 1.15))
        [record] = Path(folder).glob("results/bench/*/record.json")
        training_s = json.loads(record.read_text())["timings"]["training_s"]
        values = [training_s / (s * steps) for s in loop_s[TUNED]]
        found.append(figure(f"eat-run's training steps alone / {TUNED}", label_of(network), values))
        found.append(figure("eat-run", label_of(network), [seconds], unit="s"))
        found.append(figure("eat-run, all but its training steps", label_of(network), [seconds - training_s], unit="s"))
    return found


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


def eat_run(sizes: Sizes, folder: Path) -> list[str]:
    name, width = sizes.networks[0]
    return [
        str(BIN / "eat-run"),
        "dataset=image_folder",
        f"dataset.image_size={sizes.image_size}",
        f"data_dir={folder / 'data'}",
        f"results_dir={folder / 'results'}",
        "name=bench",
        f"model={name}",
        f"model.width={width}",
        f"trainer.epochs={sizes.epochs}",
        f"trainer.batch_size={sizes.batch}",
        "lambda=0",
        "device=cpu",
        "threads=1",
    ]


def _beside_loops(command: list[str], network: tuple[str, int], sizes: Sizes) -> tuple[float, dict[str, list[float]]]:
    """Seconds of the command, and seconds a step of each minimal loop, turn by turn while it runs."""
    with worker() as tuned, plain_worker() as as_written, ThreadPoolExecutor(1) as beside:
        loops = {TUNED: (tuned, True), AS_WRITTEN: (as_written, False)}
        for loop, channels_last in loops.values():
            loop.submit(_loop_s, network, sizes, channels_last).result()
        running = beside.submit(run, command)
        seconds: dict[str, list[float]] = {name: [] for name in loops}
        while not running.done():
            for name, (loop, channels_last) in loops.items():
                seconds[name].append(loop.submit(_loop_s, network, sizes, channels_last).result())
        return running.result()[0], seconds


def _loop_s(network: tuple[str, int], sizes: Sizes, channels_last: bool) -> float:
    """Seconds a step, over a few steps."""
    t, images, labels = _in_memory(network, sizes, channels_last)
    started = time.perf_counter()
    minimal_loop(t, images, labels, sizes.thread_steps)
    return (time.perf_counter() - started) / sizes.thread_steps


@cache
def _in_memory(network: tuple[str, int], sizes: Sizes, channels_last: bool) -> tuple[Training, Tensor, Tensor]:
    t = training(network, sizes.image_size, sizes.batch, channels_last=channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    count = max(sizes.per_class * CLASSES, sizes.batch)
    images = torch.randn(count, 3, sizes.image_size, sizes.image_size).contiguous(memory_format=layout)
    return t, images, torch.randint(CLASSES, (count,))


def help_text(sizes: Sizes) -> list[Figure]:
    """Wall time of eat-run --help against that of importing Hydra. Launcher plugins would be imported too."""
    variants = {
        "help": partial(run, [str(BIN / "eat-run"), "--help"]),
        "hydra": partial(run, [sys.executable, "-c", "import hydra"]),
    }
    seconds = interleaved(variants, sizes.help_runs)
    plugins = any(importlib.util.find_spec(f"hydra_plugins.{name}") for name in LAUNCHERS)
    suffix = " (with launcher plugins)" if plugins else ""
    values = ratios(seconds["help"], seconds["hydra"])
    return [
        figure(f"eat-run --help / importing hydra{suffix}", "", values, 2),
        figure("eat-run --help", "", seconds["help"], unit="s"),
    ]


def report(sizes: Sizes) -> list[Figure]:
    """eat-report on many run folders, collated as they were priced and priced again: wall time and peak memory."""
    name = f"eat-report on {sizes.folders:,} run folders"
    found: list[Figure] = []
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder) / "runs"
        run([sys.executable, str(ROOT / "tests" / "run_folders.py"), str(runs), str(sizes.folders)])
        for suffix, options in (("", []), (", priced again", ["--hardware", "fused_45nm"])):
            seconds, peak = run([str(BIN / "eat-report"), str(runs), "--output", f"{folder}/report", *options])
            found.append(figure(f"{name}{suffix}", "", [seconds], 30, unit="s"))
            found.append(figure(f"{name}{suffix}, peak memory of a process", "", [peak / 1e6], 1000, unit="MB"))
    return found


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
