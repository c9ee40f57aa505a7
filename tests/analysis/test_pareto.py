"""Fronts, areas, bends and the selection rule, against definitions and hand-made numbers."""

import itertools
import random
from typing import Any

import pytest

from eat_runner.analysis.columns import X, Y
from eat_runner.analysis.pareto import (
    Axes,
    Front,
    fronts,
    hypervolume,
    knee,
    non_dominated,
    pareto_table,
    rule,
    select,
)
from frames import UJ, run, table

ENERGY, RELATIVE = Axes(X["energy"]), Axes(X["relative"])


def only(*rows: dict[str, Any], **how: Any) -> Front:
    (front,) = fronts(table(*rows), **how)
    return front


def lambda_of(front: Front, setting: str | None) -> float | None:
    return None if setting is None else front.settings.at[setting, "lambda"]


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
    for worst in (20, 13):
        for _ in range(20):
            points = [(generator.randint(0, 20) / 20, generator.randint(0, 20)) for _ in range(6)]
            cells = itertools.product(range(worst), range(20))
            inside = sum(any(a >= (y + 0.5) / 20 and e <= x + 0.5 for a, e in points) for x, y in cells)
            assert hypervolume([a for a, _ in points], [e for _, e in points], worst) == pytest.approx(inside / 20)


def test_knee_is_farthest_above_the_line_between_the_ends() -> None:
    # scaled to the unit square the inner points are (0.25, 0.75) and (0.5, 0.8): 0.5 and 0.3 above the diagonal
    assert knee([0.5, 0.8, 0.82, 0.9], [0.4, 0.45, 0.5, 0.6]) == 1
    assert knee([0.5, 0.9], [0.4, 0.6]) is None
    assert knee([0.5, 0.6, 0.9], [0.4, 0.55, 0.6]) is None  # below the line
    assert knee([0.5, 0.7, 0.9], [0.4, 0.5, 0.6]) is None  # on it


def test_selection_takes_the_lowest_energy_within_three_points() -> None:
    runs = table(*(run(*values) for values in [(0, 0.95, 0.8), (1, 0.94, 0.7), (2, 0.92, 0.6), (3, 0.919, 0.5)]))
    assert select(runs, "s0") == "s2"  # 0.95 - 0.03 is within, whatever floats make of it
    assert select(runs, "s0", points=0.0) == "s0"
    assert select(runs, "s0", points=0.0, reference_too=False) is None


def test_selection_looks_at_the_split_of_its_rule() -> None:
    runs = table(
        run(0, 0.95, 0.8), run(1, 0.80, 0.6, accuracy_validation=0.95), run(2, 0.94, 0.7, accuracy_validation=0.80)
    )
    assert select(runs, "s0", "validation") == "s1"
    assert select(runs, "s0", "paper") == "s2"


def test_selection_without_a_validation_split_is_none_and_said() -> None:
    none = {"accuracy_validation": None, "energy_ratio_validation": None}
    runs = run(0, 0.95, 0.8, **none), run(1, 0.94, 0.7, **none)
    front = only(*runs)
    assert front.selected is None
    assert any("no validation split" in remark for remark in front.remarks)
    front = only(*runs, selection="paper")
    assert lambda_of(front, front.selected) == 1


def test_a_setting_that_lacks_a_seed_of_the_baseline_is_not_selected() -> None:
    """Seed 0 is the worse one: without it a setting would look better than it is."""
    standard = [run(0, 0.90, 0.8, 0), run(0, 0.96, 0.8, 1)]
    whole = [run(1, 0.89, 0.7, 0), run(1, 0.95, 0.7, 1)]
    half = [run(2, 0.94, 0.5, 1)]
    front = only(*standard, *whole, *half)
    assert lambda_of(front, front.selected) == 1
    assert any("only those with every seed of lambda=0 are selected" in remark for remark in front.remarks)
    front = only(*standard[1:], *whole, *half)  # of the baseline, too, seed 1 alone is there
    assert lambda_of(front, front.selected) == 2


def test_seeds_that_the_baseline_lacks_do_not_count() -> None:
    """In seed 1, that of the baseline, lambda 1 is 4 points below it; seed 0 would lift its mean to within 3."""
    assert select(table(run(0, 0.95, 0.8, 1), run(1, 0.99, 0.4, 0), run(1, 0.91, 0.4, 1)), "s0") == "s0"


def test_ties_go_to_the_more_accurate_then_to_the_smaller_lambda() -> None:
    rows = [run(*v) for v in [(0, 0.95, 0.8), (3, 0.94, 0.6), (2, 0.945, 0.6), (1, 0.945, 0.6)]]
    for order in itertools.permutations(rows):
        assert select(table(*order), "s0") == "s1"


def test_rows_mark_front_knee_and_selection() -> None:
    front = only(run(0, 0.95, 0.8), run(1, 0.945, 0.6), run(2, 0.94, 0.65), run(3, 0.70, 0.55))
    rows = pareto_table([front]).set_index("lambda")
    assert list(rows.index[rows["on_front"]]) == [3, 1, 0]
    assert list(rows.index[rows["selected"]]) == [1]
    assert list(rows.index[rows["knee"]]) == [1]


def test_a_family_without_a_baseline_selects_nothing_and_says_so() -> None:
    front = only(run(1, 0.95, 0.8))
    assert (front.reference, front.selected) == (None, None)
    assert "no finished run with lambda=0" in front.remarks[0]


