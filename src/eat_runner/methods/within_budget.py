"""The masks that a budget leaves: bisection on the price itself, which is no sum over weights (mask and run codes,
tensors that are stored dense, products)."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from eat_runner.energy.budget import Budget, with_activations, with_weights, without_channels
from eat_runner.energy.counts import Counts
from eat_runner.methods.masks import largest
from eat_runner.methods.pruner import Pruner

FEWEST = 0.01  # share of the weights, or channels, that no budget takes: with less there is no network


@dataclass
class WithinBudget:
    """counts: of the last look. looked_at: how many weights, or channels, each layer had then."""

    pruner: Pruner
    budget: Budget
    counts: Counts
    looked_at: dict[str, int] = field(default_factory=dict[str, int])

    def __post_init__(self) -> None:
        if not self.looked_at:
            self.looked_at = {layer.name: self.pruner.alive(layer) for layer in self.pruner.layers}

    def masks(self, share: float) -> list[Tensor]:
        """Those with the most left at which the network costs ``share`` of the dense energy, by the activations of the
        last look. Where no masks would do, those that there are: the activations have to come first."""
        scores = self.pruner.scores()
        alive = [score >= 0 for score in scores]
        units = sum(score.numel() for score in scores)
        low, high = max(round(FEWEST * units), len(scores)), sum(int(a.sum()) for a in alive)
        order = _owners(scores)
        if self._share(self._kept(scores, order, high)) <= share:
            low = high
        elif self._share(self._kept(scores, order, low)) > share:
            return alive
        while high - low > 1:
            middle = (low + high) // 2
            if self._share(self._kept(scores, order, middle)) <= share:
                low = middle
            else:
                high = middle
        kept = self._kept(scores, order, min(low, high))
        masks = [largest([score], k)[0] for score, k in zip(scores, kept, strict=True)]
        return [mask & there for mask, there in zip(masks, alive, strict=True)]

    def is_met(self) -> bool:
        """By the last look."""
        return self.budget.share_of(self.counts) <= self.budget.share

    def _kept(self, scores: Sequence[Tensor], order: Tensor, total: int) -> list[int]:
        """How many weights, or channels, each layer has left if so many are left in all."""
        if self.pruner.settings.ranking == "global":
            return torch.bincount(order[:total], minlength=len(scores)).tolist()
        wanted = self.pruner.kept_by_layer(scores, total / sum(score.numel() for score in scores))
        return [min(kept, int((score >= 0).sum())) for kept, score in zip(wanted, scores, strict=True)]

    def _share(self, kept: Sequence[int]) -> float:
        """What the network of the last look costs with so many weights, or channels, in each layer."""
        layers = self.pruner.layers
        there = {row.name: row.weight_nonzeros for row in self.counts.layers}
        if not self.pruner.by_channel:  # what is zero already has the lowest scores
            left = {layer.name: min(k, there[layer.name]) for layer, k in zip(layers, kept, strict=True)}
            return self.budget.share_of(with_weights(self.counts, left))
        parts = {layer.name: k / self.looked_at[layer.name] for layer, k in zip(layers, kept, strict=True)}
        weights: dict[str, float] = {}
        for layer in layers:
            for name in (layer.name, *layer.readers):
                weights[name] = weights.get(name, there[name]) * parts[layer.name]
        silenced = {call: parts[layer.name] for layer in layers for call in layer.passed}
        fewer = with_weights(
            with_activations(self.counts, silenced), {name: round(value) for name, value in weights.items()}
        )
        return self.budget.share_of(without_channels(fewer, silenced) if self.budget.compacts else fewer)


def _owners(scores: Sequence[Tensor]) -> Tensor:
    """Whose weight it is, of those that are there, the largest score first: numbers of layers."""
    flat = torch.cat([score.flatten() for score in scores])
    sizes = torch.tensor([score.numel() for score in scores], device=flat.device)
    owners = torch.arange(len(scores), device=flat.device).repeat_interleave(sizes)
    there = flat >= 0
    return owners[there][flat[there].argsort(descending=True, stable=True)]
