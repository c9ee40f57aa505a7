"""Run folders as eat-run writes them, made from formulas instead of training: for tests and for scale benchmarks.

``python tests/run_folders.py FOLDER RUNS`` writes that many.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from eat_runner.config.dataset import DatasetConfig
from eat_runner.config.identity import FRESH, Start, as_plain, baseline_id, determinants, run_id
from eat_runner.config.model import ModelConfig
from eat_runner.config.root import ExperimentConfig
from eat_runner.config.trainer import MeterConfig
from eat_runner.energy.counts import FLOOR_BATCH, BatchCounts, Counts, Kind, LayerCounts
from eat_runner.records import RunFolder, RunRecord

IMAGES = {"validation": 200, "test": 400}
BATCH = 100
WIDTH = 16
FINGERPRINT = "f" * 16


def config(
    lambda_: float = 1.0,
    seed: int = 0,
    dataset: str = "digits",
    model: str = "resnet18",
    width: int = WIDTH,
    **changes: Any,
) -> ExperimentConfig:
    values = {"lambda_": lambda_, "seed": seed, "meter": MeterConfig(batch_size=BATCH)} | changes
    return ExperimentConfig(dataset=DatasetConfig(name=dataset), model=ModelConfig(name=model, width=width), **values)


def firing(lambda_: float, seed: int) -> float:
    """Share of activation outputs that are not zero: falls with lambda, differs a little between seeds."""
    return 0.55 / (1 + 0.9 * lambda_) + 0.004 * (seed % 5)


def accuracy(lambda_: float, seed: int, split: str, width: int = WIDTH, density: float | None = None) -> float:
    """Falls slowly, then fast, with lambda, and where there are fewer weights."""
    spread = 0.0035 * (seed * 7 % 5 - 2)
    lost = 0.004 * lambda_**1.7 + 0.004 * max(WIDTH / width - 1, 0) + 0.0004 * (1 / (density or 1) - 1)
    return {"train": 0.985, "validation": 0.958, "test": 0.951}[split] - lost + spread


def counts(
    lambda_: float,
    seed: int,
    blocks: int = 8,
    splits: Sequence[str] = ("validation", "test"),
    width: int = WIDTH,
    density: float | None = None,
) -> Counts:
    """A chain of convolution, batch norm and ReLU blocks, flatten and a linear layer, at the firing rate of lambda.
    density: of the convolutions' weights."""
    layers = [row for split in splits for row in _layers(split, firing(lambda_, seed), blocks, width, density or 1)]
    batches = [row for split in splits for row in _batches(split, layers)]
    return Counts(layers=layers, batches=batches, batch_size=BATCH)


