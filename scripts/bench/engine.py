"""How things are measured: how large they are, processes that are fresh, and calls that take turns."""

import ctypes
import multiprocessing
import platform
import random
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from timeit import timeit

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.benchmark.utils.timer import timer

from eat_runner import models
from eat_runner.config import ModelConfig
from eat_runner.environment import keep_freed_memory

CLASSES = 10
M_MMAP_THRESHOLD = -3  # malloc.h

Samples = dict[str, NDArray[np.float64]]  # what was measured, under the names that the table's rows know


@dataclass(frozen=True)
class Network:
    """starts: how many fresh processes measure it. rounds: of training steps in each. few_rounds: of other things."""

    name: str
    width: int
    starts: int = 1
    rounds: int = 2
    few_rounds: int = 2

    def __str__(self) -> str:
        return f"{self.name} width {self.width}" if self.width else ""

    def build(self, image_size: int) -> models.Network:
        return models.build(ModelConfig(name=self.name, width=self.width), image_size, 3, CLASSES)


NO_NETWORK = Network("", 0)


@dataclass(frozen=True)
class Sizes:
    """networks: slim ResNet first. wide_networks: as wide as the paper's. metered: batches of an evaluation. augmented:
    images of a pass of the data path. looked_at: images of a training's look. per_class, epochs: of the whole of
    eat-run, on ten classes (one image in ten is cut off for validation). loop_steps: of a minimal loop's turn beside
    it. folders: for eat-report."""

    networks: tuple[Network, ...] = (Network("resnet18", 16, 5, 10, 9), Network("vgg16", 64, 2, 3, 3))
    wide_networks: tuple[Network, ...] = (Network("resnet18", 64, 2, 3),)
    image_size: int = 32
    batch: int = 64
    metered: int = 10
    augmented: int = 1024
    looked_at: int = 1000
    per_class: int = 1111
    epochs: int = 5
    loop_steps: int = 10
    folders: int = 10_000
    gpu_networks: tuple[Network, ...] = (Network("resnet18", 64), Network("vgg16", 64))
    gpu_batch: int = 512
    gpu_steps: int = 20
    gpu_images: int = 50_000


TINY = Sizes(
    networks=(Network("resnet18", 2, starts=2), Network("vgg11", 2)),
    wide_networks=(Network("resnet18", 4),),
    image_size=8,
    batch=4,
    metered=2,
    augmented=8,
    looked_at=8,
    per_class=10,
    epochs=1,
    loop_steps=2,
    folders=8,
    gpu_networks=(Network("resnet18", 2),),
    gpu_batch=4,
    gpu_steps=1,
    gpu_images=8,
)


def seconds(call: Callable[[], object], calls: int = 1) -> float:
    """Of one of so many calls in a row, without the garbage collector; waits for a GPU."""
    return timeit(call, timer=timer, number=calls) / calls


def interleaved(variants: Mapping[str, Callable[[], object]], rounds: int = 7, calls: int = 1) -> Samples:
    """Seconds a call, for each variant one value a round.

    Every variant runs once to warm up; then each round times ``calls`` calls of one variant after the other, in a
    random order (the same in every run), so that what changes on the machine, and what the one before leaves in the
    caches, meets all alike.
    """
    for call in variants.values():
        call()
    order, names = random.Random(0), list(variants)
    found: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        order.shuffle(names)
        for name in names:
            found[name].append(seconds(variants[name], calls))
    return {name: np.array(values) for name, values in found.items()}


def mean_of(samples: Samples, usual: str, special: str, every: int) -> NDArray[np.float64]:
    """The mean over ``every`` calls, one of which is the special one."""
    return (samples[special] + (every - 1) * samples[usual]) / every


def worker(keep_freed: bool = True) -> ProcessPoolExecutor:
    """A fresh process, set up like a run of eat-run with one thread, that stays for several calls. It has computed
    nothing yet, but torch is imported already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bench.sections", "torch._dynamo"])  # which optimisers import
    return ProcessPoolExecutor(1, context, set_up, (keep_freed,))


def set_up(keep_freed: bool = True) -> None:
    """As eat-run does before it trains, with one thread. keep_freed: False makes the allocator return what is freed."""
    torch.set_num_threads(1)
    if keep_freed:
        keep_freed_memory()
    elif platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 64 << 10)


def fresh(
    measure: Callable[[Network, Sizes], Samples],
    network: Network,
    sizes: Sizes,
    starts: int = 1,
    keep_freed: bool = True,
) -> Samples:
    """What ``measure`` finds in so many processes, one after the other, each of them fresh.

    Where a process happens to have its memory makes its steps a few percent faster or slower for as long as it lives:
    what is compared belongs into one process, and into several of them.
    """
    found: list[Samples] = []
    for _ in range(starts):
        with worker(keep_freed) as process:
            found.append(process.submit(measure, network, sizes).result())
    return {name: np.concatenate([samples[name] for samples in found]) for name in found[0]}
