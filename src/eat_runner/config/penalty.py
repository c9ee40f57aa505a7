"""The config group ``penalty``: what every penalty has, and those that have more."""

from dataclasses import dataclass, field

from eat_runner.config.checks import above, at_least, between, one_of
from eat_runner.errors import UserError

SMALLEST_SIGMA = 1e-30  # 1 / sigma must be a float32
SCOPES = ("leaf_modules", "activations")
WEIGHTINGS = ("layer_mean", "elements", "parameters", "energy")


@dataclass(kw_only=True, slots=True)
class PenaltyConfig:
    """What is added to the cross-entropy, times lambda (EAT, arXiv 2307.00368, Eq. 3).

    name: key of penalties.PENALTIES; ``none`` is standard training. scope: which outputs are penalised: of all leaf
    modules (as in the code that the paper builds on) or of activation functions only. weighting: how the sums of the
    layers become one number (penalties/weighting.py has the formulas). sample: share of a batch's images whose outputs
    are penalised, for all of them: another sample each step, whose expectation is the penalty of all.
    """

    name: str = "none"
    scope: str = "leaf_modules"
    weighting: str = field(default="layer_mean", metadata={"hashed_as": "normalisation"})
    sample: float = 1.0

    @property
    def reads_hardware(self) -> bool:
        """Whether the prices of the hardware decide what is penalised."""
        return self.weighting == "energy"

    def check(self) -> None:
        one_of("penalty.scope", self.scope, SCOPES)
        one_of("penalty.weighting", self.weighting, WEIGHTINGS)
        above("penalty.sample", self.sample, 0.0)
        between("penalty.sample", self.sample, 0.0, 1.0)


@dataclass(kw_only=True, slots=True)
class L0Config(PenaltyConfig):
    """sigma: width of the l0 norm's surrogate (arXiv 2307.00368, Eq. 1); smaller is closer to l0."""

    name: str = "l0"
    sigma: float = 1e-4

    def check(self) -> None:
        PenaltyConfig.check(self)
        above("penalty.sigma", self.sigma, 0.0)
        at_least("penalty.sigma", self.sigma, SMALLEST_SIGMA)


@dataclass(kw_only=True, slots=True)
class TransformedL1Config(PenaltyConfig):
    """beta: small is close to l0, large to l1."""

    name: str = "transformed_l1"
    beta: float = 1.0

    def check(self) -> None:
        PenaltyConfig.check(self)
        above("penalty.beta", self.beta, 0.0)


@dataclass(kw_only=True, slots=True)
class HoyerConfig(PenaltyConfig):
    name: str = "hoyer"

    def check(self) -> None:
        PenaltyConfig.check(self)
        if self.sample < 1:
            raise UserError(
                f"penalty.sample={self.sample:g}: penalty=hoyer is no sum over the images, so none can stand for "
                "others: leave it out"
            )


# a penalty without knobs of its own takes the first
SCHEMAS: dict[str, type[PenaltyConfig]] = {
    "penalty": PenaltyConfig,
    "hoyer": HoyerConfig,
    "l0": L0Config,
    "transformed_l1": TransformedL1Config,
}
