"""What a reproduction consists of: scales, cells, and the data that stands behind each. No torch.

A cell is one conf/experiment/paper/*.yaml at one scale. ``plan.json`` keeps the cells and their run ids, so that tables
and figures can be made from files alone.
"""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from eat_runner.cli.jobs import status
from eat_runner.errors import UserError
from eat_runner.records import RunFolder, write_atomically

PLAN, RUNS, DAMAGED = "plan.json", "runs", "damaged"
DATASETS = {"gtsrb": "GTSRB", "cifar10": "CIFAR-10", "celeba": "CelebA"}
NETWORKS = {"resnet18": "ResNet18", "vgg16": "VGG16"}
KINDS = TABLE1, ABLATION, CHOICES = "table1", "ablation", "choices"
# what is run, in this order (first at one sigma): what matters most first, and CelebA, which is the largest, last
EXPERIMENTS = {
    "gtsrb_resnet18": TABLE1,
    "cifar10_vgg16": TABLE1,
    "gtsrb_vgg16": TABLE1,
    "cifar10_resnet18": TABLE1,
    "ablation_gtsrb": ABLATION,
    "ablation_cifar10": ABLATION,
    "choices": CHOICES,
    "choices_augmentation": CHOICES,
    "choices_vgg16": CHOICES,
    "celeba_resnet18": TABLE1,
    "celeba_vgg16": TABLE1,
}
OFFICIAL_CIFAR10 = ("cifar-10-batches-py", "cifar-10-python.tar.gz")
JPEG_COPY, JPEG_LABEL = "CIFAR10-jpeg", "CIFAR-10, JPEG copy"
# image size and augmentation of conf/dataset/cifar10.yaml
AS_CIFAR10 = "dataset=image_folder dataset.image_size=32 dataset.crop_padding=4 dataset.rotation_degrees=10"
CIFAR10_CONTENT = "50,000 training and 10,000 test images in 10 classes"


@dataclass(frozen=True)
class Scale:
    """name: as in SCALE=name. captions: for each kind of experiment, what its tables and figures say of how their runs
    were made; briefs: the same in a line, for figures. overrides: of eat-run, for each kind; without them, the
    experiment's YAML runs as it is."""

    name: str
    captions: dict[str, str]
    briefs: dict[str, str]
    overrides: dict[str, str] = field(default_factory=dict[str, str])


def _each(*texts: str) -> dict[str, str]:
    return dict(zip(KINDS, texts, strict=False))


_FULL = (
    "Scale full, the paper's protocol: standard width (64), 100 epochs, batch 512, SGD with learning rate 0.1 times "
    "0.95 an epoch, all training images, no validation split; bf16 on a GPU, float32 on a CPU. "
    "Grid: sigma 1e-1 to 1e-8 by powers of ten, lambda 0, 0.1, 0.5, 1, 2, 3, 5, 10; seeds 0, 1, 2."
)
_FULL_BRIEF = "scale full: the paper's protocol"
_SMALL = (
    "NOT the paper's protocol: networks of width 8 instead of 64, {epochs} epochs instead of 100, batch 128, one-cycle "
    "learning rate, float32, a validation split of 10 %, {images} of the other training images."
)
_WHOLE, _PART = _SMALL.format(epochs=11, images="all"), _SMALL.format(epochs=6, images="10,000")
_SLIM_BRIEF = "scale slim, NOT the paper's protocol: width 8, {}, batch 128, one-cycle"
_CHOICES = (
    f"At slim size, whatever the scale, {_PART} GTSRB, lambda as listed, sigma 1e-4, seeds 0, 1, 2. For VGG16's head "
    "20 epochs with learning rate 0.02 instead of 0.1, since the ImageNet form learns slowly."
)
_CHOICES_BRIEF = "slim size, NOT the paper's protocol: width 8, 6 epochs (VGG16: 20) on 10,000 images"
_SMOKE = (
    "Scale smoke: networks of width 2 after one epoch on a few handwritten digits, in place of every data set. It "
    "shows that the command works; the numbers mean nothing."
)
_SMOKE_BRIEF = "scale smoke: width 2, one epoch on a few digits; the numbers mean nothing"
_AS_SLIM = "trainer=fast trainer.batch_size=128 dataset.validation=0.1 model.width=8 threads=1"
_AS_SMOKE = "trainer=fast trainer.epochs=1 dataset=digits model.width=2 threads=1"
FULL = Scale("full", _each(_FULL, _FULL, _CHOICES), _each(_FULL_BRIEF, _FULL_BRIEF, _CHOICES_BRIEF))
SLIM = Scale(
    "slim",
    _each(
        f"Scale slim, {_WHOLE} Grid: lambda 0, 0.5, 1, 2, 3 at sigma 1e-4 alone; seeds 0 and 1.",
        f"Scale slim, {_PART} Grid: sigma 1e-1, 1e-2, 1e-4, 1e-8, lambda 0, 0.1, 1, 3, 10; seeds 0, 1, 2.",
        _CHOICES,
    ),
    _each(_SLIM_BRIEF.format("11 epochs"), _SLIM_BRIEF.format("6 epochs on 10,000 images"), _CHOICES_BRIEF),
    _each(
        # a lambda more comes last, so that what was run before stays first
        f"{_AS_SLIM} trainer.epochs=11 seed=0,1 penalty.sigma=1e-4 lambda=0,1,2,3,0.5",
        f"{_AS_SLIM} trainer.epochs=6 dataset.train_limit=10000 seed=0,1,2 penalty.sigma=1e-4,1e-1,1e-2,1e-8 "
        "lambda=0,1,0.1,3,10",
    ),
)
SMOKE = Scale(
    "smoke",
    _each(
        f"{_SMOKE} Grid: lambda 0, 1 at sigma 1e-4; seeds 0 and 1.",
        f"{_SMOKE} Grid: sigma 1e-1, 1e-4, lambda 0, 1; one seed (0).",
        f"{_SMOKE} lambda 0, 1 at sigma 1e-4; one seed (0).",
    ),
    dict.fromkeys(KINDS, _SMOKE_BRIEF),
    _each(
        f"{_AS_SMOKE} dataset.validation=0.1 penalty.sigma=1e-4 lambda=0,1 seed=0,1",
        f"{_AS_SMOKE} penalty.sigma=1e-4,1e-1 lambda=0,1 seed=0",
        f"{_AS_SMOKE} lambda=0,1 seed=0",
    ),
)
SCALES = {scale.name: scale for scale in (FULL, SLIM, SMOKE)}
# other sizes, so that the digits that stand for one data set are not those that stand for another
SMOKE_IMAGES = {"gtsrb": 128, "cifar10": 160, "celeba": 192}


