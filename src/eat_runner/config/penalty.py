"""The config group ``penalty``."""

from dataclasses import dataclass

from eat_runner.config.checks import above, at_least, one_of

SMALLEST_SIGMA = 1e-30  # 1 / sigma must be a float32
SCOPES = ("leaf_modules", "activations")
NORMALISATIONS = ("layer_mean", "elements", "parameters")


@dataclass(kw_only=True, slots=True)
class PenaltyConfig:
    """What is added to the cross-entropy, times lambda (EAT, arXiv 2307.00368, Eq. 1 and 3).

    name: key of penalties.PENALTIES. sigma: the surrogate's width; smaller is closer to l0.
    scope: which outputs are penalised: all leaf modules (as in the code that the paper builds on) or activation
    functions only. normalisation: how the sums of the layers become one number (see penalties.py for the formulas).
    """

    name: str = "l0"
    sigma: float = 1e-4
    scope: str = "leaf_modules"
    normalisation: str = "layer_mean"

    def check(self) -> None:
        above("penalty.sigma", self.sigma, 0.0)
        at_least("penalty.sigma", self.sigma, SMALLEST_SIGMA)
        one_of("penalty.scope", self.scope, SCOPES)
        one_of("penalty.normalisation", self.normalisation, NORMALISATIONS)
