"""What a hardware rule is: the way in which a price list turns counts into energy. No torch.

Every energy inside is in pJ. "With" means with zero-skipping, "dense" without; ratio = with / dense.
"""

from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from eat_runner.energy.counts import Counts

PJ_PER_UJ = 1e6

Hardware = TypeVar("Hardware", contravariant=True)


@dataclass(frozen=True, slots=True)
class EnergyParts:
    """Where a layer's energy goes, in pJ: moving parameters, moving activations in and out, multiply-accumulates, and
    what else is computed (additions, pools, normalisations, activation functions). Together they are the layer's, but
    for rounding."""

    weights_pj: float = 0.0
    activations_pj: float = 0.0
    products_pj: float = 0.0
    others_pj: float = 0.0


@dataclass(frozen=True, slots=True)
class LayerEnergy:
    """One layer's part of an image's energy; the parts add up to the whole.

    name, op: of a call, or of a whole fused group (``Conv2d+BatchNorm2d+ReLU`` under the convolution's name).
    energy_pj, dense_pj: in units of one multiply-accumulate where prices are relative.
    firing_rate: non-zeros / elements of what leaves the layer.
    calls: those that it stands for, the group's first one first; none where a rule does not say. parts, dense_parts: of
    energy_pj and dense_pj.
    """

    name: str
    op: str
    energy_pj: float
    dense_pj: float
    firing_rate: float
    calls: tuple[int, ...] = ()
    parts: EnergyParts = EnergyParts()
    dense_parts: EnergyParts = EnergyParts()


@dataclass(frozen=True, slots=True)
class EnergyReport:
    """What the counts of a split cost on one hardware.

    ratio: energy with zero-skipping / without. floor: the ratio if every activation output were zero; None where it was
    not measured or means nothing. energy_uj_per_image, dense_uj_per_image: None where prices are relative.
    uncounted: operations whose cost is not in these numbers. note: what the numbers are and are not.
    stored_weight_bytes: weights and biases, each once, as the hardware stores them. peak_activation_bytes: the most
    that the tensors of an image need at once, as stored (energy/rules/fused.py, ``_peak_bits``). None where the rule
    knows no memory. weights_on_chip: whether the weights stay there from image to image; None where there is no memory
    for them.
    """

    hardware: str
    ratio: float
    floor: float | None
    energy_uj_per_image: float | None
    dense_uj_per_image: float | None
    layers: list[LayerEnergy] = field(default_factory=list[LayerEnergy])
    uncounted: tuple[str, ...] = ()
    note: str = ""
    stored_weight_bytes: float | None = None
    peak_activation_bytes: float | None = None
    weights_on_chip: bool | None = None

    @property
    def cost(self) -> float:
        """Energy per image in uJ; in millions of multiply-accumulates where prices are relative to one."""
        if self.energy_uj_per_image is not None:
            return self.energy_uj_per_image
        return sum(layer.energy_pj for layer in self.layers) / PJ_PER_UJ

    @property
    def dense_cost(self) -> float:
        """``cost`` without zero-skipping."""
        if self.dense_uj_per_image is not None:
            return self.dense_uj_per_image
        return sum(layer.dense_pj for layer in self.layers) / PJ_PER_UJ

    def summary(self) -> dict[str, float | None]:
        """The numbers without the layers: ratio, floor and energies per image."""
        return {
            "ratio": self.ratio,
            "floor": self.floor,
            "energy_uj_per_image": self.energy_uj_per_image,
            "dense_uj_per_image": self.dense_uj_per_image,
        }


@dataclass(frozen=True, slots=True)
class MarginalPrices:
    """What one more non-zero costs, in pJ per image, or in units of one multiply-accumulate where prices are relative.

    activations: by the call that made the tensor; one more non-zero in the tensor of every image. A view's output has
    no key: it is in the prices of the tensors that the view shows. Nor has the network's input: nobody trains it.
    weights: by the layer's call; one more non-zero in its weight. A module that is called twice has a price at each
    call, and a non-zero of its weight costs their sum.
    """

    activations: dict[int, float]
    weights: dict[int, float]


class Rule(Protocol[Hardware]):
    """Prices the counts of one split with a hardware file of the rule's own schema (config/hardware.py)."""

    @property
    def reads_layers(self) -> bool:
        """Whether the totals of ``price`` need layers.csv; if not, those of batches.csv are enough for them, and only
        ``EnergyReport.layers`` needs the rows. ``marginal_pj`` needs both."""
        ...

    def price(self, counts: Counts, hardware: Hardware) -> EnergyReport:
        """What the counts cost. Raises UserError where the rule has no price for them."""
        ...

    def marginal_pj(self, counts: Counts, hardware: Hardware) -> MarginalPrices:
        """What one more non-zero costs in each stored activation tensor and each stored weight: the slope of ``price``,
        with the products that each non-zero brings taken as the mean over the tensor's (M / z for M products and z
        non-zeros). Raises UserError as ``price`` does."""
        ...


def share(part: float, whole: float) -> float:
    """part / whole; 0 of nothing."""
    return part / whole if whole else 0.0
