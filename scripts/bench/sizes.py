"""How large everything is: as the goals say, or tiny, to see that it runs."""

from dataclasses import dataclass

from eat_runner import models
from eat_runner.config import ModelConfig

CLASSES = 10


@dataclass(frozen=True)
class Network:
    """What is measured, and how often: ``rounds`` of training steps in each of ``fresh_starts`` processes,
    ``few_rounds`` of other comparisons, ``memory_runs`` of memory. metered_batches: of an evaluation."""

    name: str
    width: int
    rounds: int = 2
    fresh_starts: int = 1
    few_rounds: int = 2
    metered_batches: int = 1
    memory_runs: int = 1

    def __str__(self) -> str:
        return f"{self.name} width {self.width}"

    def build(self, image_size: int) -> models.Network:
        return models.build(ModelConfig(name=self.name, width=self.width), image_size, 3, CLASSES)


@dataclass(frozen=True)
class Sizes:
    """networks: slim ResNet first. augmented: images of a pass of the data path. per_class, epochs: of the whole of
    eat-run, on ten classes (one image in ten is cut off for validation). folders: for eat-report."""

    networks: tuple[Network, ...] = (
        Network("resnet18", 16, rounds=16, fresh_starts=3, few_rounds=9, metered_batches=10, memory_runs=5),
        Network("vgg16", 64, rounds=3, fresh_starts=2, few_rounds=3, metered_batches=10),
    )
    image_size: int = 32
    batch: int = 64
    augmented: int = 1024
    per_class: int = 1111
    epochs: int = 5
    thread_steps: int = 10
    folders: int = 10_000
    gpu_networks: tuple[Network, ...] = (Network("resnet18", 64), Network("vgg16", 64))
    gpu_batch: int = 512
    gpu_steps: int = 20
    gpu_images: int = 50_000


TINY = Sizes(
    networks=(Network("resnet18", 2, fresh_starts=2, metered_batches=2), Network("vgg11", 2)),
    image_size=8,
    batch=4,
    augmented=8,
    per_class=10,
    epochs=1,
    thread_steps=2,
    folders=8,
    gpu_networks=(Network("resnet18", 2),),
    gpu_batch=4,
    gpu_steps=1,
    gpu_images=8,
)
