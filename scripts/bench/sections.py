"""What is done to be measured: a function a section, which returns the samples that its rows in rows.csv are made of.

What runs in a worker leaves observers attached: the process ends with them."""

import ctypes
import gc
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from bench import baselines
from bench.baselines import Training, plain_step, training
from bench.engine import CLASSES, NO_NETWORK, Network, Samples, Sizes, fresh, interleaved, mean_of, seconds, worker
from eat_runner.config import DatasetConfig, ExperimentConfig, L0Config, MeterConfig, TrainerConfig
from eat_runner.config.bits import BitsConfig
from eat_runner.config.pruning import PruningConfig
from eat_runner.data import Dataset, ImageSet, load
from eat_runner.data.batches import training_batches
from eat_runner.energy.budget import Budget
from eat_runner.energy.counts import Counts
from eat_runner.energy.hardware import load_hardware
from eat_runner.energy.meter import measure
from eat_runner.environment import multiplies_bf16
from eat_runner.methods import METHODS
from eat_runner.methods.base import Method, Progress
from eat_runner.penalties.base import Penalty
from eat_runner.penalties.observer import Observer
from eat_runner.records import RunFolder
from eat_runner.taps import Call, tap
from eat_runner.train.loop import STEPS_BETWEEN_PENALTIES, Trainer
from eat_runner.train.step import Step, StepResult

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
Calls = dict[str, Callable[[], object]]

LAMBDA, SIGMA = 1.0, L0Config().sigma
SCOPES = ("activations", "leaf_modules")
SAMPLE = 0.25  # of the images, penalised for all
SAMPLED = f"leaf_modules {SAMPLE}"
MEAN, STD = (0.5, 0.45, 0.4), (0.25, 0.25, 0.3)
AUGMENTATIONS = {
    "crop and flip": DatasetConfig(crop_padding=4, flip=True),
    "crop and rotation": DatasetConfig(crop_padding=4, rotation_degrees=10),
}


def random_images(count: int, size: int) -> ImageSet:
    """Noise, as the data sets keep their images."""
    images = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return ImageSet(images, np.arange(count, dtype=np.int64) % CLASSES)


def metered(model: nn.Module, batches: Sequence[Tensor]) -> Counts:
    """Ours, as a training looks at the validation split: exact skipped products included, no floor batch."""
    return measure(model, list(batches), MeterConfig(batch_size=len(batches[0])), floor=False)


def trainer_of(
    network: Network, images: ImageSet, settings: TrainerConfig, augmentation: DatasetConfig, device: str = "cpu"
) -> Trainer:
    """eat-run's own trainer on these images, with the penalty on all leaf modules."""
    size, empty, names = augmentation.image_size, images.first(0), tuple(map(str, range(CLASSES)))
    dataset = Dataset("noise", images, empty, empty, names, size, 3, MEAN, STD, "noise")
    torch.manual_seed(0)
    config = ExperimentConfig(dataset=augmentation, trainer=settings)
    return Trainer(network.build(size), dataset, config, torch.device(device))


# --- training steps ------------------------------------------------------------------------------------------------


def observer_of(t: Training, scope: str = "leaf_modules", in_backward: bool = True, sample: float = 1.0) -> Observer:
    """To be entered around the steps, and before compiling."""
    return Observer(t.model, L0Config(scope=scope, sigma=SIGMA, sample=sample), t.x_nchw[:2], in_backward)


def step_of(t: Training, penalty: Penalty, methods: Sequence[Method] = (), done: int = 1) -> Callable[..., StepResult]:
    """eat-run's own training step, on the batch in memory: without data and reports. Called with value=True it takes
    the penalty's value, as one step in STEPS_BETWEEN_PENALTIES does. done: how many of a hundred steps it makes."""
    step = Step(forward=t.forward, optimizer=t.optimizer, penalty=penalty, methods=methods, autocast=t.autocast)
    return partial(step, t.x_nchw, t.labels, LAMBDA, Progress(done - 1, 100, 1))


