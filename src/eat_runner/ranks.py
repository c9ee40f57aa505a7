"""Which of torchrun's processes this is: all of them train one run together. No torch.

A process that nobody started together with others is the only one, and the first.
"""

import os


def world_size() -> int:
    """How many processes train together."""
    return _said("WORLD_SIZE", 1)


def rank() -> int:
    """Number of this process among all, from 0."""
    return _said("RANK", 0)


def local_rank() -> int:
    """Number of this process among those of its machine, from 0: that of its GPU."""
    return _said("LOCAL_RANK", 0)


def is_first() -> bool:
    """Whether this process is the one that writes, and speaks."""
    return rank() == 0


def part_of(count: int) -> slice:
    """This process' part of so many things in a row; the parts differ by at most one."""
    return slice(count * rank() // world_size(), count * (rank() + 1) // world_size())


def weight_in(count: int) -> float:
    """What a mean over this process' part of so many things counts in the mean of all processes' values, so that this
    is the mean over all things: 1 where the parts are equal."""
    part = part_of(count)
    return (part.stop - part.start) * world_size() / count


def _said(name: str, alone: int) -> int:
    """By torchrun; the same names in the environment of anybody else mean nothing here."""
    return int(os.environ[name]) if "TORCHELASTIC_RUN_ID" in os.environ else alone
