"""docs/validation.md has the numbers of results/validation, and what these are made of is right by hand."""

import re
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from eat_runner.config import MeterConfig  # noqa: E402
from eat_runner.config.hardware import FusedHardware  # noqa: E402
from eat_runner.energy.hardware import load_hardware  # noqa: E402
from eat_runner.energy.meter import measure  # noqa: E402
from validation import eyeriss, prices, products, simulator, zigzag  # noqa: E402

RESULTS = ROOT / "results" / "validation"
DOC = (ROOT / "docs" / "validation.md").read_text(encoding="utf-8")


def read(name: str) -> pd.DataFrame:
    return pd.read_csv(RESULTS / f"{name}.csv", keep_default_na=False, na_values={"padding_percent": [""]})


def fused(name: str) -> FusedHardware:
    hardware = load_hardware(name)
    assert isinstance(hardware, FusedHardware)
    return hardware


# --- by hand -------------------------------------------------------------------------------------------------------


def test_dense_products_by_hand():
    # 8 channels of 5 x 5 pixels, each of 3 x 3 x (4 / 2) products, padding included; called twice
    conv = nn.Conv2d(4, 8, 3, padding=1, groups=2)
    model, x = nn.Sequential(conv, nn.Conv2d(8, 4, 1), conv), torch.randn(1, 4, 5, 5)
    counts = measure(model, [x], MeterConfig(batch_size=1), floor=False)
    expected = {"0": 2 * 8 * 25 * 9 * 2, "1": 4 * 25 * 8}
    assert products.dense_products(counts.layers) == expected
    assert products.torch_products(model, x) == (sum(expected.values()), expected)


def test_products_of_a_network_with_groups_are_those_of_torch():
    layers: dict[str, pd.DataFrame] = {}
    row = products.compare("mobilenet_v3_small", layers)
    assert (row["layers"], row["layers_equal"], row["equal"], row["refused"]) == (54, 54, True, "")
    assert row["products"] == layers["mobilenet_v3_small"]["torch"].sum()


@pytest.fixture(scope="module")
def alexnet() -> pd.DataFrame:
    return eyeriss.predicted(pd.read_csv(eyeriss.PUBLISHED)).set_index("layer")


