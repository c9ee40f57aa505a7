"""A study that several processes share: nothing is lost, nothing is done twice, and what is there counts."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

optuna = pytest.importorskip("optuna")

from optuna.distributions import CategoricalDistribution, FloatDistribution  # noqa: E402
from optuna.trial import TrialState  # noqa: E402

import run_folders  # noqa: E402
from eat_runner.config.identity import run_id  # noqa: E402
from eat_runner.energy.estimate import estimate  # noqa: E402
from eat_runner.energy.hardware import load_hardware  # noqa: E402
from eat_runner.errors import UserError  # noqa: E402
from eat_runner.records import RunFolder  # noqa: E402
from eat_runner.search.outcome import outcome, write  # noqa: E402
from eat_runner.search.study import JOURNAL, RUN, Search  # noqa: E402
from eat_runner.train.history import EpochRow  # noqa: E402

SPACE = {"lambda": FloatDistribution(0.1, 4, log=True), "model.width": CategoricalDistribution(["8", "16"])}
HARDWARE = load_hardware("fused_7nm")


def configured(point):
    chosen = run_folders.config(float(point["lambda"]), width=int(point["model.width"]))
    return replace(chosen, hardware=HARDWARE)


def identify(point):
    return run_id(configured(point), run_folders.FINGERPRINT)


def search(folder: Path, trials: int = 6, **changes) -> Search:
    values = {"sampler": "tpe", "seed": 0, "hardware": HARDWARE, "identify": identify} | changes
    return Search(folder, "study", SPACE, trials, **values)


def trained(found: Search, turn) -> None:
    run_folders.write_run(found.folder, configured(turn.point), blocks=2)


def states(found: Search) -> list[str]:
    return [trial.state.name for trial in found.own_trials()]


def test_the_number_of_trials_is_that_of_all_processes_and_commands(tmp_path):
    one, other = search(tmp_path), search(tmp_path)
    turns = [iter(one.turns()), iter(other.turns())]
    seen = []
    for who in itertools.cycle((0, 1, 1)):
        turn = next(turns[who], None)
        if turn is None:
            break
        seen.append(turn)
        trained(one, turn)
        (one, other)[who].tell(turn)
    assert [turn.number for turn in seen] == [1, 2, 3, 4, 5, 6]
    assert len({turn.run_id for turn in seen}) == 6  # a stream of its own for each
    assert states(one) == ["COMPLETE"] * 6
    assert next(search(tmp_path).turns(), None) is None
    more = search(tmp_path, trials=7)
    assert [turn.number for turn in itertools.islice(more.turns(), 1)] == [7]


def test_the_values_are_those_of_the_runs(tmp_path):
    found = search(tmp_path, trials=3)
    for turn in found.turns():
        trained(found, turn)
        found.tell(turn)
    for trial in found.own_trials():
        point = trial.user_attrs[RUN]["point"]
        expected = run_folders.accuracy(float(point["lambda"]), 0, "validation", int(point["model.width"]))
        counts = RunFolder(tmp_path / trial.user_attrs[RUN]["run_id"]).read_counts()
        energy = estimate(counts, HARDWARE, "validation").energy_uj_per_image
        assert trial.values == [expected, energy]


def test_what_a_dead_process_left_is_taken_over_and_nothing_else(tmp_path):
    dead, alive = search(tmp_path), search(tmp_path)
    left, held = dead.turns(), alive.turns()
    first, second = next(left), next(held)
    left.close()  # as when its process dies: the claim goes
    third = search(tmp_path)
    turns = third.turns()
    taken = next(turns)
    assert taken == first
    trained(third, taken)
    third.tell(taken)
    assert next(turns).number == 3  # not the second, which somebody has
    assert second.number == 2


def test_a_failed_run_is_repeated_by_the_next_command_and_not_by_this_one(tmp_path):
    found = search(tmp_path, trials=2)
    numbers = []
    for turn in found.turns():
        numbers.append(turn.number)
        run_folders.write_run(tmp_path, configured(turn.point), status="failed", reason="no memory")
        assert found.tell(turn)["status"] == "failed"
    assert numbers == [1, 2]
    again = search(tmp_path, trials=2)
    for turn in again.turns():
        numbers.append(turn.number)
        trained(again, turn)
        again.tell(turn)
    assert numbers == [1, 2, 1, 2]
    assert states(again) == ["COMPLETE"] * 2


@pytest.mark.parametrize("status", ["stopped", "diverged"])
def test_what_ended_early_is_final_for_the_study(tmp_path, status):
    found = search(tmp_path, trials=2)
    for turn in found.turns():
        run_folders.write_run(tmp_path, configured(turn.point), status=status)
        found.tell(turn)
    assert states(found) == ["PRUNED"] * 2
    assert [row["status"] for row in outcome(found).trials] == [status] * 2


def test_a_process_that_died_asking_leaves_nothing_and_a_half_line_is_cut_off(tmp_path):
    found = search(tmp_path, trials=2)
    found.study.ask()
    with (tmp_path / JOURNAL).open("ab") as file:
        file.write(b'{"op_code": 6, "worker')
    again = search(tmp_path, trials=2)
    for turn in again.turns():
        trained(again, turn)
        again.tell(turn)
    assert states(again) == ["COMPLETE"] * 2
    assert len(again.study.get_trials(states=[TrialState.FAIL])) == 1


def test_a_point_that_cannot_be_trained_is_named_and_counts(tmp_path):
    def narrow(point):
        if point["model.width"] == "16":
            raise UserError("model.width=16 does not fit")
        return identify(point)

    found = search(tmp_path, trials=8, sampler="grid", identify=narrow)
    numbers = []
    for turn in found.turns():
        numbers.append(turn.number)
        trained(found, turn)
        found.tell(turn)
    assert sorted(states(found)) == ["COMPLETE"] * 4 + ["FAIL"] * 4
    assert len(numbers) == 4
    said = outcome(found).lines
    assert sum("refused" in line and "model.width=16 does not fit" in line for line in said) == 4


def test_finished_runs_that_lie_in_the_space_begin_the_study(tmp_path):
    for lambda_, width in [(0.5, 8), (1.0, 16), (0.05, 8), (1.0, 12)]:  # the last two are outside
        run_folders.write_run(tmp_path, configured({"lambda": lambda_, "model.width": width}), blocks=2)
    other = replace(configured({"lambda": 2.0, "model.width": 8}), seed=1)  # another seed: not in the space
    run_folders.write_run(tmp_path, other, blocks=2)
    found = search(tmp_path, trials=2)
    assert found.take_in() == 2
    assert found.take_in() == 0
    assert sorted(trial.params["lambda"] for trial in found.all_trials()) == [0.5, 1.0]
    for turn in found.turns():
        trained(found, turn)
        found.tell(turn)
    assert len(found.own_trials()) == 2
    assert search(tmp_path, trials=2).take_in() == 0  # its own runs are no news
    rows = outcome(found).trials
    assert [(row["seeded"], row["trial"]) for row in rows] == [(1, None), (1, None), (0, 1), (0, 2)]


@pytest.mark.parametrize("sampler", ["grid", "random", pytest.param("tpe", marks=pytest.mark.long)])
def test_the_same_seed_makes_the_same_trials(tmp_path, sampler):
    points = []
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        found = search(tmp_path / place, trials=12 if sampler == "tpe" else 6, sampler=sampler)
        for turn in found.turns():
            trained(found, turn)
            found.tell(turn)
        points.append([trial.user_attrs[RUN]["point"] for trial in found.own_trials()])
    assert points[0] == points[1]
    if sampler == "grid":
        assert len({tuple(point.values()) for point in points[0]}) == 6


def test_the_outcome_is_the_area_below_the_front_so_far(tmp_path):
    found = search(tmp_path, trials=8, sampler="random")
    for turn in found.turns():
        trained(found, turn)
        found.tell(turn)
    came = outcome(found)
    rows = came.trials
    worst = max(row["dense"] for row in rows)
    assert came.worst == worst
    # by slices of energy: in each, the best accuracy of what costs no more
    values = [(row["accuracy_validation"], row["energy_validation_uj"]) for row in rows]
    for number in (1, 5, 8):
        edges = sorted({energy for _, energy in values[:number]} | {worst})
        area = sum(
            (high - low) * max(accuracy for accuracy, energy in values[:number] if energy <= low)
            for low, high in itertools.pairwise(edges)
        )
        assert rows[number - 1]["hypervolume"] == pytest.approx(area / worst)
    assert came.importance == {}  # of so few
    table, *plots = write(came, tmp_path)
    assert len(table.read_text().splitlines()) == 9
    assert [path.suffix for path in plots] == [".png", ".svg"]
    assert any("hypervolume" in line and "accuracy 0 at" in line for line in came.lines)


def test_a_trial_is_judged_by_finished_runs_of_its_length_on_its_hardware(tmp_path):
    """Histories that end where the run did; one of other hardware has energies of which nothing is known here."""
    found = search(tmp_path, trials=12, sampler="random")

    epochs = configured({"lambda": 1, "model.width": 8}).trainer.epochs

    def history(energy):
        return [{"epoch": epoch, "validation_accuracy": 0.5, "energy": energy} for epoch in range(1, epochs + 1)]

    for turn in found.turns():
        trained(found, turn)
        energy = found.tell(turn)["energy_validation"]
        RunFolder(tmp_path / turn.run_id).write_history(history(2 * energy))
    row = EpochRow(
        epoch=epochs // 2, lr=0.1, lambda_t=1.0, cross_entropy=1.0, penalty=0.5, train_accuracy=0.2,
        validation_accuracy=0.05, energy=1e6,
    )  # fmt: skip
    assert found.hopeless(epochs)(row)
    assert found.hopeless(epochs)(replace(row, energy=1e-6)) is None
    assert found.hopeless(epochs)(replace(row, energy=None)) is None
    assert found.hopeless(epochs + 1)(row) is None
    elsewhere = search(tmp_path, trials=12, hardware=replace(HARDWARE, name="other"))
    assert elsewhere.hopeless(epochs)(row) is None
