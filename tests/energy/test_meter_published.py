"""``published`` gives the numbers of the simulator that the paper used: known values, and a naive reference."""

import math
from dataclasses import replace

import pytest
import torch
import torchvision
from torch import Tensor, nn

from eat_runner.config import MeterConfig
from eat_runner.energy.counts import Counts
from eat_runner.energy.estimate import estimate
from eat_runner.energy.hardware import load_hardware
from eat_runner.energy.meter import measure
from eat_runner.energy.rules.base import EnergyReport

THRESHOLD = 2.0**-126


def meter(model: nn.Module, x: Tensor, floor: bool = False) -> Counts:
    return measure(model, [x], MeterConfig(batch_size=len(x)), floor=floor)


def price(counts: Counts, inplace: str = "as_built") -> EnergyReport:
    hardware = load_hardware("published")
    return estimate(counts, replace(hardware, batch_size=counts.batch_size, inplace=inplace))


def totals(counts: Counts) -> dict[str, int]:
    batch = counts.batches[0]
    return {
        "inputs": batch.input_elements,
        "inputs_nonzero": batch.input_nonzeros_as_built,
        "outputs": batch.output_elements,
        "outputs_nonzero": batch.output_nonzeros,
        "parameters": batch.parameter_elements + batch.statistics_elements,
        "parameters_nonzero": batch.parameter_nonzeros + batch.statistics_nonzeros,
        "computations": batch.computations,
    }


# --- known values --------------------------------------------------------------------------------------------------


def test_hand_countable_network() -> None:
    conv, linear = nn.Conv2d(1, 2, 3, padding=1), nn.Linear(8, 3)
    with torch.no_grad():
        conv.weight.zero_()
        conv.bias.zero_()
        conv.weight[0, 0, 1, 1], conv.weight[1, 0, 1, 1] = 1, -1
        linear.weight.fill_(1)
        linear.bias.zero_()
    model = nn.Sequential(conv, nn.BatchNorm2d(2), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(), linear)
    x = torch.tensor([[1.0, -1, 2, 0], [0, 3, 0, 0], [0, 0, 0, -1], [1, 0, 0, 0]]).reshape(1, 1, 4, 4)
    counts = meter(model, x)
    # the convolution's channels are x and -x, with 6 non-zeros each; 4 and 2 of them are positive; after pooling 3 + 2
    assert totals(counts) == {
        "inputs": 16 + 32 + 32 + 32 + 8 + 8,
        "inputs_nonzero": 6 + 12 + 6 + 6 + 5 + 5,
        "outputs": 32 + 32 + 32 + 8 + 8 + 3,
        "outputs_nonzero": 12 + 12 + 6 + 5 + 5 + 3,
        "parameters": (18 + 2) + (2 + 2 + 4 + 1) + 4 + (24 + 3),
        "parameters_nonzero": 2 + (2 + 2) + 2 + 24,
        "computations": 32 * 9 + 4 * 32 + 8 * 4 + 24,
    }
    energy_pj = 1950 * (32 + 40 + 43) + 3.7 * 472 * (32 / 60) * (40 / 128)
    report = price(counts)
    assert report.energy_uj_per_image == pytest.approx(energy_pj / 1e6, rel=1e-12)
    assert report.energy_uj_per_image == pytest.approx(0.2245410666, rel=1e-9)
    assert report.dense_uj_per_image == pytest.approx(0.5925964, rel=1e-12)


def ar(shape: tuple[int, ...], mod: int, off: int) -> Tensor:
    return (torch.arange(math.prod(shape)) % mod - off).reshape(shape).float()


