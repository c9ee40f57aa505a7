"""Figures 1 to 3 of the paper, from the outcomes of its cells. No torch."""

from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from eat_runner import plots
from eat_runner.config.hardware import HardwareConfig
from eat_runner.pareto import Setting
from eat_runner.sweep import layer_means
from reproduction.tables import Outcome, Row

# light to dark with growing values; the same for both columns, since a cell also carries its number
COLOURS = "Blues"
PANEL_INCHES = (5.6, 2.9)


def layer_panels(found: Sequence[Outcome], hardware: HardwareConfig) -> list[plots.LayerPanel]:
    """ST beside EAT, a panel a cell that has both; EAT is what the paper's rule picks, else the smallest lambda."""
    panels: list[plots.LayerPanel] = []
    for one in found:
        eat = shown_beside_st(one)
        if one.baseline is None or eat is None:
            continue
        outside = "" if one.picks["paper"] is eat else ", more than 3 points below ST"
        panels.append(
            plots.LayerPanel(
                family=one.cell.title,
                st=layer_means(one.baseline.runs, hardware),
                eat=layer_means(eat.runs, hardware),
                st_label=f"ST ({_seeds(one.baseline)})",
                eat_label=f"EAT, λ {eat.lambda_:g}{outside} ({_seeds(eat)})",
            )
        )
    return panels


def shown_beside_st(one: Outcome) -> Setting | None:
    """The setting that stands for EAT in the layer figures."""
    penalised = [setting for setting in one.settings if not setting.is_baseline]
    return one.picks.get("paper") or min(penalised, key=lambda setting: setting.lambda_, default=None)


def _seeds(setting: Setting) -> str:
    return "one seed" if setting.n == 1 else f"mean of {setting.n} seeds"


def layer_rows(panels: Sequence[plots.LayerPanel]) -> list[Row]:
    """What the layer figures show, as numbers: shares of non-zero outputs on the test split."""
    return [
        {
            "cell": panel.family,
            "position": position,
            "name": st.name,
            "op": st.op,
            "firing_rate_st": st.firing_rate,
            "firing_rate_eat": eat.firing_rate,
        }
        for panel in panels
        for position, (st, eat) in enumerate(zip(panel.st, panel.eat, strict=True))
    ]


def ablation_figure(rows: Sequence[Row], caption: str) -> Figure:
    """lambda against sigma: accuracy on the left, energy ratio on the right, a row a data set. rows: of
    ``tables.ablation``."""
    datasets = list(dict.fromkeys(str(row["dataset"]) for row in rows))
    with mpl.rc_context({**plots.STYLE, "axes.grid": False}):
        size = (2 * PANEL_INCHES[0], 1.0 + PANEL_INCHES[1] * len(datasets))
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(f"Ablation on lambda and sigma\n{caption}", x=0.012, ha="left", fontsize=10)
        panels = figure.subplots(len(datasets), 2, squeeze=False)
        for dataset, (left, right) in zip(datasets, panels, strict=True):
            own = [row for row in rows if row["dataset"] == dataset]
            _heat_map(left, own, "accuracy", f"{dataset}: test accuracy")
            _heat_map(right, own, "energy_ratio", f"{dataset}: energy ratio")
    return figure


def _heat_map(axes: Axes, rows: Sequence[Row], measure: str, title: str) -> None:
    """A field a (sigma, lambda) with its number; standard training in the title."""
    values = {(row["sigma"], row["lambda"]): row[measure] for row in rows if row["sigma"] is not None}
    standard = next((row[measure] for row in rows if row["sigma"] is None), None)
    sigmas = sorted({float(sigma or 0) for sigma, _ in values}, reverse=True)
    lambdas = sorted({float(lambda_ or 0) for _, lambda_ in values})
    grid = [[float(values.get((sigma, lambda_)) or float("nan")) for lambda_ in lambdas] for sigma in sigmas]
    low = min((value for line in grid for value in line if value == value), default=0.0)
    high = max((value for line in grid for value in line if value == value), default=1.0)
    axes.imshow(grid, cmap=COLOURS, aspect="auto", vmin=low, vmax=max(high, low + 1e-9))
    for y, line in enumerate(grid):
        for x, value in enumerate(line):
            dark = value - low > 0.6 * (high - low)
            text = f"{value:.3f}" if value == value else "–"
            axes.text(x, y, text, ha="center", va="center", fontsize=8, color="white" if dark else plots.INK)
    axes.set_xticks(range(len(lambdas)), [f"{value:g}" for value in lambdas])
    axes.set_yticks(range(len(sigmas)), [f"{value:.0e}" for value in sigmas])
    axes.set_xlabel("λ")
    axes.set_ylabel("σ")
    axes.set_title(title + (f" (ST {standard:.3f})" if isinstance(standard, float) else ""))
    axes.tick_params(length=0)


def fallen_most(panel: plots.LayerPanel) -> str:
    """The kinds of layers of a panel, by how much their firing rate fell from ST to EAT, in points."""
    falls: dict[str, list[float]] = {}
    for st, eat in zip(panel.st, panel.eat, strict=True):
        falls.setdefault(st.op, []).append(100 * (st.firing_rate - eat.firing_rate))
    means = sorted(((sum(fall) / len(fall), op) for op, fall in falls.items()), reverse=True)
    return ", ".join(f"{op} {round(-mean, 1) + 0.0:+.1f}" for mean, op in means)
