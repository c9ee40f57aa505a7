"""How many bits a tensor takes on an accelerator that stores tensors compressed. No torch."""

from collections.abc import Sequence
from typing import NamedTuple

from eat_runner.config.hardware import RUN_BITS


class _Coding(NamedTuple):
    """Bits in one compressed format, and bits of one more non-zero, on average."""

    size: float
    slope: float


def _codings(elements: float, nonzeros: float, bits: int, format: str, run_bits: Sequence[int]) -> list[_Coding]:
    """The compressed formats that ``format`` allows.

    A bitmask has a bit for every value, and the non-zeros. Run lengths have a word for every non-zero, with the zeros
    before it counted in r bits, and one for every longest run, 2^r zeros: a run of 2^r - 1 and a value that is itself
    zero. As many longest runs as if all zeros stood in one piece, and a word more, are an upper bound. Its slope: in
    one of 2^r cases a non-zero more is a longest run less.
    """
    found: list[_Coding] = []
    if format in {"bitmask", "auto"}:
        found.append(_Coding(nonzeros * bits + elements, float(bits)))
    if format in {"run_length", "auto"}:
        for run in run_bits:
            longest, word = 2**run, bits + run
            words = nonzeros + (elements - nonzeros) // longest + 1
            found.append(_Coding(words * word, word * (longest - 1) / longest))
    return found


def stored_bits(
    elements: float, nonzeros: float, bits: int, format: str, run_bits: Sequence[int] = (RUN_BITS,)
) -> float:
    """Bits that a tensor takes: dense, with a bitmask, or run-length coded, or the least of what ``format`` allows. No
    tensor takes more than a dense one."""
    codings = _codings(elements, nonzeros, bits, format, run_bits)
    return min([elements * bits, *(coding.size for coding in codings)])


def slope_bits(
    elements: float, nonzeros: float, bits: int, format: str, run_bits: Sequence[int] = (RUN_BITS,)
) -> float:
    """Bits that one more non-zero takes, on average: the slope of ``stored_bits`` in the compressed format in force.

    A dense tensor is given the slope of its best compressed format, too: else there would be no slope towards the
    break-even. 0 where the format is ``dense``, whatever the tensor holds.
    """
    codings = _codings(elements, nonzeros, bits, format, run_bits)
    return min(codings, key=lambda coding: coding.size).slope if codings else 0.0
