"""(d) The fused rule beside ZigZag (Mei et al., IEEE Transactions on Computers 70(8), 2021; package zigzag-dse), which
searches for the mapping of each layer to an array of processing elements that needs least energy.

Both have the prices of one hardware file: DRAM and buffer by the bit, a product and its accumulation. Registers cost
nothing, and tensors live where the rule has them. ZigZag knows neither zeros nor fused additions: everything is dense.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import matplotlib as mpl
import pandas as pd
import torch
import torchvision
import yaml
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from scipy.stats import spearmanr
from torch import Tensor, nn

from eat_runner.config import MeterConfig
from eat_runner.config.hardware import FusedHardware
from eat_runner.energy.counts import Counts
from eat_runner.energy.estimate import estimate
from eat_runner.energy.hardware import load_hardware
from eat_runner.energy.meter import measure
from eat_runner.report.plots import EAT_COLOUR, GREY, ST_COLOUR, STYLE
from validation.tables import Tables

NETWORKS, IMAGE_SIZE = ("resnet18", "vgg16"), 224
HARDWARE = ("fused_7nm_int8", "fused_45nm_int8")
SUMS = (1, 256)  # sums that a column of the array can hold
ARRAY = 32  # rows, input channels, and columns, output channels, of the processing elements
SUM_BITS = 32
BUFFER_PORT, DRAM_PORT = 1024, 64  # bits at a time
DRAM_BITS = 10**12
# the rule lets each tensor that fits live in the buffer; ZigZag wants room there for a layer's input, its output, and
# what it keeps of the weights, together
BUFFERS = 4
UJ = 1e-6
PARTS = ("uj", "dram_uj", "buffer_uj", "mac_uj")


def tables() -> Tables:
    """zigzag: a row a layer. zigzag_totals: a row a network. Both for each of HARDWARE and SUMS."""
    files = [cast(FusedHardware, load_hardware(name)) for name in HARDWARE]
    layers = pd.concat([compare(*each) for each in product(NETWORKS, files, SUMS)], ignore_index=True)
    return Tables({"zigzag": layers, "zigzag_totals": totals(layers)}, {"zigzag": figure(layers)})


def compare(arch: str, hardware: FusedHardware, sums: int) -> pd.DataFrame:
    """By convolution or linear layer of a network: the rule's dense energy of the group that it opens, and ZigZag's."""
    torch.manual_seed(0)
    model, x = torchvision.models.get_model(arch, weights=None).eval(), torch.randn(1, 3, IMAGE_SIZE, IMAGE_SIZE)
    counts = measure(model, [x], MeterConfig(batch_size=1), floor=False)
    rule = {key: dense_uj(counts, part) for key, part in rule_parts(hardware).items()}
    found: dict[tuple[Layer, tuple[str, ...]], dict[str, float]] = {}  # layers of one shape are mapped once
    rows: list[dict[str, Any]] = []
    for name, layer in shapes(model, x).items():
        outside = in_dram(layer, hardware, first=not rows)
        if (layer, outside) not in found:
            found[layer, outside] = mapped(layer, outside, hardware, sums)
        about = {"network": arch, "hardware": hardware.name, "sums": sums, "layer": name, "in_dram": " ".join(outside)}
        rows.append(about | {key: energies[name] for key, energies in rule.items()} | found[layer, outside])
    return pd.DataFrame(rows)


def rule_parts(hardware: FusedHardware) -> dict[str, FusedHardware]:
    """The hardware, and with all prices but one kind at zero."""
    operations = {"multiply_pj": 0.0, "accumulate_pj": 0.0, "add_pj": 0.0, "activation_pj": 0.0}
    return {
        "rule_uj": hardware,
        "rule_dram_uj": replace(hardware, buffer_pj_per_bit=0.0, **operations),
        "rule_buffer_uj": replace(hardware, dram_pj_per_bit=0.0, **operations),
        "rule_mac_uj": replace(hardware, dram_pj_per_bit=0.0, buffer_pj_per_bit=0.0),
    }


def dense_uj(counts: Counts, hardware: FusedHardware) -> dict[str, float]:
    """By the layer that opens a group."""
    return {layer.name: layer.dense_pj * UJ for layer in estimate(counts, hardware).layers}


@dataclass(frozen=True)
class Layer:
    """A convolution's shape for one image; of a linear layer that of a 1x1 convolution. sizes: of ZigZag's loops.
    Pixels of the input, stride and padding: (rows, columns)."""

    sizes: tuple[tuple[str, int], ...]
    pixels: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    input_elements: int
    output_elements: int


def shapes(model: nn.Module, x: Tensor) -> dict[str, Layer]:
    """By name, in the order of the calls."""
    found: dict[str, Layer] = {}

    def listener(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def note(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            found[name] = shape(module, args[0], output)

        return note

    hooks = [
        module.register_forward_hook(listener(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return found


def shape(module: nn.Module, x: Tensor, output: Tensor) -> Layer:
    """Of a convolution without groups and with its padding in numbers, or a linear layer."""
    sizes = {"B": 1, "K": output.shape[1], "G": 1, "OX": 1, "OY": 1, "C": x.shape[1], "FX": 1, "FY": 1}
    pixels = stride = (1, 1)
    padding = (0, 0)
    if isinstance(module, nn.Conv2d):
        assert module.groups == 1
        sizes |= {"OY": output.shape[2], "OX": output.shape[3]}
        sizes |= {"FY": module.kernel_size[0], "FX": module.kernel_size[1]}
        pixels, stride = (x.shape[2], x.shape[3]), (module.stride[0], module.stride[1])
        padding = cast(tuple[int, int], module.padding)
    return Layer(tuple(sizes.items()), pixels, stride, padding, x.numel(), output.numel())


def in_dram(layer: Layer, hardware: FusedHardware, first: bool) -> tuple[str, ...]:
    """What of input I1, weights I2 and output O the rule has in DRAM: the image, weights, and what the buffer is too
    small for."""
    outside = {
        "I1": first or layer.input_elements * hardware.bits > hardware.buffer_bits,
        "I2": True,
        "O": layer.output_elements * hardware.bits > hardware.buffer_bits,
    }
    return tuple(operand for operand, is_outside in outside.items() if is_outside)


def mapped(layer: Layer, outside: Sequence[str], hardware: FusedHardware, sums: int) -> dict[str, float]:
    """ZigZag's energies in uJ for the mapping that needs least of them, by where they are spent, and its products."""
    logging.basicConfig(level=logging.WARNING)  # else ZigZag sets it to INFO
    with TemporaryDirectory() as folder:
        files = {"accelerator": accelerator(outside, hardware, sums), "mapping": mapping()}
        for name, content in files.items():
            Path(folder, f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        _, _, evaluations = import_module("zigzag.api").get_hardware_performance_zigzag(
            [workload(layer, hardware)],
            *(str(Path(folder, f"{name}.yaml")) for name in files),
            opt="energy",
            dump_folder=folder,
            pickle_filename=str(Path(folder, "evaluations.pickle")),
            loma_show_progress_bar=False,
        )
    evaluation = evaluations[0][1][0][0]
    by_level = {str(operand): energies for operand, energies in evaluation.mem_energy_breakdown.items()}
    dram = sum(by_level[own][-1] for own, memory in (("I", "I1"), ("W", "I2"), ("O", "O")) if memory in outside)
    energies = (evaluation.energy_total, dram, evaluation.mem_energy - dram, evaluation.mac_energy)
    energies_uj = {f"zigzag_{part}": energy * UJ for part, energy in zip(PARTS, energies, strict=True)}
    return energies_uj | {"zigzag_products": evaluation.layer.total_mac_count}


def workload(layer: Layer, hardware: FusedHardware) -> dict[str, Any]:
    bits = {"W": hardware.bits, "I": hardware.bits, "O": SUM_BITS, "O_final": hardware.bits}
    (row_stride, column_stride), (row_padding, column_padding) = layer.stride, layer.padding
    return {
        "id": 0,
        "name": "layer",
        "operator_type": "Conv",
        "equation": "O[b][g][k][oy][ox]+=W[g][k][c][fy][fx]*I[b][g][c][iy][ix]",
        "dimension_relations": [f"ix={column_stride}*ox+1*fx", f"iy={row_stride}*oy+1*fy"],
        "loop_dims": [name for name, _ in layer.sizes],
        "loop_sizes": [size for _, size in layer.sizes],
        "operand_precision": bits,
        "operand_source": {},
        "pr_loop_dims": ["IX", "IY"],
        "pr_loop_sizes": [layer.pixels[1], layer.pixels[0]],
        "padding": [[column_padding] * 2, [row_padding] * 2],
    }


def mapping() -> list[dict[str, Any]]:
    """Output channels on the columns, input channels on the rows of the array; ZigZag finds the loops."""
    links = {"O": "O", "W": "I2", "I": "I1"}
    spatial = {"D1": [f"K, {ARRAY}"], "D2": [f"C, {ARRAY}"]}
    return [{"name": "default", "spatial_mapping": spatial, "memory_operand_links": links}]


def accelerator(outside: Sequence[str], hardware: FusedHardware, sums: int) -> dict[str, Any]:
    """Each processing element has a weight, each column some sums of products; above them the buffer, above that DRAM
    for what is in there."""
    everything, whole_array = ["I1", "I2", "O"], ["D1", "D2"]
    weight = _memory(hardware.bits, 0.0, {"read": (["I2, tl"], hardware.bits), "write": (["I2, fh"], hardware.bits)})
    column = _memory(sums * SUM_BITS, 0.0, {})
    column["ports"] = [
        _port(number, kind, [f"O, {direction}"], SUM_BITS)
        for number, (kind, direction) in enumerate([("read", "tl"), ("read", "th"), ("write", "fh"), ("write", "fl")])
    ]
    shared = {"read_write": (_directions(everything), BUFFER_PORT)}
    buffer = _memory(BUFFERS * hardware.buffer_bits, BUFFER_PORT * hardware.buffer_pj_per_bit, shared)
    own = {"read_write": (_directions(outside), DRAM_PORT)}
    dram = _memory(DRAM_BITS, DRAM_PORT * hardware.dram_pj_per_bit, own)
    return {
        "name": hardware.name,
        "memories": {
            "weight": weight | {"operands": ["I2"], "served_dimensions": []},
            "sums": column | {"operands": ["O"], "served_dimensions": ["D2"]},
            "buffer": buffer | {"operands": everything, "served_dimensions": whole_array},
            "dram": dram | {"operands": list(outside), "served_dimensions": whole_array},
        },
        "operational_array": {
            "unit_energy": hardware.multiply_pj + hardware.accumulate_pj,
            "unit_area": 1.0,
            "dimensions": whole_array,
            "sizes": [ARRAY, ARRAY],
        },
    }


def _memory(bits: int, access_pj: float, ports: Mapping[str, tuple[list[str], int]]) -> dict[str, Any]:
    made = [_port(number, kind, *port) for number, (kind, port) in enumerate(ports.items())]
    return {"size": bits, "r_cost": access_pj, "w_cost": access_pj, "area": 0.0, "latency": 1, "ports": made}


def _port(number: int, kind: str, allocation: list[str], bits: int) -> dict[str, Any]:
    name = {"read": "r", "write": "w", "read_write": "rw"}[kind]
    least = min(bits, DRAM_PORT)
    widths = {"bandwidth_min": least, "bandwidth_max": bits}
    return {"name": f"{name}_port_{number + 1}", "type": kind, "allocation": allocation} | widths


def _directions(operands: Sequence[str]) -> list[str]:
    """To and from below; of outputs, to and from above, too."""
    return [f"{o}, {way}" for o in operands for way in (["fh", "tl", "fl", "th"] if o == "O" else ["fh", "tl"])]


def totals(layers: pd.DataFrame) -> pd.DataFrame:
    """By network, hardware and sums: Spearman's rank correlation over the layers, ZigZag's energy over the rule's in
    all and by layer, and the sums of both."""
    keys, rows = ["network", "hardware", "sums"], list[dict[str, Any]]()
    for values, of in layers.groupby(keys, sort=False):
        ratio = of["zigzag_uj"] / of["rule_uj"]
        rows.append(
            dict(zip(keys, values, strict=True))
            | {
                "layers": len(of),
                "spearman": float(spearmanr(of["rule_uj"], of["zigzag_uj"]).statistic),
                "ratio": of["zigzag_uj"].sum() / of["rule_uj"].sum(),
                "ratio_least": ratio.min(),
                "ratio_median": ratio.median(),
                "ratio_most": ratio.max(),
            }
            | {key: of[key].sum() for key in [f"{whose}_{part}" for whose in ("rule", "zigzag") for part in PARTS]}
        )
    return pd.DataFrame(rows)


def figure(layers: pd.DataFrame) -> Figure:
    """ZigZag's energy of a layer against the rule's, a panel a hardware; on the line they are equal."""
    ends = [layers["rule_uj"].min() / 2, layers["zigzag_uj"].max() * 2]
    colours = dict(zip(NETWORKS, (ST_COLOUR, EAT_COLOUR), strict=True))
    with mpl.rc_context(STYLE):
        made = Figure(figsize=(8.8, 3.8), layout="constrained")
        for axes, name in zip(made.subplots(1, len(HARDWARE), sharey=True), HARDWARE, strict=True):
            axes.plot(ends, ends, color=GREY, linewidth=1)
            for (network, sums), of in layers[layers["hardware"] == name].groupby(["network", "sums"]):
                face = colours[network] if sums == SUMS[0] else "none"
                label = f"{network}, {sums} {'sum' if sums == 1 else 'sums'} a column"
                axes.scatter(of["rule_uj"], of["zigzag_uj"], s=22, color=colours[network], facecolor=face, label=label)
            axes.set(xscale="log", yscale="log", xlabel="fused rule, uJ", title=name)
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_formatter(FuncFormatter(lambda uj, _: f"{uj:g}"))
        made.axes[0].set_ylabel("ZigZag, uJ")
        made.axes[0].legend()
    return made