def test_families_and_unfinished_runs_are_kept_apart() -> None:
    other = run(1, 0.5, 0.5, family="other", setting_id="o")
    failed = run(2, 0.99, 0.1, status="failed")
    found = fronts(table(run(0, 0.95, 0.8), other, failed))
    assert [(front.family, len(front.settings)) for front in found] == [("digits · resnet18", 1), ("other", 1)]
    assert fronts(table(failed)) == []


# --- several networks on one front -------------------------------------------------------------------------------


def narrow(lambda_: float, accuracy: float, energy: float, seed: int = 0) -> dict[str, Any]:
    """A network of a tenth of the energy."""
    tenth = dict.fromkeys(("energy_uj_per_image", "energy", "energy_validation"), energy * UJ / 10)
    names = {"network": "resnet18, width 8", "setting_id": f"n{lambda_}", "dense": UJ / 10}
    return run(lambda_, accuracy, energy, seed, **tenth, **names)


WIDE = [run(0, 0.95, 0.8, 0), run(0, 0.97, 0.8, 1), run(1, 0.94, 0.6, 0), run(1, 0.94, 0.6, 1)]
NARROW = [narrow(0, 0.92, 0.9, 0), narrow(0, 0.92, 0.9, 1), narrow(1, 0.91, 0.7, 0), narrow(1, 0.95, 0.7, 1)]


def test_the_reference_is_the_network_that_needs_most_without_skipping() -> None:
    assert only(*NARROW, *WIDE, axes=ENERGY).reference == "s0"
    assert only(*NARROW, axes=ENERGY).reference == "n0"
    # of two trainings of one network the more accurate one on the validation split, whatever the test split says
    longer = run(0, 0.90, 0.8, setting_id="longer", accuracy_validation=0.99)
    assert only(*WIDE, longer, axes=ENERGY).reference == "longer"


def test_energies_of_several_networks_are_compared_in_joules() -> None:
    front = only(*WIDE, *NARROW, axes=ENERGY)
    assert list(front.settings["energy_uj_per_image"]) == pytest.approx([70, 90, 600, 800])
    assert list(front.settings.index) == ["n1", "n0", "s1", "s0"]
    # n0 costs more than n1 (mean accuracy 0.93) and is less accurate
    assert list(front.settings.index[front.settings["on_front"]]) == ["n1", "s1", "s0"]
    assert front.selected == "n1"  # 0.93 is within 3 points of 0.96 …
    assert only(*WIDE, *NARROW, axes=ENERGY, points=0.02).selected == "s1"
    # … and its ratio, 0.7, is above that of s1, 0.6
    assert only(*WIDE, *NARROW).selected == "s1"
    assert any("--x energy" in remark for remark in only(*WIDE, *NARROW).remarks)


def test_hypervolume_of_energies_is_against_the_reference_without_skipping() -> None:
    front = only(*WIDE, *NARROW, axes=ENERGY)
    area = (600 - 70) * 0.93 + (800 - 600) * 0.94 + (1000 - 800) * 0.96
    assert (front.worst, front.hypervolume) == pytest.approx((UJ, area))
    relative = only(*WIDE, *NARROW, axes=RELATIVE)
    assert (relative.worst, relative.hypervolume) == pytest.approx((1000 / 800, area / 800))
    alone = only(narrow(1, 0.9, 0.7), axes=ENERGY)  # no reference: what the largest needs
    assert (alone.worst, alone.hypervolume) == pytest.approx((100, 30 * 0.9))


def test_beside_the_reference_are_relative_energies_and_pairs_of_the_same_seed() -> None:
    rows = pareto_table([only(*WIDE, *NARROW, narrow(1, 0.99, 0.7, seed=7), axes=RELATIVE)]).set_index("setting_id")
    assert rows.loc["s0", "energy_relative"] == pytest.approx(1)
    assert rows.loc["n1", "energy_relative"] == pytest.approx(70 / 800)
    # seed 0: 0.91 - 0.95, seed 1: 0.95 - 0.97; the reference has no seed 7
    assert rows.loc["n1", "accuracy_difference"] == pytest.approx((-0.04 - 0.02) / 2)
    assert rows.loc["n1", "accuracy_difference_std"] == pytest.approx(0.02 / 2**0.5)
    assert (rows.loc["n1", "n"], rows.loc["n1", "pairs"]) == (3, 2)
    assert "pairs" not in pareto_table([only(*WIDE)]).columns


def test_without_a_reference_nothing_is_relative_to_it() -> None:
    lonely = run(1, 0.9, 0.5, family="lonely", setting_id="l")
    assert [front.family for front in fronts(table(*WIDE, lonely), axes=RELATIVE)] == ["digits · resnet18"]
    assert [front.family for front in fronts(table(*WIDE, lonely), axes=ENERGY)] == ["digits · resnet18", "lonely"]


def test_the_accuracy_may_be_that_of_the_validation_split() -> None:
    rows = [run(0, 0.95, 0.8, accuracy_validation=0.5), run(1, 0.90, 0.7, accuracy_validation=0.6)]
    front = only(*rows, run(2, 0.99, 0.1, accuracy_validation=None), axes=Axes(y=Y["validation"]))
    assert list(front.settings.index[front.settings["on_front"]]) == ["s1"]  # better in both
    assert front.hypervolume == pytest.approx(0.3 * 0.6)


def test_the_rule_in_words_says_what_it_compares() -> None:
    assert rule("validation", Axes()) == (
        "lowest energy ratio within 3 points of standard training's accuracy, both on the validation split"
    )
    assert rule("paper", ENERGY) == (
        "the paper's rule: lowest energy within 3 points of the reference's accuracy, both on the test split"
    )
