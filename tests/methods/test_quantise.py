"""Networks of integers: values against a naive integer computation, scales, widths and prices by hand, resume, loading,
and what is refused."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import parametrizations, prune

import eat_runner
from eat_runner import data, run
from eat_runner.config import MeterConfig, ModelConfig
from eat_runner.config.bits import BitsConfig
from eat_runner.config.hardware import FusedHardware
from eat_runner.config.pruning import PruningConfig
from eat_runner.config.thresholds import ThresholdsConfig
from eat_runner.energy.estimate import estimate
from eat_runner.energy.hardware import load_hardware
from eat_runner.energy.meter import measure
from eat_runner.errors import UserError
from eat_runner.methods.base import Trained
from eat_runner.methods.prunable import prunable
from eat_runner.methods.quantise import Quantise, best_scales, fold, limits, plan_for, rounded
from eat_runner.records import RunFolder
from examples import trained

HARDWARE = load_hardware("fused_45nm_int8")


@pytest.fixture
def integers(small_config):
    methods = {"bits": BitsConfig(name="8")}
    return replace(small_config, methods=methods, lambda_=0.0, hardware=HARDWARE)


def folder_of(config, record):
    return RunFolder(Path(config.results_dir) / config.name / record.run_id)


def quantised(model, images, **settings):
    """The same model, made of integers by what it does to some images."""
    method = Quantise(BitsConfig(**settings), HARDWARE)
    method.on_build(model)
    method.on_example(model, images[:1])

    def unused():
        raise AssertionError

    method.after_training(Trained(model, unused, unused, "validation", 1, looked_at=lambda: [images]))
    return method


def small_network():
    """Convolution, batch norm, ReLU, max-pool, another, average pool, linear; statistics and biases of all kinds."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.normal_(module.weight)  # of both signs
            nn.init.normal_(module.bias, std=0.3)
    return model.eval()


# --- numbers


@pytest.mark.parametrize(
    ("bits", "signed", "low", "high"), [(8, True, -127, 127), (8, False, 0, 255), (4, True, -7, 7)]
)
def test_the_nearest_integer_times_the_scale(bits, signed, low, high):
    assert limits(bits, signed) == (low, high)
    x = torch.randn(50_000) * 4
    scale = torch.tensor(0.03)
    expected = np.clip(np.rint(x.double().numpy() / 0.03), low, high) * 0.03
    found = rounded(x, scale, bits, signed).double().numpy()
    # a float32 may lie on the other side of a half than its float64
    assert (np.abs(found - expected) > 1e-5).mean() < 1e-4
    zero = torch.zeros(1, dtype=torch.int32)
    assert torch.equal(
        rounded(x, scale, bits, signed), torch.fake_quantize_per_tensor_affine(x, scale[None], zero, low, high)
    )


def test_up_to_half_a_step_is_zero():
    scale = torch.tensor(0.25)
    x = torch.tensor([0.0, 0.125, -0.125, 0.1251, -0.1251, 0.374, 0.375])  # half of half steps: to even
    assert rounded(x, scale, 8, True).tolist() == [0, 0, 0, 0.25, -0.25, 0.25, 0.5]
    assert rounded(x, scale, 8, False).tolist() == [0, 0, 0, 0.25, 0, 0.25, 0.5]


def test_the_gradient_goes_straight_through_but_for_what_is_clipped():
    x = torch.tensor([-1.0, 0.1, 0.7, 7.0 * 0.5, 3.9], requires_grad=True)
    rounded(x, torch.tensor(0.5), 4, True).sum().backward()
    assert x.grad.tolist() == [1, 1, 1, 1, 0]  # 3.9 / 0.5 is above 7.5
    y = torch.tensor([-1.0, 0.1, 7.5, 7.8], requires_grad=True)
    rounded(y, torch.tensor(0.5), 4, False).sum().backward()
    assert y.grad.tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize("bits", [8, 4])
def test_a_scale_has_the_least_error_among_finely_spaced_ones(bits):
    torch.manual_seed(1)
    rows = torch.randn(3, 4000) * torch.tensor([[0.01], [1.0], [30.0]])
    found = best_scales(rows, bits, signed=True)
    top = 2 ** (bits - 1) - 1
    for row, scale in zip(rows.double().numpy(), found.tolist(), strict=True):

        def error(s, row=row):
            return np.square(np.clip(np.rint(row / s), -top, top) * s - row).sum()

        full = np.abs(row).max() / top
        least = min(error(full * part) for part in np.linspace(0.05, 1, 400))
        assert error(scale) <= 1.1 * least  # candidates are 6 % apart
        assert (scale < 0.9 * full) == (bits == 4)  # clipping pays with few bits


