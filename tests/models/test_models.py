"""Networks against parameter counts worked out by formula, and what people get to read when one does not fit."""

import importlib.metadata
import pickle
import re
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from eat_runner.config import ModelConfig
from eat_runner.errors import UserError
from eat_runner.models import LIBRARIES, MODELS, build, load_weights

CONF = Path(__file__).parents[2] / "conf" / "model"
VGG_CONVOLUTIONS = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def network(name: str, image_size: int = 32, channels: int = 3, classes: int = 10, **keys: object) -> nn.Module:
    return build(ModelConfig(name=name, **keys), image_size, channels, classes).module  # pyright: ignore


def logits(module: nn.Module, image_size: int, channels: int) -> tuple[int, ...]:
    with torch.no_grad():
        return tuple(module.eval()(torch.zeros(2, channels, image_size, image_size)).shape)


# -- parameter counts


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet18", 11_173_962),
        ("resnet34", 21_282_122),
        ("resnet50", 23_520_842),
        ("vgg11", 9_231_114),
        ("vgg13", 9_416_010),
        ("vgg16", 14_728_266),
        ("vgg19", 20_040_522),
    ],
)
def test_known_parameter_counts_for_cifar10(name: str, count: int):
    assert parameters(network(name)) == count


def basic_resnet_count(depths: tuple[int, ...], w: int, channels: int, classes: int, stem: int = 3) -> int:
    """A block from a to b channels: 9ab + 9b² weights, 2b for each batch norm, and ab + 2b for a projection."""
    total = stem * stem * channels * w + 2 * w
    a = w
    for stage, depth in enumerate(depths):
        b = w * 2**stage
        for _ in range(depth):
            total += 9 * a * b + 9 * b * b + 4 * b + (a * b + 2 * b if a != b else 0)
            a = b
    return total + a * classes + classes


def vgg_count(depths: tuple[int, ...], w: int, channels: int, classes: int) -> int:
    """A convolution from a to b channels: 9ab + b, and 2b for its batch norm."""
    total, a = 0, channels
    for depth, b in zip(depths, (w, 2 * w, 4 * w, 8 * w, 8 * w), strict=True):
        for _ in range(depth):
            total += 9 * a * b + 3 * b
            a = b
    return total + a * classes + classes


def test_formulas_give_the_known_counts():
    assert basic_resnet_count((2, 2, 2, 2), 64, 3, 10) == 11_173_962
    assert basic_resnet_count((3, 4, 6, 3), 64, 3, 10) == 21_282_122
    assert vgg_count(VGG_CONVOLUTIONS["vgg16"], 64, 3, 10) == 14_728_266


@pytest.mark.parametrize(("width", "channels", "classes"), [(8, 1, 10), (16, 3, 43)])
def test_slim_networks_have_the_counts_of_the_formulas(width: int, channels: int, classes: int):
    module = network("resnet18", 32, channels, classes, width=width)
    assert parameters(module) == basic_resnet_count((2, 2, 2, 2), width, channels, classes)
    for name, depths in VGG_CONVOLUTIONS.items():
        module = network(name, 32, channels, classes, width=width)
        assert parameters(module) == vgg_count(depths, width, channels, classes)


def test_narrowest_network_counted_by_hand():
    # stem 9+2; stages: 2(18+4); 18+36+8+2+4, 72+8; 72+144+16+8+8, 288+16; 288+576+32+32+16, 1152+32; head 8*2+2
    stages = 44 + 68 + 80 + 248 + 304 + 944 + 1184
    assert parameters(network("resnet18", 8, 1, 2, width=1)) == 11 + stages + 18


def test_vgg16_with_the_imagenet_head_is_the_network_of_the_paper():
    """138 million parameters, and the tensors of torchvision's vgg16_bn one for one; built without memory."""
    with torch.device("meta"):
        ours = network("vgg16", 224, 3, 1000, head="imagenet")
        theirs = torchvision.models.vgg16_bn(init_weights=False)
        assert ours.eval()(torch.zeros(2, 3, 224, 224)).shape == (2, 1000)
    assert parameters(ours) == parameters(theirs) == 138_365_992
    shapes, expected = ([(name, tuple(t.shape)) for name, t in n.state_dict().items()] for n in (ours, theirs))
    assert shapes == expected


