"""What a reproduction consists of: scales, cells, and the data that stands behind each. No torch.

A cell is one conf/experiment/paper/*.yaml at one scale. ``plan.json`` keeps the cells and their run ids, so that tables
and figures can be made from files alone.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from eat_runner.errors import UserError
from eat_runner.records import write_atomically

PLAN = "plan.json"
RUNS = "runs"
DATASETS = {"gtsrb": "GTSRB", "cifar10": "CIFAR-10", "celeba": "CelebA"}
NETWORKS = {"resnet18": "ResNet18", "vgg16": "VGG16"}
TABLE1, ABLATION, CHOICES = "table1", "ablation", "choices"
# what is run, in this order: what matters most first, and CelebA, which is the largest, last
EXPERIMENTS = {
    "gtsrb_resnet18": TABLE1,
    "cifar10_vgg16": TABLE1,
    "gtsrb_vgg16": TABLE1,
    "cifar10_resnet18": TABLE1,
    "ablation_gtsrb": ABLATION,
    "ablation_cifar10": ABLATION,
    "choices": CHOICES,
    "choices_augmentation": CHOICES,
    "celeba_resnet18": TABLE1,
    "celeba_vgg16": TABLE1,
}
OFFICIAL_CIFAR10 = ("cifar-10-batches-py", "cifar-10-python.tar.gz")
JPEG_COPY = "CIFAR10-jpeg"
JPEG_LABEL = "CIFAR-10, JPEG copy"


@dataclass(frozen=True)
class Scale:
    """name: as in SCALE=name. caption: what every table says of it; brief: the same in a line, for figures. overrides:
    of eat-run, for each kind of experiment; without one, the experiment's YAML runs as it is."""

    name: str
    caption: str
    brief: str
    overrides: dict[str, tuple[str, ...]]


_SLIM = (
    "trainer=fast",
    "trainer.batch_size=128",
    "dataset.validation=0.1",
    "model.width=8",
    "threads=1",
    "seed=0,1",
)
_SMOKE = ("trainer=fast", "trainer.epochs=1", "dataset=digits", "model.width=2", "threads=1")
SCALES = {
    "full": Scale(
        "full",
        "Scale full: the paper's protocol (standard width, 100 epochs, batch 512, SGD 0.1 times 0.95 an epoch, all "
        "training images, no validation split), in bf16 on a GPU; three seeds, one in the ablation.",
        "scale full: the paper's protocol",
        {},
    ),
    "slim": Scale(
        "slim",
        "Scale slim, NOT the paper's protocol: networks of width 8 instead of 64, 11 epochs instead of 100, batch 128, "
        "one-cycle learning rate, a validation split of 10 %, lambda 0, 1, 2, 3, two seeds. Ablation and choices: "
        "10,000 training images, 6 epochs.",
        "scale slim, NOT the paper's protocol: width 8, one-cycle, batch 128, 11 epochs (ablation 6, on 10,000 images)",
        {
            TABLE1: (*_SLIM, "trainer.epochs=11", "lambda=0,1,2,3"),
            ABLATION: (
                *_SLIM,
                "trainer.epochs=6",
                "dataset.train_limit=10000",
                "penalty.sigma=1e-4,1e-1,1e-2,1e-8",
                "lambda=0,1,0.1,3,10",
            ),
        },
    ),
    "smoke": Scale(
        "smoke",
        "Scale smoke: networks of width 2 after one epoch on a few handwritten digits, in place of every data set. It "
        "shows that the command works; the numbers mean nothing.",
        "scale smoke: width 2 after one epoch on a few digits; the numbers mean nothing",
        {
            TABLE1: (*_SMOKE, "dataset.validation=0.1", "lambda=0,1", "seed=0,1"),
            ABLATION: (*_SMOKE, "penalty.sigma=1e-4,1e-1", "lambda=0,1", "seed=0"),
            CHOICES: (*_SMOKE, "lambda=0,1", "seed=0"),
        },
    ),
}
# other sizes, so that the digits that stand for one data set are not those that stand for another
SMOKE_IMAGES = {"gtsrb": 128, "cifar10": 160, "celeba": 192}


@dataclass(frozen=True)
class Cell:
    """An experiment at a scale. name: its folder below runs/. dataset: what it is called wherever it is named.
    paper_dataset: the paper's data set that it stands beside. run_ids: every run that it needs, in order. missing: why
    it cannot be run, and how to get what it needs."""

    experiment: str
    kind: str
    name: str
    dataset: str
    paper_dataset: str
    network: str
    run_ids: tuple[str, ...] = ()
    missing: str = ""

    @property
    def title(self) -> str:
        return f"{self.dataset} · {self.network}"


@dataclass(frozen=True)
class Plan:
    """What plan.json holds. caption, brief: what every table and figure says. command: the one that made it."""

    scale: str
    caption: str
    brief: str
    command: str
    cells: tuple[Cell, ...] = field(default=())

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / PLAN, json.dumps(asdict(self), indent=1, ensure_ascii=False).encode() + b"\n")


def read_plan(folder: Path) -> Plan:
    """UserError where there is none, or it is no plan."""
    path = folder / PLAN
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        cells = tuple(Cell(**(cell | {"run_ids": tuple(cell["run_ids"])})) for cell in values.pop("cells"))
        return Plan(cells=cells, **values)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): run make reproduce-paper first") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is damaged: delete it and run make reproduce-paper again") from error


@dataclass(frozen=True)
class Job:
    """A cell and how it is composed: overrides of eat-run, and where its data lie."""

    cell: Cell
    overrides: tuple[str, ...]
    data_dir: Path


def jobs(scale: Scale, data_dir: Path, experiments: Sequence[str] = tuple(EXPERIMENTS)) -> list[Job]:
    """Every cell of a scale, without run ids: those need the data."""
    return [_job(scale, experiment, data_dir) for experiment in experiments]


def _job(scale: Scale, experiment: str, data_dir: Path) -> Job:
    kind = EXPERIMENTS[experiment]
    dataset = next((name for name in DATASETS if name in experiment), "gtsrb")
    network = next((name for name in NETWORKS if name in experiment), "resnet18")
    cell = Cell(experiment, kind, experiment, DATASETS[dataset], DATASETS[dataset], NETWORKS[network])
    overrides = (f"experiment=paper/{experiment}", *scale.overrides.get(kind, ()))
    if scale.name == "smoke":
        cell = replace(cell, dataset=f"digits in place of {DATASETS[dataset]}")
        return Job(cell, (*overrides, f"dataset.train_limit={SMOKE_IMAGES[dataset]}"), data_dir)
    jpeg = data_dir / JPEG_COPY
    if dataset == "cifar10" and jpeg.is_dir() and not any((data_dir / name).exists() for name in OFFICIAL_CIFAR10):
        name = experiment.replace("cifar10", "cifar10_jpeg")
        cell = replace(cell, name=name, dataset=JPEG_LABEL)
        # image size and augmentation of conf/dataset/cifar10.yaml
        as_folder = ("dataset=image_folder", "dataset.image_size=32", "dataset.crop_padding=4")
        return Job(cell, (*overrides, *as_folder, "dataset.rotation_degrees=10"), jpeg)
    return Job(cell, overrides, data_dir)
