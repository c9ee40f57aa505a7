"""timm's networks: built and checked by their names, fine-tuned from files and from what timm publishes, trained."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from eat_runner import run
from eat_runner.config import DatasetConfig, ExperimentConfig, ModelConfig, TrainerConfig
from eat_runner.errors import UserError
from eat_runner.models import build, load_weights
from eat_runner.run.load import load_run

timm: Any = pytest.importorskip("timm", reason="the extra timm is not installed")

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as everybody has them


def network(arch: str, image_size: int = 32, channels: int = 3, classes: int = 10) -> nn.Module:
    return build(ModelConfig(name="timm", arch=arch), image_size, channels, classes).module


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_a_resnet_of_one_block_a_stage_counted_by_formula():
    """resnet10t: a stem of three 3x3 convolutions to 24, 32 and 64 channels, four stages of one basic block, whose
    shortcuts average before their 1x1 convolution; two numbers a channel for each batch norm."""
    stem = 9 * (3 * 24 + 24 * 32 + 32 * 64) + 2 * (24 + 32 + 64)
    stages, a = 0, 64
    for b in (64, 128, 256, 512):
        stages += 9 * a * b + 9 * b * b + 4 * b + (a * b + 2 * b if a != b else 0)
        a = b
    assert parameters(network("resnet10t")) == stem + stages + 512 * 10 + 10


def test_weights_depend_on_the_seed_alone():
    """Whatever was built on the way, to see which image fits."""
    made: list[dict[str, torch.Tensor]] = []
    for _ in range(2):
        torch.manual_seed(1)
        made.append(network("test_resnet").state_dict())
    torch.manual_seed(1)
    made.append(timm.create_model("test_resnet", num_classes=10).state_dict())
    assert all(torch.equal(made[0][name], other[name]) for other in made for name in other)


@pytest.mark.parametrize(("arch", "size"), [("test_resnet", 48), ("test_vit", 48), ("vit_tiny_patch16_224", 32)])
def test_networks_are_built_for_the_size_of_the_images(arch: str, size: int):
    """A transformer made for 160 or 224 px has position embeddings for the patches of ours, too."""
    with torch.no_grad():
        assert network(arch, size).eval()(torch.zeros(2, 3, size, size)).shape == (2, 10)


@pytest.mark.parametrize(
    ("arch", "size", "fitting"),
    [
        ("test_vit", 40, 64),  # patches of 16 px: 40 is no multiple of it, 64 the next power of two that is
        ("inception_v3", 32, 128),  # at 64 px a kernel of 5 would see 2 pixels
        ("crossvit_tiny_240", 64, 240),  # two kinds of patches, which meet at its own size alone
    ],
)
def test_an_image_that_does_not_fit_is_refused_with_one_that_does(arch: str, size: int, fitting: int):
    message = f"model.arch={arch} cannot take {size}x{size} images: use dataset.image_size={fitting}, or a network"
    with pytest.raises(UserError, match=message) as error:
        network(arch, size)
    assert "\n" not in str(error.value)
    with torch.no_grad():
        assert network(arch, fitting).eval()(torch.zeros(1, 3, fitting, fitting)).shape == (1, 10)


def test_grey_images_are_repeated_and_said_so():
    made = build(ModelConfig(name="timm", arch="test_resnet"), 32, 1, 10)
    assert (made.channels, made.mean, made.std) == (3, None, None)
    assert made.messages == ("test_resnet takes three channels: grey images are repeated",)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ModelConfig(name="timm"), "model=timm needs a network's name: set model.arch, e.g. model.arch=resnet18"),
        (
            ModelConfig(name="timm", arch="resnet10"),
            "no image classifier of model=timm: choose one such as resnet10t, ",
        ),
        (ModelConfig(name="timm", arch="resnet50.a9_in1k"), r"choose one such as resnet50.\w+_in1k"),
        (ModelConfig(name="timm", arch="hf-hub:timm/resnet50"), "is no image classifier of model=timm"),
        (ModelConfig(name="timm", arch="test_resnet", width=16), "model.width=16 means nothing for model=timm"),
        (ModelConfig(name="timm", arch="resnet10t", pretrained=True), "of resnet10t could not be fetched .*init=PATH"),
        (ModelConfig(name="timm", arch="densenet264d", pretrained=True), "timm publishes no weights of densenet264d"),
    ],
)
def test_refusals_are_one_line(config: ModelConfig, message: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # asks nobody, and not for minutes
    with pytest.raises(UserError, match=message) as error:
        build(config, 32, 3, 10)
    assert "\n" not in str(error.value)


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    from eat_runner.models.timm import _names, _timm  # pyright: ignore[reportPrivateUsage]

    _timm.cache_clear(), _names.cache_clear()
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"^model=timm needs timm 1.0 or later: pip install 'eat-runner\[timm\]'$"):
        network("resnet10t")


def test_pretrained_brings_weights_and_normalisation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What timm publishes, read from a file in place of its hub; the head of 1000 classes stays behind."""
    published = timm.create_model("resnet10t")
    save_file(published.state_dict(), tmp_path / "model.safetensors")
    create = timm.create_model

    def from_file(arch: str, pretrained: bool = False, **keys: Any) -> nn.Module:
        overlay = {"file": str(tmp_path / "model.safetensors")}
        return create(
            arch, pretrained=pretrained, **keys, **({"pretrained_cfg_overlay": overlay} if pretrained else {})
        )

    monkeypatch.setattr(timm, "create_model", from_file)
    made = build(ModelConfig(name="timm", arch="resnet10t", pretrained=True), 32, 3, 10)
    weights, expected = made.module.state_dict(), published.state_dict()
    assert all(torch.equal(weights[name], expected[name]) for name in weights if not name.startswith("fc."))
    assert weights["fc.weight"].shape == (10, 512)
    assert (made.mean, made.std) == (MEAN, STD)
    assert made.messages == ("timm's resnet10t has 1000 classes and the data 10: the last layer (fc) starts fresh",)


