"""Training steps: what the penalty adds in time and memory, in eager mode and compiled, with one thread and two."""

import ctypes
import gc
import multiprocessing
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, suppress
from functools import cache, partial
from multiprocessing.context import BaseContext
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from bench.baselines import Training, plain_step, training, two_pass_step
from bench.figures import Figure, Seconds, figure, interleaved
from bench.sizes import Network, Sizes
from eat_runner.config import L0Config
from eat_runner.environment import keep_freed_memory
from eat_runner.methods.base import Progress
from eat_runner.penalties.base import Penalty
from eat_runner.penalties.observer import Observer
from eat_runner.taps import Call, tap
from eat_runner.train.loop import STEPS_BETWEEN_PENALTIES
from eat_runner.train.step import Step, StepResult

LAMBDA = 1.0
SIGMA = L0Config().sigma
SCOPES = {"activation outputs": "activations", "all leaf modules": "leaf_modules"}

# by network: goal, stretch
STEP_GOALS = {
    "activation outputs": ((1.07, 1.05), (1.07, 1.05)),
    "all leaf modules": ((1.20, None), (1.08, None)),
}
TWO_PASS_GOALS, COMPILED_GOALS = (0.40, 0.45), (0.85, 1.0)
MEMORY_GOALS = {"all leaf modules": 1.25}

# where the time of a convolution is spent, by torch's names, with and without oneDNN
CONVOLUTIONS = ("aten::mkldnn_convolution", "aten::_slow_conv2d_forward", "aten::convolution_backward")


def observer_of(t: Training, scope: str, in_backward: bool = True) -> Observer:
    """To be entered around the steps, and before compiling."""
    return Observer(t.model, L0Config(scope=scope, sigma=SIGMA), t.x_nchw[:2], in_backward)


def step_of(t: Training, penalty: Penalty) -> Callable[..., StepResult]:
    """eat-run's own training step, on the batch in memory: without data and reports. Called with value=True it takes
    the penalty's value, as one step in STEPS_BETWEEN_PENALTIES does."""
    step = Step(forward=t.forward, optimizer=t.optimizer, penalty=penalty, autocast=t.autocast)
    return partial(step, t.x_nchw, t.labels, LAMBDA, Progress(0, 1, 1))


def eager(sizes: Sizes) -> Iterator[Figure]:
    """Penalty against no penalty, and against the two-pass step, step by step in turn, in several processes, each of
    them fresh.

    All steps in one process: where a process happens to have its memory makes its steps a few percent faster or slower
    for as long as it lives, and kinds of step with a process each would differ by that.
    """
    for i, network in enumerate(sizes.networks):
        starts: list[Seconds] = []
        for _ in range(network.fresh_starts):
            with worker() as process:
                starts.append(process.submit(_time_variants, network, sizes).result())
        seconds = {name: np.concatenate([start[name] for start in starts]) for name in starts[0]}
        plain, two_passes = seconds["plain"], seconds["two passes"]
        n = STEPS_BETWEEN_PENALTIES
        ours = {name: (seconds[f"{name}, with value"] + (n - 1) * seconds[name]) / n for name in SCOPES}
        for name in SCOPES:
            values, goals = ours[name] / plain, STEP_GOALS[name][i]
            yield figure(f"training step, penalty on {name} / plain step (a)", network, values, *goals)
        for name in SCOPES:
            values = 1 + seconds[f"addition to {name}"] / plain
            yield figure(f"plain step and one addition to {name} / plain step (a)", network, values)
        values = ours["all leaf modules"] / two_passes
        yield figure("our step with all leaf modules / two-pass step (b)", network, values, TWO_PASS_GOALS[i])
        yield figure("two-pass step (b) / plain step (a)", network, two_passes / plain)
        yield figure("plain step (a)", network, sizes.batch / plain, unit="images/s")


def _time_variants(network: Network, sizes: Sizes) -> Seconds:
    """In a worker, which ends with its hooks: the observers stay attached. Each kind of step has its own network."""
    copies = {name: training(network, sizes) for name in ("plain", "two passes", *SCOPES)}
    steps: dict[str, Callable[[], object]] = {
        "plain": partial(plain_step, copies["plain"]),
        "two passes": partial(two_pass_step, copies["two passes"], SIGMA, LAMBDA),
    }
    for name, scope in SCOPES.items():
        step = step_of(copies[name], observer_of(copies[name], scope).__enter__())
        steps |= {name: step, f"{name}, with value": partial(step, value=True)}
    for name, scope in SCOPES.items():
        steps[f"addition to {name}"] = _addition(network, sizes, scope)
    return interleaved(steps, network.rounds)


