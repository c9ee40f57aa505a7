"""Layer by layer: what the runs of a setting have in common, and two settings side by side."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from eat_runner.analysis.families import over_seeds
from eat_runner.analysis.pareto import Front
from eat_runner.analysis.rows import estimate_split
from eat_runner.config.hardware import HardwareConfig
from eat_runner.errors import UserError, printable
from eat_runner.records import RunFolder

MEASURES = ["firing_rate", "energy_pj", "dense_pj"]


@dataclass(frozen=True)
class LayerPanel:
    """Standard training (ST) beside another setting (EAT), layer by layer.

    layers: name, op, firing_rate and energy_pj of both (``_st``, ``_eat``), dense_pj. *_label: what legends call them.
    """

    family: str
    layers: pd.DataFrame
    st_label: str
    eat_label: str


def layer_means(runs: pd.DataFrame, hardware: HardwareConfig) -> pd.DataFrame:
    """The layers of runs of one setting, in the order of their calls: name, op, and the means over seeds of firing rate
    and energies per image on the test split (pJ; MACs where prices are relative).

    Raises UserError, which names the folder, where counts are damaged, cannot be priced, or are of other layers.
    """
    found: list[pd.DataFrame] = []
    for folder in map(RunFolder, runs["folder"]):
        layers = pd.DataFrame(estimate_split(folder, folder.read_counts(), hardware, "test").layers)
        if layers.empty:
            raise UserError(f"{folder.layers}: there are no layers of the test split")
        if found and layers["name"].tolist() != found[0]["name"].tolist():
            raise UserError(f"{folder.layers}: its layers are others than those in {runs['folder'].iloc[0]}")
        found.append(layers)
    every = pd.concat(found)
    means = found[0][["name", "op"]].map(printable)
    return means.assign(**{key: over_seeds(every[key], every.index) for key in MEASURES})


def layer_panel(
    front: Front, standard: str, other: str, hardware: HardwareConfig, family: str, st_label: str, eat_label: str
) -> LayerPanel:
    """Two settings of a front, by setting_id. UserError as ``layer_means``, and where their layers are not the same."""
    st, eat = (layer_means(front.runs_of(setting), hardware) for setting in (standard, other))
    if st["name"].tolist() != eat["name"].tolist():
        first, second = (Path(front.runs_of(setting)["folder"].iloc[0]) for setting in (other, standard))
        raise UserError(f"{first} has other layers than {second}")
    layers = st[["name", "op"]].copy()
    for measure in ("firing_rate", "energy_pj"):
        layers[f"{measure}_st"], layers[f"{measure}_eat"] = st[measure], eat[measure]
    layers["dense_pj"] = st["dense_pj"]
    return LayerPanel(family, layers, st_label, eat_label)
