"""CONTRIBUTING's table, done: one thing of each kind is added to a copy of the source, a file, a line and a YAML each,
and a run with all of them is made by the command line, stopped, resumed, loaded, started from, reported."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

FILES = {
    # a penalty with a knob of its own, and with the fast way in backward
    "src/eat_runner/penalties/scaled_l1.py": """
import torch


class ScaledL1:
    def __init__(self, config):
        self.scale = config.scale

    def __call__(self, x):
        return self.scale * x.abs().sum()

    def adder(self, below, above):
        def add(gradient, x, out):
            torch.add(gradient, x.sign() * torch.where(x > 0, above, below), alpha=self.scale, out=out)

        return add
""",
    "conf/penalty/scaled_l1.yaml": "defaults: [base_scaled_l1, _self_]\nname: scaled_l1\nscale: 0.1\n",
    # a method, which is a config group too: module, line, folder
    "src/eat_runner/config/freeze.py": """
from dataclasses import dataclass

from eat_runner.config.checks import between
from eat_runner.config.method import MethodConfig


@dataclass(kw_only=True, slots=True)
class FreezeConfig(MethodConfig):
    after: float = 0.5

    def check(self):
        between("freeze.after", self.after, 0.0, 1.0)
""",
    "src/eat_runner/methods/freeze.py": """
from eat_runner.methods.base import Method


class Freeze(Method):
    def on_build(self, model):
        self.bias, self.held = model.head.bias, None

    def before_step(self, progress):
        if self.held is None and progress.part >= self.config.after:
            self.held = self.bias.detach().clone()

    def after_step(self, progress):
        if self.held is not None:
            self.bias.data.copy_(self.held)

    def after_training(self, trained):
        self.bias.data.round_(decimals=2)

    def state(self):
        return {"held": self.held}

    def load_state(self, state):
        self.held = state["held"]

    def changes(self):
        return {"held": self.held is not None}
""",
    "conf/freeze/bias.yaml": "defaults: [base_freeze, _self_]\nname: bias\nafter: 0.3\n",
    # another config group: module, line, folder
    "src/eat_runner/config/clip.py": """
from dataclasses import dataclass

from eat_runner.config.checks import at_least


@dataclass(kw_only=True, slots=True)
class ClipConfig:
    limit: float = 0.0

    def check(self):
        at_least("clip.limit", self.limit, 0.0)
""",
    "conf/clip/norm.yaml": "defaults: [base_clip, _self_]\nlimit: 3\n",
    # a hardware rule
    "src/eat_runner/energy/rules/per_product.py": """
from eat_runner.energy.rules.base import EnergyReport, LayerEnergy, MarginalPrices


class PerProduct:
    reads_layers = True

    def price(self, counts, hardware):
        layers = [
            LayerEnergy(row.name, row.op, pj * row.macs_both_nonzero, pj * row.macs_valid, 1.0)
            for row in counts.layers
            for pj in [hardware.product_pj / row.images]
        ]
        energy, dense = sum(layer.energy_pj for layer in layers), sum(layer.dense_pj for layer in layers)
        return EnergyReport(hardware.name, energy / dense, None, energy / 1e6, dense / 1e6, layers)

    def marginal_pj(self, counts, hardware):
        return MarginalPrices({}, {})
""",
    "conf/hardware/per_product.yaml": "defaults: [base_per_product, _self_]\nname: per_product\nrule: per_product\n"
    "product_pj: 2.0\nsource: {product_pj: a test}\n",
    # a logger
    "src/eat_runner/loggers/journal.py": """
from eat_runner.loggers.base import Logger


class Journal(Logger):
    def __init__(self, config, about):
        super().__init__(config, about)
        self.file = (about.folder.path / "journal.txt").open("a")
        self.write(f"begin {about.steps_done}")

    def log(self, row):
        self.write(f"epoch {row.epoch} {row.validation_accuracy:.3f}")

    def close(self, record=None):
        self.write(f"end {record.status if record else 'stopped'}")
        self.file.close()

    def write(self, line):
        print(line, file=self.file, flush=True)
