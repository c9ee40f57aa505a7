"""Masks of one structure, over weights or over whole channels, which only ever lose."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from eat_runner.config.pruning import PruningConfig
from eat_runner.distributed import of_first
from eat_runner.energy.counts import Counts
from eat_runner.methods.masks import erk_densities, largest, of_every_four, share_at
from eat_runner.methods.prunable import Layer, prunable


class Pruner:
    """What ``settings`` say of one structure. masks: by layer, boolean, True for what stays; of the weight's shape, or
    (outputs,) where channels go. prices_pj: by layer, of one more non-zero weight, where weights are ranked by them."""

    def __init__(self, settings: PruningConfig):
        self.settings = settings
        self.by_channel = settings.by_channel
        self.layers: list[Layer] = []
        self.masks: dict[str, Tensor] = {}
        self.prices_pj: dict[str, float] = {}

    def find(self, model: nn.Module, counts: Counts) -> None:
        self.layers = prunable(model, counts, self.settings)

    def is_due(self, done: int, steps: int) -> bool:
        """Whether there are new masks after ``done`` of ``steps`` steps."""
        first, last = round(self.settings.begin * steps), self._last(steps)
        return first <= done <= last and (done % self.settings.every_steps == 0 or done == last)

    def part(self, done: int, steps: int) -> float:
        """How far it is, for ``share_at``: the last masks are the final ones."""
        return 1.0 if done == self._last(steps) else done / steps

    def _last(self, steps: int) -> int:
        return max(round(self.settings.end * steps), 1)

    # --- masks -----------------------------------------------------------------------------------------------------

    def prune(self, part: float) -> None:
        """To the density of this part of the training, 1 at its end. Makes the masks, not the zeros."""
        assert self.settings.density is not None
        self.keep(self._with_density(self.scores(), share_at(self.settings, self.settings.density, part)))

    def keep(self, masks: Sequence[Tensor]) -> None:
        # of several processes with the same scores: ties may be broken otherwise
        self.masks = {layer.name: of_first(mask) for layer, mask in zip(self.layers, masks, strict=True)}

    def scores(self) -> list[Tensor]:
        scores = [self.score(layer) for layer in self.layers]
        for layer, score in zip(self.layers, scores, strict=True):
            if layer.name in self.masks:
                score[~self.masks[layer.name]] = -1.0  # what is gone stays gone
            if self.by_channel:
                score[score.argmax()] = torch.inf  # no layer loses all of its channels
        return scores

    def score(self, layer: Layer) -> Tensor:
        """Of each weight its magnitude, or w^2 / price; of each channel the mean of w^2 over its weights, or their sum
        over the price of all that goes with it (as filters are ranked in arXiv 1608.08710, by their norm)."""
        if not self.by_channel:
            magnitudes = layer.magnitudes()
            return magnitudes.square() / self.prices_pj[layer.name] if self.prices_pj else magnitudes
        squares = layer.magnitudes().square().flatten(1)
        if not self.prices_pj:
            return squares.mean(1)
        outputs = len(squares)
        parts = {layer.name: squares.shape[1]} | {
            name: module.weight.numel() // outputs for name, module in layer.readers.items()
        }
        return squares.sum(1) / sum(count * self.prices_pj[name] for name, count in parts.items())

    def _with_density(self, scores: Sequence[Tensor], density: float) -> list[Tensor]:
        if self.settings.structure == "2:4":
            return [of_every_four(score, density) for score in scores]
        if self.settings.ranking == "global":
            fewest = len(scores) if self.by_channel else 1
            return largest(scores, max(round(density * sum(score.numel() for score in scores)), fewest))
        return [
            largest([score], kept)[0] for score, kept in zip(scores, self.kept_by_layer(scores, density), strict=True)
        ]

    def kept_by_layer(self, scores: Sequence[Tensor], density: float) -> list[int]:
        """How many of each layer stay: uniform and erk."""
        sizes, densities = [score.numel() for score in scores], [density] * len(scores)
        if self.settings.ranking == "erk":
            densities = erk_densities([layer.weight.shape for layer in self.layers], density)
        return [max(round(d * size), 1) for d, size in zip(densities, sizes, strict=True)]

    def apply(self) -> None:
        """Set to zero what is masked."""
        with torch.no_grad():
            for layer in self.layers:
                if layer.name not in self.masks:
                    continue
                mask = self.masks[layer.name]
                for tensor, part in layer.channels(mask) if self.by_channel else [(layer.weight, mask)]:
                    tensor.mul_(part)

    def alive(self, layer: Layer) -> int:
        """How many of its channels are left, or of its weights."""
        mask = self.masks.get(layer.name)
        return int(mask.sum()) if mask is not None else len(layer.weight) if self.by_channel else layer.weight.numel()

    def masked(self) -> dict[str, list[int]]:
        """How many weights, or channels, are masked, of how many, by layer."""
        return {name: [int((~mask).sum()), mask.numel()] for name, mask in self.masks.items()}

    def load(self, masks: Mapping[str, Tensor], prices_pj: dict[str, float]) -> None:
        """Of a training that was interrupted."""
        device = {layer.name: layer.weight.device for layer in self.layers}
        self.masks = {name: mask.to(device[name]) for name, mask in masks.items()}
        self.prices_pj = prices_pj
