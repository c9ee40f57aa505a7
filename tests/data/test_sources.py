"""Every data set from a small tree in its official layout; what is missing or broken; the split; the store."""

import hashlib
import io
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import yaml
from PIL import Image

from data_trees import (
    celeba_tree,
    cifar_tree,
    colours,
    compress,
    fashion_tree,
    folder_tree,
    gtsrb_tree,
    idx,
    load,
    relax,
    write_gtsrb_table,
    write_image,
)
from eat_runner import data
from eat_runner.config import DatasetConfig
from eat_runner.data import store
from eat_runner.errors import UserError

CONF = Path(__file__).parents[2] / "conf" / "dataset"
SOURCE = Path(__file__).parents[2] / "src"


def refusal(name, data_dir, **options) -> str:
    """The one line that a person gets."""
    with pytest.raises(UserError) as caught:
        load(name, data_dir, **options)
    line = str(caught.value)
    assert "\n" not in line
    return line


def everything(dataset):
    """All that a data set holds, to compare two."""
    splits = (dataset.train, dataset.validation, dataset.test)
    arrays = [a for s in splits for a in (s.images_nhwc, s.labels, s.groups) if a is not None]
    return [a.tolist() for a in arrays], dataset.mean, dataset.std, dataset.class_names, dataset.fingerprint


def test_every_data_set_has_a_config_of_its_name_and_the_other_way_round():
    configs = {path.stem: yaml.safe_load(path.read_text()) for path in CONF.glob("*.yaml")}
    assert configs.keys() == data.DATASETS.keys()
    for name, config in configs.items():
        assert config.pop("name") == name
        config.pop("defaults")
        DatasetConfig(name=name, **config).check()


def test_an_unknown_data_set_is_refused_with_the_known_ones(tmp_path):
    line = refusal("mnist", tmp_path)
    assert line.startswith("dataset=mnist is unknown")
    assert all(name in line for name in data.DATASETS)


# digits


def test_digits_are_the_real_ones(tmp_path):
    from sklearn.datasets import load_digits

    digits = load("digits", tmp_path, validation=0.0)
    assert (len(digits.train), len(digits.test), len(digits.validation)) == (1437, 360, 0)
    assert digits.train.images_nhwc.shape == (1437, 8, 8, 1)
    assert digits.train.images_nhwc.dtype == np.uint8
    assert digits.class_names == tuple("0123456789")
    assert (digits.channels, digits.image_size) == (1, 8)
    pixels, labels = load_digits(return_X_y=True)
    scaled = np.round(pixels * 255 / 16).astype(np.uint8)
    official = Counter((label, bytes(row)) for row, label in zip(scaled, labels, strict=True))
    both = [*zip(digits.train.images_nhwc, digits.train.labels, strict=True)]
    both += [*zip(digits.test.images_nhwc, digits.test.labels, strict=True)]
    ours = Counter((label, bytes(image)) for image, label in both)
    assert ours == official
    per_class = np.bincount(digits.test.labels) / np.bincount(labels)
    assert np.all(np.abs(per_class - 0.2) < 0.01)


def test_digits_of_another_size_are_scaled(tmp_path):
    small, large = load("digits", tmp_path), load("digits", tmp_path, size=16)
    assert large.train.images_nhwc.shape == (len(small.train), 16, 16, 1)
    assert np.array_equal(large.train.labels, small.train.labels)
    assert large.fingerprint != small.fingerprint
    quarters = large.train.images_nhwc.astype(float).reshape(-1, 8, 2, 8, 2, 1).mean((2, 4))
    assert np.corrcoef(quarters.ravel(), small.train.images_nhwc.ravel())[0, 1] > 0.95


# image_folder


def test_image_folder(tmp_path):
    folders = load("image_folder", folder_tree(tmp_path), validation=0.25)
    assert folders.class_names == ("cat", "dog")
    assert (len(folders.train), len(folders.validation), len(folders.test)) == (6, 2, 4)
    assert colours(folders.test) == [(0, 0, 1), (0, 1, 1), (1, 0, 1), (1, 1, 1)]
    assert folders.test.labels.tolist() == [0, 0, 1, 1]
    assert sorted(colours(folders.train) + colours(folders.validation)) == [(c, i, 0) for c in (0, 1) for i in range(4)]
    assert [red for red, _, _ in colours(folders.train)] == folders.train.labels.tolist()


def test_images_of_any_size_and_kind_become_rgb(tmp_path):
    folder_tree(tmp_path, train=1, test=1)
    cat = tmp_path / "train" / "cat"
    Image.new("L", (3, 20), 77).save(cat / "grey.png")
    Image.new("LA", (9, 9), (33, 128)).save(cat / "grey_alpha.png")
    Image.new("RGBA", (64, 5), (1, 2, 3, 200)).save(cat / "alpha.png")
    Image.new("RGB", (8, 8), (10, 20, 30)).quantize(4).save(cat / "palette.png")
    Image.new("1", (8, 8), 1).save(cat / "bits.png")
    Image.new("RGB", (8, 8), (4, 5, 6)).save(cat / "UPPER.BMP")
    loaded = load("image_folder", tmp_path, validation=0.0)
    # over white: 33 * 128/255 + 255 * 127/255 is 143.6; 200/255 of (1, 2, 3) and 55 are (55.8, 56.6, 57.4)
    assert set(colours(loaded.train)[: loaded.train.labels.tolist().count(0)]) == {
        (0, 0, 0), (77, 77, 77), (144, 144, 144), (56, 57, 57), (10, 20, 30), (255, 255, 255), (4, 5, 6),
    }  # fmt: skip


