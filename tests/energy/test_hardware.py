"""Price lists: what ships with the package, and what a person's own file may get wrong."""

import json
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest

from eat_runner.config.hardware import FusedHardware, OperationPrices, corners
from eat_runner.energy.hardware import builtin_hardware, load_hardware
from eat_runner.errors import UserError

# per 64 bits, and per operation, from the tables that the files cite
DDR_PJ, SRAM_45NM_PJ, SRAM_7NM_PJ = 1300, 100, 14


def test_what_ships() -> None:
    assert builtin_hardware() == [
        "dense_7nm_int8",
        "eyeriss_65nm",
        "fused_45nm",
        "fused_45nm_int8",
        "fused_7nm",
        "fused_7nm_int8",
        "published",
        "small_45nm_int8",
    ]


@pytest.mark.parametrize("name", builtin_hardware())
def test_every_price_has_a_source(name: str) -> None:
    hardware = load_hardware(name)
    priced = {f.name for f in fields(hardware) if "_pj" in f.name and getattr(hardware, f.name) != {}}
    assert len(priced) >= 2
    assert priced <= set(hardware.source)
    assert all(hardware.source.values())
    assert set(hardware.source) <= {f.name for f in fields(hardware)}
    assert ("ranges" in hardware.source) == bool(hardware.ranges)
    assert hardware.name == name
    assert hardware.process_nm in (7, 45, 65)
    assert hardware.note


def test_published_prices() -> None:
    hardware = load_hardware("published")
    assert (hardware.rule, hardware.relative) == ("published", False)
    assert hardware.dram_pj_per_value == (1300 + 2600) / 2
    assert hardware.multiply_pj == 3.7
    assert (hardware.inplace, hardware.bn_statistics_repeats, hardware.batch_size) == ("as_built", 1, 100)
    assert hardware.threshold == 2**-126


@pytest.mark.parametrize(
    ("name", "bits", "sram_pj", "multiply_pj", "accumulate_pj", "add_pj"),
    [
        ("fused_45nm", 32, SRAM_45NM_PJ, 3.7, 0.9, 0.9),
        ("fused_45nm_int8", 8, SRAM_45NM_PJ, 0.2, 0.1, 0.03),
        ("fused_7nm", 32, SRAM_7NM_PJ, 1.31, 0.38, 0.38),
        ("fused_7nm_int8", 8, SRAM_7NM_PJ, 0.07, 0.03, 0.007),
    ],
)
def test_fused_prices(
    name: str, bits: int, sram_pj: float, multiply_pj: float, accumulate_pj: float, add_pj: float
) -> None:
    hardware = load_hardware(name)
    assert hardware.bits == bits
    assert hardware.buffer_bits == 8 * 2**20
    assert hardware.buffer_pj_per_bit * 64 == sram_pj
    assert hardware.dram_pj_per_bit * 64 == DDR_PJ
    assert (hardware.multiply_pj, hardware.accumulate_pj, hardware.add_pj) == (multiply_pj, accumulate_pj, add_pj)
    assert hardware.activation_pj == pytest.approx(multiply_pj + add_pj)
    assert (hardware.weight_reuse, hardware.format, hardware.skip, hardware.relative) == (1, "auto", "both", False)
    assert ("zeros stand in for int8" in hardware.float_note) == name.endswith("int8")


def test_the_small_chip() -> None:
    small, sister = load_hardware("small_45nm_int8"), load_hardware("fused_45nm_int8")
    # 64 x 768 kernels of 3 x 3 bytes; 16 x 32 KiB; an SRAM of 32 KB costs 20 pJ per 64 bits
    assert small.weight_buffer_bits == 64 * 768 * 9 * 8 == 442_368 * 8
    assert small.buffer_bits == 16 * 32 * 1024 * 8
    assert small.buffer_pj_per_bit * 64 == 20
    same = ("bits", "dram_pj_per_bit", "multiply_pj", "accumulate_pj", "add_pj", "activation_pj", "mac_pj_by_bits")
    assert [getattr(small, key) for key in same] == [getattr(sister, key) for key in same]
    for key in ("dram_pj_per_bit", "format", "run_bits", "skip"):
        assert "an assumption" in small.source[key]


def test_the_chip_that_skips_nothing_has_its_sisters_prices() -> None:
    dense, sister = load_hardware("dense_7nm_int8"), load_hardware("fused_7nm_int8")
    assert (dense.format, dense.skip) == ("dense", "none")
    other = {"name": sister.name, "format": "auto", "skip": "both", "note": sister.note, "source": sister.source}
    other["float_note"] = sister.float_note
    assert replace(dense, **other) == sister
    assert all(dense.source[key] == source for key, source in sister.source.items())


