"""Checkpoints: a training's state as a file that runs no code when it is read, and says when it is damaged."""

import io
import zipfile
from typing import Any

import torch


def pack(state: dict[str, Any]) -> bytes:
    """A state as a file: torch's zip format, every part with its CRC-32."""
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def unpack(data: bytes) -> dict[str, Any]:
    """The state that ``pack`` wrote; no code of the file is run. ValueError where it is damaged or something else."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            damaged = archive.testzip()
        state = None if damaged else torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except Exception as error:  # a flipped bit can make zipfile, zlib, struct or pickle raise anything
        raise ValueError("it is damaged, or no checkpoint of this program") from error
    if damaged:
        raise ValueError(f"it is damaged: {damaged} does not match its checksum")
    if not isinstance(state, dict):
        raise ValueError("it is no checkpoint of this program")
    return state
