"""Names of runs: what is in the hash, what is not, and that the hash is what anybody would compute by hand."""

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import pytest

from eat_runner.cli.hydra.compose import compose_experiment
from eat_runner.config import (
    DatasetConfig,
    ExperimentConfig,
    L0Config,
    MeterConfig,
    MethodConfig,
    ModelConfig,
    PenaltyConfig,
    ScheduleConfig,
    TrainerConfig,
)
from eat_runner.config.groups import GROUPS, Group
from eat_runner.config.hardware import FusedHardware, OperationPrices
from eat_runner.config.identity import FRESH, Start, as_plain, baseline_id, determinants, distinctions, run_id
from eat_runner.errors import UserError

DATA = "d" * 8
CONFIG = ExperimentConfig()


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def test_the_hash_is_that_of_canonical_json_without_defaults() -> None:
    json = (
        '{"data":"dddddddd","dataset":{"name":"digits"},"lambda":1.0,"meter":{},"model":{"name":"resnet18"},'
        '"penalty":{"name":"l0"},"schedule":{"name":"constant"},"seed":0,"trainer":{}}'
    )
    assert run_id(CONFIG, DATA) == f"digits-resnet18-l0-lambda1-seed0-{sha(json)}"


def test_what_differs_from_the_defaults_is_in_the_hash() -> None:
    config = ExperimentConfig(
        dataset=DatasetConfig(name="gtsrb", image_size=32, rotation_degrees=15.0),
        model=ModelConfig(name="torchvision", arch="mobilenet_v2"),
        penalty=L0Config(sigma=0.001),
        trainer=TrainerConfig(epochs=3, evaluate_every=2, checkpoint_every=5, keep_checkpoint=True),
        meter=MeterConfig(batch_size=50, ignore_uncounted=True),
        lambda_=0.5,
        seed=7,
    )
    json = (
        '{"data":"dddddddd","dataset":{"image_size":32,"name":"gtsrb","rotation_degrees":15.0},"init":"weights",'
        '"lambda":0.5,"meter":{"batch":50},"model":{"arch":"mobilenet_v2","name":"torchvision"},'
        '"penalty":{"name":"l0","sigma":0.001},"schedule":{"name":"constant"},"seed":7,"trainer":{"epochs":3}}'
    )
    assert run_id(config, DATA, Start("weights")) == f"gtsrb-mobilenet_v2-l0-lambda0.5-seed7-{sha(json)}"


def test_a_baseline_has_neither_penalty_nor_schedule() -> None:
    json = (
        '{"data":"dddddddd","dataset":{"name":"digits"},"lambda":0.0,"meter":{},"model":{"name":"resnet18"},'
        '"penalty":{"name":"none"},"schedule":{"name":"constant"},"seed":0,"trainer":{}}'
    )
    expected = f"digits-resnet18-none-lambda0-seed0-{sha(json)}"
    linear = ScheduleConfig(name="linear", warmup=0.2)
    assert run_id(replace(CONFIG, lambda_=0.0), DATA) == expected
    assert run_id(replace(CONFIG, lambda_=0.0, penalty=L0Config(sigma=0.5)), DATA) == expected
    assert run_id(replace(CONFIG, lambda_=0.0, schedule=linear), DATA) == expected
    assert run_id(replace(CONFIG, lambda_=3.0, penalty=PenaltyConfig(name="none")), DATA) == expected


OTHER_RUNS = {
    "lambda": replace(CONFIG, lambda_=2.0),
    "seed": replace(CONFIG, seed=1),
    "sigma": replace(CONFIG, penalty=L0Config(sigma=1e-3)),
    "scope": replace(CONFIG, penalty=L0Config(scope="activations")),
    "schedule": replace(CONFIG, schedule=ScheduleConfig(name="linear")),
    "epochs": replace(CONFIG, trainer=TrainerConfig(epochs=21)),
    "precision": replace(CONFIG, trainer=TrainerConfig(precision="bf16")),
    "channels_last": replace(CONFIG, trainer=TrainerConfig(channels_last=False)),
    "compile": replace(CONFIG, trainer=TrainerConfig(compile="off")),
    "meter": replace(CONFIG, meter=MeterConfig(batch_size=99)),
    "width": replace(CONFIG, model=ModelConfig(width=16)),
    "flip": replace(CONFIG, dataset=DatasetConfig(flip=True)),
}