def test_images_are_scaled_bilinearly(tmp_path):
    """Half the size: each pixel is a triangle filter over four pixels, weights 1, 3, 3, 1 over 8 (2 px inside)."""
    folder_tree(tmp_path, train=1, test=1)
    ramp = np.arange(16, dtype=np.uint8) * 16
    Image.fromarray(np.broadcast_to(ramp, (16, 16))).save(tmp_path / "test" / "cat" / "000.png")
    row = load("image_folder", tmp_path).test.images_nhwc[0, 4, :, 0].astype(int)
    naive = [(ramp[2 * i - 1 : 2 * i + 3].astype(int) * [1, 3, 3, 1]).sum() / 8 for i in range(1, 7)]
    assert np.abs(row[1:7] - naive).max() <= 1


def test_sixteen_bit_images_are_refused_and_not_turned_white(tmp_path):
    folder_tree(tmp_path)
    Image.fromarray(np.full((8, 8), 30_000, dtype=np.uint16)).save(tmp_path / "test" / "dog" / "deep.png")
    line = refusal("image_folder", tmp_path)
    assert "test/dog/deep.png" in line
    assert "8 bits" in line


def test_hidden_and_other_files_are_no_images(tmp_path):
    before = everything(load("image_folder", folder_tree(tmp_path)))
    (tmp_path / "train" / "cat" / "._000.png").write_bytes(b"of a Mac")
    (tmp_path / "train" / "cat" / "Thumbs.db").write_bytes(b"of a PC")
    (tmp_path / "train" / ".git").mkdir()
    assert everything(load("image_folder", tmp_path)) == before


@pytest.mark.parametrize(
    ("breakage", "words"),
    [
        (lambda root: shutil.rmtree(root / "test"), ("has no folders train and test", "data_dir/train/<class>/")),
        (lambda root: shutil.rmtree(root / "test" / "dog"), ("test has 1 class folders", "at least 2")),
        (lambda root: (root / "train" / "owl").mkdir(), ("class folder owl", "both need it")),
        (lambda root: [p.unlink() for p in (root / "train" / "dog").iterdir()], ("train/dog is empty", "at least one")),
        (lambda root: (root / "test" / "cat" / "000.png").write_bytes(b"no image"), ("test/cat/000.png", "replace")),
        (lambda root: (root / "train" / "cat" / "000.png").write_bytes(b""), ("train/cat/000.png", "replace")),
        (lambda root: (root / "train" / "cat" / "x.png").symlink_to("gone.png"), ("train/cat/x.png", "complete")),
    ],
)
def test_a_broken_image_folder_is_refused_in_one_line(tmp_path, breakage, words):
    breakage(folder_tree(tmp_path))
    line = refusal("image_folder", tmp_path)
    assert all(word in line for word in (str(tmp_path), *words)), line
    assert not list(tmp_path.glob(".eat-store/*.making-*"))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # what Pillow thinks of damaged TIFFs
@pytest.mark.parametrize("suffix", ["png", "jpg", "ppm", "bmp", "tif", "webp"])
def test_a_damaged_image_is_refused_or_readable_and_never_anything_else(tmp_path, suffix):
    folder_tree(tmp_path, train=1, test=1)
    path = tmp_path / "train" / "cat" / f"x.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(path)
    whole, rng, refused = path.read_bytes(), random.Random(0), 0
    for i in range(20):
        damaged = bytearray(whole[: rng.randrange(len(whole))] if i % 2 else whole)
        for _ in range(5 if not i % 2 else 0):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            load("image_folder", tmp_path)
        except UserError as error:
            assert str(path) in str(error)  # noqa: PT017 - an undetected change of a pixel is fine too
            refused += 1
    assert refused >= 5


# GTSRB


def test_gtsrb(tmp_path, monkeypatch):
    relax(monkeypatch, "gtsrb")
    signs = load("gtsrb", gtsrb_tree(tmp_path), validation=0.0)
    assert (len(signs.train), len(signs.test), signs.channels) == ((7 + 10 + 20) * 3, 4, 3)
    assert signs.class_names == ("00000", "00001", "00002")
    assert [red for red, _, _ in colours(signs.train)] == signs.train.labels.tolist()
    assert colours(signs.test) == [(0, 0, 255), (2, 1, 255), (1, 2, 255), (0, 3, 255)]
    assert signs.test.labels.tolist() == [0, 2, 1, 0]
    # a group is one track of one class
    pairs = {
        (group, red, green)
        for group, (red, green, _) in zip(signs.train.groups.tolist(), colours(signs.train), strict=True)
    }
    assert len(pairs) == len({group for group, _, _ in pairs}) == 7 + 10 + 20


