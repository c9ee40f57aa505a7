"""A report as one page for a browser, complete in itself: it asks no network for anything. No torch.

What comes from run folders is data in a block that no browser executes, and becomes text there, never markup. The
page's policy allows the one script and the one style that stand in it, by their hashes.
"""

import base64
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from eat_runner.config.hardware import HardwareConfig
from eat_runner.records import write_atomically
from eat_runner.report.html.data import MOST_RUNS, page_data, rounded
from eat_runner.report.view import Report

__all__ = ["MOST_RUNS", "PAGE", "write_page"]

PAGE = "report.html"
# what could end a script block, or begin a comment in it; JSON is in ASCII otherwise
ESCAPES = str.maketrans({character: f"\\u{ord(character):04x}" for character in "<>&"})


def write_page(report: Report, name: str, hardware: Sequence[HardwareConfig], output: Path, most_read: int) -> Path:
    """Write report.html into ``output``; its path. As ``data.page_data``; OSError where it cannot be written."""
    path = output / PAGE
    write_atomically(path, _render(page_data(report, name, hardware, output, most_read)).encode())
    return path


def _render(values: Mapping[str, Any]) -> str:
    data = json.dumps(rounded(values), separators=(",", ":"), allow_nan=False)
    style, script = _beside("page.css"), _beside("page.js")
    parts = {
        "title": html.escape(values["name"]),
        "policy": f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; base-uri 'none'",
        "style": style,
        "script": script,
        "data": data.translate(ESCAPES),
    }
    before, *rest = _beside("page.html").split("{{")
    placed = [text.partition("}}") for text in rest]
    return before + "".join(parts[name] + after for name, _, after in placed)


def _beside(name: str) -> str:
    return files(__name__).joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
