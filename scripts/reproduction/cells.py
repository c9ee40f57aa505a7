"""What a reproduction consists of: scales, cells, and the data that stands behind each. No torch.

A cell is one conf/experiment/paper/*.yaml at one scale (scales.yaml). ``plan.json`` keeps the cells and their run ids,
so that tables and figures can be made from files alone.
"""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from eat_runner.cli.jobs import status
from eat_runner.config.root import ExperimentConfig
from eat_runner.errors import UserError
from eat_runner.records import RunFolder, write_atomically

PLAN, RUNS, DAMAGED = "plan.json", "runs", "damaged"
DATASETS = {"gtsrb": "GTSRB", "cifar10": "CIFAR-10", "celeba": "CelebA"}
NETWORKS = {"resnet18": "ResNet18", "vgg16": "VGG16"}
TABLE1, CHIP, ABLATION, CHOICES = "table1", "chip", "ablation", "choices"
# what is run, in this order (first at one sigma): what matters most first, and CelebA, which is the largest, last
EXPERIMENTS = {
    "gtsrb_resnet18": TABLE1,
    "chip_gtsrb_resnet18": CHIP,
    "cifar10_vgg16": TABLE1,
    "chip_cifar10_vgg16": CHIP,
    **dict.fromkeys(["gtsrb_vgg16", "cifar10_resnet18"], TABLE1),
    **dict.fromkeys(["ablation_gtsrb", "ablation_cifar10"], ABLATION),
    **dict.fromkeys(["choices", "choices_augmentation", "choices_vgg16"], CHOICES),
    **dict.fromkeys(["celeba_resnet18", "celeba_vgg16"], TABLE1),
}
OFFICIAL_CIFAR10 = ("cifar-10-batches-py", "cifar-10-python.tar.gz")
JPEG_COPY, JPEG_LABEL = "CIFAR10-jpeg", "CIFAR-10, JPEG copy"
# image size and augmentation of conf/dataset/cifar10.yaml
AS_CIFAR10 = "dataset=image_folder dataset.image_size=32 dataset.crop_padding=4 dataset.rotation_degrees=10"
CIFAR10_CONTENT = "50,000 training and 10,000 test images in 10 classes"
# other sizes, so that the digits that stand for one data set are not those that stand for another
SMOKE_IMAGES = {"gtsrb": 128, "cifar10": 160, "celeba": 192}


@dataclass(frozen=True)
class Scale:
    """An entry of scales.yaml. It runs the kinds of experiments that it has a caption for."""

    name: str
    captions: dict[str, str]
    briefs: dict[str, str]
    overrides: dict[str, str]

    @property
    def experiments(self) -> list[str]:
        return [experiment for experiment, kind in EXPERIMENTS.items() if kind in self.captions]


_SCALES: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("scales.yaml").read_text(encoding="utf-8"))
SCALES = {name: Scale(name, **values) for name, values in _SCALES.items()}


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
    """A cell, how it is composed (overrides of eat-run), and where its data lie. Once it is planned: its runs'
    configurations by run id, those that are not final, and the seconds that these will take: less those of runs that
    another cell makes, too."""

    cell: Cell
    overrides: tuple[str, ...]
    data_dir: Path
    configs: dict[str, ExperimentConfig] = field(default_factory=dict[str, ExperimentConfig])
    todo: tuple[str, ...] = ()
    seconds: float = 0.0


def job(scale: Scale, experiment: str, data_dir: Path, download: bool = False) -> Job:
    """A cell of a scale, without run ids: those need the data. download: so no copy stands in for CIFAR-10."""
    kind = EXPERIMENTS[experiment]
    dataset = next((name for name in DATASETS if name in experiment), "gtsrb")
    network = next((name for name in NETWORKS if name in experiment), "resnet18")
    called, overrides = DATASETS[dataset], f"experiment=paper/{experiment} {scale.overrides.get(kind, '')}"
    official = download or any((data_dir / name).exists() for name in OFFICIAL_CIFAR10)
    if scale.name == "smoke":
        called, overrides = f"digits in place of {called}", f"{overrides} dataset.train_limit={SMOKE_IMAGES[dataset]}"
    elif dataset == "cifar10" and (data_dir / JPEG_COPY).is_dir() and not official:
        called, overrides, data_dir = JPEG_LABEL, f"{overrides} {AS_CIFAR10}", data_dir / JPEG_COPY
    cell = Cell(experiment, kind, called, DATASETS[dataset], NETWORKS[network])
    return Job(cell, tuple(overrides.split()), data_dir)
