"""What can be searched: how it is written, its corners, its grid, and whether a run lies in it."""

import math
from collections import Counter

import pytest

optuna = pytest.importorskip("optuna")

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution  # noqa: E402

from eat_runner.errors import UserError  # noqa: E402
from eat_runner.search.space import corners, described, grid, range_of, suggested, where  # noqa: E402

LAMBDA, DENSITY = FloatDistribution(0.1, 10, log=True), FloatDistribution(0.05, 0.5)
WIDTH, PRUNING = CategoricalDistribution(["8", "16"]), CategoricalDistribution(["none", "energy"])
SPACE = {"lambda": LAMBDA, "pruning.density": DENSITY, "model.width": WIDTH, "pruning": PRUNING}


def test_ranges_are_read_and_written_back():
    for text, expected in {
        "log(0.1,10)": LAMBDA,
        "uniform(0.05, 0.5)": DENSITY,
        "int(4,16)": IntDistribution(4, 16),
        "uniform(-1,1e3)": FloatDistribution(-1, 1000),
    }.items():
        assert range_of("key", text) == expected
        assert range_of("key", described(expected)) == expected
    for text in ("8,16", "0.1", "logistic(1,2)", "log", "'log(1,2)'"):
        assert range_of("key", text) is None


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("log(0.1)", "key=log(0.1): write log(LOW,HIGH) with two numbers"),
        ("log(a,1)", "key=log(a,1): write log(LOW,HIGH) with two numbers"),
        ("uniform(0,inf)", "key=uniform(0,inf): write uniform(LOW,HIGH) with two numbers"),
        ("int(1,2.5)", "key=int(1,2.5): write int(LOW,HIGH) with two whole numbers"),
        ("uniform(2,2)", "key=uniform(2,2): 2 is not below 2: write uniform(LOW,HIGH)"),
        ("log(0,1)", "key=log(0,1): a logarithmic range begins above 0: write uniform(0,1) for this one"),
    ],
)
def test_a_range_that_is_none_is_refused_in_one_line(text, line):
    with pytest.raises(UserError) as refused:
        range_of("key", text)
    assert str(refused.value) == line


def test_the_corners_have_every_bound_and_choice():
    found = corners(SPACE)
    for key, ends in {"lambda": {0.1, 10}, "pruning.density": {0.05, 0.5}, "model.width": {8, 16}}.items():
        assert {float(point[key]) for point in found} == ends
    assert {point["pruning"] for point in found} == {"none", "energy"}
    assert found[0]["pruning"] == "energy"  # so that bounds of its keys are checked where they mean something


def test_sampled_numbers_have_three_digits_and_stay_in_range():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    narrow = {"lambda": FloatDistribution(0.12341, 0.12349), **SPACE, "epochs": IntDistribution(2, 5)}
    for _ in range(200):
        point = suggested(study.ask(), narrow)
        for key in point.keys() & {"lambda", "pruning.density"}:
            value, ends = float(point[key]), (narrow[key].low, narrow[key].high)
            assert ends[0] <= value <= ends[1]
            assert value in ends or value == float(f"{value:.3g}")
        assert point["model.width"] in WIDTH.choices
        assert 2 <= int(point["epochs"]) <= 5
        # a key of a method that is not chosen is no part of the point
        assert ("pruning.density" in point) == (point["pruning"] == "energy")


def test_a_grid_is_even_on_each_scale_and_no_larger_than_asked_for():
    three = {"lambda": LAMBDA, "width": IntDistribution(4, 16), "model": WIDTH}
    points = grid(three, 24)  # 2 choices leave 12 for two ranges: 4 of the first, 3 of the second
    assert len(points) == 24
    levels = {key: sorted(Counter(point[key] for point in points)) for key in three}
    assert [math.log10(value) for value in levels["lambda"]] == pytest.approx([-1, -1 / 3, 1 / 3, 1])
    assert levels["width"] == [4, 10, 16]
    assert all(LAMBDA.low <= point["lambda"] <= LAMBDA.high for point in points)
    assert len(grid({"width": IntDistribution(1, 3)}, 40)) == 3
    without = grid({"pruning": PRUNING, "pruning.density": DENSITY}, 6)
    assert without.count({"pruning": "none"}) == 1  # its densities are one point
    assert sorted(point["pruning.density"] for point in without if point["pruning"] == "energy") == [0.05, 0.275, 0.5]


def test_a_run_lies_in_the_space_or_does_not():
    config = {"lambda": 1.234, "model": {"width": 8, "name": "vgg11"}, "pruning": {"name": "energy", "density": 0.2}}
    expected = {"lambda": 1.234, "pruning.density": 0.2, "model.width": "8", "pruning": "energy"}
    assert where(config, SPACE, ()) == [expected]
    assert where(config | {"lambda": 11.0}, SPACE, ()) == []
    assert where(config | {"model": {"width": 12}}, SPACE, ()) == []
    assert where(config | {"lambda": True}, SPACE, ()) == []
    del expected["pruning.density"]
    assert where(config | {"pruning": {"name": "none", "density": 2}}, SPACE, ()) == [expected | {"pruning": "none"}]
    recipes = {"lambda": LAMBDA, "recipe": CategoricalDistribution(["st", "eat_1"])}
    assert [found["recipe"] for found in where(config, recipes, ["recipe"])] == ["st", "eat_1"]
    flags = {"flag": CategoricalDistribution(["true", "null", "'8'"])}
    assert where({"flag": True}, flags, ()) == [{"flag": "true"}]
    assert where({"flag": None}, flags, ()) == [{"flag": "null"}]
    assert where({"flag": "8"}, flags, ()) == [{"flag": "'8'"}]
