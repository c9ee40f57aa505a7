"""The study: a journal in the results folder, which any number of processes share.

Who asks for a trial holds a lock, and a claim on the trial until its outcome is told; both are the operating system's,
so a process that dies lets go of them. A trial that nobody has and that has no outcome is taken over: its run goes on.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from filelock import FileLock
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock
from optuna.trial import FrozenTrial, TrialState

from eat_runner.analysis.rows import Row, read_row, run_folders
from eat_runner.claims import claim
from eat_runner.config.hardware import HardwareConfig
from eat_runner.config.identity import digest
from eat_runner.errors import UserError
from eat_runner.records import RunFolder
from eat_runner.search.space import Point, Space, grid, suggested, where
from eat_runner.search.stopping import Seen, why_hopeless
from eat_runner.train.history import EpochRow

JOURNAL, ASKING, CLAIMS = "search.journal", ".search.lock", ".search"
DIRECTIONS = ("maximize", "minimize")  # accuracy and energy, on the validation split
RUN, SEEDED = "run", "seeded"  # attributes of a trial: its run's id and point; that it was there before


@dataclass(frozen=True)
class Turn:
    """A trial that is this process's to run. number: of the search's own trials, from 1."""

    trial: int
    number: int
    point: Point
    run_id: str


@dataclass
class Search:
    """One study in ``folder``. name: of the study in its journal. space: what is searched. trials: how many in all, by
    all processes, of all commands. seed: of the sampler. identify: the run id of a point; UserError where it is none.
    unrecorded: keys of the space that no record holds. tried: runs that failed here, and are not tried again."""

    folder: Path
    name: str
    space: Space
    trials: int
    sampler: str
    seed: int
    hardware: HardwareConfig
    identify: Callable[[Mapping[str, str]], str]
    unrecorded: frozenset[str] = frozenset()
    tried: set[str] = field(default_factory=set[str])
    _curves: dict[str, Seen] = field(default_factory=dict[str, Seen])

    def __post_init__(self) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # of each trial, what is said here already
        lock = _Flock(self.folder / f".{JOURNAL}.lock")
        with FileLock(self.folder / ASKING):
            _mend(self.folder / JOURNAL, lock)
            storage = JournalStorage(JournalFileBackend(str(self.folder / JOURNAL), lock))
            self.study = optuna.create_study(
                storage=storage, study_name=self.name, directions=DIRECTIONS, load_if_exists=True
            )
        self._done_before = sum(trial.state.is_finished() for trial in self.own_trials())

    def all_trials(self) -> list[FrozenTrial]:
        """Those that have a point, in order: the search's own, and what it began with."""
        return [trial for trial in self.study.get_trials(deepcopy=False) if RUN in trial.user_attrs]

    def own_trials(self) -> list[FrozenTrial]:
        return [trial for trial in self.all_trials() if SEEDED not in trial.user_attrs]

    # --- what there is to do ---------------------------------------------------------------------------------------

    def turns(self) -> Iterator[Turn]:
        """The trials that are this process's to run, one after the other, each claimed until the next is asked for:
        those that nobody has any more, then new ones, until there are ``trials``."""
        while True:
            with ExitStack() as claims:
                with FileLock(self.folder / ASKING):
                    turn = self._left_over(claims) or self._new(claims)
                if turn is None:
                    return
                yield turn

    def _left_over(self, claims: ExitStack) -> Turn | None:
        for trial in self.study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
            if RUN not in trial.user_attrs:  # who asked for it died asking, or it would have the lock
                self.study.tell(trial.number, state=TrialState.FAIL)
            elif trial.user_attrs[RUN]["run_id"] not in self.tried and self._claimed(trial.number, claims):
                return self._turn(trial.number)
        return None

    def _new(self, claims: ExitStack) -> Turn | None:
        while (done := len(self.own_trials())) < self.trials:
            number_of_all = len(self.study.get_trials(deepcopy=False))
            self.study.sampler = self._sampler(number_of_all)
            if self.sampler == "grid":
                points = grid(self.space, self.trials)
                if done >= len(points):
                    return None
                order = np.random.default_rng(self.seed).permutation(len(points))
                self.study.enqueue_trial(points[order[done]])
            trial = self.study.ask()
            point = suggested(trial, self.space)
            try:
                run_id, reason = self.identify(point), ""
            except UserError as error:
                run_id, reason = "", str(error)
            trial.set_user_attr(RUN, {"run_id": run_id, "point": point, "reason": reason})
            if not reason and self._claimed(trial.number, claims):
                return self._turn(trial.number)
            self.study.tell(trial, state=TrialState.FAIL)
        return None

    def _sampler(self, number: int) -> BaseSampler:
        """Of the ``number``-th trial: a stream of its own, whichever process asks."""
        seed = int(np.random.SeedSequence((self.seed, number)).generate_state(1)[0])
        return TPESampler(seed=seed) if self.sampler == "tpe" else RandomSampler(seed=seed)

    def _claimed(self, trial: int, claims: ExitStack) -> bool:
        folder = self.folder / CLAIMS / f"{self.name}-{trial}"
        folder.mkdir(parents=True, exist_ok=True)
        return claims.enter_context(claim(folder))

    def _turn(self, number: int) -> Turn:
        own = self.own_trials()
        place, trial = next((i, trial) for i, trial in enumerate(own, 1) if trial.number == number)
        return Turn(number, place, trial.user_attrs[RUN]["point"], trial.user_attrs[RUN]["run_id"])

    # --- what came out ---------------------------------------------------------------------------------------------

    def row(self, run_id: str) -> Row:
        """Of the run's folder, priced with the search's hardware."""
        return read_row(RunFolder(self.folder / run_id), self.hardware)

    def tell(self, turn: Turn) -> Row:
        """Write the outcome of a trial into the study, where its run has one; the run's row. UserError where it is
        finished and has no accuracy or no energy on the validation split."""
        row = self.row(turn.run_id)
        if row["status"] == "finished":
            self.study.tell(turn.trial, _objectives(row))
        elif row["status"] in {"stopped", "diverged"}:
            self.study.tell(turn.trial, state=TrialState.PRUNED)
        else:
            self.tried.add(turn.run_id)
        return row

    def seconds_left(self, passed: float) -> float:
        """For the trials that have no outcome yet, at the pace of all processes since this one began, ``passed``
        seconds ago."""
        own = self.own_trials()
        done = sum(trial.state.is_finished() for trial in own)
        return passed / max(done - self._done_before, 1) * max(self.trials - done, 0)

    def take_in(self) -> int:
        """Put the finished runs of the folder that lie in the space into the study, and say how many are new."""
        with FileLock(self.folder / ASKING):
            known = {trial.user_attrs[RUN]["run_id"] for trial in self.all_trials()}
            new = [folder for folder in run_folders(self.folder) if folder.path.name not in known]
            return sum(map(self._take_in, new))

    def _take_in(self, folder: RunFolder) -> bool:
        try:
            record = folder.read_record()
            for params in where(record.config, self.space, self.unrecorded) if record.status == "finished" else ():
                point = {key: str(value) for key, value in params.items()}
                if self.identify(point) == record.run_id:
                    trial = optuna.create_trial(
                        params=params,
                        distributions={key: self.space[key] for key in params},
                        values=_objectives(read_row(folder, self.hardware)),
                        user_attrs={RUN: {"run_id": record.run_id, "point": point}, SEEDED: True},
                    )
                    self.study.add_trial(trial)
                    return True
        except UserError:  # damaged, of no use here, or not in the space
            pass
        return False

    # --- whether it is worth while ---------------------------------------------------------------------------------

    def hopeless(self, epochs: int) -> Callable[[EpochRow], str | None]:
        """Why a training of so many epochs is ended early, asked after each (search/stopping.py)."""

        def look(row: EpochRow) -> str | None:
            if row.validation_accuracy is None or row.energy is None:
                return None
            seen = self._finished(epochs)
            return why_hopeless(row.epoch, epochs, row.validation_accuracy, row.energy, seen)

        return look

    def _finished(self, epochs: int) -> Sequence[Seen]:
        for trial in self.all_trials():
            run_id = trial.user_attrs[RUN]["run_id"]
            if trial.state == TrialState.COMPLETE and run_id not in self._curves:
                self._curves[run_id] = self._seen(RunFolder(self.folder / run_id), trial.values)
        return [seen for seen in self._curves.values() if max(seen.accuracy, default=0) == epochs]

    def _seen(self, folder: RunFolder, values: Sequence[float]) -> Seen:
        """A run that was priced for other hardware while it trained, or by an earlier version, has no energies."""
        last = (values[0], values[1])
        try:
            history, hardware = folder.read_history(), folder.read_record().config["hardware"]
        except UserError:
            return Seen({}, {}, last)
        ours = digest(hardware) == digest(asdict(self.hardware))
        curves = {
            key: {int(row["epoch"] or 0): value for row in history if (value := row.get(column)) is not None}
            for key, column in (("accuracy", "validation_accuracy"), ("energy", "energy"))
        }
        return Seen(curves["accuracy"], curves["energy"] if ours else {}, last)


def _objectives(row: Mapping[str, Any]) -> tuple[float, float]:
    accuracy, energy = row["accuracy_validation"], row["energy_validation"]
    if accuracy is None or energy is None:
        raise UserError(row["reason"] or f"{row['run_id']} has no accuracy or no energy on the validation split")
    return float(accuracy), float(energy)


class _Flock(BaseJournalFileLock):
    """A lock that the operating system releases when its process dies; Optuna's own would make all others wait."""

    def __init__(self, path: Path) -> None:
        self.lock = FileLock(path)

    def acquire(self) -> bool:
        self.lock.acquire()
        return True

    def release(self) -> None:
        self.lock.release()


def _mend(journal: Path, lock: _Flock) -> None:
    """Cut off the half line that a power cut has left at the end, which would make the journal unreadable."""
    with lock.lock:
        if journal.exists() and not (data := journal.read_bytes()).endswith(b"\n"):
            with journal.open("r+b") as file:
                file.truncate(data.rfind(b"\n") + 1)
