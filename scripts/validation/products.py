"""(a) Dense products of torchvision's classification networks beside torch's own flop counter, layer by layer."""

from collections import defaultdict
from collections.abc import Iterable, Mapping

import pandas as pd
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from eat_runner.config import MeterConfig
from eat_runner.energy.counts import LayerCounts
from eat_runner.energy.meter import measure
from eat_runner.errors import UserError
from validation.tables import Tables

IMAGE_SIZE = 64
IMAGE_SIZES = {"inception": 75, "maxvit": 224, "vit": 224}  # by the beginning of a network's name: what it asks for
HAS_AUXILIARY = ("googlenet", "inception_v3")  # classifiers that only training runs
FLOPS_PER_PRODUCT = 2


def tables() -> Tables:
    """products: a row a network. products/<network>: a row a layer, of those that are counted."""
    found: dict[str, pd.DataFrame] = {}
    rows = [compare(arch, found) for arch in torchvision.models.list_models(module=torchvision.models)]
    table = pd.DataFrame(rows)
    table = table.astype(dict.fromkeys(("layers", "layers_equal", "products", "torch"), "Int64"))
    return Tables({"products": table} | {f"products/{arch}": table for arch, table in found.items()})


def compare(arch: str, layers: dict[str, pd.DataFrame]) -> dict[str, object]:
    """A network's row; its layers go into ``layers``. refused: why the meter counts nothing."""
    size = next((size for start, size in IMAGE_SIZES.items() if arch.startswith(start)), IMAGE_SIZE)
    row: dict[str, object] = {"network": arch, "image_size": size}
    torch.manual_seed(0)
    auxiliary = {"aux_logits": False, "init_weights": True} if arch in HAS_AUXILIARY else {}
    model = torchvision.models.get_model(arch, weights=None, **auxiliary).eval()
    x = torch.randn(1, 3, size, size)
    try:
        counts = measure(model, [x], MeterConfig(batch_size=1), floor=False)
    except UserError as error:
        return row | {"refused": str(error)}
    whole, by_layer = torch_products(model, x)
    layers[arch] = beside(dense_products(counts.layers), by_layer)
    ours = int(layers[arch]["products"].sum())
    return row | {
        "refused": "",
        "layers": len(layers[arch]),
        "layers_equal": int((layers[arch]["products"] == layers[arch]["torch"]).sum()),
        "products": ours,
        "torch": whole,
        "equal": ours == whole,
        "padding_percent": 100 * (1 - sum(row.macs_valid for row in counts.layers) / ours),
    }


def dense_products(rows: Iterable[LayerCounts]) -> dict[str, int]:
    """By layer, over its calls: products with those of the padding. ``macs_nominal`` ignores groups."""
    found: dict[str, int] = defaultdict(int)
    for row in rows:
        found[row.name] += row.macs_nominal // max(row.groups, 1)
    return {name: products for name, products in found.items() if products}


def torch_products(model: nn.Module, x: torch.Tensor) -> tuple[int, dict[str, int]]:
    """The whole network's, and by leaf module, over its calls."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    counted = {
        name.partition(".")[2]: sum(flops.values()) // FLOPS_PER_PRODUCT
        for name, flops in counter.get_flop_counts().items()
    }
    leaves = {name for name, module in model.named_modules() if not list(module.children())}
    return counter.get_total_flops() // FLOPS_PER_PRODUCT, {
        name: products for name, products in counted.items() if name in leaves and products
    }


def beside(ours: Mapping[str, int], theirs: Mapping[str, int]) -> pd.DataFrame:
    """A row a layer that either counts; 0 where one does not."""
    names = dict.fromkeys([*ours, *theirs])
    rows = [{"layer": name, "products": ours.get(name, 0), "torch": theirs.get(name, 0)} for name in names]
    return pd.DataFrame(rows, columns=["layer", "products", "torch"])