""",
    "conf/loggers/journal.yaml": "journal: {}\n",
    # a model
    "src/eat_runner/models/tiny.py": """
from torch import nn

from eat_runner.models.network import Network


class Tiny(nn.Module):
    def __init__(self, width, channels, classes):
        super().__init__()
        self.conv, self.relu = nn.Conv2d(channels, width, 3, stride=2), nn.ReLU()
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(width, classes)

    def forward(self, x):
        return self.head(self.pool(self.relu(self.conv(x))).flatten(1))


def build_tiny(config, image_size, channels, classes):
    return Network(Tiny(config.width, channels, classes), channels)
""",
    "conf/model/tiny.yaml": "defaults: [base_model, _self_]\nname: tiny\nwidth: 4\n",
    # a package of networks
    "src/eat_runner/models/shelf.py": """
from eat_runner.models.external import Library, Preset
from eat_runner.models.tiny import Tiny

SHELF = Library(
    names=lambda: ["narrow", "wide"],
    create=lambda arch, classes, image_size: Tiny({"narrow": 2, "wide": 4}[arch], 3, classes),
    trained=lambda arch, image_size: Tiny({"narrow": 2, "wide": 4}[arch], 3, 7),
    preset=lambda arch: Preset(12, (0.5,) * 3, (0.5,) * 3),
)
""",
    "conf/model/shelf.yaml": "defaults: [base_model, _self_]\nname: shelf\narch: narrow\n",
    # a data set
    "src/eat_runner/data/stripes.py": """
import numpy as np

from eat_runner.data.images import ImageSet
from eat_runner.data.sources import TEST, TRAIN, Arrays


def read():
    draw = np.random.default_rng(0)
    images = draw.integers(0, 60, (600, 8, 8, 1), dtype=np.uint8)
    labels = np.arange(600) % 2
    images[labels == 0, ::2] += 150
    images[labels == 1, :, ::2] += 150
    whole = ImageSet(images, labels)
    return {TRAIN: whole.take(np.arange(500)), TEST: whole.take(np.arange(500, 600))}


def stripes(data_dir, download):
    return Arrays(read, ("rows", "columns"), 1, lambda: "1")
