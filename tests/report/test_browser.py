"""report.html in a real Chromium: what it draws, and what a mouse, a keyboard and a hostile run do to it."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from eat_runner.analysis.pareto import fronts
from eat_runner.analysis.table import collate
from eat_runner.cli.report import command
from eat_runner.config.pruning import PruningConfig
from eat_runner.config.root import default_methods
from eat_runner.energy.hardware import load_hardware
from eat_runner.errors import UserError
from eat_runner.report import QUICK_PAGE, choose_axes
from eat_runner.report.html.data import CURVES, MOST_DETAILS_BYTES
from pages import HARDWARE, written
from run_folders import accuracy, config, write_run, write_sweep

pytestmark = pytest.mark.long
playwright: Any = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")
HOSTILE = "</script><script>window.hacked=1</script>\"><img src=x onerror='window.hacked=2'>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("there is no chromium (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of five lambdas, a narrower network and pruned ones, with their page."""
    folder = tmp_path_factory.mktemp("results") / "demo"
    runs = write_sweep(folder)
    runs.append(write_run(folder, config(0.0, width=8)))
    for density in (0.1, 0.4):
        methods = default_methods() | {"pruning": PruningConfig(name="magnitude", density=density)}
        runs.append(write_run(folder, config(0.0, methods=methods)))
    for run in runs:
        run.write_history([{"epoch": epoch, "validation_accuracy": 1 - 0.5 / epoch} for epoch in range(1, 6)])
    written(folder, folder)
    return folder


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """Open a page; at the end nothing may have gone wrong in it, and nothing may have been asked of a network."""
    pages: list[Any] = []
    wrong: list[str] = []

    def opened(path: Path, width: int = 1280, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, offline=True, **options)
        page = context.new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: wrong.append(request.url) if request.url != path.as_uri() else None)
        page.goto(path.as_uri())
        pages.append(page)
        return page

    yield opened
    assert wrong == []
    for page in pages:
        assert page.evaluate("window.hacked") is None
        page.context.close()


def rows(page: Any) -> list[list[str]]:
    return page.evaluate(
        "[...document.querySelectorAll('#table tbody tr')].map(row => [...row.cells].map(cell => cell.innerText))"
    )


def column(page: Any, head: str) -> list[str]:
    heads = page.evaluate("[...document.querySelectorAll('#table thead th')].map(head => head.innerText)")
    place = next(i for i, text in enumerate(heads) if text.rstrip(" ↑↓") == head)
    return [row[place].split(" ")[0] for row in rows(page)]


def names(page: Any) -> list[str]:
    return [row[0].strip() for row in rows(page)]


def point(page: Any, name: str) -> Any:
    return page.locator(f'#front path[role=checkbox][aria-label^="{name}: "]')


def cards(page: Any) -> list[str]:
    return page.evaluate("[...document.querySelectorAll('.card header span:nth-child(2)')].map(e => e.innerText)")


@pytest.mark.parametrize(
    ("name", "x"),
    [(HARDWARE, "energy"), ("published", "ratio"), ("fused_7nm_int8", "energy"), ("eyeriss_65nm", "energy")],
)
def test_every_hardware_has_the_front_and_the_numbers_of_its_own_report(
    sweep: Path, visit: Callable[..., Any], name: str, x: str
) -> None:
    hardware = load_hardware(name)
    axes = choose_axes(hardware, "dataset", "ratio" if x == "ratio" else None)
    (front,) = fronts(collate(sweep, hardware, "dataset"), axes=axes)
    settings = front.settings
    page = visit(sweep / "report.html")
    page.select_option("#hardware", label=f"{name} · {hardware.process_nm} nm")
    page.select_option("#x", x)
    shown = dict(zip(names(page), zip(column(page, "accuracy %"), column(page, "ratio"), strict=True), strict=True))
    assert shown == {
        front.name_of(i): (f"{100 * row.accuracy:.2f}", f"{row.energy_ratio:.3f}")
        for i, row in zip(settings.index, settings.itertuples(), strict=True)
    }
    energies = dict(zip(names(page), column(page, "M MACs" if hardware.relative else "µJ"), strict=True))
    assert {key: float(value.replace(",", "")) for key, value in energies.items()} == pytest.approx(
        {front.name_of(i): settings.at[i, "energy"] for i in settings.index}, rel=1e-3
    )
    steps = page.locator("#front .band").get_attribute("d").replace("L", "M").count("M")
    assert steps == settings["on_front"].sum()


def test_hovering_tells_run_parameters_numbers_and_seeds(sweep: Path, visit: Callable[..., Any]) -> None:
    both = sum(accuracy(2, seed, "test") for seed in (0, 1)) / 2
    page = visit(sweep / "report.html")
    tip = page.locator("#tip")
    assert tip.is_hidden()
    point(page, "resnet18, width 16, EAT, λ 2").hover(force=True)
    told = tip.inner_text()
    assert told.startswith("resnet18, width 16, EAT, λ 2\n")
    for part in (f"{100 * both:.2f} ", "2 seeds", "lambda 2", "lambda2-seed0", "µJ per image"):
        assert part in told
    page.mouse.move(5, 5)
    assert tip.is_hidden()


