"""Figures: the same bytes for the same data, names that are text and nothing else, everything that must be in them."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from eat_runner.pareto import Front, Setting, fronts
from eat_runner.plots import LayerPanel, energy_figure, firing_figure, front_figure, save, setting_names
from eat_runner.sweep import LayerMeans
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from PIL import Image
from test_pareto import run

HOSTILE = r"a$b_c^{x}$ \frac <script>&amp; -->"


def example(family: str = "digits · resnet18") -> list[Front]:
    points = [(0, 0.95, 0.8), (0.5, 0.948, 0.7), (1, 0.93, 0.72), (2, 0.92, 0.6), (4, 0.8, 0.55)]
    runs = [
        run(lambda_, accuracy + 0.004 * seed, energy + 0.01 * seed, seed, family=family, energy_floor=0.4)
        for lambda_, accuracy, energy in points
        for seed in (0, 1)
    ]
    return fronts(runs)


def layers(rate: float, names: int = 5) -> list[LayerMeans]:
    return [LayerMeans(f"layer{i}.{HOSTILE}", "ReLU", rate / (i + 1), 3e6 * rate, 3e6) for i in range(names)]


def panel(names: int = 5) -> LayerPanel:
    return LayerPanel(HOSTILE, layers(0.5, names), layers(0.2, names), "ST", "EAT, λ 1")


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "draw",
    [
        lambda: front_figure(example(HOSTILE), HOSTILE),
        lambda: front_figure([*example("a"), *example("b"), *example("c")], "caption"),
        lambda: firing_figure([panel(), panel(3)], "caption"),
        lambda: energy_figure([panel(200)], "caption", relative=False),
    ],
    ids=["front", "panels", "firing", "energy"],
)
def test_same_data_same_bytes_and_files_that_open(tmp_path: Path, draw: object) -> None:
    first = save(draw(), tmp_path / "first")  # type: ignore[operator]
    second = save(draw(), tmp_path / "second")  # type: ignore[operator]
    assert [path.name for path in first] == ["first.png", "first.svg"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    with Image.open(first[0]) as image:
        assert image.size[0] > 1000
        assert "Software" not in image.info
    svg = first[1].read_text()
    ElementTree.fromstring(svg)
    assert not re.search(r"<(dc:)?date|<script", svg)


def test_the_front_shows_everything_it_must() -> None:
    front = example()[0]
    figure = front_figure([front], "hardware published (45 nm, batch 100)")
    (axes,) = figure.axes
    labels = {text.get_text() for text in axes.texts}
    assert {"ST", "λ 0.5", "λ 1", "λ 2", "λ 4", "floor 0.40"} <= labels
    assert axes.get_title(loc="left") == "digits · resnet18"
    assert (axes.get_xlabel(), axes.get_ylabel()) == (
        "inference energy ratio (with / without zero-skipping)",
        "test accuracy (%)",
    )
    lines = [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]  # type: ignore[arg-type]
    # the seeds differ by 0.01 in energy and 0.4 points in accuracy, so their means lie halfway; lambda 1 is dominated
    assert (pytest.approx([0.555, 0.605, 0.705, 0.805]), pytest.approx([80.2, 92.2, 95.0, 95.2])) in lines
    assert [0.4, 0.4] in [pytest.approx(x) for x, _ in lines]
    singles = sorted(max(lines, key=lambda line: len(line[0]))[0])
    assert singles == pytest.approx([0.55, 0.56, 0.6, 0.61, 0.7, 0.71, 0.72, 0.73, 0.8, 0.81])
    assert front.selected is not None
    ring = [line for line in axes.lines if line.get_markersize() == 13]
    assert [tuple(line.get_xdata()) for line in ring] == [pytest.approx((front.selected.energy_ratio,))]  # type: ignore[arg-type]
    assert "hardware published (45 nm, batch 100)" in texts(figure)


def test_error_bars_are_the_standard_deviations() -> None:
    figure = front_figure(example(), "")
    deviation = 100 * 0.004 / 2**0.5
    heights = {
        round(float(segment[1][1] - segment[0][1]), 9)
        for bars in figure.axes[0].containers
        for segment in bars[2][1].get_segments()  # type: ignore[index]
    }
    assert heights == {round(2 * deviation, 9)}


def test_labels_do_not_overlap() -> None:
    crowd = [run(0, 0.95, 0.8), *(run(i / 10, 0.949 - i * 1e-4, 0.8 - i * 1e-3) for i in range(1, 80))]
    figure = front_figure(fronts(crowd), "")
    boxes = [text.get_window_extent() for text in figure.axes[0].texts if isinstance(text, Annotation)]
    assert len(boxes) >= 10
    pairs = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i]]
    assert not [pair for pair in pairs if pair[0].overlaps(pair[1])]


def test_names_say_what_differs_and_no_more() -> None:
    assert list(setting_names([Setting([run(0, 1, 1)]), Setting([run(0.5, 1, 1)])]).values()) == ["λ 0", "λ 0.5"]
    settings = [
        Setting([run(1, 1, 1, sigma=1e-4, schedule="constant", setting_id="a")]),
        Setting([run(1, 1, 1, sigma=0.01, schedule="constant", setting_id="b")]),
    ]
    assert setting_names(settings) == {"a": "λ 1, σ 1e-4", "b": "λ 1, σ 0.01"}


def test_many_families_are_cut_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eat_runner.plots.MAX_PANELS", 3)
    found = [front for number in range(5) for front in example(f"family {number}")]
    figure = front_figure(found, "caption")
    assert len([axes for axes in figure.axes if axes.axison]) == 3
    assert "caption\nthe first 3 of 5 families; all are in pareto.csv" in texts(figure)


def test_layer_bars_are_st_in_blue_and_eat_in_red() -> None:
    figure = firing_figure([panel()], "")
    st, eat = figure.axes[0].containers
    assert [bar.get_height() for bar in st] == pytest.approx([50, 25, 50 / 3, 12.5, 10])
    assert [bar.get_height() for bar in eat] == pytest.approx([20, 10, 20 / 3, 5, 4])
    red_st, _, blue_st, _ = st[0].get_facecolor()
    red_eat, _, blue_eat, _ = eat[0].get_facecolor()
    assert blue_st > red_st
    assert red_eat > blue_eat


@pytest.mark.parametrize(
    ("relative", "label", "height"),
    [(False, "energy per image (µJ)", 1.5), (True, "energy per image (MACs)", 1.5e6)],
)
def test_layer_energies_have_a_fitting_unit(relative: bool, label: str, height: float) -> None:
    figure = energy_figure([panel()], "", relative)
    assert figure.axes[0].get_ylabel() == label
    assert figure.axes[0].containers[0][0].get_height() == pytest.approx(height)  # type: ignore[index]
