"""Which weights stay: densities over time and over layers, and masks from scores. A score is large where a weight
matters; a mask is True where it stays."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from eat_runner.config.pruning import PruningConfig

GROUP, KEPT_OF_GROUP = 4, 2  # of structure 2:4


class Held:
    """The parameters that are exactly zero in a network, which stay it: its parent's pruning made them so."""

    def __init__(self, model: nn.Module) -> None:
        zeros = [(parameter, parameter.detach() != 0) for parameter in model.parameters()]
        self.masks = [(parameter, mask) for parameter, mask in zeros if not bool(mask.all())]

    def apply(self) -> None:
        """After a step."""
        with torch.no_grad():
            for parameter, mask in self.masks:
                parameter.mul_(mask.to(parameter.device))


def share_at(config: PruningConfig, final: float, part: float) -> float:
    """What is left after ``part`` of the training, from 0 to 1, if it falls from 1 to ``final``:
    f + (1 - f) (1 - q)^3 (arXiv 1710.01878, Eq. 1)."""
    q = min(max((part - config.begin) / (config.end - config.begin), 0.0), 1.0)
    return final + (1.0 - final) * (1.0 - q) ** 3


def erk_densities(shapes: Sequence[torch.Size], density: float) -> list[float]:
    """Of each weight (outputs, inputs, height, width; or outputs, inputs): in proportion to the sum of its dimensions
    over their product, at most 1, such that all together have ``density`` (arXiv 1911.11134, Appendix A)."""
    sizes = [shape.numel() for shape in shapes]
    raw = [sum(shape) / size for shape, size in zip(shapes, sizes, strict=True)]
    full: set[int] = set()
    while True:
        left = density * sum(sizes) - sum(sizes[i] for i in full)
        scale = left / (sum(raw[i] * sizes[i] for i in range(len(raw)) if i not in full) or 1.0)
        above = {i for i in range(len(raw)) if i not in full and scale * raw[i] > 1.0}
        if not above:
            return [1.0 if i in full else scale * raw[i] for i in range(len(raw))]
        full |= above


def largest(scores: Sequence[Tensor], kept: int) -> list[Tensor]:
    """Masks, boolean, of the ``kept`` largest of all scores together."""
    flat = torch.cat([score.flatten() for score in scores])
    mask = torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
    mask[torch.topk(flat, kept, sorted=False).indices] = True
    parts = mask.split([score.numel() for score in scores])
    return [part.view(score.shape) for part, score in zip(parts, scores, strict=True)]


def of_every_four(scores: Tensor, density: float) -> Tensor:
    """The mask that keeps, of every four inputs of an output, the 4 x density largest, rounded up: two at a density of
    1/2 (NVIDIA, arXiv 2104.08378). scores: (outputs, inputs, ...), inputs a multiple of four; four inputs lie at the
    same place of the kernel."""
    kept = max(KEPT_OF_GROUP, math.ceil(GROUP * density - 1e-9))
    inputs_last = scores.movedim(1, -1)
    groups = inputs_last.reshape(-1, GROUP)
    mask = torch.zeros_like(groups, dtype=torch.bool)
    mask.scatter_(1, groups.topk(kept, dim=1).indices, True)
    return mask.view(inputs_last.shape).movedim(-1, 1).contiguous()