def test_both_heads_of_a_distilled_transformer_start_fresh(tmp_path: Path):
    arch = "deit_tiny_distilled_patch16_224"
    torch.manual_seed(1)
    source = network(arch, 32, classes=7)
    torch.save(source.state_dict(), tmp_path / "w.pt")
    target = network(arch, 32, classes=10)
    (message,) = load_weights(target, tmp_path / "w.pt")
    assert message.endswith("has 7 classes and the data 10: the last layer (head, head_dist) starts fresh")
    state = target.state_dict()
    same = {name for name, tensor in source.state_dict().items() if torch.equal(tensor, state[name])}
    assert set(state) - same >= {"head.weight", "head_dist.weight"}
    assert same >= {"cls_token", "pos_embed", "blocks.0.attn.qkv.weight"}


def config(folder: Path, **keys: Any) -> ExperimentConfig:
    return ExperimentConfig(
        dataset=DatasetConfig(name="digits", image_size=32, train_limit=64),
        trainer=TrainerConfig(epochs=1, batch_size=32, lr=0.05, compile="off"),
        results_dir=str(folder / "results"),
        data_dir=str(folder / "data"),
        threads=1,
        device="cpu",
        **keys,
    )


def test_trained_from_scratch_then_further_from_its_weights(tmp_path: Path):
    model = ModelConfig(name="timm", arch="test_resnet")
    first = run.run(config(tmp_path, model=model))
    assert (first.status, first.reason, first.preprocessing["channels"]) == ("finished", "", 3)
    (folder,) = (path.parent for path in tmp_path.glob("results/default/*/record.json"))
    second = run.run(config(tmp_path, model=model, init=str(folder), name="further"))
    assert (second.status, second.parent and second.parent["run_id"]) == ("finished", first.run_id)
    # the second begins where the first ended, and is given back with its own weights
    loaded = [load_run(path.parent).model.state_dict() for path in sorted(tmp_path.glob("results/*/*/record.json"))]
    assert loaded[0].keys() == network("test_resnet").state_dict().keys()
    assert not torch.equal(loaded[0]["fc.weight"], loaded[1]["fc.weight"])
