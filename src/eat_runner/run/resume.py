"""Checkpoints of a run, and a training that goes on from one."""

import torch

from eat_runner.distributed import from_first
from eat_runner.ranks import is_first
from eat_runner.records import write_atomically
from eat_runner.run.build import Experiment, locate_and_build
from eat_runner.run.record import first_line
from eat_runner.train.checkpoint import pack, unpack
from eat_runner.train.loop import Trainer


def checkpoint(trainer: Trainer, experiment: Experiment) -> None:
    """Write it, in the first of several processes. Raises OSError."""
    if not is_first():
        return
    whose = {"run_id": experiment.run_id, "origin": experiment.origin.checksum, "threads": torch.get_num_threads()}
    write_atomically(experiment.folder.checkpoint, pack(trainer.state() | whose))


def resumed(experiment: Experiment) -> tuple[Trainer, str]:
    """A trainer that goes on from the checkpoint if there is one; a damaged one, or another run's, is passed over, and
    the message says so."""
    path, trainer = experiment.folder.checkpoint, experiment.trainer()
    if not from_first(path.exists):
        return trainer, ""
    try:
        state = unpack(from_first(path.read_bytes))
        if state.get("run_id") != experiment.run_id:
            raise ValueError("it belongs to another run")
        if state.get("origin", experiment.origin.checksum) != experiment.origin.checksum:
            raise ValueError("it began with other weights of the parent")
        trainer.load_state(state)
        torch.set_num_threads(state["threads"])
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError, OSError) as error:
        reason = first_line(error)  # a planted file can put anything into it
        message = f"{path.name} could not be used ({reason}): training started from the beginning"
        experiment.messages.append(message)
        # a state that was loaded half is worse than none
        anew = locate_and_build(experiment.config)
        experiment.network, experiment.methods = anew.network, anew.methods
        return experiment.trainer(), message
    return trainer, ""