@pytest.mark.parametrize("size", [8, 32, 64])
def test_slim_imagenet_head_counted_by_formula(size: int):
    """8w channels on 7x7 pixels into two layers of 64w, each with a bias, in place of the one linear layer."""
    module = network("vgg11", size, width=2, head="imagenet")
    head = (16 * 49 * 128 + 128) + (128 * 128 + 128) + (128 * 10 + 10)
    assert parameters(module) == vgg_count(VGG_CONVOLUTIONS["vgg11"], 2, 3, 10) - (16 * 10 + 10) + head
    assert logits(module, size, 3) == (2, 10)


@pytest.mark.parametrize("name", ["resnet18", "torchvision"])
def test_a_head_for_other_networks_is_refused_in_one_line(name: str):
    with pytest.raises(UserError, match=rf"^model.head=imagenet is for our VGGs only.*model={name}$"):
        ModelConfig(name=name, head="imagenet").check()


# -- form


def test_stem_follows_the_image_size_unless_it_is_chosen():
    seven = basic_resnet_count((2, 2, 2, 2), 8, 3, 10, stem=7)
    three = basic_resnet_count((2, 2, 2, 2), 8, 3, 10, stem=3)
    assert parameters(network("resnet18", 63, width=8)) == three
    assert parameters(network("resnet18", 64, width=8)) == seven
    assert parameters(network("resnet18", 64, width=8, stem="3x3")) == three
    assert parameters(network("resnet18", 32, width=8, stem="7x7")) == seven


def pixels_before_the_average(module: nn.Module, image_size: int) -> int:
    seen: list[int] = []
    assert isinstance(module.avgpool, nn.Module)
    module.avgpool.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0].shape[-1]))
    logits(module, image_size, 3)
    return seen[0]


@pytest.mark.parametrize(("size", "stem", "pixels"), [(32, "3x3", 4), (64, "3x3", 8), (64, "7x7", 2), (8, "auto", 1)])
def test_resnet_strides(size: int, stem: str, pixels: int):
    assert pixels_before_the_average(network("resnet18", size, width=4, stem=stem), size) == pixels


@pytest.mark.parametrize(("size", "pools"), [(1, 0), (2, 1), (8, 3), (28, 4), (32, 5), (48, 5), (64, 6), (224, 7)])
def test_vgg_pools_down_to_one_pixel_and_no_further(size: int, pools: int):
    module = network("vgg11", size, width=2)
    assert sum(isinstance(layer, nn.MaxPool2d) for layer in module.modules()) == pools
    assert logits(module, size, 3) == (2, 10)


@pytest.mark.parametrize("name", [name for name in MODELS if name not in (*LIBRARIES, "entry_point")])
@pytest.mark.parametrize(("size", "channels", "classes"), [(8, 1, 10), (32, 3, 43), (64, 3, 8)])
def test_our_networks_take_any_image(name: str, size: int, channels: int, classes: int):
    module = network(name, size, channels, classes, width=4)
    assert logits(module, size, channels) == (2, classes)
    assert not any(isinstance(layer, nn.Identity) for layer in module.modules())


def test_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    first = network("resnet18", 8, width=4).state_dict()
    torch.manual_seed(1)
    second = network("resnet18", 8, width=4).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_names_of_layers_are_torchvisions():
    theirs = build(ModelConfig(name="torchvision", arch="resnet34"), 64, 3, 10).module.state_dict()
    ours = network("resnet34", 64).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


