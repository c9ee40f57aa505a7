"""Evaluation: what metering adds, and what listing the non-zeros would."""

from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from bench.baselines import evaluate, listing_meter, training
from bench.figures import Figure, figure, interleaved, ratios
from bench.sizes import Sizes, label_of
from eat_runner.config import MeterConfig
from eat_runner.energy.counts import Counts
from eat_runner.energy.meter import measure
from eat_runner.taps import Call, evaluation_mode, tap


def metered(model: torch.nn.Module, batches: list[torch.Tensor]) -> Counts:
    """Ours, as a training looks at the validation split: exact skipped products included, no floor batch."""
    return measure(model, batches, MeterConfig(batch_size=len(batches[0])), floor=False)


def outputs(model: torch.nn.Module, x: torch.Tensor) -> list[NDArray[np.float32]]:
    """What a meter has to look at: the outputs of every call but the activations', whose counts follow from them."""
    found: list[NDArray[np.float32]] = []

    def keep(call: Call) -> None:
        if not call.is_activation:
            found.append(
                call.output.permute(0, 2, 3, 1).numpy().copy() if call.output.dim() == 4 else call.output.numpy()
            )

    with evaluation_mode(model), torch.no_grad(), tap(model, keep):
        model(x)
    return found


def compare(arrays: list[NDArray[np.float32]], threshold: float) -> int:
    """The least that counting costs: each value compared once, with one limit, and the flags counted."""
    return sum(int(np.count_nonzero(values > threshold)) for values in arrays)


def evaluation(sizes: Sizes) -> list[Figure]:
    """Seconds a batch. The listing meter, slow and the same for every batch, gets one batch, the others more."""
    goals = (1.5, 1.25)
    threshold = MeterConfig().threshold
    found: list[Figure] = []
    for i, network in enumerate(sizes.networks):
        t = training(network, sizes.image_size, sizes.batch)
        count, label = sizes.metered_batches[i], label_of(network)
        torch.manual_seed(1)
        batches = [torch.randn_like(t.x_nchw) for _ in range(count)]
        seconds = interleaved(
            {
                "plain": partial(evaluate, t.model, batches),
                "metered": partial(metered, t.model, batches),
                "compared": partial(compare, outputs(t.model, batches[0]), threshold),
                "listed": partial(listing_meter, t.model, batches[:1], threshold),
            },
            sizes.few_rounds[i],
        )
        values = ratios(seconds["metered"], seconds["plain"])
        found.append(figure("evaluation with full metering / evaluation (c)", label, values, goals[i]))
        values = [1 + count * value for value in ratios(seconds["compared"], seconds["plain"])]
        found.append(figure("evaluation (c) and one comparison of each output / evaluation (c)", label, values))
        values = [value / count for value in ratios(seconds["metered"], seconds["listed"])]
        found.append(figure("our metered evaluation / evaluation with meter (d)", label, values, 0.2))
        values = [value * count for value in ratios(seconds["listed"], seconds["plain"])]
        found.append(figure("evaluation with meter (d) / evaluation (c)", label, values))
    return found
