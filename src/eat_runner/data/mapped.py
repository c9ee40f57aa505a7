"""Arrays in files that are mapped into memory, of which no more is read than is asked for."""

import mmap
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def mapped(path: Path) -> NDArray[np.uint8]:
    """The array in a file, of which no more is read than is asked for (by ``fetch``). ValueError where it is none."""
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if isinstance(array.base, mmap.mmap) and hasattr(mmap, "MADV_RANDOM"):
        array.base.madvise(mmap.MADV_RANDOM)
    return array


def fetch(array: "np.memmap[Any, np.dtype[np.uint8]]", rows: NDArray[np.int64]) -> None:
    """Have the system read those rows of a file all at once, as far as they are not in memory; without it each page is
    waited for, or comes with many that nobody wants."""
    if not isinstance(array.base, mmap.mmap) or not hasattr(mmap, "MADV_WILLNEED"):
        return
    first, size = array.offset % mmap.ALLOCATIONGRANULARITY, array.strides[0]  # in the mapping, in bytes
    with suppress(OSError):  # advice, which a file system may refuse
        for row in rows.tolist():
            begin = first + row * size
            start = begin - begin % mmap.PAGESIZE
            array.base.madvise(mmap.MADV_WILLNEED, start, begin + size - start)
