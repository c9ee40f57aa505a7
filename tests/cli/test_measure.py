"""eat-measure: a network worked out by hand, from its file of weights to its energy; a run; and what can be wrong."""

import csv
import importlib.metadata
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.cells import cell_len
from safetensors.torch import save_file
from torch import nn

from eat_runner import run
from eat_runner.cli import measure
from eat_runner.energy.estimate import estimate
from eat_runner.energy.hardware import load_hardware
from eat_runner.errors import UserError
from eat_runner.records import RunFolder, RunRecord

HARDWARE = """
name: toy
rule: fused
process_nm: 7
bits: 8
input_bits: 8
buffer_bits: 1000
buffer_pj_per_bit: 1
dram_pj_per_bit: 10
multiply_pj: 2
accumulate_pj: 3
add_pj: 7
register_pj_per_mac: 0
activation_pj: 0
weight_reuse: 1
format: bitmask
skip: both
note: a toy
"""


class Tiny(nn.Module):
    """One convolution of 3x3 to two channels, ReLU, one linear layer."""

    def __init__(self, size: int, channels: int, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 2, 3, padding=1, bias=False)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(2 * size * size, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.relu(self.conv(x)).flatten(1))


class Odd(Tiny):
    """Ends with an operation that nobody counts."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.erfcx(super().forward(x))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in with the networks offered, a price list, weights, and two images of 4x4 pixels: black, and
    black but for one white pixel in the corner."""
    made = [
        importlib.metadata.EntryPoint(cls.__name__.lower(), f"{__name__}:{cls.__name__}", "eat_runner.models")
        for cls in (Tiny, Odd)
    ]
    monkeypatch.setattr("eat_runner.models.external.entry_points", lambda group: made)
    monkeypatch.chdir(tmp_path)
    Path("toy.yaml").write_text(HARDWARE)
    kernels = torch.zeros(2, 3, 3, 3)
    kernels[0, 0, 1, 1], kernels[1, 1, 1, 1] = 1.0, -1.0
    state = {"conv.weight": kernels, "fc.weight": torch.ones(2, 32), "fc.bias": torch.tensor([0.5, 0.0])}
    save_file(state, "weights.safetensors")
    torch.save({"state_dict": state}, "weights.pt")
    for folder in ("images/first", "images/second"):
        Path(folder).mkdir(parents=True)
    pixels = np.zeros((4, 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("images/first/black.png")
    pixels[0, 0] = 255
    Image.fromarray(pixels).save("images/second/corner.png")
    Path("images/notes.txt").write_text("no image")
    return tmp_path


TINY = ["entry_point:tiny", "--image-size", "4", "--classes", "2", "--hardware", "toy.yaml"]
REAL = [*TINY, "--weights", "weights.safetensors", "--data", "images"]


def rows_of(path: str) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


# Of an image, on average: the input has 48 values of which 1.5 are not zero; a white pixel in the corner, where 2 x 2
# positions of each kernel see it. A side of 4 pixels has 4 + 3 + 3 taps of 3 positions: 100 on two sides, padding left
# out; 3 x 2 channels. What the two kernels let through of the white pixel is 1 and -1, and the ReLU only the 1.
VALID, INPUT_NONZERO, BOTH_NONZERO = 100 * 3 * 2, 2 * 2 * 3 * 2 / 2, 2 / 2


def test_counts_and_energy_by_hand(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measure.command([*REAL, "--csv", "out.csv", "--json", "out.json", "--plot", "out.svg"])
    conv, relu, flatten, fc = rows_of("out.csv")
    assert [row["name"] for row in (conv, relu, flatten, fc)] == ["conv", "relu", "flatten", "fc"]
    assert [row["output_shape"] for row in (conv, relu, flatten, fc)] == ["2x4x4", "2x4x4", "32", "2"]
    assert {row["random"] for row in (conv, relu, flatten, fc)} == {""}

    def counts(row: dict[str, str], *keys: str) -> list[int]:
        return [int(row[key]) for key in keys]

    # sums over the two images
    products = ("macs_valid", "macs_input_nonzero", "macs_both_nonzero")
    assert counts(conv, *products) == [2 * VALID, 2 * INPUT_NONZERO, 2 * BOTH_NONZERO]
    assert counts(fc, *products) == [2 * 64, 2, 2]
    assert counts(conv, "input_elements", "input_nonzeros", "output_nonzeros", "weight_nonzeros") == [96, 3, 2, 2]
    assert counts(relu, "output_elements", "output_nonzeros") == [64, 1]
    assert counts(fc, "input_nonzeros", "output_nonzeros", "weight_elements", "bias_nonzeros") == [1, 3, 64, 1]

    # bits as stored, 8 a non-zero and 1 a value, times the price of a bit: 10 from DRAM, 1 of the buffer, 10 + 1 of
    # weights; 2 + 3 a product. The outputs are 0.5 and 0 of the black image, 1.5 and 1 of the other.
    activations = 10 * (1.5 * 8 + 48), 1 * (0.5 * 8 + 32)
    first = {"weights": 11 * (2 * 8 + 54), "activations": sum(activations), "products": 5 * BOTH_NONZERO, "others": 0}
    last = {
        "weights": 11 * (64 * 8 + 1 * 8 + 2),  # a dense tensor needs no bitmask
        "activations": activations[1] + 1 * (1.5 * 8 + 2),
        "products": 5 * 1,
        "others": 0,
    }
    dense_first = {"weights": 11 * 54 * 8, "activations": 10 * 48 * 8 + 32 * 8, "products": 5 * VALID, "others": 0}
    dense_last = {"weights": 11 * 66 * 8, "activations": 32 * 8 + 2 * 8, "products": 5 * 64, "others": 0}
    for row, parts, dense in ((conv, first, dense_first), (fc, last, dense_last)):
        assert {part: float(row[f"toy_{part}_pj"]) for part in parts} == pytest.approx(parts)
        assert {part: float(row[f"toy_dense_{part}_pj"]) for part in dense} == pytest.approx(dense)
        assert float(row["toy_energy_pj"]) == pytest.approx(sum(parts.values()))
        assert float(row["toy_dense_pj"]) == pytest.approx(sum(dense.values()))
    assert relu["toy_energy_pj"] == flatten["toy_energy_pj"] == ""

    found: dict[str, Any] = json.loads(Path("out.json").read_text())
    assert (found["parameters"], found["images"], found["zeros_are_real"]) == (54 + 64 + 2, 2, True)
    assert found["totals"]["macs_both_nonzero"] == 2 * BOTH_NONZERO + 2
    (toy,) = found["hardware"]
    total, dense_total = (sum(a.values()) + sum(b.values()) for a, b in ((first, last), (dense_first, dense_last)))
    assert toy["energy_uj_per_image"] == pytest.approx(total / 1e6)
    assert toy["dense_uj_per_image"] == pytest.approx(dense_total / 1e6)
    assert toy["ratio"] == pytest.approx(total / dense_total)
    assert toy["stored_weight_bytes"] == ((2 * 8 + 54) + 64 * 8 + (1 * 8 + 2)) / 8
    # the convolution needs most at once: its input and its output
    assert toy["peak_activation_bytes"] == ((1.5 * 8 + 48) + (0.5 * 8 + 32)) / 8
    assert toy["dense_peak_activation_bytes"] == (48 + 32) * 8 / 8
    assert [layer["calls"] for layer in toy["layers"]] == [[0, 1], [3]]

    text = capsys.readouterr().out
    assert re.search(r"Tiny .* 120 .* 664 +2 +0\.0072080 +100\.0 +0\.018248\n", text)
    assert re.search(r"  conv +Conv2d +2x4x4 +54 +3\.7 +3\.1 +600 +1 +0\.0014110 +19\.6 +0\.011848\n", text)
    assert re.search(r"  fc +Linear +2 +66 +100\.0 +75\.0 +64 +1 +0\.0057970 +80\.4 +0\.006400\n", text)
    assert "random" not in text
    assert "2 of the 2 images in images" in text
    assert "images: files that are no images and were passed over: 1" in text
    assert re.search(r"toy +0\.0072080 uJ +0\.018248 uJ +0\.395 .* 74 +12\n", text)
    assert Path("out.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("arguments", "label"),
    [
        ([], "random weights and random input"),
        (["--weights", "weights.pt"], "random input"),
        (["--data", "images"], "random weights"),
    ],
)
def test_what_is_random_is_said_and_only_dense_numbers_are_shown(
    place: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], label: str
) -> None:
    measure.command([*TINY, *arguments, "--csv", "out.csv", "--json", "out.json"])
    text = capsys.readouterr().out
    assert f"\n{label}: only dense numbers mean something\n" in text
    assert "products ≠ 0" not in text
    assert "outputs ≠ 0" not in text
    assert re.search(r"Tiny .* 664 +0\.018248 +100\.0\n", text)
    assert re.search(r"  conv .* 600 +0\.011848 +64\.9\n", text)
    assert re.search(r"toy +0\.018248 uJ .* 80\n", text)  # the most activations at once, without zeros
    assert ("weights ≠ 0 %" in text) == ("weights" not in label)
    assert {row["random"] for row in rows_of("out.csv")} == {label}
    assert json.loads(Path("out.json").read_text())["zeros_are_real"] is False


def test_random_input_depends_on_the_seed_alone(place: Path) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        measure.command([*TINY, "--weights", "weights.pt", "--seed", seed, "--images", "3", "--json", f"{name}.json"])
    a, b, c = (Path(f"{name}.json").read_text() for name in "abc")
    assert a == b != c
    assert json.loads(a)["images"] == 3


def test_batches_do_not_change_the_counts(place: Path) -> None:
    for name, size in (("a", "1"), ("b", "2")):
        measure.command([*REAL, "--batch-size", size, "--csv", f"{name}.csv"])
    a, b = (rows_of(f"{name}.csv") for name in "ab")
    drop = {"computations"}
    assert [{k: v for k, v in row.items() if k not in drop} for row in a] == [
        {k: v for k, v in row.items() if k not in drop} for row in b
    ]


def test_images_are_spread_over_the_classes(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One of two: the first folder's."""
    for number in range(3):
        Image.fromarray(np.zeros((4, 4, 3), dtype=np.uint8)).save(f"images/first/{number}.png")
    measure.command([*REAL, "--images", "2", "--csv", "out.csv"])
    assert "2 of the 5 images" in capsys.readouterr().out
    assert rows_of("out.csv")[0]["images"] == "2"


def test_several_hardware(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Relative prices have no joules: energies are in multiply-accumulates, and no column says pJ."""
    relative = HARDWARE.replace("name: toy", "name: shares\nrelative: true")
    Path("shares.yaml").write_text(relative)
    measure.command([*REAL, "--hardware", "shares.yaml", "--csv", "out.csv", "--json", "out.json"])
    text = capsys.readouterr().out
    assert "shares (7 nm): energies are relative" in text
    assert re.search(r"shares +0\.0072080 M MACs", text)
    conv = rows_of("out.csv")[0]
    assert float(conv["shares_energy_macs"]) == float(conv["toy_energy_pj"]) == pytest.approx(1411)
    assert "shares_energy_pj" not in conv
    toy, shares = json.loads(Path("out.json").read_text())["hardware"]
    assert (toy["relative"], shares["relative"], shares["energy_uj_per_image"]) == (False, True, None)


def test_the_published_rule_is_given_its_batches(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every call by itself: 1950 pJ for each non-zero that moves, parameters once a batch, and 3.7 for a computation,
    scaled by the densities of all parameters and all inputs."""
    measure.command([*REAL, "--hardware", "published", "--json", "out.json"])
    found = json.loads(Path("out.json").read_text())
    assert found["batch_size"] == 100
    (published,) = (each for each in found["hardware"] if each["name"] == "published")
    conv = published["layers"][0]
    # 54 weights, of which 2 are not zero; 3 and 2 non-zeros of 96 and 64 values go in and out, in two images
    assert conv["weights_pj"] == pytest.approx(1950 * 2 / 2)
    assert conv["activations_pj"] == pytest.approx(1950 * (3 + 2) / 2)
    assert conv["dense_weights_pj"] == pytest.approx(1950 * 54 / 2)
    # of modules: 96 + 64 + 64 inputs with 3 + 2 + 1 non-zeros, 120 parameters with 2 + 64 + 1
    density = (6 / 224) * (67 / 120)
    assert conv["products_pj"] == pytest.approx(3.7 * (32 * 27) * density)
    assert conv["dense_products_pj"] == pytest.approx(3.7 * 32 * 27)
    assert published["peak_activation_bytes"] is None


# -- networks of libraries


def test_a_network_of_torchvision(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    measure.command(
        ["torchvision:squeezenet1_1", "--image-size", "32", "--batch-size", "1", "--depth", "1", "--json", str(out)]
    )
    text = capsys.readouterr().out
    lines = [line.split()[0] for line in text.splitlines() if line.startswith("   ")]
    assert lines == ["features", "classifier", ":flatten"]
    assert "hardware fused_7nm_int8 (7 nm)" in text  # the default, by its name
    assert re.search(r"SqueezeNet +1000 +1,235,496 ", text)  # published: 1,235,496 parameters
    assert json.loads(out.read_text())["totals"]["macs_valid"] > 0


def test_the_table_in_the_readme(capsys: pytest.CaptureFixture[str]) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (example,) = re.findall(r"    eat-measure (.*--depth 1)\n\n((?:    .*\n|\n)+)", readme)
    measure.command(example[0].split())
    shown = [line.strip() for line in capsys.readouterr().out.splitlines()]
    wanted = [line.strip() for line in example[1].splitlines() if line.strip()]
    assert len(wanted) == 10
    assert [line for line in wanted if line not in shown] == []


def test_a_network_of_timm(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("timm", reason="the extra timm is not installed")
    measure.command(["timm:test_resnet", "--batch-size", "1", "--classes", "10"])
    text = capsys.readouterr().out
    assert "images of 3x160x160" in text  # the size that timm gives it
    assert re.search(r"\n +fc +Linear +10 ", text)


# -- runs


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from eat_runner.config import DatasetConfig, ExperimentConfig, ModelConfig, TrainerConfig

    folder = tmp_path_factory.mktemp("run")
    run.run(
        ExperimentConfig(
            dataset=DatasetConfig(train_limit=160, crop_padding=1),
            model=ModelConfig(width=4),
            trainer=TrainerConfig(epochs=1, batch_size=32, lr=0.05, compile="off"),
            results_dir=str(folder / "results"),
            data_dir=str(folder / "data"),
            threads=1,
            device="cpu",
        )
    )
    (record,) = folder.glob("results/default/*/record.json")
    return record.parent


def test_a_run_shows_its_own_counts(finished: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    measure.command([str(finished), "--hardware", "published", "--hardware", "fused_45nm", "--json", str(out)])
    text = capsys.readouterr().out
    assert "weights: the run's own" in text
    assert "the run's own 360 test images" in " ".join(text.split())
    found = json.loads(out.read_text())
    assert found["zeros_are_real"] is True
    record = RunFolder(finished).read_record()
    for priced in found["hardware"]:
        assert priced["energy_uj_per_image"] == record.energy[priced["name"]]["test"]["energy_uj_per_image"]
    assert found["parameters"] == record.parameters
    assert all(layer["output_shape"] for layer in found["layers"])


def test_a_run_on_its_own_test_images_as_files_is_what_it_counted_itself(finished: Path, tmp_path: Path) -> None:
    """The digits as PNGs: read, scaled to 8 px, made grey and normalised as the run was."""
    from eat_runner.data.sources import _read_digits  # pyright: ignore[reportPrivateUsage]

    for i, pixels in enumerate(_read_digits()["test"].images_nhwc):
        Image.fromarray(pixels[..., 0]).save(tmp_path / f"{i:03d}.png")
    out = tmp_path / "out.json"
    options = ["--data", str(tmp_path), "--images", "360", "--batch-size", "100", "--json", str(out)]
    measure.command([str(finished), "--hardware", "fused_45nm", *options])
    found = json.loads(out.read_text())["hardware"][0]
    hardware = load_hardware("fused_45nm")
    own = estimate(RunFolder(finished).read_counts(), hardware)
    assert found["energy_uj_per_image"] == own.energy_uj_per_image
    assert [layer["energy_pj"] for layer in found["layers"]] == [layer.energy_pj for layer in own.layers]


def test_a_run_on_random_input_is_said_to_be(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measure.command([str(finished), "--batches", "1"])
    assert "random input: only dense numbers" in capsys.readouterr().out


def test_a_run_without_weights(finished: Path, tmp_path: Path) -> None:
    for name in ("record.json", "layers.csv", "batches.csv"):
        (tmp_path / name).write_bytes((finished / name).read_bytes())
    with pytest.raises(UserError, match=r"model.safetensors is not there: only a run with its weights can be measured"):
        measure.command([str(tmp_path)])


@pytest.mark.parametrize("status", ["interrupted", "failed", "running"])
def test_a_run_that_is_not_finished(status: str, tmp_path: Path) -> None:
    RunFolder(tmp_path).write_record(RunRecord(run_id=tmp_path.name, status=status))
    with pytest.raises(UserError) as error:
        measure.command([str(tmp_path)])
    assert str(error.value) == f"{tmp_path} is {status}: only a finished run can be measured"


# -- terminals and files


def on_a_terminal(monkeypatch: pytest.MonkeyPatch, arguments: list[str], width: int) -> str:
    """What a terminal of that width shows."""

    class Terminal(io.TextIOWrapper):
        def isatty(self) -> bool:
            return True

    stream = io.BytesIO()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Terminal(stream, encoding="utf-8"))
        for name, value in (("COLUMNS", str(width)), ("LINES", "50"), ("TERM", "dumb")):
            patch.setenv(name, value)
        measure.command(arguments)
        sys.stdout.flush()
        return stream.getvalue().decode()


@pytest.mark.parametrize("width", [40, 80, 200])
def test_as_wide_as_the_terminal_and_never_half_a_number(
    finished: Path, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = on_a_terminal(monkeypatch, [str(finished), "--depth", "2"], width)
    assert max(map(cell_len, text.splitlines())) <= width
    record = RunFolder(finished).read_record()
    total = record.energy["fused_7nm_int8"]["test"]["energy_uj_per_image"]
    assert total is not None
    assert f" {total:.4f} " in text
    assert f" {record.parameters:,} " in text or width == 40
    # every number of the table is one that a table without limits shows
    whole = set(on_a_terminal(monkeypatch, [str(finished), "--depth", "2"], 400).split())
    table = [line for line in text.splitlines() if line.startswith(("   ", " ResNet", " fused_7nm_int8"))]
    assert len(table) == 1 + 3 + 4 * 3 + 3 + 1  # all, the stem, stages of two blocks, the head; and the hardware
    assert all(word in whole for line in table for word in line.split())
    assert "…" not in text
    assert ("not shown" in text) == (width < 200)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_output_that_fails_loses_no_file(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A full device, then no stdout at all."""
    monkeypatch.chdir(tmp_path)
    files = ["--csv", "a.csv", "--json", "a.json", "--plot", "a.png"]
    monkeypatch.setattr(sys, "argv", ["eat-measure", str(finished), *files])
    with open("/dev/full", "w") as full, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit) as end:
            measure.main()
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())  # what is left to be written can be, now
    assert end.value.code == 2
    assert re.fullmatch(r"eat-measure: error: .*No space left on device\n", capsys.readouterr().err)
    assert {path.name for path in tmp_path.iterdir()} == {"a.csv", "a.json", "a.png"}
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for name in before:
        Path(name).unlink()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        measure.main()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_file_that_cannot_be_written_keeps_no_other_from_it(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The CSV's name is as long as names can be, and there is no room for a temporary file beside it."""
    name = f"{'a' * 251}.csv"
    with pytest.raises(OSError, match="too long"):
        measure.command([*REAL, "--csv", name, "--json", "out.json"])
    assert json.loads(Path("out.json").read_text())["images"] == 2
    text = " ".join(capsys.readouterr().out.split())
    assert "could not be written: File name too long" in text
    assert "0.0072080" in text


# -- mistakes

NETWORKS = "entry_point:NAME, timm:NAME, torchvision:NAME, or the folder of a finished run"
BAD: dict[str, str] = {
    "": "the following arguments are required: NETWORK: see eat-measure --help",
    "resnet18": f"resnet18 is no network: give {NETWORKS}; for example torchvision:resnet50",
    "torchvison:resnet18": f"torchvison:resnet18 is no network: give {NETWORKS}; did you mean torchvision:resnet18?",
    "timm:": f"timm: is no network: give {NETWORKS}; did you mean timm:NAME?",
    "images": "images is no run's folder: it has no record.json; images are measured on by a network, as in "
    "torchvision:resnet50 --data images",
    "torchvision:resnet19": "resnet19 is no image classifier of torchvision: choose one such as resnet18, resnet152, "
    "resnet101",
    "torchvision:fcn_resnet50": "fcn_resnet50 is no image classifier of torchvision: choose one such as resnet50, "
    "wide_resnet50_2, resnet152",
    "entry_point:tin": "tin is no image classifier of entry_point: choose one such as tiny",
    "entry_point:odd": "no rule counts special_erfcx: --ignore-uncounted measures without their cost",
    "torchvision:alexnet --image-size 16": "alexnet cannot take 16x16 images: use --image-size 64",
    "torchvision:squeezenet1_1 --image-size 32 --weights weights.pt": "weights.pt does not fit the network: "
    "features.0.weight is missing in it; features.0.bias is missing in it; features.3.squeeze.weight is missing in it "
    "(55 differences in all)",
    "entry_point:tiny --image-size 4 --weights weights.pt": "weights.pt has 2 classes, the network 1000: set --classes "
    "to that",
    "entry_point:tiny --image-size 4 --weights nan.pt --classes 2": "conv.weight is not finite: its zeros mean "
    "nothing, and nothing is counted",
    "entry_point:tiny --weights gone.pt": "--weights gone.pt is not there: give a state dict (.safetensors, .pt, .pth) "
    "or a finished run's folder",
    "entry_point:tiny --weights evil.pt": "--weights evil.pt is no plain state dict (a file that holds code or other "
    "objects is not opened): save model.state_dict()",
    "entry_point:tiny --data gone": "gone: no such folder of images",
    "entry_point:tiny --data empty": "empty has no images: it needs files that Pillow can read, such as .png or .jpg",
    "entry_point:tiny --hardware nope": "hardware=nope is unknown: choose one of dense_7nm_int8, eyeriss_65nm, "
    "fused_45nm, fused_45nm_int8, fused_7nm, fused_7nm_int8, published, small_45nm_int8, a path that ends in .yaml",
    "entry_point:tiny --hardware published --batch-size 8": "--batch-size 8: published prices batches of 100: leave it "
    "out",
    "entry_point:tiny --hardware toy.yaml --hardware twin/toy.yaml": "--hardware: two price lists are called toy: give "
    "one of them another name",
    "entry_point:tiny --hardware published --hardware twin/fifty.yaml": "--hardware: published and fifty price counts "
    "that are made otherwise: measure for each of them alone",
    "entry_point:tiny --plot x.pdf": "--plot x.pdf: its name must end in .png or .svg",
    "entry_point:tiny --json out.csv": "--csv, --json and --plot: each needs a file of its own",
    "entry_point:tiny --json images": "images: a folder is there",
    "entry_point:tiny --batch-size 0": "argument --batch-size: 0 is no whole number between 1 and 1000000: see "
    "eat-measure --help",
    "entry_point:tiny --images 1.5": "argument --images: 1.5 is no whole number between 1 and 1000000: see eat-measure "
    "--help",
    "entry_point:tiny --images 3 --batches 2": "argument --batches: not allowed with argument --images: see "
    "eat-measure --help",
    "entry_point:tiny --seed -1": "argument --seed: -1 is no whole number between 0 and 2147483647: see eat-measure "
    "--help",
    "entry_point:tiny --bogus": "unrecognized arguments: --bogus: see eat-measure --help",
}


@pytest.mark.parametrize("line", BAD)
def test_mistakes_are_one_line(line: str, place: Path) -> None:
    torch.save(
        {"conv.weight": torch.full((2, 3, 3, 3), torch.nan), "fc.weight": torch.ones(2, 32), "fc.bias": torch.ones(2)},
        "nan.pt",
    )
    torch.save({"conv.weight": Path("code")}, "evil.pt")
    Path("empty").mkdir()
    Path("twin").mkdir()
    Path("twin/toy.yaml").write_text(HARDWARE)
    Path("twin/fifty.yaml").write_text(
        "rule: published\nname: fifty\nbatch_size: 50\nprocess_nm: 45\ndram_pj_per_value: 1\nmultiply_pj: 1\n"
    )
    with pytest.raises(UserError) as error:
        measure.command([*line.split(), "--csv", "out.csv"] if line else [])
    assert str(error.value) == BAD[line]
    assert not Path("out.csv").exists()


def test_a_folder_that_is_not_there_to_write_into(place: Path) -> None:
    with pytest.raises(UserError, match=rf"^gone/x.csv: there is no folder {place}/gone$"):
        measure.command([*TINY, "--csv", "gone/x.csv"])


def test_a_damaged_image_is_named(place: Path) -> None:
    Path("images/first/broken.jpg").write_text("no image")
    with pytest.raises(UserError) as error:
        measure.command(REAL)
    line = "images/first/broken.jpg is no readable image (UnidentifiedImageError): replace or remove it"
    assert str(error.value) == line
    Path("images/first/broken.jpg").unlink()
    Path("images/first/broken.jpg").symlink_to("gone.jpg")
    with pytest.raises(UserError, match=r"^images/first/broken.jpg is missing: "):
        measure.command(REAL)


@pytest.mark.parametrize("option", ["--weights", "--image-size", "--classes"])
def test_a_run_has_its_own(finished: Path, option: str) -> None:
    with pytest.raises(UserError, match=f"^{option}: a run has its own: leave it out"):
        measure.command([str(finished), option, "8"])


def test_what_is_not_counted_can_be_left_out_and_is_said(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measure.command(["entry_point:odd", *TINY[1:], "--ignore-uncounted"])
    assert "without the cost of special_erfcx, which no rule counts" in capsys.readouterr().out


def test_the_command_ends_with_exit_code_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "eat_runner.cli.measure", "resnet18"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert re.fullmatch(r"eat-measure: error: resnet18 is no network: .*\n", ended.stderr)
