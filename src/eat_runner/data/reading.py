"""One image file as the pixels that a network gets."""

import hashlib
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from eat_runner.data.sources import IMAGE_SUFFIXES
from eat_runner.errors import UserError

LARGE = 16_000_000  # pixels: such images are read one at a time, so that memory has room for them
ORIENTATION, UPRIGHT = 0x0112, 1  # EXIF
_one_large = threading.Lock()


@dataclass(frozen=True)
class Reading:
    """How image files are read: as RGB of size x size pixels (bilinear where they have another size).

    background: the colour behind transparency, #rrggbb. loose: anybody's files, which may be no images at all, have an
    EXIF orientation, or be transparent; if not, what is beside red, green and blue is dropped.
    """

    size: int
    background: str
    loose: bool

    def read(self, path: Path) -> tuple[NDArray[np.uint8], str] | None:
        """The pixels, shape (size, size, 3), and the hash of what they come from; None for a loose file that is neither
        an image nor called like one. Raises UserError, which names the file, where it is missing, damaged, larger than
        Pillow takes for harmless, or has more than 8 bits a channel."""
        try:
            if self.loose and path.exists() and not path.is_file():  # a pipe would be waited for
                return None
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            with Image.open(path) as image:
                if image.width * image.height < LARGE:
                    return self._pixels(image, path, digest)
                with _one_large:
                    return self._pixels(image, path, digest)
        except UserError:
            raise
        except UnidentifiedImageError as error:
            if self.loose and path.suffix.lower() not in IMAGE_SUFFIXES:
                return None
            raise UserError(_unreadable(path, error)) from error
        except Image.DecompressionBombError as error:
            raise UserError(f"{path} has more pixels than anybody trains with: scale it down or remove it") from error
        except Exception as error:  # decoders raise anything on a damaged file, and it differs between versions
            raise UserError(_unreadable(path, error)) from error

    def _pixels(self, image: Image.Image, path: Path, digest: str) -> tuple[NDArray[np.uint8], str]:
        if image.mode[0] in "IF":  # conversion would clip, not scale: nearly everything would be white
            raise UserError(f"{path} has more than 8 bits a channel: convert it to 8 bits")
        if not self.loose:
            return self._scaled(image.convert("RGB")), digest
        image.load()
        if (turned := _orientation(image)) != UPRIGHT:
            image, digest = ImageOps.exif_transpose(image), f"{digest} upright {turned}"
        if _is_transparent(image):
            image, digest = _on(self.background, image), f"{digest} on {self.background}"
        return self._scaled(image.convert("RGB")), digest

    def _scaled(self, rgb: Image.Image) -> NDArray[np.uint8]:
        if rgb.size != (self.size, self.size):
            rgb = rgb.resize((self.size, self.size), Image.Resampling.BILINEAR)
        return np.asarray(rgb)


def is_image(path: Path) -> bool:
    """Whether a file begins as an image does, by what it holds and not by its name."""
    try:
        if not path.is_file():  # a pipe would be waited for
            return False
        with Image.open(path):
            return True
    except Image.DecompressionBombError:
        return True  # which is said when it is read
    except Exception:  # decoders raise anything
        return False


def _unreadable(path: Path, error: Exception) -> str:
    if not path.exists():
        return f"{path} is missing: complete the data set"
    reason = "it is empty" if path.is_file() and path.stat().st_size == 0 else type(error).__name__
    return f"{path} is no readable image ({reason}): replace or remove it"


def _orientation(image: Image.Image) -> int:
    """How the image stands by its EXIF data, as far as these can be read."""
    try:
        found: Any = image.getexif().get(ORIENTATION, UPRIGHT)
    except Exception:  # damaged EXIF data say nothing
        return UPRIGHT
    return found if found in range(1, 9) else UPRIGHT


def _is_transparent(image: Image.Image) -> bool:
    return image.mode in {"LA", "La", "PA", "RGBA", "RGBa"} or "transparency" in image.info


def _on(background: str, image: Image.Image) -> Image.Image:
    over = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", over.size, background), over)