def test_the_third_layer_of_alexnet_by_hand(alexnet: pd.DataFrame):
    # 256 x 13 x 13 values in, 27.5 % of them not zero; a word of 16 + 5 bits for each, and for every 32 zeros
    nonzeros = 11898  # 0.275 x 43264
    input_bits = 21 * (nonzeros + (43264 - nonzeros) // 32 + 1)
    # 384 x 13 x 13 values out, with the zeros of the fourth layer's input, 79.3 %
    nonzeros = 13433  # 0.207 x 64896
    output_bits = 21 * (nonzeros + (64896 - nonzeros) // 32 + 1)
    weight_bits = 16 * (384 * 256 * 9 + 384)  # and a bias a filter, all dense
    row = alexnet.loc["conv3"]
    assert row["input_mb"] == pytest.approx(4 * input_bits / 8e6)
    assert row["weight_mb"] == pytest.approx(weight_bits / 8e6)
    assert row["output_mb"] == pytest.approx(4 * output_bits / 8e6)
    assert row["rule_mb"] == pytest.approx((4 * (input_bits + output_bits) + weight_bits) / 8e6)
    assert row["dense_mb"] == pytest.approx((4 * 16 * (43264 + 64896) + weight_bits) / 8e6)
    # 43264 values of 16 bits fit the buffer of 108 KB and come from there; 64896 do not
    assert row["buffered_mb"] == pytest.approx((4 * output_bits + weight_bits) / 8e6)
    # 64 of 384 filters at a time: the input is read six times, weights once for the four images
    assert row["passes_mb"] == pytest.approx((6 * 4 * input_bits + weight_bits + 4 * output_bits) / 8e6)
    # of 13 positions in a row 11 have three products with the image and two have two: 37
    macs = 37**2 * 256 * 384
    assert row["mmacs"] == pytest.approx(macs / 1e6)
    # a product is a MAC and four register accesses; every bit comes from or goes to the buffer once, 6 / 16 of a MAC
    on_chip = 5 * round(0.275 * macs) + 0.375 * (input_bits + weight_bits + output_bits)
    assert row["on_chip_mmacs"] == pytest.approx(on_chip / 1e6)
    # conv1 reads its weights for each of 8 strips of each of 4 images
    first = alexnet.loc["conv1"]
    assert first["passes_mb"] - first["rule_mb"] == pytest.approx(31 * 16 * (96 * 3 * 121 + 96) / 8e6)


def test_parts_of_the_traffic_add_up(alexnet: pd.DataFrame):
    whole = alexnet["input_mb"] + alexnet["weight_mb"] + alexnet["output_mb"]
    assert alexnet["rule_mb"].to_numpy() == pytest.approx(whole.to_numpy())


def test_rank_correlation_by_hand(alexnet: pd.DataFrame):
    # the rule swaps the second and the third layer: 1 - 6 (1 + 1) / (5 x 24)
    order = alexnet["rule_mb"].sort_values(ascending=False).index
    assert [name[-1] for name in order] == list("13245")
    found = eyeriss.ranks(alexnet.reset_index()).set_index("rule")
    assert found.at["rule_mb", "spearman"] == pytest.approx(0.9)
    assert found.at["rule_mb", "most"] == pytest.approx(4.0 / alexnet.at["conv2", "rule_mb"])
    assert found.at["on_chip_mmacs", "least"] == pytest.approx(1730 / alexnet.at["conv1", "on_chip_mmacs"])


def test_golden_values_of_one_image():
    golden = pd.read_csv(simulator.GOLDEN).set_index(["case", "quantity"])["golden"]
    for case in ("hand", "resnet18_1"):
        found = simulator.quantities(*simulator.network(case))
        for quantity, value in golden[case].items():
            assert found[str(quantity)] == pytest.approx(value, rel=1e-6)


def test_where_the_tensors_of_a_layer_live():
    hardware = fused("fused_7nm_int8")  # 2^20 values of 8 bits fit
    conv = nn.Conv2d(2, 8, 3, stride=2, padding=1)
    x = torch.zeros(1, 2, 724, 724)  # 1,048,352 values; 8 x 362 x 362, exactly as many, come out
    layer = zigzag.shape(conv, x, conv(x))
    assert dict(layer.sizes) == {"B": 1, "K": 8, "G": 1, "OX": 362, "OY": 362, "C": 2, "FX": 3, "FY": 3}
    assert zigzag.in_dram(layer, hardware, first=False) == ("I2",)
    assert zigzag.in_dram(layer, hardware, first=True) == ("I1", "I2")
    larger = zigzag.shape(conv, torch.zeros(1, 2, 726, 726), torch.zeros(1, 8, 363, 363))
    assert zigzag.in_dram(larger, hardware, first=False) == ("I1", "I2", "O")


def test_zigzag_has_our_prices():
    pytest.importorskip("zigzag")
    hardware = fused("fused_7nm_int8")
    linear = nn.Linear(1024, 256)
    layer = zigzag.shape(linear, torch.zeros(1, 1024), torch.zeros(1, 256))
    found = zigzag.mapped(layer, ("I2",), hardware, sums=1)
    assert found["zigzag_products"] == 1024 * 256
    assert found["zigzag_mac_uj"] == pytest.approx(1024 * 256 * (0.07 + 0.03) / 1e6)
    assert found["zigzag_dram_uj"] == pytest.approx(1024 * 256 * 8 * 1300 / 64 / 1e6)  # weights, once
    # weights go into the buffer and come out, inputs come out for each 32 outputs, outputs go in
    values = 2 * 1024 * 256 + 256 // 32 * 1024 + 256
    assert found["zigzag_buffer_uj"] == pytest.approx(values * 8 * 14 / 64 / 1e6)


def test_price_lists():
    lists = {(price, factor): hardware for price, factor, hardware in prices.price_lists(fused("fused_45nm"))}
    assert len(lists) == 1 + 2 + 2 + 3 + 3
    assert lists["dram", 2.0].dram_pj_per_bit == pytest.approx(2 * 1300 / 64)
    assert lists["buffer", 0.5].buffer_pj_per_bit == pytest.approx(50 / 64)
    dearer = lists["products", 2.0]
    assert (dearer.multiply_pj, dearer.accumulate_pj, dearer.add_pj) == pytest.approx((7.4, 1.8, 1.8))
    assert dearer.mac_pj_by_bits[8].multiply_pj == pytest.approx(0.4)
    assert lists["weight_reuse", 1000.0].weight_reuse == 1000


def test_methods_at_the_prices_of_the_file_are_those_of_the_report():
    report = pd.read_csv(ROOT / "results" / "methods" / "fused_7nm_int8" / "equal_accuracy.csv")
    expected = 1 - report[report["allowance"] == 1].set_index("method")["energy_decrease"]
    found = prices.least(prices.front_of(fused("fused_7nm_int8")))
    assert found.to_dict() == pytest.approx(expected.to_dict())


# --- docs/validation.md --------------------------------------------------------------------------------------------


def said(*texts: str) -> None:
    """Each text stands in the document, wherever its lines break."""
    words = " ".join(DOC.split())
    assert [text for text in texts if text not in words] == []


def line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def lines_of(section: str, first: str) -> list[str]:
    """The rows of a section's table that begin so."""
    return [text for text in DOC.split(f"## ({section})")[1].split("\n## ")[0].splitlines() if text.startswith(first)]


def test_products_in_the_document():
    table = read("products")
    counted, refused = table[table["refused"] == ""], table[table["refused"] != ""]
    layers = {arch: read(f"products/{arch}") for arch in counted["network"]}
    for row in counted.to_dict("records"):
        by_layer = layers[row["network"]]
        assert (by_layer["products"] == by_layer["torch"]).all()
        assert len(by_layer) == int(row["layers"]) == int(row["layers_equal"])
        assert by_layer["torch"].sum() == int(row["torch"]) == int(row["products"])
    assert refused.empty
    whole, padding = sum(map(len, layers.values())), counted["padding_percent"]
    said(
        f"equal in {whole:,} of {whole:,} layers of all {len(counted)} classifiers of torchvision",
        f"{padding.min():.1f} to {padding.max():.0f} % of them (median {padding.median():.0f} %)",
    )


def test_golden_values_in_the_document():
    table = read("simulator")
    assert table[["case", "quantity"]].equals(pd.read_csv(simulator.GOLDEN)[["case", "quantity"]])
    largest = table["relative_difference"].max()
    assert largest < 1e-12
    said(f"equal, {len(table)} of {len(table)}", f"Largest relative difference: {largest:.0e}")


def test_eyeriss_in_the_document(alexnet: pd.DataFrame):
    table = read("eyeriss").set_index("layer")
    pd.testing.assert_frame_equal(table, alexnet, check_dtype=False, rtol=1e-8)
    shares = {key: 100 * table[key] / table[key].sum() for key in ("energy_mj", "on_chip_mmacs", "on_chip_dense_mmacs")}
    expected = [
        line(
            str(name).upper(),
            f"{row['input_zeros_percent']:g}",
            *(f"{row[key]:.1f}" for key in ("dram_mb", "rule_mb", "passes_mb")),
            f"{row['energy_mj']:.2f}",
            *(f"{share[name]:.0f}" for share in shares.values()),
        )
        for name, row in table.iterrows()
    ]
    assert lines_of("c", "| CONV") == expected
    ranks = read("eyeriss_ranks").set_index("rule")
    rule, passes, chip, dense = (
        ranks.loc[key] for key in ("rule_mb", "passes_mb", "on_chip_mmacs", "on_chip_dense_mmacs")
    )
    fit = read("eyeriss_fit").iloc[0]
    said(
        f"the chip moves {rule['least']:.1f} to {rule['most']:.1f} times as much; rank correlation "
        f"{rule['spearman']:g}",
        f"make {1 / passes['most']:.2f} to {1 / passes['least']:.2f} of the measured MB, rank correlation "
        f"{passes['spearman']:g}",
        f"Tensors without zeros would rank as well ({ranks.at['dense_mb', 'spearman']:g})",
        f"{table.at['conv3', 'buffered_mb']:.2f} and {table.at['conv5', 'buffered_mb']:.2f} MB",
        f"rank correlation {chip['spearman']:g}, or {dense['spearman']:g} if no zero were skipped",
        f"{chip['least']:.1f} pJ a MAC in CONV1, where nothing is zero, {chip['most']:.1f} in CONV4",
        f"{fit['always_pj']:.1f} pJ for every MAC and {fit['unless_skipped_pj']:.1f} more for one that is not skipped "
        f"(errors up to {fit['error_percent']:.0f} %): **a zero saves {fit['saved_percent']:.0f} % of a MAC there",
    )
    assert (table["dram_mb"] > table["rule_mb"]).all()


def test_zigzag_in_the_document():
    totals, layers = read("zigzag_totals"), read("zigzag")
    expected = [
        line(
            row["network"],
            f"`{row['hardware']}`",
            str(row["sums"]),
            f"{row['spearman']:.2f}",
            f"{row['ratio']:.2f}",
            f"{row['ratio_least']:.2f}, {row['ratio_median']:.2f}, {row['ratio_most']:.1f}",
            f"{row['zigzag_buffer_uj'] / row['rule_buffer_uj']:.0f}",
        )
        for row in totals.to_dict("records")
    ]
    assert lines_of("d", "| resnet18") + lines_of("d", "| vgg16") == expected
    keys = ["network", "hardware", "sums"]
    sums = layers.groupby(keys, sort=False).sum(numeric_only=True).reset_index()
    for key in [f"{whose}_{part}" for whose in ("rule", "zigzag") for part in zigzag.PARTS]:
        assert totals[key].to_numpy() == pytest.approx(sums[key].to_numpy())
    assert sums["zigzag_uj"].to_numpy() == pytest.approx(
        sum(sums[f"zigzag_{part}"] for part in zigzag.PARTS[1:]).to_numpy()
    )
    buffer, dram, padding = (sums[f"zigzag_{key}_uj"] / sums[f"rule_{key}_uj"] for key in ("buffer", "dram", "mac"))
    each = (1e6 * sums["zigzag_buffer_uj"] / sums["zigzag_products"])[sums["hardware"] == "fused_7nm_int8"]
    small = layers[layers["zigzag_uj"] < layers["rule_uj"]]
    assert set(small["layer"]) == {"layer2.0.downsample.0"}
    said(
        f"the buffer costs {buffer.min():.0f} to {buffer.max():.0f} times what the rule says, the total "
        f"{totals['ratio'].min():.2f} to {totals['ratio'].max():.2f} times; rank correlation "
        f"{totals['spearman'].min():.2f} to {totals['spearman'].max():.2f}",
        f"equal within {100 * (dram - 1).abs().max():.2f} % of a network",
        f"({100 * (padding.min() - 1):.0f} to {100 * (padding.max() - 1):.0f} %)",
        f"At 7 nm that is {each.min():.2f} to {each.max():.2f} pJ for each product, which itself costs 0.10",
        f"no lower bound ({(small['zigzag_uj'] / small['rule_uj']).min():.2f})",
        f"(d) has {each.min():.2f} to {each.max():.2f} pJ at 7 nm",
    )


def test_the_rule_still_says_what_zigzag_is_beside():
    torch.manual_seed(0)
    model, size = products.torchvision.models.resnet18(weights=None), zigzag.IMAGE_SIZE
    counts = measure(model, [torch.randn(1, 3, size, size)], MeterConfig(batch_size=1), floor=False)
    for name in zigzag.HARDWARE:
        layers = read("zigzag").query("network == 'resnet18' and sums == 1 and hardware == @name").set_index("layer")
        for part, hardware in zigzag.rule_parts(fused(name)).items():
            energies = zigzag.dense_uj(counts, hardware)
            assert [energies[layer] for layer in layers.index] == pytest.approx(layers[part].tolist(), rel=1e-8)


def test_prices_in_the_document():
    table = read("prices")
    expected: list[str] = []
    for name, of in table.groupby("hardware", sort=False):
        ranges = [of[of["factor"].isin([0.5, 2])], of[~of["factor"].isin([0.5, 1, 2])]]
        stays = [
            (f"{part['same_selected'].sum()} of {len(part)}", f"{part['tau_methods'].min():.2f}") for part in ranges
        ]
        saved = [
            "; ".join(f"{abs(round(part[key].min()))} to {part[key].max():.0f}" for part in ranges)
            for key in (f"{method}_decrease_percent" for method in prices.SHOWN)
        ]
        expected.append(line(f"`{name}`", *stays[0], *stays[1], *saved))
    assert lines_of("e", "| `") == expected
    eat, pruning, narrow = (table[f"{key}_decrease_percent"] for key in prices.SHOWN)
    assert (eat < narrow).all()
    wins = (pruning > narrow).groupby(table["hardware"]).agg(["all", "any"])
    assert set(wins.index[wins["all"]]) == {"fused_45nm", "fused_7nm_int8", "small_45nm_int8"}
    assert set(wins.index[~wins["any"]]) == {"dense_7nm_int8", "eyeriss_65nm"}
    near = table[table["factor"].isin([0.5, 2])]
    behind = "pruning=energy behind channels + compact=exact"
    two = ("dense narrow networks, width 4", f"{behind}, width 12")
    assert table["selected"].str.startswith(two).all()
    assert set(near.loc[~near["same_selected"].astype(bool), "hardware"]) == {"fused_45nm"}
    best = near["best_method"] == near["hardware"].map(table[table["factor"] == 1].set_index("hardware")["best_method"])
    assert set(near.loc[~best, "hardware"]) == {"eyeriss_65nm"}
    assert set(near.loc[near["hardware"] == "eyeriss_65nm", "best_method"]) == {prices.NARROW, behind}
    chip = table[table["hardware"] == "fused_7nm_int8"].set_index(["price", "factor"])["eat_decrease_percent"]
    close = chip[chip.index.get_level_values("factor").isin([0.5, 2])]
    said(
        f"stays in {near['same_selected'].sum()} of {len(near)} price lists and the best method in {best.sum()}",
        f"The {table['settings'].max()} settings of",
        f"(Kendall's tau at least {near['tau_methods'].min():.2f})",
        f"at {len(table) // len(prices.HARDWARE)} price lists for each hardware",
        f"in all {len(table)} price lists",
        f"({close.min():.1f} to {close.max():.1f} % from half to twice) is {chip['products', 16]:.0f} % with products "
        f"at 16 times, {chip['weight_reuse', 1000]:.0f} % where 1,000 images share",
    )
    others = table[(table["hardware"] == "eyeriss_65nm") & ~table["factor"].isin([0.5, 1, 2])]
    assert (others["eat_decrease_percent"] > others["pruning_decrease_percent"]).all()


def test_every_file_that_the_document_links_to_is_there():
    links = re.findall(r"\]\((\.\.[^)]+)\)", DOC)
    assert links
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []
