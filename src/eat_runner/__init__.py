"""eat-runner: energy-aware training of image classifiers, and what their inference costs on a zero-skipping ASIC.

The public API, imported when it is asked for, since torch takes seconds:

    penalty(activations, images, parameters, config)   the EAT penalty of one forward pass, for your own training loop
    Observer(model, config, example)                   the same, attached to a network
    measure(model, batches, config)                    count what a network does; estimate(counts, hardware) prices it
    load_run(folder)                                   a finished run's network, preprocessing and class names
"""

from importlib import import_module
from typing import Any

_PUBLIC = {
    "penalty": "eat_runner.penalties",
    "Observer": "eat_runner.observer",
    "measure": "eat_runner.energy.meter",
    "estimate": "eat_runner.energy.estimate",
    "load_hardware": "eat_runner.energy.hardware",
    "load_run": "eat_runner.loading",
    "MeterConfig": "eat_runner.config",
    "PenaltyConfig": "eat_runner.config",
}

__all__ = sorted(_PUBLIC)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'eat_runner' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
