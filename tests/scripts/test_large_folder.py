"""scripts/large_folder.py: every step reads what it says; the limit itself is a control group's, which needs root."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import large_folder


@pytest.mark.skipif(sys.platform != "linux", reason="what is a process's own is read from /proc")
def test_each_step_reads_every_image_and_says_how_fast(tmp_path: Path) -> None:
    large_folder.make(tmp_path, 65)  # 55 for training, of which 10 are held out for validation, and 10 for the test
    for step, images in {"build": 65, "check": 65, "read": 45, "read ahead": 45, "epoch": 45}.items():
        found = large_folder.measured(step, tmp_path)
        assert (found["step"], found["images"]) == (step, images)
        assert found["images_per_second"] == pytest.approx(images / found["seconds"])
        assert found["mb_per_second"] == pytest.approx(images * 224 * 224 * 3 / 1e6 / found["seconds"])
        assert found["own_mb"] >= 0
