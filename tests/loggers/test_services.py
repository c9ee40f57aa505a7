"""TensorBoard, MLflow and Weights & Biases, each read back with its own reader: a run that was killed and went on, what
the run is without them, several processes on one sweep, and a server that is gone."""

import json
import os
import resource
import signal
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from eat_runner.config.logger import LoggerConfig, WandbConfig
from eat_runner.errors import UserError
from eat_runner.loggers import LOGGERS, listening, show
from eat_runner.loggers.base import About
from eat_runner.records import RunFolder, RunRecord
from eat_runner.train.history import EpochRow
from processes import eat_run, ended, finish, kill_when, outcome, output, results, run_folders

Curves = dict[str, dict[int, float]]

ROWS = [EpochRow(epoch, 0.1, 1.0, 2.5 / epoch, None, 0.5, seconds=1.0) for epoch in (1, 2, 3, 4)]
RUN = "lambda=1 trainer.epochs=4 trainer.checkpoint_every=2"
ALL = f"{RUN} loggers=[csv,progress,tensorboard,mlflow,wandb]"
KILLED = -signal.SIGKILL
UNTIMED = ("cross_entropy", "penalty", "train_accuracy", "validation_accuracy", "firing_rate", "lr", "lambda_t")


@pytest.fixture
def about(tmp_path: Path) -> About:
    folder = RunFolder(tmp_path / "results" / "sweep" / "digits-7")
    folder.create()
    config = {"lambda": 1.0, "trainer": {"epochs": 4}, "init": None, "download": True}
    return About("digits-7", folder, config, steps=40, steps_done=0, history=[])


def later(about: About, rows: list[EpochRow]) -> About:
    """The same run in the next process."""
    return About(about.run_id, about.folder, about.config, about.steps, 10 * len(rows), rows)


@pytest.fixture
def figure(tmp_path: Path) -> Path:
    image = pytest.importorskip("PIL.Image").new("RGB", (30, 20), (255, 0, 0))
    image.save(tmp_path / "pareto.png")
    return tmp_path / "pareto.png"


# --- TensorBoard ---


def accumulated(folder: Path) -> Any:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = reader.EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0}, purge_orphaned_data=False)
    return found.Reload()


def curves_of(found: Any) -> Curves:
    """Also fails where a step stands twice."""
    curves: Curves = {}
    for tag in found.Tags()["scalars"]:
        steps = [event.step for event in found.Scalars(tag)]
        assert len(steps) == len(set(steps)), (tag, steps)
        curves[tag] = {event.step: event.value for event in found.Scalars(tag)}
    return curves


def hparams_of(found: Any) -> dict[str, Any]:
    plugin_data = pytest.importorskip("tensorboard.plugins.hparams.plugin_data_pb2").HParamsPluginData
    content = found.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    values = plugin_data.FromString(content).session_start_info.hparams
    return {key: getattr(value, value.WhichOneof("kind")) for key, value in values.items()}


def test_tensorboard_has_every_epoch_once_the_parameters_the_results_and_the_figures(
    about: About, figure: Path
) -> None:
    pytest.importorskip("tensorboard")
    config, folder = {"tensorboard": LoggerConfig()}, about.folder.path / "tensorboard"
    with listening(config, about) as loggers:
        for row in ROWS[:3]:
            loggers.log(row)
    assert set(curves_of(accumulated(folder))["history/cross_entropy"]) == {1, 2, 3}
    # the next process begins where the checkpoint was
    with listening(config, later(about, ROWS[:2])) as loggers:
        for row in ROWS[2:]:
            loggers.log(row)
        loggers.record = RunRecord(
            run_id="digits-7",
            status="finished",
            epochs_done=4,
            accuracy={"test": 0.75, "validation": None},
            energy={"published": {"test": {"ratio": 0.5}}},
        )
    found = accumulated(folder)
    curves = curves_of(found)
    assert curves["history/cross_entropy"] == pytest.approx({1: 2.5, 2: 1.25, 3: 2.5 / 3, 4: 0.625})
    assert "history/penalty" not in curves
    assert curves["final/accuracy/test"] == {4: 0.75}
    assert curves["final/energy/published/test/ratio"] == {4: 0.5}
    assert "final/accuracy/validation" not in curves
    assert hparams_of(found) == {
        "run_id": "digits-7", "lambda": 1.0, "trainer.epochs": 4.0, "init": "null", "download": 1.0,
    }  # fmt: skip
    for _ in range(2):
        show(config, about.folder.path.parent, [figure])
    [image] = accumulated(about.folder.path.parent / "tensorboard").Images("pareto")
    assert (image.width, image.height, image.encoded_image_string) == (30, 20, figure.read_bytes())


