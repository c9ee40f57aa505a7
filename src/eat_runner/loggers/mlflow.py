"""MLflow: a run in the experiment that is called like the sweep (the extra mlflow).

Without MLFLOW_TRACKING_URI the store is SQLite's results_dir/mlflow.db, where the processes of a sweep wait for each
other's writes; MLflow no longer opens a store of plain files.
"""

import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from eat_runner.loggers.base import About, Logger, metrics_of, package, results_of
from eat_runner.records import RunRecord
from eat_runner.train.history import EpochRow

RUN_ID = "run_id"  # the tag by which a run is found again
REPORT = "report"  # in place of a run id: the figures of all runs
LOGGED_WITH_A_ROW = "history/seconds"
AT_ONCE = 100  # parameters, the most that a server takes
# unless somebody wants it otherwise: MLflow's makers are told nothing, nor anybody that there is a database now, and a
# server that does not answer costs seconds, not minutes
SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
}


class Mlflow(Logger):
    """A run that is there is gone on with: epochs and parameters that it has are not logged again."""

    def __init__(self, config: object, about: About):
        super().__init__(config, about)
        self.client, self.run_id, has = _open(about.folder.path.parent, about.run_id)
        self._set_parameters(has)
        self.client.set_tag(self.run_id, "folder", str(about.folder.path.absolute()))
        self.epochs = {metric.step for metric in self.client.get_metric_history(self.run_id, LOGGED_WITH_A_ROW)}
        for row in about.history:
            self.log(row)

    @classmethod
    def check(cls, config: object) -> None:
        _mlflow()
        package("mlflow.store.tracking.sqlalchemy_store", "mlflow")

    def log(self, row: EpochRow) -> None:
        if row.epoch not in self.epochs:  # a process that was killed may have come further than its checkpoint
            self._log(metrics_of(row), row.epoch)

    def close(self, record: RunRecord | None = None) -> None:
        if record is None:
            self.client.set_terminated(self.run_id, "KILLED")
            return
        self._log(results_of(record), record.epochs_done)
        self.client.set_tag(self.run_id, "status", record.status)
        self.client.set_terminated(self.run_id, "FINISHED")

    def _log(self, values: dict[str, float], step: int) -> None:
        now = time.time_ns() // 10**6
        metrics = [_mlflow().entities.Metric(key, value, now, step) for key, value in values.items()]
        self.client.log_batch(self.run_id, metrics=metrics)

    def _set_parameters(self, has: dict[str, str]) -> None:
        param = _mlflow().entities.Param
        parameters = [
            param(key, _text(value)) for key, value in self.about.parameters.items() if key not in has
        ]  # one that is there cannot be changed
        for first in range(0, len(parameters), AT_ONCE):
            self.client.log_batch(self.run_id, params=parameters[first : first + AT_ONCE])

    @classmethod
    def show(cls, config: object, folder: Path, figures: Sequence[Path]) -> None:
        client, run_id, _ = _open(folder, REPORT)
        for path in figures:
            client.log_artifact(run_id, str(path))
        client.set_terminated(run_id, "FINISHED")


def _open(folder: Path, run_id: str) -> tuple[Any, str, dict[str, str]]:
    """A client, MLflow's id of the run, which is made where it is not there, and the parameters that it has.

    folder: of the sweep, in results_dir. One process at a time: two that make the same database spoil it.
    """
    results_dir, server = folder.parent.absolute(), os.environ.get("MLFLOW_TRACKING_URI")
    with FileLock(results_dir / ".mlflow.lock"):
        client = _mlflow().MlflowClient(server or f"sqlite:///{results_dir}/mlflow.db")
        artifacts = None if server else (results_dir / "mlartifacts" / folder.name).as_uri()
        experiment = _experiment(client, folder.name, artifacts)
        found = client.search_runs([experiment], f"tags.{RUN_ID} = '{run_id}'", max_results=1)
        if found:
            client.update_run(found[0].info.run_id, "RUNNING")
            return client, found[0].info.run_id, found[0].data.params
        made = client.create_run(experiment, run_name=run_id, tags={RUN_ID: run_id})
        return client, made.info.run_id, {}


def _experiment(client: Any, name: str, artifacts: str | None) -> str:
    """The id of the sweep's experiment, which is made where it is not there. artifacts: where its files go."""
    with suppress(_mlflow().MlflowException):  # somebody else's process was faster, on a server
        if client.get_experiment_by_name(name) is None:
            return client.create_experiment(name, artifact_location=artifacts)
    return client.get_experiment_by_name(name).experiment_id


def _mlflow() -> Any:
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    return package("mlflow", "mlflow")


def _text(value: Any) -> str:
    """As on the command line: true, null."""
    return value if isinstance(value, str) else json.dumps(value)