# -- refusals


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ModelConfig(name="resnet19"), "model=resnet19 is unknown: choose one of resnet18"),
        (ModelConfig(name="resnet18", arch="resnet18"), "means nothing for model=resnet18: use model=torchvision"),
        (ModelConfig(name="vgg16", pretrained=True), "is for model=torchvision or model=timm only: start vgg16"),
        (ModelConfig(name="entry_point", arch="mine", pretrained=True), "or model=timm only: start entry_point from"),
        (ModelConfig(name="vgg16", stem="7x7"), "model.stem=7x7 is for our ResNets only"),
        (ModelConfig(name="torchvision", arch="resnet18", width=16), "model.width=16 means nothing"),
        (ModelConfig(name="torchvision"), "set model.arch, e.g. model.arch=resnet18"),
        (ModelConfig(name="torchvision", arch="resnet19"), "model=torchvision: choose one such as resnet18"),
        (ModelConfig(name="torchvision", arch="fcn_resnet50"), "model.arch=fcn_resnet50 is no image classifier"),
        (ModelConfig(name="torchvision", arch="r3d_18"), "model.arch=r3d_18 is no image classifier"),
        (ModelConfig(name="entry_point", arch="mine"), "no installed package has an entry point"),
    ],
)
def test_refusals_are_one_line(config: ModelConfig, message: str):
    with pytest.raises(UserError, match=message) as error:
        build(config, 32, 3, 10)
    assert "\n" not in str(error.value)


# -- torchvision


@pytest.mark.parametrize(("arch", "fitting"), [("alexnet", 64), ("squeezenet1_1", 32), ("googlenet", 16)])
def test_images_too_small_name_a_size_and_a_network_that_fit(arch: str, fitting: int):
    config = ModelConfig(name="torchvision", arch=arch)
    with pytest.raises(UserError, match=f"cannot take 8x8 images: use dataset.image_size={fitting}, .*model=resnet18"):
        build(config, 8, 1, 10)
    assert logits(build(config, fitting, 3, 10).module, fitting, 3) == (2, 10)


def test_a_transformer_is_built_for_the_size_of_the_images():
    """Patches of 16 px: 40 is no multiple of it, 64 the next power of two that is."""
    with pytest.raises(UserError, match=r"model.arch=vit_b_16 cannot take 40x40 images: use dataset\.image_size=64, "):
        build(ModelConfig(name="torchvision", arch="vit_b_16"), 40, 3, 10)
    module = build(ModelConfig(name="torchvision", arch="vit_b_32"), 64, 3, 10).module
    assert module.state_dict()["encoder.pos_embedding"].shape == (1, 1 + 2 * 2, 768)


def test_a_network_that_computes_while_it_is_made():
    """RegNet works its widths out with tensors, which have no content where only shapes are looked at."""
    torch.manual_seed(3)
    made = build(ModelConfig(name="torchvision", arch="regnet_y_400mf"), 32, 3, 10).module
    torch.manual_seed(3)
    theirs = torchvision.models.get_model("regnet_y_400mf", weights=None, num_classes=10)
    assert not differing(made, theirs)


def test_grey_images_are_repeated_and_said_so():
    made = build(ModelConfig(name="torchvision", arch="mobilenet_v3_small"), 8, 1, 10)
    assert (made.channels, made.mean) == (3, None)
    assert made.messages == ("mobilenet_v3_small takes three channels: grey images are repeated",)
    assert build(ModelConfig(name="torchvision", arch="mobilenet_v3_small"), 8, 3, 10).messages == ()