@pytest.mark.parametrize(
    ("name", "key", "low", "high"),
    [
        ("published", "dram_pj_per_value", 1300, 2600),
        ("fused_45nm", "dram_pj_per_bit", 1300 / 64, 2600 / 64),
        ("fused_45nm_int8", "dram_pj_per_bit", 1300 / 64, 2600 / 64),
        ("small_45nm_int8", "dram_pj_per_bit", 1300 / 64, 2600 / 64),
    ],
)
def test_what_dram_may_cost(name: str, key: str, low: float, high: float) -> None:
    hardware = load_hardware(name)
    assert hardware.ranges == {key: [low, high]}
    assert corners(hardware) == [replace(hardware, **{key: price}) for price in (low, high)]


def test_corners_are_all_combinations() -> None:
    hardware = FusedHardware(multiply_pj=2.0, add_pj=5.0, ranges={"multiply_pj": [1, 3], "add_pj": [5, 6]})
    assert [(at.multiply_pj, at.add_pj) for at in corners(hardware)] == [(1, 5), (1, 6), (3, 5), (3, 6)]
    assert corners(replace(hardware, ranges={})) == []


INT8_PJ = {
    45: OperationPrices(multiply_pj=0.2, accumulate_pj=0.1, add_pj=0.03),
    7: OperationPrices(multiply_pj=0.07, accumulate_pj=0.03, add_pj=0.007),
}


@pytest.mark.parametrize("nm", INT8_PJ)
def test_prices_of_other_widths(nm: int) -> None:
    whole, int8 = load_hardware(f"fused_{nm}nm"), load_hardware(f"fused_{nm}nm_int8")
    assert whole.mac_pj_by_bits == {8: INT8_PJ[nm], 4: INT8_PJ[nm]}
    assert int8.mac_pj_by_bits == {4: INT8_PJ[nm]}
    # the same layers cost the same operations on both
    assert whole.operations(8) == int8.operations(8) == int8.operations(0) == INT8_PJ[nm]
    assert "4 bits: an upper bound" in whole.source["mac_pj_by_bits"]
    assert "4 bits: an upper bound" in int8.source["mac_pj_by_bits"]


@pytest.mark.parametrize(
    ("name", "bits"), [("fused_45nm", (0, 32, 8, 4)), ("eyeriss_65nm", (0, 16)), ("published", (0, 32))]
)
def test_which_widths_have_prices(name: str, bits: tuple[int, ...]) -> None:
    hardware = load_hardware(name)
    for known in bits:
        hardware.check_bits(known)
    for unknown in {2, 4, 8, 16, 32} - set(bits):
        with pytest.raises(UserError, match=f"hardware {name} .*{unknown}"):
            hardware.check_bits(unknown)


def test_what_is_said_of_a_width_without_prices() -> None:
    with pytest.raises(UserError) as caught:
        load_hardware("fused_7nm_int8").check_bits(2)
    assert str(caught.value) == (
        "hardware fused_7nm_int8 has no price for layers of 2-bit weights: choose one of 8, 4 bits, or add "
        "hardware.mac_pj_by_bits.2"
    )
    with pytest.raises(UserError) as caught:
        load_hardware("published").check_bits(8)
    assert str(caught.value) == (
        "hardware published prices 32-bit values, not 8 bits: use hardware with rule: fused, such as "
        "hardware=fused_45nm_int8"
    )


def test_what_is_no_plain_value_comes_back_from_a_record() -> None:
    for name in ("fused_45nm", "small_45nm_int8", "published"):
        hardware = load_hardware(name)
        assert type(hardware)(**json.loads(json.dumps(asdict(hardware)))) == hardware


def test_eyeriss_prices_are_relative() -> None:
    hardware = load_hardware("eyeriss_65nm")
    assert hardware.relative
    assert hardware.multiply_pj + hardware.accumulate_pj == 1
    assert hardware.dram_pj_per_bit * 16 == 200
    assert hardware.buffer_pj_per_bit * 16 == 6
    assert hardware.buffer_bits == 108 * 1024 * 8


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"defaults: [base_fused, _self_]\n{OWN}batch_size: 50\nsource: {{multiply_pj: me}}\n")
    assert load_hardware(str(path)) == FusedHardware(
        name="mine",
        bits=8,
        buffer_bits=1000,
        buffer_pj_per_bit=0.5,
        dram_pj_per_bit=20.0,
        multiply_pj=2.0,
        batch_size=50,
        source={"multiply_pj": "me"},
    )