""",
    "conf/dataset/stripes.yaml": "defaults: [base_dataset, _self_]\nname: stripes\nimage_size: 8\n",
    # a schedule
    "conf/schedule/late.yaml": "defaults: [base_schedule, _self_]\nname: late\n",
}
# (file, the line after which, or before which where it begins with ^, what)
LINES = [
    (
        "config/penalty.py",
        "^# a penalty without knobs",
        "@dataclass(kw_only=True, slots=True)\nclass ScaledL1Config(PenaltyConfig):\n"
        '    name: str = "scaled_l1"\n    scale: float = 1.0\n',
    ),
    ("config/penalty.py", "SCHEMAS: ", '    "scaled_l1": ScaledL1Config,'),
    ("penalties/__init__.py", "from eat_runner.penalties.none", "from eat_runner.penalties.scaled_l1 import ScaledL1"),
    ("penalties/__init__.py", "PENALTIES: ", '    "scaled_l1": ScaledL1,'),
    ("config/groups.py", "from eat_runner.config.method ", "from eat_runner.config.freeze import FreezeConfig"),
    ("config/groups.py", "from eat_runner.config.dataset", "from eat_runner.config.clip import ClipConfig"),
    ("config/groups.py", "GROUPS: ", '    "clip": Group(schemas={"clip": ClipConfig}, about="limits", later=True),'),
    (
        "config/groups.py",
        "GROUPS: ",
        '    "freeze": Group(schemas={"freeze": FreezeConfig}, about="biases that stay", method=True),',
    ),
    ("methods/__init__.py", "from eat_runner.methods.base", "from eat_runner.methods.freeze import Freeze"),
    ("methods/__init__.py", "METHODS: ", '    "freeze": Freeze,'),
    (
        "config/hardware.py",
        "^SCHEMAS: ",
        "@dataclass(kw_only=True, slots=True)\nclass PerProductHardware:\n"
        '    name: str = "per_product"\n    rule: str = "per_product"\n    process_nm: int = 1\n'
        "    product_pj: float = 1.0\n    batch_size: int | None = None\n    threshold: float = 2.0**-126\n"
        '    relative: bool = False\n    note: str = ""\n'
        "    skips_zeros: bool = True\n    source: dict[str, str] = field(default_factory=dict)\n"
        "    ranges: dict[str, Any] = field(default_factory=dict)\n\n    def check(self):\n        pass\n\n"
        "    def check_bits(self, bits):\n        pass\n",
    ),
    ("config/hardware.py", "SCHEMAS: ", '    "per_product": PerProductHardware,'),
    (
        "energy/rules/__init__.py",
        "from eat_runner.energy.rules.published",
        "from eat_runner.energy.rules.per_product import PerProduct",
    ),
    ("energy/rules/__init__.py", "RULES: ", '    "per_product": PerProduct(),'),
    ("loggers/__init__.py", "from eat_runner.loggers.csv", "from eat_runner.loggers.journal import Journal"),
    ("loggers/__init__.py", "LOGGERS: ", '    "journal": Journal,'),
    ("models/__init__.py", "from eat_runner.models.resnet", "from eat_runner.models.tiny import build_tiny"),
    ("models/__init__.py", "MODELS: ", '    "tiny": build_tiny,'),
    ("models/__init__.py", "from eat_runner.models.resnet", "from eat_runner.models.shelf import SHELF"),
    ("models/__init__.py", "LIBRARIES: ", '    "shelf": SHELF,'),
    ("data/__init__.py", "from eat_runner.data.store", "from eat_runner.data.stripes import stripes"),
    ("data/__init__.py", "DATASETS: ", '    "stripes": Source(stripes),'),
    (
        "train/schedules.py",
        "Schedule = ",
        "\n\ndef late(config, step, steps_per_epoch, epochs):\n    return float(2 * step >= steps_per_epoch)\n",
    ),
    ("train/schedules.py", "SCHEDULES: ", '    "late": late,'),
]
ARGUMENTS = (
    "dataset=stripes model=tiny penalty=scaled_l1 penalty.scale=0.3 schedule=late lambda=0.5 freeze=bias "
    "hardware=per_product loggers=[csv,progress,journal] trainer.batch_size=25 trainer.epochs=40 trainer.compile=off "
    "meter.batch_size=50 threads=1 device=cpu"
).split()


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the source with one more of each."""
    root = tmp_path_factory.mktemp("tree")
    for part in ("src", "conf"):
        shutil.copytree(ROOT / part, root / part, ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in FILES.items():
        path = root / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text.lstrip())
    for name, after, what in LINES:
        path = root / "src/eat_runner" / name
        lines = path.read_text().splitlines()
        [at] = [i for i, line in enumerate(lines) if line.startswith(after.removeprefix("^"))]
        lines.insert(at + (not after.startswith("^")), what)
        path.write_text("\n".join(lines) + "\n")
    return root