def test_clicks_choose_up_to_four_and_compare_them(sweep: Path, visit: Callable[..., Any]) -> None:
    page = visit(sweep / "report.html")
    before = cards(page)
    assert before[0] == "resnet18, width 16, standard training"  # beside what the rule picks
    others = [name for name in names(page) if name not in before]
    for number, name in enumerate(others[:3], start=len(before) + 1):
        point(page, name).click(force=True)
        assert len(cards(page)) == min(number, 4)
    assert cards(page)[-1] == others[2]
    assert before[0] not in cards(page)  # the first of five
    assert page.locator("#layers .panels svg").count() == 4
    assert page.locator("#energy svg").count() == 2
    assert page.locator("#curves path.curve").count() == 4
    bars = page.locator("#energy svg").first
    shares = bars.locator("rect title").all_text_contents()[:4]
    assert sum(float(text.rsplit(", ", 1)[1].rstrip(" %")) for text in shares) == pytest.approx(100, abs=0.3)
    first, last = (page.locator("#cards .card").nth(place).inner_text() for place in (0, -1))
    assert re.search(r"\nseeds\s+0, 1\n", first)
    assert re.search(r"\nseed\s+0\n" if "density" in others[2] else r"\nseeds\s+0, 1\n", last)
    page.get_by_role("button", name=f"remove {others[2]}").click()
    assert others[2] not in cards(page)
    page.locator("#table tr", has_text=others[3]).locator("input").check()
    assert cards(page)[-1] == others[3]


def test_the_table_sorts_and_filters_and_shows_what_differs(sweep: Path, visit: Callable[..., Any]) -> None:
    page = visit(sweep / "report.html")
    heads = page.evaluate("[...document.querySelectorAll('#table thead th')].map(head => head.innerText)")
    assert {"width", "lambda", "pruning.density"} <= set(heads)
    assert not {"dataset", "model", "schedule"} & set(heads)
    whole = names(page)
    page.get_by_role("button", name="accuracy %").click()
    values = [float(value) for value in column(page, "accuracy %")]
    assert values == sorted(values, reverse=True)
    page.get_by_role("button", name="accuracy %").click()
    assert [float(value) for value in column(page, "accuracy %")] == sorted(values)
    assert page.locator("th[aria-sort=ascending]").inner_text().startswith("accuracy %")
    page.get_by_role("button", name="pruning.density").click()
    assert column(page, "pruning.density")[:3] == ["0.1", "0.4", "–"]  # what has none stays below
    limit = values[2]
    page.fill("#filter", f"accuracy>={limit}")
    assert len(names(page)) == sum(value >= limit for value in values)
    page.fill("#filter", "eat lambda>1 lambda<=2")
    assert names(page) == ["resnet18, width 16, EAT, λ 2"]
    assert "1 of " in page.locator("#count").inner_text()
    assert page.locator("#front .point.away").count() == len(whole) - 1
    page.fill("#filter", "")
    page.get_by_role("button", name="EAT", exact=True).click()
    assert [name for name in whole if ", EAT, " not in name] == sorted(names(page), key=whole.index)


def test_a_desk_shows_the_whole_method_of_every_setting(sweep: Path, visit: Callable[..., Any]) -> None:
    page = visit(sweep / "report.html", 1280)
    room = page.locator(".scroll").bounding_box()
    cells = page.locator("#table td.text", has_text=re.compile("^(standard training|EAT|pruning=magnitude)$")).all()
    assert len(cells) == len(names(page))
    for cell in cells:
        box = cell.locator("span").bounding_box()
        assert room["x"] < box["x"] < box["x"] + box["width"] < room["x"] + room["width"]


