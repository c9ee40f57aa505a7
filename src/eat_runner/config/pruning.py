"""The config group ``pruning``: which weights become zero while a network trains, and when."""

from dataclasses import dataclass, replace
from typing import Self

from eat_runner.config.checks import above, between, one_of
from eat_runner.config.method import MethodConfig
from eat_runner.errors import UserError

RANKINGS = ("global", "uniform", "erk")
STRUCTURES = ("element", "channel", "2:4")
DENSITY, DENSITY_2_4 = 0.1, 0.5


@dataclass(kw_only=True, slots=True)
class PruningConfig(MethodConfig):
    """Gradual pruning (Zhu and Gupta, arXiv 1710.01878): density d(t) = d + (1 - d) (1 - q)^3, where q goes from 0 to 1
    between ``begin`` and ``end``; after that the masks stay as they are.

    name: ``magnitude`` keeps the largest weights w; ``energy`` those with the largest w^2 / d, where d is what one more
    non-zero weight costs in that layer on the run's hardware (after Yang, Zhu and Liu, ICLR 2019, arXiv 1806.04321).
    density: of the weights (or channels) that are pruned, the share that is left. None: what a budget leaves, if there
    is one, else DENSITY.
    begin, end: shares of the training. every_steps: steps between two masks.
    ranking: weights of all layers against each other (global), the same density in every layer (uniform), or denser
    where a layer is small (erk: Erdős–Rényi kernel, Evci et al., ICML 2020, arXiv 1911.11134).
    structure: what goes as one: a single weight (element); an output channel, with its batch norm and all that reads it
    (channel), where nothing but convolutions and linear layers does, so that channels of a residual stream stay; or, of
    every four inputs of an output, two weights (2:4).
    channels: with structure element, the share of those channels that is left: they go as one in the first half of the
    window, and ``density`` counts their weights among those that are gone. With ``compact`` they leave the network, and
    what a mask or run lengths take for them. None: channels are left alone.
    first_layer, last_layer: whether these are pruned, too. Biases and batch norms are not, but for those of a channel.
    """

    density: float | None = DENSITY
    begin: float = 0.1
    end: float = 0.7
    every_steps: int = 10
    ranking: str = "global"
    structure: str = "element"
    channels: float | None = None
    first_layer: bool = False
    last_layer: bool = False

    @property
    def reads_hardware(self) -> bool:
        return self.name == "energy"

    @property
    def by_channel(self) -> bool:
        return self.structure == "channel"

    @property
    def parts(self) -> "list[PruningConfig]":
        """What goes one after the other, each with a structure of its own."""
        if self.channels is None:
            return [self]
        half = (self.begin + self.end) / 2
        return [
            replace(self, structure="channel", density=self.channels, channels=None, end=half),
            replace(self, channels=None),
        ]

    def settled(self, has_budget: bool) -> Self:
        """With the density that it will have where none was given, which is None if the budget decides."""
        if self.density is not None or has_budget:
            return self
        return replace(self, density=DENSITY_2_4 if self.structure == "2:4" else DENSITY)

    def check(self) -> None:
        if self.density is not None:
            above("pruning.density", self.density, 0.0)
            between("pruning.density", self.density, 0.0, 1.0)
        between("pruning.begin", self.begin, 0.0, 1.0)
        between("pruning.end", self.end, 0.0, 1.0)
        if self.begin >= self.end:
            raise UserError(f"pruning.begin={self.begin:g} must be smaller than pruning.end={self.end:g}")
        above("pruning.every_steps", self.every_steps, 0)
        one_of("pruning.ranking", self.ranking, RANKINGS)
        one_of("pruning.structure", self.structure, STRUCTURES)
        if self.channels is not None:
            above("pruning.channels", self.channels, 0.0)
            between("pruning.channels", self.channels, 0.0, 1.0)
            if self.structure != "element":
                raise UserError(
                    f"pruning.channels={self.channels:g} is for pruning.structure=element: leave one of them out"
                )
        if self.name == "energy" and self.ranking != "global":
            raise UserError(
                f"pruning.ranking={self.ranking} is for pruning=magnitude: prices rank all weights together"
            )
        if self.structure == "2:4":
            self._check_2_4()

    def check_under_budget(self) -> None:
        if self.density is not None:
            raise UserError(
                f"pruning.density={self.density:g} and a budget both say how much is left: leave one of them out"
            )
        if self.structure == "2:4":
            raise UserError(
                "a budget does not fit pruning.structure=2:4, which leaves half of the weights: use element"
            )

    def _check_2_4(self) -> None:
        if self.density not in (None, DENSITY_2_4):
            raise UserError(f"pruning.density={self.density:g} does not fit pruning.structure=2:4, which leaves 0.5")
        if self.name == "energy":
            raise UserError(
                "pruning=energy does not fit pruning.structure=2:4: two weights of four stay, whatever they cost: "
                "choose pruning=magnitude"
            )
        if self.ranking != "global":
            raise UserError(f"pruning.ranking={self.ranking} does not fit pruning.structure=2:4: leave it out")