def test_scales_of_nothing_and_next_to_nothing():
    rows = torch.stack([torch.zeros(5), torch.full((5,), 1e-44), torch.tensor([0.0, 0, 0, 0, 127.0])])
    scales = best_scales(rows, 8, signed=True)
    assert scales[0] == 1.0
    assert scales[2] == pytest.approx(1.0)
    out = rounded(rows, scales, 8, signed=True)
    assert bool(torch.isfinite(out).all())
    assert out[0].tolist() == [0] * 5


# --- a network


def test_folding_changes_nothing_but_rounding():
    model = small_network()
    x = torch.randn(16, 2, 12, 12)
    before = model(x)
    plan = plan_for(model, x[:1], BitsConfig(name="8"))
    assert plan.folded == {"0": "1", "4": "5"}
    fold(model, plan.folded)
    assert isinstance(model[1], nn.Identity)
    torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-5)


def conv_of_integers(x, weight, stride, padding):
    """Naive: int64 products and sums."""
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    size = (x.shape[2] - 3) // stride + 1
    out = np.zeros((len(x), len(weight), size, size), np.int64)
    for i in range(size):
        for j in range(size):
            patch = x[:, None, :, i * stride : i * stride + 3, j * stride : j * stride + 3]
            out[:, :, i, j] = (patch * weight[None]).sum((2, 3, 4))
    return out


@pytest.mark.parametrize("bits", [8, 4])
def test_a_network_computes_what_integers_with_their_sums_would(bits):
    model = small_network()
    pixels = torch.randint(-128, 128, (40, 2, 12, 12))
    images = pixels / 64  # of 8 bits as they are
    reference = deepcopy(model)
    quantised(model, images, name=str(bits), first_last_8=False)
    top, high = 2 ** (bits - 1) - 1, 2**bits - 1
    layers = {name: model[name] for name in (0, 4, 9)}
    weights, sums = {}, {}
    for name, layer in layers.items():
        scale = layer.weight_scale.double().view(-1, *[1] * (layer.weight.dim() - 1))
        steps = layer.weight.detach().double() / scale
        weights[name] = steps.round().numpy().astype(np.int64)
        assert float((steps - steps.round()).abs().max()) < 1e-4  # integers in disguise
        assert np.abs(weights[name]).max() <= top
    scale = {name: model[name].output_scale.item() for name in (2, 6, 7)}

    def requantise(values, s):
        return np.clip(np.rint(values / s), 0, high).astype(np.int64)

    def unscaled(name, acc, input_scale):
        """Of 32-bit sums and the bias, which stays as exact as it is."""
        layer, shape = layers[name], (1, -1, *[1] * (acc.ndim - 2))
        assert np.abs(acc).max() < 2**31
        per_channel = layer.weight_scale.double().numpy().reshape(shape) * input_scale
        return acc * per_channel + layer.bias.detach().double().numpy().reshape(shape)

    sums[0] = conv_of_integers(pixels.numpy(), weights[0], 1, 1)
    relu = requantise(unscaled(0, sums[0], 1 / 64), scale[2])
    pooled = relu.reshape(40, 6, 6, 2, 6, 2).max((3, 5))
    sums[4] = conv_of_integers(pooled, weights[4], 2, 0)
    second = requantise(unscaled(4, sums[4], scale[2]), scale[6])
    mean = requantise(second.mean((2, 3)) * scale[6], scale[7])
    logits = unscaled(9, mean @ weights[9].T, scale[7])
    seen = {}
    for name in (2, 3, 6, 7):
        model[name].register_forward_hook(lambda m, a, out, name=name: seen.update({name: out.detach().clone()}))
    found = model(images)
    for name, expected in ((2, relu), (3, pooled), (6, second), (7, mean[:, :, None, None])):
        made = seen[name].double().numpy() / scale[2 if name == 3 else name]
        assert np.abs(made - np.rint(made)).max() < 1e-3
        # a sum that lies at a half may round the other way in float32
        assert (np.rint(made) != expected).mean() < 0.002
    steps = np.abs(found.detach().double().numpy() - logits) / scale[7]
    assert np.median(steps) < 1e-4
    assert steps.max() < 2
    # and it is the network that was trained, more or less
    difference = (found - reference(images)).abs().mean() / reference(images).std()
    assert difference < (0.03 if bits == 8 else 0.5)


