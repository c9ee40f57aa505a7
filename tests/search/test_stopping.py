"""A trial is ended early where no finished trial's way on from there would bring it to the front."""

import random

import pytest

from eat_runner.search.stopping import BEATEN_BY, LEAST_FINISHED, Seen, why_hopeless


def seen(accuracy, energy, last):
    """A trial of nine epochs that had these at epoch 3."""
    return Seen({3: accuracy, 9: last[0]}, {3: energy, 9: last[1]}, last)


# the largest gain is 0.3, the smallest share of the energy that one kept is a half
FINISHED = [
    seen(0.5, 10.0, (0.8, 8.0)),
    *(seen(0.7, 8.0, (0.9, 4.0)) for _ in range(BEATEN_BY)),
    *(seen(0.6, 20.0, (0.7, 19.0)) for _ in range(LEAST_FINISHED - BEATEN_BY - 1)),
]


@pytest.mark.parametrize(
    ("accuracy", "energy", "ends"),
    [
        (0.59, 8.2, True),  # may come to 0.89 for 4.1: three trials have 0.9 for 4
        (0.61, 8.2, False),  # 0.91
        (0.59, 7.8, False),  # 3.9
        (0.6, 8.0, True),  # as good at best is not better
        (0.1, 7.9, False),  # cheaper than any other
        (0.75, 900.0, False),  # more accurate than any other
    ],
)
def test_what_may_still_happen_is_what_happened_to_others(accuracy, energy, ends):
    reason = why_hopeless(3, 9, accuracy, energy, FINISHED)
    assert (reason is not None) == ends
    if reason:
        best, least = min(accuracy + 0.3, 1), energy / 2
        assert (
            reason == f"after epoch 3 it may come to accuracy {best:.3f} for {least:.3g}: 3 finished trials are better"
        )


def test_nothing_is_ended_before_enough_is_known():
    beaten = (0.1, 500.0)
    assert why_hopeless(3, 9, *beaten, FINISHED)
    assert why_hopeless(3, 9, *beaten, FINISHED[:-1]) is None  # too few finished trials
    lucky = [*FINISHED[:2], *FINISHED[BEATEN_BY + 1 :], *FINISHED[-2:]]
    assert len(lucky) >= LEAST_FINISHED
    assert why_hopeless(3, 9, 0.59, 8.2, lucky) is None  # only one of them is better
    assert why_hopeless(3, 10, *beaten, FINISHED) is None  # before a third of the epochs
    assert why_hopeless(4, 9, *beaten, FINISHED) is None  # nobody was looked at there
    unpriced = [Seen(found.accuracy, {}, found.last) for found in FINISHED]
    assert why_hopeless(3, 9, *beaten, unpriced) is None  # energies that nobody knows


def test_who_ends_on_the_front_without_surprises_was_never_hopeless():
    """Of any trials, each judged by all others: one that none of them beats, and that gained no more from there on than
    others did."""
    chance, judged = random.Random(0), 0
    for _ in range(200):
        trials = []
        for _ in range(LEAST_FINISHED + 5):
            energy, accuracy = chance.uniform(1, 30), chance.uniform(0.1, 0.9)
            trials.append(seen(accuracy, energy, (accuracy + chance.uniform(0, 0.1), energy * chance.uniform(0.7, 1))))
        for trial in trials:
            others = [other for other in trials if other is not trial]
            beaten = sum(o.last[0] >= trial.last[0] and o.last[1] <= trial.last[1] for o in others) >= BEATEN_BY
            gained = trial.last[0] - trial.accuracy[3] > max(o.last[0] - o.accuracy[3] for o in others)
            saved = trial.last[1] / trial.energy[3] < min(o.last[1] / o.energy[3] for o in others)
            if not (beaten or gained or saved):
                judged += 1
                assert why_hopeless(3, 9, trial.accuracy[3], trial.energy[3], others) is None
    assert judged > 500
