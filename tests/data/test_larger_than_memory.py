"""A data set of which a process has room for a part: read, split and trained on as if it were in memory."""

import ctypes
import mmap
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from eat_runner.config import DatasetConfig
from eat_runner.data import ImageSet
from eat_runner.data.batches import copy_on, evaluation_batches, training_batches
from eat_runner.data.mapped import fetch, mapped

CPU = torch.device("cpu")
SIZE, IMAGES = 512, 500  # 393 MB of pixels; the process may take 250 more than it has

WITHIN_A_LIMIT = f"""
import resource, sys
from pathlib import Path
import torch
from eat_runner.config import DatasetConfig
from eat_runner.data import load
from eat_runner.data.mapped import fetch, mapped
from eat_runner.data.batches import evaluation_batches, training_batches

torch.set_num_threads(1)
torch.ones(64, 64) @ torch.ones(64, 64)
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
limit = int(status["VmData"].split()[0]) * 1024 + 250 * 10**6  # what is the process's own, not mapped files
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
config = DatasetConfig(name="image_folder", image_size={SIZE}, validation=0.2, crop_padding=0)
options = {{"batch_size": 2, "device": torch.device("cpu")}}
for _ in range(2):  # made, then found
    found = load(config, Path(sys.argv[1]), False)
    options |= {{"mean": found.mean, "std": found.std}}
    trained = sum(len(y) for _, y in training_batches(found.train, config, seed=0, epoch=0, **options))
    others = sum(len(y) for part in (found.validation, found.test) for _, y in evaluation_batches(part, **options))
    print(trained, others)
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="no other system limits what is a process's own")
def test_a_process_has_room_for_a_part_of_the_data_set(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for number in range(IMAGES):
        path = tmp_path / ("test" if number % 10 == 0 else "train") / f"{number % 4 // 2}" / f"{number}.ppm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"P6 {SIZE} {SIZE} 255\n".encode() + draw.bytes(3 * SIZE * SIZE))
    done = subprocess.run([sys.executable, "-c", WITHIN_A_LIMIT, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # 50 images are test, of the 450 others a fifth is validation; the training has whole batches
    assert done.stdout.splitlines() == ["360 140"] * 2


def some(count: int, channels: int = 3) -> ImageSet:
    pixels = np.random.default_rng(1).integers(0, 256, (count, 6, 6, channels), dtype=np.uint8)
    return ImageSet(pixels, np.arange(count), np.arange(count) // 2)


def test_a_part_is_no_copy_and_reads_as_one() -> None:
    whole, chosen = some(20), np.array([7, 3, 3, 19, 0])
    part = whole.take(chosen)
    copy = ImageSet(whole.stored_nhwc[chosen], whole.labels[chosen], whole.labels[chosen] // 2)
    assert part.stored_nhwc is whole.stored_nhwc
    assert part.nbytes == 5 * 6 * 6 * 3 == copy.nbytes
    assert np.array_equal(part.images_nhwc, copy.images_nhwc)
    assert np.array_equal(part.labels, copy.labels)
    assert np.array_equal(part.groups, copy.groups)  # type: ignore[arg-type]
    again = np.array([4, 0, 1])
    assert np.array_equal(part.take(again).images_nhwc, copy.images_nhwc[again])
    assert np.array_equal(part.first(2).images_nhwc, copy.images_nhwc[:2])
    assert np.array_equal(part.pixels(again), copy.images_nhwc[again])
    config = DatasetConfig(name="x", crop_padding=1, flip=True)
    numbers = ((0.5,) * 3, (0.2,) * 3)
    for ours, theirs in zip(
        [*training_batches(part, config, 2, *numbers, 0, 0, CPU), *evaluation_batches(part, 2, *numbers, CPU)],
        [*training_batches(copy, config, 2, *numbers, 0, 0, CPU), *evaluation_batches(copy, 2, *numbers, CPU)],
        strict=True,
    ):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def pages_in_memory(mapping: mmap.mmap) -> set[int]:
    """By mincore(2)."""
    libc, count = ctypes.CDLL(None, use_errno=True), -(-len(mapping) // mmap.PAGESIZE)
    flags = (ctypes.c_ubyte * count)()
    address = np.frombuffer(mapping, np.uint8).ctypes.data
    assert libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(len(mapping)), flags) == 0
    return {page for page in range(count) if flags[page] & 1}


@pytest.mark.skipif(sys.platform != "linux", reason="mincore and what it says are Linux's")
def test_what_is_fetched_is_read_and_nothing_beside_it(tmp_path: Path) -> None:
    rows, size = np.array([900, 17, 400]), 3 * 64 * 64  # three pages an image
    np.save(tmp_path / "images.npy", np.zeros((1000, 64, 64, 3), np.uint8))
    with (tmp_path / "images.npy").open("rb+") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    array = mapped(tmp_path / "images.npy")
    if len(pages_in_memory(array.base)) > 100:  # type: ignore[arg-type]
        pytest.skip("this file system keeps its files in memory")
    fetch(array, rows)  # type: ignore[arg-type]
    wanted = {page for row in rows for page in range((128 + row * size) // 4096, (127 + (row + 1) * size) // 4096 + 1)}
    deadline = time.monotonic() + 30
    while not (there := pages_in_memory(array.base)) >= wanted:  # type: ignore[arg-type]
        assert time.monotonic() < deadline, wanted - there
        time.sleep(0.01)
    assert len(there - wanted) < 100  # of 3,000: whole blocks are read, not the file


@pytest.mark.parametrize("at_once", [1, 200, 10**9])
def test_the_copy_for_a_device_is_made_in_blocks(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from eat_runner.data import batches

    monkeypatch.setattr(batches, "COPIED_AT_ONCE", at_once)
    part = some(20).take(np.array([7, 3, 19, 0, 2]))
    assert np.array_equal(copy_on(part, CPU).numpy(), part.images_nhwc)


def test_a_device_without_room_for_all_images_gets_them_batch_by_batch() -> None:
    meta = torch.device("meta")  # computes shapes, and has no memory
    images, numbers = some(20).take(np.arange(7)), ((0.5,) * 3, (0.2,) * 3)
    assert [(*x.shape, len(labels)) for x, labels in evaluation_batches(images, 3, *numbers, meta)] == [
        (3, 3, 6, 6, 3),
        (3, 3, 6, 6, 3),
        (1, 3, 6, 6, 1),
    ]
