"""A data set as one folder of uint8 arrays: built once from its source, then mapped into memory, and never all there.

Safe when two processes build it at once (a lock), when one is killed while building (whole folders are renamed), and
when bits rot (checksums; a store that does not match is built again).
"""

import hashlib
import json
import os
import shutil
import tempfile
import warnings
import zlib
from collections.abc import Generator, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import platformdirs
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image

from eat_runner.config.dataset import WHITE
from eat_runner.data.ahead import ahead
from eat_runner.data.images import ImageSet
from eat_runner.data.mapped import mapped
from eat_runner.data.reading import Reading
from eat_runner.data.sources import TEST, TRAIN, Arrays, Files, ImageFile, Source, stat_signature
from eat_runner.errors import UserError, printable
from eat_runner.progress import ProgressBar

FORMAT = 1
LOOSE_FORMAT = 2  # how anybody's images are read: 2 stands them up and looks through them
FOLDER = ".eat-store"
META = "meta.json"
READ_AHEAD = 64  # images that are read and not yet written
SUMMED_AT_ONCE = 2**22  # bytes of images; as float64 they take eight times as much
MOST_NAMED = 3  # files in a line about all of them
Moments = NDArray[np.int64]  # (N, 2, channels): sum and sum of squares of each training image's pixels


class Store:
    """What lies in a store's folder. moments make mean and deviation of any part of the training set exact and free.

    Raises ValueError, KeyError, TypeError or OSError where it is not what this program writes.
    """

    def __init__(self, folder: Path, meta: dict[str, Any]):
        self.class_names = tuple(meta["class_names"])
        self.channels: int = meta["channels"]
        self.fingerprint: str = meta["fingerprint"]
        self.train, self.test = (self._images(folder, split) for split in (TRAIN, TEST))
        self.moments: Moments = _array(folder / "moments.npy", np.int64, (len(self.train), 2, self.channels))

    def _images(self, folder: Path, split: str) -> ImageSet:
        labels = _array(folder / f"{split}-labels.npy", np.int64, (None,))
        groups = np.load(folder / f"{split}-groups.npy", allow_pickle=False)
        if len(groups):
            groups = _array(folder / f"{split}-groups.npy", np.int64, labels.shape)
        shape = (len(labels), None, None, self.channels)
        images = _like(mapped(folder / f"{split}-images.npy"), f"{split}-images.npy", np.uint8, shape)
        if not len(labels) or labels.min() < 0 or labels.max() >= len(self.class_names):
            raise ValueError(f"{split} has labels without a class")
        return ImageSet(images, labels, None if len(groups) == 0 else groups)


def _array(path: Path, dtype: Any, shape: tuple[int | None, ...]) -> Any:
    """The array in a file, never unpickled."""
    return _like(np.load(path, allow_pickle=False), path.name, dtype, shape)


def _like(array: NDArray[Any], name: str, dtype: Any, shape: tuple[int | None, ...]) -> Any:
    """The array itself. ValueError unless it has that type and shape (None: of any length)."""
    if array.dtype != dtype or not all(n in (m, None) for m, n in zip(array.shape, shape, strict=True)):
        raise ValueError(f"{name} is another array")
    return array


def open_store(
    name: str, source: Source, image_size: int, data_dir: Path, download: bool, background: str = WHITE
) -> Store:
    """The data set's store, built now if there is none, it is damaged, or its source has changed.

    background: the colour behind images with transparency, #rrggbb.

    Raises UserError for a data set that is missing or not what it should be, and for images that cannot be read.
    """
    found = source.find(data_dir, download)
    signature = _signature(found)
    loose = isinstance(found, Files) and found.loose
    folder = _parent(data_dir) / f"{name}-{image_size}{f'-{background[1:]}' if loose and background != WHITE else ''}"
    reading = Reading(image_size, background, loose)
    try:
        with FileLock(f"{folder}.lock"):
            return _undamaged(folder, name, signature) or _build(folder, name, source, found, reading, signature)
    except OSError as error:
        raise UserError(
            f"the store {folder} cannot be made ({error}): make room, or choose another data_dir"
        ) from error


def _signature(found: Files | Arrays) -> str:
    if isinstance(found, Arrays):
        return found.version()
    try:
        signature = stat_signature(found.root, found.content())
        return f"{signature} {LOOSE_FORMAT}" if found.loose else signature
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}): complete the data set") from error


def _parent(data_dir: Path) -> Path:
    """Beside the data, or in the user's cache where data_dir cannot be written."""
    beside = data_dir / FOLDER
    where = hashlib.sha256(os.fsencode(data_dir.resolve())).hexdigest()[:8]
    cache = platformdirs.user_cache_path("eat-runner") / where
    for folder in (beside, cache):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError:
            continue
    raise UserError(f"neither {beside} nor {cache} can be written: point data_dir at a folder that can")