def _layers(split: str, rate: float, blocks: int, channels: int, density: float) -> list[LayerCounts]:
    images, pixels = IMAGES[split], 64
    elements = images * channels * pixels
    rows: list[LayerCounts] = []
    nonzeros = elements
    for block in range(blocks):
        block_rate = rate * (1 - 0.6 * block / blocks)
        fired = int(elements * block_rate)
        call, name = 3 * block, f"layer{block // 4 + 1}.{block % 4}"
        macs = elements * channels * 9
        shared = {"split": split, "images": images, "input_elements": elements, "output_elements": elements}
        rows += [
            LayerCounts(
                **shared,
                call=call,
                name=f"{name}.conv",
                op="Conv2d",
                kind=Kind.CONV,
                producers=(call - 1,),
                consumers=(call + 1,),
                input_nonzeros=nonzeros,
                output_nonzeros=elements - block,
                weight_elements=channels * channels * 9,
                weight_nonzeros=int(channels * channels * 9 * density),
                kernel_area=9,
                stride=1,
                groups=1,
                computations=macs,
                macs_nominal=macs,
                macs_valid=macs * 9 // 10,
                macs_input_nonzero=macs * 9 // 10 * nonzeros // elements,
                macs_both_nonzero=int(macs * 9 // 10 * nonzeros // elements * density),
            ),
            LayerCounts(
                **shared,
                call=call + 1,
                name=f"{name}.bn",
                op="BatchNorm2d",
                kind=Kind.BATCH_NORM,
                producers=(call,),
                consumers=(call + 2,),
                input_nonzeros=elements - block,
                output_nonzeros=elements,
                weight_elements=channels,
                weight_nonzeros=channels,
                bias_elements=channels,
                bias_nonzeros=channels,
                statistics_elements=2 * channels,
                statistics_nonzeros=2 * channels,
                buffer_elements=1,
                buffer_nonzeros=1,
                computations=4 * elements,
            ),
            LayerCounts(
                **shared,
                call=call + 2,
                name=f"{name}.relu",
                op="ReLU",
                kind=Kind.RELU,
                producers=(call + 1,),
                consumers=(call + 3,),
                inplace=True,
                activation=True,
                input_nonzeros=elements,
                output_nonzeros=fired,
            ),
        ]
        nonzeros = fired
    last, features = 3 * blocks, channels * pixels
    rows.append(
        LayerCounts(
            split=split,
            call=last,
            name="fc",
            op="Linear",
            kind=Kind.LINEAR,
            producers=(last - 1,),
            images=images,
            input_elements=elements,
            input_nonzeros=nonzeros,
            output_elements=10 * images,
            output_nonzeros=10 * images,
            weight_elements=10 * features,
            weight_nonzeros=10 * features,
            bias_elements=10,
            bias_nonzeros=10,
            computations=10 * elements,
            macs_nominal=10 * elements,
            macs_valid=10 * elements,
            macs_input_nonzero=10 * nonzeros,
            macs_both_nonzero=10 * nonzeros,
        )
    )
    return rows


def _batches(split: str, layers: Sequence[LayerCounts]) -> list[BatchCounts]:
    rows = [row for row in layers if row.split == split]
    parts = IMAGES[split] // BATCH
    as_built = [row.output_nonzeros if row.inplace else row.input_nonzeros for row in rows]
    whole = BatchCounts(
        split=split,
        batch=0,
        images=BATCH,
        input_elements=sum(row.input_elements for row in rows) // parts,
        input_nonzeros=sum(row.input_nonzeros for row in rows) // parts,
        input_nonzeros_as_built=sum(as_built) // parts,
        input_nonzeros_all=sum(as_built) // parts,
        output_elements=sum(row.output_elements for row in rows) // parts,
        output_nonzeros=sum(row.output_nonzeros for row in rows) // parts,
        parameter_elements=sum(row.parameter_elements for row in rows),
        parameter_nonzeros=sum(row.parameter_nonzeros for row in rows),
        statistics_elements=sum(row.statistics_elements for row in rows),
        statistics_nonzeros=sum(row.statistics_nonzeros for row in rows),
        computations=sum(row.computations for row in rows) // parts,
    )
    dense_inputs = sum(row.input_nonzeros for row in rows if row.op == "BatchNorm2d") // parts
    dense_outputs = sum(row.output_nonzeros for row in rows if not row.activation) // parts
    floor = replace(
        whole,
        batch=FLOOR_BATCH,
        input_nonzeros=dense_inputs,
        input_nonzeros_as_built=dense_inputs,
        input_nonzeros_all=dense_inputs,
        output_nonzeros=dense_outputs,
    )
    return [*(replace(whole, batch=number) for number in range(parts)), floor]


def answers(share: float, split: str) -> tuple[list[int], list[int]]:
    """Labels and predicted classes, of which about that share is right: the wrong ones are those of a split's end."""
    labels = [image % 10 for image in range(IMAGES[split])]
    right = round(share * len(labels))
    return labels, [label if image < right else (label + 1) % 10 for image, label in enumerate(labels)]


def write_run(
    parent: Path,
    chosen: ExperimentConfig,
    *,
    blocks: int = 8,
    predictions: bool = False,
    start: Start = FRESH,
    **record: Any,
) -> RunFolder:
    """A finished run of ``chosen`` below ``parent``; keywords change its record. Its folder's name is the run id.
    predictions: keeps its answers, as earlier versions did not. start: what its network began with."""
    chosen = chosen.canonical()
    identity = run_id(chosen, FINGERPRINT, start)
    folder = RunFolder(parent / identity)
    folder.create()
    folder.write_config(as_plain(chosen))
    values: dict[str, Any] = {
        "run_id": identity,
        "status": "finished",
        "config": as_plain(chosen),
        "baseline_id": baseline_id(chosen, FINGERPRINT, start),
        "determinants": determinants(chosen, FINGERPRINT, start),
        "data_fingerprint": FINGERPRINT,
        "meter": {"batch": chosen.meter.batch_size, "threshold": chosen.meter.threshold},
    } | record
    if values["status"] == "finished":
        splits = [split for split in IMAGES if split == "test" or chosen.dataset.validation > 0]
        pruning = chosen.methods["pruning"]
        built = {
            "width": chosen.model.width,
            "density": getattr(pruning, "density", None) if pruning.is_chosen else None,
        }
        measured = counts(chosen.lambda_, chosen.seed, blocks, splits, **built)
        folder.write_counts(measured)
        if predictions:
            folder.write_predictions(
                {split: answers(accuracy(chosen.lambda_, chosen.seed, split, **built), split) for split in splits}
            )
        values = {
            "accuracy": {
                split: accuracy(chosen.lambda_, chosen.seed, split, **built) if split in {"train", *splits} else None
                for split in ("train", "validation", "test")
            },
            "firing_rate": measured.select("validation").firing_rate if "validation" in splits else None,
            "firing_rate_test": measured.select("test").firing_rate,
            "timings": {"training_s": 12.5},
            "epochs_done": chosen.trainer.epochs,
            "parameters": 176_000,
        } | values
    folder.write_record(RunRecord(**values))
    return folder


def write_sweep(
    parent: Path, lambdas: Sequence[float] = (0, 0.5, 1, 2, 4), seeds: Sequence[int] = (0, 1), **chosen: Any
) -> list[RunFolder]:
    """A grid of finished runs."""
    return [write_run(parent, config(lambda_, seed, **chosen)) for lambda_ in lambdas for seed in seeds]


def write_many(parent: Path, runs: int, blocks: int = 20) -> None:
    """``runs`` finished runs: 5 seeds, 4 families, as many lambdas as it takes; ``blocks`` 20 is about a ResNet18."""
    families = [(d, m) for d in ("digits", "cifar10") for m in ("resnet18", "vgg16")]
    for number in range(runs):
        dataset, model = families[number % 4]
        rest = number // 4
        write_run(parent, config(0.01 * (rest // 5), rest % 5, dataset, model), blocks=blocks)


if __name__ == "__main__":
    os.fsync = lambda fd: None  # nothing here must survive a power cut
    write_many(Path(sys.argv[1]), int(sys.argv[2]))
