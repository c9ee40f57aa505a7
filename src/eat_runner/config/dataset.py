"""The config group ``dataset``."""

import re
from dataclasses import dataclass

from eat_runner.config.checks import at_least, between
from eat_runner.errors import UserError

MAX_IMAGE_SIZE = 1024
WHITE = "#ffffff"


@dataclass(kw_only=True, slots=True)
class DatasetConfig:
    """What is trained on.

    name: key of data.DATASETS. image_size: pixels of a side; images of another size are scaled to it.
    validation: share of the training set that is cut off for validation (by track on GTSRB); 0 cuts nothing.
    background: the colour behind images with transparency, #rrggbb.
    train_limit: keep at most so many training images (after the split, evenly over the classes); 0 keeps all.
    crop_padding, flip, rotation_degrees: the augmentation of a training batch: random crop from an image padded by so
    many pixels, random horizontal flip, random rotation within +-degrees; 0 or false leaves it out.
    """

    name: str = "digits"
    image_size: int = 8
    validation: float = 0.1
    background: str = WHITE
    train_limit: int = 0
    crop_padding: int = 0
    flip: bool = False
    rotation_degrees: float = 0.0

    def check(self) -> None:
        between("dataset.image_size", self.image_size, 1, MAX_IMAGE_SIZE)
        between("dataset.validation", self.validation, 0.0, 0.5)
        if not re.fullmatch("#[0-9a-fA-F]{6}", self.background):
            raise UserError(f"dataset.background={self.background} is no colour: write #rrggbb, such as {WHITE}")
        at_least("dataset.train_limit", self.train_limit, 0)
        between("dataset.crop_padding", self.crop_padding, 0, self.image_size)
        between("dataset.rotation_degrees", self.rotation_degrees, 0.0, 180.0)