def fixture_without_random_numbers(inplace: bool) -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4, eps=0),
        nn.ReLU(inplace),
        nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(4, 5),
    )
    values = {
        "0.weight": ar((4, 3, 3, 3), 7, 3),
        "0.bias": ar((4,), 3, 1),
        "1.weight": torch.ones(4),
        "1.bias": ar((4,), 3, 1),
        "1.running_mean": ar((4,), 2, 0),
        "1.running_var": torch.ones(4),
        "7.weight": ar((5, 4), 5, 2),
        "7.bias": ar((5,), 2, 0),
    }
    model.load_state_dict(values, strict=False)
    return model


@pytest.mark.parametrize(
    ("images", "inputs", "outputs", "computations", "ratio", "ratio_not_in_place"),
    [
        (1, (1036, 750, 875), (849, 705), 8276, 0.7743882453865957, 0.8357424514811125),
        (4, (4144, 3009, 3507), (3396, 2829), 4 * 8276, 0.7738041597484923, 0.838737751066546),
    ],
)
def test_fixture(
    images: int,
    inputs: tuple[int, int, int],
    outputs: tuple[int, int],
    computations: int,
    ratio: float,
    ratio_not_in_place: float,
) -> None:
    x = ar((images, 3, 8, 8), 11, 5)
    counts = meter(fixture_without_random_numbers(inplace=True), x)
    assert totals(counts) == {
        "inputs": inputs[0],
        "inputs_nonzero": inputs[1],
        "outputs": outputs[0],
        "outputs_nonzero": outputs[1],
        "parameters": 162,
        "parameters_nonzero": 133,
        "computations": computations,
    }
    assert price(counts).ratio == pytest.approx(ratio, rel=1e-12)
    assert price(counts, "none").ratio == pytest.approx(ratio_not_in_place, rel=1e-12)
    out_of_place = meter(fixture_without_random_numbers(inplace=False), x)
    assert totals(out_of_place)["inputs_nonzero"] == inputs[2]
    assert price(out_of_place).ratio == pytest.approx(ratio_not_in_place, rel=1e-12)
    assert price(out_of_place, "all").ratio == pytest.approx(ratio, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fixture_layer_by_layer(dtype: torch.dtype) -> None:
    counts = meter(fixture_without_random_numbers(inplace=True).to(dtype), ar((1, 3, 8, 8), 11, 5).to(dtype))
    found = [(r.input_elements, r.input_nonzeros, r.output_elements, r.output_nonzeros) for r in counts.layers]
    assert found == [
        (192, 175, 256, 249),
        (256, 249, 256, 253),
        (256, 253, 256, 128),
        (256, 128, 64, 58),
        (64, 58, 4, 4),
        (4, 4, 4, 4),
        (4, 4, 4, 4),
        (4, 4, 5, 5),
    ]


def test_floor_of_the_fixture() -> None:
    # behind a ReLU of zeros everything is zero but the linear layer's bias, 0 1 0 1 0. Inputs: 175 of the image, 249 of
    # batch norm, 0 from the ReLU (in place) on. Outputs: 249, 253, 0, 0, 0, 0, 0, 2.
    x = ar((1, 3, 8, 8), 11, 5)
    counts = meter(fixture_without_random_numbers(inplace=True), x, floor=True)
    energy_pj = 1950 * (133 + 424 + 504) + 3.7 * 8276 * (133 / 162) * (424 / 1036)
    dense_pj = 1950 * (162 + 1036 + 849) + 3.7 * 8276
    report = price(counts)
    assert report.floor == pytest.approx(energy_pj / dense_pj, rel=1e-12)
    assert report.ratio == pytest.approx(0.7743882453865957, rel=1e-12)
    # the floor batch is in no layer
    assert [row.images for row in counts.layers] == [1] * 8
    assert counts.layers[2].output_nonzeros == 128


def cifar_resnet18() -> nn.Module:
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=10)
    model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    return model


def seeded_images(images: int) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(images, 3, 32, 32)