NEEDED = {"bits": "8", "buffer_bits": "1000", "buffer_pj_per_bit": "0.5", "dram_pj_per_bit": "20", "multiply_pj": "2"}
NEEDED |= dict.fromkeys(("accumulate_pj", "add_pj", "register_pj_per_mac", "activation_pj"), "0")
OWN = "rule: fused\n" + "".join(f"{key}: {value}\n" for key, value in NEEDED.items())


@pytest.mark.parametrize("key", NEEDED)
def test_what_a_file_has_to_say(key: str, tmp_path: Path) -> None:
    """A price that nobody wrote is not 0."""
    path = tmp_path / "mine.yaml"
    path.write_text(OWN.replace(f"{key}: {NEEDED[key]}\n", ""))
    zero_too = key in {"buffer_bits", "accumulate_pj", "add_pj", "register_pj_per_mac", "activation_pj"}
    must = f"a {'whole' if 'bits' in key else 'finite'} number {'>=' if zero_too else '>'} 0"
    with pytest.raises(UserError) as caught:
        load_hardware(str(path))
    assert str(caught.value) == f"{path}: {key} is missing: it must be {must}"


@pytest.mark.parametrize("key", ["dram_pj_per_value", "multiply_pj"])
def test_what_a_file_of_the_published_rule_has_to_say(key: str, tmp_path: Path) -> None:
    prices = {"dram_pj_per_value": 1950.0, "multiply_pj": 3.7}
    path = tmp_path / "mine.yaml"
    path.write_text("rule: published\n" + "".join(f"{k}: {v}\n" for k, v in prices.items() if k != key))
    with pytest.raises(UserError, match=f"{key} is missing: it must be a finite number > 0"):
        load_hardware(str(path))