@pytest.mark.parametrize("place", ["GTSRB", "GTSRB/Final_Test/Images"])
def test_gtsrb_is_found_in_its_own_folder_and_with_the_table_elsewhere(tmp_path, monkeypatch, place):
    relax(monkeypatch, "gtsrb")
    usual = everything(load("gtsrb", gtsrb_tree(tmp_path)))
    table = tmp_path / "GTSRB" / "Final_Test" / "GT-final_test.csv"
    table.rename(tmp_path / place / table.name)
    moved = everything(load("gtsrb", tmp_path / "GTSRB"))
    assert moved[:-1] == usual[:-1]


def test_the_validation_split_of_gtsrb_takes_whole_tracks(tmp_path, monkeypatch):
    """One track in ten of each class, at least one: of 7, 10 and 20 tracks 1, 1 and 2."""
    relax(monkeypatch, "gtsrb")
    signs = load("gtsrb", gtsrb_tree(tmp_path))
    held_out, kept = ({(r, g) for r, g, _ in colours(s)} for s in (signs.validation, signs.train))
    assert Counter(label for label, _ in held_out) == {0: 1, 1: 1, 2: 2}
    assert Counter(label for label, _ in kept) == {0: 6, 1: 9, 2: 18}
    assert not held_out & kept
    assert (len(signs.validation), len(signs.train)) == (4 * 3, 33 * 3)


GOOD_ROWS = [("00000.ppm", 0), ("00001.ppm", 2), ("00002.ppm", 1), ("00003.ppm", 0)]


@pytest.mark.parametrize(
    ("breakage", "words"),
    [
        (lambda root: shutil.rmtree(root), ("GTSRB is not in", "GTSRB_Final_Training_Images.zip")),
        (lambda root: (root / "Final_Test" / "GT-final_test.csv").unlink(), ("GTSRB is not in", "GT-final_test.csv")),
        (lambda root: (root / "Final_Test" / "Images" / "00002.ppm").unlink(), ("00002.ppm", "complete the data set")),
        (lambda root: shutil.rmtree(root / "Final_Training/Images/00001"), ("folder 00002 where GTSRB has 00001",)),
        (lambda root: (root / "Final_Training/Images/00000").rename(root / "Final_Training/Images/0"), (" 0 where ",)),
        (lambda root: write_image(root / "Final_Training/Images/00001/sign.ppm", (0, 0, 0)), ("sign.ppm", "track")),
        (lambda root: (root / "Final_Test" / "GT-final_test.csv").write_bytes(b"\xff\xfe\0"), ("GT-final", "columns")),
        (lambda root: (root / "Final_Test" / "GT-final_test.csv").write_text("a;b\n1;2\n"), ("GT-final", "columns")),
        (lambda root: write_gtsrb_table(root.parent, [("00000.ppm", "stop")]), ("GT-final_test.csv", "ClassId")),
        (lambda root: write_gtsrb_table(root.parent, [("00000.ppm", 3)]), ("GT-final_test.csv", "ClassId")),
        (lambda root: write_gtsrb_table(root.parent, [("00000.ppm", -1)]), ("GT-final_test.csv", "ClassId")),
    ],
)
def test_a_broken_gtsrb_is_refused_in_one_line(tmp_path, monkeypatch, breakage, words):
    relax(monkeypatch, "gtsrb")
    breakage(gtsrb_tree(tmp_path, tracks=(2, 2, 2), frames=1) / "GTSRB")
    line = refusal("gtsrb", tmp_path)
    assert all(word in line for word in words), line


@pytest.mark.parametrize("name", ["../../../secret.ppm", "/etc/passwd", "..", "", "a/b.ppm", "a\0.ppm"])
def test_tables_cannot_lead_out_of_their_folder(tmp_path, monkeypatch, name):
    relax(monkeypatch, "gtsrb", "celeba")
    gtsrb_tree(tmp_path, tracks=(2, 2, 2), frames=1)
    write_image(tmp_path / "secret.ppm", (9, 9, 9))
    write_gtsrb_table(tmp_path, [*GOOD_ROWS, (name, 0)])
    assert "no plain file name" in refusal("gtsrb", tmp_path)
    celeba_tree(tmp_path, [(1, 1, 1, 0), (0, 0, 0, 2)])
    for table in (tmp_path / "celeba" / t for t in ("list_attr_celeba.txt", "list_eval_partition.txt")):
        table.write_text(table.read_text().replace("000002.jpg", name))
    assert "celeba" in refusal("celeba", tmp_path)  # an empty name is a missing column


@pytest.mark.parametrize(
    ("name", "tree", "sizes"),
    [
        (
            "gtsrb",
            lambda root, _: gtsrb_tree(root, (2, 2), 1),
            "4 training and 4 test images, the official one has 39209",
        ),
        ("celeba", lambda root, _: celeba_tree(root, [(1, 1, 1, 0), (0, 0, 0, 2)]), "1 training and 1 test"),
        ("cifar10", lambda root, m: cifar_tree(root, m, "CIFAR10", *CIFAR_IMAGES), "3 training and 1 test"),
        ("fashion_mnist", lambda root, _: fashion_tree(root, *FASHION), "3 training and 2 test"),
    ],
)
def test_official_sizes_are_asserted_before_any_image_is_read(tmp_path, monkeypatch, name, tree, sizes):
    tree(tmp_path, monkeypatch)
    monkeypatch.setattr(Image, "open", None)
    line = refusal(name, tmp_path)
    assert sizes in line
    assert "complete it" in line


