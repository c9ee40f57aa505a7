"""Fronts and layers -> figures, as PNG and SVG. The same input gives the same bytes. No torch, no pyplot, no window."""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox

from eat_runner.analysis.layers import LayerPanel
from eat_runner.analysis.methods import MAGNITUDE, NARROW, STANDARD
from eat_runner.analysis.pareto import Front, non_dominated
from eat_runner.records import write_atomically

ST_COLOUR, EAT_COLOUR = "#1f5fa8", "#c8352b"  # blue and red, as in the paper's figures
INK, GREY, PALE = "#222222", "#7a7a7a", "#a3abb8"
STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#444444",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 9.5,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.08,
    "figure.dpi": 100,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.7,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "savefig.dpi": 200,
    "svg.fonttype": "path",
    "svg.hashsalt": "eat-runner",
    "text.color": INK,
    # names come from folders: a dollar sign in one is no formula
    "text.parse_math": False,
    "text.usetex": False,
    "xtick.color": "#444444",
    "xtick.labelsize": 8.5,
    "ytick.color": "#444444",
    "ytick.labelsize": 8.5,
}
MAX_PANELS = 24
MAX_LABELS = 40  # labels of a panel: more would hide the points
MAX_ERROR_BARS = 60  # of a kind of point, in a panel
MAX_TICK_NAMES = 90  # layer names below an axis: beyond, every second, third, … is named
PANEL_INCHES = (5.6, 4.0)
# lines of a front: what comes first, and in which colours
FIRST = (STANDARD, NARROW, "EAT", MAGNITUDE)
COLOURS = {STANDARD: ST_COLOUR, NARROW: INK, "EAT": EAT_COLOUR}
MORE_COLOURS = (
    "#e08a00", "#2b9a55", "#7b4fb0", "#00a3b4", "#d6559f", "#8a5a2b",
    "#8f9a00", "#5b78d6", "#b5651d", "#4d7a6a", "#a03060",
)  # fmt: skip
MARKERS = ("D", "s", "o", "^", "v", "P", "X", "<", ">", "h", "p", "*", "d", "8")
FILLS = ("full", "left", "bottom", "top")
BAND: Any = {
    "color": "#dfe3ea",
    "linewidth": 7,
    "linestyle": "-",
    "solid_capstyle": "round",
    "solid_joinstyle": "round",
}
MAX_LINES = 24  # named in a legend
DECADE = 10
LINE_INCHES = 0.2  # of a legend's line beyond the third
LEGEND_INCHES, CHARACTER_INCHES = 0.6, 0.062  # of an entry, and of each character of its name


# without what differs from run to run
METADATA: Mapping[str, Any] = {".png": {"Software": None}, ".svg": {"Date": None, "Creator": None}}


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write ``<stem>.png`` and ``<stem>.svg``; the two paths."""
    return [write(figure, stem.with_name(stem.name + suffix)) for suffix in METADATA]


def write(figure: Figure, path: Path) -> Path:
    """Write it in the format of the path's ending, one of METADATA. The bytes depend on the figure alone."""
    suffix, data = path.suffix.lower(), io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(data, format=suffix[1:], metadata=METADATA[suffix])
    write_atomically(path, data.getvalue())
    return path


# --- accuracy against energy ---------------------------------------------------------------------------------------


