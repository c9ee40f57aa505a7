"""A finished run's network for other programs: as ONNX, checked in onnxruntime; as weights with their record."""

import importlib
import json
import warnings
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrize

from eat_runner import data, models
from eat_runner.config import DatasetConfig
from eat_runner.config.identity import digest
from eat_runner.data import ImageSet
from eat_runner.energy.hardware import builtin_hardware, load_hardware
from eat_runner.environment import versions
from eat_runner.errors import UserError, printable
from eat_runner.methods.compact import COMPARED, take_out_exactly
from eat_runner.methods.quantise import SUM_BITS, WEIGHT_SCALE, fold, foldable, limits, rounded, roundings_of
from eat_runner.progress import ProgressBar
from eat_runner.records import RunFolder, RunRecord, write_atomically
from eat_runner.run.load import LoadedRun, Preprocessing, load_run

OPSET = 21  # the first with integers of 4 bits
IMAGES, LOGITS = "images", "logits"  # names in the graph
BATCH_SIZE = 100
RANDOM_IMAGES = 64
ROUNDING = 1e-4  # of the largest logit: what another order of sums may move in a network of float32 values
MAY_DIFFER = 0.01  # of the answers of a network of integers, in which a sum at a rounding's edge moves a whole step
PATHS = ("results_dir", "data_dir", "init")  # keys of a configuration that say where things lie on a machine

Takes = Literal["normalised", "float", "uint8"]
TAKES: dict[Takes, str] = {
    "normalised": "float32, (value / 255 - mean) / std of each channel",
    "float": "float32 in [0, 1]",
    "uint8": "uint8, 0 to 255",
}


@dataclass(frozen=True)
class Checked:
    """The file in onnxruntime beside the run's network in torch, on the same images.

    images: what they are. count: how many. differing: how many answers (arg max) are others, in onnxruntime without
    its optimisations for a network of integers. differing_optimised: the same as onnxruntime runs it when nobody says
    anything. largest_difference: of a logit. accuracy: of the run's network and of both others; None for random images.
    """

    images: str
    count: int
    differing: int
    differing_optimised: int
    largest_difference: float
    largest_logit: float
    integers: bool
    accuracy: tuple[float, float, float] | None

    @property
    def passed(self) -> bool:
        """Same answers, but for what rounding does."""
        if self.integers:
            return self.differing <= MAY_DIFFER * self.count
        return self.largest_difference <= ROUNDING * max(1.0, self.largest_logit)


@dataclass(frozen=True)
class Exported:
    """An ONNX file's content and what became of it. messages: for a person."""

    content: bytes
    checked: Checked
    messages: tuple[str, ...]


def onnx_of(run: RunFolder, takes: Takes, data_dir: Path | None, unchecked: bool) -> Exported:
    """The run's network as ONNX, not yet written, and how it compares with the run.

    data_dir: where the data lie, None for where the run had them. unchecked: compare on random images instead.
    Raises UserError, one line: the run cannot be loaded, its data are missing or others, the network has something that
    torch cannot export.
    """
    record = run.read_record()
    loaded = load_run(run.path)
    images, split = _random_images(loaded.preprocessing) if unchecked else _images(record, data_dir)
    model, change, messages = _compacted(loaded)
    if not roundings_of(model):
        with torch.no_grad():
            fold(model, foldable(model, loaded.preprocessing(_nchw(images.first(1), loaded.preprocessing))))
    content = _with_metadata(_exported(model, loaded.preprocessing, takes), _metadata(run, record, takes, change))
    return Exported(content, _check(content, loaded, images, split, takes), messages)


def write_weights(run: RunFolder, folder: RunFolder) -> RunRecord:
    """``model.safetensors`` and ``record.json`` into ``folder``, made if it is not there, for ``load_run`` to load: the
    run's network without the channels that change no output. The record that was written.

    Raises UserError where the run cannot be loaded, OSError where the folder cannot be written.
    """
    record = run.read_record()
    model, change, _ = _compacted(load_run(run.path))
    folder.create()
    write_atomically(folder.weights, models.safetensors_bytes(model))
    record = replace(
        record,
        changes=[*record.changes, *([change] if change else [])],
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        config={key: value for key, value in record.config.items() if key not in PATHS},
    )
    folder.write_record(record)
    return record


