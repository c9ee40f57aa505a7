"""Pruning: weights that become zero while a network trains, and stay it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eat_runner.config.hardware import HardwareConfig
from eat_runner.config.pruning import PruningConfig
from eat_runner.energy.budget import Budget, with_activations, with_weights
from eat_runner.energy.counts import BatchCounts, Counts, Kind, LayerCounts
from eat_runner.energy.rules import RULES
from eat_runner.errors import UserError
from eat_runner.methods.base import Method, Progress, Trained
from eat_runner.methods.masks import GROUP, erk_densities, largest, of_every_four, share_at

FEWEST = 0.01  # share of the weights, or channels, that no budget takes: with less there is no network
MARGIN = 0.005  # of a budget, that is left for images which the look did not see
ROUNDS = 5  # of looks and masks after the training, until the budget holds
# what a channel passes on its way to those that read it; a ReLU of zero is zero, and what reads it is zero anyway
PASSED = frozenset({Kind.BATCH_NORM, Kind.RELU, Kind.ACTIVATION, Kind.MAX_POOL, Kind.AVG_POOL, Kind.VIEW})
VIEWS = frozenset({"flatten", "Flatten", "Dropout", "dropout", "Dropout2d", "Identity"})  # keep channels in order
WEIGHTED = (nn.Conv2d, nn.Linear)


@dataclass(eq=False)
class _Layer:
    """norm: the batch norm behind it, if nobody else reads its output. readers: paths of the layers that read its
    channels, where channels go as one. passed: the calls between."""

    name: str
    module: nn.Conv2d | nn.Linear
    norm: tuple[str, nn.BatchNorm2d] | None
    readers: dict[str, nn.Conv2d | nn.Linear]
    passed: tuple[int, ...] = ()

    @property
    def weight(self) -> Tensor:
        return self.module.weight

    def magnitudes(self) -> Tensor:
        """Of the weights with the batch norm folded in: before it, their scale means nothing."""
        magnitudes = self.weight.detach().abs()
        if self.norm is None or self.norm[1].running_var is None:
            return magnitudes
        norm = self.norm[1]
        assert norm.running_var is not None
        scale = (norm.running_var + norm.eps).rsqrt()
        if norm.affine:
            scale = scale * norm.weight.detach().abs()
        return magnitudes * scale.view(-1, *[1] * (magnitudes.dim() - 1))

    def channels(self, mask: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Everything that goes with the channels that ``mask`` (outputs,) leaves out, each with its mask."""
        norm = self.norm[1] if self.norm is not None and self.norm[1].affine else None
        yield self.weight, mask.view(-1, *[1] * (self.weight.dim() - 1))
        for vector in (self.module.bias, norm and norm.weight, norm and norm.bias):
            if vector is not None:
                yield vector, mask
        for reader in self.readers.values():
            each = reader.weight.shape[1] // len(mask)  # inputs of a linear layer behind a flattened channel
            yield reader.weight, mask.repeat_interleave(each).view(1, -1, *[1] * (reader.weight.dim() - 2))


