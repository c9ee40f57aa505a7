"""The files of conf/: each composes, each name is one that the code has, and the other way round."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from eat_runner import data, loggers, models, penalties
from eat_runner.cli.help import COMBINATIONS, choices
from eat_runner.cli.hydra.compose import compose_experiment, key_types, root_keys
from eat_runner.cli.hydra.launch import compose_sweep
from eat_runner.config import ExperimentConfig
from eat_runner.config.groups import DEFAULT, GROUPS
from eat_runner.config.paths import conf_dir
from eat_runner.energy.hardware import builtin_hardware, load_hardware
from eat_runner.train.schedules import SCHEDULES

REGISTRIES = {
    "dataset": data.DATASETS,
    "model": models.MODELS,
    "penalty": penalties.PENALTIES,
    "schedule": SCHEDULES,
    "loggers": loggers.LOGGERS,
}
CHOICES = [(group, name) for group in (*GROUPS, *COMBINATIONS) for name in choices(group)]


def test_every_folder_of_conf_is_a_group_of_the_help() -> None:
    folders = {path.name for path in conf_dir().iterdir() if path.is_dir()}
    assert folders == {*GROUPS, *COMBINATIONS, "hydra"} - {"meter"}


@pytest.mark.parametrize("group", REGISTRIES)
def test_registry_and_files_have_the_same_names(group: str) -> None:
    assert set(REGISTRIES[group]) == set(choices(group))


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_every_file_composes_within_its_ranges_under_its_own_name(group: str, name: str) -> None:
    # the default prices 32 bits alone, a path has no strengths of its own, and a teacher is what a training starts from
    path = ["path.over=[0.5]", "pruning=energy", "lambda=1"]
    fitting = {"bits": ["hardware=fused_45nm_int8"], "path": path, "teacher": ["init=run"]}
    if name == DEFAULT:
        fitting = {}
    config = compose_experiment([f"{group}={name}", *fitting.get(group, [])])
    if group == "loggers":
        assert name in config.loggers
    elif group in {*REGISTRIES, "hardware"}:
        assert getattr(config, group).name == name


@pytest.mark.parametrize("name", choices("hardware"))
def test_a_price_list_is_the_same_through_hydra_and_from_its_file(name: str) -> None:
    assert compose_experiment([f"hardware={name}"]).hardware == load_hardware(name)


def test_a_hardware_file_of_ones_own_is_chosen_by_its_path(tmp_path: Path) -> None:
    """Also one that is called as a built-in one, and in a sweep."""
    files = [tmp_path / "fused_45nm.yaml", tmp_path / "there" / "fused_45nm.yaml"]
    files[1].parent.mkdir()
    text = (conf_dir() / "hardware" / "fused_45nm.yaml").read_text()
    for price, file in enumerate(files, start=7):
        file.write_text(
            text.replace("multiply_pj: 3.7", f"multiply_pj: {price}").replace("name: fused_45nm", "name: my")
        )
    swept = compose_sweep([f"hardware={files[0]},fused_45nm,{files[1]}"])
    assert [config.hardware.multiply_pj for config in swept] == [7.0, 3.7, 8.0]
    assert [config.hardware for config in swept] == [
        load_hardware(str(name)) for name in (files[0], "fused_45nm", files[1])
    ]


def test_every_price_list_is_built_in() -> None:
    assert builtin_hardware() == choices("hardware")


def test_config_yaml_states_the_defaults_of_the_code() -> None:
    """config.yaml is the table of contents: every root key stands there, with the value that the dataclass has."""
    written = yaml.safe_load((conf_dir() / "config.yaml").read_text())
    default = ExperimentConfig()
    assert set(written) - {"defaults", "hydra"} == {*root_keys(), "meter"}
    values = {key: getattr(default, field) for key, field in root_keys().items()}
    assert {key: written[key] for key in values} == values | {"lambda": None}
    assert written["meter"] == {
        key: getattr(default.meter, key) for key in ("batch_size", "threshold", "ignore_uncounted")
    }


@pytest.mark.parametrize(("instructions", "precision"), [(True, "bf16"), (False, "fp32")])
def test_the_machine_settles_the_precision_where_it_is_asked_to(
    instructions: bool, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: instructions, False)
    assert compose_experiment(["device=cpu", "trainer.precision=auto"]).trainer.precision == precision
    assert compose_experiment(["device=cpu"]).trainer.precision == "fp32"


def test_the_paper_trainer_is_the_papers() -> None:
    """arXiv 2307.00368, section 4: SGD, momentum 0.9, weight decay 5e-4, rate 0.1 times 0.95 an epoch, batch 512."""
    trainer = compose_experiment(["trainer=paper"]).trainer
    assert (trainer.epochs, trainer.batch_size, trainer.lr) == (100, 512, 0.1)
    assert (trainer.momentum, trainer.weight_decay) == (0.9, 5e-4)
    assert (trainer.lr_schedule, trainer.lr_gamma) == ("exponential", 0.95)


def test_key_types_name_what_can_be_set() -> None:
    assert key_types()["lambda"] == key_types()["hardware.dram_pj_per_bit"] == "float"
    assert key_types()["trainer.epochs"] == key_types()["seed"] == key_types()["hardware.batch_size"] == "int"
    assert key_types()["dataset.flip"] == key_types()["plan"] == "bool"
    assert key_types()["init"] == key_types()["model.arch"] == "str"


def test_no_file_names_code() -> None:
    for path in conf_dir().rglob("*.yaml"):
        assert "_target_" not in path.read_text(), path


def test_a_users_folder_extends_a_group(tmp_path: Path) -> None:
    (tmp_path / "trainer").mkdir()
    (tmp_path / "trainer" / "mine.yaml").write_text("defaults: [fast, _self_]\nepochs: 3\n")
    trainer = compose_experiment([f"hydra.searchpath=[file://{tmp_path}]", "trainer=mine"]).trainer
    assert trainer == replace(compose_experiment(["trainer=fast"]).trainer, epochs=3)
