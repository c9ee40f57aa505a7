"""Completion: what bash, zsh and fish get when somebody presses Tab, and that nobody else pays for it."""

import os
import pty
import shlex
import shutil
import subprocess
import sys
import tomllib
from dataclasses import fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from eat_runner.cli.hydra.completion import VALUES, overrides
from eat_runner.cli.hydra.compose import key_types
from eat_runner.cli.parser import COMMANDS, SHELLS, folders, paths, price_lists
from eat_runner.config import ExperimentConfig
from eat_runner.config.groups import GROUPS
from eat_runner.energy.hardware import load_hardware
from eat_runner.errors import UserError

BIN = Path(sys.executable).parent
PROGRAMS = [command.removeprefix("eat-") for command in COMMANDS]
complete = overrides({"hydra/launcher": ("basic",), "trials": ()}, refused={"path"})

ASK = """
eval "$(eat-report -sc install=bash)"
for COMP_LINE in "$@"; do
    COMP_POINT=${#COMP_LINE} COMP_TYPE=9
    _python_argcomplete "${COMP_LINE%% *}"
    printf '%s\\t' "${COMPREPLY[@]}"
    echo
done
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a chip of one's own, and the commands on the PATH."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{BIN}:{os.environ['PATH']}")
    Path("fused_mine.yaml").touch()
    Path("notes.txt").touch()
    Path("chips/old").mkdir(parents=True)
    Path("chips/a b.yml").touch()
    Path(".hidden").mkdir()
    return tmp_path


def asked(*lines: str) -> list[list[str]]:
    """What bash gets at the end of each line, without the spaces that it sets behind a single word."""
    done = subprocess.run(["bash", "--norc", "-c", ASK, "bash", *lines], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return [[word.rstrip() for word in answer.split("\t") if word] for answer in done.stdout.splitlines()]


BASH = {
    "eat-report --hardware fused_": ["fused_45nm", "fused_45nm_int8", "fused_7nm", "fused_7nm_int8", "fused_mine.yaml"],
    "eat-report ": ["chips/"],
    "eat-report chips --by ": ["family", "dataset"],
    "eat-report chips --hardware fused_7nm --x=": ["ratio", "energy", "relative"],
    "eat-measure torchvision:resnet18 --hardware eyeriss_65nm --hardware fused_m": ["fused_mine.yaml"],
    "eat-export chips --preprocessing ": ["uint8", "float"],
    "eat-export chips --onnx ": ["chips/"],
    "eat-run lambda=1 -m model.width=4 model=resnet18,vgg1": [f"resnet18,vgg{depth}" for depth in (11, 13, 16, 19)],
}


def test_bash() -> None:
    assert dict(zip(BASH, asked(*BASH), strict=True)) == BASH


@pytest.mark.parametrize("line", ["eat-run 'lambda=log(", "eat-run lambda=$(", "eat-report gone/", "eat-export ) --"])
def test_what_is_half_typed_has_no_answer_and_no_error(line: str) -> None:
    [answer] = asked(line)
    assert answer == [] or all(word.startswith("--") for word in answer)


# what is typed, with a Tab where there is one -> the line that this gives
TYPED = {
    "eat-report chips --har\teye\t --by d\t": "eat-report chips --hardware eyeriss_65nm --by dataset",
    "eat-measure --hardware=chips/a\t torchv\tresnet18": "eat-measure --hardware=chips/a b.yml torchvision:resnet18",
    "eat-run 'lambda=log(\t1,10)' -m sel\tp\t": "eat-run lambda=log(1,10) -m selection=paper",
    "eat-run hardware=fused_m\tmet\tb\t8 download=t\t": "eat-run hardware=fused_mine.yaml meter.batch_size=8 "
    "download=true",
    "eat-search samp\tt\ttrials=3": "eat-search sampler=tpe trials=3",
}
SESSIONS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], 'eval "$(eat-report -sc install=bash)"'),
    "zsh": (
        ["zsh", "-f", "-i"],
        'autoload -Uz compinit; compinit -u -D; bindkey -e; eval "$(eat-report -sc install=zsh)"',
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("shell", SESSIONS)
def test_somebody_types(shell: str) -> None:
    """Ctrl-A and ``echo`` in front of each line let the shell say what it has become."""
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    program, install = SESSIONS[shell]
    lines = "".join(f"{line}\x01echo \n" for line in TYPED)
    output = session(program, f"{install}\n{lines}exit\n")
    assert [line for line in output.splitlines() if line in {*TYPED.values()}] == [*TYPED.values()]
    assert "error" not in output
    assert "Traceback" not in output


def session(program: list[str], keys: str) -> str:
    """What a terminal shows to whoever types this."""
    process, terminal = pty.fork()
    if process == 0:
        os.environ |= {"TERM": "dumb", "PS1": "> "}
        os.execvp(program[0], program)
    os.write(terminal, keys.encode())
    shown = b""
    while data := read(terminal):
        shown += data
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    return shown.decode()


def read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux' way to say that nobody writes any more
        return b""


FISH = {
    "eat-report --hardware fused_7": ["fused_7nm", "fused_7nm_int8"],
    "eat-run -m model=resnet18,vgg16,to": ["model=resnet18,vgg16,torchvision"],
    "eat-search 'lambda=log(1,2)' stop_early=": ["stop_early=false", "stop_early=true"],
}


@pytest.mark.long
@pytest.mark.skipif(shutil.which("fish") is None, reason="no fish here")
@pytest.mark.parametrize("line", FISH)
def test_fish(line: str) -> None:
    script = f"eat-report -sc install=fish | source; complete -C {shlex.quote(line)}"
    done = subprocess.run(["fish", "--no-config", "-c", script], capture_output=True, text=True, check=True)
    assert [answer.partition("\t")[0] for answer in done.stdout.splitlines()] == FISH[line]
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("mo", ["model.", "model="]),
        ("met", ["meter.batch_size=", "meter.ignore_uncounted=", "meter.threshold="]),  # a group without choices
        ("model.h", ["model.head="]),
        ("loggers.w", ["loggers.wandb.mode=", "loggers.wandb.project="]),
        ("hyd", ["hydra/launcher="]),
        ("tri", ["trials="]),
        ("path", []),
        ("nonsense", []),
        ("bits=", ["bits=4", "bits=8", "bits=none", "bits=fused_mine.yaml"]),
        ("hardware=fused_m", ["hardware=fused_mine.yaml"]),
        ("hardware=published,./f", ["hardware=published,./fused_mine.yaml"]),
        ("experiment=methods/g", ["experiment=methods/gtsrb"]),
        ("loggers=[csv,m", ["loggers=[csv,mlflow"]),
        ("pruning.structure=", ["pruning.structure=element", "pruning.structure=channel", "pruning.structure=2:4"]),
        ("plan=", ["plan=true", "plan=false"]),
        ("init=./n", ["init=./notes.txt"]),
        ("data_dir=", ["data_dir=chips/"]),
        ("data_dir=n", []),
        ("trials=", []),
        ("lambda=", []),
        ("nonsense=", []),
    ],
)
def test_keys_and_values(typed: str, words: list[str]) -> None:
    """argcomplete leaves out the words that do not begin so."""
    assert [word for word in complete(prefix=typed) if word.startswith(typed)] == words


def test_every_key_is_reached_from_its_beginning() -> None:
    """Level by level, as somebody does who always takes what is offered."""
    level, found = [""], set[str]()
    while level:
        offered = [word for typed in level for word in complete(prefix=typed)]
        found |= {word[:-1] for word in offered if word.endswith("=")}
        level = [word for word in offered if word.endswith(".")]
    assert found >= {key for key in key_types() if not key.startswith("path")}
    assert found >= {*GROUPS} - {"meter", "path"}


def test_values_are_those_that_are_accepted() -> None:
    """In both directions: of every key that is a text, what its check says about one that it does not know."""
    configs: list[tuple[str, Any]] = [("", ExperimentConfig())]
    configs += [("hardware.", load_hardware(name)) for name in ("published", "fused_45nm")]
    configs += [(f"loggers.{name}.", schema()) for name, schema in GROUPS["loggers"].schemas.items()]
    for name in {*GROUPS} - {"hardware", "loggers"}:
        configs += [(f"{name}.", schema()) for schema in GROUPS[name].schemas.values()]
    accepted: dict[str, list[str]] = {}
    for prefix, config in configs:
        for field in fields(config):
            key = f"{prefix}{field.name}"
            if key_types().get(key) != "str" or field.name in ("name", "rule"):  # which a group's choice sets
                continue
            try:
                replace(config, **{field.name: "zzz"}).check()
            except UserError as error:
                told, _, choices = str(error).partition(" is unknown: choose one of ")
                if told == f"{key}=zzz":
                    accepted[key] = choices.split(", ")
    assert accepted == {key: [*values] for key, values in VALUES.items()}


def test_paths() -> None:
    assert [*paths("", ("",))] == ["chips/", "fused_mine.yaml", "notes.txt"]
    assert [*folders("")] == ["chips/"]
    assert [*folders(".h")] == [".hidden/"]
    assert [*folders("chips/")] == ["chips/old/"]
    assert [*paths("chips/", (".yml",))] == ["chips/a b.yml", "chips/old/"]
    assert [*paths("chips/x/", ("",))] == []
    assert price_lists("chips/")[-2:] == ["chips/a b.yml", "chips/old/"]
    assert "chips/" not in price_lists("")


def test_the_home_folder_keeps_its_sign(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here))
    assert [*folders("~/c")] == ["~/chips/"]


@pytest.mark.parametrize("program", PROGRAMS)
def test_each_command_installs_all(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = import_module(f"eat_runner.cli.{program}").command
    for shell in SHELLS:
        try:
            command(["-sc", f"install={shell}"])
        except SystemExit as end:
            assert not end.code  # noqa: PT017
        script = capsys.readouterr().out
        assert all(name in script for name in COMMANDS)
    for wrong in ([], ["install=tcsh"], ["bash"], ["install=bash", "install=zsh"]):
        with pytest.raises(UserError, match=f"needs a shell: write eat-{program} -sc install=bash \\(or zsh, fish\\)"):
            command(["--shell-completion", *wrong])


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_names_it(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = import_module(f"eat_runner.cli.{program}").command
    try:
        command(["--help"])
    except SystemExit as end:
        assert not end.code  # noqa: PT017
    assert f'eval "$(eat-{program} -sc install=bash)"' in " ".join(capsys.readouterr().out.split())


def test_all_commands_are_there() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert {*COMMANDS} == {*project["scripts"]}


@pytest.mark.parametrize(
    ("program", "typed", "answer"),
    [
        ("run", "model=vgg1", "model=vgg11 model=vgg13 model=vgg16 model=vgg19"),
        ("search", "sampler=r", "sampler=random "),
        ("report", "--hardware small", "small_45nm_int8 "),
        ("measure", "torchv", "torchvision:"),
        ("export", "--p", "--preprocessing "),
    ],
)
def test_no_answer_waits_for_what_takes_long_to_import(program: str, typed: str, answer: str) -> None:
    line = f"eat-{program} {typed}"
    asks = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": " ", "COMP_LINE": line, "COMP_POINT": str(len(line))}
    command = [sys.executable, "-X", "importtime", "-m", f"eat_runner.cli.{program}"]
    done = subprocess.run(
        ["bash", "-c", '"$@" 8>&1 9>/dev/null', "bash", *command], capture_output=True, text=True, env=os.environ | asks
    )
    assert (done.stdout, done.returncode) == (answer, 0)
    imported = {told.rpartition("|")[2].strip() for told in done.stderr.splitlines()}
    assert "argcomplete" in imported
    assert not imported & {"torch", "pandas", "matplotlib", "optuna"}


def test_a_command_that_nobody_completes_imports_nothing_for_it() -> None:
    modules = ", ".join(f"eat_runner.cli.{program}" for program in PROGRAMS)
    code = f"import sys, {modules}; eat_runner.cli.run.command(['--help']); assert 'argcomplete' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0
