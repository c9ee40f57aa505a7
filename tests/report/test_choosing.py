"""eat-report --select with a limit of energy or accuracy: the folder on stdout, what it is on stderr."""

import re
from pathlib import Path

import pytest

from eat_runner.cli.errors import one_line_errors
from eat_runner.cli.report import command
from eat_runner.config.pruning import PruningConfig
from eat_runner.config.root import default_methods
from run_folders import accuracy, config, write_run

LAMBDAS = (0, 1, 3)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds each; energy and accuracy both fall with lambda."""
    folder = tmp_path_factory.mktemp("results") / "demo"
    for number in range(2 * len(LAMBDAS)):
        write_run(folder, config(LAMBDAS[number // 2], number % 2), blocks=1)
    return folder


def chosen(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[Path, str]:
    capsys.readouterr()
    command([*arguments, "--select", "--hardware", "fused_45nm"])
    printed = capsys.readouterr()
    assert printed.out.count("\n") == printed.err.count("\n") == 1
    return Path(printed.out.rstrip("\n")), printed.err.rstrip("\n")


def energy(told: str) -> float:
    found = re.search(r"([\d.]+) uJ per image", told)
    assert found is not None
    return float(found[1])


def mean(lambda_: float) -> float:
    return sum(accuracy(lambda_, seed, "validation") for seed in (0, 1)) / 2


def test_the_cheapest_at_an_accuracy_then_the_most_accurate_at_its_energy(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    needs: dict[float, float] = {}
    for lambda_ in LAMBDAS:  # just below a setting's mean that setting is the cheapest that is left
        path, told = chosen(capsys, str(sweep), "--min-accuracy", str(mean(lambda_) - 1e-6))
        assert path.parent == sweep
        assert f"-lambda{lambda_:g}-seed0-" in path.name
        assert f": validation accuracy {mean(lambda_):.4f}, " in told
        assert told.endswith(" (mean of 2 seeds), fused_45nm")
        needs[lambda_] = energy(told)
        assert chosen(capsys, str(sweep), "--min-accuracy", f"{100 * mean(lambda_) - 1e-4}%") == (path, told)
    assert sorted(needs.values(), reverse=True) == list(needs.values())
    # at its energy (shown in four digits) the middle one is the most accurate, whatever less would do
    limits = ["--max-uj", str(needs[1] * 1.001), "--min-accuracy", str(mean(3) - 1e-6)]
    assert "-lambda1-" in chosen(capsys, str(sweep), *limits)[0].name


def test_test_accuracy_chooses_only_by_the_papers_rule(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The cheaper run is good on the test split alone."""
    write_run(tmp_path, config(0.0), accuracy={"train": 0.9, "validation": 0.9, "test": 0.5})
    write_run(tmp_path, config(1.0), accuracy={"train": 0.9, "validation": 0.5, "test": 0.9})
    assert "-lambda0-" in chosen(capsys, str(tmp_path), "--min-accuracy", "0.8")[0].name
    path, told = chosen(capsys, str(tmp_path), "--min-accuracy", "0.8", "--selection", "paper")
    assert "-lambda1-" in path.name
    assert ": test accuracy 0.9000, " in told