@dataclass(frozen=True)
class Cell:
    """An experiment at a scale. dataset: what it is called wherever it is named. paper_dataset: the paper's data set
    that it stands beside. run_ids: every run that it needs, in order. missing: why it cannot be run (further), and how
    to get what it needs. content: what a copy of a data set holds."""

    experiment: str
    kind: str
    dataset: str
    paper_dataset: str
    network: str
    run_ids: tuple[str, ...] = ()
    missing: str = ""
    content: str = ""

    @property
    def title(self) -> str:
        return f"{self.dataset} · {self.network}"


@dataclass(frozen=True)
class Plan:
    """What plan.json holds. captions, briefs: of the Scale when it was planned. command: the one that made it."""

    scale: str
    captions: dict[str, str]
    briefs: dict[str, str]
    command: str
    cells: tuple[Cell, ...] = ()

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / PLAN, json.dumps(asdict(self), indent=1, ensure_ascii=False).encode() + b"\n")

    def run_ids(self, kind: str = "") -> list[str]:
        """Of all cells, or those of a kind; a run that several have is there once."""
        cells = [cell for cell in self.cells if kind in ("", cell.kind)]
        return list(dict.fromkeys(identity for cell in cells for identity in cell.run_ids))


def read_plan(folder: Path) -> Plan:
    """UserError where there is none, or it is no plan. What a cell had in an earlier version is left out."""
    path, keys = folder / PLAN, {f.name for f in fields(Cell)}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        cells: list[dict[str, Any]] = [{key: cell[key] for key in keys & cell.keys()} for cell in values["cells"]]
        values["cells"] = tuple(Cell(run_ids=tuple(cell.pop("run_ids")), **cell) for cell in cells)
        return Plan(**values)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): run make reproduce-paper first") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is damaged: delete it and run make reproduce-paper again") from error


def run_folder(folder: Path, run_id: str) -> RunFolder:
    """Where a run of a scale lies: cells that need the same run share it."""
    return RunFolder(folder / RUNS / run_id)


def status_of(folder: Path, run_id: str) -> str:
    """The status; ``damaged`` where the record cannot be read, which stops no other run."""
    try:
        return status(run_folder(folder, run_id))
    except UserError:
        return DAMAGED


@dataclass(frozen=True)
class Job:
    """A cell and how it is composed: overrides of eat-run, and where its data lie."""

    cell: Cell
    overrides: tuple[str, ...]
    data_dir: Path


def job(scale: Scale, experiment: str, data_dir: Path, download: bool = False) -> Job:
    """A cell of a scale, without run ids: those need the data. download: so no copy stands in for CIFAR-10."""
    kind = EXPERIMENTS[experiment]
    dataset = next((name for name in DATASETS if name in experiment), "gtsrb")
    network = next((name for name in NETWORKS if name in experiment), "resnet18")
    called, overrides = DATASETS[dataset], f"experiment=paper/{experiment} {scale.overrides.get(kind, '')}"
    official = download or any((data_dir / name).exists() for name in OFFICIAL_CIFAR10)
    if scale is SMOKE:
        called, overrides = f"digits in place of {called}", f"{overrides} dataset.train_limit={SMOKE_IMAGES[dataset]}"
    elif dataset == "cifar10" and (data_dir / JPEG_COPY).is_dir() and not official:
        called, overrides, data_dir = JPEG_LABEL, f"{overrides} {AS_CIFAR10}", data_dir / JPEG_COPY
    cell = Cell(experiment, kind, called, DATASETS[dataset], NETWORKS[network])
    return Job(cell, tuple(overrides.split()), data_dir)
