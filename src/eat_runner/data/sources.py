"""Where each data set comes from: what lies on disk, in the official layout, and which image has which label."""

import csv
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from eat_runner.data.images import ImageSet
from eat_runner.errors import UserError

TRAIN, TEST = "train", "test"
# a file of this name that cannot be read is damaged; what others are, their content says
IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
LITTER = frozenset({"__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini"})  # of operating systems, beside hidden files


class ImageFile(NamedTuple):
    """One image on disk. name: its path below the data set's root, with slashes. group: images of one group show the
    same object; -1 where there are no groups."""

    name: str
    label: int
    group: int = -1


@dataclass(frozen=True)
class Files:
    """A data set of image files: splits by name, class names, and the tables that its labels come from (like images,
    by their path below root).

    loose: anybody's files, of which those are images whose content is one, standing as their EXIF data say. elsewhere:
    files that lie where no class is, by their path below root.
    """

    root: Path
    splits: dict[str, list[ImageFile]]
    class_names: tuple[str, ...]
    tables: tuple[str, ...] = ()
    channels: int = 3
    loose: bool = False
    elsewhere: tuple[str, ...] = ()

    def content(self) -> Iterator[str]:
        """Every file that the data set's content depends on."""
        yield from self.tables
        yield from (image.name for images in self.splits.values() for image in images)


@dataclass(frozen=True)
class Arrays:
    """A data set that another library reads. read: its splits. version: changes when its content does."""

    read: Callable[[], dict[str, ImageSet]]
    class_names: tuple[str, ...]
    channels: int
    version: Callable[[], str]


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

    version = f"scikit-learn {importlib.metadata.version('scikit-learn')}"
    return Arrays(_read_digits, tuple("0123456789"), 1, lambda: version)


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
        unpacked = data_dir / folder
        if not download and not unpacked.is_dir() and not (data_dir / archive).exists():
            raise UserError(
                f"{name} is not in {data_dir}: download=true fetches it, or put {archive} or the folder {folder} there"
            )

        def read() -> dict[str, ImageSet]:
            try:
                return _read_torchvision(name, data_dir, download)
            except Exception as error:  # a damaged file can raise anything, an assertion without a message too
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise UserError(
                    f"{name} in {data_dir} cannot be used ({reason}): delete {unpacked} and fetch it again"
                ) from error

        return Arrays(read, _class_names(name), channels, lambda: _tree_version(unpacked))

    return find


def _read_torchvision(name: str, data_dir: Path, download: bool) -> dict[str, ImageSet]:
    from torchvision import datasets
    from torchvision.datasets.utils import check_integrity

    cls: Any = getattr(datasets, name)
    archives = {cls.filename: cls.tgz_md5} if hasattr(cls, "tgz_md5") else cls.resources
    below = data_dir if hasattr(cls, "tgz_md5") else data_dir / name / "raw"
    # torchvision's download=True fetches only what is not there, so it unpacks an intact archive without the network
    intact = all(check_integrity(str(below / file), md5) for file, md5 in dict(archives).items())
    splits: dict[str, ImageSet] = {}
    for split in (TRAIN, TEST):
        loaded = cls(data_dir, train=split == TRAIN, download=download or intact)
        images = np.asarray(loaded.data, dtype=np.uint8)
        images = images if images.ndim == 4 else images[..., None]
        splits[split] = ImageSet(images, np.asarray(loaded.targets, dtype=np.int64))
    return splits


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
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return stat_signature(folder, names) if folder.is_dir() else "not unpacked"


def stat_signature(root: Path, names: Iterable[str]) -> str:
    """Hash of names, sizes and modification times: a cheap sign of change. Names are below root, so that a tree can be
    moved."""
    stats = ((name, os.stat(f"{root}/{name}")) for name in sorted(names))
    lines = "".join(f"{name}|{status.st_size}|{status.st_mtime_ns}\n" for name, status in stats)
    return hashlib.sha256(os.fsencode(lines)).hexdigest()


def gtsrb(data_dir: Path, download: bool) -> Files:
    """The German Traffic Sign Recognition Benchmark as the paper splits it: Final_Training and Final_Test, 43 classes.

    torchvision's download is another, smaller training set (26,640 images), so there is no download here. The first
    five digits of a training file's name are its track: 30 pictures of one sign.
    """
    root = _one_of(data_dir, "GTSRB", "Final_Training")
    training, test = "Final_Training/Images", "Final_Test/Images"
    tables = (f"{folder}{_GT_TEST}" for folder in ("Final_Test/", "Final_Test/Images/", ""))
    table = next((name for name in tables if (root / name).is_file()), None)
    if not (root / training).is_dir() or not (root / test).is_dir() or table is None:
        raise UserError(
            f"GTSRB is not in {data_dir}: unpack GTSRB_Final_Training_Images.zip and GTSRB_Final_Test_Images.zip there "
            f"and put {_GT_TEST} from GTSRB_Final_Test_GT.zip into GTSRB/Final_Test (all from the benchmark's page)"
        )
    folders = _class_folders(root / training)
    for label, folder in enumerate(folders):
        if folder != f"{label:05d}":
            raise UserError(f"{root / training} has the class folder {folder} where GTSRB has {label:05d}")
    train = [
        ImageFile(name, label, label * 100_000 + _track(root, name))
        for label, folder in enumerate(folders)
        for name in _images_in(root, f"{training}/{folder}")
    ]
    tests = _gtsrb_test(root / table, test)
    if any(not 0 <= image.label < len(folders) for image in tests):
        raise UserError(f"{root / table} names a ClassId that {root / training} has no folder for")
    return Files(root, {TRAIN: train, TEST: tests}, tuple(folders), (table,))


