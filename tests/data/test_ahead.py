"""Work ahead of who asks for it: in order, and never more than was said."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from eat_runner.data.ahead import ahead


def test_results_come_in_order_however_long_each_takes() -> None:
    first_may_end = threading.Event()

    def square(n: int) -> int:
        if n == 0:
            assert first_may_end.wait(10)  # the others are done by then
        if n == 3:
            first_may_end.set()
        return n * n

    with ThreadPoolExecutor(4) as pool:
        assert list(ahead(pool, square, range(4), 4)) == [0, 1, 4, 9]
        assert list(ahead(pool, square, [], 4)) == []
        assert list(ahead(pool, square, [5], 4)) == [25]


@pytest.mark.parametrize("most", [1, 3])
def test_no_more_is_begun_than_may_wait(most: int) -> None:
    begun: list[int] = []
    with ThreadPoolExecutor(8) as pool:
        for used, _ in enumerate(ahead(pool, begun.append, range(20), most)):
            assert len(begun) <= used + most
    assert sorted(begun) == list(range(20))


def test_an_error_comes_in_its_turn_and_ends_the_work() -> None:
    begun: list[int] = []

    def refuse_three(n: int) -> int:
        begun.append(n)
        if n == 3:
            raise ValueError("three")
        return n

    got: list[int] = []
    with ThreadPoolExecutor(1) as pool, pytest.raises(ValueError, match="three"):
        got.extend(ahead(pool, refuse_three, range(1000), 2))
    assert got == [0, 1, 2]
    assert len(begun) <= 5
