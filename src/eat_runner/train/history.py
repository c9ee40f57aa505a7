"""What is written down about an epoch. No torch."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class EpochRow:
    """One row of history.csv. Training figures are means over the epoch's (augmented) batches, ``penalty`` over every
    twentieth; validation figures are None where there was no evaluation. energy_ratio: ``published``, on the validation
    split. energy: of an image of that split on the run's hardware, as its methods have foreseen it, in uJ, or in
    millions of multiply-accumulates where prices are relative (EnergyReport.cost). seconds: of training."""

    epoch: int
    lr: float
    lambda_t: float
    cross_entropy: float
    penalty: float | None
    train_accuracy: float
    validation_loss: float | None = None
    validation_accuracy: float | None = None
    firing_rate: float | None = None
    energy_ratio: float | None = None
    energy: float | None = None
    seconds: float = 0.0

    def line(self, unit: str | None = None) -> str:
        """For a person. unit: what ``energy`` is in, which then stands there; None: ``energy_ratio`` does."""
        figures = {
            "loss": self.cross_entropy,
            "penalty": self.penalty,
            "accuracy": self.train_accuracy,
            "validation": self.validation_accuracy,
            "firing": self.firing_rate,
            "ratio": self.energy_ratio if unit is None else None,
        }
        text = "  ".join(f"{name} {value:.3f}" for name, value in figures.items() if value is not None)
        energy = f"  energy {self.energy:.4g} {unit}" if unit is not None and self.energy is not None else ""
        return f"epoch {self.epoch}  {text}{energy}  {self.seconds:.1f} s"

    @property
    def is_finite(self) -> bool:
        """Whether the loss is a number; a training goes on no further where it is not."""
        return math.isfinite(self.cross_entropy + (self.penalty or 0.0))
