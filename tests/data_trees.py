"""Small trees in the official layouts of the data sets, and the means to load them in spite of their size."""

import gzip
import hashlib
import pickle
import struct
import tarfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from eat_runner import data
from eat_runner.config import DatasetConfig

Colour = tuple[int, int, int]
CELEBA_ATTRIBUTES = ("5_o_Clock_Shadow", "Heavy_Makeup", "Male", "Mouth_Slightly_Open", "Smiling", "Young")


def relax(monkeypatch, *names: str) -> None:
    """Let data sets of any size pass as these."""
    for name in names:
        monkeypatch.setitem(data.DATASETS, name, replace(data.DATASETS[name], images=None, classes=None))


def load(name: str, data_dir: Path, size: int = 8, download: bool = False, **options) -> data.Dataset:
    return data.load(DatasetConfig(name=name, image_size=size, **options), data_dir, download)


def write_image(path: Path, colour: Colour, size: tuple[int, int] = (8, 8)) -> Path:
    """One colour all over, which scaling does not change (in a lossless format)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def colours(images: data.ImageSet) -> list[Colour]:
    """Of the upper left pixels."""
    return [tuple(pixel) for pixel in images.images_nhwc[:, 0, 0].tolist()]


def folder_tree(root: Path, classes: tuple[str, ...] = ("cat", "dog"), train: int = 4, test: int = 2) -> Path:
    """image_folder: red is the class, green the number in it, blue the split."""
    for blue, (split, count) in enumerate((("train", train), ("test", test))):
        for label, name in enumerate(classes):
            for i in range(count):
                write_image(root / split / name / f"{i:03d}.png", (label, i, blue))
    return root


def gtsrb_tree(root: Path, tracks: tuple[int, ...] = (7, 10, 20), frames: int = 3, tests: int = 4) -> Path:
    """GTSRB with so many tracks in each class, images of 15 to 250 pixels; red is the class, green the track, blue the
    frame. Test images: red is the class, green the number, blue 255. Returns the folder that GTSRB lies in."""
    sizes = [(15, 15), (40, 52), (8, 8), (250, 243)]
    for label, count in enumerate(tracks):
        folder = root / "GTSRB" / "Final_Training" / "Images" / f"{label:05d}"
        lines = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
        for track in range(count):
            for frame in range(frames):
                width, height = sizes[(track + frame) % 4] if track < 4 else (8, 8)
                name = f"{track:05d}_{frame:05d}.ppm"
                write_image(folder / name, (label, track, frame), (width, height))
                lines.append(f"{name};{width};{height};1;1;{width - 2};{height - 2};{label}")
        (folder / f"GT-{label:05d}.csv").write_text("\r\n".join(lines) + "\r\n")
    folder = root / "GTSRB" / "Final_Test"
    rows = [(f"{i:05d}.ppm", i * 2 % len(tracks)) for i in range(tests)]
    for i, (name, label) in enumerate(rows):
        write_image(folder / "Images" / name, (label, i, 255), sizes[i % 4])
    write_gtsrb_table(root, rows)
    return root


def write_gtsrb_table(root: Path, rows: list[tuple[str, int]]) -> Path:
    path = root / "GTSRB" / "Final_Test" / "GT-final_test.csv"
    header = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"
    path.write_text("\r\n".join([header, *(f"{name};8;8;1;1;6;6;{label}" for name, label in rows)]) + "\r\n")
    return path


def celeba_tree(root: Path, faces: list[tuple[int, int, int, int]]) -> Path:
    """CelebA with faces (heavy make-up, smiling, mouth slightly open, part); green is the face's number. The other
    attributes are the opposite of make-up, so that a wrong column gives a wrong class."""
    base = root / "celeba"
    attributes, partition = [str(len(faces)), " ".join(CELEBA_ATTRIBUTES) + " "], []
    for i, (makeup, smiling, mouth, part) in enumerate(faces):
        name = f"{i + 1:06d}.jpg"
        path = base / "img_align_celeba" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (178, 218), (0, i, 0)).save(path, quality=100, subsampling=0)
        bits = {"Heavy_Makeup": makeup, "Smiling": smiling, "Mouth_Slightly_Open": mouth}
        values = [bits.get(attribute, 1 - makeup) for attribute in CELEBA_ATTRIBUTES]
        attributes.append(f"{name} " + " ".join(" 1" if value else "-1" for value in values))
        partition.append(f"{name} {part}")
    (base / "list_attr_celeba.txt").write_text("\n".join(attributes) + "\n")
    (base / "list_eval_partition.txt").write_text("\n".join(partition) + "\n")
    return root


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


CIFAR = {
    "CIFAR10": ("cifar-10-batches-py", "labels", "label_names"),
    "CIFAR100": ("cifar-100-python", "fine_labels", "fine_label_names"),
}


def cifar_tree(root: Path, monkeypatch, name: str, images_nhwc: np.ndarray, labels: list[int]) -> dict[str, Path]:
    """CIFAR's folder and archive, the last image being the test set, taken as official from here on."""
    from torchvision import datasets

    folder, labels_key, names_key = CIFAR[name]
    train_name, test_name, meta_name = ("data_batch_1", "test_batch", "batches.meta")
    flat = images_nhwc.transpose(0, 3, 1, 2).reshape(len(images_nhwc), -1)
    contents = {
        train_name: pickle.dumps({"data": flat[:-1], labels_key: labels[:-1]}),
        test_name: pickle.dumps({"data": flat[-1:], labels_key: labels[-1:]}),
        meta_name: pickle.dumps({names_key: [str(i) for i in range(100)]}),
    }
    (root / folder).mkdir(parents=True)
    for file, content in contents.items():
        (root / folder / file).write_bytes(content)
    cls = getattr(datasets, name)
    archive = root / cls.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(root / folder, folder)
    monkeypatch.setattr(cls, "train_list", [[train_name, md5(contents[train_name])]])
    monkeypatch.setattr(cls, "test_list", [[test_name, md5(contents[test_name])]])
    monkeypatch.setattr(cls, "meta", {"filename": meta_name, "key": names_key, "md5": md5(contents[meta_name])})
    monkeypatch.setattr(cls, "tgz_md5", md5(archive.read_bytes()))
    return {"folder": root / folder, "archive": archive, "train": root / folder / train_name}


def idx(array: np.ndarray) -> bytes:
    """The format of MNIST's files, from its description: 0, 0, 8 (unsigned byte), dimensions, sizes, values."""
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def fashion_tree(root: Path, images: np.ndarray, labels: np.ndarray, tests: int = 2) -> Path:
    """FashionMNIST/raw; the last images are the test set. Returns that folder."""
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for split, part in (("train", slice(None, -tests)), ("t10k", slice(-tests, None))):
        (raw / f"{split}-images-idx3-ubyte").write_bytes(idx(images[part]))
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(idx(labels[part]))
    return raw


def compress(raw: Path, monkeypatch) -> None:
    """Replace FashionMNIST's raw files by the archives of its download, taken as official from here on."""
    from torchvision import datasets

    resources = []
    for path in sorted(raw.iterdir()):
        buffer = BytesIO()
        with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as file:
            file.write(path.read_bytes())
        path.with_name(f"{path.name}.gz").write_bytes(buffer.getvalue())
        path.unlink()
        resources.append((f"{path.name}.gz", md5(buffer.getvalue())))
    monkeypatch.setattr(datasets.FashionMNIST, "resources", resources)