def test_scales_are_a_channels_own():
    model = small_network()
    with torch.no_grad():
        model[4].weight.mul_(torch.logspace(-3, 3, 8).view(-1, 1, 1, 1))
    quantised(model, torch.randn(32, 2, 12, 12), name="8")
    weight, scale = model[4].weight.detach(), model[4].weight_scale
    assert scale.shape == (8,)
    largest = weight.abs().amax((1, 2, 3)) / scale
    assert bool(((largest > 100) & (largest < 127.5)).all())  # each channel has the whole range


def test_what_is_zero_stays_zero_through_folding_and_rounding():
    model = small_network()
    torch.manual_seed(3)
    masks = {name: torch.rand_like(model[name].weight) < 0.3 for name in (0, 4, 9)}
    with torch.no_grad():
        for name, mask in masks.items():
            model[name].weight.mul_(mask)
        model[4].weight[2] = 0  # a channel without weights still has its bias
    quantised(model, torch.randn(32, 2, 12, 12), name="8")
    for name, mask in masks.items():
        assert bool((model[name].weight[~mask] == 0).all())
    norm_bias = small_network()[5]
    expected = (
        norm_bias.bias[2] - norm_bias.running_mean[2] * norm_bias.weight[2] / (norm_bias.running_var[2] + 1e-5).sqrt()
    )
    conv_bias = small_network()[4].bias[2]
    expected += conv_bias * norm_bias.weight[2] / (norm_bias.running_var[2] + 1e-5).sqrt()
    assert model[4].bias[2].item() == pytest.approx(expected.item(), rel=1e-5)


def test_rounded_zeros_are_counted_where_a_tensor_is_written_and_read():
    model = small_network()
    images = torch.randn(20, 2, 12, 12)
    quantised(model, images, name="4", first_last_8=False)
    rows = {row.name: row for row in measure(model, [images], MeterConfig(batch_size=20), floor=False).layers}
    seen = {}
    for name in ("2", "6"):
        model[int(name)].register_forward_hook(lambda m, a, out, name=name: seen.update({name: out.detach().clone()}))
    before = {}
    for name in ("2", "6"):
        model[int(name)].register_forward_pre_hook(lambda m, a, name=name: before.update({name: a[0].detach().clone()}))
    model(images)
    for name in ("2", "6"):
        nonzero = int((seen[name] != 0).sum())
        positive = int((before[name] > 0).sum())
        assert rows[name].output_nonzeros == nonzero < positive
        half = model[int(name)].output_scale.item() / 2
        assert nonzero == pytest.approx(int((before[name] > half).sum()), abs=2)
    assert rows["7"].input_nonzeros == rows["6"].output_nonzeros
    assert rows["4"].input_nonzeros == rows["3"].output_nonzeros
    assert rows["9"].output_bits == 32


def test_widths_and_the_ends_of_a_network_of_four_bits():
    x = torch.randn(20, 2, 12, 12)
    model = small_network()
    quantised(model, x, name="4")
    rows = measure(model, [x], MeterConfig(batch_size=20), floor=False).layers
    widths = {row.name: (row.weight_bits, row.output_bits) for row in rows if row.weight_bits or row.output_bits}
    # the pool passes on what the ReLU has rounded; the average in front of the last layer has 8 bits
    expected = {"0": (8, 0), "2": (0, 4), "3": (0, 4), "4": (4, 0), "6": (0, 4), "7": (0, 8), "9": (8, 32)}
    assert widths == expected
    plain = small_network()
    quantised(plain, x, name="4", first_last_8=False)
    rows = measure(plain, [x], MeterConfig(batch_size=20), floor=False).layers
    assert {row.weight_bits for row in rows} == {0, 4}