def _compacted(loaded: LoadedRun) -> tuple[nn.Module, dict[str, Any], tuple[str, ...]]:
    """A copy of the network without what changes no output; the record's change, empty where nothing was taken out; and
    a message where nothing could be."""
    network = deepcopy(loaded.model)
    if roundings_of(network):  # what bits made was compacted before, if at all
        return network, {}, ()
    images, _ = _random_images(loaded.preprocessing)
    x_nchw = loaded.preprocessing(_nchw(images, loaded.preprocessing)[:COMPARED])
    try:
        with torch.no_grad():
            done = take_out_exactly(network, x_nchw)
    except RuntimeError as error:
        return deepcopy(loaded.model), {}, (f"all channels stay: {printable(str(error))}",)
    change = {"method": "compact", "choice": "exact", **done}
    return network.eval(), change if done["channels"] or done["replaced"] else {}, ()


# --- images --------------------------------------------------------------------------------------------------------


def _images(record: RunRecord, data_dir: Path | None) -> tuple[ImageSet, str]:
    """The run's validation split, or its test split where none was cut."""
    known = DatasetConfig.__dataclass_fields__
    config = DatasetConfig(**{key: value for key, value in record.config["dataset"].items() if key in known})
    try:
        dataset = data.load(config, data_dir or Path(record.config.get("data_dir", "data")), download=False)
    except UserError as error:
        raise UserError(f"the images to check with: {error}; or give --data-dir, or --unchecked") from error
    if dataset.fingerprint != record.data_fingerprint:
        raise UserError(
            "the images to check with are not those of the run: give its own with --data-dir, or --unchecked"
        )
    if len(dataset.validation):
        return dataset.validation, "validation images"
    return dataset.test, "test images"


def _random_images(prepared: Preprocessing) -> tuple[ImageSet, str]:
    """Noise, always the same."""
    shape = (RANDOM_IMAGES, prepared.image_size, prepared.image_size, prepared.channels)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return ImageSet(pixels, np.full(RANDOM_IMAGES, -1)), "random images"


def _nchw(images: ImageSet, prepared: Preprocessing) -> Tensor:
    """uint8, with the channels that the network takes."""
    pixels = torch.from_numpy(np.ascontiguousarray(images.images_nhwc)).permute(0, 3, 1, 2)
    return pixels.expand(-1, prepared.channels, -1, -1)


# --- the graph -----------------------------------------------------------------------------------------------------


class _Graph(nn.Module):
    """The network with what the graph does in front of it."""

    def __init__(self, model: nn.Module, preprocessing: Preprocessing, takes: Takes):
        super().__init__()
        self.model, self.preprocessing, self.takes = model, preprocessing, takes

    def forward(self, images: Tensor) -> Tensor:
        if self.takes == "normalised":
            return self.model(images)
        return self.model(
            self.preprocessing(images) if self.takes == "uint8" else self.preprocessing.normalised(images)
        )


@torch.library.custom_op("eat_runner::quantised", mutates_args=())
def _quantised(x: Tensor, scale: Tensor, bits: int, signed: bool) -> Tensor:
    """``rounded``, as one operation of the graph."""
    return rounded(x, scale, bits, signed)


