"""A path of real runs: what trains, what continues, and what is left to another process."""

from functools import partial
from pathlib import Path

import pytest

from eat_runner.records import RunFolder
from processes import eat_run, ended, finish, kill_when, outcomes, output, pause_after, paused, results

PATH = "-m path=lambda lambda=0,1,4 trainer.epochs=2 path.epochs=1"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("paths")


@pytest.fixture(scope="module")
def whole(place: Path) -> Path:
    """A path that nothing disturbed."""
    assert finish(place / "whole", PATH) == 0
    return place / "whole"


def by_lambda(folder: Path) -> dict[float, RunFolder]:
    found = [RunFolder(path.parent) for path in results(folder).glob("*/record.json")]
    return {run.read_record().config["lambda"]: run for run in found}


@pytest.mark.long
def test_each_run_starts_from_the_network_of_the_one_before_it(whole: Path) -> None:
    runs = by_lambda(whole)
    assert sorted(runs) == [0.0, 1.0, 4.0]
    records = {value: run.read_record() for value, run in runs.items()}
    assert [records[value].determinants.get("parent") for value in (0.0, 1.0, 4.0)] == [
        None,
        runs[0.0].path.name,
        runs[1.0].path.name,
    ]
    assert [len(runs[value].history.read_text().splitlines()) - 1 for value in (0.0, 1.0, 4.0)] == [2, 1, 1]
    assert "3 runs: 3 done" in plan(whole)
    assert (results(whole) / "pareto.png").exists()


def plan(folder: Path) -> str:
    before = len(output(folder))
    assert finish(folder, f"{PATH} plan=true") == 0
    return output(folder)[before:]


@pytest.mark.long
def test_a_run_of_a_path_is_the_one_that_is_made_by_hand(place: Path, whole: Path) -> None:
    runs = by_lambda(whole)
    by_hand = place / "by_hand"
    assert finish(by_hand, "lambda=0 trainer.epochs=2") == 0
    assert finish(by_hand, f"lambda=1 trainer.epochs=1 trainer.lr=0.05 init=results/default/{runs[0.0].path.name}") == 0
    mine = by_lambda(by_hand)
    for value in (0.0, 1.0):
        assert mine[value].path.name == runs[value].path.name
        assert mine[value].weights.read_bytes() == runs[value].weights.read_bytes()
    # the rest of the path goes on from there
    assert "3 runs: 2 done, 1 to do" in plan(by_hand)
    assert finish(by_hand, PATH) == 0
    assert outcomes(by_hand) == outcomes(whole)


@pytest.mark.long
def test_a_path_that_is_killed_goes_on_to_the_same_bits(place: Path, whole: Path) -> None:
    folder = place / "killed"
    second = results(folder) / by_lambda(whole)[1.0].path.name
    kill_when(eat_run(folder, PATH), (second / "checkpoint.pt").exists)
    assert finish(folder, PATH) == 0
    assert outcomes(folder) == outcomes(whole)


@pytest.mark.long
def test_a_run_that_another_process_has_is_left_to_it_with_all_that_follow(place: Path, whole: Path) -> None:
    folder = place / "shared"
    other = eat_run(folder, PATH, partial(pause_after, "checkpoint.pt"))
    with paused(other):
        assert finish(folder, PATH) == 0
        assert by_lambda(folder) == {}
    assert ended(other) == 0
    assert outcomes(folder) == outcomes(whole)


@pytest.mark.long
def test_a_path_ends_where_a_training_diverges(place: Path) -> None:
    folder = place / "diverged"
    assert finish(folder, PATH.replace("path.epochs=1", "path.epochs=1 path.lr=1e30")) == 1
    runs = by_lambda(folder)
    assert {value: run.read_record().status for value, run in runs.items()} == {0.0: "finished", 1.0: "diverged"}
    assert "the path ends" in output(folder)


def test_budgets_that_cannot_be_met_are_refused_before_the_root_is_trained(place: Path) -> None:
    folder = place / "refused"
    arguments = "-m path=budget pruning=energy budget=0.5,0.0001 lambda=1 hardware=fused_7nm_int8 trainer.epochs=1"
    assert finish(folder, arguments) == 2
    assert "the budget is 0.0001 of the dense energy" in output(folder)
    assert by_lambda(folder) == {}
