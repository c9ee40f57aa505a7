"""Every image classifier of torchvision, and one of every architecture file of timm, with random weights: dense
products equal to torch's own counter's, two operations each."""

import importlib
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from eat_runner.config import MeterConfig
from eat_runner.energy.estimate import estimate
from eat_runner.energy.hardware import load_hardware
from eat_runner.energy.meter import measure
from eat_runner.errors import UserError

pytestmark = pytest.mark.long
TOO_LARGE = {"vit_h_14", "vit_l_16", "vit_l_32", "regnet_y_128gf"}  # those of their kind that are small are there
SIZES = {"inception_v3": 75} | {
    name: 224 for name in torchvision.models.list_models() if name.startswith(("vit", "max"))
}
NAMES = [name for name in torchvision.models.list_models(module=torchvision.models) if name not in TOO_LARGE]


def check(model: nn.Module, size: int) -> None:
    model = model.eval().requires_grad_(False)
    x = torch.randn(1, 3, size, size)
    counts = measure(model, [x], MeterConfig(batch_size=1), floor=False)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(x)
    assert 2 * sum(row.macs_dense for row in counts.layers) == counter.get_total_flops()
    for row in counts.layers:
        assert row.macs_both_nonzero <= row.macs_input_nonzero <= row.macs_valid <= row.macs_dense
    report = estimate(counts, load_hardware("fused_7nm_int8"))
    assert report.energy_uj_per_image is not None
    assert 0 < report.energy_uj_per_image < 1.2 * (report.dense_uj_per_image or 0.0)


