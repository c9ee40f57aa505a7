"""eat-export: what the files hold and what other programs make of them, beside load_run; and what can be wrong."""

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from eat_runner import run
from eat_runner.cli import export
from eat_runner.config import DatasetConfig, ExperimentConfig, ModelConfig, TrainerConfig
from eat_runner.config.bits import BitsConfig
from eat_runner.config.pruning import PruningConfig
from eat_runner.energy.hardware import load_hardware
from eat_runner.errors import UserError
from eat_runner.records import RunFolder, file_hash
from eat_runner.run.load import load_run

DOC = Path(__file__).parents[2] / "docs" / "export.md"
CHANNELS = PruningConfig(name="magnitude", density=0.5, structure="channel", begin=0.0, end=0.1, every_steps=1)
CHANGES: dict[str, dict[str, Any]] = {
    "channels": {"methods": {"pruning": CHANNELS}, "lambda_": 0.0},
    "8": {"methods": {"bits": BitsConfig(name="8")}, "lambda_": 0.0},
    "4": {"methods": {"bits": BitsConfig(name="4")}, "lambda_": 0.0},
    "vgg": {"model": ModelConfig(name="vgg11", width=4)},
}
Trained = Callable[[str], RunFolder]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The folder of a run of CHANGES, trained when it is asked for first."""
    place, done = tmp_path_factory.mktemp("export"), dict[str, RunFolder]()

    def get(name: str) -> RunFolder:
        if name not in done:
            values: dict[str, Any] = {"model": ModelConfig(width=4)} | CHANGES[name]
            methods = values.pop("methods", {})
            config = ExperimentConfig(
                dataset=DatasetConfig(crop_padding=0),
                trainer=TrainerConfig(epochs=4, batch_size=32, lr=0.05, compile="off", evaluate_every=4),
                hardware=load_hardware("fused_7nm_int8"),
                results_dir=str(place / "results"),
                data_dir=str(place / "data"),
                threads=1,
                device="cpu",
                **values,
            )
            config.methods |= methods
            done[name] = RunFolder(place / "results" / "default" / run.run(config).run_id)
        return done[name]

    return get


def images_of(folder: RunFolder, count: int) -> torch.Tensor:
    prepared = load_run(folder.path).preprocessing
    shape = (count, prepared.channels, prepared.image_size, prepared.image_size)
    return torch.from_numpy(np.random.default_rng(7).integers(0, 256, shape, dtype=np.uint8))


def logits_of(folder: Path, images: torch.Tensor) -> np.ndarray:
    loaded = load_run(folder)
    with torch.no_grad():
        return loaded.model(loaded.preprocessing(images)).numpy()


# --- weights -------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_weights_with_a_card(trained: Trained, tmp_path: Path) -> None:
    source, folder = trained("channels"), RunFolder(tmp_path / "card")
    assert export.command([str(source.path), "--safetensors", str(folder.path)]) == 0
    images = images_of(source, 20)
    np.testing.assert_allclose(logits_of(folder.path, images), logits_of(source.path, images), atol=1e-4)
    first, whole = (load_run(each.path).model.get_submodule("layer4.0.conv1") for each in (folder, source))
    assert first.weight.shape[0] < whole.weight.shape[0] == 32
    assert folder.weights.stat().st_size < source.weights.stat().st_size
    assert {"data_dir", "results_dir"}.isdisjoint(folder.read_record().config)

    _, front, text = (folder.path / "README.md").read_text().split("---\n", 2)
    record = source.read_record()
    (result,) = yaml.safe_load(front)["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == record.accuracy["test"]
    assert record.run_id in text
    for name in ("fused_7nm_int8", "fused_45nm"):
        assert f"| {name} | {record.energy[name]['test']['energy_uj_per_image']:.4g} |" in text
    assert "eyeriss_65nm" not in text  # has no joules
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=folder.path, capture_output=True, text=True, check=True
    ).stdout
    assert shown == f"{[str(logits_of(source.path, torch.zeros(1, 1, 8, 8, dtype=torch.uint8)).argmax())]}\n"


# --- ONNX ----------------------------------------------------------------------------------------------------------


def exported(source: RunFolder, file: Path, *options: str) -> Any:
    onnx = pytest.importorskip("onnx")
    for name in export.NEEDED:
        pytest.importorskip(name)
    assert export.command([str(source.path), "--onnx", str(file), *options]) == 0
    return onnx.load(str(file))


def answers(file: Path, images: np.ndarray, level: str = "ORT_ENABLE_ALL") -> np.ndarray:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    return onnxruntime.InferenceSession(str(file), options).run(["logits"], {"images": images})[0]


def ops(proto: Any) -> Counter[str]:
    return Counter(node.op_type for node in proto.graph.node)


@pytest.mark.long
@pytest.mark.parametrize("name", ["channels", "vgg"])
def test_float_networks(name: str, trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, file = trained(name), tmp_path / "network.onnx"
    proto = exported(source, file)
    assert "142 validation images: 142 answers as the run's" in capsys.readouterr().out
    convolutions = {"channels": 20, "vgg": 8}[name]
    assert ops(proto)["Conv"] == convolutions
    assert "BatchNormalization" not in ops(proto)
    images = images_of(source, 13)
    found = answers(file, load_run(source.path).preprocessing(images).numpy())
    np.testing.assert_allclose(found, logits_of(source.path, images), atol=1e-4)
    if name == "channels":
        shapes = {each.name: each.dims[0] for each in proto.graph.initializer}
        assert 0 < next(n for key, n in shapes.items() if key.endswith("layer4.0.conv1.weight")) < 32

    record, metadata = source.read_record(), {each.key: each.value for each in proto.metadata_props}
    assert json.loads(metadata["classes"]) == list("0123456789")
    assert json.loads(metadata["accuracy"]) == record.accuracy
    priced = json.loads(metadata["energy_uj_per_image"])
    assert priced["fused_7nm_int8"] == record.energy["fused_7nm_int8"]["test"]["energy_uj_per_image"]
    assert metadata["run_id"] == record.run_id
    assert metadata["weights_sha256"] == file_hash(source.weights)
    assert str(Path.cwd()) not in str(proto)


@pytest.mark.long
@pytest.mark.parametrize("bits", ["8", "4"])
def test_networks_of_integers(bits: str, trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, file = trained(bits), tmp_path / "network.onnx"
    proto = exported(source, file)
    onnx = pytest.importorskip("onnx")
    said = capsys.readouterr().out
    here, own = re.findall(r"([\d.]+) %", said)[:2]
    assert abs(float(here) - float(own)) <= 1
    counted = ops(proto)
    assert (counted["Conv"], counted["Gemm"]) == (20, 1)
    # a rounding of each stored output, a DequantizeLinear more for each weight
    (change,) = source.read_record().changes
    assert counted["QuantizeLinear"] == sum(calls for _, _, calls in change["outputs"].values())
    assert counted["DequantizeLinear"] == counted["QuantizeLinear"] + 21
    stored = {each.name: each for each in proto.graph.initializer}
    read = [node.input[0] for node in proto.graph.node if node.op_type == "DequantizeLinear"]
    kinds = Counter(stored[name].data_type for name in read if name in stored and len(stored[name].dims) >= 2)
    narrow, wide = onnx.TensorProto.INT4, onnx.TensorProto.INT8
    assert kinds == ({wide: 21} if bits == "8" else {narrow: 19, wide: 2})  # the first and the last layer keep 8 bits
    images = images_of(source, 200)
    found = answers(file, load_run(source.path).preprocessing(images).numpy(), "ORT_DISABLE_ALL")
    expected = logits_of(source.path, images)
    assert (found.argmax(1) != expected.argmax(1)).mean() <= 0.01
    assert np.median(np.abs(found - expected)) < 1e-4


@pytest.mark.long
def test_the_lines_of_the_documentation(trained: Trained, tmp_path: Path) -> None:
    source = trained("vgg")
    exported(source, tmp_path / "network.onnx", "--preprocessing", "uint8")
    (code,) = re.findall(r"```python\n(.*?)```", DOC.read_text(), re.S)
    assert len(code.strip().splitlines()) <= 11  # an empty one between
    shown = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 1, 8, 8), dtype=np.uint8))
    assert shown.stdout.startswith(str([str(answer) for answer in logits_of(source.path, images).argmax(1)]))


@pytest.mark.long
def test_a_file_that_answers_otherwise_is_not_written(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in export.NEEDED:
        pytest.importorskip(name)
    from eat_runner.run import export as work

    def broken(*given: Any) -> Any:
        proto = original(*given)
        last = proto.graph.output[0].name
        node = next(node for node in proto.graph.node if last in node.output)
        node.output[0] = "before"
        proto.graph.node.append(pytest.importorskip("onnx").helper.make_node("Neg", ["before"], [last]))
        return proto

    original = work._exported
    monkeypatch.setattr(work, "_exported", broken)
    file = tmp_path / "network.onnx"
    assert export.command([str(trained("vgg").path), "--onnx", str(file), "--unchecked"]) == 1
    assert "answers otherwise" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# --- mistakes ------------------------------------------------------------------------------------------------------

BAD = {
    "": "the following arguments are required: RUN: see eat-export --help",
    "RUN": "what is to be written? give --onnx, --safetensors, or both",
    "nowhere --onnx": "nowhere is no run's folder: it has no record.json",
    "unfinished --onnx": "unfinished is interrupted: only a finished run can be exported",
    "weightless --onnx": "weightless/model.safetensors is not there: only a run with its weights can be exported",
    "RUN --onnx out.pt": "--onnx out.pt: its name must end in .onnx",
    "RUN --onnx no/out.onnx": "--onnx no/out.onnx: there is no folder {here}/no",
    "RUN --safetensors --unchecked": "--unchecked is for --onnx: leave it out, or add --onnx",
    "RUN --safetensors RUN": "--safetensors RUN: that is a run's folder, which stays as it is: name another one",
    "RUN --safetensors no/card": "--safetensors no/card: there is no folder {here}/no",
    "RUN --onnx --preprocessing jpeg": "argument --preprocessing: invalid choice: 'jpeg'",
    "RUN --safetensors=": "argument --safetensors: an empty name: see eat-export --help",
}


@pytest.fixture
def place(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("RUN", "unfinished", "weightless"):
        shutil.copytree(trained("channels").path, name)
    Path("weightless/model.safetensors").unlink()
    record = RunFolder("unfinished").read_record()
    record.status = "interrupted"
    RunFolder("unfinished").write_record(record)
    return tmp_path


@pytest.mark.parametrize("line", BAD)
def test_mistakes_are_one_line(line: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(place.rglob("*"))
    with pytest.raises(UserError) as error:
        export.command(line.split())
    said = str(error.value)
    assert said.startswith(BAD[line].format(here=place))
    assert "\n" not in said
    assert sorted(place.rglob("*")) == before


def test_without_the_extra(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "NEEDED", ("onnx_that_nobody_has",))
    with pytest.raises(UserError, match=r"^--onnx needs onnx_that_nobody_has: pip install 'eat-runner\[onnx\]'$"):
        export.command(["RUN", "--onnx"])


def test_data_that_are_not_there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = RunFolder("RUN").read_record()
    record.config["dataset"]["name"] = "cifar10"
    RunFolder("RUN").write_record(record)
    monkeypatch.setattr(export, "NEEDED", ())
    with pytest.raises(UserError, match=r"^the images to check with: .*; or give --data-dir, or --unchecked$"):
        export.command(["RUN", "--onnx", "--data-dir", "empty"])
    record.config["dataset"]["name"] = "digits"
    record.data_fingerprint = "of others"
    RunFolder("RUN").write_record(record)
    with pytest.raises(UserError, match="not those of the run"):
        export.command(["RUN", "--onnx"])
    assert not Path("RUN/model.onnx").exists()


def test_the_command_imports_no_torch_for_a_mistake() -> None:
    code = (
        "import sys; from eat_runner.cli import export\n"
        "try: export.command(['nowhere', '--onnx'])\n"
        "except ValueError: print(sorted({'torch', 'pandas', 'matplotlib', 'onnx'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