class Pruning(Method):
    """Masks over the weights of convolutions and linear layers. What is masked is exactly zero after every step,
    whatever momentum and weight decay do, and never comes back.

    Under a budget the masks are, at each time, those with the most weights left at which the network costs no more than
    the budget of that time: the last look's activations, and the weights that the masks leave, priced.
    """

    wants_look = True  # for the order of the layers, the batch norm behind each, and prices

    def __init__(self, config: PruningConfig, hardware: HardwareConfig, budget: Budget | None = None):
        super().__init__(config, hardware, budget)
        self.settings = config
        self.by_channel = config.structure == "channel"
        self.masks: dict[str, Tensor] = {}  # by layer: of the weight's shape, or (outputs,) where channels go
        self.layers: list[_Layer] = []
        self.prices_pj: dict[str, float] = {}  # by layer, of one more non-zero weight; where weights are ranked by them
        self.counts: Counts | None = None  # of the last look, under a budget
        self.looked_at: dict[str, int] = {}  # how many weights, or channels, each layer had then

    def on_build(self, model: nn.Module) -> None:
        self.model = model
        layers = [(name, module) for name, module in model.named_modules() if isinstance(module, WEIGHTED)]
        if not layers:
            raise UserError("pruning: the network has no convolution and no linear layer: leave pruning out")
        if self.settings.structure == "2:4":
            first, last = int(not self.settings.first_layer), len(layers) - (not self.settings.last_layer)
            for name, module in layers[first:last]:
                _check_four(name, module)

    def removable(self, counts: Counts) -> frozenset[str]:
        return frozenset(name for layer in self._find(counts) for name in (layer.name, *layer.readers))

    def before_training(self, counts: Counts) -> None:
        self.layers = self._find(counts)
        self._look(counts)

    def after_epoch(self, progress: Progress, counts: Counts) -> None:
        self._look(counts)
        if self.budget is not None and self.masks and progress.part >= self.settings.end:
            self._prune(1.0)
            self._apply()

    def after_step(self, progress: Progress) -> None:
        settings, done = self.settings, progress.step + 1
        steps = progress.steps_per_epoch * progress.epochs
        first, last = round(settings.begin * steps), max(round(settings.end * steps), 1)
        if first <= done <= last and (done % settings.every_steps == 0 or done == last):
            self._prune(1.0 if done == last else done / steps)
        self._apply()

    def after_training(self, trained: Trained) -> None:
        """Without any steps, all at once. Under a budget, what is still too much."""
        if not self.masks:
            self.before_training(trained.count())
            self._prune(1.0)
            self._apply()
        for _ in range(ROUNDS if self.budget is not None else 0):
            self._look(trained.count())
            if self._fits():
                break
            self._prune(1.0)
            self._apply()

    def state(self) -> dict[str, Any]:
        layers = [(layer.name, layer.norm and layer.norm[0], [*layer.readers], layer.passed) for layer in self.layers]
        state = {"masks": self.masks, "layers": layers, "prices_pj": self.prices_pj, "looked_at": self.looked_at}
        return state | {"counts": _plain(self.counts) if self.counts is not None else None}

    def load_state(self, state: dict[str, Any]) -> None:
        modules: dict[str, Any] = dict(self.model.named_modules())
        self.masks = {name: mask.to(modules[name].weight.device) for name, mask in state["masks"].items()}
        self.layers = [
            _Layer(name, modules[name], norm and (norm, modules[norm]), {r: modules[r] for r in readers}, passed)
            for name, norm, readers, passed in state["layers"]
        ]
        self.looked_at = state["looked_at"]
        self.prices_pj = state["prices_pj"]
        self.counts = _counts(state["counts"]) if state["counts"] else None

    def changes(self) -> dict[str, Any]:
        """How many weights, or channels, are masked, of how many, by layer."""
        return {"masked": {name: [int((~mask).sum()), mask.numel()] for name, mask in self.masks.items()}}

    # --- which layers ----------------------------------------------------------------------------------------------

    def _find(self, counts: Counts) -> list[_Layer]:
        """The layers that are pruned, in the order of their calls."""
        rows = {row.call: row for row in counts.layers}
        modules: dict[str, nn.Module] = dict(self.model.named_modules())
        found: dict[str, _Layer] = {}
        for row in counts.layers:
            module = modules.get(row.name)
            if row.kind in {Kind.CONV, Kind.LINEAR} and isinstance(module, WEIGHTED):
                reader = rows[row.consumers[0]] if len(row.consumers) == 1 else None
                behind = modules.get(reader.name) if reader is not None and reader.kind == Kind.BATCH_NORM else None
                norm = (reader.name, behind) if reader is not None and isinstance(behind, nn.BatchNorm2d) else None
                readers, passed = self._readers(row, rows, modules) if self.by_channel else ({}, ())
                found.setdefault(row.name, _Layer(row.name, module, norm, readers, passed))
        layers = list(found.values())
        kept = layers[0 if self.settings.first_layer else 1 : None if self.settings.last_layer else -1]
        if not kept:
            raise UserError(
                "pruning: only the first and the last layer have weights: set pruning.first_layer=true or "
                "pruning.last_layer=true"
            )
        if not self.by_channel:
            return kept
        if not (whole := [layer for layer in kept if layer.readers]):
            raise UserError(
                "pruning.structure=channel: there is no channel that only convolutions and linear layers read: use "
                "pruning.structure=element"
            )
        return whole

    def _readers(
        self, row: LayerCounts, rows: Mapping[int, LayerCounts], modules: Mapping[str, nn.Module]
    ) -> tuple[dict[str, nn.Conv2d | nn.Linear], tuple[int, ...]]:
        """The layers that read the row's channels, if all who do are layers whose inputs are these channels, and the
        calls between, the row's own first; else none. Not of a layer with groups, or one that is called several
        times."""
        calls = [other.name for other in rows.values()]
        readers: dict[str, nn.Conv2d | nn.Linear] = {}
        waiting, passed = [row], list[int]()
        while waiting:
            made = waiting.pop()
            passed.append(made.call)
            if not made.consumers or made.groups > 1 or calls.count(row.name) > 1:
                return {}, ()
            for reader in (rows[call] for call in made.consumers):
                module = modules.get(reader.name)
                if reader.kind in PASSED and len(reader.producers) == 1:
                    if reader.kind == Kind.VIEW and reader.op not in VIEWS:
                        return {}, ()
                    waiting.append(reader)
                elif isinstance(module, WEIGHTED) and reader.groups <= 1 and calls.count(reader.name) == 1:
                    readers[reader.name] = module
                else:
                    return {}, ()
        return readers, tuple(passed)

    # --- masks -----------------------------------------------------------------------------------------------------

    def _prune(self, part: float) -> None:
        """part: of the training, 1 at the end. Makes the masks, not the zeros."""
        scores = self._scores()
        if self.budget is None:
            assert self.settings.density is not None
            masks = self._with_density(scores, share_at(self.settings, self.settings.density, part))
        else:
            limit = self.budget.share * (1.0 - MARGIN)
            masks = self._within(scores, share_at(self.settings, limit, part))
        self.masks = {layer.name: mask for layer, mask in zip(self.layers, masks, strict=True)}

    def _scores(self) -> list[Tensor]:
        scores = [self._score(layer) for layer in self.layers]
        for layer, score in zip(self.layers, scores, strict=True):
            if layer.name in self.masks:
                score[~self.masks[layer.name]] = -1.0  # what is gone stays gone
            if self.by_channel:
                score[score.argmax()] = torch.inf  # no layer loses all of its channels
        return scores

    def _score(self, layer: _Layer) -> Tensor:
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
            largest([score], kept)[0] for score, kept in zip(scores, self._kept_by_layer(scores, density), strict=True)
        ]

    def _kept_by_layer(self, scores: Sequence[Tensor], density: float) -> list[int]:
        """uniform and erk."""
        sizes, densities = [score.numel() for score in scores], [density] * len(scores)
        if self.settings.ranking == "erk":
            densities = erk_densities([layer.weight.shape for layer in self.layers], density)
        return [max(round(d * size), 1) for d, size in zip(densities, sizes, strict=True)]

    # --- under a budget --------------------------------------------------------------------------------------------

    def _within(self, scores: Sequence[Tensor], share: float) -> list[Tensor]:
        """The masks with the most left at which the network costs ``share`` of the dense energy: bisection on the price
        itself, which is no sum over weights (mask and run codes, tensors that are stored dense, products)."""
        alive = [score >= 0 for score in scores]
        units = sum(score.numel() for score in scores)
        low, high = max(round(FEWEST * units), len(scores)), sum(int(a.sum()) for a in alive)
        order = self._order(scores)
        if self._share(self._kept(scores, order, high)) <= share:
            low = high
        elif self._share(self._kept(scores, order, low)) > share:
            return alive  # no masks would do: the activations have to come first
        while high - low > 1:
            middle = (low + high) // 2
            if self._share(self._kept(scores, order, middle)) <= share:
                low = middle
            else:
                high = middle
        kept = self._kept(scores, order, min(low, high))
        masks = [largest([score], k)[0] for score, k in zip(scores, kept, strict=True)]
        return [mask & there for mask, there in zip(masks, alive, strict=True)]

    def _order(self, scores: Sequence[Tensor]) -> Tensor:
        """Whose weight it is, of those that are there, the largest score first: numbers of layers."""
        flat = torch.cat([score.flatten() for score in scores])
        sizes = torch.tensor([score.numel() for score in scores], device=flat.device)
        owners = torch.arange(len(scores), device=flat.device).repeat_interleave(sizes)
        there = flat >= 0
        return owners[there][flat[there].argsort(descending=True, stable=True)]

    def _kept(self, scores: Sequence[Tensor], order: Tensor, total: int) -> list[int]:
        """How many weights, or channels, each layer has left if so many are left in all."""
        if self.settings.ranking == "global":
            return torch.bincount(order[:total], minlength=len(scores)).tolist()
        wanted = self._kept_by_layer(scores, total / sum(score.numel() for score in scores))
        return [min(kept, int((score >= 0).sum())) for kept, score in zip(wanted, scores, strict=True)]

    def _share(self, kept: Sequence[int]) -> float:
        """What the network of the last look costs with so many weights, or channels, in each layer."""
        assert self.budget is not None
        assert self.counts is not None
        there = {row.name: row.weight_nonzeros for row in self.counts.layers}
        if not self.by_channel:  # what is zero already has the lowest scores
            left = {layer.name: min(k, there[layer.name]) for layer, k in zip(self.layers, kept, strict=True)}
            return self.budget.share_of(with_weights(self.counts, left))
        parts = {layer.name: k / self.looked_at[layer.name] for layer, k in zip(self.layers, kept, strict=True)}
        weights: dict[str, float] = {}
        for layer in self.layers:
            for name in (layer.name, *layer.readers):
                weights[name] = weights.get(name, there[name]) * parts[layer.name]
        silenced = {call: parts[layer.name] for layer in self.layers for call in layer.passed}
        fewer = with_activations(self.counts, silenced)
        return self.budget.share_of(with_weights(fewer, {name: round(value) for name, value in weights.items()}))

    def _fits(self) -> bool:
        assert self.budget is not None
        assert self.counts is not None
        return self.budget.share_of(self.counts) <= self.budget.share

    # --- looks and zeros -------------------------------------------------------------------------------------------

    def _look(self, counts: Counts) -> None:
        if self.budget is not None:
            self.counts = counts
            self.looked_at = {layer.name: self._alive(layer) for layer in self.layers}
        if self.settings.reads_hardware:
            self._take_prices(counts)

    def _alive(self, layer: _Layer) -> int:
        """How many of its channels are left, or of its weights."""
        mask = self.masks.get(layer.name)
        return int(mask.sum()) if mask is not None else len(layer.weight) if self.by_channel else layer.weight.numel()

    def _take_prices(self, counts: Counts) -> None:
        """Of the network as it is; a layer that is called several times pays at each call. The cheapest price above 0
        stands in where one is 0, as on a chip that neither stores nor skips the zeros of a layer."""
        found = RULES[self.hardware.rule].marginal_pj(counts, self.hardware).weights
        prices = {name: 0.0 for layer in self.layers for name in (layer.name, *layer.readers)}
        for row in counts.layers:
            if row.name in prices:
                prices[row.name] += found.get(row.call, 0.0)
        cheapest = min((price for price in prices.values() if price > 0), default=1.0)
        self.prices_pj = {name: price or cheapest for name, price in prices.items()}

    def _apply(self) -> None:
        with torch.no_grad():
            for layer in self.layers:
                if layer.name not in self.masks:
                    continue
                mask = self.masks[layer.name]
                for tensor, part in layer.channels(mask) if self.by_channel else [(layer.weight, mask)]:
                    tensor.mul_(part)


def _check_four(name: str, module: nn.Conv2d | nn.Linear) -> None:
    inputs = module.weight.shape[1]
    if inputs % GROUP:
        raise UserError(
            f"pruning.structure=2:4: {name} has {inputs} inputs for each output, no multiple of {GROUP}: choose "
            "another width, or pruning.structure=element"
        )


def _plain(counts: Counts) -> dict[str, Any]:
    plain = asdict(counts)
    return plain | {"layers": [row | {"kind": str(row["kind"])} for row in plain["layers"]]}


def _counts(plain: Mapping[str, Any]) -> Counts:
    """What ``_plain`` made, and a checkpoint kept."""
    return Counts(
        layers=[LayerCounts(**row | {"kind": Kind(row["kind"])}) for row in plain["layers"]],
        batches=[BatchCounts(**row) for row in plain["batches"]],
        batch_size=plain["batch_size"],
        threshold=plain["threshold"],
        uncounted=plain["uncounted"],
    )