def test_the_official_number_of_classes_is_asserted(tmp_path, monkeypatch):
    monkeypatch.setitem(data.DATASETS, "gtsrb", replace(data.DATASETS["gtsrb"], images=None))
    assert "3 classes, the official one has 43" in refusal("gtsrb", gtsrb_tree(tmp_path, (2, 2, 2), 1))


def test_the_official_sizes():
    """From the pages of the data sets."""
    sizes = {name: (source.images, source.classes) for name, source in data.DATASETS.items()}
    assert sizes == {
        "digits": ((1437, 360), 10),
        "cifar10": ((50_000, 10_000), 10),
        "cifar100": ((50_000, 10_000), 100),
        "fashion_mnist": ((60_000, 10_000), 10),
        "gtsrb": ((39_209, 12_630), 43),
        "celeba": ((162_770, 19_962), 8),
        "image_folder": (None, None),
    }


# CelebA


def test_celeba_has_the_papers_eight_classes(tmp_path, monkeypatch):
    """4 x Heavy_Makeup + 2 x Smiling + Mouth_Slightly_Open; part 1 (validation) of the official partition is unused."""
    relax(monkeypatch, "celeba")
    attributes = [(makeup, smile, mouth) for makeup in (0, 1) for smile in (0, 1) for mouth in (0, 1)]
    faces = [(*a, 0) for a in attributes] + [(1, 0, 1, 1)] + [(*a, 2) for a in reversed(attributes)]
    celeba = load("celeba", celeba_tree(tmp_path, faces), validation=0.0, size=16)
    assert celeba.train.labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert celeba.test.labels.tolist() == [7, 6, 5, 4, 3, 2, 1, 0]
    assert [green for _, green, _ in colours(celeba.test)] == pytest.approx(range(9, 17), abs=2)  # JPEG
    assert celeba.train.images_nhwc.shape == (8, 16, 16, 3)
    assert celeba.class_names[5] == "heavy make-up, not smiling, mouth open"
    assert celeba.class_names[2] == "light make-up, smiling, mouth closed"


@pytest.mark.parametrize(
    ("breakage", "words"),
    [
        (lambda root: (root / "list_eval_partition.txt").unlink(), ("CelebA is not in", "list_eval_partition.txt")),
        (lambda root: (root / "list_attr_celeba.txt").write_text("2\nSmiling Young\n"), ("tables in", "fetch them")),
        (lambda root: (root / "list_attr_celeba.txt").write_bytes(b"\xff\xfe\0"), ("tables in", "fetch them again")),
        (lambda root: (root / "list_attr_celeba.txt").write_text(""), ("tables in", "fetch them again")),
        (lambda root: (root / "list_eval_partition.txt").write_text("000009.jpg 0\n"), ("tables in", "000009.jpg")),
        (lambda root: (root / "img_align_celeba" / "000002.jpg").unlink(), ("000002.jpg", "complete the data set")),
    ],
)
def test_a_broken_celeba_is_refused_in_one_line(tmp_path, monkeypatch, breakage, words):
    relax(monkeypatch, "celeba")
    breakage(celeba_tree(tmp_path, [(1, 1, 1, 0), (0, 0, 0, 2)]) / "celeba")
    line = refusal("celeba", tmp_path)
    assert all(word in line for word in words), line


# CIFAR and FashionMNIST

CIFAR_IMAGES = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8), [3, 0, 9, 1]
FASHION = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8), np.array([9, 0, 4, 1, 3], np.uint8)


@pytest.fixture
def network(monkeypatch):
    """There is none; what was asked of it."""
    asked = []

    def refuse(request, *_, **__):
        asked.append(request)
        raise URLError("no route")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    return asked


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100"])
def test_cifar_from_its_folder_or_its_archive(tmp_path, monkeypatch, network, name, packed):
    relax(monkeypatch, name.lower())
    images, labels = CIFAR_IMAGES
    files = cifar_tree(tmp_path, monkeypatch, name, images, labels)
    if packed:
        shutil.rmtree(files["folder"])
    else:
        files["archive"].unlink()
    cifar = load(name.lower(), tmp_path, size=32, validation=0.0)
    assert np.array_equal(cifar.train.images_nhwc, images[:-1])
    assert np.array_equal(cifar.test.images_nhwc, images[-1:])
    assert (cifar.train.labels.tolist(), cifar.test.labels.tolist()) == ([3, 0, 9], [1])
    assert len(cifar.class_names) == int(name.removeprefix("CIFAR"))
    assert network == []
    monkeypatch.setattr(pickle, "load", None)
    assert everything(load(name.lower(), tmp_path, size=32, validation=0.0)) == everything(cifar)  # from the store


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("where", ["folder", "archive"])
@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100"])
def test_no_pickle_of_another_checksum_is_opened(tmp_path, monkeypatch, network, name, where):
    relax(monkeypatch, name.lower())
    files = cifar_tree(tmp_path, monkeypatch, name, *CIFAR_IMAGES)
    trap = tmp_path / "sprung"
    pickle.loads(pickle.dumps(Malicious(trap)))
    trap.rmdir()  # it works
    files["train"].write_bytes(pickle.dumps(Malicious(trap)))
    if where == "archive":
        with tarfile.open(files["archive"], "w:gz") as tar:
            tar.add(files["folder"], files["folder"].name)
        shutil.rmtree(files["folder"])
    else:
        files["archive"].unlink()
    line = refusal(name.lower(), tmp_path)
    assert not trap.exists()
    assert network == []  # not asked for a download
    assert "fetch it again" in line
    assert files["folder"].exists() == (where == "folder")  # nor is it unpacked


