"""How the sums of the layers become one number: penalty = sum over k of w_k S_k, where S_k is the surrogate's sum over
the k-th penalised output of a pass. A weighting gives the factors w_k."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from eat_runner.config.hardware import HardwareConfig
from eat_runner.energy.counts import Counts
from eat_runner.energy.rules import RULES
from eat_runner.errors import UserError


class Output(NamedTuple):
    """A penalised output. module: path of what made it. call: how often that had been called before in the pass.
    elements: of the whole batch."""

    module: str
    call: int
    elements: int


class Weighting:
    """hardware: the run's, for weightings that know prices. wants_look: whether ``look`` wants the counts of a few
    training images, once an epoch; the factors may change then, and stay as they are in between."""

    wants_look = False

    def __init__(self, hardware: HardwareConfig | None = None):
        self.hardware = hardware

    def factors(self, outputs: Sequence[Output], batch_size: int, parameters: int) -> Sequence[float | Tensor]:
        """One factor for each output of a pass over ``batch_size`` images by a network with so many parameters.
        A tensor of no dimensions where it changes during the training: a compiled training does not see numbers
        change."""
        raise NotImplementedError

    def look(self, counts: Counts) -> None:
        """The network's counts as it is now, on the first training images, unaugmented."""

    def state(self) -> dict[str, Any]:
        """What a resumed training needs to go on: tensors and plain values."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` was taken."""


class LayerMean(Weighting):
    """1 / (K N_k) for K outputs of N_k elements: the penalty is (1/K) sum S_k / N_k, as in the code that the paper
    builds on."""

    def factors(self, outputs: Sequence[Output], batch_size: int, parameters: int) -> Sequence[float]:
        return [1.0 / (len(outputs) * output.elements) for output in outputs]


class Elements(Weighting):
    """1 / sum N_k: every element counts alike."""

    def factors(self, outputs: Sequence[Output], batch_size: int, parameters: int) -> Sequence[float]:
        return [1.0 / sum(output.elements for output in outputs)] * len(outputs)


class Parameters(Weighting):
    """1 / (B P) for B images and P parameters: the paper's words read literally."""

    def factors(self, outputs: Sequence[Output], batch_size: int, parameters: int) -> Sequence[float]:
        return [1.0 / (batch_size * parameters)] * len(outputs)


class Energy(Weighting):
    """c_k / (B E_dense) for B images: c_k is what one more non-zero in that output costs on the run's hardware, in pJ
    per image, and E_dense what an image costs without zero-skipping. The penalty is then the energy of the activations
    in units of the dense energy, and lambda is cross-entropy per dense energy of an image: comparable between networks,
    data sets and batch sizes.

    The prices are those of the last look (energy/rules/, ``marginal_pj``) and the same until the next one; E_dense is
    that of the first. What is not stored, inside of a group that an accelerator fuses, costs nothing and has factor 0.
    Relative prices serve as well. Needs a look before the first pass.
    """

    wants_look = True

    def __init__(self, hardware: HardwareConfig | None = None):
        super().__init__(hardware)
        if hardware is None:
            raise UserError("penalty.weighting=energy needs prices: give the hardware, or choose another weighting")
        self.dense_pj = 0.0
        self.prices_pj: dict[str, list[float]] = {}  # by module, in the order of its calls

    def factors(self, outputs: Sequence[Output], batch_size: int, parameters: int) -> Sequence[float]:
        assert self.dense_pj, "there was no look yet"
        return [self._price_pj(output) / (batch_size * self.dense_pj) for output in outputs]

    def _price_pj(self, output: Output) -> float:
        prices = self.prices_pj.get(output.module, [])
        return prices[output.call] if output.call < len(prices) else 0.0

    def look(self, counts: Counts) -> None:
        assert self.hardware is not None
        rule = RULES[self.hardware.rule]
        if not self.dense_pj:
            self.dense_pj = sum(layer.dense_pj for layer in rule.price(counts, self.hardware).layers)
        marginal = rule.marginal_pj(counts, self.hardware).activations
        self.prices_pj = {}
        for row in counts.layers:
            self.prices_pj.setdefault(row.name, []).append(marginal.get(row.call, 0.0))

    def state(self) -> dict[str, Any]:
        return {"dense_pj": self.dense_pj, "prices_pj": self.prices_pj}

    def load_state(self, state: dict[str, Any]) -> None:
        if state:
            self.dense_pj, self.prices_pj = state["dense_pj"], state["prices_pj"]


# The values of penalty.weighting.
WEIGHTINGS: dict[str, Callable[[HardwareConfig | None], Weighting]] = {
    "layer_mean": LayerMean,
    "elements": Elements,
    "parameters": Parameters,
    "energy": Energy,
}


def build_weighting(name: str, hardware: HardwareConfig | None = None) -> Weighting:
    """The weighting of that name. UserError for an unknown one."""
    if name not in WEIGHTINGS:
        raise UserError(f"penalty.weighting={name} is unknown: choose one of {', '.join(WEIGHTINGS)}")
    return WEIGHTINGS[name](hardware)


def numbered(modules: Sequence[str], elements: Sequence[int]) -> list[Output]:
    """The outputs of a pass, in order, from the paths of what made them and their elements."""
    calls: dict[str, int] = {}
    outputs: list[Output] = []
    for module, count in zip(modules, elements, strict=True):
        outputs.append(Output(module, calls.get(module, 0), count))
        calls[module] = calls.get(module, 0) + 1
    return outputs
