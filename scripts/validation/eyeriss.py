"""(c) The fused rule with ``eyeriss_65nm`` beside what was measured on the chip: AlexNet's convolutions, a batch of 4.

eyeriss.csv has, of Chen et al., Eyeriss: An Energy-Efficient Reconfigurable Accelerator for Deep Convolutional Neural
Networks, JSSC 52(1), 2017, Table V: megabytes from and to DRAM for the batch, zeros of the inputs, energy of an image
(power x latency / 4, the chip without its DRAM). Beside it how a layer is taken to be cut into passes, an assumption
after the paper's table of mappings: images that share a fetch of the weights, filters of a group, those of them that
share a fetch of the input, and strips of the output that each fetch the weights anew.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import matplotlib as mpl
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from torch import nn

from eat_runner.config import MeterConfig
from eat_runner.config.hardware import FusedHardware
from eat_runner.energy.counts import Counts, Kind, LayerCounts
from eat_runner.energy.estimate import estimate
from eat_runner.energy.hardware import load_hardware
from eat_runner.energy.meter import measure
from eat_runner.energy.rules.storage import stored_bits
from eat_runner.report.plots import EAT_COLOUR, INK, PALE, ST_COLOUR, STYLE
from validation.tables import Tables

PUBLISHED = Path(__file__).with_name("eyeriss.csv")
BATCH, BITS = 4, 16
BITS_PER_MB = 8e6
PJ_PER_MJ_AND_MILLION = 1e9 / 1e6
EVERYTHING = 10**12  # bits of a buffer that every tensor fits
# what ranks the layers of the chip, and by which columns of the rule
RANKS = {
    "dram_mb": ("rule_mb", "dense_mb", "passes_mb"),
    "energy_mj": ("on_chip_mmacs", "with_dram_mmacs", "on_chip_dense_mmacs"),
}


def tables() -> Tables:
    """eyeriss: a row a layer. eyeriss_ranks: how the rule's columns rank the layers, beside those of the chip.
    eyeriss_fit: what a zero saves there."""
    layers = predicted(pd.read_csv(PUBLISHED))
    found = {"eyeriss": layers, "eyeriss_ranks": ranks(layers), "eyeriss_fit": fit(layers)}
    return Tables(found, {"eyeriss": figure(layers)})


def predicted(published: pd.DataFrame) -> pd.DataFrame:
    """Beside the published columns, by layer. MB of the batch: input, weights and output, each read or written once; by
    the rule with every tensor in DRAM (rule_mb), and with those that fit in the buffer of the file (buffered_mb);
    without zeros (dense_mb); read as often as the passes need (passes_mb). Millions of MACs for an image: products;
    those with a non-zero input; the rule's energy without DRAM, with it, and without DRAM and zeros."""
    counts = alexnet_counts(published["input_zeros_percent"].tolist())
    hardware = replace(cast(FusedHardware, load_hardware("eyeriss_65nm")), input_bits=BITS, weight_reuse=BATCH)
    chip = replace(hardware, buffer_bits=EVERYTHING, dram_pj_per_bit=0.0)
    traffic = replace(hardware, buffer_pj_per_bit=0.0, multiply_pj=0.0, register_pj_per_mac=0.0)
    traffic = replace(traffic, dram_pj_per_bit=BATCH / BITS_PER_MB)  # its energies are MB of the batch
    convolutions = [row for row in counts.layers if row.kind == Kind.CONV]
    found = published.join(pd.DataFrame([parts(row, counts.layers[row.call + 1], traffic) for row in convolutions]))
    weight_reads = np.ceil(BATCH / found["images_at_once"]) * found["strips"]
    input_reads = np.ceil(found["filters"] / found["filters_at_once"])
    rule, dense = by_layer(counts, replace(traffic, buffer_bits=0))
    on_chip, on_chip_dense = by_layer(counts, chip)
    return found.assign(
        rule_mb=rule,
        dense_mb=dense,
        buffered_mb=by_layer(counts, traffic)[0],
        passes_mb=found["input_mb"] * input_reads + found["weight_mb"] * weight_reads + found["output_mb"],
        mmacs=[row.macs_valid / 1e6 for row in convolutions],
        nonzero_mmacs=[row.macs_input_nonzero / 1e6 for row in convolutions],
        on_chip_mmacs=on_chip / 1e6,
        with_dram_mmacs=by_layer(counts, hardware)[0] / 1e6,
        on_chip_dense_mmacs=on_chip_dense / 1e6,
    )


def alexnet() -> nn.Module:
    """The convolutions of the original AlexNet, in two groups where it had two GPUs, without its normalisations."""
    convolutions = [
        nn.Conv2d(3, 96, 11, stride=4),
        nn.Conv2d(96, 256, 5, padding=2, groups=2),
        nn.Conv2d(256, 384, 3, padding=1),
        nn.Conv2d(384, 384, 3, padding=1, groups=2),
        nn.Conv2d(384, 256, 3, padding=1, groups=2),
    ]
    layers = OrderedDict[str, nn.Module]()
    for number, conv in enumerate(convolutions, start=1):
        layers |= {f"conv{number}": conv, f"relu{number}": nn.ReLU()}
        if number <= 2:
            layers[f"pool{number}"] = nn.MaxPool2d(3, 2)
    return nn.Sequential(layers)