@pytest.mark.parametrize("packed", [False, True])
def test_fashion_mnist(tmp_path, monkeypatch, network, packed):
    relax(monkeypatch, "fashion_mnist")
    images, labels = FASHION
    raw = fashion_tree(tmp_path, images, labels)
    if packed:
        compress(raw, monkeypatch)
    clothes = load("fashion_mnist", tmp_path, size=28, validation=0.0)
    assert np.array_equal(clothes.train.images_nhwc, images[:-2, :, :, None])
    assert np.array_equal(clothes.test.images_nhwc, images[-2:, :, :, None])
    assert (clothes.train.labels.tolist(), clothes.test.labels.tolist()) == ([9, 0, 4], [1, 3])
    assert network == []
    assert (clothes.channels, clothes.class_names[9], clothes.class_names[0]) == (1, "Ankle boot", "T-shirt/top")


@pytest.mark.parametrize(
    "breakage",
    [
        lambda raw: (raw / "train-labels-idx1-ubyte").unlink(),
        lambda raw: (raw / "train-images-idx3-ubyte").write_bytes(b""),
        lambda raw: (raw / "train-images-idx3-ubyte").write_bytes(idx(FASHION[0][:-2])[:-1]),
        lambda raw: (raw / "train-images-idx3-ubyte").write_bytes(b"\0\0\7" + idx(FASHION[0][:-2])[3:]),
        lambda raw: (raw / "train-images-idx3-ubyte").write_bytes(b"\0\0\x0d" + idx(FASHION[0][:-2])[3:]),
        lambda raw: (raw / "t10k-labels-idx1-ubyte").write_bytes(idx(FASHION[1])),
        lambda raw: (raw / "t10k-labels-idx1-ubyte").write_bytes(idx(np.array([0, 10], np.uint8))),
    ],
)
def test_broken_fashion_mnist_files_are_refused_in_one_line(tmp_path, monkeypatch, breakage):
    relax(monkeypatch, "fashion_mnist")
    breakage(fashion_tree(tmp_path, *FASHION))
    line = refusal("fashion_mnist", tmp_path)
    assert "fashion" in line.lower()
    assert "fetch it again" in line


@pytest.mark.parametrize(
    ("name", "what"),
    [("cifar10", "cifar-10-python.tar.gz"), ("cifar100", "cifar-100-python.tar.gz"), ("fashion_mnist", "FashionMNIST")],
)
def test_a_missing_data_set_says_what_to_fetch_and_is_never_fetched_silently(tmp_path, network, name, what):
    line = refusal(name, tmp_path / "nowhere")
    assert network == []
    assert "download=true" in line
    assert what in line


def test_a_download_without_a_network_is_one_line_too(tmp_path, network):
    assert "no route" in refusal("cifar10", tmp_path, download=True)
    assert network


# the splits


def test_the_validation_split_is_stratified_disjoint_and_always_the_same(tmp_path):
    folder_tree(tmp_path, ("a", "b"), train=20)
    for i in range(20, 30):
        write_image(tmp_path / "train" / "b" / f"{i:03d}.png", (1, i, 0))
    first = load("image_folder", tmp_path, validation=0.1)
    assert Counter(first.validation.labels.tolist()) == {0: 2, 1: 3}
    assert not set(colours(first.train)) & set(colours(first.validation))
    assert len(set(colours(first.train)) | set(colours(first.validation))) == 50
    assert colours(load("image_folder", tmp_path, validation=0.1).validation) == colours(first.validation)
    assert colours(load("image_folder", tmp_path, validation=0.1, train_limit=4).validation) == colours(
        first.validation
    )


def test_every_class_is_validated_unless_that_would_leave_it_without_training(tmp_path):
    folder_tree(tmp_path, ("a", "b"), train=3)
    for i in (1, 2):
        (tmp_path / "train" / "b" / f"{i:03d}.png").unlink()
    loaded = load("image_folder", tmp_path, validation=0.01)
    assert (loaded.validation.labels.tolist(), loaded.train.labels.tolist()) == ([0], [0, 0, 1])


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(0, [9, 9, 3]), (1, None), (6, [2, 2, 2]), (8, None), (9, [3, 3, 3]), (13, [5, 5, 3]), (99, [9, 9, 3])],
)
def test_the_training_limit_is_spread_over_the_classes(tmp_path, limit, expected):
    folder_tree(tmp_path, ("a", "b", "c"), train=9)
    for i in range(3, 9):
        (tmp_path / "train" / "c" / f"{i:03d}.png").unlink()
    counts = np.bincount(load("image_folder", tmp_path, validation=0.0, train_limit=limit).train.labels, minlength=3)
    assert counts.tolist() == expected if expected else (counts.sum() == limit and np.ptp(counts) == 1)


