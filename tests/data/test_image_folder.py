"""What people put into folders of images: other formats, other names, transparency, orientation, size, rubbish."""

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_trees import colours, folder_tree, load, write_image
from eat_runner.errors import UserError


def tree(tmp_path: Path) -> Path:
    """Two classes with an image each in both splits; the test image of cat is test/cat/000.png. Its upper left pixel is
    the first of ``colours(dataset.test)``."""
    return folder_tree(tmp_path, train=1, test=1)


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("suffix", "format"),
    [("gif", "GIF"), ("jfif", "JPEG"), ("JPG", "JPEG"), ("dat", "PNG"), ("", "PNG"), ("png", "JPEG"), ("tga", "TGA")],
)
def test_an_image_is_what_its_content_says(suffix: str, format: str, tmp_path: Path) -> None:
    path = tree(tmp_path) / "train" / "cat" / f"x.{suffix}".rstrip(".")
    Image.new("RGB", (8, 8), (200, 200, 200)).save(path, format)
    assert len(load("image_folder", tmp_path, validation=0.0).train) == 3


def test_what_is_no_image_is_counted_and_named_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tree(tmp_path)
    (root / "train" / "cat" / "notes.txt").write_text("a cat")
    (root / "train" / "dog" / "sign.svg").write_text("<svg/>")
    (root / "train" / "dog" / "empty").touch()
    os.mkfifo(root / "test" / "dog" / "pipe")
    write_image(root / "train" / "beside.png", (1, 2, 3))
    loaded = load("image_folder", root, validation=0.0)
    assert (len(loaded.train), len(loaded.test)) == (2, 2)
    assert said(capsys) == (
        "image_folder: 4 images; 5 files are none and were passed over: train/beside.png, train/cat/notes.txt, "
        "train/dog/empty, and 2 more\n"
    )


def test_what_operating_systems_leave_is_passed_over_without_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tree(tmp_path)
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "._000.png"):
        (root / "train" / "cat" / name).write_bytes(b"not an image")
        (root / "train" / name).write_bytes(b"not an image")
    write_image(root / "train" / "__MACOSX" / "x.png", (0, 0, 0))
    write_image(root / "train" / "cat" / "__MACOSX" / "x.png", (0, 0, 0))
    loaded = load("image_folder", root, validation=0.0)
    assert (loaded.class_names, len(loaded.train)) == (("cat", "dog"), 2)
    assert said(capsys) == ""


def test_folders_inside_a_class_belong_to_it(tmp_path: Path) -> None:
    root = tree(tmp_path)
    write_image(root / "train" / "cat" / "2024" / "may" / "a.png", (9, 9, 9))
    write_image(root / "elsewhere" / "b.png", (7, 7, 7))
    (root / "train" / "cat" / "linked").symlink_to(root / "elsewhere")
    (root / "train" / "cat" / "linked.png").symlink_to(root / "elsewhere" / "b.png")
    (root / "train" / "cat" / "around").symlink_to(root / "train")  # leads back to itself
    loaded = load("image_folder", root, validation=0.0)
    of_cat = [c for c, label in zip(colours(loaded.train), loaded.train.labels, strict=True) if label == 0]
    # a link to the folder of all classes adds what else is there, once
    assert sorted(of_cat) == sorted([(0, 0, 0), (7, 7, 7), (7, 7, 7), (9, 9, 9), (1, 0, 0)])


def test_a_class_of_files_that_are_no_images_is_empty(tmp_path: Path) -> None:
    root = tree(tmp_path)
    (root / "test" / "dog" / "000.png").unlink()
    (root / "test" / "dog" / "a.heic").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(UserError, match="test/dog is empty: every class needs at least one image"):
        load("image_folder", root)


@pytest.mark.parametrize(("content", "word"), [(b"", "it is empty"), (b"\x89PNG\r\n", "replace or remove it")])
def test_a_damaged_image_is_named(content: bytes, word: str, tmp_path: Path) -> None:
    path = tree(tmp_path) / "train" / "dog" / "x.GIF"
    path.write_bytes(content)
    with pytest.raises(UserError, match=word) as caught:
        load("image_folder", tmp_path)
    assert str(path) in str(caught.value)


def test_a_truncated_image_is_named_whatever_it_is_called(tmp_path: Path) -> None:
    path = tree(tmp_path) / "train" / "dog" / "x.bin"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"train/dog/x\.bin"):
        load("image_folder", tmp_path)


@pytest.mark.parametrize("name", [b"caf\xe9.png", "猫 (1).png".encode()])
def test_names_in_any_encoding(name: bytes, tmp_path: Path) -> None:
    root = tree(tmp_path)
    for split in ("train", "test"):
        (root / split / "dog").rename(root / split / os.fsdecode(name[:-4]))
    write_image(root / "train" / "cat" / "x.png", (5, 5, 5)).rename(root / "train" / "cat" / os.fsdecode(name))
    loaded = load("image_folder", root, validation=0.0)
    assert len(loaded.train) == 3
    assert set(loaded.class_names) == {"cat", os.fsdecode(name[:-4])}


# over 255 alpha: each channel of the colour is c * a + b * (1 - a)
@pytest.mark.parametrize(("background", "over"), [("#ffffff", 255), ("#000000", 0), ("#0a0A0a", 10)])
def test_transparency_shows_the_background(background: str, over: int, tmp_path: Path) -> None:
    path = tree(tmp_path) / "test" / "cat" / "000.png"
    Image.new("RGBA", (8, 8), (200, 100, 0, 51)).save(path)  # a fifth
    [first, *_] = colours(load("image_folder", tmp_path, background=background).test)
    assert np.abs(np.array(first) - [c * 0.2 + over * 0.8 for c in (200, 100, 0)]).max() <= 1