def test_resnet18_of_eight_images() -> None:
    counts = meter(cifar_resnet18(), seeded_images(8))
    found = totals(counts)
    assert found["inputs"] == 15298560
    assert found["inputs_nonzero"] == pytest.approx(10735624, rel=1e-6)
    assert counts.batches[0].input_nonzeros == pytest.approx(12731789, rel=1e-6)
    assert found["outputs"] == 14815312
    assert found["outputs_nonzero"] == pytest.approx(12557245, rel=1e-6)
    assert (found["parameters"], found["parameters_nonzero"]) == (11193182, 11178762)
    assert found["computations"] == 4463108096
    assert price(counts).ratio == pytest.approx(0.8117774340662842, rel=1e-6)
    assert price(counts, "none").ratio == pytest.approx(0.874051249474794, rel=1e-6)
    report = price(counts)
    assert sum(layer.energy_pj for layer in report.layers) == pytest.approx((report.energy_uj_per_image or 0) * 1e6)
    assert sum(layer.dense_pj for layer in report.layers) == pytest.approx((report.dense_uj_per_image or 0) * 1e6)


def test_resnet18_of_one_image() -> None:
    assert price(meter(cifar_resnet18(), seeded_images(1))).ratio == pytest.approx(0.9260906636613899, rel=1e-6)


@pytest.mark.long
def test_resnet18_of_a_hundred_images() -> None:
    assert price(meter(cifar_resnet18(), seeded_images(100))).ratio == pytest.approx(0.7629996960639881, rel=1e-6)


@pytest.mark.parametrize(("images", "floor"), [(2, None), pytest.param(100, 0.18, marks=pytest.mark.long)])
def test_floor_of_resnet18(images: int, floor: float | None) -> None:
    model = cifar_resnet18()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.bias)  # as in any trained network: what batch norm makes of zero is not zero
    with torch.no_grad():
        model.fc.bias.fill_(1)
    counts = meter(model, seeded_images(images), floor=True)
    batch = counts.batches[-1]
    # convolutions but the first get zeros and have no bias; batch norm (five of each of four sizes) puts out its bias;
    # the ReLUs are in place, so zeros go in
    image, stem = 3 * 32 * 32, 64 * 32 * 32
    batch_norms = 5 * (64 * 32 * 32 + 128 * 16 * 16 + 256 * 8 * 8 + 512 * 4 * 4)
    assert batch.input_nonzeros_as_built == pytest.approx(images * (image + stem), rel=1e-6)
    assert batch.output_nonzeros == pytest.approx(images * (stem + batch_norms + 10), rel=1e-6)
    if floor is not None:
        assert price(counts).floor == pytest.approx(floor, abs=0.005)


# --- any network against a naive reference -------------------------------------------------------------------------


