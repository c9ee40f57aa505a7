"""Training steps: what the penalty adds in time and memory, in eager mode and compiled, with one thread and two."""

import ctypes
import gc
import multiprocessing
import os
import platform
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, suppress
from functools import cache, partial
from multiprocessing.context import BaseContext, ForkServerContext
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from bench.baselines import Training, plain_step, training, two_pass_step
from bench.figures import Figure, figure, interleaved, ratios
from bench.sizes import Sizes, label_of
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

# the least that a penalty could cost: reading an activation and its gradient once, and writing the gradient
ADDITIONS = {f"one addition to {name}": scope for name, scope in SCOPES.items()}

# where the time of a convolution is spent, by torch's names, with and without oneDNN
CONVOLUTIONS = ("aten::mkldnn_convolution", "aten::_slow_conv2d_forward", "aten::convolution_backward")

Network = tuple[str, int]


def observer_of(t: Training, scope: str, in_backward: bool = True) -> Observer:
    """To be entered around the steps, and before compiling."""
    return Observer(t.model, L0Config(scope=scope, sigma=SIGMA), t.x_nchw[:2], in_backward)


def step_of(
    t: Training, penalty: Penalty, forward: Callable[[Tensor], Tensor] | None = None
) -> Callable[..., StepResult]:
    """eat-run's own training step, on the batch in memory: without data and reports. forward: the compiled network.
    Called with value=True it takes the penalty's value, as one step in STEPS_BETWEEN_PENALTIES does."""
    step = Step(
        forward=t.model if forward is None else forward, optimizer=t.optimizer, penalty=penalty, autocast=t.autocast
    )
    return partial(step, t.x_nchw, t.labels, LAMBDA, Progress(0, 1, 1))


def eager(sizes: Sizes) -> list[Figure]:
    """Penalty against no penalty, and against the two-pass step, step by step in turn, in several processes."""
    goals = {  # by network: goal, stretch
        "activation outputs": ((1.07, 1.05), (1.07, 1.05)),
        "all leaf modules": ((1.20, None), (1.08, None)),
    }
    two_pass_goals = (0.40, 0.45)
    found: list[Figure] = []
    for i, network in enumerate(sizes.networks):
        label = label_of(network)
        seconds: dict[str, list[float]] = defaultdict(list)
        for _ in range(sizes.fresh_starts[i]):
            for name, values in _time_steps(network, sizes, sizes.rounds[i]).items():
                seconds[name] += values
        ours = {name: _mean_step(seconds[f"{name}, with value"], seconds[name]) for name in SCOPES}
        for name in SCOPES:
            values = ratios(ours[name], seconds["plain"])
            found.append(figure(f"training step, penalty on {name} / plain step (a)", label, values, *goals[name][i]))
        for name in ADDITIONS:
            values = [1 + ratio for ratio in ratios(seconds[name], seconds["plain"])]
            found.append(figure(f"plain step and {name} / plain step (a)", label, values))
        values = ratios(ours["all leaf modules"], seconds["two passes"])
        found.append(figure("our step with all leaf modules / two-pass step (b)", label, values, two_pass_goals[i]))
        values = ratios(seconds["two passes"], seconds["plain"])
        found.append(figure("two-pass step (b) / plain step (a)", label, values))
        found.append(figure("plain step (a)", label, [sizes.batch / s for s in seconds["plain"]], unit="images/s"))
    return found


def _time_steps(network: Network, sizes: Sizes, rounds: int) -> dict[str, list[float]]:
    """Seconds of each kind of step in turn, all in one process, which is a fresh one.

    In one: where a process happens to have its memory makes its steps a few percent faster or slower for as long as it
    lives, and kinds of step with a process each would differ by that.
    """
    with worker() as process:
        return process.submit(_time_variants, network, sizes, rounds).result()


def _time_variants(network: Network, sizes: Sizes, rounds: int) -> dict[str, list[float]]:
    """In a worker, which ends with its hooks: the observers stay attached. Each kind of step has its own network."""
    copies = {name: training(network, sizes.image_size, sizes.batch) for name in ("plain", "two passes", *SCOPES)}
    steps: dict[str, Callable[[], object]] = {
        "plain": partial(plain_step, copies["plain"]),
        "two passes": partial(two_pass_step, copies["two passes"], SIGMA, LAMBDA),
    }
    for name, scope in SCOPES.items():
        step = step_of(copies[name], observer_of(copies[name], scope).__enter__())
        steps |= {name: step, f"{name}, with value": partial(step, value=True)}
    for name, scope in ADDITIONS.items():
        steps[name] = partial(_add_all, _penalised_outputs(network, sizes, scope))
    return interleaved(steps, rounds)