@pytest.mark.parametrize("what", OTHER_RUNS)
def test_what_changes_the_result_changes_the_name(what: str) -> None:
    assert run_id(OTHER_RUNS[what], DATA) != run_id(CONFIG, DATA)


def test_other_data_and_other_initial_weights_change_the_name() -> None:
    names = {
        run_id(CONFIG, data, init) for data in ("a", "b") for init in (FRESH, Start("x"), Start("y"), Start(parent="y"))
    }
    assert len(names) == 8


SAME_RUN = {
    "paths": replace(CONFIG, results_dir="/elsewhere", data_dir="/mnt", name="other"),
    "hardware": replace(CONFIG, hardware=FusedHardware()),
    "selection": replace(CONFIG, selection="paper"),
    "device": replace(CONFIG, device="cuda"),
    "threads": replace(CONFIG, threads=64),
    "flow": replace(CONFIG, on_error="stop", plan=True, download=True),
    "watching": replace(CONFIG, trainer=TrainerConfig(evaluate_every=7, checkpoint_every=7, keep_checkpoint=True)),
    "uncounted": replace(CONFIG, meter=MeterConfig(ignore_uncounted=True)),
}


@pytest.mark.parametrize("what", SAME_RUN)
def test_what_does_not_change_the_result_keeps_the_name(what: str) -> None:
    assert run_id(SAME_RUN[what], DATA) == run_id(CONFIG, DATA)


def test_a_run_shares_its_baseline_id_with_its_baseline_and_not_with_another_seed() -> None:
    json = (
        '{"data":"dddddddd","dataset":{"name":"digits"},"meter":{},"model":{"name":"resnet18"},"seed":0,"trainer":{}}'
    )
    sweep = [
        CONFIG,
        replace(CONFIG, lambda_=0.0),
        replace(CONFIG, lambda_=9.0, penalty=L0Config(sigma=1e-2), schedule=ScheduleConfig(name="cosine")),
    ]
    assert {baseline_id(config, DATA) for config in sweep} == {sha(json)}
    for what in ("seed", "epochs", "meter", "width", "flip"):
        assert baseline_id(OTHER_RUNS[what], DATA) != sha(json)


def test_determinants_are_plain_and_readable() -> None:
    assert determinants(replace(CONFIG, lambda_=0.0), DATA, Start("weights")) == {
        "dataset": {"name": "digits"},
        "model": {"name": "resnet18"},
        "penalty": {"name": "none"},
        "schedule": {"name": "constant"},
        "trainer": {},
        "meter": {},
        "lambda": 0.0,
        "seed": 0,
        "data": DATA,
        "init": "weights",
    }


def test_a_plain_configuration_has_the_names_of_the_command_line() -> None:
    plain = as_plain(replace(CONFIG, lambda_=0.25))
    assert plain["lambda"] == 0.25
    assert "lambda_" not in plain
    assert plain["trainer"]["epochs"] == 20