def test_a_log_that_cannot_grow_is_given_up_in_one_line(about: About, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorboard")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with listening({"csv": LoggerConfig(), "tensorboard": LoggerConfig()}, about) as loggers:
        loggers.log(ROWS[0])
        [log] = (about.folder.path / "tensorboard").iterdir()
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (log.stat().st_size + 10, before[1]))
            for row in ROWS[1:]:
                loggers.log(row)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert capfd.readouterr().err.splitlines() == [
        "digits-7  loggers=tensorboard failed, which takes nothing from the run: OSError: [Errno 27] File too large"
    ]
    assert [row["epoch"] for row in about.folder.read_history()] == [1, 2, 3, 4]


# --- all three, in the real program ---


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders below it share a store of digits."""
    for package in ("tensorboard", "mlflow", "sqlalchemy", "wandb"):
        pytest.importorskip(package)
    return tmp_path_factory.mktemp("services")


@pytest.fixture(scope="module")
def resumed(place: Path) -> RunFolder:
    """Killed after its third epoch, with a checkpoint of the second, and gone on."""
    folder = place / "resumed"
    third = lambda: any(path.read_text().count("\n") == 4 for path in folder.glob("results/default/*/history.csv"))  # noqa: E731
    assert kill_when(eat_run(folder, ALL), third) == KILLED, output(folder)
    [run] = run_folders(folder)
    assert len(run.read_history()) == 3
    assert finish(folder, ALL) == 0, output(folder)
    return run


def said(run: RunFolder) -> tuple[Curves, dict[str, float]]:
    """What a log has to have of the history, and some of the results."""
    history = {f"history/{key}": {int(row["epoch"] or 0): row[key] for row in run.read_history()} for key in UNTIMED}
    record = run.read_record()
    energy = record.energy["fused_7nm_int8"]["test"]
    results = {
        "final/accuracy/test": record.accuracy["test"],
        "final/energy/fused_7nm_int8/test/energy_uj_per_image": energy["energy_uj_per_image"],
        "final/energy/published/validation/ratio": record.energy["published"]["validation"]["ratio"],
        "final/parameters": record.parameters,
    }
    assert all(len(curve) == 4 for curve in history.values())
    return history, results  # type: ignore[return-value]


def the(curves: Curves, keys: Any) -> Curves:
    return {key: curves[key] for key in keys}


@pytest.mark.long
def test_tensorboard_goes_on(resumed: RunFolder) -> None:
    history, results = said(resumed)
    found = accumulated(resumed.path / "tensorboard")
    curves = curves_of(found)
    for key, curve in history.items():
        assert curves[key] == pytest.approx(curve), key
    for key, value in results.items():
        assert curves[key] == pytest.approx({4: value}), key
    parameters = hparams_of(found)
    assert (parameters["run_id"], parameters["trainer.epochs"], parameters["model.width"]) == (resumed.path.name, 4, 4)
    assert accumulated(resumed.path.parent / "tensorboard").Tags()["images"] == ["pareto"]


def mlflow_runs(folder: Path, experiment: str = "default") -> tuple[Any, dict[str, Any]]:
    """The client and the runs by their tag."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{folder}/results/mlflow.db")
    found = client.get_experiment_by_name(experiment)
    runs = client.search_runs([found.experiment_id])
    by_id = {run.data.tags["run_id"]: run for run in runs}
    assert len(by_id) == len(runs)
    return client, by_id


@pytest.mark.long
def test_mlflow_goes_on(place: Path, resumed: RunFolder) -> None:
    history, results = said(resumed)
    client, runs = mlflow_runs(place / "resumed")
    assert set(runs) == {resumed.path.name, "report"}
    run = runs[resumed.path.name]
    for key, curve in history.items():
        logged = [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, key)]
        assert sorted(logged) == list(curve.items()), key
    assert run.data.metrics.items() >= results.items()
    config = yaml.safe_load(resumed.config.read_text())
    assert run.data.params["trainer.epochs"] == "4"
    assert run.data.params["lambda"] == "1.0"
    assert run.data.params["trainer.lr"] == json.dumps(config["trainer"]["lr"])
    assert run.data.params["init"] == "null"
    assert (run.info.status, run.info.run_name) == ("FINISHED", resumed.path.name)
    assert run.data.tags["status"] == "finished"
    assert [file.path for file in client.list_artifacts(runs["report"].info.run_id)] == ["pareto.png"]


