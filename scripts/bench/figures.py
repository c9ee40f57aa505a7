"""A figure is a ratio (or another number) measured several times, beside its goal."""

import gc
import operator
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

AT_MOST, AT_LEAST = "at most", "at least"

Seconds = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Figure:
    """One line of the table. bound: whether ``goal`` is an upper or a lower limit; empty where there is no goal.

    median, min, max: over ``repetitions`` measurements, each a ratio of two times that were taken one after the other.
    """

    figure: str
    network: str
    bound: str
    goal: float | None
    stretch_goal: float | None
    median: float
    min: float
    max: float
    repetitions: int
    unit: str

    @property
    def verdict(self) -> str:
        """``stretch``, ``met`` or ``missed``, from the median; empty where there is no goal."""
        reaches = operator.le if self.bound == AT_MOST else operator.ge
        limits = {"stretch": self.stretch_goal, "met": self.goal}
        reached = (name for name, limit in limits.items() if limit is not None and reaches(self.median, limit))
        return next(reached, "missed") if self.bound else ""


def figure(
    name: str,
    network: object,
    values: ArrayLike,
    goal: float | None = None,
    stretch: float | None = None,
    bound: str = AT_MOST,
    unit: str = "ratio",
) -> Figure:
    """The figure that one or more ``values`` make."""
    found = np.atleast_1d(np.asarray(values, dtype=np.float64))
    measured = float(np.median(found)), float(found.min()), float(found.max())
    return Figure(name, str(network), bound if goal is not None else "", goal, stretch, *measured, len(found), unit)


def interleaved(
    variants: Mapping[str, Callable[[], object]],
    rounds: int = 7,
    calls: int = 1,
    synchronise: Callable[[], object] = lambda: None,
) -> Seconds:
    """Seconds a call, for each variant one value a round.

    Every variant runs once to warm up; then each round times ``calls`` calls of one variant after the other, in a
    random order (the same in every run), so that what changes on the machine, and what the one before leaves in the
    caches, meets all alike. synchronise: waits for the device.
    """
    for variant in variants.values():
        variant()
    order, names = random.Random(0), list(variants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            order.shuffle(names)
            for name in names:
                synchronise()
                started = time.perf_counter()
                for _ in range(calls):
                    variants[name]()
                synchronise()
                seconds[name].append((time.perf_counter() - started) / calls)
    finally:
        gc.enable()
    return {name: np.array(values) for name, values in seconds.items()}