_GT_TEST = "GT-final_test.csv"


def _gtsrb_test(table: Path, folder: str) -> list[ImageFile]:
    try:
        with table.open(newline="") as file:
            rows = [(row["Filename"], int(row["ClassId"])) for row in csv.DictReader(file, delimiter=";")]
    except (OSError, KeyError, ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{table} is not the official table: it needs the columns Filename and ClassId") from error
    return [ImageFile(f"{folder}/{_plain(name, table)}", label) for name, label in rows]


def _track(root: Path, name: str) -> int:
    digits = os.path.basename(name)[:5]
    if len(digits) < 5 or not digits.isdecimal():
        raise UserError(
            f"{root / name} is no training image of GTSRB: its name must begin with the five digits of its track"
        )
    return int(digits)


def _plain(name: str, table: Path) -> str:
    """A name that a table gives, if it is one: a table must not lead out of its folder of images."""
    if name != os.path.basename(name) or name in ("", ".", "..") or "\0" in name:
        raise UserError(f"{table} names {name!r}, which is no plain file name: fetch the official table again")
    return name


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
        parts = [line.split() for line in partition.read_text().splitlines()]
        chosen = [(name, _CELEBA_PARTS[part]) for name, part in parts if part in _CELEBA_PARTS]
        bits = [[values[name][column] == "1" for column in columns] for name, _ in chosen]
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise UserError(f"the tables in {root} are not CelebA's official ones ({error!r}): fetch them again") from error
    splits: dict[str, list[ImageFile]] = {TRAIN: [], TEST: []}
    for (name, split), (makeup, smile, mouth) in zip(chosen, bits, strict=True):
        label = 4 * makeup + 2 * smile + mouth
        splits[split].append(ImageFile(f"{images.name}/{_plain(name, partition)}", label))
    yes_no = [f"{first}, {second}, {third}" for first in _MAKEUP for second in _SMILE for third in _MOUTH]
    return Files(root, splits, tuple(yes_no), (attributes.name, partition.name))


_CELEBA_ATTRIBUTES = ("Heavy_Makeup", "Smiling", "Mouth_Slightly_Open")
_CELEBA_PARTS = {"0": TRAIN, "2": TEST}
_MAKEUP, _SMILE, _MOUTH = ("light make-up", "heavy make-up"), ("not smiling", "smiling"), ("mouth closed", "mouth open")


def image_folder(data_dir: Path, download: bool) -> Files:
    """Anybody's images: all below data_dir/train/<class>/ and data_dir/test/<class>/, with the same classes in both."""
    if not (data_dir / TRAIN).is_dir() or not (data_dir / TEST).is_dir():
        raise UserError(
            f"{data_dir} has no folders train and test: dataset=image_folder reads data_dir/train/<class>/ and "
            "data_dir/test/<class>/"
        )
    folders = {split: _class_folders(data_dir / split) for split in (TRAIN, TEST)}
    if folders[TRAIN] != folders[TEST]:
        odd = sorted(set(folders[TRAIN]) ^ set(folders[TEST]))[0]
        raise UserError(f"the class folder {odd} is in only one of {data_dir}/train and {data_dir}/test: both need it")
    splits = {
        split: [
            ImageFile(name, label)
            for label, folder in enumerate(found)
            for name in _all_files(data_dir, f"{split}/{folder}")
        ]
        for split, found in folders.items()
    }
    elsewhere = [
        f"{split}/{entry.name}" for split in splits for entry in _visible(data_dir / split) if not entry.is_dir()
    ]
    return Files(data_dir, splits, tuple(folders[TRAIN]), loose=True, elsewhere=tuple(sorted(elsewhere)))


def _all_files(root: Path, folder: str, above: frozenset[str] = frozenset()) -> list[str]:
    """Everything below root/folder by its path below root, sorted, folder by folder after the files beside them. above:
    the folders on the way there, so that a link into one of them leads nowhere."""
    real = os.path.realpath(root / folder)
    if real in above:
        return []
    entries = sorted(_visible(root / folder), key=lambda entry: entry.name)
    inside = [_all_files(root, f"{folder}/{entry.name}", above | {real}) for entry in entries if entry.is_dir()]
    return [f"{folder}/{entry.name}" for entry in entries if not entry.is_dir()] + [name for f in inside for name in f]


def _one_of(data_dir: Path, name: str, sign: str) -> Path:
    """data_dir/name, or data_dir itself if it is that folder."""
    return data_dir if (data_dir / sign).is_dir() else data_dir / name


def _class_folders(folder: Path) -> list[str]:
    found = sorted(entry.name for entry in _visible(folder) if entry.is_dir())
    if len(found) < 2:
        raise UserError(f"{folder} has {len(found)} class folders: at least 2 are needed, one for each class")
    return found


def _images_in(root: Path, folder: str) -> list[str]:
    """The images in root/folder, by their path below root."""
    names = sorted(entry.name for entry in _visible(root / folder))
    found = [f"{folder}/{name}" for name in names if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES]
    if not found:
        raise UserError(f"the class folder {root / folder} is empty: every class needs at least one image")
    return found


def _visible(folder: Path) -> "list[os.DirEntry[str]]":
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if entry.name[0] != "." and entry.name not in LITTER]
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}") from error
