"""On a GPU: images per second in bf16 and channels_last with everything on the device, eager and compiled."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.baselines import Training, plain_step, training
from bench.figures import Figure, figure, interleaved
from bench.passes import MEAN, STD, random_images
from bench.sizes import CLASSES, Network, Sizes
from bench.training import SCOPES, look_at_hooks, observer_of, step_of
from eat_runner.config import DatasetConfig, ExperimentConfig, TrainerConfig
from eat_runner.data import Dataset
from eat_runner.train.loop import Trainer

# dense bf16 FLOP/s of the chip, from its maker's data sheet
BF16_PEAK = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "RTX 4090": 165e12}
EPOCHS_OF_GOAL, IMAGES_OF_GOAL = 100, 50_000


def gpu(sizes: Sizes, device: str = "cuda") -> Iterator[Figure]:
    """Steps on a batch that lies on the device, then whole epochs of the trainer with data and augmentation there."""
    for network in sizes.gpu_networks:
        yield from _steps(network, sizes, device)
    yield from _epochs(sizes, device)


def _steps(network: Network, sizes: Sizes, device: str) -> Iterator[Figure]:
    label = f"{network}, GPU"
    copy = partial(training, network, replace(sizes, batch=sizes.gpu_batch), device, bf16=True)
    look_at_hooks()
    with ExitStack() as stack:
        variants: dict[str, Callable[[], object]] = {
            "bare loop, eager": partial(plain_step, copy()),
            "bare loop, compiled": partial(plain_step, copy().compiled()),
        }
        for name, scope in SCOPES.items():
            t, u = copy(), copy()
            variants[f"{name}, eager"] = step_of(t, stack.enter_context(observer_of(t, scope)))
            observer = stack.enter_context(observer_of(u, scope, in_backward=False))
            variants[f"{name}, compiled"] = step_of(u.compiled(), observer)
        wait = torch.cuda.synchronize if device == "cuda" else lambda: None
        seconds = interleaved(variants, calls=sizes.gpu_steps, synchronise=wait)
    flop = _flop_per_step(copy())
    peak = next((p for chip, p in BF16_PEAK.items() if device == "cuda" and chip in torch.cuda.get_device_name()), None)
    for name, step_s in seconds.items():
        yield figure(f"step, {name}", label, sizes.gpu_batch / step_s, unit="images/s")
        if peak is not None:
            yield figure(f"share of the chip's bf16 peak, {name}", label, 100 * flop / step_s / peak, unit="%")
    for mode in ("eager", "compiled"):
        for name in SCOPES:
            values = seconds[f"{name}, {mode}"] / seconds[f"bare loop, {mode}"]
            yield figure(f"step, penalty on {name} / bare step, {mode}", label, values, 1.05)


def _flop_per_step(t: Training) -> float:
    """Of the convolutions and matrix products, forward and backward; a multiply-accumulate is two."""
    with FlopCounterMode(display=False) as counter:
        plain_step(t)
    return float(counter.get_total_flops())


def _epochs(sizes: Sizes, device: str) -> Iterator[Figure]:
    """Seconds for 100 epochs of 50,000 images by the trainer, penalty on all leaf modules, extrapolated from the epochs
    after the first."""
    network, images = sizes.gpu_networks[0], random_images(sizes.gpu_images, sizes.image_size)
    names, empty = tuple(map(str, range(CLASSES))), images.first(0)
    dataset = Dataset("noise", images, empty, empty, names, sizes.image_size, 3, MEAN, STD, "noise")
    for compile in ("off", "on"):
        config = ExperimentConfig(
            dataset=DatasetConfig(image_size=sizes.image_size, crop_padding=4, flip=True),
            trainer=TrainerConfig(epochs=4, batch_size=sizes.gpu_batch, precision="bf16", compile=compile),
        )
        torch.manual_seed(0)
        trainer = Trainer(network.build(sizes.image_size), dataset, config, torch.device(device))
        started = time.perf_counter()
        ends = [time.perf_counter() for _ in trainer.epochs(lambda: False, lambda done, text: None)]
        hundred = np.diff([started, *ends])[1:] * EPOCHS_OF_GOAL * IMAGES_OF_GOAL / sizes.gpu_images
        name = f"100 epochs of 50,000 images with the penalty, compile={compile}"
        yield figure(name, f"{network}, GPU", hundred, 240, unit="s")
