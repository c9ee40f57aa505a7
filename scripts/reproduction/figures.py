"""Figures 1 to 3 of the paper, from the outcomes of its cells. No torch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from eat_runner.analysis.layers import LayerPanel
from eat_runner.analysis.layers import layer_panel as panel_of
from eat_runner.analysis.pareto import Front
from eat_runner.config.hardware import HardwareConfig
from eat_runner.report import plots
from eat_runner.report.view import number
from reproduction.tables import Outcome, Row

COLOURS = "Blues"  # light to dark with growing values
PANEL_INCHES = (5.6, 2.9)
LEAST_RATIO, LEAST_POINTS = 0.1, 5.0  # that a panel of the fronts spans, in energy ratio and points of accuracy


def layer_panel(one: Outcome, hardware: HardwareConfig) -> LayerPanel | None:
    """ST beside EAT of a cell that has both; EAT is what the paper's rule picks, else the smallest lambda. Raises
    UserError where a run's counts cannot be read."""
    picked = one.picks.get("paper")
    penalised = [setting for setting in one.settings() if not setting["is_baseline"]]
    if one.baseline is None or not penalised:
        return None
    smallest = min(penalised, key=lambda setting: setting["lambda"])
    eat_id = picked or smallest["setting_id"]
    st, eat = one.setting(one.baseline), one.setting(eat_id)
    outside = "" if picked else ", not selected by the paper's rule"
    eat_label = f"EAT, λ {eat['lambda']:g}, σ {eat['sigma']:g}{outside} ({_seeds(eat)})"
    labels = one.cell.title, f"ST ({_seeds(st)})", eat_label
    return panel_of(one.fronts[0], one.baseline, eat_id, hardware, *labels)


def _seeds(setting: Row) -> str:
    return "one seed" if setting["n"] == 1 else f"mean of {setting['n']} seeds"


def layer_rows(panels: Sequence[LayerPanel]) -> pd.DataFrame | list[Row]:
    """What the layer figures show, as numbers: shares of non-zero outputs on the test split."""
    columns = ["name", "op", "firing_rate_st", "firing_rate_eat"]
    shown = {panel.family: panel.layers[columns].rename_axis("position") for panel in panels}
    return pd.concat(shown, names=["cell"]).reset_index() if shown else []


def picked(one: Outcome, rule: str) -> Front:
    """The cell's front under its own name, with what the rule picks in the ring."""
    front = one.fronts[0]
    selected = front.settings.index.isin([one.picks.get(rule)])
    return replace(front, family=one.cell.title, settings=front.settings.assign(selected=selected))


def front_figure(fronts: Sequence[Front], rule: str, caption: str) -> Figure:
    """``plots.front_figure`` with a legend that says by which rule the ring is set, and with axes that do not spread a
    few thousandths over a whole panel where a cell has little but ST."""
    figure = plots.front_figure(fronts, caption)
    for text in figure.legends[0].get_texts():
        if text.get_text() == "selected":
            text.set_text(f"selected ({rule})")
    for axes in figure.axes:
        axes.set_xlim(*_at_least(LEAST_RATIO, *axes.get_xlim()))
        axes.set_ylim(*_at_least(LEAST_POINTS, *axes.get_ylim()))
    return figure


def _at_least(span: float, low: float, high: float) -> tuple[float, float]:
    more = max(span - (high - low), 0.0) / 2
    return low - more, high + more


def ablation_figure(rows: Sequence[Row], caption: str) -> Figure:
    """lambda against sigma: accuracy on the left, energy ratio on the right, a row a data set, a colour scale for each
    of the two. rows: of ``tables.ablation``."""
    datasets = list(dict.fromkeys(str(row["dataset"]) for row in rows))
    with mpl.rc_context({**plots.STYLE, "axes.grid": False}):
        size = (2 * PANEL_INCHES[0], 1.0 + PANEL_INCHES[1] * len(datasets))
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(f"Ablation on lambda and sigma\n{caption}", x=0.012, ha="left", fontsize=10)
        panels = figure.subplots(len(datasets), 2, squeeze=False)
        for column, (measure, name) in enumerate((("accuracy", "test accuracy"), ("energy_ratio", "energy ratio"))):
            values = [float(row[measure] or 0) for row in rows if row["sigma"] is not None]
            low = min(values, default=0.0)
            high = max(max(values, default=1.0), low + 1e-9)
            for dataset, axes in zip(datasets, panels[:, column], strict=True):
                own = [row for row in rows if row["dataset"] == dataset]
                image = _heat_map(axes, own, measure, low, high)
                axes.set_title(f"{dataset}: {name}{_standard(own, measure)}", fontsize=9)
            figure.colorbar(image, ax=panels[:, column], label=name, aspect=30)  # pyright: ignore
    return figure


