"""Where each data set comes from: what lies on disk, in the official layout, and which image has which label."""

import csv
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eat_runner.data.images import ImageSet
from eat_runner.errors import UserError

TRAIN, TEST = "train", "test"
IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


@dataclass(frozen=True)
class ImageFile:
    """One image on disk. group: images of one group show the same object; -1 where there are no groups."""

    path: Path
    label: int
    group: int = -1


@dataclass(frozen=True)
class Files:
    """A data set of image files: splits by name, class names, and every file that its content depends on."""

    root: Path
    splits: dict[str, list[ImageFile]]
    class_names: tuple[str, ...]
    tables: tuple[Path, ...] = ()
    channels: int = 3

    def content(self) -> Iterator[Path]:
        yield from self.tables
        yield from (image.path for images in self.splits.values() for image in images)


@dataclass(frozen=True)
class Arrays:
    """A data set that another library reads: ``read()`` gives its splits; version changes when its content does."""

    read: Callable[[], dict[str, ImageSet]]
    class_names: tuple[str, ...]
    channels: int
    version: str


@dataclass(frozen=True)
class Source:
    """find: (data_dir, download) -> what is there; UserError where something is missing. images: number of training and
    test images, classes: number of classes of the official data; None where anything goes."""

    find: Callable[[Path, bool], Files | Arrays]
    images: tuple[int, int] | None = None
    classes: int | None = None


def digits(data_dir: Path, download: bool) -> Arrays:
    """scikit-learn's 1,797 handwritten digits of 8x8 pixels (a copy of UCI's test set); one in five is test."""
    import importlib.metadata

    return Arrays(_read_digits, tuple("0123456789"), 1, f"scikit-learn {importlib.metadata.version('scikit-learn')}")


