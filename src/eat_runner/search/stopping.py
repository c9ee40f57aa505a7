"""When a trial is ended early: once nothing that the finished trials did from here on would bring it to their front."""

from collections.abc import Sequence
from dataclasses import dataclass

LEAST_FINISHED = 10  # trials that say what may still happen
FIRST_LOOK = 1 / 3  # of the epochs
BEATEN_BY = 3  # finished trials: one of them may have been lucky on the validation split


@dataclass(frozen=True)
class Seen:
    """A finished trial. accuracy, energy: on the validation split, by epoch, at the epochs that were looked at; last:
    what was measured in the end."""

    accuracy: dict[int, float]
    energy: dict[int, float]
    last: tuple[float, float]


def why_hopeless(epoch: int, epochs: int, accuracy: float, energy: float, finished: Sequence[Seen]) -> str | None:
    """Why a trial with this accuracy and energy on the validation split at this epoch cannot reach the front; None
    where it may, or where too little is known.

    The best that it may come to is the accuracy now, and the largest gain that any finished trial made from this epoch
    on; and the energy now, times the smallest share that any finished trial kept of its own. Where BEATEN_BY finished
    trials are at least as accurate as that for at most the energy, they beat what comes. finished: of the same length.
    """
    there = [seen for seen in finished if epoch in seen.accuracy and seen.energy.get(epoch, 0.0) > 0]
    if epoch < FIRST_LOOK * epochs or len(there) < LEAST_FINISHED:
        return None
    best = min(accuracy + max(seen.last[0] - seen.accuracy[epoch] for seen in there), 1.0)
    least = energy * min(seen.last[1] / seen.energy[epoch] for seen in there)
    better = sum(seen.last[0] >= best and seen.last[1] <= least for seen in there)
    if better < BEATEN_BY:
        return None
    return (
        f"after epoch {epoch} it may come to accuracy {best:.3f} for {least:.3g}: {better} finished trials are better"
    )