def _add_all(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    for gradient, x in pairs:
        gradient.add_(x)


def _penalised_outputs(network: Network, sizes: Sizes, scope: str) -> list[tuple[Tensor, Tensor]]:
    """Every penalised output of a step, and a gradient for it."""
    t = training(network, sizes.image_size, sizes.batch)
    found: list[tuple[Tensor, Tensor]] = []

    def keep(call: Call) -> None:
        if call.is_activation or scope == "leaf_modules":
            found.append((torch.zeros_like(call.output), call.output.clone()))

    with torch.no_grad(), tap(t.model, keep, functional=False):
        t.model(t.x_nchw)
    return found


def _mean_step(with_value: Sequence[float], without: Sequence[float]) -> list[float]:
    """Seconds of a step, round by round, where one in STEPS_BETWEEN_PENALTIES takes the penalty's value."""
    n = STEPS_BETWEEN_PENALTIES
    return [(a + (n - 1) * b) / n for a, b in zip(with_value, without, strict=True)]


# --- compiled ------------------------------------------------------------------------------------------------------


def compiled(sizes: Sizes) -> list[Figure]:
    """The compiled step with the penalty. Both networks are compiled at once, then measured one after the other."""
    goals = (0.85, 1.0)
    found: list[Figure] = []
    with ExitStack() as stack:
        spawning = multiprocessing.get_context("spawn")  # compilers start processes of their own
        workers = [stack.enter_context(worker(spawning)) for _ in sizes.networks]
        waiting = [w.submit(_compile, n, sizes) for w, n in zip(workers, sizes.networks, strict=True)]
        compile_s = [future.result() for future in waiting]
        for i, network in enumerate(sizes.networks):
            label = label_of(network)
            seconds = workers[i].submit(_time_compiled, network, sizes, sizes.few_rounds[i]).result()
            values = ratios(seconds["compiled"], seconds["plain"])
            found.append(figure("compiled step with the penalty / plain eager step (a)", label, values, goals[i]))
            values = ratios(seconds["compiled, plain"], seconds["plain"])
            found.append(figure("compiled plain step / plain eager step (a)", label, values))
            values = workers[i].submit(convolutions_part, network, sizes, sizes.few_rounds[i]).result()
            found.append(figure("convolutions' part of a plain eager step (a)", label, values))
            found.append(
                figure(
                    "compiled step / eager step, both penalised", label, ratios(seconds["compiled"], seconds["eager"])
                )
            )
            found.append(figure("compilation, both networks at once", label, [compile_s[i]], unit="s"))
            gained = median(e - c for e, c in zip(seconds["eager"], seconds["compiled"], strict=True))
            if gained > 0:
                found.append(figure("steps after which compiling pays", label, [compile_s[i] / gained], unit="steps"))
    return found


def look_at_hooks() -> None:
    """Copies of a network differ in their observers alone; without this one's graph is taken for all of them."""
    torch._dynamo.config.skip_nnmodule_hook_guards = False  # pyright: ignore[reportPrivateUsage]


@cache
def _compiled_variants(network: Network, sizes: Sizes) -> dict[str, Callable[[], object]]:
    """In a worker, which ends with its hooks: the observers stay attached."""
    look_at_hooks()
    copies = [training(network, sizes.image_size, sizes.batch) for _ in range(4)]
    observers = [observer_of(copies[1], "leaf_modules"), observer_of(copies[2], "leaf_modules", in_backward=False)]
    for observer in observers:
        observer.__enter__()
    return {
        "plain": partial(plain_step, copies[0]),
        "eager": step_of(copies[1], observers[0]),
        "compiled": step_of(copies[2], observers[1], torch.compile(copies[2].model)),
        "compiled, plain": partial(plain_step, copies[3], torch.compile(copies[3].model)),
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


def _time_compiled(network: Network, sizes: Sizes, rounds: int) -> dict[str, list[float]]:
    return interleaved(_compiled_variants(network, sizes), rounds)


def convolutions_part(network: Network, sizes: Sizes, steps: int) -> list[float]:
    """Of each of ``steps`` plain steps, the part of its time that goes into convolutions and their gradients: these are
    made by the same library, compiled or not. The steps are timed without the profiler, which slows small operations;
    the convolutions, with it, in as many steps after them."""
    t = training(network, sizes.image_size, sizes.batch)
    seconds = interleaved({"plain": partial(plain_step, t)}, steps)["plain"]
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(steps):
            plain_step(t)
    events = [event for event in profiled.key_averages() if event.key in CONVOLUTIONS]
    convolutions = sum(event.self_cpu_time_total for event in events) / 1e6 / steps
    return [convolutions / step for step in seconds]


def worker(context: BaseContext | None = None) -> ProcessPoolExecutor:
    """One fresh process, set up like a run of eat-run with one thread, that stays for several calls."""
    return ProcessPoolExecutor(1, context or fresh(), set_up)


def plain_worker() -> ProcessPoolExecutor:
    """The same with the memory allocator as it is."""
    return ProcessPoolExecutor(1, fresh(), torch.set_num_threads, (1,))


def fresh() -> ForkServerContext:
    """Makes processes that have computed nothing yet, without importing torch in each of them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def set_up() -> None:
    """As eat-run does before it trains, with one thread."""
    torch.set_num_threads(1)
    keep_freed_memory()


# --- memory --------------------------------------------------------------------------------------------------------


M_MMAP_THRESHOLD = -3  # malloc.h
ALLOCATORS = {"freed memory returned": False, "freed memory kept": True}


def memory(sizes: Sizes) -> list[Figure]:
    """Peak memory of a step above what the process holds between steps, each measurement in a fresh process.

    Twice: with an allocator that returns every freed tensor at once, which shows what the step needs, and with one that
    keeps freed memory, as eat-run has it, which adds what lies unused between tensors.
    """
    if not Path("/proc/self/status").exists():
        print("peak memory is skipped: it is read from Linux's /proc")
        return []
    variants = {"plain": "", **SCOPES}
    with ProcessPoolExecutor(2, fresh(), torch.set_num_threads, (1,), max_tasks_per_child=1) as processes:
        waiting = {
            (network, allocator, name): [processes.submit(peak_bytes, network, scope, sizes, kept) for _ in range(runs)]
            for network, runs in zip(sizes.networks, sizes.memory_runs, strict=True)
            for allocator, kept in ALLOCATORS.items()
            for name, scope in variants.items()
        }
        peaks = {key: [future.result() for future in futures] for key, futures in waiting.items()}
    found: list[Figure] = []
    for network in sizes.networks:
        for allocator in ALLOCATORS:
            label, plain = label_of(network), peaks[network, allocator, "plain"]
            for name in SCOPES:
                values = ratios(peaks[network, allocator, name], plain)
                goal = 1.25 if name == "all leaf modules" else None
                found.append(figure(f"peak memory, penalty on {name} / plain, {allocator}", label, values, goal))
            found.append(figure(f"peak memory, plain step, {allocator}", label, [p / 1e6 for p in plain], unit="MB"))
    return found


def peak_bytes(network: Network, scope: str, sizes: Sizes, keep_freed: bool, steps: int = 3) -> int:
    """VmHWM during ``steps`` steps above VmRSS before them; after a first step, so that the code and what stays (the
    momentum) are in memory already. scope: of the penalty; empty for none. keep_freed: memory, as eat-run does."""
    if keep_freed:
        keep_freed_memory()
    elif platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 64 << 10)
    t = training(network, sizes.image_size, sizes.batch)
    with ExitStack() as stack:
        step = partial(plain_step, t)
        if scope:
            step = step_of(t, stack.enter_context(observer_of(t, scope)))
        step()
        t.optimizer.zero_grad(set_to_none=True)
        gc.collect()
        if platform.libc_ver()[0] == "glibc":
            ctypes.CDLL(None).malloc_trim(0)
        before = _status_bytes("VmRSS")
        with suppress(OSError):  # where it is not allowed, the peak so far is that of the first step
            Path("/proc/self/clear_refs").write_text("5")
        for _ in range(steps):
            step()
        return _status_bytes("VmHWM") - before


def _status_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


# --- threads -------------------------------------------------------------------------------------------------------


def threads(sizes: Sizes) -> list[Figure]:
    """Two trainings with one thread each at once, against one after the other with two threads each."""
    network, steps = sizes.networks[0], sizes.thread_steps
    with worker() as first, worker() as second:

        def at_once() -> None:
            for future in [w.submit(_steps, network, sizes, 1, steps) for w in (first, second)]:
                future.result()

        def one_after_the_other() -> None:
            for w in (first, second):
                w.submit(_steps, network, sizes, 2, steps).result()

        seconds = interleaved({"at once": at_once, "in turn": one_after_the_other}, sizes.thread_rounds)
    values = ratios(seconds["at once"], seconds["in turn"])
    return [figure("two runs of one thread at once / in turn with two threads", label_of(network), values)]


def _steps(network: Network, sizes: Sizes, thread_count: int, steps: int) -> None:
    torch.set_num_threads(thread_count)
    step = _penalised(network, sizes)
    for _ in range(steps):
        step()


@cache
def _penalised(network: Network, sizes: Sizes) -> Callable[[], object]:
    t = training(network, sizes.image_size, sizes.batch)
    return step_of(t, observer_of(t, "leaf_modules").__enter__())