def test_auxiliary_heads_are_off():
    module = build(ModelConfig(name="torchvision", arch="googlenet"), 32, 3, 10).module.train()
    assert module(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_pretrained_without_a_connection_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(UserError, match=r"could not be downloaded .*no route.*resnet18-f37072fd.pth") as error:
        build(ModelConfig(name="torchvision", arch="resnet18", pretrained=True), 32, 3, 10)
    assert "\n" not in str(error.value)


def plant(content: object, arch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **how: object) -> Path:
    """Put ``content`` where torchvision keeps the published weights of ``arch``."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    url = torchvision.models.get_model_weights(arch).DEFAULT.url
    file = tmp_path / "hub" / "checkpoints" / url.rpartition("/")[2]
    file.parent.mkdir(parents=True)
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file, **how)  # type: ignore[arg-type]
    return file


def test_pretrained_brings_weights_and_normalisation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    published = build(ModelConfig(name="torchvision", arch="resnet18"), 32, 3, 1000).module.state_dict()
    plant(published, "resnet18", tmp_path, monkeypatch)
    made = build(ModelConfig(name="torchvision", arch="resnet18", pretrained=True), 32, 3, 10)
    weights = made.module.state_dict()
    assert all(torch.equal(weights[name], published[name]) for name in weights if not name.startswith("fc."))
    assert weights["fc.weight"].shape == (10, 512)
    assert (made.mean, made.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert made.messages == (
        "torchvision's resnet18 has 1000 classes and the data 10: the last layer (fc) starts fresh",
    )


def dotted(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names as in the file that torchvision publishes for DenseNet."""
    for name in list(state):
        old = re.sub(r"(denselayer.*)(norm|conv)([12])", r"\1\2.\3", name)
        state[old] = state.pop(name)
    assert "features.denseblock1.denselayer1.norm.1.weight" in state
    return state


@pytest.mark.parametrize(
    ("arch", "extra", "publish", "mean"),
    [
        ("googlenet", {"init_weights": False}, lambda state: state, (0.5, 0.5, 0.5)),
        ("densenet121", {}, dotted, (0.485, 0.456, 0.406)),
        ("mnasnet0_5", {}, lambda state: state, (0.485, 0.456, 0.406)),
    ],
)
def test_pretrained_networks_with_peculiarities(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arch: str, extra: dict[str, bool], publish: Any, mean: object
):
    """Auxiliary heads, names with dots, and a network that asks for the version of its weights."""
    theirs = torchvision.models.get_model(arch, weights=None, **extra)
    expected = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    plant(publish(theirs.state_dict()), arch, tmp_path, monkeypatch)
    made = build(ModelConfig(name="torchvision", arch=arch, pretrained=True), 32, 3, 1000)
    weights = made.module.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights.items())
    assert {name for name in expected if name not in weights} == {name for name in expected if "aux" in name}
    assert (made.mean, made.messages) == (mean, ())


@pytest.mark.parametrize("disguise", ["bare", "torch", "old"])
def test_code_planted_as_pretrained_weights_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disguise: str
):
    struck = tmp_path / "struck"
    content = pickle.dumps(Evil(struck), protocol=2) if disguise == "bare" else {"conv1.weight": Evil(struck)}
    file = plant(content, "resnet18", tmp_path, monkeypatch, _use_new_zipfile_serialization=disguise == "torch")
    with pytest.raises(UserError, match=f"{file} is damaged, or not the weights that torchvision") as error:
        build(ModelConfig(name="torchvision", arch="resnet18", pretrained=True), 32, 3, 10)
    assert "\n" not in str(error.value)
    assert not struck.exists()
    if disguise == "bare":
        pickle.loads(content)  # type: ignore[arg-type]
    else:
        torch.load(file, weights_only=False)
    assert struck.exists()  # it would have run


@pytest.mark.parametrize("content", [b"", b"hello", {"conv1.weight": torch.zeros(3)}, [1, 2], {1: "x"}])
def test_damaged_pretrained_weights_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: object):
    file = plant(content, "resnet18", tmp_path, monkeypatch)
    with pytest.raises(UserError, match=f"{file} is damaged.*: delete it$"):
        build(ModelConfig(name="torchvision", arch="resnet18", pretrained=True), 32, 3, 10)


# -- entry points


class Flat(nn.Module):
    """Takes one image size only."""

    def __init__(self, image_size: int, channels: int, classes: int, takes: int) -> None:
        super().__init__()
        self.image_size = image_size
        self.fc = nn.Linear(channels * takes**2, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.flatten(1))


def any_size(image_size: int, channels: int, classes: int) -> nn.Module:
    return Flat(image_size, channels, classes, takes=image_size)


def size_16(image_size: int, channels: int, classes: int) -> nn.Module:
    return Flat(image_size, channels, classes, takes=16)


def no_network(image_size: int, channels: int, classes: int) -> int:
    return classes


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch) -> None:
    made = [
        importlib.metadata.EntryPoint(function.__name__, f"{__name__}:{function.__name__}", "eat_runner.models")
        for function in (any_size, size_16, no_network)
    ]
    monkeypatch.setattr("eat_runner.models.external.entry_points", lambda group: made)


@pytest.mark.usefixtures("offered")
def test_entry_point():
    made = build(ModelConfig(name="entry_point", arch="any_size"), 8, 1, 10)
    assert (type(made.module).__name__, made.channels) == ("Flat", 1)
    assert made.module.training


