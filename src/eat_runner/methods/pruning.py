"""Pruning: weights that become zero while a network trains, and stay it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eat_runner.config.hardware import HardwareConfig
from eat_runner.config.pruning import PruningConfig
from eat_runner.energy.counts import Counts, Kind
from eat_runner.energy.rules import RULES
from eat_runner.errors import UserError
from eat_runner.methods.base import Method, Progress, Trained


def density_at(config: PruningConfig, part: float) -> float:
    """The density after ``part`` of the training, from 0 to 1: d + (1 - d) (1 - q)^3 (arXiv 1710.01878, Eq. 1)."""
    q = min(max((part - config.begin) / (config.end - config.begin), 0.0), 1.0)
    return config.density + (1.0 - config.density) * (1.0 - q) ** 3


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


@dataclass(eq=False)
class _Layer:
    """norm: the batch norm behind it, if nobody else reads its output."""

    name: str
    weight: Tensor
    norm: nn.BatchNorm2d | None

    def magnitudes(self) -> Tensor:
        """Of the weights with the batch norm folded in: before it, their scale means nothing."""
        magnitudes = self.weight.detach().abs()
        if self.norm is None or self.norm.running_var is None:
            return magnitudes
        scale = (self.norm.running_var + self.norm.eps).rsqrt()
        if self.norm.affine:
            scale = scale * self.norm.weight.detach().abs()
        return magnitudes * scale.view(-1, *[1] * (magnitudes.dim() - 1))


class Pruning(Method):
    """Masks over the weights of convolutions and linear layers. A masked weight is exactly zero after every step,
    whatever momentum and weight decay do, and never comes back."""

    wants_look = True  # for the order of the layers, the batch norm behind each, and prices

    def __init__(self, config: PruningConfig, hardware: HardwareConfig):
        super().__init__(config, hardware)
        self.settings = config
        self.masks: dict[str, Tensor] = {}
        self.layers: list[_Layer] = []
        self.prices_pj: dict[str, float] = {}  # by layer, of one more non-zero weight; where weights are ranked by them

    def on_build(self, model: nn.Module) -> None:
        self.model = model
        if not any(isinstance(module, nn.Conv2d | nn.Linear) for module in model.modules()):
            raise UserError("pruning: the network has no convolution and no linear layer: leave pruning out")

    def before_training(self, counts: Counts) -> None:
        self.layers = self._find(counts)
        self._take_prices(counts)

    def after_epoch(self, progress: Progress, counts: Counts) -> None:
        self._take_prices(counts)

    def after_step(self, progress: Progress) -> None:
        settings, done = self.settings, progress.step + 1
        steps = progress.steps_per_epoch * progress.epochs
        first, last = round(settings.begin * steps), max(round(settings.end * steps), 1)
        if first <= done <= last and (done % settings.every_steps == 0 or done == last):
            self._prune(density_at(settings, 1.0 if done == last else done / steps))
        self._apply()

    def after_training(self, trained: Trained) -> None:
        """Nothing after a training with pruning; without any steps, all at once."""
        if not self.masks:
            self.before_training(trained.count())
            self._prune(self.settings.density)
            self._apply()

    def state(self) -> dict[str, Any]:
        layers = [(layer.name, self._norm_name(layer)) for layer in self.layers]
        return {"masks": self.masks, "layers": layers, "prices_pj": self.prices_pj}

    def load_state(self, state: dict[str, Any]) -> None:
        modules: Mapping[str | None, Any] = dict(self.model.named_modules())
        self.masks = {name: mask.to(modules[name].weight.device) for name, mask in state["masks"].items()}
        self.layers = [_Layer(name, modules[name].weight, modules.get(norm)) for name, norm in state["layers"]]
        self.prices_pj = state["prices_pj"]

    def changes(self) -> dict[str, Any]:
        """How many weights are masked, of how many, by layer."""
        return {"masked": {name: [int((~mask).sum()), mask.numel()] for name, mask in self.masks.items()}}

    def _find(self, counts: Counts) -> list[_Layer]:
        """The layers that are pruned, in the order of their calls."""
        rows = {row.call: row for row in counts.layers}
        modules: Mapping[str, nn.Module] = dict(self.model.named_modules())
        found: dict[str, _Layer] = {}
        for row in counts.layers:
            module = modules.get(row.name)
            if row.kind in {Kind.CONV, Kind.LINEAR} and isinstance(module, nn.Conv2d | nn.Linear):
                reader = rows[row.consumers[0]] if len(row.consumers) == 1 else None
                behind = modules.get(reader.name) if reader is not None and reader.kind == Kind.BATCH_NORM else None
                norm = behind if isinstance(behind, nn.BatchNorm2d) else None
                found.setdefault(row.name, _Layer(row.name, module.weight, norm))
        layers = list(found.values())
        kept = layers[0 if self.settings.first_layer else 1 : None if self.settings.last_layer else -1]
        if not kept:
            raise UserError(
                "pruning: only the first and the last layer have weights: set pruning.first_layer=true or "
                "pruning.last_layer=true"
            )
        return kept

    def _prune(self, density: float) -> None:
        scores = [self._score(layer) for layer in self.layers]
        for layer, score in zip(self.layers, scores, strict=True):
            if layer.name in self.masks:
                score[~self.masks[layer.name]] = -1.0  # what is gone stays gone
        names, sizes = [layer.name for layer in self.layers], [score.numel() for score in scores]
        if self.settings.ranking == "global":
            masks = largest(scores, max(round(density * sum(sizes)), 1))
        else:
            densities = [density] * len(sizes)
            if self.settings.ranking == "erk":
                densities = erk_densities([score.shape for score in scores], density)
            kept = [max(round(d * size), 1) for d, size in zip(densities, sizes, strict=True)]
            masks = [largest([score], k)[0] for score, k in zip(scores, kept, strict=True)]
        self.masks = dict(zip(names, masks, strict=True))

    def _score(self, layer: _Layer) -> Tensor:
        if not self.prices_pj:
            return layer.magnitudes()
        return layer.magnitudes().square() / self.prices_pj[layer.name]

    def _take_prices(self, counts: Counts) -> None:
        """Of the network as it is; a layer that is called several times pays at each call. The cheapest price above 0
        stands in where one is 0, as on a chip that neither stores nor skips the zeros of a layer."""
        if not self.settings.reads_hardware:
            return
        found = RULES[self.hardware.rule].marginal_pj(counts, self.hardware).weights
        prices = {layer.name: 0.0 for layer in self.layers}
        for row in counts.layers:
            if row.name in prices:
                prices[row.name] += found.get(row.call, 0.0)
        cheapest = min((price for price in prices.values() if price > 0), default=1.0)
        self.prices_pj = {name: price or cheapest for name, price in prices.items()}

    def _apply(self) -> None:
        with torch.no_grad():
            for layer in self.layers:
                if layer.name in self.masks:
                    layer.weight.mul_(self.masks[layer.name])

    def _norm_name(self, layer: _Layer) -> str | None:
        return next((name for name, module in self.model.named_modules() if module is layer.norm), None)
