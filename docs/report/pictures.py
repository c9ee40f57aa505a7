"""The pictures of docs/report.md, from a report.html: ``python docs/report/pictures.py PAGE``."""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

HERE, PAGE = Path(__file__).parent, Path(sys.argv[1]).resolve()

with sync_playwright() as running:
    browser = running.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"])
    desk = browser.new_page(viewport={"width": 1280, "height": 915})
    desk.goto(PAGE.as_uri())
    desk.fill("#most", "10")
    desk.screenshot(path=HERE / "desk.png")
    dark = browser.new_page(viewport={"width": 1280, "height": 915}, color_scheme="dark")
    dark.goto(PAGE.as_uri())
    dark.select_option("#hardware", label="fused_45nm · 45 nm")
    for name in ("width 8, trainer.epochs=12, standard training", "width 12, trainer.epochs=12, pruning=energy"):
        dark.locator(f"#front path[role=checkbox][aria-label*='{name}']").first.click(force=True)
    dark.locator("#energy").evaluate("place => scrollTo(0, place.offsetTop - 24)")
    dark.screenshot(path=HERE / "dark.png")
