"""Fronts, areas, bends and the selection rule, against definitions and hand-made numbers."""

import itertools
import random

import pytest

from eat_runner.pareto import Setting, fronts, hypervolume, knee, non_dominated, select
from eat_runner.sweep import Run


def run(lambda_: float, accuracy: float, energy: float, seed: int = 0, **changes: object) -> Run:
    values = {
        "run_id": f"{lambda_}-{seed}",
        "dataset": "digits",
        "model": "resnet18",
        "penalty": "l0" if lambda_ else "none",
        "lambda_": lambda_,
        "seed": seed,
        "status": "finished",
        "accuracy": accuracy,
        "accuracy_validation": accuracy,
        "energy_ratio": energy,
        "energy_ratio_validation": energy,
        "setting_id": f"s{lambda_}",
        "family": "digits · resnet18",
    }
    return Run(**(values | changes))  # type: ignore[arg-type]


def dominated(point: tuple[float, float], others: list[tuple[float, float]]) -> bool:
    """The definition: some other point is at least as good in both and better in one."""
    a, e = point
    return any(b >= a and f <= e and (b > a or f < e) for b, f in others)


def test_the_front_is_what_the_definition_says() -> None:
    generator = random.Random(0)
    for size in [1, 2, 3, 10, 40] * 20:
        points = [(generator.randint(0, 6) / 6, generator.randint(0, 6) / 6) for _ in range(size)]
        expected = [i for i, point in enumerate(points) if not dominated(point, points)]
        found = non_dominated([a for a, _ in points], [e for _, e in points])
        assert sorted(found) == expected
        energies = [points[i][1] for i in found]
        assert energies == sorted(energies)


def test_hypervolume_of_two_points_by_hand() -> None:
    # from energy 0.4 to 0.6 the accuracy is 0.5, from 0.6 to 1 it is 0.9
    assert hypervolume([0.5, 0.9], [0.4, 0.6]) == pytest.approx(0.2 * 0.5 + 0.4 * 0.9)
    # a dominated point, one beyond the reference and the order change nothing
    assert hypervolume([0.9, 0.4, 0.5, 1.0], [0.6, 0.5, 0.4, 1.5]) == pytest.approx(0.2 * 0.5 + 0.4 * 0.9)
    assert hypervolume([1.0], [0.0]) == 1
    assert hypervolume([], []) == 0


def test_hypervolume_against_counting_cells() -> None:
    generator = random.Random(1)
    for _ in range(20):
        points = [(generator.randint(0, 20) / 20, generator.randint(0, 20) / 20) for _ in range(6)]
        cells = itertools.product(range(20), repeat=2)
        inside = sum(any(a >= (y + 0.5) / 20 and e <= (x + 0.5) / 20 for a, e in points) for x, y in cells)
        assert hypervolume([a for a, _ in points], [e for _, e in points]) == pytest.approx(inside / 400)


def test_knee_is_farthest_above_the_line_between_the_ends() -> None:
    # scaled to the unit square the inner points are (0.25, 0.75) and (0.5, 0.8): 0.5 and 0.3 above the diagonal
    assert knee([0.5, 0.8, 0.82, 0.9], [0.4, 0.45, 0.5, 0.6]) == 1
    assert knee([0.5, 0.9], [0.4, 0.6]) is None
    assert knee([0.5, 0.6, 0.9], [0.4, 0.55, 0.6]) is None  # below the line
    assert knee([0.5, 0.7, 0.9], [0.4, 0.5, 0.6]) is None  # on it


def test_selection_takes_the_lowest_energy_within_three_points() -> None:
    settings = [Setting([run(*values)]) for values in [(0, 0.95, 0.8), (1, 0.94, 0.7), (2, 0.92, 0.6), (3, 0.919, 0.5)]]
    chosen = select(settings, settings[0])
    assert chosen is settings[2]  # 0.95 - 0.03 is within, whatever floats make of it
    assert select(settings, settings[0], points=0.0) is settings[0]


def test_selection_looks_at_the_split_of_its_rule() -> None:
    settings = [
        Setting([run(0, 0.95, 0.8)]),
        Setting([run(1, 0.80, 0.6, accuracy_validation=0.95)]),
        Setting([run(2, 0.94, 0.7, accuracy_validation=0.80)]),
    ]
    assert select(settings, settings[0], "validation") is settings[1]
    assert select(settings, settings[0], "paper") is settings[2]


