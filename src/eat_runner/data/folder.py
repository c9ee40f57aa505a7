"""Images of a folder that nobody has sorted into splits."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from eat_runner.config.dataset import WHITE
from eat_runner.data.images import ImageSet
from eat_runner.data.reading import Reading, is_image
from eat_runner.data.sources import IMAGE_SUFFIXES
from eat_runner.errors import UserError


def find_images(folder: Path) -> tuple[list[Path], int]:
    """The image files in a folder and in its folders, sorted, whatever they are called; and how many other files lie
    there. What is hidden is neither. UserError where there is no folder or no image."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of images")
    files = sorted(
        Path(where, name)
        for where, _, names in os.walk(folder)
        for name in names
        if not any(part.startswith(".") for part in (*Path(where).relative_to(folder).parts, name))
    )
    images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES or is_image(file)]
    if not images:
        raise UserError(f"{folder} has no images: it needs files that Pillow can read, such as .png or .jpg")
    return images, len(files) - len(images)


def spread(files: Sequence[Path], count: int) -> list[Path]:
    """``count`` of them at equal distances, so that each of sorted class folders gets its share; all if there are
    fewer."""
    count = min(count, len(files))
    return [files[i * len(files) // count] for i in range(count)]


def read_images(files: Sequence[Path], size: int, channels: int) -> ImageSet:
    """Scaled to size x size pixels, upright and on white, as dataset=image_folder has them; grey where ``channels`` is
    1. Without labels: all are 0. Raises UserError, which names the file, where one cannot be read."""
    reading = Reading(size, WHITE, loose=True)
    with ThreadPoolExecutor() as pool:
        read = [found for found in pool.map(reading.read, files) if found is not None]  # None: not called like an image
    images = [pixels for pixels, _ in read]
    if channels == 1:
        images = [np.asarray(Image.fromarray(image).convert("L"))[..., None] for image in images]
    return ImageSet(np.stack(images), np.zeros(len(images), dtype=np.int64))