def _addition(network: Network, sizes: Sizes, scope: str) -> Callable[[], None]:
    """The least that a penalty could cost: reading every penalised output of a step and its gradient once, and writing
    the gradient."""
    t = training(network, sizes)
    pairs: list[tuple[Tensor, Tensor]] = []

    def keep(call: Call) -> None:
        if call.is_activation or scope == "leaf_modules":
            pairs.append((torch.zeros_like(call.output), call.output.clone()))

    with torch.no_grad(), tap(t.model, keep, functional=False):
        t.model(t.x_nchw)

    def add() -> None:
        for gradient, x in pairs:
            gradient.add_(x)

    return add


# --- compiled ------------------------------------------------------------------------------------------------------


def compiled(sizes: Sizes) -> Iterator[Figure]:
    """The compiled step with the penalty. Both networks are compiled at once, then measured one after the other."""
    with ExitStack() as stack:
        spawning = multiprocessing.get_context("spawn")  # compilers start processes of their own
        workers = [stack.enter_context(worker(context=spawning)) for _ in sizes.networks]
        waiting = [w.submit(_compile, n, sizes) for w, n in zip(workers, sizes.networks, strict=True)]
        compile_s = [future.result() for future in waiting]
        for i, network in enumerate(sizes.networks):
            seconds, convolutions = workers[i].submit(_time_compiled, network, sizes).result()
            plain, penalised, ours = seconds["plain"], seconds["eager"], seconds["compiled"]
            goal = COMPILED_GOALS[i]
            yield figure("compiled step with the penalty / plain eager step (a)", network, ours / plain, goal)
            yield figure("compiled plain step / plain eager step (a)", network, seconds["compiled, plain"] / plain)
            yield figure("convolutions' part of a plain eager step (a)", network, convolutions)
            yield figure("compiled step / eager step, both penalised", network, ours / penalised)
            yield figure("compilation, both networks at once", network, compile_s[i], unit="s")
            if (gained := np.median(penalised - ours)) > 0:
                yield figure("steps after which compiling pays", network, compile_s[i] / gained, unit="steps")


def look_at_hooks() -> None:
    """Copies of a network differ in their observers alone; without this one's graph is taken for all of them."""
    torch._dynamo.config.skip_nnmodule_hook_guards = False  # pyright: ignore[reportPrivateUsage]


@cache
def _compiled_variants(network: Network, sizes: Sizes) -> dict[str, Callable[[], object]]:
    """In a worker, which ends with its hooks: the observers stay attached."""
    look_at_hooks()
    plain, eager, compiled, compiled_plain = (training(network, sizes) for _ in range(4))
    observer = observer_of(eager, "leaf_modules").__enter__()
    in_the_loss = observer_of(compiled, "leaf_modules", in_backward=False).__enter__()
    return {
        "plain": partial(plain_step, plain),
        "eager": step_of(eager, observer),
        "compiled": step_of(compiled.compiled(), in_the_loss),
        "compiled, plain": partial(plain_step, compiled_plain.compiled()),
    }