class Reference:
    """The simulator in its simplest form: hooks on leaf modules that run as they were built."""

    def __init__(self, model: nn.Module, x: Tensor):
        self.found = dict.fromkeys(
            ["inputs", "inputs_nonzero", "outputs", "outputs_nonzero", "parameters", "parameters_nonzero"], 0
        )
        self.found["computations"] = 0
        leaves = [module for module in model.modules() if not list(module.children())]
        hooks = [module.register_forward_hook(self.look) for module in leaves]
        with torch.no_grad():
            model.eval()(x)
        for hook in hooks:
            hook.remove()

    def add(self, what: str, x: Tensor) -> None:
        self.found[what] += x.numel()
        self.found[f"{what}_nonzero"] += int((x.abs() > THRESHOLD).sum())

    def look(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        self.add("inputs", args[0])
        self.add("outputs", output)
        for tensor in (*module.parameters(), *module.buffers()):
            self.add("parameters", tensor)
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            self.add("parameters", module.running_mean)
            self.add("parameters", module.running_var)
        self.found["computations"] += self.computations(module, args[0], output)

    def computations(self, module: nn.Module, x: Tensor, output: Tensor) -> int:
        if isinstance(module, nn.Conv2d):
            return output.numel() * module.kernel_size[0] * module.kernel_size[1] * module.in_channels
        if isinstance(module, nn.Linear):
            return module.weight.numel() * x.numel() // x.shape[-1]
        if isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
            return output.numel() * int(module.kernel_size) ** 2
        if isinstance(module, nn.AdaptiveAvgPool2d):
            return x.numel()
        if isinstance(module, nn.BatchNorm2d):
            return 4 * x.numel()
        return 0


@pytest.mark.parametrize(
    ("arch", "size"),
    [
        ("resnet18", 32),
        ("mobilenet_v2", 32),
        ("mobilenet_v3_small", 32),
        ("shufflenet_v2_x0_5", 32),
        ("squeezenet1_1", 33),
        ("googlenet", 32),
        ("regnet_y_400mf", 32),
        pytest.param("densenet121", 32, marks=pytest.mark.long),
        pytest.param("inception_v3", 75, marks=pytest.mark.long),
        pytest.param("resnext50_32x4d", 32, marks=pytest.mark.long),
        pytest.param("efficientnet_b0", 32, marks=pytest.mark.long),
        pytest.param("convnext_tiny", 32, marks=pytest.mark.long),
        pytest.param("mnasnet0_5", 32, marks=pytest.mark.long),
    ],
)
def test_totals_equal_the_naive_reference(arch: str, size: int) -> None:
    torch.manual_seed(1)
    auxiliary = {"aux_logits": False, "init_weights": False} if arch in ("googlenet", "inception_v3") else {}
    model = torchvision.models.get_model(arch, weights=None, num_classes=7, **auxiliary)
    x = torch.randn(2, 3, size, size)
    counts = meter(model, x)
    assert totals(counts) == pytest.approx(Reference(model, x).found, rel=1e-6)
    assert counts.uncounted == ()
    # what the network adds, multiplies and activates in functions is counted beside the modules
    functional = {row.op for row in counts.layers if row.functional}
    assert functional >= {"resnet18": {"add_"}, "googlenet": {"relu", "cat"}, "mobilenet_v3_small": {"mul"}}.get(
        arch, set()
    )
    assert all(row.macs_valid <= row.macs_nominal for row in counts.layers)
    assert all(row.macs_both_nonzero <= row.macs_input_nonzero <= row.macs_valid for row in counts.layers)


def test_the_paths_of_a_network_with_two_branches_are_found() -> None:
    torch.manual_seed(0)
    counts = meter(torchvision.models.resnet18(num_classes=10), torch.randn(1, 3, 32, 32))
    report = estimate(counts, replace(load_hardware("fused_45nm"), batch_size=None))
    ops = [layer.op for layer in report.layers]
    assert ops.count("Conv2d+BatchNorm2d+add_+ReLU") == 8
    assert ops.count("Conv2d+BatchNorm2d+ReLU") == 1 + 8
    assert ops.count("Conv2d+BatchNorm2d") == 3  # of the three blocks that change the size
    assert sorted({"MaxPool2d", "AdaptiveAvgPool2d", "Linear"} & set(ops)) == [
        "AdaptiveAvgPool2d",
        "Linear",
        "MaxPool2d",
    ]
    assert len(ops) == 8 + 9 + 3 + 3


def test_densenet_folds_59_of_its_121_batch_norms() -> None:
    with torch.device("meta"):
        model = torchvision.models.densenet121(num_classes=10)
    model = model.to_empty(device="cpu")
    for value in (*model.parameters(), *model.buffers()):
        nn.init.ones_(value) if value.is_floating_point() else nn.init.zeros_(value)
    for value in model.parameters():
        nn.init.constant_(value, 1e-3)
    counts = meter(model, torch.ones(1, 3, 32, 32))
    ops = [layer.op for layer in estimate(counts, load_hardware("fused_45nm")).layers]
    assert sum("+BatchNorm2d" in op for op in ops) == 59
    assert ops.count("BatchNorm2d") == 121 - 59
