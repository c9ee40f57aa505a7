"""Handing a command line to Hydra, and what it complains about in one line."""

import os
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Generator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress

import hydra
import yaml
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from eat_runner.cli.errors import tell
from eat_runner.cli.hydra.arguments import as_hydra_reads, parse_options, with_paths
from eat_runner.cli.hydra.callbacks import BeforeJobs, Refused
from eat_runner.cli.hydra.compose import (
    CONFIG_NAME,
    HYDRA_VERSION_BASE,
    no_foreign_code,
    register,
    to_experiment,
)
from eat_runner.cli.hydra.errors import explain
from eat_runner.cli.jobs import PROGRAM, run_points
from eat_runner.config.paths import conf_dir
from eat_runner.config.root import ExperimentConfig
from eat_runner.errors import RUN_FAILED, UserError

SECONDS_BETWEEN_LOOKS = 10  # at a cluster's queue


def run_hydra(arguments: Sequence[str], accept: Callable[[list[ExperimentConfig]], None]) -> None:
    """Hand the command line to Hydra, and turn what it complains about into a UserError of one line."""
    register()
    BeforeJobs.accept = staticmethod(accept)
    run = hydra.main(version_base=HYDRA_VERSION_BASE, config_path=str(conf_dir()), config_name=CONFIG_NAME)(task)
    with errors_from_hydra(), no_foreign_code(), _arguments(as_hydra_reads(arguments)):
        run()


def task(config: DictConfig) -> str:
    """One job, possibly in a worker process of a launcher: run it and return its status."""
    job = to_experiment(config)
    job.check()
    return run_points(job)


def compose_sweep(overrides: Sequence[str]) -> list[ExperimentConfig]:
    """The configurations of ``eat-run -m OVERRIDES``, composed by Hydra and checked; nothing is run."""
    configs: list[ExperimentConfig] = []

    def keep(found: list[ExperimentConfig]) -> None:
        configs.extend(found)
        sys.exit(0)

    with suppress(SystemExit):
        run_hydra(["-m", *overrides], keep)
    return configs


def check_flags(arguments: Sequence[str]) -> Namespace:
    """Refuse the flags that Hydra would answer with a page or a traceback, and the one that loads a pickle."""
    flags, unknown = parse_options(arguments)
    if unknown:
        raise UserError(f"{unknown[0]} is no option: see {PROGRAM} --help")
    if flags.experimental_rerun is not None:
        raise UserError("--experimental-rerun is not supported, since it loads a pickle: repeat the command instead")
    if flags.config_path is not None:
        raise UserError("--config-path would take the place of all of eat-run's files: add yours with --config-dir")
    if flags.run + flags.multirun + flags.shell_completion + (flags.cfg is not None) + (flags.info is not None) > 1:
        raise UserError("only one of --run, --multirun, --cfg, --info and --shell-completion can be used at a time")
    if flags.resolve and flags.cfg is None:
        raise UserError("--resolve goes with --cfg: write --cfg job --resolve")
    return flags


@contextmanager
def _arguments(arguments: Sequence[str]) -> Generator[None]:
    before = sys.argv
    sys.argv = [PROGRAM, *arguments]
    try:
        yield
    finally:
        sys.argv = before


@contextmanager
def errors_from_hydra() -> Generator[None]:
    """Inside, Hydra raises instead of printing; what leaves is a UserError where it is a person's mistake."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    except Refused as refused:
        raise _readable(refused.__cause__) from refused.__cause__
    except BrokenProcessPool:
        tell(
            f"{PROGRAM}: a worker process was killed, as the system does where memory runs out: "
            "the same command continues (hydra.launcher.n_jobs=N says how many work at once)"
        )
        sys.exit(RUN_FAILED)
    except Exception as error:
        if not _job_vanished(error):
            raise _readable(error) from error
        tell(f"{PROGRAM}: {' '.join(str(error).splitlines()[:2])}")
        _wait_for_the_others()
    finally:
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before


def _readable(error: BaseException | None) -> BaseException:
    assert error is not None
    theirs = isinstance(error, HydraException | OmegaConfBaseException | yaml.YAMLError)
    by_text = str(error).startswith(("Config group override", "Unsupported item value in defaults"))
    if isinstance(error, UserError):
        return UserError(with_paths(str(error)))
    return UserError(with_paths(explain(error))) if theirs or by_text else error


def _job_vanished(error: Exception) -> bool:
    """True where submitit says that a job on the cluster ended without a result; the run's record says more."""
    return type(error).__module__.startswith("submitit") and "JobError" in type(error).__name__


def _wait_for_the_others() -> None:
    """Until the cluster has ended all jobs: Hydra's launcher turns away from them once one has vanished."""
    from submitit.slurm.slurm import SlurmJob

    watcher = SlurmJob.watcher
    known = watcher._registered  # pyright: ignore[reportPrivateUsage]
    # 7 besides 7_0, 7_1 … is their array, of which the cluster reports nothing
    jobs = [job for job in known if not any(other.startswith(f"{job}_") for other in known)]
    while not all(watcher.is_done(job, mode="cache") for job in jobs):
        time.sleep(SECONDS_BETWEEN_LOOKS)
        watcher.update()