def _compile(network: Network, sizes: Sizes) -> float:
    """Seconds of the first two steps, which compile."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder  # nothing from an earlier run
        step = _compiled_variants(network, sizes)["compiled"]
        started = time.perf_counter()
        step()
        step()
        return time.perf_counter() - started


def _time_compiled(network: Network, sizes: Sizes) -> tuple[Seconds, NDArray[np.float64]]:
    seconds = interleaved(_compiled_variants(network, sizes), network.few_rounds)
    return seconds, convolutions_part(network, sizes)


def convolutions_part(network: Network, sizes: Sizes) -> NDArray[np.float64]:
    """Of each of a few plain steps, the part of its time that goes into convolutions and their gradients: these are
    made by the same library, compiled or not. The steps are timed without the profiler, which slows small operations;
    the convolutions, with it, in as many steps after them."""
    t, steps = training(network, sizes), network.few_rounds
    seconds = interleaved({"plain": partial(plain_step, t)}, steps)["plain"]
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(steps):
            plain_step(t)
    events = [event for event in profiled.key_averages() if event.key in CONVOLUTIONS]
    return sum(event.self_cpu_time_total for event in events) / 1e6 / steps / seconds


def worker(
    count: int = 1, keep_freed: bool = True, context: BaseContext | None = None, tasks: int | None = None
) -> ProcessPoolExecutor:
    """Fresh processes, set up like runs of eat-run with one thread, that stay for several calls (``tasks``). They have
    computed nothing yet, but torch is imported already, unless ``context`` makes them otherwise."""
    if context is None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
    return ProcessPoolExecutor(count, context, set_up, (keep_freed,), max_tasks_per_child=tasks)


def set_up(keep_freed: bool = True) -> None:
    """As eat-run does before it trains, with one thread. keep_freed: False leaves the memory allocator as it is."""
    torch.set_num_threads(1)
    if keep_freed:
        keep_freed_memory()


# --- memory --------------------------------------------------------------------------------------------------------


M_MMAP_THRESHOLD = -3  # malloc.h
ALLOCATORS = {"freed memory returned": False, "freed memory kept": True}


def memory(sizes: Sizes) -> Iterator[Figure]:
    """Peak memory of a step above what the process holds between steps, each measurement in a fresh process.

    Twice: with an allocator that returns every freed tensor at once, which shows what the step needs, and with one that
    keeps freed memory, as eat-run has it, which adds what lies unused between tensors.
    """
    if not Path("/proc/self/status").exists():
        print("peak memory is skipped: it is read from Linux's /proc")
        return
    with worker(2, keep_freed=False, tasks=1) as processes:
        waiting = {
            (network, allocator, scope): [
                processes.submit(peak_bytes, network, scope, sizes, kept) for _ in range(network.memory_runs)
            ]
            for network in sizes.networks
            for allocator, kept in ALLOCATORS.items()
            for scope in ("", *SCOPES.values())
        }
        peaks = {key: np.array([future.result() for future in futures]) for key, futures in waiting.items()}
    for network in sizes.networks:
        for allocator in ALLOCATORS:
            plain = peaks[network, allocator, ""]
            for name, scope in SCOPES.items():
                values, goal = peaks[network, allocator, scope] / plain, MEMORY_GOALS.get(name)
                yield figure(f"peak memory, penalty on {name} / plain, {allocator}", network, values, goal)
            yield figure(f"peak memory, plain step, {allocator}", network, plain / 1e6, unit="MB")


def peak_bytes(network: Network, scope: str, sizes: Sizes, keep_freed: bool) -> int:
    """VmHWM during three steps above VmRSS before them; after a first step, so that the code and what stays (the
    momentum) are in memory already. scope: of the penalty; empty for none. keep_freed: memory, as eat-run does."""
    glibc = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
    if keep_freed:
        keep_freed_memory()
    elif glibc:
        glibc.mallopt(M_MMAP_THRESHOLD, 64 << 10)
    t = training(network, sizes)
    with ExitStack() as stack:
        step = step_of(t, stack.enter_context(observer_of(t, scope))) if scope else partial(plain_step, t)
        step()
        t.optimizer.zero_grad(set_to_none=True)
        gc.collect()
        if glibc:
            glibc.malloc_trim(0)
        before = _status_bytes("VmRSS")
        with suppress(OSError):  # where it is not allowed, the peak so far is that of the first step
            Path("/proc/self/clear_refs").write_text("5")
        for _ in range(3):
            step()
        return _status_bytes("VmHWM") - before


def _status_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


# --- threads -------------------------------------------------------------------------------------------------------


def threads(sizes: Sizes) -> Iterator[Figure]:
    """Two trainings with one thread each at once, against one after the other with two threads each."""
    network = sizes.networks[0]
    with worker() as first, worker() as second:

        def at_once() -> None:
            for future in [w.submit(_steps, network, sizes, 1) for w in (first, second)]:
                future.result()

        def one_after_the_other() -> None:
            for w in (first, second):
                w.submit(_steps, network, sizes, 2).result()

        seconds = interleaved({"at once": at_once, "in turn": one_after_the_other}, rounds=3)
    values = seconds["at once"] / seconds["in turn"]
    yield figure("two runs of one thread at once / in turn with two threads", network, values)


def _steps(network: Network, sizes: Sizes, thread_count: int) -> None:
    torch.set_num_threads(thread_count)
    step = _penalised(network, sizes)
    for _ in range(sizes.thread_steps):
        step()


@cache
def _penalised(network: Network, sizes: Sizes) -> Callable[[], object]:
    t = training(network, sizes)
    return step_of(t, observer_of(t, "leaf_modules").__enter__())
