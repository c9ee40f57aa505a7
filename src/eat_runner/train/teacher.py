"""A teacher's part of the loss: knowledge distillation (Hinton, Vinyals, Dean, arXiv 1503.02531)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eat_runner.config.teacher import TeacherConfig


class Teacher:
    """A term of the training's loss (train/step.py): weight x T^2 x KL(softmax(teacher / T) || softmax(network / T)),
    the mean over the images; T^2 keeps its gradient's size where T changes (arXiv 1503.02531, sec. 2).

    network: whose answers are learnt. It is not changed, and asked in evaluation mode.
    """

    def __init__(self, network: nn.Module, config: TeacherConfig):
        self.network = network.eval().requires_grad_(False)
        self.config = config

    def __call__(self, x_nchw: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        temperature = self.config.temperature
        with torch.no_grad():
            answers = self.network(x_nchw)
        own, taught = (x.to(torch.promote_types(x.dtype, torch.float32)) / temperature for x in (logits, answers))
        divergence = F.kl_div(
            F.log_softmax(own, dim=1),
            F.log_softmax(taught, dim=1),
            reduction="batchmean",
            log_target=True,
        )
        return self.config.weight * temperature**2 * divergence