def test_energy_by_hand():
    """Two linear layers of 4 and 8 bits, all prices by hand; nothing is compressed, and zeros of both operands save."""
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[7.0, 0, -7], [0, 7, 0]]))
        model[0].bias.zero_()
        model[2].weight.copy_(torch.tensor([[1.0, 0], [0, 1]]))
        model[2].bias.fill_(1)
    x = torch.tensor([[1.0, 1, 0.5]])
    quantised(model, x, name="4", first_last_8=False)
    counts = measure(model, [x], MeterConfig(batch_size=1), floor=False)
    prices = {"multiply_pj": 2.0, "accumulate_pj": 1.0, "add_pj": 0.0}
    hardware = FusedHardware(
        bits=8,
        buffer_pj_per_bit=1.0,
        dram_pj_per_bit=10.0,
        multiply_pj=100.0,
        format="dense",
        mac_pj_by_bits={4: prices},
    )
    # 3 pixels of 8 bits from DRAM; 6 and 4 weights of 4 bits and two biases of 32 from DRAM through the buffer; two
    # values of 4 bits written and read; two logits of 32; 3 products (one weight of the three is for pixel 3) and 2
    stored = 3 * 8 * 10 + (10 * 4 + 4 * 32) * 11 + 2 * (2 * 4) + 2 * 32
    assert estimate(counts, hardware).energy_uj_per_image * 1e6 == pytest.approx(stored + (3 + 2) * 3)
    with pytest.raises(UserError, match="has no price for layers of 4-bit weights"):
        estimate(counts, replace(hardware, mac_pj_by_bits={}))


def test_the_note_tells_float_zeros_from_those_of_integers():
    model, x = small_network(), torch.randn(10, 2, 12, 12)
    meter = MeterConfig(batch_size=10)
    assert "float32 zeros stand in" in estimate(measure(model, [x], meter, floor=False), HARDWARE).note
    quantised(model, x, name="8")
    note = estimate(measure(model, [x], meter, floor=False), HARDWARE).note
    assert note == HARDWARE.note
    assert "stand in" not in note