def test_a_group_that_came_later_is_in_the_hash_where_it_says_something(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else every run that there is would get another name."""
    assert determinants(CONFIG, DATA)["meter"] == {}
    monkeypatch.setitem(GROUPS, "meter", replace(GROUPS["meter"], later=True))
    assert "meter" not in determinants(CONFIG, DATA)
    assert determinants(replace(CONFIG, meter=MeterConfig(batch_size=50)), DATA)["meter"] == {"batch": 50}


# what run ids ended in before hardware files had prices by width, on-chip weights and longer runs
OF_PRICES = {
    ("published", "penalty.weighting"): "c1208d67",
    ("published", "pruning"): "5cdbdc76",
    ("fused_45nm", "penalty.weighting"): "01da459c",
    ("fused_45nm", "pruning"): "c413d8f2",
    ("fused_45nm_int8", "penalty.weighting"): "d51d8d3d",
    ("fused_45nm_int8", "pruning"): "7aeff9ab",
    ("fused_7nm", "penalty.weighting"): "a284714a",
    ("fused_7nm", "pruning"): "f65ffa44",
    ("fused_7nm_int8", "penalty.weighting"): "fc5c8e81",
    ("fused_7nm_int8", "pruning"): "e30c9e96",
    ("eyeriss_65nm", "penalty.weighting"): "a99a7473",
    ("eyeriss_65nm", "pruning"): "bfd75644",
}


@pytest.mark.parametrize(("hardware", "reader"), OF_PRICES)
def test_runs_that_read_prices_keep_their_names(hardware: str, reader: str) -> None:
    config = compose_experiment([f"hardware={hardware}", f"{reader}=energy"])
    assert run_id(config, "0").endswith(f"-{OF_PRICES[hardware, reader]}")


def test_keys_that_came_later_are_in_the_hash_where_they_say_something() -> None:
    def prices(**changes: Any) -> dict[str, Any]:
        hardware = FusedHardware(multiply_pj=1.0, **changes)
        return determinants(ExperimentConfig(penalty=L0Config(weighting="energy"), hardware=hardware), DATA)["hardware"]

    plain = prices()
    assert not {"weight_buffer_bits", "run_bits", "mac_pj_by_bits", "ranges"} & set(plain)
    assert prices(ranges={"multiply_pj": [0.5, 2.0]}) == plain
    assert prices(weight_buffer_bits=8) == plain | {"weight_buffer_bits": 8}
    assert prices(run_bits=[5, 8]) == plain | {"run_bits": [5, 8]}


@dataclass(kw_only=True, slots=True)
class Rounding(MethodConfig):
    bits: int = 4

    @property
    def widths(self) -> frozenset[int]:
        return frozenset({self.bits})


def reading(by_bits: dict[int, float], rounding: Rounding | None = None) -> ExperimentConfig:
    """A run that reads prices: all operations of a width cost the same."""
    prices = {bits: OperationPrices(multiply_pj=pj, accumulate_pj=pj, add_pj=pj) for bits, pj in by_bits.items()}
    hardware = FusedHardware(bits=8, multiply_pj=1.0, mac_pj_by_bits=prices)
    methods = {} if rounding is None else {"rounding": rounding}
    return ExperimentConfig(penalty=L0Config(weighting="energy"), hardware=hardware, methods=methods)


def test_prices_of_a_width_are_in_the_hash_of_runs_that_have_such_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(GROUPS, "rounding", Group(schemas={"rounding": Rounding}, about="", method=True))
    some, other, cheaper = {2: 0.1, 4: 0.5}, {2: 0.2, 4: 0.5}, {2: 0.1, 4: 0.4}
    assert run_id(reading({}), DATA) == run_id(reading(some), DATA)
    rounded = [run_id(reading(prices, Rounding(name="rounding")), DATA) for prices in (some, other, cheaper)]
    assert rounded[0] == rounded[1] != rounded[2]
    found = determinants(reading(some, Rounding(name="rounding")), DATA)["hardware"]
    assert found["mac_pj_by_bits"] == {"4": {"multiply_pj": 0.5, "accumulate_pj": 0.5, "add_pj": 0.5}}


def test_a_width_without_prices_is_refused_before_training() -> None:
    reading({4: 0.5}, Rounding(name="rounding")).check()
    with pytest.raises(UserError, match="no price for layers of 4-bit weights"):
        reading({}, Rounding(name="rounding")).check()
    with pytest.raises(UserError, match="hardware published prices 32-bit values, not 4 bits"):
        ExperimentConfig(methods={"rounding": Rounding(name="rounding")}).check()


def test_what_tells_runs_apart_whose_ids_differ_in_the_hash_alone() -> None:
    def told(**configs: ExperimentConfig) -> dict[str, str]:
        return distinctions({key.replace("_", "-"): config for key, config in configs.items()})

    plain = ExperimentConfig()
    wide, slow = replace(plain, model=ModelConfig(width=8)), replace(plain, schedule=ScheduleConfig(name="cosine"))
    assert told(a_1=plain, b_2=wide) == {"a-1": "", "b-2": ""}
    assert told(a_1=plain, a_2=wide) == {"a-1": f"model.width={plain.model.width}", "a-2": "model.width=8"}
    both = replace(wide, schedule=ScheduleConfig(name="cosine", gamma=0.25))
    assert told(a_1=wide, a_2=both, a_3=slow)["a-2"] == "model.width=8 schedule=cosine"
    # what determines no result tells nothing, but where weights come from is said where nothing else differs
    elsewhere = replace(plain, results_dir="there", threads=7, init="x.pt")
    assert told(a_1=replace(plain, init="y.pt"), a_2=elsewhere) == {"a-1": "init=y.pt", "a-2": "init=x.pt"}