def front_figure(fronts: Sequence[Front], caption: str) -> Figure:
    """The y of the fronts' axes against their x: a panel a family (the first MAX_PANELS), every run as a faint point,
    the settings' means with error bars over the seeds, the non-dominated ones joined, their names, standard training,
    the floor, and the selected setting in a ring. Where methods or networks share a front, each is a line of its own
    (Front.settings.line): its own non-dominated settings, joined, in its colour; behind them the front of all. x is
    logarithmic where a panel spans a decade. caption: the line below the title (hardware, seeds, rule)."""
    shown = list(fronts[:MAX_PANELS])
    columns = min(len(shown), 2 if len(shown) <= 4 else 3 if len(shown) <= 9 else 4)
    rows = math.ceil(len(shown) / columns)
    styles = line_styles(shown)
    alone = (8.8, 5.8) if styles else (6.8, 4.6)
    width, height = alone if len(shown) == 1 else (PANEL_INCHES[0] * columns * 0.85, PANEL_INCHES[1] * rows * 0.85)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height + 1.0), layout="constrained")
        FigureCanvasAgg(figure)
        _headline(figure, "Accuracy against inference energy", _more(caption, len(fronts), len(shown)))
        panels = figure.subplots(rows, columns, squeeze=False)
        for axes, front in zip(panels.flat, shown, strict=False):
            _draw_front(axes, front, styles)
        for axes in panels.flat[len(shown) :]:
            axes.set_axis_off()
        for axes in panels[:, 0]:
            axes.set_ylabel(shown[0].axes.y.axis)
        for axes in [panels[(len(shown) - 1 - column) // columns, column] for column in range(columns)]:
            axes.set_xlabel(shown[0].axes.x.axis)
        handles, most = _legend(shown, styles, width), 3 if columns == 1 else 6
        beside = _legend_columns(handles, most, width) if styles else most
        figure.set_figheight(height + 1.0 + LINE_INCHES * max(math.ceil(len(handles) / beside) - 3, 0))
        figure.legend(handles=handles, loc="outside lower center", ncols=beside)
        _settle(figure)
        for axes, front in zip(panels.flat, shown, strict=False):
            _label(axes, front, styles)
    return figure


def _more(caption: str, families: int, shown: int) -> str:
    return (
        caption if families == shown else f"{caption}\nthe first {shown} of {families} families; all are in pareto.csv"
    )


def _headline(figure: Figure, title: str, caption: str) -> None:
    room = "\n" * max(1, caption.count("\n"))
    figure.suptitle(f"{title}{room}", x=0.012, ha="left", fontsize=12, fontweight="bold")
    figure.text(0.012, 0, caption, ha="left", va="top", fontsize=8.5, color=GREY, gid="caption")


def _settle(figure: Figure) -> None:
    """Fix the layout, then hang the caption below the title."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    title = figure._suptitle  # type: ignore[attr-defined]
    box = title.get_window_extent()
    for text in figure.texts:
        if text.get_gid() == "caption":
            top = box.y1 - 1.35 * 12 * figure.dpi / 72
            text.set_y(figure.transFigure.inverted().transform((0, top))[1])
            text.set_gid(None)


@dataclass(frozen=True)
class LineStyle:
    """colour, marker: of a method. fill: of a model; the first one's markers are full."""

    colour: str
    marker: str
    fill: Any


def line_styles(fronts: Sequence[Front]) -> dict[str, LineStyle]:
    """For each line of the fronts, standard training and dense networks first; none where every front is standard
    training and one method on one network."""
    if all(
        len({*front.settings["line"]} - {STANDARD}) < 2 and front.settings["network"].nunique() < 2 for front in fronts
    ):
        return {}
    lines = pd.concat([front.settings for front in fronts])[["line", "method", "model"]].drop_duplicates("line")
    dense = (lines["method"] == STANDARD) & (lines["line"] != STANDARD)
    lines["method"] = lines["method"].mask(dense, NARROW)
    lines["place"] = [FIRST.index(method) if method in FIRST else len(FIRST) for method in lines["method"]]
    lines = lines.sort_values(["place", "method", "model", "line"])
    others = [method for method in dict.fromkeys(lines["method"]) if method not in COLOURS]
    colours = COLOURS | {method: MORE_COLOURS[i % len(MORE_COLOURS)] for i, method in enumerate(others)}
    methods, models = ({name: i for i, name in enumerate(dict.fromkeys(lines[key]))} for key in ("method", "model"))
    return {
        line.line: LineStyle(
            colours[line.method],
            MARKERS[methods[line.method] % len(MARKERS)],
            FILLS[min(models[line.model], len(FILLS) - 1)],
        )
        for line in lines.itertuples()
    }


def _draw_front(axes: Axes, front: Front, styles: Mapping[str, LineStyle]) -> None:
    settings = front.settings
    (_draw_lines if styles else _draw_one_method)(axes, front, styles)
    if front.selected is not None:
        x, y = _points(front, settings[settings["selected"]])
        axes.plot(x, y, linestyle="none", marker="o", markersize=13, markerfacecolor="none", color=INK, zorder=7)
    if front.floor is not None:
        axes.axvline(front.floor, color=GREY, linestyle=(0, (5, 3)), linewidth=1, zorder=1)
    axes.margins(x=0.09, y=0.12)
    _scale_x(axes, _points(front, settings)[0])
    axes.set_title(_wrapped(front.family))
    axes.tick_params(length=3)


def _scale_x(axes: Axes, x: Sequence[float]) -> None:
    """Logarithmic from a decade on."""
    if min(x) <= 0 or max(x) < DECADE * min(x):
        axes.xaxis.set_major_locator(MaxNLocator(7))
        return
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(x) < 1000 * min(x) else (1,)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _draw_one_method(axes: Axes, front: Front, styles: Mapping[str, LineStyle]) -> None:
    settings = front.settings
    _single_runs(axes, front, front.runs, PALE)
    on_front, standard = settings["on_front"], settings["is_baseline"]
    axes.plot(*_points(front, settings[on_front]), color=EAT_COLOUR, linewidth=1.3, alpha=0.8, zorder=3)
    hollow = {"marker": "o", "markerfacecolor": "white", "markersize": 4.5}
    _means(axes, front, ~on_front & ~standard, color=GREY, **hollow, zorder=4)
    _means(axes, front, on_front & ~standard, color=EAT_COLOUR, marker="o", markersize=5.5, zorder=5)
    _means(axes, front, standard, color=ST_COLOUR, marker="D", markersize=6, zorder=6)


def _draw_lines(axes: Axes, front: Front, styles: Mapping[str, LineStyle]) -> None:
    settings = front.settings
    axes.plot(*_points(front, settings[settings["on_front"]]), **BAND, zorder=1)
    for line, style in styles.items():
        own = settings["line"] == line
        if not own.any():
            continue
        best = own & settings.index.isin(own_front(front, line))
        reference = own & (settings.index == front.reference)
        _single_runs(axes, front, front.runs[front.runs["setting_id"].isin(settings.index[own])], style.colour)
        axes.plot(*_points(front, settings[best]), color=style.colour, linewidth=1.2, alpha=0.85, zorder=3)
        shape = {"color": style.colour, "marker": style.marker, "fillstyle": style.fill, "ecolor": (style.colour, 0.4)}
        _means(axes, front, own & ~best, **shape, markerfacecolor="white", markersize=4.5, zorder=4)
        _means(axes, front, best & ~reference, **shape, markersize=5.5, zorder=5)
        _means(axes, front, reference, **shape, markersize=7.5, zorder=6)


def own_front(front: Front, line: str) -> list[str]:
    """The settings of a line that no other of it beats, by x."""
    settings = front.settings[front.settings["line"] == line]
    found = non_dominated(settings[front.axes.y.key].tolist(), settings[front.axes.x.key].tolist())
    return [str(settings.index[i]) for i in found]


def _single_runs(axes: Axes, front: Front, runs: pd.DataFrame, colour: str) -> None:
    axes.plot(
        *_points(front, runs.loc[_by_setting(front, runs)]),
        linestyle="none",
        marker="o",
        markersize=3.2,
        markeredgewidth=0,
        color=colour,
        alpha=(0.75 if len(front.runs) < 300 else 0.35) * (1 if colour == PALE else 0.45),
        zorder=2,
    )


def _by_setting(front: Front, runs: pd.DataFrame) -> pd.Index:
    """Runs in the order of their settings, so that the same points are drawn in the same order."""
    place = {setting_id: place for place, setting_id in enumerate(front.settings.index)}
    return runs["setting_id"].map(place).sort_values(kind="stable").index


def _wrapped(title: str, width: int = 60) -> str:
    """At most two lines; what does not fit is cut."""
    if len(title) <= width:
        return title
    cut = title.rfind(", ", 0, width)
    cut = cut + 1 if cut > 0 else width
    rest = title[cut:].strip()
    return f"{title[:cut]}\n{_cut(rest, width)}"


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _points(front: Front, rows: pd.DataFrame, suffix: str = "") -> tuple[list[float], list[float]]:
    """x and y of settings or runs (or, by suffix, their deviations) as they are drawn; a missing deviation is 0."""
    x, y = front.axes.x, front.axes.y
    return (
        [x.scale * value for value in rows[f"{x.key}{suffix}"].fillna(0.0)],
        [y.scale * value for value in rows[f"{y.key}{suffix}"].fillna(0.0)],
    )


def _means(axes: Axes, front: Front, which: pd.Series, **style: Any) -> None:
    settings = front.settings[which]
    if settings.empty:
        return
    x, y = _points(front, settings)
    x_std, y_std = _points(front, settings, "_std")
    crowded = len(settings) > MAX_ERROR_BARS
    style["markersize"] = 2.5 if crowded else style["markersize"]
    axes.errorbar(
        x,
        y,
        xerr=x_std,
        yerr=y_std,
        linestyle="none",
        elinewidth=0.9,
        capsize=0 if crowded else 1.8,
        capthick=0.9,
        errorevery=math.ceil(len(settings) / MAX_ERROR_BARS) if crowded else 1,
        **style,
    )


def _legend(fronts: Sequence[Front], styles: Mapping[str, LineStyle], inches: float) -> list[Line2D]:
    settings = pd.concat([front.settings for front in fronts])
    several_seeds = (settings["n"] > 1).any()
    floors = any(front.floor is not None for front in fronts)
    ends = [
        (settings["selected"].any(), _entry("selected", color=INK, marker="o", markerfacecolor="none", markersize=11)),
        (several_seeds, _entry("single run", color=PALE, marker="o", markersize=3.5)),
        (floors, _entry("floor (every activation zero)", color=GREY, linestyle=(0, (5, 3)), linewidth=1)),
    ]
    begins = _of_lines(fronts, styles, inches) if styles else _of_one_method(settings)
    return [*begins, *(handle for there, handle in ends if there)]


def _entry(label: str, linestyle: Any = "none", **style: Any) -> Line2D:
    return Line2D([], [], label=label, linestyle=linestyle, **style)


def _of_one_method(settings: pd.DataFrame) -> list[Line2D]:
    trained = settings[~settings["is_baseline"]]
    eat = "EAT, " if (trained["lambda"] > 0).all() else ""
    hollow = _entry(f"{eat}dominated", color=GREY, marker="o", markerfacecolor="white", markersize=4.5)
    standard = _entry("standard training (ST)", color=ST_COLOUR, marker="D", markersize=6)
    return [
        *([standard] if settings["is_baseline"].any() else []),
        _entry(f"{eat}non-dominated", color=EAT_COLOUR, marker="o", markersize=5.5, linestyle="-"),
        *([] if trained["on_front"].all() else [hollow]),
    ]


def _of_lines(fronts: Sequence[Front], styles: Mapping[str, LineStyle], inches: float) -> list[Line2D]:
    longest = int((inches - LEGEND_INCHES) / CHARACTER_INCHES)
    named = list(styles.items())[:MAX_LINES]
    entries = [
        _entry(
            _cut(line, longest), "-", color=s.colour, marker=s.marker, fillstyle=s.fill, markersize=5.5, linewidth=1.2
        )
        for line, s in named
    ]
    if len(styles) > len(named):
        entries.append(_entry(f"{len(styles) - len(named)} more: see pareto.csv"))
    if any(len(front.settings) > sum(len(own_front(front, line)) for line in styles) for front in fronts):
        hollow = {"color": GREY, "marker": "o", "markerfacecolor": "white", "markersize": 4.5}
        entries.append(_entry("beaten by its own line", **hollow))
    return [*entries, _entry("front of all", **BAND)]


def _legend_columns(handles: Sequence[Line2D], most: int, inches: float) -> int:
    """As many as fit beside each other, at most so many."""
    longest = max(len(str(handle.get_label())) for handle in handles)
    return max(1, min(most, int(inches / (LEGEND_INCHES + CHARACTER_INCHES * longest))))


# labels: the first place around a point that nothing else has taken


def _label(axes: Axes, front: Front, styles: Mapping[str, LineStyle]) -> None:
    """The names of the selected setting, the baselines, the front, then the others, where there is room."""
    inside = axes.get_window_extent()
    settings = front.settings
    place = {name: (x, y) for name, x, y in zip(settings.index, *_points(front, settings), strict=True)}
    boxes = {name: _around(axes, point) for name, point in place.items()}
    on_front = list(settings.index[settings["on_front"]])
    taken = list(boxes.values()) if len(boxes) <= 400 else [boxes[name] for name in on_front]
    line = _line_boxes(axes, [place[name] for name in on_front])
    if front.floor is not None:
        taken.append(_floor_label(axes, front.floor))
    wanted = settings.loc[_by_importance(front)]
    for name, row in wanted.to_dict("index").items():
        text = axes.annotate(
            _point_label(front, name, styles),
            place[name],
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=8 if row["on_front"] or row["is_baseline"] else 7,
            fontweight="bold" if row["selected"] else "normal",
            color=_label_colour(row, styles),
            zorder=8,
            path_effects=[withStroke(linewidth=2, foreground="white")],
        )
        for obstacles in ([*taken, *line], taken):
            if _place(text, boxes[name], obstacles, inside):
                taken.append(text.get_window_extent())
                break
        else:
            text.remove()


def _point_label(front: Front, name: str, styles: Mapping[str, LineStyle]) -> str:
    """Which of several trainings is the reference is said."""
    setting = front.settings.loc[name]
    if styles:
        return "ST (reference)" if name == front.reference else setting["point"]
    return "ST" if setting["is_baseline"] else setting["short"]


def _label_colour(setting: Mapping[str, Any], styles: Mapping[str, LineStyle]) -> str:
    if styles:
        return styles[setting["line"]].colour
    return ST_COLOUR if setting["is_baseline"] else EAT_COLOUR if setting["on_front"] else GREY


def _by_importance(front: Front) -> list[str]:
    """The settings to label: selected, reference, front, others; of the latter, where they are too many, every second,
    third, …"""
    order = [front.selected, front.reference, *front.settings.index[front.settings["on_front"]], *front.settings.index]
    wanted = list(dict.fromkeys(name for name in order if name is not None))
    return wanted[:2] + wanted[2 :: math.ceil(len(wanted) / MAX_LABELS)]


PLACES: tuple[tuple[int, int, str, str], ...] = (
    (7, 4, "left", "bottom"),
    (7, -4, "left", "top"),
    (-7, 4, "right", "bottom"),
    (-7, -4, "right", "top"),
    (0, 8, "center", "bottom"),
    (0, -8, "center", "top"),
    (10, 0, "left", "center"),
    (-10, 0, "right", "center"),
    (14, 14, "left", "bottom"),
    (14, -14, "left", "top"),
    (-14, 14, "right", "bottom"),
    (-14, -14, "right", "top"),
)


def _place(text: Any, own: Bbox, obstacles: Sequence[Bbox], inside: Bbox) -> bool:
    for x, y, horizontal, vertical in PLACES:
        text.xyann = (x, y)
        text.set(ha=horizontal, va=vertical)
        box = text.get_window_extent()
        within = inside.x0 <= box.x0 and box.x1 <= inside.x1 + 20 and inside.y0 <= box.y0 and box.y1 <= inside.y1 + 6
        if within and not any(box.overlaps(other) for other in obstacles if other.bounds != own.bounds):
            return True
    return False


def _around(axes: Axes, point: tuple[float, float], pixels: float = 4.5) -> Bbox:
    x, y = axes.transData.transform(point)
    return Bbox.from_extents(x - pixels, y - pixels, x + pixels, y + pixels)


def _line_boxes(axes: Axes, points: Sequence[tuple[float, float]]) -> list[Bbox]:
    """Small boxes along the line that joins the points."""
    boxes: list[Bbox] = []
    for (x0, y0), (x1, y1) in pairwise(axes.transData.transform(point) for point in points):
        steps = max(1, int(math.hypot(x1 - x0, y1 - y0) / 6))
        for step in range(1, steps):
            x, y = x0 + (x1 - x0) * step / steps, y0 + (y1 - y0) * step / steps
            boxes.append(Bbox.from_extents(x - 1, y - 1, x + 1, y + 1))
    return boxes


def _floor_label(axes: Axes, floor: float) -> Bbox:
    text = axes.annotate(
        f"floor {floor:.2f}",
        (floor, 0.02),
        xycoords=("data", "axes fraction"),
        xytext=(4, 0),
        textcoords="offset points",
        fontsize=8,
        color=GREY,
    )
    return text.get_window_extent()


# --- layer by layer ------------------------------------------------------------------------------------------------


def firing_figure(panels: Sequence[LayerPanel], caption: str) -> Figure:
    """Percentage of non-zero outputs of each layer, ST in blue beside EAT in red (the paper's Fig. 1 and 2)."""
    return _layer_figure(panels, "Firing neurons, layer by layer", caption, "non-zero outputs (%)", "firing_rate", 100)


def energy_figure(panels: Sequence[LayerPanel], caption: str, relative: bool) -> Figure:
    """Energy per image of each layer, ST in blue beside EAT in red. relative: energies are in units of one MAC."""
    most = max(panel.layers[["energy_pj_st", "energy_pj_eat"]].to_numpy().max() for panel in panels)
    unit, scale = energy_unit(most, relative)
    label = f"energy per image ({unit})"
    return _layer_figure(panels, "Inference energy, layer by layer", caption, label, "energy_pj", scale)


ENERGY_UNITS = (("mJ", 1e-9), ("µJ", 1e-6), ("nJ", 1e-3))


def energy_unit(most: float, relative: bool) -> tuple[str, float]:
    """The unit in which ``most`` pJ are a number of at least 1, and what pJ are to be multiplied with."""
    return ("MACs", 1.0) if relative else next(((u, s) for u, s in ENERGY_UNITS if most * s >= 1), ("pJ", 1.0))


def _layer_figure(
    panels: Sequence[LayerPanel], title: str, caption: str, label: str, measure: str, scale: float
) -> Figure:
    shown = list(panels[:MAX_PANELS])
    layers = max(len(panel.layers) for panel in shown)
    width = min(max(6.8, 1.5 + 0.16 * layers), 18)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, 0.8 + 3.4 * len(shown)), layout="constrained")
        FigureCanvasAgg(figure)
        _headline(figure, title, _more(caption, len(panels), len(shown)))
        for axes, panel in zip(figure.subplots(len(shown), 1, squeeze=False).flat, shown, strict=True):
            _draw_layers(axes, panel, measure, scale)
            axes.set_ylabel(label)
        _settle(figure)
    return figure