def test_of_several_networks_the_name_says_which(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The reference's, too. Width 64 is resnet18's own, which a run's determinants leave out."""
    pruned = default_methods() | {"pruning": PruningConfig(name="magnitude", density=0.1)}
    most_accurate: list[str] = []
    for width in (16, 64):
        for lambda_, chosen_methods in ((0.0, default_methods()), (1.0, default_methods()), (0.0, pruned)):
            share = 0.9 + 0.01 * len(most_accurate)
            shares = {"train": 0.9, "validation": share, "test": 0.9}
            write_run(tmp_path, config(lambda_, width=width, methods=chosen_methods), blocks=1, accuracy=shares)
            most_accurate.append(chosen(capsys, str(tmp_path), "--max-uj", "1e6")[1].split(": ")[0])
    assert most_accurate == [
        "standard training, width 16",
        "EAT, λ 1",
        "pruning=magnitude",
        "resnet18, width 64, standard training",
        "resnet18, width 64, EAT, λ 1",
        "resnet18, width 64, pruning=magnitude",
    ]
    narrow = chosen(capsys, str(tmp_path), "--max-uj", "1e6", "--min-accuracy", "0.9", "--selection", "paper")[1]
    assert narrow.startswith("resnet18, width 16, pruning=magnitude: test accuracy 0.9000")


def test_finished_runs_without_a_price_are_counted_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path, config(0.0), blocks=1)
    write_run(tmp_path, config(1.0), status="failed")
    for seed, batch in enumerate((50, 50, 20)):
        write_run(tmp_path, config(2.0, seed), blocks=1, meter={"batch": batch, "threshold": 0.0})
    command([str(tmp_path), "--select", "--hardware", "published", "--min-accuracy", "0.5"])
    printed = capsys.readouterr()
    fifty, twenty, told = printed.err.splitlines()
    for line, number, batch in ((fifty, 2, 50), (twenty, 1, 20)):
        assert line.startswith(f"{number} of 4 finished runs left out: hardware published needs counts with ")
        assert f"these have {batch}: " in line
        assert "--hardware names another price list" in line
    assert told.startswith("standard training")
    assert "-lambda0-" in printed.out
    assert printed.out.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["--select", "--max-uj", "0.001"],
            r"no run needs at most 0.001 uJ per image: the nearest, what needs least, is EAT, λ 3: validation ",
        ),
        (
            ["--select", "--min-accuracy", "0.999"],
            r"no run is at least 0.999 accurate: the nearest, the most accurate, is standard training, width 16: "
            r"validation accuracy 0.9545, ",
        ),
        (
            ["--select", "--max-uj", "1e6", "--min-accuracy", "0.999"],
            r"no run needs at most 1e\+06 uJ per image and is at least 0.999 accurate: the nearest, the most accurate "
            r"within the energy, is standard",
        ),
        (
            ["--select", "--max-uj", "0.001", "--min-accuracy", "99.9%"],
            r"no run needs at most 0.001 uJ per image and is at least 0.999 accurate: the nearest, what needs least, "
            r"is EAT, λ 3: ",
        ),
        (["--max-uj", "3"], r"--max-uj and --min-accuracy choose a run to print: add --select$"),
        (["--select", "--max-uj", "ten"], r"argument --max-uj: ten is not a number above 0"),
        (["--select", "--max-uj", "-1"], r"argument --max-uj: -1 is not a number above 0"),
        (["--select", "--min-accuracy", "95"], r"argument --min-accuracy: 95 is not a share between 0 and 1, as 0.95"),
        (["--select", "--min-accuracy", "101%"], r"argument --min-accuracy: 101% is not a share between 0 and 1, as"),
        (["--select", "--min-accuracy", "%"], r"argument --min-accuracy: % is not a share between 0 and 1, as"),
        (["--select", "--max-uj", "30%"], r"argument --max-uj: 30% is not a number above 0"),
        (
            ["--select", "--max-uj", "3", "--hardware", "eyeriss_65nm"],
            r"--max-uj: the prices of eyeriss_65nm are relative, so there are no joules: use --min-accuracy$",
        ),
    ],
)
def test_what_cannot_be_chosen_is_one_line(
    sweep: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], line: str
) -> None:
    prices = [] if "--hardware" in arguments else ["--hardware", "fused_45nm"]
    with pytest.raises(SystemExit) as end, one_line_errors("eat-report"):
        command([str(sweep), *arguments, *prices])
    printed = capsys.readouterr()
    assert (end.value.code, printed.out) == (2, "")
    assert printed.err.count("\n") == 1
    assert re.match(f"eat-report: error: {line}", printed.err.rstrip("\n"))


def test_runs_on_several_data_sets_or_none_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, config(1.0), status="failed")
    arguments = [str(tmp_path), "--select", "--max-uj", "30"]
    with pytest.raises(SystemExit), one_line_errors("eat-report"):
        command(arguments)
    assert "no run that is finished" in capsys.readouterr().err
    for dataset in ("digits", "cifar10"):
        write_run(tmp_path, config(0.0, dataset=dataset))
    with pytest.raises(SystemExit), one_line_errors("eat-report"):
        command(arguments)
    assert "among those on the same data, here are cifar10, digits: name one folder" in capsys.readouterr().err


def test_without_a_validation_split_there_is_nothing_to_choose_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen_without = config(0.0)
    chosen_without.dataset.validation = 0.0
    write_run(tmp_path, chosen_without)
    with pytest.raises(SystemExit), one_line_errors("eat-report"):
        command([str(tmp_path), "--select", "--min-accuracy", "0.1"])
    assert "no run has a validation split to choose on: --selection paper looks at" in capsys.readouterr().err