def _undamaged(folder: Path, name: str, signature: str) -> Store | None:
    """The store if it is whole, undamaged and made from this source, else None."""
    try:
        meta = json.loads((folder / META).read_text())
        own = meta.pop("checksum") == _checksum_of(meta)
        if not own or meta["format"] != FORMAT or meta["signature"] != signature:
            return None
        whole = _checksums(f"checking {name}", [folder / file for file in meta["checksums"]]) == meta["checksums"]
        return Store(folder, meta) if whole else None
    except Exception:  # NumPy raises anything on a file whose checksum fits and which is no array
        return None


def _checksum_of(meta: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(meta, sort_keys=True).encode())


def _checksums(title: str, files: Iterable[Path]) -> dict[str, int]:
    """CRC-32 of those files, by their names; shown under that title."""
    sizes = {path: path.stat().st_size for path in files}
    checksums, done, block = dict.fromkeys((path.name for path in sizes), 0), 0, memoryview(bytearray(1 << 20))
    with ProgressBar(title, sum(sizes.values()) >> 20) as progress:
        for path in sizes:
            with path.open("rb") as file:
                while count := file.readinto(block):
                    checksums[path.name] = zlib.crc32(block[:count], checksums[path.name])
                    done += count
                    progress.update(done >> 20)
    return checksums


def _build(folder: Path, name: str, source: Source, found: Files | Arrays, reading: Reading, signature: str) -> Store:
    """Make the folder as a whole: under another name first, then renamed."""
    with _temporary_beside(folder) as making:
        if isinstance(found, Arrays):
            splits = {split: _resized(images, reading.size) for split, images in found.read().items()}
            _check(name, source, found, splits)
            content = _hash_arrays(splits)
            for split, images in splits.items():
                np.save(making / f"{split}-images.npy", images.images_nhwc)
            signature = _signature(found)  # reading may have unpacked an archive
        else:
            _check(name, source, found, found.splits)
            content, files = _decode(making, name, found, reading)
            splits = {split: _labelled(making, split, images) for split, images in files.items()}
        for split, images in splits.items():
            np.save(making / f"{split}-labels.npy", images.labels)
            np.save(making / f"{split}-groups.npy", np.array([]) if images.groups is None else images.groups)
        np.save(making / "moments.npy", _moments(name, splits[TRAIN].images_nhwc))
        meta = {
            "format": FORMAT,
            "signature": signature,
            "class_names": list(found.class_names),
            "channels": found.channels,
            "fingerprint": hashlib.sha256(f"{content} {reading.size}".encode()).hexdigest()[:16],
            "checksums": _checksums(f"checking {name}", sorted(making.glob("*.npy"))),
        }
        (making / META).write_text(json.dumps(meta | {"checksum": _checksum_of(meta)}, indent=1))
        for path in making.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        # away first: where another process has the old one mapped, a network's file system keeps its files a while
        old = making.with_name(f"{making.name}-old")
        with suppress(FileNotFoundError):
            folder.rename(old)
        making.rename(folder)
        _delete(old)
    return Store(folder, meta)


@contextmanager
def _temporary_beside(folder: Path) -> "Generator[Path]":
    for left in folder.parent.glob(f"{folder.name}.making-*"):  # of a killed process: we hold the lock
        _delete(left)
    making = Path(tempfile.mkdtemp(prefix=f"{folder.name}.making-", dir=folder.parent))
    try:
        yield making
    finally:
        _delete(making)


def _delete(path: Path) -> None:
    """A folder, or what somebody put in its place. What cannot be deleted yet is left for the next time."""
    shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):
        path.unlink(missing_ok=True)


