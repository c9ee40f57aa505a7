"""What a person sees of time."""

import pytest

from eat_runner.progress import Counter, duration


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (119.4, "119 s"), (120, "2 min"), (7199, "120 min"), (9000, "2.5 h")]
)
def test_a_duration_is_in_the_unit_that_fits(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("at_once", "said"), [(False, [3, 5]), (True, [1, 3, 5])])
def test_a_counter_says_what_begins_at_most_every_two_seconds(at_once, said, capsys):
    times = iter([0, 1.9, 2.0, 3.9, 4.0] if at_once else [0, 0, 1.9, 2.0, 3.9, 4.0])  # the first is its own beginning
    counter = Counter("timing", 5, at_once, now=lambda: next(times))
    for name in "abcde":
        counter.next(name)
    assert capsys.readouterr().err.splitlines() == [f"timing {i} of 5: {'abcde'[i - 1]}" for i in said]
