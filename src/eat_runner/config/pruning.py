"""The config group ``pruning``: which weights become zero while a network trains, and when."""

from dataclasses import dataclass

from eat_runner.config.checks import above, between, one_of
from eat_runner.config.method import MethodConfig
from eat_runner.errors import UserError

RANKINGS = ("global", "uniform", "erk")


@dataclass(kw_only=True, slots=True)
class PruningConfig(MethodConfig):
    """Gradual pruning (Zhu and Gupta, arXiv 1710.01878): density d(t) = d + (1 - d) (1 - q)^3, where q goes from 0 to 1
    between ``begin`` and ``end``; after that the masks stay as they are.

    name: ``magnitude`` keeps the largest weights w; ``energy`` those with the largest w^2 / d, where d is what one more
    non-zero weight costs in that layer on the run's hardware (after Yang, Zhu and Liu, ICLR 2019, arXiv 1806.04321).
    density: of the weights that are pruned, the share that is left.
    begin, end: shares of the training. every_steps: steps between two masks.
    ranking: weights of all layers against each other (global), the same density in every layer (uniform), or denser
    where a layer is small (erk: Erdős–Rényi kernel, Evci et al., ICML 2020, arXiv 1911.11134).
    first_layer, last_layer: whether these are pruned, too. Biases and batch norms never are.
    """

    density: float = 0.1
    begin: float = 0.1
    end: float = 0.7
    every_steps: int = 10
    ranking: str = "global"
    first_layer: bool = False
    last_layer: bool = False

    @property
    def reads_hardware(self) -> bool:
        return self.name == "energy"

    def check(self) -> None:
        above("pruning.density", self.density, 0.0)
        between("pruning.density", self.density, 0.0, 1.0)
        between("pruning.begin", self.begin, 0.0, 1.0)
        between("pruning.end", self.end, 0.0, 1.0)
        if self.begin >= self.end:
            raise UserError(f"pruning.begin={self.begin:g} must be smaller than pruning.end={self.end:g}")
        above("pruning.every_steps", self.every_steps, 0)
        one_of("pruning.ranking", self.ranking, RANKINGS)
        if self.name == "energy" and self.ranking != "global":
            raise UserError(
                f"pruning.ranking={self.ranking} is for pruning=magnitude: prices rank all weights together"
            )
