"""A run's parts, built and checked, without training."""

import os
import shutil
from collections.abc import Collection
from contextlib import suppress
from copy import deepcopy
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path

import torch

from eat_runner import models
from eat_runner.config import ExperimentConfig
from eat_runner.config.identity import Start
from eat_runner.distributed import together
from eat_runner.energy.budget import Budget, least
from eat_runner.energy.counts import Counts
from eat_runner.energy.estimate import estimate
from eat_runner.energy.meter import NonFiniteError
from eat_runner.energy.rules.base import PJ_PER_UJ
from eat_runner.errors import UserError
from eat_runner.methods import METHODS, build_methods, foreseen, restore
from eat_runner.methods.base import Method
from eat_runner.methods.masks import Held
from eat_runner.models import Network
from eat_runner.penalties.observer import Observer
from eat_runner.run.locate import Job, locate
from eat_runner.train.evaluate import LOOK, evaluate, pixels_of
from eat_runner.train.loop import Trainer, is_compiled
from eat_runner.train.teacher import Teacher

LEAST = 2  # images that show whether a network can be counted and priced, before it is trained


@dataclass
class Experiment(Job):
    """One run's parts. methods: by config group, in the order in which they act. messages: for a person. budget: None
    where there is none. held: the zeros of a parent that was pruned. teacher: the parent as it was, if it teaches."""

    network: Network
    methods: dict[str, Method]
    messages: list[str]
    budget: Budget | None = None
    held: Held | None = None
    teacher: Teacher | None = None

    def trainer(self) -> Trainer:
        """At the beginning of the training."""
        return Trainer(self.network, self.dataset, self.config, self.device, self.methods, self.held, self.teacher)


def build(job: Job) -> Experiment:
    """The network with its first weights, and the methods, which have seen it. UserError where something does not
    fit."""
    config, dataset = job.config, job.dataset
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    network = models.build(config.model, dataset.image_size, dataset.channels, len(dataset.class_names))
    if job.device.type == "cpu" and is_compiled(config.trainer, len(dataset.train)) and not _has_cpp_compiler():
        raise UserError(
            f"trainer.compile={config.trainer.compile} compiles this training, and there is no C++ compiler: install "
            "g++, or set trainer.compile=off"
        )
    messages, held = list(network.messages), None
    as_built = _look(network, job, config.meter.batch_size) if config.has_budget else None
    if as_built is None:
        with suppress(NonFiniteError):  # which is found again, and recorded, when the network is measured
            estimate(_look(network, job, LEAST), config.hardware, LOOK)
    if config.init is not None:
        _check_trainable(job)
        messages += _load_weights(network, job, Path(config.init))
        if any(change.get("method") == "pruning" for change in job.origin.changes):
            held = Held(network.module)
    taught = config.group("teacher")
    teacher = Teacher(deepcopy(network.module), taught) if taught.is_chosen else None
    compacts = "compact" in config.chosen_methods
    budget = Budget.of(config.hardware, config.budget, config.budget_uj, as_built, compacts) if as_built else None
    methods = build_methods(config.chosen_methods, config.hardware, budget)
    for method in methods.values():
        method.on_build(network.module)
    example = torch.zeros(1, network.channels, dataset.image_size, dataset.image_size)
    for method in methods.values():
        method.on_example(network.module, example)
    if config.is_penalised and config.trainer.epochs and not is_compiled(config.trainer, len(dataset.train)):
        pair = torch.cat([example, example])  # batch norm wants more than one value
        Observer(network.module, config.penalty, pair, in_backward=True, hardware=config.hardware).rehearse(pair)
    if budget is not None and as_built is not None and "compact" not in methods:
        _refuse_impossible(budget, as_built, methods.values())
    return Experiment(
        **vars(job), network=network, methods=methods, messages=messages, budget=budget, held=held, teacher=teacher
    )