def alexnet_counts(input_zeros_percent: Sequence[float]) -> Counts:
    """Shapes and products of one image from the meter, zeros as published, spread at random: of a hundred products of a
    layer as many have a zero as of a hundred values of its input. What a convolution stores has the zeros of the next
    one's input, the last one those of its own."""
    torch.manual_seed(0)
    counts = measure(alexnet(), [torch.randn(1, 3, 227, 227)], MeterConfig(batch_size=1), floor=False)
    densities = [1 - percent / 100 for percent in (*input_zeros_percent, input_zeros_percent[-1])]
    rows: list[LayerCounts] = []
    for row in counts.layers:
        before = sum(other.kind == Kind.CONV for other in rows)
        is_conv = row.kind == Kind.CONV  # what it puts out goes to its ReLU and is not stored
        products = round(densities[before] * row.macs_valid)
        rows.append(
            replace(
                row,
                input_nonzeros=round(densities[before] * row.input_elements),
                output_nonzeros=row.output_elements if is_conv else round(densities[before] * row.output_elements),
                macs_input_nonzero=products,
                macs_both_nonzero=products,
            )
        )
    return replace(counts, layers=rows)


def by_layer(counts: Counts, hardware: FusedHardware) -> tuple[pd.Series, pd.Series]:
    """Energies of the convolutions' groups by the rule, with zeros and dense, in the hardware's unit."""
    layers = [layer for layer in estimate(counts, hardware).layers if layer.op.startswith("Conv2d")]
    return pd.Series([layer.energy_pj for layer in layers]), pd.Series([layer.dense_pj for layer in layers])


def parts(conv: LayerCounts, relu: LayerCounts, hardware: FusedHardware) -> dict[str, float]:
    """MB of the batch for a convolution: its input, its weights and biases, what its ReLU puts out, each once."""

    def mb(elements: int, nonzeros: int) -> float:
        return stored_bits(elements, nonzeros, BITS, hardware.format, hardware.run_bits) / BITS_PER_MB

    return {
        "input_mb": BATCH * mb(conv.input_elements, conv.input_nonzeros),
        "weight_mb": mb(conv.weight_elements, conv.weight_nonzeros) + mb(conv.bias_elements, conv.bias_nonzeros),
        "output_mb": BATCH * mb(relu.output_elements, relu.output_nonzeros),
    }


def ranks(layers: pd.DataFrame) -> pd.DataFrame:
    """A row a column of the rule: Spearman's rank correlation with the chip's, and the least and the most that the chip
    has for what the rule has: MB for a MB, pJ for a MAC."""
    rows: list[dict[str, object]] = []
    for published, columns in RANKS.items():
        for column in columns:
            ratio = layers[published] / layers[column] * (PJ_PER_MJ_AND_MILLION if published == "energy_mj" else 1)
            correlation = float(spearmanr(layers[published], layers[column]).statistic)
            found: dict[str, object] = {"spearman": correlation, "least": ratio.min(), "most": ratio.max()}
            rows.append({"published": published, "rule": column} | found)
    return pd.DataFrame(rows)


def fit(layers: pd.DataFrame) -> pd.DataFrame:
    """The measured energy as so many pJ for a MAC of the rule without zeros and so many more for one that is not
    skipped, by least squares of relative errors over the layers; the share of a MAC that a skipped one saves."""
    macs = layers[["on_chip_dense_mmacs", "on_chip_mmacs"]].to_numpy() / PJ_PER_MJ_AND_MILLION
    relative = macs / layers[["energy_mj"]].to_numpy()
    always, unless_skipped = np.linalg.lstsq(relative, np.ones(len(layers)))[0]
    errors = relative @ (always, unless_skipped) - 1
    saved = 100 * unless_skipped / (always + unless_skipped)
    return pd.DataFrame(
        [
            {
                "always_pj": always,
                "unless_skipped_pj": unless_skipped,
                "saved_percent": saved,
                "error_percent": 100 * np.abs(errors).max(),
            }
        ]
    )


def figure(layers: pd.DataFrame) -> Figure:
    """Traffic in MB, and each layer's share of the energy, the chip's beside the rule's."""
    share = {key: 100 * layers[key] / layers[key].sum() for key in ("energy_mj", *RANKS["energy_mj"])}
    panels = {
        "From and to DRAM, MB for 4 images": {
            "Eyeriss, measured": (layers["dram_mb"], INK),
            "rule: everything once": (layers["rule_mb"], EAT_COLOUR),
            "with the chip's passes": (layers["passes_mb"], ST_COLOUR),
        },
        "Share of the energy without DRAM, %": {
            "Eyeriss, measured": (share["energy_mj"], INK),
            "rule": (share["on_chip_mmacs"], EAT_COLOUR),
            "rule, no zeros skipped": (share["on_chip_dense_mmacs"], PALE),
        },
    }
    with mpl.rc_context(STYLE):
        made = Figure(figsize=(8.8, 3.2), layout="constrained")
        for axes, (title, series) in zip(made.subplots(1, len(panels)), panels.items(), strict=True):
            for place, (label, (values, colour)) in enumerate(series.items()):
                axes.bar(np.arange(len(layers)) + 0.27 * (place - 1), values, 0.25, label=label, color=colour)
            axes.set_xticks(range(len(layers)), layers["layer"].str.upper())
            axes.set_title(title)
            axes.legend()
    return made
