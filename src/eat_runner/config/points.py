"""The runs that a configuration stands for: one, or those along its path."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from eat_runner.config.identity import FRESH, Start, preparation, run_id
from eat_runner.config.path import PathConfig
from eat_runner.config.root import ExperimentConfig, default_methods
from eat_runner.config.teacher import TeacherConfig


def points(
    config: ExperimentConfig, data_fingerprint: str, start: Start = FRESH
) -> Iterator[tuple[ExperimentConfig, Start]]:
    """Each run's configuration, without a path, and what its network starts from. Every run of a path but the first has
    the one before it as its parent, which counts by its name: so all names are known before anything is trained.

    data_fingerprint: hash of the data set's content. start: what the first one starts from.
    """
    path: PathConfig = config.group("path")
    if not path.is_chosen:
        yield config, start
        return
    alone = replace(config, others=config.others | {"path": PathConfig()})
    trainer = replace(config.trainer, epochs=path.epochs, lr=path.lr)
    untaught = alone.others | {"teacher": TeacherConfig()}  # the first has no network before it
    point = replace(alone, lambda_=0.0, methods=default_methods(), budget=None, others=untaught)
    yield point, start
    for strength in path.strengths:
        parent = run_id(point, data_fingerprint, start)
        point = replace(
            _at(alone, path, strength), trainer=trainer, init=str(Path(alone.results_dir) / alone.name / parent)
        )
        start = Start(parent=parent)
        yield point, start


def preparations(configs: Sequence[ExperimentConfig]) -> int:
    """How many different networks with their data have to be made ready for all that the configurations stand for."""
    alone = (replace(point, init=config.init) for config in configs for point, _ in points(config, ""))
    return len({preparation(config) for config in chain(configs, alone)})


def _at(config: ExperimentConfig, path: PathConfig, strength: float) -> ExperimentConfig:
    if path.name == "lambda":
        return replace(config, lambda_=strength)
    if path.name == "budget":
        return replace(config, budget=strength)
    pruning = replace(config.methods["pruning"], density=strength)  # pyright: ignore[reportCallIssue]
    return replace(config, methods=config.methods | {"pruning": pruning})
