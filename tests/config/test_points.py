"""The runs along a path: their order, names and parents, by hand."""

from dataclasses import replace
from pathlib import Path

import pytest

from eat_runner.cli.hydra.compose import compose_experiment as composed
from eat_runner.config.identity import FRESH, Start, run_id
from eat_runner.config.points import points, preparations
from eat_runner.config.root import ExperimentConfig

DATA = "f" * 8


def ran(*overrides: str) -> tuple[list[ExperimentConfig], list[Start]]:
    found = list(points(composed(overrides), DATA))
    return [point for point, _ in found], [start for _, start in found]


def test_a_path_of_lambda_by_hand() -> None:
    settings = ("seed=3", "results_dir=there", "name=mine")
    found, starts = ran("path=lambda", "path.over=[2,0,0.5,2]", "path.epochs=3", "path.lr=0.01", *settings)
    root = composed(["lambda=0", *settings])
    names = [run_id(root, DATA)]
    for value in ("0.5", "2"):
        init = str(Path("there", "mine", names[-1]))
        same = composed([f"lambda={value}", f"init={init}", "trainer.epochs=3", "trainer.lr=0.01", *settings])
        assert found[len(names)] == same
        names.append(run_id(same, DATA, Start(parent=names[-1])))
    assert found[0] == root
    assert starts == [FRESH, Start(parent=names[0]), Start(parent=names[1])]
    assert [run_id(*each[:1], DATA, each[1]) for each in zip(found, starts, strict=True)] == names


def test_from_many_weights_to_few_and_from_much_energy_to_little() -> None:
    found, _ = ran("path=density", "pruning=magnitude", "path.over=[0.1,0.4,0.2]")
    assert [point.methods["pruning"].density for point in found[1:]] == [0.4, 0.2, 0.1]  # pyright: ignore
    assert found[0].is_baseline
    assert [point.lambda_ for point in found] == [0.0] * 4
    found, _ = ran("path=budget", "pruning=energy", "path.over=[0.2,0.5]", "lambda=1")
    assert [(point.budget, point.lambda_, point.is_baseline) for point in found] == [
        (None, 0.0, True),
        (0.5, 1.0, False),
        (0.2, 1.0, False),
    ]


def test_a_path_from_a_network_that_is_there() -> None:
    found, starts = ran("path=lambda", "path.over=[1]", "init=weights.pt")
    assert found[0].init == "weights.pt"
    config = composed(["path=lambda", "path.over=[1]", "init=weights.pt"])
    begun = list(points(config, DATA, Start(file_hash="abc")))
    assert begun[0][1] == Start(file_hash="abc")
    assert begun[1][1] == Start(parent=run_id(begun[0][0], DATA, Start(file_hash="abc")))
    assert starts[0] == FRESH


def test_without_a_path_a_configuration_is_its_own_run() -> None:
    config = composed(["lambda=2"])
    assert list(points(config, DATA, Start(parent="p"))) == [(config, Start(parent="p"))]


@pytest.mark.parametrize("name", ["lambda", "density", "budget"])
def test_how_a_path_is_reached_changes_no_name(name: str) -> None:
    """A run of a path is the run that ``init`` makes by hand: nothing of the path is in its identity."""
    config = composed([f"path={name}", "pruning=energy", "path.over=[0.3]", "lambda=1"])
    plain = replace(config, others=composed([]).others)
    assert run_id(config, DATA) == run_id(plain, DATA)


def test_what_has_to_be_made_ready_is_counted_once() -> None:
    sweep = [composed([f"lambda={value}", f"model.width={width}", "seed=3"]) for value in (0, 1, 2) for width in (4, 8)]
    assert preparations(sweep) == 4  # two widths, with a penalty and without
    # the job itself, the standard training that it begins with, and what is like it with a penalty: its own epochs
    assert preparations([composed(["path=lambda", "path.over=[1,2]"])]) == 3