@pytest.mark.usefixtures("offered")
@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("size_16", "cannot take 8x8 images: use dataset.image_size=16"),
        ("no_network", "no_network returned int: it must return a torch.nn.Module"),
        ("any_siz", "no image classifier of model=entry_point: choose one such as any_size"),
    ],
)
def test_entry_points_that_do_not_work(arch: str, message: str):
    with pytest.raises(UserError, match=message):
        build(ModelConfig(name="entry_point", arch=arch), 8, 1, 10)


# -- weights


def slim(seed: int, classes: int = 10, width: int = 4) -> nn.Module:
    torch.manual_seed(seed)
    return network("resnet18", 8, 1, classes, width=width)


def differing(first: nn.Module, second: nn.Module) -> set[str]:
    """Names of the tensors that differ."""
    theirs = second.state_dict()
    return {name for name, tensor in first.state_dict().items() if not torch.equal(tensor, theirs[name])}


def test_weights_from_every_kind_of_file(tmp_path: Path):
    source = slim(1)
    state = source.state_dict()
    wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
    save_file(state, tmp_path / "model.safetensors")
    torch.save(state, tmp_path / "plain.pt")
    torch.save({"epoch": 3, "state_dict": wrapped}, tmp_path / "nested.pth")
    torch.save({"model": state}, tmp_path / "model.pth")
    for name in ("", "model.safetensors", "plain.pt", "nested.pth", "model.pth"):
        target = slim(2)
        assert differing(target, source)
        assert load_weights(target, tmp_path / name) == []
        assert not differing(target, source)


def test_weights_of_a_network_that_asks_for_their_version(tmp_path: Path):
    config = ModelConfig(name="torchvision", arch="mnasnet0_5")
    source, target = (build(config, 32, 3, 10).module for _ in range(2))
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    assert load_weights(target, tmp_path / "w.safetensors") == []
    assert not differing(target, source)


def test_head_for_another_number_of_classes_starts_fresh(tmp_path: Path):
    source, target = slim(1, classes=7), slim(2, classes=10)
    fresh = target.state_dict()["fc.weight"].clone()
    torch.save(source.state_dict(), tmp_path / "w.pt")
    (message,) = load_weights(target, tmp_path / "w.pt")
    assert message.endswith("has 7 classes and the data 10: the last layer (fc) starts fresh")
    assert torch.equal(target.state_dict()["fc.weight"], fresh)
    assert torch.equal(target.state_dict()["conv1.weight"], source.state_dict()["conv1.weight"])


class Evil:
    """Unpickled, it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def test_code_in_a_pickle_does_not_run(tmp_path: Path):
    struck = tmp_path / "struck"
    torch.save({"conv1.weight": Evil(struck)}, tmp_path / "evil.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Evil(struck), protocol=2))
    for name in ("evil.pt", "raw.pt"):
        with pytest.raises(UserError, match="holds code or other objects is not opened") as error:
            load_weights(slim(1), tmp_path / name)
        assert "\n" not in str(error.value)
    assert not struck.exists()


def test_files_that_are_no_weights(tmp_path: Path):
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "empty.pt").touch()
    (tmp_path / "text.safetensors").write_text("hello")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"epoch": 3}, tmp_path / "dict.pt")
    for name in ("text.pt", "empty.pt", "text.safetensors", "list.pt", "dict.pt", "missing.pt"):
        with pytest.raises(UserError, match=f"init=.*{name}") as error:
            load_weights(slim(1), tmp_path / name)
        assert "\n" not in str(error.value)


def test_another_architecture_names_the_first_tensors_that_differ(tmp_path: Path):
    target = slim(2)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    torch.save(slim(1, width=8).state_dict(), tmp_path / "wide.pt")
    with pytest.raises(UserError, match=r"conv1.weight is \(8, 1, 3, 3\) in it and \(4, 1, 3, 3\) in the network"):
        load_weights(target, tmp_path / "wide.pt")
    torch.save(network("vgg11", 8, 1, width=4).state_dict(), tmp_path / "vgg.pt")
    with pytest.raises(UserError, match=r"does not fit the network: conv1\.weight is missing in it"):
        load_weights(target, tmp_path / "vgg.pt")
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())


def test_every_model_has_a_yaml_and_back():
    assert {path.stem for path in CONF.glob("*.yaml")} == set(MODELS)