def _heat_map(axes: Axes, rows: Sequence[Row], measure: str, low: float, high: float) -> AxesImage:
    """A field a (sigma, lambda), with its number; a dash where there is none. low, high: ends of the colour scale."""
    there = {(row["sigma"], row["lambda"]): row for row in rows if row["sigma"] is not None}
    sigmas = sorted({float(sigma or 0) for sigma, _ in there}, reverse=True)
    lambdas = sorted({float(lambda_ or 0) for _, lambda_ in there})
    grid = [[_number(there.get((sigma, lambda_), {}), measure) for lambda_ in lambdas] for sigma in sigmas]
    image = axes.imshow(grid or [[math.nan]], cmap=COLOURS, aspect="auto", vmin=low, vmax=high)
    for y, line in enumerate(grid):
        for x, value in enumerate(line):
            text = _with_std(there.get((sigmas[y], lambdas[x]), {}), measure).replace(" ±", "\n±")
            dark = value - low > 0.6 * (high - low)
            axes.text(x, y, text, ha="center", va="center", fontsize=7.5, color="white" if dark else plots.INK)
    axes.set_xticks(range(len(lambdas)), [f"{value:g}" for value in lambdas])
    axes.set_yticks(range(len(sigmas)), [f"{value:.0e}" for value in sigmas])
    axes.set_xlabel("λ")
    axes.set_ylabel("σ")
    axes.tick_params(length=0)
    return image


STUDIES = {  # of tables.choices: what they vary
    "choices": "The penalty's weighting of layers and scope",
    "choices_augmentation": "Crops, rotations and flips of the images",
    "choices_vgg16": "VGG16's head",
}
VARIED = {  # column of tables.choices: how a value is named
    "network": "{}",
    "weighting": "{}",
    "scope": "{}",
    "crop_padding": "crops {} px",
    "rotation_degrees": "rotations ±{:g}°",
    "flip": "flips: {}",
    "lambda": "λ {:g}",
}
ROW_INCHES = 0.22


def choices_figure(rows: Sequence[Row], caption: str) -> Figure:
    """A line a setting, study by study: accuracy on the left, energy ratio on the right, ± the standard deviation over
    seeds. rows: of ``tables.choices``."""
    studies = list(dict.fromkeys(str(row["study"]) for row in rows))
    with mpl.rc_context(plots.STYLE):
        heights = [sum(row["study"] == study for row in rows) + 2.5 for study in studies]
        figure = Figure(figsize=(2 * PANEL_INCHES[0], 0.6 + ROW_INCHES * sum(heights)), layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(f"Where the paper is ambiguous: other readings\n{caption}", x=0.012, ha="left", fontsize=10)
        panels = figure.subplots(len(studies), 2, squeeze=False, sharex="col", height_ratios=heights)
        for study, (left, right) in zip(studies, panels, strict=True):
            own = [row for row in rows if row["study"] == study]
            varied = [key for key in VARIED if len({row[key] for row in own} - {None, ""}) > 1]
            for axes, measure in ((left, "accuracy"), (right, "energy_ratio")):
                for y, row in enumerate(own):
                    colour = plots.EAT_COLOUR if row["lambda"] else plots.ST_COLOUR
                    spread = row.get(f"{measure}_std")
                    axes.errorbar(row[measure], y, xerr=spread, fmt="o", color=colour, markersize=4, capsize=2)
                axes.set_yticks(range(len(own)), [_choice(row, varied) for row in own] if axes is left else [])
                axes.set_ylim(len(own) - 0.5, -0.5)
            left.set_title(STUDIES.get(study, study), fontsize=9)
        panels[-1, 0].set_xlabel("test accuracy")
        panels[-1, 1].set_xlabel("energy ratio")
    return figure


def _choice(row: Row, varied: Sequence[str]) -> str:
    parts = [VARIED[key].format(row[key]) for key in varied if row[key] not in (None, "")]
    return ", ".join(parts if row["lambda"] else ["ST", *(part for part in parts if part != "λ 0")])


def _number(row: Mapping[str, Any], measure: str) -> float:
    value = row.get(measure)
    return math.nan if value is None else float(value)


def _with_std(row: Mapping[str, Any], measure: str) -> str:
    return number(row.get(measure), row.get(f"{measure}_std"), 3)


def _standard(rows: Sequence[Row], measure: str) -> str:
    standard = next((row for row in rows if row["sigma"] is None), None)
    return "" if standard is None else f" (ST {_with_std(standard, measure)})"


def fallen_most(panel: LayerPanel) -> str:
    """The kinds of layers of a panel, by how much their firing rate fell from ST to EAT, in points."""
    layers = panel.layers
    falls = (100 * (layers["firing_rate_st"] - layers["firing_rate_eat"])).groupby(layers["op"]).mean()
    means = sorted(((fall, op) for op, fall in falls.items()), reverse=True)
    return ", ".join(f"{op} {round(-mean, 1) + 0.0:+.1f}" for mean, op in means)