def training_steps(network: Network, sizes: Sizes) -> Samples:
    """In a worker, which ends with its hooks: the observers stay attached. Each kind of step has its own network."""
    plain = training(network, sizes)
    steps: Calls = {"plain": partial(plain_step, plain)}
    steps["two passes"] = partial(baselines.two_pass_step, training(network, sizes), SIGMA, LAMBDA)
    sampled = training(network, sizes)
    step = step_of(sampled, observer_of(sampled, sample=SAMPLE).__enter__())
    steps |= {SAMPLED: step, f"{SAMPLED}, value": partial(step, value=True)}
    for scope in SCOPES:
        t = training(network, sizes)
        step = step_of(t, observer_of(t, scope).__enter__())
        steps |= {scope: step, f"{scope}, value": partial(step, value=True), f"added to {scope}": _addition(t, scope)}
    found = interleaved(steps, network.rounds)
    for kind in (*SCOPES, SAMPLED):
        found[kind] = mean_of(found, kind, f"{kind}, value", STEPS_BETWEEN_PENALTIES)
    for scope in SCOPES:
        found[f"plain and added to {scope}"] = found["plain"] + found[f"added to {scope}"]
    return found | {"images/s": sizes.batch / found["plain"]}


def precision_steps(network: Network, sizes: Sizes) -> Samples:
    """In a worker. Steps in bf16 autocast and in float32, plain and with the penalty on all leaf modules."""
    steps: Calls = {}
    for name, bf16 in (("fp32", False), ("bf16", True)):
        plain, penalised = (training(network, sizes, bf16=bf16) for _ in range(2))
        steps |= {
            name: partial(plain_step, plain),
            f"{name}, penalty": step_of(penalised, observer_of(penalised).__enter__()),
        }
    found = interleaved(steps, network.rounds)
    return found | {"images/s": sizes.batch / found["bf16"]}


def _addition(t: Training, scope: str) -> Callable[[], object]:
    """The least that a penalty could cost: reading every penalised output of a step and its gradient once, and writing
    the gradient."""
    calls: list[Call] = []
    with torch.no_grad(), tap(t.model, calls.append, functional=False):
        t.model(t.x_nchw)
    outputs = [call.output.clone() for call in calls if call.is_activation or scope == "leaf_modules"]
    pairs = [(torch.zeros_like(x), x) for x in outputs]
    return lambda: [gradient.add_(x) for gradient, x in pairs]


IMAGES_OF_EPOCH = 37_000


