"""Dual ascent: lambda rises while too many activations fire, and falls when fewer do than may.

The loss is a Lagrangian, lambda the multiplier of the constraint (Gallego-Posada et al., Controlled Sparsity via
Constrained Optimization, NeurIPS 2022, arXiv 2208.04425). cooper-optim has it for any constraint, with an optimiser of
its own around the step; for one constraint whose gradient is the penalty's, it is the line below.
"""

from typing import Any

from eat_runner.config import ScheduleConfig

KEPT = 0.9  # of the running mean, at each new density


class Ascent:
    """multiplier: of lambda's schedule. density: the running mean of what fires, None before the first."""

    def __init__(self, config: ScheduleConfig):
        self.config = config
        self.multiplier = 1.0
        self.density: float | None = None

    def follow(self, density: float) -> None:
        """One step: m <- m + rate (mean / target - 1), held between 0 and cap. density: of a training batch, weighted
        as the penalty weights it. Without a target, the multiplier stays."""
        if self.config.target is None:
            return
        self.density = density if self.density is None else KEPT * self.density + (1.0 - KEPT) * density
        moved = self.multiplier + self.config.rate * (self.density / self.config.target - 1.0)
        self.multiplier = min(max(moved, 0.0), self.config.cap)

    def state(self) -> dict[str, Any]:
        return {"multiplier": self.multiplier, "density": self.density}

    def load_state(self, state: dict[str, Any]) -> None:
        self.multiplier, self.density = state["multiplier"], state["density"]
