"""Figures 1 to 3 of the paper, from the outcomes of its cells. No torch."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from eat_runner.analysis.layers import LayerPanel
from eat_runner.analysis.layers import layer_panel as panel_of
from eat_runner.analysis.pareto import Front
from eat_runner.config.hardware import HardwareConfig
from eat_runner.errors import UserError
from eat_runner.report import plots
from eat_runner.report.view import number
from reproduction.tables import Outcome, Row

COLOURS = "Blues"  # light to dark with growing values
PANEL_INCHES = (5.6, 2.9)
LEAST_RATIO, LEAST_POINTS = 0.1, 5.0  # that a panel of the fronts spans, in energy ratio and points of accuracy
MEASURES = {"accuracy": "test accuracy", "energy_ratio": "energy ratio"}


def layer_panel(one: Outcome, hardware: HardwareConfig) -> LayerPanel:
    """ST beside EAT of a cell; EAT is what the paper's rule picks, else the smallest lambda. UserError where it lacks
    one of the two, or a run's counts cannot be read."""
    penalised = one.fronts[0].settings.query("~is_baseline") if one.fronts else pd.DataFrame()
    if one.baseline is None or penalised.empty:
        raise UserError(one.note or "no EAT run")
    picked = one.picks["paper"]
    eat_id = picked or str(penalised["lambda"].idxmin())
    st, eat = one.setting(one.baseline), one.setting(eat_id)
    outside = "" if picked else ", not selected by the paper's rule"
    eat_label = f"EAT, λ {eat['lambda']:g}, σ {eat['sigma']:g}{outside} ({_seeds(eat)})"
    labels = one.cell.title, f"ST ({_seeds(st)})", eat_label
    return panel_of(one.fronts[0], one.baseline, eat_id, hardware, *labels)


def _seeds(setting: Row) -> str:
    return "one seed" if setting["n"] == 1 else f"mean of {setting['n']} seeds"


def layer_rows(panels: Sequence[LayerPanel]) -> pd.DataFrame:
    """What the layer figures show, as numbers: shares of non-zero outputs on the test split."""
    columns = ["name", "op", "firing_rate_st", "firing_rate_eat"]
    shown = {panel.family: panel.layers[columns].rename_axis("position") for panel in panels}
    return pd.concat(shown, names=["cell"]).reset_index() if shown else pd.DataFrame()


def fallen_most(panel: LayerPanel) -> str:
    """The kinds of layers of a panel, by how much their firing rate fell from ST to EAT, in points."""
    layers = panel.layers
    falls = (100 * (layers["firing_rate_st"] - layers["firing_rate_eat"])).groupby(layers["op"]).mean()
    means = sorted(((fall, op) for op, fall in falls.items()), reverse=True)
    return ", ".join(f"{op} {round(-mean, 1) + 0.0:+.1f}" for mean, op in means)


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


def _panels(rows: int, height: float, title: str, **layout: Any) -> tuple[Figure, Any]:
    """A figure of two columns: accuracy on the left, energy ratio on the right."""
    figure = Figure(figsize=(2 * PANEL_INCHES[0], height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.012, ha="left", fontsize=10)
    return figure, figure.subplots(rows, 2, squeeze=False, **layout)


def ablation_figure(rows: Sequence[Row], caption: str) -> Figure:
    """lambda against sigma, a row a data set, a colour scale for each measure. rows: of ``tables.ablation``."""
    frame = pd.DataFrame(rows)
    is_st, datasets = frame["sigma"].isna(), frame["dataset"].unique()
    with mpl.rc_context({**plots.STYLE, "axes.grid": False}):
        height = 1.0 + PANEL_INCHES[1] * len(datasets)
        figure, panels = _panels(len(datasets), height, f"Ablation on lambda and sigma\n{caption}")
        for column, (measure, name) in zip(panels.T, MEASURES.items(), strict=True):
            values = frame.loc[~is_st, measure].tolist() or [0.0, 1.0]
            ends = min(values), max(*values, min(values) + 1e-9)
            for dataset, axes in zip(datasets, column, strict=True):
                own = frame["dataset"] == dataset
                image = _heat_map(axes, frame[own & ~is_st], measure, *ends)
                st = [number(row[measure], row[f"{measure}_std"], 3) for _, row in frame[own & is_st].iterrows()]
                axes.set_title(f"{dataset}: {name}{f' (ST {st[0]})' if st else ''}", fontsize=9)
            figure.colorbar(image, ax=column, label=name, aspect=30)  # pyright: ignore
    return figure


def _heat_map(axes: Axes, rows: pd.DataFrame, measure: str, low: float, high: float) -> AxesImage:
    """A field a (sigma, lambda), with its number; a dash where there is none. low, high: ends of the colour scale."""
    means, deviations = (
        rows.pivot(index="sigma", columns="lambda", values=key).astype(float).sort_index(ascending=False)
        for key in (measure, f"{measure}_std")
    )
    image = axes.imshow(means if means.size else [[np.nan]], cmap=COLOURS, aspect="auto", vmin=low, vmax=high)
    for (y, x), value in np.ndenumerate(means.to_numpy()):
        text = number(value, deviations.iat[y, x], 3).replace(" ±", "\n±")
        colour = "white" if value - low > 0.6 * (high - low) else plots.INK
        axes.text(x, y, text, ha="center", va="center", fontsize=7.5, color=colour)
    axes.set_xticks(range(means.shape[1]), [f"{value:g}" for value in means.columns])
    axes.set_yticks(range(means.shape[0]), [f"{value:.0e}" for value in means.index])
    axes.set(xlabel="λ", ylabel="σ")
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
    """A line a setting, study by study, ± the standard deviation over seeds. rows: of ``tables.choices``."""
    studies = {study: list(own) for study, own in groupby(rows, key=lambda row: row["study"])}
    heights = [len(own) + 2.5 for own in studies.values()]
    title = f"Where the paper is ambiguous: other readings\n{caption}"
    with mpl.rc_context(plots.STYLE):
        inches = 0.6 + ROW_INCHES * sum(heights)
        figure, panels = _panels(len(studies), inches, title, sharex="col", height_ratios=heights)
        for (study, own), pair in zip(studies.items(), panels, strict=True):
            varied = [key for key in VARIED if len({row[key] for row in own} - {""}) > 1]
            for axes, (measure, name) in zip(pair, MEASURES.items(), strict=True):
                for y, row in enumerate(own):
                    colour = plots.EAT_COLOUR if row["lambda"] else plots.ST_COLOUR
                    spread = row[f"{measure}_std"]
                    axes.errorbar(row[measure], y, xerr=spread, fmt="o", color=colour, markersize=4, capsize=2)
                axes.set_yticks(range(len(own)), [_choice(row, varied) for row in own] if axes is pair[0] else [])
                axes.set(ylim=(len(own) - 0.5, -0.5), xlabel=name if axes.get_subplotspec().is_last_row() else "")
            pair[0].set_title(STUDIES.get(study, study), fontsize=9)
    return figure


def _choice(row: Row, varied: Sequence[str]) -> str:
    parts = [VARIED[key].format(row[key]) for key in varied if row[key] != ""]
    return ", ".join(parts if row["lambda"] else ["ST", *(part for part in parts if part != "λ 0")])