def _draw_layers(axes: Axes, panel: LayerPanel, measure: str, scale: float) -> None:
    positions = range(len(panel.layers))
    for which, offset, colour, name in (
        ("st", -0.2, ST_COLOUR, panel.st_label),
        ("eat", 0.2, EAT_COLOUR, panel.eat_label),
    ):
        heights = [scale * value for value in panel.layers[f"{measure}_{which}"]]
        axes.bar([p + offset for p in positions], heights, width=0.4, color=colour, linewidth=0, label=name)
    _name_layers(axes, panel.layers["name"].tolist())
    axes.set_title(_wrapped(panel.family))
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.2)


def _name_layers(axes: Axes, names: Sequence[str]) -> None:
    """Below bars at 0, 1, 2, ...; every second, third, … where there are too many."""
    step = math.ceil(len(names) / MAX_TICK_NAMES) or 1
    axes.set_xticks(range(0, len(names), step), [_short(name) for name in names[::step]])
    axes.tick_params(axis="x", labelrotation=90, labelsize=6.5, length=2)
    axes.grid(visible=False, axis="x")
    axes.set_xlim(-0.8, len(names) - 0.2)


def _short(name: str, length: int = 28) -> str:
    return name if len(name) <= length else f"…{name[1 - length :]}"


# --- where a network's energy goes ---------------------------------------------------------------------------------