@pytest.mark.parametrize(
    "value", ["0", "-1", ".nan", ".inf", "-.inf", "much", "20 pJ", "20,3", "[1, 2]", "{a: 1}", "", "true"]
)
def test_what_is_no_price_is_named(value: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(OWN.replace("dram_pj_per_bit: 20\n", f"dram_pj_per_bit: {value}\n"))
    with pytest.raises(UserError, match=r"mine\.yaml: .*dram_pj_per_bit.* it must be a finite number >=? 0$") as caught:
        load_hardware(str(path))
    assert "\n" not in str(caught.value)


def test_a_key_that_stands_there_twice(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"{OWN}dram_pj_per_bit: 2\n")
    with pytest.raises(UserError, match=r"mine\.yaml: .*found duplicate key dram_pj_per_bit"):
        load_hardware(str(path))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_byte_order_mark_and_line_ends_change_nothing(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(f"{OWN}note: größer\n".replace("\n", "\r\n").encode(encoding))
    assert load_hardware(str(path)).note == "größer"


@pytest.mark.parametrize(("encoding", "odd"), [("latin-1", "byte 0xf6 in line 11"), ("utf-16", "UTF-16")])
def test_another_encoding_is_named(encoding: str, odd: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(f"{OWN}note: größer\n".encode(encoding))
    with pytest.raises(UserError) as caught:
        load_hardware(str(path))
    assert str(caught.value) == f"{path} is no UTF-8 text ({odd}): save it as UTF-8"


PRICED = ["buffer_pj_per_bit", "dram_pj_per_bit", "multiply_pj", "accumulate_pj", "add_pj", "activation_pj"]
PRICED += ["register_pj_per_mac"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "rule: fused\nmultiply_pj: 1\nbitz: 8",
            "'bitz' not in 'FusedHardware': choose from name, rule, process_nm, bits",
        ),
        ("rule: fused\nmultiply_pj: 1\nbits: many", "bits: Value 'many'"),
        ("rule: fused\nmultiply_pj: 1\nbits: 1.5", "bits: Value '1.5'"),
        ("rule: fused\nmultiply_pj: 1\nbits: null", "bits: "),
        ("rule: fused\nmultiply_pj: 1\nbits: 0", "hardware.bits=0 is out of range"),
        ("rule: fused\nmultiply_pj: -1", "hardware.multiply_pj=-1 is out of range"),
        ("rule: fused\nmultiply_pj: .nan", "hardware.multiply_pj=nan is out of range"),
        ("rule: fused\nmultiply_pj: 1\nnote: ${oc.env:HOME}", "holds values, no ${...}: write the value itself"),
        ("rule: fused\nmultiply_pj: 1\nmac_pj_by_bits: {four: {}}", "Key four (str) is incompatible with (int)"),
        ("rule: fused\nmultiply_pj: 1\nmac_pj_by_bits: {4: 1}", "mac_pj_by_bits"),
        (
            "rule: fused\nmultiply_pj: 1\nmac_pj_by_bits: {4: {multiply_pj: 1}}",
            "Structured config of type `OperationPrices` has missing mandatory value: accumulate_pj",
        ),
        (
            "rule: fused\nmultiply_pj: 1\nmac_pj_by_bits: {4: {multiply_pj: 1, accumulate_pj: -1, add_pj: 1}}",
            "hardware.mac_pj_by_bits.4.accumulate_pj=-1 is out of range",
        ),
        (
            "rule: fused\nmultiply_pj: 1\nmac_pj_by_bits: {0: {multiply_pj: 1, accumulate_pj: 1, add_pj: 1}}",
            "hardware.mac_pj_by_bits: bits=0 is out of range",
        ),
        (
            "rule: fused\nmultiply_pj: 1\nbits: 4\nmac_pj_by_bits: {4: {multiply_pj: 1, accumulate_pj: 1, add_pj: 1}}",
            "hardware.mac_pj_by_bits.4: 4 bits is the hardware's own width: change hardware.multiply_pj",
        ),
        ("rule: fused\nmultiply_pj: 1\nweight_buffer_bits: -1", "hardware.weight_buffer_bits=-1 is out of range"),
        (
            "rule: fused\nmultiply_pj: 1\nrun_bits: []",
            "hardware.run_bits=[] must be a list of widths, each of them once",
        ),
        ("rule: fused\nmultiply_pj: 1\nrun_bits: [5, 5]", "hardware.run_bits=[5, 5] must be a list of widths, each"),
        (
            "rule: fused\nmultiply_pj: 1\nrun_bits: [0]",
            "hardware.run_bits=0 is out of range: it must be between 1 and 32",
        ),
        ("rule: fused\nmultiply_pj: 1\nrun_bits: 5", "run_bits: "),
        (
            "rule: fused\nmultiply_pj: 1\nranges: {bits: [1, 2]}",
            "hardware.ranges=bits is unknown: choose one of ",
        ),
        (
            "rule: fused\nmultiply_pj: 1\nranges: {multiply_pj: [2, 3]}",
            "hardware.multiply_pj=1 is not in its range, hardware.ranges.multiply_pj=[2,3]: change both",
        ),
        (
            "rule: fused\nmultiply_pj: 1\nranges: {multiply_pj: [1, .nan]}",
            "hardware.ranges.multiply_pj: high=nan is out of range",
        ),
        (
            "rule: fused\nmultiply_pj: 1\nranges: {multiply_pj: [1, .inf]}",
            "hardware.ranges.multiply_pj: high=inf is out of range",
        ),
        *(
            (
                f"rule: fused\nmultiply_pj: 1\nranges: {{multiply_pj: {ends}}}",
                f"multiply_pj={ends} must be two prices, [low, high]",
            )
            for ends in ("[1]", "[1, 2, 3]", "2", "{'low': 1}", "[1, True]", "['1', 2]")
        ),
        (
            "rule: fused\nmultiply_pj: 1\nranges: {" + ", ".join(f"{key}: [0, 1]" for key in PRICED) + "}",
            "hardware.ranges has 7 prices: at most 6 can be ranges",
        ),
        ("rule: fused", "at least one price must be above 0"),
        ("rule: fused\nmultiply_pj: 1\nskip: everything", "hardware.skip=everything is unknown: choose one of input"),
        ("multiply_pj: 1", "rule=None is unknown: choose one of published, fused"),
        ("rule: [fused]", "is unknown: choose one of published, fused"),
        ("rule: fused\nbits: [", "not a YAML file"),
        ("just words", "not a hardware file"),
        ("", "not a hardware file"),
    ],
)
def test_a_broken_file_is_refused_in_one_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_hardware(str(path))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_not_there() -> None:
    with pytest.raises(UserError, match=r"hardware=tpu is unknown: choose one of dense_7nm_int8, .*, small_45nm_int8"):
        load_hardware("tpu")
    with pytest.raises(UserError, match=r"nowhere/mine\.yaml: no hardware file there"):
        load_hardware("nowhere/mine.yaml")
