"""How large everything is: as the goals say, or tiny, to see that it runs."""

from dataclasses import dataclass

from eat_runner.config import ModelConfig


@dataclass(frozen=True)
class Sizes:
    """networks: what is measured, slim ResNet first. rounds: repetitions of the comparison of training steps, by
    network, in each of ``fresh_starts`` processes; few_rounds: of the others; memory_runs: of memory.

    metered_batches: of an evaluation. augmented: images of a pass of the data path. per_class, epochs: of the whole of
    eat-run, on ten classes (one image in ten is cut off for validation). folders: for eat-report.
    """

    networks: tuple[tuple[str, int], ...] = (("resnet18", 16), ("vgg16", 64))
    image_size: int = 32
    batch: int = 64
    rounds: tuple[int, ...] = (16, 3)
    fresh_starts: tuple[int, ...] = (3, 2)
    few_rounds: tuple[int, ...] = (9, 3)
    metered_batches: tuple[int, ...] = (10, 10)
    memory_runs: tuple[int, ...] = (5, 1)
    augmented: int = 1024
    per_class: int = 1111
    epochs: int = 5
    thread_steps: int = 10
    thread_rounds: int = 3
    help_runs: int = 7
    folders: int = 10_000
    gpu_networks: tuple[tuple[str, int], ...] = (("resnet18", 64), ("vgg16", 64))
    gpu_batch: int = 512
    gpu_steps: int = 20
    gpu_rounds: int = 7
    gpu_images: int = 50_000


TINY = Sizes(
    networks=(("resnet18", 2), ("vgg11", 2)),
    image_size=8,
    batch=4,
    rounds=(2, 2),
    fresh_starts=(2, 1),
    few_rounds=(2, 2),
    metered_batches=(2, 1),
    memory_runs=(1, 1),
    augmented=8,
    per_class=10,
    epochs=1,
    thread_steps=2,
    thread_rounds=2,
    help_runs=1,
    folders=8,
    gpu_networks=(("resnet18", 2),),
    gpu_batch=4,
    gpu_steps=1,
    gpu_rounds=2,
    gpu_images=8,
)

CLASSES = 10


def config_of(network: tuple[str, int]) -> ModelConfig:
    """The configuration of a name and a width."""
    name, width = network
    return ModelConfig(name=name, width=width)


def label_of(network: tuple[str, int]) -> str:
    """How the table names it."""
    return "{} width {}".format(*network)
