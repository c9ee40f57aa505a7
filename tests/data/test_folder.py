"""Folders of images without splits: what is found, in which order, and what is read."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eat_runner.data.folder import find_images, read_images, spread
from eat_runner.errors import UserError


def image(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((6, 4, 3), value, dtype=np.uint8)).save(path)
    return path


def test_images_however_deep_in_order_without_what_is_hidden(tmp_path: Path) -> None:
    wanted = [image(tmp_path / name) for name in ("b/2.png", "a/deep/1.PNG", "z.bmp", "b/1.png")]
    for name in (".hidden.png", ".store/x.png", "a/.trash/y.png"):
        image(tmp_path / name)
    (tmp_path / "a" / "notes.txt").touch()
    (tmp_path / "movie.mp4").touch()
    (tmp_path / ".DS_Store").touch()
    found, others = find_images(tmp_path)
    assert found == sorted(wanted)
    assert others == 2


def test_images_by_what_they_hold(tmp_path: Path) -> None:
    named = [image(tmp_path / f"{name}.png", 7).rename(tmp_path / name) for name in ("1", "png.txt")]
    (tmp_path / "text").write_text("P no image")
    os.mkfifo(tmp_path / "pipe")
    found, others = find_images(tmp_path)
    assert found == sorted(named)
    assert others == 2
    assert set(read_images(found, 2, 3).images_nhwc.flatten()) == {7}


def test_a_folder_whose_own_path_is_hidden(tmp_path: Path) -> None:
    inside = image(tmp_path / ".cache" / "images" / "1.png")
    assert find_images(inside.parent) == ([inside], 0)


def test_spread_takes_the_same_share_of_each_class() -> None:
    files = [Path(f"{name}/{i}") for name in "abcd" for i in range(25)]
    chosen = spread(files, 8)
    assert [path.parent.name for path in chosen] == [*"aabbccdd"]
    assert spread(files, 1000) == files
    assert spread(files, 1) == files[:1]


@pytest.mark.parametrize("channels", [1, 3])
def test_read_and_scaled(tmp_path: Path, channels: int) -> None:
    files = [image(tmp_path / f"{value}.png", value) for value in (0, 200)]
    read = read_images(files, 3, channels)
    assert read.images_nhwc.shape == (2, 3, 3, channels)
    assert [set(pixels.flatten()) for pixels in read.images_nhwc] == [{0}, {200}]


def test_grey_is_the_luma_of_bt_601(tmp_path: Path) -> None:
    path = tmp_path / "red.png"
    Image.fromarray(np.full((2, 2, 3), (200, 0, 0), dtype=np.uint8)).save(path)
    assert set(read_images([path], 2, 1).images_nhwc.flatten()) == {round(0.299 * 200)}


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder of images"):
        find_images(tmp_path / "gone")
    with pytest.raises(UserError, match=r"has no images: it needs files that Pillow can read, such as \.png or \.jpg"):
        find_images(tmp_path)
