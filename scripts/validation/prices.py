"""(e) What the choice of a price does to what results/methods/gtsrb says: its runs at other prices.

DRAM, buffer and products from half their price to twice, weights shared by up to 1,000 images; and products at sixteen
times their price, which is more than what ZigZag finds for the buffer around each of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

import pandas as pd
from scipy.stats import kendalltau

from eat_runner.analysis.methods import MAGNITUDE, NARROW
from eat_runner.analysis.pareto import TOLERANCE, Front, fronts
from eat_runner.analysis.table import collate
from eat_runner.config.hardware import FusedHardware
from eat_runner.energy.hardware import load_hardware
from eat_runner.report import choose_axes
from validation.tables import ROOT, Tables

RUNS = ROOT / "results" / "methods" / "gtsrb"
HARDWARE = ("fused_45nm", "fused_7nm_int8", "dense_7nm_int8", "small_45nm_int8", "eyeriss_65nm")
BY_DATASET = "dataset"
POINTS = 0.01  # of accuracy below standard training, on the validation split: what a method may lose
AS_IT_IS = "as it is"
FACTORS = {"dram": (0.5, 2.0), "buffer": (0.5, 2.0), "products": (0.5, 2.0, 16.0)}
SHARED_BY = (10, 100, 1000)
SHOWN = {"eat": "EAT", "pruning": MAGNITUDE, "narrow": NARROW}


def tables() -> Tables:
    """prices: a row a price list. prices_methods: a row a price list and method."""
    found = [
        (name, price, factor, front_of(changed))
        for name in HARDWARE
        for price, factor, changed in price_lists(cast(FusedHardware, load_hardware(name)))
    ]
    base = {name: front for name, price, _, front in found if price == AS_IT_IS}
    rows = [
        {"hardware": name, "price": price, "factor": factor} | beside(front, base[name])
        for name, price, factor, front in found
    ]
    methods = [
        pd.DataFrame({"hardware": name, "price": price, "factor": factor, "energy_relative": least(front)}).rename_axis(
            "method"
        )
        for name, price, factor, front in found
    ]
    return Tables({"prices": pd.DataFrame(rows), "prices_methods": pd.concat(methods).reset_index()})


def price_lists(hardware: FusedHardware) -> list[tuple[str, float, FusedHardware]]:
    """(what is changed, by which factor, the hardware), the unchanged one first."""
    bare = replace(hardware, ranges={})
    scaled: Mapping[str, Callable[[float], FusedHardware]] = {
        "dram": lambda factor: replace(bare, dram_pj_per_bit=factor * bare.dram_pj_per_bit),
        "buffer": lambda factor: replace(bare, buffer_pj_per_bit=factor * bare.buffer_pj_per_bit),
        "products": lambda factor: with_products(bare, factor),
    }
    lists = [(name, factor, change(factor)) for name, change in scaled.items() for factor in FACTORS[name]]
    shared = [("weight_reuse", float(images), replace(bare, weight_reuse=images)) for images in SHARED_BY]
    return [(AS_IT_IS, 1.0, bare), *lists, *shared]


def with_products(hardware: FusedHardware, factor: float) -> FusedHardware:
    """Multiplication, accumulation, addition, and the registers of a product, in every width."""
    keys = ("multiply_pj", "accumulate_pj", "add_pj")

    def scaled(prices: Any) -> dict[str, float]:
        return {key: factor * getattr(prices, key) for key in keys}

    by_bits = {bits: replace(prices, **scaled(prices)) for bits, prices in hardware.mac_pj_by_bits.items()}
    registers = factor * hardware.register_pj_per_mac
    return replace(hardware, **scaled(hardware), register_pj_per_mac=registers, mac_pj_by_bits=by_bits)


def front_of(hardware: FusedHardware) -> Front:
    """The front of all runs at these prices."""
    [front] = fronts(collate(RUNS, hardware, BY_DATASET), axes=choose_axes(hardware, BY_DATASET))
    return front


def least(front: Front) -> pd.Series:
    """By method: the least energy beside standard training's of the same seed, of its settings within POINTS of that
    one's accuracy on the validation split. As in equal_accuracy.csv only settings with most of their method's seeds
    count."""
    standard = front.runs_of(str(front.reference)).set_index("seed")
    runs = front.runs[front.runs["seed"].isin(standard.index)]
    pairs = pd.DataFrame(
        {
            "setting_id": runs["setting_id"],
            "loss": runs["seed"].map(standard["accuracy_validation"]) - runs["accuracy_validation"],
            "energy_relative": runs["energy"] / runs["seed"].map(standard["energy"]),
        }
    )
    by_setting = pairs.groupby("setting_id")
    means = by_setting.mean().assign(seeds=by_setting.size()).join(front.settings["line"])
    complete = means["seeds"] == means.groupby("line")["seeds"].transform("max")
    return (
        means[complete & (means["loss"] <= POINTS + TOLERANCE)].groupby("line")["energy_relative"].min().sort_values()
    )


def beside(front: Front, base: Front) -> dict[str, Any]:
    """What is selected, and whether it is what is selected at the file's own prices; Kendall's tau between the orders
    of the methods, and of all settings, by energy here and there; what methods save beside standard training."""
    methods, settings = least(front), front.settings["energy_relative"]
    selected = front.settings.loc[front.selected]
    return {
        "selected": f"{selected['line']}, {selected['point']}",
        "same_selected": front.selected == base.selected,
        "methods": len(methods),
        "best_method": methods.index[0],
        "tau_methods": _tau(methods, least(base)),
        "settings": len(settings),
        "tau_settings": _tau(settings, base.settings["energy_relative"]),
    } | {f"{key}_decrease_percent": 100 * (1 - methods.get(name, float("nan"))) for key, name in SHOWN.items()}


def _tau(here: pd.Series, there: pd.Series) -> float:
    both = pd.concat([here, there], axis=1, join="inner")
    assert len(both) == len(here) == len(there)
    return float(kendalltau(both.iloc[:, 0], both.iloc[:, 1]).statistic)