class Twice(nn.Module):
    """As in torchvision's ResNets: one ReLU for two tensors of other sizes, additions in place."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.shortcut = nn.Conv2d(2, 4, 1)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        out = self.conv2(self.relu(self.conv1(x)) * 1)
        out += self.shortcut(x)
        return self.head(self.relu(out).flatten(2)[:, :, 0])


class Block(Twice):
    def forward(self, x):
        out = self.conv2(self.relu(self.conv1(x)))
        out += self.shortcut(x)
        return self.head(self.relu(out).flatten(2)[:, :, 0])


def test_a_module_that_is_called_twice_has_two_scales():
    torch.manual_seed(0)
    model = Block().eval()
    with torch.no_grad():
        model.conv2.weight.mul_(20)
    x = torch.randn(30, 2, 6, 6)
    method = quantised(model, x, name="8")
    assert method.plan.outputs["relu"] == (8, False, 2)
    first, second = model.relu.output_scale.tolist()
    assert second > 5 * first
    # the branch that is stored for the addition is signed
    assert method.plan.outputs["conv2"] == (8, True, 1)
    assert model.conv2.output_bits == 8
    outputs = []
    model.relu.register_forward_hook(lambda m, a, out: outputs.append(out))
    with pytest.raises(RuntimeError):
        model(torch.randn(1, 5, 6, 6))  # a pass that breaks off
    again = deepcopy(model)
    model(x)
    for out, scale in zip(outputs, (first, second), strict=True):
        steps = out / scale
        torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-3)
        assert steps.max() <= 255
    assert torch.equal(again(x), model(x))


class Broken(nn.Module):
    def __init__(self, part):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.part, self.relu = part, nn.ReLU()

    def forward(self, x):
        return self.conv2(self.relu(self.part(self.conv1(x))))


class Joined(Broken):
    def forward(self, x):
        y = self.relu(self.conv1(x))
        return self.conv2(torch.cat([y[:, :2], self.relu(y)[:, 2:]], 1))


class Functional(Broken):
    def forward(self, x):
        return self.conv2(torch.relu(self.conv1(x)))


LEAVE = ": leave bits out, or choose another network"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Broken(nn.GroupNorm(2, 4)), "part (GroupNorm) normalises with what it computes from each image, and cannot be "
         "folded into a layer"),
        (Broken(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4))), "part.1 (BatchNorm2d) does not stand right behind a "
         "layer, which it could be folded into"),
        (Broken(nn.PReLU()), None),
        (Joined(nn.Identity()), "cat (cat) joins tensors, each with a scale of its own"),
        (Functional(nn.Identity()), "relu (relu) stores its result and is no module"),
        (Broken(nn.LPPool2d(2, 1)), "part:lp_pool2d (lp_pool2d) is not known"),
        (Twice(), "mul (mul) stores its result and is no module"),
    ],
)  # fmt: skip
def test_what_cannot_be_made_of_integers_is_named(model, message):
    x = torch.zeros(1, 2, 6, 6)
    if message is None:
        assert plan_for(model.eval(), x, BitsConfig(name="8")).outputs["relu"] == (8, False, 1)
        return
    with pytest.raises(UserError) as caught:
        plan_for(model.eval(), x, BitsConfig(name="8"))
    assert str(caught.value) == f"bits: {message}{LEAVE}"


@pytest.mark.parametrize(
    "make", [parametrizations.weight_norm, lambda layer: prune.l1_unstructured(layer, "weight", 2)]
)
def test_a_weight_that_is_made_for_each_call_cannot_be_rounded_or_pruned(make):
    model, x = small_network(), torch.zeros(1, 2, 12, 12)
    make(model[4])
    with pytest.raises(
        UserError, match=r"^bits: 4 \(Conv2d\) makes its weight anew for each call, so it cannot be rounded"
    ):
        plan_for(model, x, BitsConfig(name="8"))
    counts = measure(model, [x], MeterConfig(batch_size=1), floor=False)
    with pytest.raises(
        UserError, match=r"^pruning: 4 \(Conv2d\) makes its weight anew for each call, so no zero would"
    ):
        prunable(model, counts, PruningConfig(name="magnitude"))


def test_integers_are_not_rounded_again():
    model = small_network()
    quantised(model, torch.randn(8, 2, 12, 12), name="8")
    with pytest.raises(UserError, match="integers already: leave bits out"):
        plan_for(model, torch.zeros(1, 2, 12, 12), BitsConfig(name="4"))


# --- runs


def test_a_finished_run_becomes_integers_and_loading_gives_back_the_very_network(small_config, integers):
    longer = replace(small_config.trainer, epochs=4)
    parent = run.run(replace(small_config, lambda_=0.0, trainer=longer))
    place = folder_of(small_config, parent)
    config = replace(integers, init=str(place.path), trainer=replace(longer, epochs=0))
    record = run.run(config)
    assert (record.status, record.reason) == ("finished", "")
    assert "bits_8" in record.run_id
    folder = folder_of(config, record)
    [change] = record.changes
    assert (change["method"], change["choice"]) == ("bits", "8")
    assert set(change["weights"].values()) == {8}
    assert record.accuracy["test"] == pytest.approx(parent.accuracy["test"], abs=0.03)
    rows = folder.read_counts().select("test").layers
    assert {row.weight_bits for row in rows if row.weight_elements} == {8}
    assert {row.output_bits for row in rows if row.op == "ReLU"} == {8}
    assert "published" not in record.energy
    assert "fused_7nm_int8" in record.energy
    # load_run: the same logits to the bit
    dataset = data.load(config.dataset, Path(config.data_dir), False)
    images = torch.from_numpy(dataset.test.images_nhwc.copy()).permute(0, 3, 1, 2)
    loaded = eat_runner.load_run(folder.path)
    counts = measure(loaded.model, loaded.preprocessing(images).split(100), MeterConfig(), "test", floor=False)
    assert [row.output_nonzeros for row in counts.layers] == [row.output_nonzeros for row in rows]
    saved = load_file(folder.weights)
    assert saved["layer1.0.relu1.output_scale"].shape == (1,)
    state = loaded.model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in saved.items())
    # a child is a stage more, and no training
    child = replace(small_config, lambda_=0.0, init=str(folder.path), hardware=HARDWARE)
    with pytest.raises(UserError, match=r"has bits=8 and cannot be trained further: set trainer\.epochs=0"):
        run.run(child)
    again = run.run(replace(child, trainer=config.trainer))
    assert again.accuracy == record.accuracy | {"train": None}
    with pytest.raises(UserError, match="integers already"):
        run.run(replace(integers, init=str(folder.path), trainer=config.trainer))


@pytest.mark.parametrize("begin", [0.0, 0.75])
def test_training_in_integers_resumes_to_the_bit(begin, integers):
    config = replace(integers, methods={"bits": BitsConfig(name="4", begin=begin)})
    whole, resumed = trained(config), trained(config, 3, 4)
    whole.change()
    resumed.change()
    states = whole.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert whole.methods["bits"].scales


def test_until_it_begins_a_training_is_the_same_to_the_bit(integers):
    plain, at_the_end = (trained(replace(integers, methods=m)) for m in ({}, integers.methods))
    states = plain.model.state_dict(), at_the_end.model.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_training_sees_the_values_that_the_network_will_have(integers):
    config = replace(integers, methods={"bits": BitsConfig(name="4", begin=0.0)})
    trainer = run.locate_and_build(config).trainer()
    seen = []
    relu, conv = trainer.model.layer1[0].relu1, trainer.model.layer1[0].conv2
    relu.register_forward_hook(lambda m, a, out: seen.append((m.training, out.detach(), conv.weight.detach().clone())))
    list(trainer.epochs(lambda: len(seen) > 2, lambda *_: None))
    scales = trainer.methods["bits"].scales["layer1.0.conv2"]
    training, out, weight = next(entry for entry in seen[1:] if entry[0])
    assert training
    assert len((out / relu.output_scale).round().unique()) <= 16
    torch.testing.assert_close(out, (out / relu.output_scale).round() * relu.output_scale)
    steps = weight / scales.view(-1, 1, 1, 1)
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-4)
    assert isinstance(conv.weight, nn.Parameter)  # and outside of a step it is the one that is trained
    assert list(dict(conv.named_parameters())) == ["weight"]
    assert len(conv.weight.unique()) == conv.weight.numel()


def test_pruned_weights_stay_zero_and_thresholds_find_the_rounded_values(integers):
    methods = {
        "pruning": PruningConfig(name="magnitude", density=0.3, every_steps=2, begin=0.2, end=0.6),
        "bits": BitsConfig(name="8", begin=0.5),
        "thresholds": ThresholdsConfig(name="fatrelu", allow=5.0),
    }
    config = replace(integers, methods=methods, model=ModelConfig(name="vgg11", width=2))
    record = run.run(config)
    assert (record.status, record.reason) == ("finished", "")
    masked, rounding, thresholds = record.changes
    folder = folder_of(config, record)
    weights = load_file(folder.weights)
    for name, (zeros, elements) in masked["masked"].items():
        assert int((weights[f"{name}.weight"] == 0).sum()) >= zeros
        assert weights[f"{name}.weight"].numel() == elements
    assert rounding["outputs"]["features.2"] == [8, False, 1]
    assert thresholds["thresholds"]
    rows = folder.read_counts().select("test").layers
    raised = [row for row in rows if row.op == "FATReLU"]
    assert len(raised) == len(thresholds["thresholds"])
    assert {row.output_bits for row in raised} == {8}
    loaded = eat_runner.load_run(folder.path).model
    dataset = data.load(config.dataset, Path(config.data_dir), False)
    images = torch.from_numpy(dataset.test.images_nhwc.copy()).permute(0, 3, 1, 2)
    x = eat_runner.load_run(folder.path).preprocessing(images)
    counts = measure(loaded, x.split(100), MeterConfig(), "test", floor=False)
    assert [row.output_nonzeros for row in counts.layers] == [row.output_nonzeros for row in rows]


@pytest.mark.long
@pytest.mark.parametrize("name", ["vgg16", "resnet50"])
def test_other_networks_of_ours(name, integers):
    config = replace(integers, model=ModelConfig(name=name, width=2), trainer=replace(integers.trainer, epochs=1))
    record = run.run(config)
    assert (record.status, record.reason) == ("finished", "")


@pytest.mark.long
@pytest.mark.parametrize("arch", ["resnet18", "resnext50_32x4d"])
def test_torchvisions_networks(arch):
    from torchvision.models import get_model

    torch.manual_seed(0)
    model = get_model(arch, weights=None, num_classes=5).eval()
    x = torch.randn(2, 3, 64, 64)
    before = model(x)
    quantised(model, x, name="8")
    torch.testing.assert_close(model(x), before, rtol=0.2, atol=0.2 * before.std().item())
    rows = measure(model, [x], MeterConfig(batch_size=2), floor=False).layers
    assert not any(row.op == "BatchNorm2d" for row in rows)
    assert {row.weight_bits for row in rows if row.op in {"Conv2d", "Linear"}} == {8}