@pytest.mark.parametrize(
    ("mode", "colour", "options"),
    [
        ("RGBA", (1, 2, 3, 0), {}),
        ("LA", (7, 0), {}),
        ("P", 0, {"transparency": 0}),
        ("L", 7, {"transparency": 7}),
        ("RGB", (1, 2, 3), {"transparency": (1, 2, 3)}),
        ("1", 0, {"transparency": 0}),
    ],
)
def test_every_way_to_be_transparent(
    mode: str, colour: int | tuple[int, ...], options: dict[str, object], tmp_path: Path
) -> None:
    path = tree(tmp_path) / "test" / "cat" / "000.png"
    Image.new(mode, (8, 8), colour).save(path, **options)
    assert colours(load("image_folder", tmp_path).test)[0] == (255, 255, 255)


def test_an_opaque_image_is_the_same_with_and_without_an_alpha_channel(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (13, 9, 3), dtype=np.uint8)
    path = tree(tmp_path) / "test" / "cat" / "000.png"
    Image.fromarray(pixels).save(path)
    plain = load("image_folder", tmp_path).test.images_nhwc[0]
    Image.fromarray(np.dstack([pixels, np.full((13, 9), 255, np.uint8)])).save(path)
    assert np.array_equal(load("image_folder", tmp_path).test.images_nhwc[0], plain)


def test_another_background_is_another_data_set_only_where_something_is_transparent(tmp_path: Path) -> None:
    root = tree(tmp_path)
    white, black = (load("image_folder", root, background=b).fingerprint for b in ("#ffffff", "#000000"))
    assert white == black
    Image.new("RGBA", (8, 8), (1, 2, 3, 0)).save(root / "test" / "cat" / "000.png")
    white, black = (load("image_folder", root, background=b).fingerprint for b in ("#ffffff", "#000000"))
    assert white != black


# EXIF's table: what has to be done to the stored rows and columns
TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
@pytest.mark.parametrize("orientation", TURNS)
def test_an_image_stands_as_its_exif_data_say(suffix: str, orientation: int, tmp_path: Path) -> None:
    stored = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    root = tree(tmp_path)
    (root / "test" / "cat" / "000.png").unlink()
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(stored).save(root / "test" / "cat" / f"x.{suffix}", exif=exif, **options)
    shown = load("image_folder", root).test.images_nhwc[0]
    assert np.array_equal(shown, TURNS[orientation](stored))


def test_a_photograph_is_turned_before_it_is_scaled(tmp_path: Path) -> None:
    """A phone's JPEG held upright: 40 wide and 20 high in the file, its left half red; shown, its upper half is."""
    root = tree(tmp_path)
    (root / "test" / "cat" / "000.png").unlink()
    stored = np.zeros((20, 40, 3), np.uint8)
    stored[:, :20, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(stored).save(root / "test" / "cat" / "x.jpg", exif=exif, quality=100, subsampling=0)
    red = load("image_folder", root).test.images_nhwc[0, :, :, 0]
    assert red[:3].min() > 200
    assert red[-3:].max() < 50


@pytest.mark.parametrize("exif", [b"Exif\0\0rubbish", b"Exif\0\0II*\0\xff\xff\xff\xff"])
def test_damaged_exif_data_say_nothing(exif: bytes, tmp_path: Path) -> None:
    path = tree(tmp_path) / "test" / "cat" / "x.jpg"
    Image.new("RGB", (8, 8), (10, 10, 10)).save(path, exif=exif)
    assert len(load("image_folder", tmp_path).test) == 3


def test_animated_images_show_their_first_frame(tmp_path: Path) -> None:
    path = tree(tmp_path) / "test" / "cat" / "000.gif"
    path.with_suffix(".png").unlink()
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert colours(load("image_folder", tmp_path).test)[0] == (255, 0, 0)


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    """Full cyan and yellow and no black are green."""
    path = tree(tmp_path) / "test" / "cat" / "000.tif"
    path.with_suffix(".png").unlink()
    Image.new("CMYK", (8, 8), (255, 0, 255, 0)).save(path)
    assert colours(load("image_folder", tmp_path).test)[0] == (0, 255, 0)


@pytest.mark.long
def test_a_very_large_image_is_read_without_a_warning(tmp_path: Path) -> None:
    """Over Pillow's 89 megapixels; what is twice as large is refused by name."""
    root = tree(tmp_path)
    path = root / "test" / "cat" / "000.png"
    Image.new("L", (9_600, 10_000), 77).save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert colours(load("image_folder", root).test)[0] == (77, 77, 77)
    Image.new("1", (20_000, 10_000)).save(path)
    with pytest.raises(UserError, match=r"test/cat/000\.png has more pixels than anybody trains with"):
        load("image_folder", root)


@pytest.mark.parametrize("colour", ["white", "#fff", "ffffff", "#gggggg", ""])
def test_what_is_no_colour(colour: str, tmp_path: Path) -> None:
    from eat_runner.config import DatasetConfig

    with pytest.raises(UserError, match=r"dataset\.background=.* is no colour: write #rrggbb"):
        DatasetConfig(background=colour).check()