@pytest.fixture(autouse=True)
def plainly() -> Any:
    """torch counts nothing of what its fast path for attention does."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    torch.manual_seed(0)
    yield
    torch.backends.mha.set_fastpath_enabled(enabled)


@pytest.mark.parametrize("name", NAMES)
def test_torchvision(name: str) -> None:
    extra = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    check(torchvision.models.get_model(name, weights=None, **extra), SIZES.get(name, 64))


# architecture file -> a small network of it; where that is large, with one block a stage
TIMM: dict[str, tuple[str, int, dict[str, Any]]] = {
    "beit": ("beit_base_patch16_224", 224, {"depth": 1}),
    "byoanet": ("eca_botnext26ts_256", 256, {}),
    "byobnet": ("test_byobnet", 64, {}),
    "cait": ("cait_xxs24_224", 224, {}),
    "coat": ("coat_tiny", 224, {}),
    "convit": ("convit_tiny", 224, {}),
    "convmixer": ("convmixer_768_32", 64, {}),
    "convnext": ("test_convnext", 64, {}),
    "cpubone": ("cpubone_nano", 64, {}),
    "crossvit": ("crossvit_tiny_240", 240, {}),
    "csatv2": ("csatv2", 64, {}),
    "cspnet": ("cs3darknet_focus_s", 64, {}),
    "cspnext": ("cspnext_tiny", 64, {}),
    "davit": ("davit_tiny", 64, {}),
    "deepseek_vit": ("deepseek_vit_412m", 546, {"depth": 1}),
    "deit": ("deit_tiny_patch16_224", 224, {}),
    "densenet": ("densenet121", 64, {}),
    "dla": ("dla34", 64, {}),
    "dpn": ("dpn48b", 64, {}),
    "edgenext": ("edgenext_xx_small", 64, {}),
    "efficientformer": ("efficientformer_l1", 224, {}),
    "efficientformer_v2": ("efficientformerv2_s0", 224, {}),
    "efficientnet": ("test_efficientnet", 64, {}),
    "efficientvim": ("efficientvim_m1", 64, {}),
    "efficientvit_mit": ("efficientvit_b0", 64, {}),
    "efficientvit_msra": ("efficientvit_m0", 224, {}),
    "eva": ("vit_tiny_patch16_dinov3_qkvb", 256, {}),
    "fasternet": ("fasternet_t0", 64, {}),
    "fastvit": ("fastvit_t8", 64, {}),
    "focalnet": ("focalnet_tiny_srf", 64, {}),
    "gcvit": ("gcvit_xxtiny", 224, {}),
    "gemma4_vit": ("gemma4_vit_167m_enc", 240, {}),
    "ghostnet": ("ghostnet_050", 64, {}),
    "hardcorenas": ("hardcorenas_b", 64, {}),
    "hgnet": ("hgnetv2_b0", 64, {}),
    "hiera": ("hiera_tiny_224", 224, {}),
    "hieradet_sam2": ("sam2_hiera_tiny", 64, {}),
    "hrnet": ("hrnet_w18_small", 64, {}),
    "iformer": ("iformer_t", 64, {}),
    "inception_next": ("inception_next_atto", 64, {}),
    "inception_resnet_v2": ("inception_resnet_v2", 96, {}),
    "inception_v3": ("inception_v3", 96, {}),
    "inception_v4": ("inception_v4", 96, {}),
    "lcnetv2": ("lcnetv2_small", 64, {}),
    "levit": ("levit_256", 224, {}),
    "lowformer": ("lowformer_b0", 64, {}),
    "mambaout": ("test_mambaout", 64, {}),
    "maxxvit": ("test_coatnet", 160, {}),
    "metaformer": ("poolformer_s12", 64, {}),
    "mlp_mixer": ("gmlp_ti16_224", 224, {}),
    "mobilenetv3": ("mobilenetv3_small_050", 64, {}),
    "mobilenetv5": ("mobilenetv5_base", 64, {}),
    "mobilevit": ("mobilevit_xxs", 64, {}),
    "mvitv2": ("mvitv2_tiny", 224, {}),
    "naflexvit": ("naflexvit_base_patch16_siglip", 384, {}),
    "nasnet": ("nasnetalarge", 64, {}),
    "nest": ("nest_tiny", 224, {}),
    "nextvit": ("nextvit_small", 64, {}),
    "nfnet": ("test_nfnet", 64, {}),
    "pit": ("pit_ti_224", 224, {}),
    "pnasnet": ("pnasnet5large", 64, {}),
    "pvt_v2": ("pvt_v2_b0", 64, {}),
    "qwen3_vit": ("qwen3_vit_88m", 64, {"depth": 1}),
    "rdnet": ("rdnet_tiny", 64, {}),
    "regnet": ("regnetx_004_tv", 64, {}),
    "repghost": ("repghostnet_050", 64, {}),
    "repvit": ("repvit_m1", 64, {}),
    "res2net": ("res2net50_26w_4s", 64, {}),
    "resnest": ("resnest14d", 64, {}),
    "resnet": ("test_resnet", 64, {}),
    "resnetv2": ("resnetv2_18", 64, {}),
    "rexnet": ("rexnet_100", 64, {}),
    "selecsls": ("selecsls42", 64, {}),
    "senet": ("legacy_seresnet18", 64, {}),
    "sequencer": ("sequencer2d_s", 224, {}),
    "shvit": ("shvit_s1", 64, {}),
    "sknet": ("skresnet18", 64, {}),
    "starnet": ("starnet_s050", 64, {}),
    "swiftformer": ("swiftformer_xs", 224, {}),
    "swin_transformer": ("swin_tiny_patch4_window7_224", 224, {}),
    "swin_transformer_v2": ("swinv2_tiny_window8_256", 256, {}),
    "swin_transformer_v2_cr": ("swinv2_cr_tiny_224", 224, {}),
    "tiny_vit": ("tiny_vit_5m_224", 64, {}),
    "tnt": ("tnt_s_legacy_patch16_224", 224, {}),
    "tresnet": ("tresnet_m", 64, {}),
    "twins": ("twins_svt_small", 224, {}),
    "vgg": ("vgg11", 64, {}),
    "visformer": ("visformer_tiny", 224, {}),
    "vision_transformer": ("test_vit", 160, {}),
    "vision_transformer_hybrid": ("vit_tiny_r_s16_p8_224", 224, {}),
    "vision_transformer_relpos": ("test_vit_relpos", 160, {}),
    "vision_transformer_sam": ("samvit_base_patch16_224", 224, {"depth": 1}),
    "vitamin": ("vitamin_small_224", 224, {}),
    "volo": ("volo_d1_224", 224, {}),
    "vovnet": ("ese_vovnet19b_slim_dw", 64, {}),
    "xception": ("legacy_xception", 64, {}),
    "xception_aligned": ("xception41p", 64, {}),
    "xcit": ("xcit_nano_12_p8_224", 224, {}),
}
REFUSED = {"sequencer2d_s": "lstm"}


@pytest.mark.parametrize("file", TIMM)
def test_timm(file: str) -> None:
    timm = pytest.importorskip("timm", reason="timm is an extra")
    name, size, options = TIMM[file]
    model = timm.create_model(name, num_classes=10, **options)
    if name not in REFUSED:
        check(model, size)
        return
    with pytest.raises(UserError, match=f"^no rule counts {REFUSED[name]}: meter"):
        check(model, size)


def test_timm_is_here_with_all_of_its_files() -> None:
    """Of the version that these tests know; a newer one may have more."""
    pytest.importorskip("timm", reason="timm is an extra")
    registry = importlib.import_module("timm.models._registry")
    missing = set(registry._model_to_module.values()) - set(TIMM)
    assert not missing or importlib.import_module("timm").__version__ != "1.0.31"
