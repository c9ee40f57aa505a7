"""Pruning: weights that become zero while a network trains, and stay it."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor, nn

from eat_runner.config import MeterConfig
from eat_runner.config.hardware import HardwareConfig
from eat_runner.config.pruning import PruningConfig
from eat_runner.energy.budget import Budget, without_channels
from eat_runner.energy.counts import BatchCounts, Counts, Kind, LayerCounts
from eat_runner.energy.meter import measure
from eat_runner.energy.rules import RULES
from eat_runner.errors import UserError
from eat_runner.methods.base import Method, Progress, Trained
from eat_runner.methods.masks import GROUP, share_at
from eat_runner.methods.prunable import WEIGHTED, Layer
from eat_runner.methods.pruner import Pruner
from eat_runner.methods.within_budget import WithinBudget

MARGIN = 0.005  # of a budget, that is left for images which the look did not see
ROUNDS = 5  # of looks and masks after the training, until the budget holds


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
        self.pruners = [Pruner(part) for part in config.parts]
        self.within: WithinBudget | None = None  # the budget, and the last look

    @property
    def last(self) -> Pruner:
        """The one that a budget decides on."""
        return self.pruners[-1]

    def on_build(self, model: nn.Module) -> None:
        self.model = model
        if not any(isinstance(module, WEIGHTED) for module in model.modules()):
            raise UserError("pruning: the network has no convolution and no linear layer: leave pruning out")

    def on_example(self, model: nn.Module, example_nchw: Tensor) -> None:
        counts = measure(
            model, [example_nchw], MeterConfig(batch_size=len(example_nchw), ignore_uncounted=True), floor=False
        )
        for pruner in self.pruners:
            pruner.find(model, counts)
        if self.settings.structure == "2:4":
            for layer in self.last.layers:
                _check_four(layer)

    def removable(self, counts: Counts) -> frozenset[str]:
        layers = [layer for pruner in self.pruners for layer in pruner.layers]
        return frozenset(name for layer in layers for name in (layer.name, *layer.readers))

    def before_training(self, counts: Counts) -> None:
        self._look(counts)

    def after_epoch(self, progress: Progress, counts: Counts) -> None:
        self._look(counts)
        if self.within is not None and self.last.masks and progress.part >= self.settings.end:
            self._prune(self.last, 1.0)
            self._apply()

    def after_step(self, progress: Progress) -> None:
        steps, done = progress.steps_per_epoch * progress.epochs, progress.step + 1
        for pruner in self.pruners:
            if pruner.is_due(done, steps):
                self._prune(pruner, pruner.part(done, steps))
        self._apply()

    def after_training(self, trained: Trained) -> None:
        """Without any steps, all at once. Under a budget, what is still too much."""
        if not self.last.masks:
            for pruner in self.pruners:
                self._look(trained.count())
                self._prune(pruner, 1.0)
                self._apply()
        for _ in range(ROUNDS if self.budget is not None else 0):
            self._look(trained.count())
            if self.within is None or self.within.is_met():
                break
            self._prune(self.last, 1.0)
            self._apply()

    def state(self) -> dict[str, Any]:
        last, within = self.last, self.within
        return {
            "masks": last.masks,
            "prices_pj": last.prices_pj,
            "channels": {name: mask for pruner in self.pruners[:-1] for name, mask in pruner.masks.items()},
            "looked_at": within.looked_at if within is not None else {},
            "counts": _plain(within.counts) if within is not None else None,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        for pruner, masks in zip(self.pruners[::-1], (state["masks"], state.get("channels", {})), strict=False):
            pruner.load(masks, state["prices_pj"])
        if self.budget is not None and state["counts"]:
            self.within = WithinBudget(self.last, self.budget, _counts(state["counts"]), state["looked_at"])

    def changes(self) -> dict[str, Any]:
        """How many weights, or channels, are masked, of how many, by layer."""
        channels = {name: found for pruner in self.pruners[:-1] for name, found in pruner.masked().items()}
        return {"masked": self.last.masked()} | ({"masked_channels": channels} if channels else {})

    def _prune(self, pruner: Pruner, part: float) -> None:
        """part: of the training, 1 at the end. Makes the masks, not the zeros."""
        if self.within is None or pruner is not self.last:
            pruner.prune(part)
        else:
            limit = self.within.budget.share * (1.0 - MARGIN)
            pruner.keep(self.within.masks(share_at(self.settings, limit, part)))

    def _apply(self) -> None:
        for pruner in self.pruners:
            pruner.apply()

    def _look(self, counts: Counts) -> None:
        if self.budget is not None:
            gone = self._parts() if self.budget.compacts else {}
            self.within = WithinBudget(self.last, self.budget, without_channels(counts, gone))
        if self.settings.reads_hardware:
            for pruner in self.pruners:
                pruner.prices_pj = self._prices_pj(pruner, counts)

    def _parts(self) -> dict[int, float]:
        """By call, which part of its channels is left."""
        return {
            call: pruner.alive(layer) / len(layer.weight)
            for pruner in self.pruners
            if pruner.by_channel
            for layer in pruner.layers
            for call in layer.passed
        }

    def _prices_pj(self, pruner: Pruner, counts: Counts) -> dict[str, float]:
        """Of the network as it is; a layer that is called several times pays at each call. The cheapest price above 0
        stands in where one is 0, as on a chip that neither stores nor skips the zeros of a layer."""
        found = RULES[self.hardware.rule].marginal_pj(counts, self.hardware).weights
        prices = {name: 0.0 for layer in pruner.layers for name in (layer.name, *layer.readers)}
        for row in counts.layers:
            if row.name in prices:
                prices[row.name] += found.get(row.call, 0.0)
        cheapest = min((price for price in prices.values() if price > 0), default=1.0)
        return {name: price or cheapest for name, price in prices.items()}


def _check_four(layer: Layer) -> None:
    inputs = layer.weight.shape[1]
    if inputs % GROUP:
        raise UserError(
            f"pruning.structure=2:4: {layer.name} has {inputs} inputs for each output, no multiple of {GROUP}: choose "
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