@pytest.mark.parametrize("options", [{}, {"validation": 0.0}, {"train_limit": 37}])
def test_mean_and_deviation_are_those_of_the_training_split(tmp_path, options):
    folder_tree(tmp_path, train=0, test=1)
    rng = np.random.default_rng(0)
    for label, name in enumerate(("cat", "dog")):
        for i in range(30):
            (tmp_path / "train" / name).mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 128 * (label + 1), (8, 8, 3), dtype=np.uint8) // np.array([1, 2, 3], np.uint8)
            Image.fromarray(pixels).save(tmp_path / "train" / name / f"{i}.png")
    loaded = load("image_folder", tmp_path, **options)
    values = loaded.train.images_nhwc.astype(np.float64) / 255
    naive_mean = [sum(v for v in values[..., c].flat) / values[..., c].size for c in range(3)]
    naive_std = [
        (sum((v - m) ** 2 for v in values[..., c].flat) / values[..., c].size) ** 0.5 for c, m in enumerate(naive_mean)
    ]
    assert loaded.mean == pytest.approx(naive_mean, rel=1e-12)
    assert loaded.std == pytest.approx(naive_std, rel=1e-12)


def test_a_channel_that_never_changes_is_not_divided_by_zero(tmp_path):
    for split in ("train", "test"):
        for name in "ab":
            write_image(tmp_path / split / name / "0.png", (7, 0, 255))
    loaded = load("image_folder", tmp_path)
    assert loaded.mean == pytest.approx((7 / 255, 0, 1))
    assert loaded.std == (1.0, 1.0, 1.0)


# the fingerprint


def test_the_fingerprint_is_that_of_names_contents_and_image_size(tmp_path):
    tree = folder_tree(tmp_path)
    files = sorted(path.relative_to(tree).as_posix() for path in tree.rglob("*.png"))
    lines = "".join(f"{hashlib.sha256((tree / name).read_bytes()).hexdigest()} {name}\n" for name in files)
    for size in (8, 5):
        expected = hashlib.sha256(f"{hashlib.sha256(lines.encode()).hexdigest()} {size}".encode()).hexdigest()
        assert load("image_folder", tree, size=size).fingerprint == expected[:16]


def test_the_fingerprint_follows_content_and_names_but_not_place_or_time(tmp_path):
    tree = folder_tree(tmp_path / "one")
    original = load("image_folder", tree).fingerprint
    shutil.copytree(tree, tmp_path / "two", ignore=shutil.ignore_patterns(".eat-store"))
    assert load("image_folder", tmp_path / "two").fingerprint == original
    for path in tree.rglob("*.png"):
        os.utime(path, (1, 1))
    assert load("image_folder", tree).fingerprint == original
    write_image(tree / "train" / "cat" / "000.png", (0, 0, 99))
    changed = load("image_folder", tree).fingerprint
    (tree / "train" / "cat" / "000.png").rename(tree / "train" / "cat" / "0.png")
    renamed = load("image_folder", tree).fingerprint
    assert len({original, changed, renamed, load("image_folder", tree, size=16).fingerprint}) == 4


def test_the_fingerprint_follows_the_labels_in_a_table(tmp_path, monkeypatch):
    relax(monkeypatch, "gtsrb")
    first = load("gtsrb", gtsrb_tree(tmp_path, (2, 2, 2), 1))
    write_gtsrb_table(tmp_path, [*GOOD_ROWS[:3], ("00003.ppm", 2)])
    second = load("gtsrb", tmp_path)
    assert second.test.labels.tolist() == [0, 2, 1, 2]
    assert second.fingerprint != first.fingerprint


# the store


def folder_of(tree: Path) -> Path:
    return tree / ".eat-store" / "image_folder-8"


def test_a_second_load_reads_no_image(tmp_path, monkeypatch):
    first = everything(load("image_folder", folder_tree(tmp_path)))
    monkeypatch.setattr(Image, "open", None)
    assert everything(load("image_folder", tmp_path)) == first
    assert load("image_folder", tmp_path, train_limit=2, validation=0.25).fingerprint == first[-1]


@pytest.mark.parametrize(
    "change",
    [
        lambda cats: write_image(cats / "000.png", (0, 77, 0)),
        lambda cats: write_image(cats / "new.png", (0, 77, 0)),
        lambda cats: (cats / "000.png").unlink(),
        lambda cats: (cats / "000.png").rename(cats / "zzz.png"),
    ],
)
def test_the_store_follows_its_source(tmp_path, change):
    load("image_folder", folder_tree(tmp_path))
    change(tmp_path / "train" / "cat")
    followed = everything(load("image_folder", tmp_path))
    shutil.rmtree(tmp_path / ".eat-store")
    assert followed == everything(load("image_folder", tmp_path))


STORE_FILES = [
    "meta.json", "moments.npy", "test-groups.npy", "test-images.npy", "test-labels.npy",
    "train-groups.npy", "train-images.npy", "train-labels.npy",
]  # fmt: skip


