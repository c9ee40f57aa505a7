"""What threads do before it is asked for: so much of it and no more, for it takes memory until it is used."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(pool: Executor, function: Callable[[Item], Result], items: Iterable[Item], most: int) -> Iterator[Result]:
    """``function(item)`` of each item, in order, raising what it raises; at most ``most`` are begun and not yet used.

    As ``pool.map``, which begins all of them at once (before Python 3.14 has its ``buffersize``).
    """
    coming: deque[Future[Result]] = deque()
    try:
        for item in items:
            coming.append(pool.submit(function, item))
            if len(coming) == most:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
    finally:
        for future in coming:
            future.cancel()
