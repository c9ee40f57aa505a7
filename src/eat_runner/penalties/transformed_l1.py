"""The transformed l1 penalty, which goes from the l0 norm (beta small) to the l1 norm (beta large); on activations in
arXiv 2405.19652."""

import torch
from torch import Tensor

from eat_runner.config.penalty import TransformedL1Config
from eat_runner.penalties.base import Adder, widened


class TransformedL1:
    """Sum of (1 + beta) |x| / (beta + |x|); gradient (1 + beta) beta sign(x) / (beta + |x|)^2."""

    def __init__(self, config: TransformedL1Config):
        self.beta = config.beta

    def __call__(self, x: Tensor) -> Tensor:
        # as (1 + beta) (n - sum of beta / (beta + |x|)), which keeps x and the quotient alone for backward
        zeros = (widened(x).abs() + self.beta).reciprocal().sum() * self.beta
        return (1.0 + self.beta) * (x.numel() - zeros)

    def adder(self, below: float, above: float) -> Adder:
        """As InBackward asks."""
        scale = (1.0 + self.beta) * self.beta

        def add(gradient: Tensor, x: Tensor, out: Tensor) -> None:
            x = widened(x)
            slope = torch.sign(x).div_(x.abs().add_(self.beta).square_())
            if below != above:
                slope = torch.where(x > 0, slope * above, slope * below)
                torch.add(gradient, slope, alpha=scale, out=out)
            else:
                torch.add(gradient, slope, alpha=scale * above, out=out)

        return add