@pytest.mark.parametrize("name", STORE_FILES)
@pytest.mark.parametrize("damage", ["truncated", "bit", "empty", "gone"])
def test_a_damaged_store_is_noticed_and_made_again(tmp_path, name, damage):
    first = everything(load("image_folder", folder_tree(tmp_path)))
    assert sorted(path.name for path in folder_of(tmp_path).iterdir()) == STORE_FILES
    path = folder_of(tmp_path) / name
    whole = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        flipped = bytearray(whole)
        flipped[-2] ^= 4
        path.write_bytes({"truncated": whole[:-1], "bit": bytes(flipped), "empty": b""}[damage])
    assert everything(load("image_folder", tmp_path)) == first
    assert path.read_bytes() == whole


def saved(array: object, **how: bool) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **how)  # type: ignore[arg-type]
    return file.getvalue()


@pytest.mark.parametrize("name", STORE_FILES[1:])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no array",
        saved(np.array([{}], dtype=object), allow_pickle=True),
        saved(np.zeros((1, 2, 3, 4, 5))),
        saved(np.array([10**6, -1])),
        saved(np.zeros(4)).replace(b"(4,)", b"(9999999999999,)"),
    ],
)
def test_a_store_of_other_arrays_is_made_again_though_its_checksums_fit(tmp_path, name, content):
    first = everything(load("image_folder", folder_tree(tmp_path)))
    path, description = folder_of(tmp_path) / name, folder_of(tmp_path) / "meta.json"
    whole = path.read_bytes()
    path.write_bytes(content)
    meta = json.loads(description.read_text())
    meta["checksums"][name] = zlib.crc32(content)
    del meta["checksum"]
    description.write_text(json.dumps(meta | {"checksum": zlib.crc32(json.dumps(meta, sort_keys=True).encode())}))
    assert everything(load("image_folder", tmp_path)) == first
    assert path.read_bytes() == whole


@pytest.mark.parametrize("key", ["fingerprint", "class_names", "channels"])
def test_a_description_that_was_changed_is_not_believed(tmp_path, key):
    first = everything(load("image_folder", folder_tree(tmp_path)))
    path = folder_of(tmp_path) / "meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: "changed"}))
    assert everything(load("image_folder", tmp_path)) == first


def test_a_store_of_another_format_is_made_again(tmp_path, monkeypatch):
    first = everything(load("image_folder", folder_tree(tmp_path)))
    monkeypatch.setattr("eat_runner.data.store.FORMAT", 2)
    assert everything(load("image_folder", tmp_path)) == first
    assert json.loads((folder_of(tmp_path) / "meta.json").read_text())["format"] == 2


def test_images_that_change_while_they_are_read_are_read_again(tmp_path, monkeypatch):
    """The signature in the store is that of before the build."""
    folder_tree(tmp_path)
    read = store.Reading.read

    def read_then_change(self, path):
        value = read(self, path)
        if path.name == "001.png" and "train/cat" in path.as_posix():
            write_image(path, (0, 123, 0))
        return value

    monkeypatch.setattr(store.Reading, "read", read_then_change)
    load("image_folder", tmp_path)
    monkeypatch.setattr(store.Reading, "read", read)
    assert (0, 123, 0) in colours(load("image_folder", tmp_path, validation=0.0).train)