def _decode(making: Path, name: str, found: Files, reading: Reading) -> tuple[str, dict[str, list[ImageFile]]]:
    """Write <split>-images.npy of every split; returns the hash of all names and contents, and the images that there
    were among the files."""
    digests = {table: _sha256(found.root / table) for table in found.tables}
    total = sum(len(images) for images in found.splits.values())
    done, images, passed_over = 0, dict[str, list[ImageFile]](), list(found.elsewhere)
    with (
        warnings.catch_warnings(action="ignore"),  # of Pillow's, without a file's name: it reads one, or it is refused
        ProgressBar(f"reading {name}", total) as progress,
        ThreadPoolExecutor() as pool,
    ):
        for split, files in found.splits.items():
            images[split] = []
            with (making / f"{split}-images.npy").open("wb") as file:
                # written twice: only the second time it is known how many images there are
                shape = (reading.size, reading.size, found.channels)
                _write_header(file, (len(files), *shape))
                start = file.tell()
                paths = (found.root / image.name for image in files)
                for image, read in zip(files, ahead(pool, reading.read, paths, READ_AHEAD), strict=True):
                    done += 1
                    progress.update(done)
                    if read is None:
                        passed_over.append(image.name)
                        continue
                    file.write(read[0].tobytes())  # not a memory map: that dies of a bus error on a full disk
                    digests[image.name] = read[1]
                    images[split].append(image)
                file.seek(0)
                _write_header(file, (len(images[split]), *shape))
                assert file.tell() == start  # NumPy leaves room for any number of images
            _check_classes(found, split, images[split])
        if passed_over:
            progress.say(_told(name, passed_over, sum(map(len, images.values()))))
    lines = "".join(f"{digest} {path}\n" for path, digest in sorted(digests.items()))
    return hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest(), images


def _check_classes(found: Files, split: str, images: list[ImageFile]) -> None:
    there = {image.label for image in images}
    for label, name in enumerate(found.class_names):
        if label not in there and found.loose:
            raise UserError(
                f"the class folder {found.root / split / name} is empty: every class needs at least one image"
            )


def _told(name: str, passed_over: list[str], read: int) -> str:
    """One line about the files that are no images."""
    named = ", ".join(printable(path) for path in passed_over[:MOST_NAMED])
    more = f", and {len(passed_over) - MOST_NAMED} more" if len(passed_over) > MOST_NAMED else ""
    return f"{name}: {read} images; {len(passed_over)} files are none and were passed over: {named}{more}"


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _labelled(making: Path, split: str, images: list[ImageFile]) -> ImageSet:
    groups = np.array([image.group for image in images], dtype=np.int64)
    return ImageSet(
        np.load(making / f"{split}-images.npy", mmap_mode="r"),
        np.array([image.label for image in images], dtype=np.int64),
        groups if groups[0] >= 0 else None,
    )


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _resized(images: ImageSet, size: int) -> ImageSet:
    pixels = images.images_nhwc
    if pixels.shape[1:3] == (size, size):
        return ImageSet(np.ascontiguousarray(pixels), images.labels, images.groups)
    scaled = np.stack(
        [
            np.asarray(Image.fromarray(image.squeeze()).resize((size, size), Image.Resampling.BILINEAR))
            for image in pixels
        ]
    )
    return ImageSet(scaled.reshape(len(pixels), size, size, -1), images.labels, images.groups)


def _hash_arrays(splits: dict[str, ImageSet]) -> str:
    digest = hashlib.sha256()
    for split, images in sorted(splits.items()):
        digest.update(split.encode() + images.images_nhwc.tobytes() + images.labels.tobytes())
    return digest.hexdigest()


def _check(name: str, source: Source, found: Files | Arrays, splits: Mapping[str, list[ImageFile] | ImageSet]) -> None:
    """What the official data set is known to be."""
    counted = len(splits[TRAIN]), len(splits[TEST])
    if source.images is not None and counted != source.images:
        raise UserError(
            f"{name} has {counted[0]} training and {counted[1]} test images, the official one has {source.images[0]} "
            f"and {source.images[1]}: complete it, or use dataset=image_folder for your own"
        )
    if source.classes is not None and len(found.class_names) != source.classes:
        raise UserError(f"{name} has {len(found.class_names)} classes, the official one has {source.classes}")
    for images in splits.values():
        if isinstance(images, ImageSet) and (
            len(images.images_nhwc) != len(images) or images.labels.max() >= len(found.class_names)
        ):
            raise UserError(f"the labels of {name} do not belong to its images: delete it and fetch it again")


def _moments(name: str, images_nhwc: NDArray[np.uint8]) -> Moments:
    count, found = max(SUMMED_AT_ONCE // images_nhwc[0].size, 1), list[Moments]()
    with ProgressBar(f"summing {name}", len(images_nhwc)) as progress:
        for start in range(0, len(images_nhwc), count):
            found.append(_moments_of(images_nhwc[start : start + count]))
            progress.update(min(start + count, len(images_nhwc)))
    return np.concatenate(found)


def _moments_of(block_nhwc: NDArray[np.uint8]) -> Moments:
    values = block_nhwc.reshape(len(block_nhwc), -1, block_nhwc.shape[-1]).astype(np.float64)  # exact below 2^53
    squares = np.matmul(values.transpose(0, 2, 1), values).diagonal(axis1=1, axis2=2)
    return np.stack([np.matmul(np.ones(values.shape[1]), values), squares], axis=1).astype(np.int64)