PARTS = {"weights": "#1f5fa8", "activations": "#e08a00", "products": "#c8352b", "others": "#a3abb8"}


@dataclass(frozen=True)
class PartsPanel:
    """A network on one hardware. layers: name, and pJ (or MACs) of each of PARTS, in the order of the calls."""

    title: str
    layers: Sequence[tuple[str, Mapping[str, float]]]
    relative: bool


def parts_figure(panels: Sequence[PartsPanel], caption: str) -> Figure:
    """Energy per image of each layer, as bars of its parts, a panel a hardware."""
    shown = list(panels[:MAX_PANELS])
    width = min(max(6.8, 1.5 + 0.16 * max(len(panel.layers) for panel in shown)), 18)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, 1.2 + 3.4 * len(shown)), layout="constrained")
        FigureCanvasAgg(figure)
        _headline(figure, "Where the energy goes, layer by layer", caption)
        for axes, panel in zip(figure.subplots(len(shown), 1, squeeze=False).flat, shown, strict=True):
            _draw_parts(axes, panel)
        _settle(figure)
    return figure


def _draw_parts(axes: Axes, panel: PartsPanel) -> None:
    most = max((sum(parts.values()) for _, parts in panel.layers), default=0.0)
    unit, scale = energy_unit(most, panel.relative)
    positions = range(len(panel.layers))
    below = [0.0] * len(positions)
    for part, colour in PARTS.items():
        heights = [scale * parts[part] for _, parts in panel.layers]
        if any(heights):
            axes.bar(positions, heights, bottom=below, width=0.8, color=colour, linewidth=0, label=part)
        below = [low + height for low, height in zip(below, heights, strict=True)]
    axes.set_ylabel(f"energy per image ({unit})")
    _name_layers(axes, [name for name, _ in panel.layers])
    axes.set_title(_wrapped(panel.title))
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(PARTS), borderaxespad=0.2)
