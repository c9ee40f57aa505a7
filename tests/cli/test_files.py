"""Files of one's own on eat-run's command line: where they lie, what they are called, how they are encoded."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from eat_runner.cli import run
from eat_runner.cli.hydra.arguments import as_hydra_reads
from eat_runner.cli.hydra.compose import compose_experiment
from eat_runner.cli.hydra.launch import compose_sweep
from eat_runner.config import ExperimentConfig
from eat_runner.config.paths import conf_dir
from eat_runner.errors import UserError

HARDWARE = (conf_dir() / "hardware" / "fused_45nm.yaml").read_text()
EXPERIMENT = "# @package _global_\ndefaults: [{override /trainer: paper}]\nseed: 3\n"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    return tmp_path


def chosen(argument: str) -> ExperimentConfig:
    """What ``eat-run ARGUMENT`` would run."""
    [config] = compose_sweep([argument])
    assert config == compose_experiment([argument])
    return config


NAMES = ["chip.yaml", "./chip.yaml", "a,b.yaml", "x=y.yaml", "sp ace (2).yaml", "qu'o\"te.yaml", "größe.yaml", "c.yml"]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_chosen_by_its_path_whatever_it_is_called(name: str) -> None:
    Path(name).write_text(HARDWARE.replace("multiply_pj: 3.7", "multiply_pj: 7"))
    assert chosen(f"hardware={name}").hardware.multiply_pj == 7  # type: ignore[attr-defined]


@pytest.mark.parametrize("quote", "'\"")
def test_a_path_in_quotes(quote: str) -> None:
    Path("a,b.yaml").write_text(HARDWARE.replace("multiply_pj: 3.7", "multiply_pj: 7"))
    assert chosen(f"hardware={quote}a,b.yaml{quote}").hardware.multiply_pj == 7  # type: ignore[attr-defined]


def test_files_of_every_group(here: Path) -> None:
    Path("mine.yaml").write_text(EXPERIMENT)
    for group in ("experiment", "recipe"):
        config = chosen(f"{group}=./mine.yaml")
        assert (config.seed, config.trainer.epochs) == (3, 100)
    Path("model.yaml").write_text("defaults: [base_model, _self_]\nname: resnet18\nwidth: 5\n")
    assert chosen("model=model.yaml").model.width == 5
    Path("trainer.yaml").write_text("defaults: [fast, _self_]\nepochs: 5\n")
    assert chosen(f"trainer={here / 'trainer.yaml'}").trainer.epochs == 5


def test_files_beside_names_in_a_sweep() -> None:
    Path("mine.yaml").write_text("# @package _global_\nseed: 3\n")
    assert [config.seed for config in compose_sweep(["recipe=st,mine.yaml"])] == [0, 3]
    assert [config.seed for config in compose_sweep(["recipe=mine.yaml,st", "lambda=0,1"])] == [3, 3, 0, 0]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_a_byte_order_mark_and_any_line_ends_are_accepted(encoding: str, ends: str) -> None:
    text = f"{EXPERIMENT}name: größe\n".replace("\n", ends)
    for path in (Path("mine.yaml"), Path("experiment/there.yaml")):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text.encode(encoding))
    for argument in ("experiment=mine.yaml", "experiment=there"):
        [config] = compose_sweep(["--config-dir", ".", argument])
        assert (config.seed, config.trainer.epochs, config.name) == (3, 100, "größe")
    Path("chip.yaml").write_bytes(HARDWARE.replace("\n", ends).encode(encoding))
    assert chosen("hardware=chip.yaml").hardware == compose_experiment(["hardware=fused_45nm"]).hardware


Command = Callable[[str], str]


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """What eat-run says and exits with 2."""

    def call(line: str) -> str:
        monkeypatch.setattr(sys, "argv", ["eat-run", *line.split()])
        monkeypatch.setattr("signal.signal", lambda *_: None)
        with pytest.raises(SystemExit) as stopped:
            run.main()
        assert stopped.value.code == 2
        [said] = capsys.readouterr().err.splitlines()
        return said

    return call


@pytest.mark.parametrize(
    ("encoding", "words"),
    [("latin-1", "byte 0xf6 in line 4"), ("utf-16", "UTF-16"), ("utf-16-le", "UTF-16"), ("cp1252", "byte 0xf6")],
)
def test_another_encoding_is_named_with_the_file(encoding: str, words: str, refused: Command) -> None:
    for path in ("experiment/mine.yaml", "hardware/chip.yaml"):
        Path(path).parent.mkdir()
        Path(path).write_bytes(f"{EXPERIMENT}name: größe\n".encode(encoding))
    for line in ("experiment=experiment/mine.yaml", "--config-dir . experiment=mine", "hardware=hardware/chip.yaml"):
        said = refused(line)
        assert ".yaml is no" in said
        assert words in said
        assert said.endswith("save it as UTF-8")


def test_a_file_that_lies_here_is_pointed_at(refused: Command) -> None:
    Path("mine.yaml").write_text(EXPERIMENT)
    assert refused("experiment=mine").endswith("; for your file: experiment=mine.yaml")
    Path("experiment").mkdir()
    Path("mine.yaml").rename("experiment/mine.yaml")
    assert refused("experiment=mine").endswith("; for your file: experiment=experiment/mine.yaml")


def test_a_primary_configuration_of_ones_own(refused: Command) -> None:
    Path("mine.yaml").write_text("seed: 3\n")
    for line in ("--config-name mine plan=true", "--config-name mine.yaml"):
        assert "mine.yaml is in this folder, so add --config-dir . and begin the file with defaults:" in refused(line)
    for line in ("", " plan=true", " -m seed=0,1"):
        assert refused(f"--config-dir . --config-name mine{line}") == (
            "eat-run: error: the file of --config-name must begin with the line: defaults: [config, _self_]"
        )
    Path("mine.yaml").write_text("defaults: [config, _self_]\nseed: 3\n")
    [config] = compose_sweep(["--config-dir", ".", "--config-name", "mine"])
    assert config.seed == 3


def test_errors_in_a_file_name_its_path(refused: Command) -> None:
    Path("mine.yaml").write_text("# @package _global_\nlambda: high\n")
    assert "mine.yaml" in refused("experiment=mine.yaml")
    Path("mine.yaml").write_text("a: 3\n  x: 1\n")
    assert 'in "mine.yaml", line 2' in refused("experiment=mine.yaml")
    Path("mine.yaml").write_text("# @package _global_\nhydra: {sweeper: {params: {seed: '0,1'}}}\n")
    assert "error: experiment=mine.yaml has a sweep of its own (seed)" in refused("-m experiment=mine.yaml,demo")
    Path("mine.yaml").write_text("seed: 3\n")
    assert refused("experiment=mine.yaml").endswith("must begin with the line: # @package _global_")


def test_code_in_a_file_is_refused(refused: Command, here: Path) -> None:
    Path("mine.yaml").write_text("# @package _global_\nhydra: {launcher: {_target_: os.mkdir}}\n")
    assert "hydra.launcher._target_ names code (os.mkdir)" in refused("experiment=mine.yaml")
    assert not (here / "mark").exists()


# the command line, without any file


@pytest.mark.parametrize(
    "line",
    ["-m lambda=0,1 seed=0,1", "lambda=0,1 -m seed=0,1", "lambda=0,1 seed=0,1 -m", "lambda=0,1 --multirun seed=0,1"],
)
def test_options_stand_anywhere(line: str) -> None:
    [option, *rest] = as_hydra_reads(line.split())
    assert option in {"-m", "--multirun"}
    assert rest == ["lambda=0,1", "seed=0,1"]


@pytest.mark.parametrize(
    ("written", "values"),
    [
        ("8", ["8"]),
        ("8,4", ["8", "4"]),
        ("choice(8,4)", ["8", "4"]),
        ("range(4,9,4)", ["4", "8"]),
        ("glob(?)", ["4", "8"]),
    ],
)
def test_choices_that_are_called_by_a_number(written: str, values: list[str]) -> None:
    swept = compose_sweep([f"bits={written}", "hardware=fused_45nm_int8"])
    assert [config.methods["bits"].name for config in swept] == [*values]


def test_a_glob_takes_files_and_no_schemas() -> None:
    swept = compose_sweep(["penalty=glob(*)"])
    assert [config.penalty.name for config in swept] == ["hoyer", "l0", "l1", "none", "transformed_l1"]


@pytest.mark.parametrize("folder", ["a,b", "x=y", "größe (2)", "qu'ote", "[1]", "a:b"])
def test_a_folder_whatever_it_is_called(folder: str, here: Path) -> None:
    (here / folder).mkdir()
    assert chosen(f"data_dir={folder}").data_dir == folder
    assert chosen(f"init={here / folder}").init == str(here / folder)


def test_texts_with_any_characters_in_a_sweep() -> None:
    assert [config.name for config in compose_sweep(["name=größe,猫 (2)"])] == ["größe", "猫 (2)"]


def test_a_home_folder_behind_the_equal_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/some/where")
    assert chosen("data_dir=~/images").data_dir == "/some/where/images"


def test_a_later_value_takes_the_place_of_an_earlier_one() -> None:
    assert [config.seed for config in compose_sweep(["seed=1", "seed=2"])] == [2]
    with pytest.raises(UserError, match="seed is given twice"):
        compose_sweep(["seed=1,2", "seed=3"])


def test_hydra_is_as_it_was() -> None:
    """Nothing of Hydra is changed by importing the command."""
    from hydra.core.override_parser.types import Override

    assert Override.value.__module__ == "hydra.core.override_parser.types"
