"""eat-runner: energy-aware training of image classifiers, and what their inference costs on a zero-skipping ASIC.

The public API, imported when it is asked for, since torch takes seconds:

    penalty(activations, batch_size, parameters, config)   the EAT penalty of one forward pass, for your own loop
    Observer(model, config, example)                       the same, attached to a network
    measure(model, batches, config)                        counts; estimate(counts, hardware) prices them
    load_run(folder)                                   a finished run's network, preprocessing and class names
"""

from importlib import import_module
from typing import Any

_PUBLIC = {
    "penalty": "eat_runner.penalties",
    "Observer": "eat_runner.penalties.observer",
    "measure": "eat_runner.energy.meter",
    "estimate": "eat_runner.energy.estimate",
    "load_hardware": "eat_runner.energy.hardware",
    "load_run": "eat_runner.run.load",
    "MeterConfig": "eat_runner.config",
    "L0Config": "eat_runner.config",
}

__all__ = sorted(_PUBLIC)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'eat_runner' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