@torch.library.custom_op("eat_runner::dequantised", mutates_args=())
def _dequantised(integers: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Integers times the scale of each row, float32."""
    return integers * scale.view(-1, *[1] * (integers.dim() - 1))


@_quantised.register_fake
def _(x: Tensor, scale: Tensor, bits: int, signed: bool) -> Tensor:
    return torch.empty_like(x)


@_dequantised.register_fake
def _(integers: Tensor, scale: Tensor, bits: int) -> Tensor:
    return torch.empty_like(integers, dtype=torch.float32)


class _Stored(nn.Module):
    """A parametrisation of a weight by its integers and their scales."""

    def __init__(self, scale: Tensor, bits: int):
        super().__init__()
        self.scale, self.bits = scale, bits

    def forward(self, integers: Tensor, scale: Tensor) -> Tensor:
        return _dequantised(integers, scale, self.bits)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        steps = weight / self.scale.view(-1, *[1] * (weight.dim() - 1))
        return steps.round().to(torch.int8), self.scale


def _translations() -> dict[Any, Any]:
    """What stands in the graph for the two operations: the run's own scales, zero point 0. ONNX clips signed integers
    one step lower (-128) than the run does (-127), so that is done before."""
    onnx, op = importlib.import_module("onnx"), importlib.import_module("onnxscript").opset21
    kinds = onnx.TensorProto
    types = {(8, True): kinds.INT8, (8, False): kinds.UINT8, (4, True): kinds.INT4, (4, False): kinds.UINT4}

    def quantised(x: Any, scale: Any, bits: int, signed: bool) -> Any:
        zero = op.Constant(value=onnx.helper.make_tensor("zero_point", types[bits, bool(signed)], [], [0]))
        if signed:
            x = op.Max(x, op.Mul(scale, op.Constant(value_float=float(limits(bits, signed=True)[0]))))
        return op.DequantizeLinear(op.QuantizeLinear(x, scale, zero), scale, zero)

    def dequantised(integers: Any, scale: Any, bits: int) -> Any:
        stored = op.Cast(integers, to=kinds.INT4) if bits == 4 else integers  # taken away by _pack
        return op.DequantizeLinear(stored, scale, axis=0)

    operations = torch.ops.eat_runner
    return {operations.quantised.default: quantised, operations.dequantised.default: dequantised}


def _exported(model: nn.Module, preprocessing: Preprocessing, takes: Takes) -> Any:
    """An onnx.ModelProto, batch norms folded into the layers before them."""
    model.requires_grad_(False)
    for rounding in roundings_of(model):
        rounding.round = _quantised
    for layer in list(model.modules()):
        if hasattr(layer, WEIGHT_SCALE):
            stored = _Stored(layer.get_buffer(WEIGHT_SCALE), cast(int, layer.weight_bits))
            parametrize.register_parametrization(layer, "weight", stored, unsafe=True)
    size, kind = preprocessing.image_size, torch.uint8 if takes == "uint8" else torch.float32
    example = torch.zeros(2, preprocessing.channels, size, size, dtype=kind)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                _Graph(model, preprocessing, takes).eval(),
                (example,),
                dynamo=True,
                input_names=[IMAGES],
                output_names=[LOGITS],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                opset_version=OPSET,
                optimize=True,
                custom_translation_table=_translations(),
                verbose=False,
            )
    except Exception as error:  # whatever the network does that has no place in a graph
        cause = error.__cause__ or error
        first = (str(cause).strip().splitlines() or [""])[0]
        raise UserError(f"torch cannot export this network ({type(cause).__name__}: {printable(first)})") from error
    assert program is not None
    proto = program.model_proto
    _pack(proto.graph)
    return proto


def _pack(graph: Any) -> None:
    """Store weights of 4 bits as such: exporters fold the casts of small ones alone."""
    onnx = importlib.import_module("onnx")
    kind, stored = onnx.TensorProto.INT4, {each.name: each for each in graph.initializer}
    for node in [each for each in graph.node if each.op_type == "Cast" and each.input[0] in stored]:
        if any(each.name == "to" and each.i == kind for each in node.attribute):
            wide = stored[node.input[0]]
            values = onnx.numpy_helper.to_array(wide).flatten()
            graph.initializer.append(onnx.helper.make_tensor(node.output[0], kind, wide.dims, values))
            graph.initializer.remove(wide)
            graph.node.remove(node)


def _with_metadata(proto: Any, properties: Mapping[str, str]) -> bytes:
    onnx = importlib.import_module("onnx")
    del proto.metadata_props[:]
    onnx.helper.set_model_props(proto, dict(properties))
    for each in (*proto.graph.node, *proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        del each.metadata_props[:]  # the exporter's own: paths of its Python files
    onnx.checker.check_model(proto)
    return proto.SerializeToString()


def _metadata(run: RunFolder, record: RunRecord, takes: Takes, change: Mapping[str, Any]) -> dict[str, str]:
    """Text by name; what is more than text is JSON."""
    prepared = record.preprocessing
    hardware = record.config["hardware"]
    bits = {width for each in record.changes if each.get("method") == "bits" for width in each["weights"].values()}
    expects = {
        "layout": "NCHW",
        "values": TAKES[takes],
        "image_size": prepared["image_size"],
        "channels": prepared["channels"],
        "mean": prepared["mean"],
        "std": prepared["std"],
    }
    return {
        "classes": json.dumps(prepared["class_names"], ensure_ascii=False),
        "input": json.dumps(expects),
        "accuracy": json.dumps(record.accuracy),
        "energy_uj_per_image": json.dumps(energy_uj(record)),
        "hardware": str(hardware["name"]),
        "hardware_hash": digest(hardware),
        "weight_bits": json.dumps(sorted(bits - {SUM_BITS})),
        "compacted_at_export": json.dumps(bool(change)),
        "run_id": record.run_id,
        "weights_sha256": record.files.get(run.weights.name, ""),
        "eat_runner_version": str(versions()["eat-runner"]),
    }


def energy_uj(record: RunRecord) -> dict[str, float]:
    """Energy per test image by hardware, where it has joules, as it was priced when the run ended."""
    absolute = [name for name in builtin_hardware() if not load_hardware(name).relative]
    found = {name: record.energy.get(name, {}).get("test", {}).get("energy_uj_per_image") for name in absolute}
    return {name: energy for name, energy in found.items() if energy is not None}


# --- the check -----------------------------------------------------------------------------------------------------


def _check(content: bytes, loaded: LoadedRun, images: ImageSet, split: str, takes: Takes) -> Checked:
    integers = bool(roundings_of(loaded.model))
    sessions = [_session(content, optimised=not integers), _session(content, optimised=True)]
    found: list[list[NDArray[np.float32]]] = [[], [], []]
    with ProgressBar("check", len(images)) as bar, torch.no_grad():
        for start in range(0, len(images), BATCH_SIZE):
            some = images.take(np.arange(start, min(start + BATCH_SIZE, len(images))))
            pixels = _nchw(some, loaded.preprocessing)
            x_nchw = loaded.preprocessing(pixels)
            fed = {"normalised": x_nchw, "float": pixels.float().div(255), "uint8": pixels}[takes]
            found[0].append(loaded.model(x_nchw).numpy())
            for logits, session in zip(found[1:], sessions, strict=True):
                logits.append(session.run([LOGITS], {IMAGES: np.ascontiguousarray(fed.numpy())})[0])
            bar.update(start + len(some))
    ours, theirs, optimised = (np.concatenate(logits) for logits in found)
    answers = [logits.argmax(1) for logits in (ours, theirs, optimised)]
    accuracy = tuple(float((each == images.labels).mean()) for each in answers)
    return Checked(
        images=split,
        count=len(images),
        differing=int((answers[0] != answers[1]).sum()),
        differing_optimised=int((answers[0] != answers[2]).sum()),
        largest_difference=float(np.abs(ours - theirs).max()),
        largest_logit=float(np.abs(ours).max()),
        integers=integers,
        accuracy=cast(tuple[float, float, float], accuracy) if images.labels.min() >= 0 else None,
    )


def _session(content: bytes, optimised: bool) -> Any:
    """Without optimisations onnxruntime computes what the graph says; with them it also rounds the biases of a network
    of integers."""
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    level = runtime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimised else level.ORT_DISABLE_ALL
    return runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
