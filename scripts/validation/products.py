"""(a) Dense products of torchvision's classification networks beside torch's own flop counter, layer by layer."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set

import pandas as pd
import torch
import torchvision
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
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
    whole, by_layer = torch_products(model, x, owners(counts.layers))
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


def owners(rows: Iterable[LayerCounts]) -> set[str]:
    """The modules that call functions which multiply (attention): each is compared as one layer, with all inside it."""
    return {row.name.partition(":")[0] for row in rows if row.functional and row.macs_dense}


def dense_products(rows: Sequence[LayerCounts]) -> dict[str, int]:
    """By layer, over its calls: products with those of the padding."""
    whole = owners(rows)
    found: dict[str, int] = defaultdict(int)
    for row in rows:
        found[_layer(row.name, whole)] += row.macs_dense
    return {name: products for name, products in found.items() if products}


def _layer(name: str, whole: Set[str]) -> str:
    return next((owner for owner in whole if name == owner or name.startswith((f"{owner}.", f"{owner}:"))), name)


def torch_products(model: nn.Module, x: torch.Tensor, whole: Set[str] = frozenset()) -> tuple[int, dict[str, int]]:
    """The whole network's, and by leaf module or module of ``whole``, over its calls. Attention goes the long way: of
    the short ones torch counts nothing, or a part."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(x)
    torch.backends.mha.set_fastpath_enabled(fast)
    counted = {
        name.partition(".")[2]: sum(flops.values()) // FLOPS_PER_PRODUCT
        for name, flops in counter.get_flop_counts().items()
    }
    leaves = {name for name, module in model.named_modules() if not list(module.children())}
    leaves = {name for name in leaves if _layer(name, whole) == name} | whole
    return counter.get_total_flops() // FLOPS_PER_PRODUCT, {
        name: products for name, products in counted.items() if name in leaves and products
    }


def beside(ours: Mapping[str, int], theirs: Mapping[str, int]) -> pd.DataFrame:
    """A row a layer that either counts; 0 where one does not."""
    names = dict.fromkeys([*ours, *theirs])
    rows = [{"layer": name, "products": ours.get(name, 0), "torch": theirs.get(name, 0)} for name in names]
    return pd.DataFrame(rows, columns=["layer", "products", "torch"])