def _look(network: Network, job: Job, images: int) -> Counts:
    """Counts of the network as it was built, on so many images of one batch: its dense energy does not depend on them.
    UserError for what cannot be counted."""
    pixels = pixels_of(network, job.dataset, torch.device("cpu"))
    return evaluate(network.module, job.dataset.train.first(images), pixels, job.config.meter, LOOK, floor=False).counts


def _refuse_impossible(budget: Budget, as_built: Counts, methods: Collection[Method]) -> None:
    """UserError where nothing that the run may do brings the network below its budget."""
    if budget.share > 1:
        limit, dense = budget.limit_pj / PJ_PER_UJ, budget.dense_pj / PJ_PER_UJ
        raise UserError(
            f"budget_uj={limit:g} is more than the {dense:.4g} uJ that the network needs without zero-skipping on "
            f"{budget.hardware.name}: leave it out, or ask for less"
        )
    removable = frozenset(name for method in methods for name in method.removable(as_built))
    share = budget.share_of(least(foreseen(methods, as_built), removable))
    if share <= budget.share:
        return
    unit = "" if budget.hardware.relative else f" ({share * budget.dense_pj / PJ_PER_UJ:.4g} uJ)"
    given = f"the budget is {budget.share:.4g} of the dense energy on {budget.hardware.name}"
    raise UserError(
        f"{given}, and with every activation zero{' and no weight left that pruning takes' if removable else ''} the "
        f"network costs {share:.4g} of it{unit}: raise the budget, or choose methods that take more"
    )


def _load_weights(network: Network, job: Job, init: Path) -> list[str]:
    """Those that the training starts from; messages for a person. UserError where they do not fit, which says what the
    network of their run is called."""
    try:
        restore(network.module, job.origin.changes)
        return models.load_weights(network.module, init)
    except UserError as error:
        ours, theirs = asdict(job.config.model), job.origin.model
        others = [key for key in ours if key in theirs and theirs[key] != ours[key]]
        if not others:
            raise
        keys = " ".join(f"model{'' if key == 'name' else f'.{key}'}={theirs[key]}" for key in others)
        raise UserError(f"init={init} is a network of {keys}: write {keys}, too") from error


def _check_trainable(job: Job) -> None:
    for change in job.origin.changes:
        method = METHODS.get(change["method"])
        if method is not None and method.untrainable and job.config.trainer.epochs:
            raise UserError(
                f"init={job.config.init} has {change['method']}={change['choice']} and cannot be trained further: set "
                "trainer.epochs=0, or start from the run that it came from"
            )


def build_or_error(job: Job) -> Experiment | Exception:
    """The experiment, or why it cannot be built though nothing is wrong with what was asked for (out of memory): the
    run is to fail alone, with a record."""
    try:
        return build(job)
    except UserError:
        raise
    except Exception as error:
        return error


def prepare(config: ExperimentConfig) -> tuple[str, Start]:
    """Find out, in all processes that train together, whether the run can be built: the fingerprint of the data, what
    the network starts from. UserError where something does not fit in one of them."""

    def prepared() -> tuple[str, str, Start]:
        job = locate(config)
        build_or_error(job)  # an error that is no UserError is one run's: it will fail alone
        return job.run_id, job.dataset.fingerprint, job.origin.start

    first, *others = together(prepared)
    if any(other != first for other in others):
        raise UserError(
            "the processes that torchrun started have different data, init names different runs, or "
            "trainer.precision=auto is not the same on their machines"
        )
    return first[1:]


def locate_and_build(config: ExperimentConfig) -> Experiment:
    """``locate`` and ``build``."""
    return build(locate(config))


def import_optimizers() -> None:
    """Import what torch's optimisers import as soon as one is made: the compiler, used or not, which takes about as
    long as torch itself. To be called with the garbage collector off; eat-measure of a run can do without."""
    import_module("torch._dynamo")


def _has_cpp_compiler() -> bool:
    return any(map(shutil.which, filter(None, [os.environ.get("CXX"), "g++", "clang++", "cl"])))