def _read_digits() -> dict[str, ImageSet]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    images = np.round(pixels.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    labels = np.asarray(labels, dtype=np.int64)
    train, test = train_test_split(np.arange(len(labels)), test_size=0.2, random_state=0, stratify=labels)
    whole = ImageSet(images, labels)
    return {TRAIN: whole.take(np.sort(train)), TEST: whole.take(np.sort(test))}


def torchvision_archive(name: str, archive: str, folder: str, channels: int) -> Callable[[Path, bool], Arrays]:
    """A data set that torchvision downloads: class ``name`` of torchvision.datasets, its archive, and the folder that
    this unpacks to. torchvision compares every file of CIFAR with its MD5 before it opens the pickle in it."""

    def find(data_dir: Path, download: bool) -> Arrays:
        from torchvision import datasets

        cls: Any = getattr(datasets, name)
        unpacked = data_dir / folder
        if not download and not unpacked.is_dir() and not (data_dir / archive).exists():
            raise UserError(
                f"{name} is not in {data_dir}: download=true fetches it, or put {archive} or the folder {folder} there"
            )

        def read() -> dict[str, ImageSet]:
            splits: dict[str, ImageSet] = {}
            fetch = download or not unpacked.is_dir()  # an archive that is there is verified and unpacked
            try:
                for split in (TRAIN, TEST):
                    loaded = cls(data_dir, train=split == TRAIN, download=fetch)
                    images = np.asarray(loaded.data, dtype=np.uint8)
                    images = images if images.ndim == 4 else images[..., None]
                    splits[split] = ImageSet(images, np.asarray(loaded.targets, dtype=np.int64))
            except (OSError, RuntimeError, ValueError, EOFError) as error:
                reason = str(error).strip().splitlines()[0]
                raise UserError(
                    f"{name} in {data_dir} cannot be used ({reason}): delete it and fetch it again"
                ) from error
            return splits

        return Arrays(read, _class_names(name), channels, _tree_version(unpacked))

    return find


def _class_names(name: str) -> tuple[str, ...]:
    if name == "CIFAR10":
        return ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    if name == "CIFAR100":
        return tuple(f"class {i:02d}" for i in range(100))
    return (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    )  # fmt: skip


def _tree_version(folder: Path) -> str:
    """Changes when a file below the folder does: names, sizes and times."""
    if not folder.is_dir():
        return "not unpacked"
    return stat_signature(folder, (path for path in folder.rglob("*") if path.is_file()))


def stat_signature(root: Path, paths: Iterator[Path]) -> str:
    """Hash of names, sizes and modification times: a cheap sign of change. Relative, so that a tree can be moved."""
    digest = hashlib.sha256()
    for name in sorted(os.fspath(path) for path in paths):
        status = os.stat(name)
        digest.update(f"{os.path.relpath(name, root)}|{status.st_size}|{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def gtsrb(data_dir: Path, download: bool) -> Files:
    """The German Traffic Sign Recognition Benchmark as the paper splits it: Final_Training and Final_Test, 43 classes.

    torchvision's download is another, smaller training set (26,640 images), so there is no download here. The first
    five digits of a training file's name are its track: 30 pictures of one sign.
    """
    root = _one_of(data_dir, "GTSRB", "Final_Training")
    training, test = root / "Final_Training" / "Images", root / "Final_Test" / "Images"
    table = next((t for t in (test.parent / _GT_TEST, test / _GT_TEST, root / _GT_TEST) if t.is_file()), None)
    if not training.is_dir() or not test.is_dir() or table is None:
        raise UserError(
            f"GTSRB is not in {data_dir}: unpack GTSRB_Final_Training_Images.zip and GTSRB_Final_Test_Images.zip there "
            f"and put {_GT_TEST} from GTSRB_Final_Test_GT.zip into GTSRB/Final_Test (all from the benchmark's page)"
        )
    folders = _class_folders(training)
    train = [
        ImageFile(path, label, label * 100_000 + _track(path))
        for label, folder in enumerate(folders)
        for path in _images_in(folder)
    ]
    try:
        with table.open(newline="") as file:
            rows = list(csv.DictReader(file, delimiter=";"))
        tests = [ImageFile(test / row["Filename"], int(row["ClassId"])) for row in rows]
    except (KeyError, ValueError, TypeError, UnicodeDecodeError) as error:
        raise UserError(f"{table} is not the official table: it needs the columns Filename and ClassId") from error
    if any(not 0 <= image.label < len(folders) for image in tests):
        raise UserError(f"{table} names a ClassId that {training} has no folder for")
    return Files(root, {TRAIN: train, TEST: tests}, tuple(folder.name for folder in folders), (table,))


_GT_TEST = "GT-final_test.csv"


def _track(path: Path) -> int:
    if not path.stem[:5].isdigit():
        raise UserError(f"{path} is no training image of GTSRB: its name must begin with the five digits of its track")
    return int(path.stem[:5])


def celeba(data_dir: Path, download: bool) -> Files:
    """CelebA in 8 classes, 4 x Heavy_Makeup + 2 x Smiling + Mouth_Slightly_Open, as the code that the paper builds on.

    The official partition: 0 is training, 2 is test; 1 (validation) is left out, as in the paper.
    """
    root = _one_of(data_dir, "celeba", "img_align_celeba")
    images = root / "img_align_celeba"
    attributes, partition = root / "list_attr_celeba.txt", root / "list_eval_partition.txt"
    if not images.is_dir() or not attributes.is_file() or not partition.is_file():
        raise UserError(
            f"CelebA is not in {data_dir}: put img_align_celeba/, list_attr_celeba.txt and list_eval_partition.txt "
            f"(from the data set's own page) into {data_dir / 'celeba'}"
        )
    try:
        _, header, *rows = attributes.read_text().splitlines()
        columns = [header.split().index(name) + 1 for name in _CELEBA_ATTRIBUTES]
        values = {row.split()[0]: row.split() for row in rows if row.strip()}
        splits: dict[str, list[ImageFile]] = {TRAIN: [], TEST: []}
        for line in partition.read_text().splitlines():
            name, part = line.split()
            if part in _CELEBA_PARTS:
                label = sum(bit * (values[name][c] == "1") for bit, c in zip((4, 2, 1), columns, strict=True))
                splits[_CELEBA_PARTS[part]].append(ImageFile(images / name, label))
    except (ValueError, KeyError, IndexError, UnicodeDecodeError) as error:
        raise UserError(f"the tables in {root} are not CelebA's official ones ({error!r}): fetch them again") from error
    yes_no = [f"{first}, {second}, {third}" for first in _MAKEUP for second in _SMILE for third in _MOUTH]
    return Files(root, splits, tuple(yes_no), (attributes, partition))


_CELEBA_ATTRIBUTES = ("Heavy_Makeup", "Smiling", "Mouth_Slightly_Open")
_CELEBA_PARTS = {"0": TRAIN, "2": TEST}
_MAKEUP, _SMILE, _MOUTH = ("light make-up", "heavy make-up"), ("not smiling", "smiling"), ("mouth closed", "mouth open")


def image_folder(data_dir: Path, download: bool) -> Files:
    """Anybody's images: data_dir/train/<class>/* and data_dir/test/<class>/*, the same classes in both."""
    if not (data_dir / TRAIN).is_dir() or not (data_dir / TEST).is_dir():
        raise UserError(
            f"{data_dir} has no folders train and test: dataset=image_folder reads data_dir/train/<class>/ and "
            "data_dir/test/<class>/"
        )
    folders = {split: _class_folders(data_dir / split) for split in (TRAIN, TEST)}
    names = {split: [folder.name for folder in found] for split, found in folders.items()}
    if names[TRAIN] != names[TEST]:
        odd = sorted(set(names[TRAIN]) ^ set(names[TEST]))[0]
        raise UserError(f"the class folder {odd} is in only one of {data_dir}/train and {data_dir}/test: both need it")
    splits = {
        split: [ImageFile(path, label) for label, folder in enumerate(found) for path in _images_in(folder)]
        for split, found in folders.items()
    }
    return Files(data_dir, splits, tuple(names[TRAIN]))


def _one_of(data_dir: Path, name: str, sign: str) -> Path:
    """data_dir/name, or data_dir itself if it is that folder."""
    return data_dir if (data_dir / sign).is_dir() else data_dir / name


def _class_folders(folder: Path) -> list[Path]:
    found = sorted(path for path in _entries(folder) if path.is_dir() and not path.name.startswith("."))
    if len(found) < 2:
        raise UserError(f"{folder} has {len(found)} class folders: at least 2 are needed, one for each class")
    return found


def _images_in(folder: Path) -> list[Path]:
    found = sorted(path for path in _entries(folder) if path.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise UserError(f"the class folder {folder} is empty: every class needs at least one image")
    return found


def _entries(folder: Path) -> list[Path]:
    try:
        return [Path(entry.path) for entry in os.scandir(folder)]
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}") from error
