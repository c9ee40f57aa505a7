"""(b) ``published`` beside golden values of the simulator that it restates (simulator.csv).

hand: a network small enough to count by hand. resnet18_N: torchvision's ResNet18 for 32x32 pixels as it is initialised
with seed 0, and a batch of N random images, seed 0 again.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torchvision
from torch import Tensor, nn

from eat_runner.config import MeterConfig
from eat_runner.energy.counts import Counts
from eat_runner.energy.estimate import estimate
from eat_runner.energy.hardware import load_hardware
from eat_runner.energy.meter import measure
from eat_runner.energy.rules.base import PJ_PER_UJ
from validation.tables import Tables

GOLDEN = Path(__file__).with_name("simulator.csv")
RESNET18 = "resnet18_"


def tables() -> Tables:
    """simulator: a row a value, the golden one and ours."""
    golden = pd.read_csv(GOLDEN, dtype={"golden": "float64"})
    found = {case: quantities(*network(case)) for case in golden["case"].unique()}
    ours = [found[row["case"]][row["quantity"]] for row in golden.to_dict("records")]
    table = golden.assign(found=ours)
    return Tables({"simulator": table.assign(relative_difference=(table["found"] / table["golden"] - 1).abs())})


def network(case: str) -> tuple[nn.Module, Tensor]:
    """The network of a case and its batch, x_nchw."""
    if case == "hand":
        return hand_countable()
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=10)
    model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    torch.manual_seed(0)
    return model, torch.randn(int(case.removeprefix(RESNET18)), 3, 32, 32)


def hand_countable() -> tuple[nn.Module, Tensor]:
    """A convolution whose two channels are x and -x, batch norm, ReLU, max-pool, and a linear layer of ones."""
    conv, linear = nn.Conv2d(1, 2, 3, padding=1), nn.Linear(8, 3)
    for value in (*conv.parameters(), linear.bias):
        nn.init.zeros_(value)
    nn.init.ones_(linear.weight)
    with torch.no_grad():
        conv.weight[0, 0, 1, 1], conv.weight[1, 0, 1, 1] = 1, -1
    model = nn.Sequential(conv, nn.BatchNorm2d(2), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(), linear)
    x = torch.tensor([[1.0, -1, 2, 0], [0, 3, 0, 0], [0, 0, 0, -1], [1, 0, 0, 0]])
    return model, x.reshape(1, 1, 4, 4)


def quantities(model: nn.Module, x: Tensor) -> dict[str, float]:
    """What the simulator reports of one batch, as the meter and the rule have it. Energies are the batch's."""
    counts = measure(model, [x], MeterConfig(batch_size=len(x)), floor=False)
    batch = counts.batches[0]
    as_built, not_in_place = (_price(counts, inplace) for inplace in ("as_built", "none"))
    unit = len(x) * PJ_PER_UJ
    return {
        "inputs": batch.input_elements,
        "inputs_nonzero": batch.input_nonzeros_as_built,
        "outputs": batch.output_elements,
        "outputs_nonzero": batch.output_nonzeros,
        "parameters": batch.parameter_elements + batch.statistics_elements,
        "parameters_nonzero": batch.parameter_nonzeros + batch.statistics_nonzeros,
        "computations": batch.computations,
        "ratio": as_built.ratio,
        "ratio_not_in_place": not_in_place.ratio,
        "energy_pj": (as_built.energy_uj_per_image or 0.0) * unit,
        "dense_pj": (as_built.dense_uj_per_image or 0.0) * unit,
    }


def _price(counts: Counts, inplace: str) -> Any:
    hardware: Any = load_hardware("published")
    return estimate(counts, replace(hardware, batch_size=counts.batch_size, inplace=inplace))