def wandb_records(folder: Path) -> Iterator[Any]:
    """The messages of the one offline run in ``folder``: LevelDB's log format behind a header of seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    [file] = folder.glob(".wandb/offline-run-*/*.wandb")
    data, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # the rest of a block
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(whole)
            whole = b""


def items(entries: Any) -> dict[str, Any]:
    return {entry.key or "/".join(entry.nested_key): json.loads(entry.value_json) for entry in entries}


@pytest.mark.long
def test_wandb_goes_on(resumed: RunFolder) -> None:
    history, results = said(resumed)
    records = {"run": [], "history": [], "summary": [], "exit": []}
    for record in wandb_records(resumed.path):
        kind = record.WhichOneof("record_type")
        if kind in records:
            records[kind].append(getattr(record, kind))
    rows = [items(row.item) for row in records["history"]]
    assert [row["_step"] for row in rows] == [1, 2, 3, 4]
    for key, curve in history.items():
        assert {row["_step"]: row[key] for row in rows} == curve, key
    summary: dict[str, Any] = {}
    for update in records["summary"]:
        summary |= items(update.update)
    assert summary.items() >= (results | {"status": "finished"}).items()
    first = records["run"][0]
    config = items(first.config.update)
    assert (config["run_id"], config["trainer.epochs"], config["lambda"]) == (resumed.path.name, 4, 1.0)
    assert (first.project, first.run_group, first.display_name) == ("eat-runner", "default", resumed.path.name)
    assert set(first.tags) == {"digits", "resnet18"}
    assert len(records["exit"]) == 1
    [figure] = [row for row in wandb_records(resumed.path.parent) if row.WhichOneof("record_type") == "history"]
    image = items(figure.history.item)
    [folder] = resumed.path.parent.glob(".wandb/offline-run-*")
    assert (folder / "files" / image["pareto/path"]).read_bytes() == (resumed.path.parent / "pareto.png").read_bytes()


@pytest.mark.long
def test_they_change_no_result_and_no_name(place: Path, resumed: RunFolder) -> None:
    assert finish(place / "plain", RUN) == 0
    [plain] = run_folders(place / "plain")
    assert plain.path.name == resumed.path.name
    outcomes = [outcome(run) for run in (plain, resumed)]
    for found in outcomes:
        del found["config"], found["record"]["config"]["loggers"]
        found["files"] = [name for name in found["files"] if name not in {"tensorboard", ".wandb"}]
    assert outcomes[0] == outcomes[1]
    assert "failed" not in output(place / "resumed")
    assert "WARN" not in output(place / "resumed").upper().replace("WARMUP", "")


@pytest.mark.long
def test_several_processes_share_mlflows_store(place: Path) -> None:
    folder = place / "shared"
    sweep = "-m trainer.epochs=1 lambda=0 seed=0,1,2 loggers=[csv,mlflow]"
    processes = [eat_run(folder, sweep) for _ in range(2)]
    assert [ended(process) for process in processes] == [0, 0]
    assert "loggers=" not in output(folder)
    client, runs = mlflow_runs(folder)
    assert set(runs) == {run.path.name for run in run_folders(folder)} | {"report"}
    for run in run_folders(folder):
        logged = client.get_metric_history(runs[run.path.name].info.run_id, "history/cross_entropy")
        assert [(metric.step, metric.value) for metric in logged] == [(1, run.read_history()[0]["cross_entropy"])]
    assert len(results(folder).parent.joinpath("mlartifacts", "default").glob("*").__next__().name) == 32


@pytest.mark.long
def test_a_server_that_is_gone_is_one_line(
    place: Path, about: About, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with listening({"mlflow": LoggerConfig(), "csv": LoggerConfig()}, about) as loggers:
        for row in ROWS:
            loggers.log(row)
    [line] = capfd.readouterr().err.splitlines()
    assert line.startswith("digits-7  loggers=mlflow failed, which takes nothing from the run: MlflowException: ")
    assert len(about.folder.read_history()) == 4


@pytest.mark.long
def test_online_without_a_key_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(UserError, match=r"^loggers.wandb.mode=online needs a key of the server: run wandb login"):
        LOGGERS["wandb"].check(WandbConfig(mode="online"))