def start(tree, folder, *arguments, module="eat_runner.cli.run"):
    environment = os.environ | {"PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def done(tree, folder, *arguments, module="eat_runner.cli.run"):
    process = start(tree, folder, *arguments, module=module)
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out


@pytest.mark.long
def test_one_of_each_is_a_file_a_line_and_a_yaml(tree, tmp_path):
    shown = done(tree, tmp_path, "--help")
    for name in (
        "scaled_l1",
        "freeze      biases that stay: bias, none",
        "per_product",
        "journal",
        "tiny",
        "stripes",
        "late",
    ):
        assert name in shown

    done(tree, tmp_path, *ARGUMENTS, "name=whole")
    [whole] = (tmp_path / "results/whole").glob("stripes-tiny-scaled_l1-freeze_bias-lambda0.5-seed0-*")
    # the same run, stopped after its first epochs, and continued by the same command
    process = start(tree, tmp_path, *ARGUMENTS, "name=again")
    history = tmp_path / "results/again" / whole.name / "history.csv"
    while process.poll() is None and not history.exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 75
    rows = len(history.read_text().splitlines()) - 1
    assert 0 < rows < 40
    table = done(tree, tmp_path, *ARGUMENTS, "name=again")
    assert "hardware per_product" in table

    again = history.parent
    for name in ("model.safetensors", "layers.csv", "batches.csv", "predictions.csv.gz"):
        assert (whole / name).read_bytes() == (again / name).read_bytes()
    assert len(history.read_text().splitlines()) == 41
    journal = (again / "journal.txt").read_text().splitlines()
    assert journal[0] == "begin 0"
    assert "end stopped" in journal
    assert [line.split()[1] for line in journal if line.startswith("epoch")] == [str(n) for n in range(1, 41)]
    assert journal[-1] == "end finished"

    code = (
        "import sys, json, torch, eat_runner; from eat_runner.records import RunFolder\n"
        "run, record = eat_runner.load_run(sys.argv[1]), RunFolder(sys.argv[1]).read_record()\n"
        "energy = record.energy['per_product']['test']\n"
        "bias = run.model.head.bias.detach()\n"
        "print(json.dumps([record.changes, torch.equal(bias, bias.round(decimals=2)), record.accuracy['test'],\n"
        "                  energy['ratio'], record.determinants['penalty'], record.determinants['freeze']]))\n"
    )
    program = tmp_path / "look.py"
    program.write_text(code)
    environment = os.environ | {"PYTHONPATH": str(tree / "src")}
    looked = subprocess.run([sys.executable, program, again], env=environment, capture_output=True, text=True)
    assert looked.returncode == 0, looked.stderr
    changes, rounded, accuracy, ratio, penalty, freeze = json.loads(looked.stdout)
    assert changes == [{"method": "freeze", "choice": "bias", "held": True}]
    assert rounded
    assert accuracy > 0.9
    assert 0 < ratio < 1
    assert penalty == {"name": "scaled_l1", "scale": 0.3}
    assert freeze == {"name": "bias", "after": 0.3}

    done(tree, tmp_path, f"init={again}", *ARGUMENTS, "trainer.epochs=0", "name=child")
    report = done(tree, tmp_path, "results/again", "--hardware", "per_product", module="eat_runner.cli.report")
    assert "hardware per_product (1 nm)" in report


@pytest.mark.long
def test_a_package_of_networks_is_trained_and_measured(tree, tmp_path):
    arguments = "dataset=stripes model=shelf trainer.epochs=1 trainer.compile=off threads=1 device=cpu".split()
    done(tree, tmp_path, *arguments, "model.pretrained=true")
    measured = done(tree, tmp_path, "shelf:wide", "--hardware", "per_product", module="eat_runner.cli.measure")
    assert "images of 3x12x12" in measured
    # 4 channels of 3 x 3 x 3 weights at 5 x 5 positions, then 4 weights for each of 1000 classes, at 2 pJ
    assert f"{2 * (4 * 27 * 25 + 4000) / 1e6:.6f} uJ" in measured


def test_a_method_alone_has_lambda_zero(tree, tmp_path):
    alone = [a for a in ARGUMENTS if not a.startswith(("lambda", "penalty", "schedule"))]
    shown = done(tree, tmp_path, *alone, "plan=true")
    assert "stripes-tiny-none-freeze_bias-lambda0-seed0-" in shown


@pytest.mark.long
def test_another_group_is_in_the_configuration_and_in_the_identity_where_it_says_something(tree, tmp_path):
    def identity(*arguments):
        return done(tree, tmp_path, *ARGUMENTS, *arguments, "plan=true").split()[0]

    assert "  clip        limits: default, norm" in done(tree, tmp_path, "--help")
    assert identity() == identity("clip=default") == identity("clip.limit=0")
    assert len({identity(), identity("clip=norm"), identity("clip=norm", "clip.limit=2")}) == 3
    refused = start(tree, tmp_path, *ARGUMENTS, "clip=norm", "clip.limit=-1")
    assert refused.communicate()[1] == (
        "eat-run: error: clip.limit=-1 is out of range: it must be a finite number >= 0\n"
    )
    assert refused.returncode == 2