def test_choosing_is_what_the_command_chooses(
    sweep: Path, visit: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    page = visit(sweep / "report.html")
    for most, least in (("22", ""), ("", "95"), ("30", "90"), ("21.9", "94.5")):
        limits = ["--max-uj", most] * bool(most) + (["--min-accuracy", f"{float(least) / 100}"] if least else [])
        command([str(sweep), "--select", "--hardware", HARDWARE, *limits])
        folder = Path(capsys.readouterr().out.strip())
        page.fill("#most", most)
        page.fill("#least", least)
        assert page.locator("#choice code").inner_text() == folder.name
        assert page.locator("#front .chosen").count() == 1
    page.fill("#least", "0.945")  # a share
    assert page.locator("#choice code").inner_text() == folder.name
    for most, least in (("0.1", ""), ("", "99.9"), ("30", "99.9"), ("0.1", "99.9")):
        limits = ["--max-uj", most] * bool(most) + ["--min-accuracy", f"{least}%"] * bool(least)
        with pytest.raises(UserError) as error:
            command([str(sweep), "--select", "--hardware", HARDWARE, *limits])
        page.fill("#most", most)
        page.fill("#least", least)
        nearest, accuracy_there = page.locator("#choice span").inner_text().split(": validation ")
        assert nearest.startswith("Nothing qualifies. The nearest, ")
        assert f": the {nearest.removeprefix('Nothing qualifies. The ')}: validation accuracy 0." in str(error.value)
        assert f" 0.{accuracy_there[:2]}" in str(error.value)
    page.get_by_role("button", name="compare it").click()
    assert len(cards(page)) >= 2


def test_a_keyboard_is_enough(sweep: Path, visit: Callable[..., Any]) -> None:
    page = visit(sweep / "report.html")
    label = "document.activeElement.getAttribute('aria-label')"
    page.focus("#y")
    page.keyboard.press("Tab")
    page.keyboard.press("Home")
    first = page.evaluate(label)
    assert page.locator("#tip").is_visible()
    page.keyboard.press("ArrowRight")
    second = page.evaluate(label)
    assert first != second
    page.keyboard.press("End")
    assert page.evaluate(label) not in (first, second)
    before = cards(page)
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    assert first.split(": ")[0] in cards(page)
    assert page.evaluate(label) == first  # stays where it was
    page.keyboard.press(" ")
    assert cards(page) == before
    page.focus("#table thead button")
    page.keyboard.press("Enter")
    assert page.locator("th[aria-sort]").inner_text().startswith("setting")
    assert page.evaluate("document.activeElement.dataset.key") == "name"


def test_a_hostile_run_does_nothing(tmp_path: Path, visit: Callable[..., Any]) -> None:
    write_sweep(tmp_path, (0, 1), (0,))
    hostile = write_run(tmp_path, config(3.0), git_commit=HOSTILE, versions={HOSTILE: HOSTILE})
    record = hostile.read_record()
    record.run_id = record.config["schedule"]["name"] = HOSTILE
    hostile.write_record(record)
    page = visit(written(tmp_path, tmp_path))
    page.fill("#filter", "window.hacked=1")
    (name,) = names(page)
    page.fill("#filter", "")
    page.locator("#table tr", has_text="window.hacked=1").locator("input").check()
    told: list[str] = []
    for mark in page.locator("#front path[role=checkbox]").all():
        mark.hover(force=True)
        told.append(page.locator("#tip").inner_text())
    assert sum(HOSTILE in text for text in told) == 1
    for details in page.locator("details").all():
        details.locator("summary").click()
    assert HOSTILE in page.locator("#cards").inner_text()
    assert HOSTILE in page.locator("#about").inner_text()
    assert name in cards(page)
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 2


@pytest.mark.parametrize("width", [1280, 768, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_desk_and_a_phone_in_light_and_dark(
    sweep: Path, visit: Callable[..., Any], width: int, scheme: str
) -> None:
    page = visit(sweep / "report.html", width, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == width  # only the table scrolls sideways
    assert page.locator("#front svg").bounding_box()["width"] <= width
    paper, ink = page.evaluate("(s => [s.backgroundColor, s.color])(getComputedStyle(document.documentElement))")
    lightness = [sum(map(int, colour[4:-1].split(","))) / 765 for colour in (paper, ink)]
    assert (
        (lightness[0] > 0.9 > 0.3 > lightness[1]) if scheme == "light" else (lightness[0] < 0.15 < 0.8 < lightness[1])
    )


def test_on_paper_every_row_stands_and_no_control(sweep: Path, visit: Callable[..., Any]) -> None:
    page = visit(sweep / "report.html")
    page.emulate_media(media="print")
    assert page.locator(".controls").is_hidden()
    assert page.locator("#filter").is_hidden()
    inside, whole = page.evaluate("(s => [s.clientHeight, s.scrollHeight])(document.querySelector('.scroll'))")
    assert inside >= whole - 1
    assert page.locator("#front svg").is_visible()


def test_a_thousand_runs_are_under_six_megabytes_and_open(
    tmp_path: Path, visit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of networks as deep as a ResNet18, over 100 epochs. As many are read as after a sweep; another 900 would only add
    layers and epochs, which have a limit of their own."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    epochs = [dict.fromkeys(CURVES, 1 / epoch) | {"epoch": epoch} for epoch in range(1, 101)]
    for number in range(1000):
        folder = write_run(tmp_path, config(0.01 * (number // 5), number % 5), blocks=20 if number < 100 else 1)
        folder.write_history(epochs)
    path = written(tmp_path, tmp_path, most_read=QUICK_PAGE)
    assert path.stat().st_size + MOST_DETAILS_BYTES < 6_000_000
    page = visit(path)
    assert len(rows(page)) == 200