def test_selection_without_a_validation_split_is_none_and_said() -> None:
    none = {"accuracy_validation": None, "energy_ratio_validation": None}
    (front,) = fronts([run(0, 0.95, 0.8, **none), run(1, 0.94, 0.7, **none)])
    assert front.selected is None
    assert any("no validation split" in remark for remark in front.remarks)
    (front,) = fronts([run(0, 0.95, 0.8, **none), run(1, 0.94, 0.7, **none)], "paper")
    assert front.selected is not None
    assert front.selected.lambda_ == 1


def test_a_setting_that_lacks_a_seed_of_the_baseline_is_not_selected() -> None:
    """Seed 0 is the worse one: without it a setting would look better than it is."""
    standard = [run(0, 0.90, 0.8, 0), run(0, 0.96, 0.8, 1)]
    whole = [run(1, 0.89, 0.7, 0), run(1, 0.95, 0.7, 1)]
    half = [run(2, 0.94, 0.5, 1)]
    (front,) = fronts(standard + whole + half)
    assert front.selected is not None
    assert front.selected.lambda_ == 1
    assert any("only those with every seed of lambda=0 are selected" in remark for remark in front.remarks)
    (front,) = fronts(standard[1:] + whole + half)  # of the baseline, too, seed 1 alone is there
    assert front.selected is not None
    assert front.selected.lambda_ == 2


def test_seeds_that_the_baseline_lacks_do_not_count() -> None:
    """In seed 1, that of the baseline, lambda 1 is 4 points below it; seed 0 would lift its mean to within 3."""
    baseline = Setting([run(0, 0.95, 0.8, 1)])
    setting = Setting([run(1, 0.99, 0.4, 0), run(1, 0.91, 0.4, 1)])
    assert select([baseline, setting], baseline) is baseline


def test_ties_go_to_the_more_accurate_then_to_the_smaller_lambda() -> None:
    settings = [Setting([run(*v)]) for v in [(0, 0.95, 0.8), (3, 0.94, 0.6), (2, 0.945, 0.6), (1, 0.945, 0.6)]]
    for order in itertools.permutations(settings):
        assert select(order, settings[0]) is settings[3]


def test_means_and_deviations_over_seeds() -> None:
    runs = [run(0, 0.9, 0.8, 0), run(0, 0.96, 0.7, 1), run(1, 0.9, 0.5, 0)]
    (front,) = fronts(reversed(runs))
    baseline = front.baseline
    assert baseline is not None
    assert (baseline.n, [r.seed for r in baseline.runs]) == (2, [0, 1])
    assert baseline.mean("accuracy") == pytest.approx(0.93)
    assert baseline.std("accuracy") == pytest.approx(0.06 / 2**0.5)  # sample deviation of two values
    assert front.settings[0].std("accuracy") is None
    assert front.seeds == (1, 2)


def test_rows_mark_front_knee_and_selection() -> None:
    runs = [run(0, 0.95, 0.8), run(1, 0.945, 0.6), run(2, 0.94, 0.65), run(3, 0.70, 0.55)]
    (front,) = fronts(runs)
    rows = {row["lambda"]: row for row in front.rows()}
    assert [lambda_ for lambda_, row in rows.items() if row["on_front"]] == [3, 1, 0]
    assert [lambda_ for lambda_, row in rows.items() if row["selected"]] == [1]
    assert [lambda_ for lambda_, row in rows.items() if row["knee"]] == [1]


def test_a_family_without_a_baseline_selects_nothing_and_says_so() -> None:
    (front,) = fronts([run(1, 0.95, 0.8)])
    assert (front.baseline, front.selected) == (None, None)
    assert "no finished run with lambda=0" in front.remarks[0]


def test_families_and_unfinished_runs_are_kept_apart() -> None:
    other = run(1, 0.5, 0.5, family="other")
    failed = run(2, 0.99, 0.1, status="failed")
    found = fronts([run(0, 0.95, 0.8), other, failed])
    assert [(front.family, len(front.settings)) for front in found] == [("digits · resnet18", 1), ("other", 1)]