def start(code: str, *arguments: object, prefix: tuple[str, ...] = (), **environment: object) -> subprocess.Popen[str]:
    """Run code in another process, with ``load`` of data_trees and the module store."""
    head = """
import os, signal, sys, time
from pathlib import Path
from data_trees import load
from eat_runner.data import store
"""
    path = os.pathsep.join([str(SOURCE), str(Path(__file__).parents[1])])
    return subprocess.Popen(
        [*prefix, sys.executable, "-c", head + code, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": path} | {key: str(value) for key, value in environment.items()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    out, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    return out.strip()


def test_a_killed_builder_leaves_nothing_that_matters(tmp_path):
    tree = folder_tree(tmp_path)
    code = """
read = store.Reading.read
def read_or_die(self, path):
    if "test" in path.parts:
        os.kill(os.getpid(), signal.SIGKILL)
    return read(self, path)
store.Reading.read = read_or_die
load("image_folder", Path(sys.argv[1]))
"""
    killed = start(code, tree)
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    parent = tree / ".eat-store"
    assert len(list(parent.glob("image_folder-8.making-*"))) == 1
    loaded = load("image_folder", tree)
    assert len(loaded.train) + len(loaded.validation) == 8
    assert {path.name for path in parent.iterdir()} == {"image_folder-8", "image_folder-8.lock"}


def test_processes_that_need_a_store_at_once_build_one(tmp_path):
    tree = folder_tree(tmp_path / "data")
    code = """
tree, me, count, read = Path(sys.argv[1]), sys.argv[2], [0], store.Reading.read
def read_slowly(self, path):
    time.sleep(0.02)
    count[0] += 1
    return read(self, path)
store.Reading.read = read_slowly
(tree.parent / f"ready-{me}").touch()
while not all((tree.parent / f"ready-{other}").exists() for other in range(3)):
    time.sleep(0.005)
loaded = load("image_folder", tree)
print(count[0], loaded.fingerprint, int(loaded.train.images_nhwc.sum()))
"""
    answers = [finish(process).split() for process in [start(code, tree, i) for i in range(3)]]
    assert sorted(int(count) for count, *_ in answers) == [0, 0, 12]
    expected = load("image_folder", tree)
    assert {tuple(rest) for _, *rest in answers} == {
        (expected.fingerprint, str(expected.train.images_nhwc.astype(int).sum()))
    }


def test_where_the_store_cannot_lie_beside_the_data_it_lies_in_the_cache(tmp_path, monkeypatch):
    tree = folder_tree(tmp_path / "data")
    (tree / ".eat-store").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    loaded = load("image_folder", tree)
    assert len(loaded.test) == 4
    assert [path.name for path in (tmp_path / "cache" / "eat-runner").glob("*/image_folder-8")] == ["image_folder-8"]
    other = folder_tree(tmp_path / "other", ("x", "y"))
    (other / ".eat-store").write_text("in the way")
    assert load("image_folder", other).class_names == ("x", "y")  # another folder is another store
    monkeypatch.setattr(Image, "open", None)
    assert load("image_folder", tree).class_names == ("cat", "dog")


def test_nowhere_to_put_the_store_is_one_line(tmp_path, monkeypatch):
    tree = folder_tree(tmp_path / "data")
    (tree / ".eat-store").write_text("in the way")
    (tmp_path / "cache").write_text("in the way too")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    line = refusal("image_folder", tree)
    assert str(tree / ".eat-store") in line
    assert "point data_dir" in line


def mounting(script: str) -> tuple[str, ...]:
    """Prefix of a command that runs after ``script`` in a world of mounts of its own."""
    prefix = ("unshare", "--user", "--map-root-user", "--mount") if os.geteuid() else ("unshare", "--mount")
    try:
        subprocess.run([*prefix, "sh", "-c", "mount -t tmpfs none /mnt"], check=True, capture_output=True, timeout=20)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"no mounts of one's own here: {error}")
    return (*prefix, "sh", "-ec", script + '\nexec "$@"', "sh")


def test_a_read_only_folder_of_data_gets_its_store_in_the_cache(tmp_path):
    tree = folder_tree(tmp_path / "data")
    prefix = mounting(f"mount --bind '{tree}' '{tree}'\nmount -o remount,bind,ro '{tree}'")
    code = 'print(len(load("image_folder", Path(sys.argv[1])).test))'
    assert finish(start(code, tree, prefix=prefix, XDG_CACHE_HOME=tmp_path / "cache")) == "4"
    assert not (tree / ".eat-store").exists()
    assert list((tmp_path / "cache" / "eat-runner").glob("*/image_folder-8/meta.json"))


def test_an_old_store_that_cannot_be_deleted_yet_is_not_in_the_way(tmp_path):
    """As on NFS, where files that another process has mapped stay in their folder under other names."""
    tree = folder_tree(tmp_path / "data")
    first = load("image_folder", tree)
    stays = folder_of(tree) / "busy"
    stays.mkdir()
    (folder_of(tree) / "meta.json").unlink()
    prefix = mounting(f"mount -t tmpfs none '{stays}'")
    code = """
print(load("image_folder", Path(sys.argv[1])).fingerprint)
print(sorted(path.name for path in (Path(sys.argv[1]) / ".eat-store/image_folder-8").iterdir()))
"""
    fingerprint, names = finish(start(code, tree, prefix=prefix)).splitlines()
    assert fingerprint == first.fingerprint
    assert names == str(STORE_FILES)
    write_image(tree / "train" / "cat" / "000.png", (0, 77, 0))  # the next build finds it free, and clears up
    load("image_folder", tree)
    assert sorted(path.name for path in folder_of(tree).parent.iterdir()) == ["image_folder-8", "image_folder-8.lock"]


@pytest.mark.parametrize("thing", ["file", "link"])
def test_what_somebody_put_in_the_stores_place_is_replaced(tmp_path, thing):
    tree, place = folder_tree(tmp_path / "data"), folder_of(tmp_path / "data")
    first = everything(load("image_folder", tree))
    elsewhere = place.rename(tmp_path / "elsewhere")
    (elsewhere / "meta.json").unlink()
    place.write_text("in the way") if thing == "file" else place.symlink_to(elsewhere)
    assert everything(load("image_folder", tree)) == first
    assert sorted(path.name for path in place.parent.iterdir()) == ["image_folder-8", "image_folder-8.lock"]
    assert len(list(elsewhere.iterdir())) == len(STORE_FILES) - 1


def test_a_full_disk_is_one_line_and_leaves_no_half_store(tmp_path):
    tree, small = folder_tree(tmp_path / "data"), tmp_path / "data" / ".eat-store"
    small.mkdir()
    prefix = mounting(f"mount -t tmpfs -o size=256k none '{small}'")
    code = """
tree = Path(sys.argv[1])
try:
    load("image_folder", tree, size=256)
except ValueError as error:
    print(error)
print([path.name for path in (tree / ".eat-store").iterdir()])
print(len(load("image_folder", tree, size=8).test))
"""
    line, left, fits = finish(start(code, tree, prefix=prefix)).splitlines()
    assert "No space left" in line
    assert "make room" in line
    assert left == "['image_folder-256.lock']"
    assert fits == "4"