def method_steps(network: Network, sizes: Sizes) -> Samples:
    """Energy-aware steps, each kind with its own network, and the look at it that prices and masks are made from."""
    hardware, plain = load_hardware("fused_7nm_int8"), training(network, sizes)
    counts = metered(plain.model, [plain.x_nchw])
    plain.model.train()
    steps: Calls = {"plain": step_of(plain, Penalty())}
    for weighting in ("layer_mean", "energy"):
        t, config = training(network, sizes), L0Config(weighting=weighting, sigma=SIGMA)
        penalty = Observer(t.model, config, t.x_nchw[:2], in_backward=True, hardware=hardware).__enter__()
        penalty.look(counts)
        steps[weighting] = step_of(t, penalty)
    every = PruningConfig().every_steps
    budget = Budget.of(hardware, 0.2, None, counts)
    for name, settings, limit in (
        ("magnitude", PruningConfig(name="magnitude"), None),
        ("energy", PruningConfig(name="energy"), None),
        ("energy budget=0.2", PruningConfig(name="energy", density=None), budget),
    ):
        t, pruning = training(network, sizes), METHODS["pruning"](settings, hardware, limit)
        pruning.on_build(t.model)
        pruning.on_example(t.model, t.x_nchw[:2])
        pruning.before_training(counts)
        # in the middle of the training: new masks, and in the steps between them those that there are
        steps[f"pruning={name}, masks"] = step_of(t, Penalty(), [pruning], done=5 * every)
        steps[f"pruning={name}"] = step_of(t, Penalty(), [pruning], done=5 * every + 1)
    t, bits = training(network, sizes), METHODS["bits"](BitsConfig(name="8", begin=0.0), hardware)
    bits.on_example(t.model, t.x_nchw[:2])
    step_of(t, Penalty(), [bits])()  # the first step of an epoch finds the scales
    steps["bits=8"] = step_of(t, Penalty(), [bits], done=2)
    dataset = DatasetConfig(image_size=sizes.image_size)
    images = random_images(sizes.looked_at, sizes.image_size)
    steps["look"] = trainer_of(network, images, TrainerConfig(), dataset).look
    found = interleaved(steps, network.rounds)
    for name in ("magnitude", "energy", "energy budget=0.2"):
        found[f"pruning={name}"] = mean_of(found, f"pruning={name}", f"pruning={name}, masks", every)
    return found | {"epoch": found["energy"] * (IMAGES_OF_EPOCH // sizes.batch)}


def look_at_hooks() -> None:
    """Copies of a network differ in their observers alone; without this one's graph is taken for all of them."""
    torch._dynamo.config.skip_nnmodule_hook_guards = False  # pyright: ignore[reportPrivateUsage]


def compiled(t: Training) -> Training:
    return replace(t, forward=torch.compile(t.model))


def compiled_steps(network: Network, sizes: Sizes) -> Samples:
    """Steps with the penalty on all leaf modules, and without."""
    look_at_hooks()
    plain, eager, penalised, bare = (training(network, sizes) for _ in range(4))
    observer, in_the_loss = observer_of(eager).__enter__(), observer_of(penalised, in_backward=False).__enter__()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder  # nothing from an earlier run
        step = step_of(compiled(penalised), in_the_loss)
        compilation = seconds(step) + seconds(step)
        steps: Calls = {"plain": partial(plain_step, plain), "eager": step_of(eager, observer)}
        steps |= {"compiled": step, "compiled, plain": partial(plain_step, compiled(bare))}
        found = interleaved(steps, network.few_rounds)
    found |= {"compilation": np.array([compilation]), "convolutions": _convolutions_s(network, sizes)}
    if (gained := np.median(found["eager"] - found["compiled"])) > 0:
        found["steps"] = found["compilation"] / gained
    return found


# where the time of a convolution is spent, by torch's names, with and without oneDNN
CONVOLUTIONS = ("aten::mkldnn_convolution", "aten::_slow_conv2d_forward", "aten::convolution_backward")


def _convolutions_s(network: Network, sizes: Sizes) -> np.ndarray:
    """Seconds of a plain step that go into convolutions and their gradients: these are made by the same library,
    compiled or not."""
    t = training(network, sizes)
    plain_step(t)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(network.few_rounds):
            plain_step(t)
    events = [event for event in profiled.key_averages() if event.key in CONVOLUTIONS]
    return np.array([sum(event.self_cpu_time_total for event in events) / 1e6 / network.few_rounds])


# dense bf16 FLOP/s of the chip, from its maker's data sheet
BF16_PEAK = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "RTX 4090": 165e12}


def gpu_steps(network: Network, sizes: Sizes, device: str = "cuda") -> Samples:
    """Steps in bf16 on a batch that lies on the device, then whole epochs of the trainer with data and augmentation
    there, in seconds for a hundred of 50,000 images."""
    look_at_hooks()
    copy = partial(training, network, replace(sizes, batch=sizes.gpu_batch), device, bf16=True)
    with ExitStack() as stack:
        steps: Calls = {
            "bare, eager": partial(plain_step, copy()),
            "bare, compiled": partial(plain_step, compiled(copy())),
        }
        for scope in SCOPES:
            for mode in ("eager", "compiled"):
                t = copy()
                observer = stack.enter_context(observer_of(t, scope, in_backward=mode == "eager"))
                steps[f"{scope}, {mode}"] = step_of(compiled(t) if mode == "compiled" else t, observer)
        found = interleaved(steps, calls=sizes.gpu_steps)
    with FlopCounterMode(display=False) as counter:  # of convolutions and matrix products, forward and backward
        plain_step(copy())
    peak = next((p for chip, p in BF16_PEAK.items() if device == "cuda" and chip in torch.cuda.get_device_name()), None)
    for name in steps:
        found[f"images/s, {name}"] = sizes.gpu_batch / found[name]
        if peak is not None:
            found[f"peak, {name}"] = 100 * counter.get_total_flops() / found[name] / peak
    images = random_images(sizes.gpu_images, sizes.image_size)
    for compile in ("off", "on"):
        settings = TrainerConfig(epochs=4, batch_size=sizes.gpu_batch, precision="bf16", compile=compile)
        augmentation = replace(AUGMENTATIONS["crop and flip"], image_size=sizes.image_size)
        epochs = trainer_of(network, images, settings, augmentation, device).epochs(lambda: False, lambda *_: None)
        _, *others = [seconds(partial(next, epochs)) for _ in range(settings.epochs)]
        found[f"100 epochs, {compile}"] = np.array(others) * 100 * 50_000 / sizes.gpu_images
    return found


# --- memory --------------------------------------------------------------------------------------------------------


def peak_memory(network: Network, sizes: Sizes) -> Samples:
    """Peak memory of a step above what the process holds between steps, in MB, each measurement in a fresh process.

    Twice: with an allocator that returns every freed tensor at once, which shows what the step needs, and with one that
    keeps freed memory, as eat-run has it, which adds what lies unused between tensors.
    """
    found = Samples()
    for scope in ("plain", *SCOPES):
        for name, kept in (("returned", False), ("kept", True)):
            peaks = fresh(partial(peak_bytes, scope=scope), network, sizes, network.starts, keep_freed=kept)
            found[f"{scope}, {name}"] = peaks["bytes"] / 1e6
    return found


def peak_bytes(network: Network, sizes: Sizes, scope: str) -> Samples:
    """The process's highest memory, which it needs in one of a few steps, above what it holds after the first, when the
    code and what stays (the momentum) are in memory. scope: of the penalty, or ``plain``."""
    glibc = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
    t = training(network, sizes)
    with ExitStack() as stack:
        step = partial(plain_step, t) if scope == "plain" else step_of(t, stack.enter_context(observer_of(t, scope)))
        step()
        t.optimizer.zero_grad(set_to_none=True)
        gc.collect()
        if glibc:
            glibc.malloc_trim(0)
        before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        for _ in range(3):
            step()
        return {"bytes": np.array([resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before])}


# --- passes over images --------------------------------------------------------------------------------------------


def evaluation(network: Network, sizes: Sizes) -> Samples:
    """The listing meter, slow and the same for every batch, gets one batch, the others more."""
    t = training(network, sizes)
    torch.manual_seed(1)
    batches = [torch.randn_like(t.x_nchw) for _ in range(sizes.metered)]
    passes: Calls = {
        "plain": partial(baselines.evaluate, t.model, batches),
        "metered": partial(metered, t.model, batches),
        "listed": partial(baselines.listing_meter, t.model, batches[:1], MeterConfig().threshold),
    }
    found = interleaved(passes, network.few_rounds)
    return found | {"listed": found["listed"] * sizes.metered}


def data(_: Network, sizes: Sizes) -> Samples:
    """The same augmentation by ours and by the per-image loader, one process, one thread: images per second."""
    images, passes = random_images(sizes.augmented, sizes.image_size), Calls()
    for name, augmentation in AUGMENTATIONS.items():
        config = replace(augmentation, image_size=sizes.image_size)
        ours = partial(training_batches, images, config, sizes.batch, MEAN, STD, 0, 0, torch.device("cpu"))
        per_image = partial(baselines.pil_loader, images, config, sizes.batch, MEAN, STD)
        for loader, batches in {"ours": ours, "per image": per_image}.items():
            passes[f"{loader}, {name}"] = lambda batches=batches: sum(1 for _ in batches())
    return {name: sizes.augmented / taken for name, taken in interleaved(passes).items()}


# --- the commands as a person runs them ----------------------------------------------------------------------------


def run(command: Sequence[str]) -> str:
    """What it says. RuntimeError with the end of its complaints where it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout


def help_text(network: Network, sizes: Sizes) -> Samples:
    """eat-run --help, and importing Hydra; launcher plugins, which `make setup` installs, would be imported too."""
    commands = {"help": [str(BIN / "eat-run"), "--help"], "hydra": [sys.executable, "-c", "import hydra"]}
    return interleaved({name: partial(run, command) for name, command in commands.items()})


# A process that a large one starts counts the large one's memory as its own peak; this small one stands between them.
BETWEEN = """
import json, resource, subprocess, sys, time
started = time.perf_counter()
subprocess.run(sys.argv[1:], check=True, stdout=sys.stderr)
seconds = time.perf_counter() - started
print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss]))
"""


def report(network: Network, sizes: Sizes) -> Samples:
    """eat-report on many run folders, collated as they were priced and priced again: seconds, and MB at its peak."""
    found, unit = Samples(), 1 if sys.platform == "darwin" else 1024
    with tempfile.TemporaryDirectory() as folder:
        runs = f"{folder}/runs"
        run([sys.executable, str(ROOT / "tests" / "run_folders.py"), runs, str(sizes.folders)])
        for name, options in (("", []), (", priced again", ["--hardware", "fused_45nm"])):
            command = [str(BIN / "eat-report"), runs, "--output", f"{folder}/report", *options]
            taken, peak = json.loads(run([sys.executable, "-c", BETWEEN, *command]))
            found |= {f"seconds{name}": np.array([taken]), f"memory{name}": np.array([peak * unit / 1e6])}
    return found


WHOLE = (
    "dataset=image_folder dataset.image_size={s.image_size} model={n.name} model.width={n.width} "
    "name=bench trainer.epochs={s.epochs} trainer.batch_size={s.batch} lambda=0 device=cpu threads=1"
)


def whole(network: Network, sizes: Sizes) -> Samples:
    """eat-run on one core while the minimal loop takes turns on the other, so that both have the same neighbour."""
    with tempfile.TemporaryDirectory() as folder, worker() as loop, ThreadPoolExecutor(1) as beside:
        data_dir, results = Path(folder) / "data", Path(folder) / "results"
        for split, count in (("train", sizes.per_class), ("test", max(sizes.per_class // 10, 2))):
            write_images(data_dir / split, random_images(count * CLASSES, sizes.image_size))
        dataset = DatasetConfig(name="image_folder", image_size=sizes.image_size)
        images = len(load(dataset, data_dir, download=False).train)  # builds the store, which is not timed
        arguments = [*WHOLE.format(s=sizes, n=network).split(), f"data_dir={data_dir}", f"results_dir={results}"]
        loop.submit(loop_s, network, sizes).result()  # to warm up
        running, step_s = beside.submit(seconds, partial(run, [str(BIN / "eat-run"), *arguments])), list[float]()
        while not running.done():
            step_s.append(loop.submit(loop_s, network, sizes).result())
        [record] = (results / "bench").glob("*/record.json")
        trained, taken = RunFolder(record.parent).read_record().timings["training_s"] or 0.0, running.result()
    steps = max(images // sizes.batch, 1) * sizes.epochs
    alone = {"whole": taken, "training": trained, "rest": taken - trained}
    return {name: np.array([value]) for name, value in alone.items()} | {"loop": np.array(step_s) * steps}


def write_images(folder: Path, images: ImageSet) -> None:
    """As PNG files, a folder a class."""
    for number, (image, label) in enumerate(zip(images.images_nhwc, images.labels, strict=True)):
        target = folder / f"class{label}"
        target.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(target / f"{number:05d}.png", compress_level=1)


def loop_s(network: Network, sizes: Sizes) -> float:
    """Seconds a step of the minimal loop, over a few steps."""
    return seconds(partial(baselines.minimal_loop, *_in_memory(network, sizes), sizes.loop_steps)) / sizes.loop_steps


@cache
def _in_memory(network: Network, sizes: Sizes) -> tuple[Training, Tensor, Tensor]:
    count = max(sizes.per_class * CLASSES, sizes.batch)
    images = torch.randn(count, 3, sizes.image_size, sizes.image_size).contiguous(memory_format=torch.channels_last)
    return training(network, sizes), images, torch.randint(CLASSES, (count,))


# --- the list ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Section:
    """measure: the samples of a network. networks: which ones. possible: whether this machine has what it takes."""

    measure: Callable[[Network, Sizes], Samples]
    networks: Callable[[Sizes], Sequence[Network]] = lambda sizes: sizes.networks
    possible: Callable[[], bool] = lambda: True


def in_processes(measure: Callable[[Network, Sizes], Samples]) -> Callable[[Network, Sizes], Samples]:
    return lambda network, sizes: fresh(measure, network, sizes, network.starts)


def slim(sizes: Sizes) -> Sequence[Network]:
    return sizes.networks[:1]


def none(sizes: Sizes) -> Sequence[Network]:
    return [NO_NETWORK]


SECTIONS = {
    "training": Section(in_processes(training_steps)),
    "precision": Section(
        in_processes(precision_steps),
        lambda sizes: [*sizes.networks, *sizes.wide_networks],
        lambda: multiplies_bf16(torch.device("cpu")),
    ),
    "methods": Section(in_processes(method_steps), slim),
    "evaluation": Section(partial(fresh, evaluation)),
    "data": Section(data, none),
    "compiled": Section(partial(fresh, compiled_steps)),
    "memory": Section(peak_memory, possible=Path("/proc/self/statm").exists),
    "help": Section(help_text, none),
    "report": Section(report, none),
    "whole": Section(whole, slim),
    "gpu": Section(gpu_steps, lambda sizes: sizes.gpu_networks, torch.cuda.is_available),
}
