"""From the command line to the front, with real training of a very small network on the embedded digits."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from eat_runner.cli import run
from eat_runner.cli.help import choices
from eat_runner.errors import UserError

TINY = ["trainer.epochs=1", "model.width=2", "dataset.train_limit=128", "threads=1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place to work in, with the digits' store once it is built."""
    return tmp_path_factory.mktemp("end_to_end")


def command(folder: Path, *arguments: str) -> int:
    return run.command([*arguments, *TINY, f"results_dir={folder}/results", f"data_dir={folder}/data"])


@pytest.fixture(scope="module")
def sweep(folder: Path) -> Path:
    assert command(folder, "-m", "lambda=0,1", "name=sweep") == 0
    return folder / "results" / "sweep"


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def test_a_sweep_leaves_table_front_and_plots(sweep: Path) -> None:
    assert {"summary.csv", "pareto.csv", "pareto.png", "pareto.svg", "layer_comparison.csv", "report.html"} <= {
        path.name for path in sweep.iterdir()
    }
    baseline, trained = sorted(rows(sweep / "summary.csv"), key=lambda row: float(row["lambda"]))
    assert (baseline["lambda"], trained["lambda"]) == ("0.0", "1.0")
    assert baseline["status"] == trained["status"] == "finished"
    decrease = 100 * (1 - float(trained["energy_ratio"]) / float(baseline["energy_ratio"]))
    assert float(trained["energy_decrease_percent"]) == pytest.approx(decrease)
    assert float(baseline["energy_decrease_percent"]) == 0


def test_a_runs_folder_holds_what_is_promised(sweep: Path) -> None:
    for row in rows(sweep / "summary.csv"):
        folder = sweep / row["run_id"]
        files = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
        measured = {"layers.csv", "batches.csv", "predictions.csv.gz"}
        assert files == {"config.yaml", "record.json", "history.csv", "model.safetensors", *measured}
        config = yaml.safe_load((folder / "config.yaml").read_text())
        assert config["lambda"] == float(row["lambda"])
        assert config["model"]["width"] == 2
        [epoch] = rows(folder / "history.csv")
        assert 0 < float(epoch["firing_rate"]) < 1


def test_the_same_command_again_repeats_nothing(folder: Path, sweep: Path) -> None:
    records = {path: path.stat().st_mtime_ns for path in sweep.glob("*/record.json")}
    assert len(records) == 2
    assert command(folder, "-m", "lambda=0,1", "name=sweep") == 0
    assert {path: path.stat().st_mtime_ns for path in sweep.glob("*/record.json")} == records


def test_a_plan_says_what_is_done_and_runs_nothing(
    folder: Path, sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        command(folder, "-m", "lambda=0,1,2", "name=sweep", "plan=true")
    assert end.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[:-1]] == ["finished", "finished", "missing"]
    assert lines[-1].startswith("3 runs: 2 done, 1 to do, about ")
    assert len(list(sweep.glob("*/record.json"))) == 2


@pytest.mark.parametrize("name", choices("experiment"))
def test_every_experiment_runs(name: str, folder: Path) -> None:
    assert command(folder, f"experiment={name}", "hydra.mode=RUN", "dataset=digits", f"name=experiment-{name}") == 0
    [record] = (folder / "results" / f"experiment-{name}").glob("*/record.json")
    assert '"finished"' in record.read_text()


MISTAKES = {
    "dataset=cifar10": "CIFAR10 is not in ",
    "dataset=gtsrb": "GTSRB is not in ",
    "dataset=image_folder": "has no folders train and test",
    "init=/no/such": "init=/no/such is not there: ",
    "model=vgg11 model.arch=foo": "model.arch=foo means nothing for model=vgg11: ",
    "model.pretrained=true": "model.pretrained=true is for model=torchvision or model=timm only: ",
}


@pytest.mark.parametrize("line", MISTAKES)
@pytest.mark.parametrize("mode", [[], ["-m", "lambda=0,1"]], ids=["run", "sweep"])
def test_data_and_networks_that_do_not_fit_are_refused_before_any_run(
    line: str, mode: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError) as error:
        command(folder, *mode, *line.split(), "name=refused", f"hydra.run.dir={folder}")
    assert MISTAKES[line] in str(error.value)
    assert "\n" not in str(error.value)
    assert not list((folder / "results" / "refused").iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.long
def test_a_stopped_run_exits_with_75(number: signal.Signals, folder: Path, tmp_path: Path) -> None:
    arguments = [
        "model.width=2",
        "trainer.epochs=3000",
        "dataset.train_limit=128",
        "threads=1",
        f"data_dir={folder}/data",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "eat_runner.cli.run", *arguments, f"results_dir={tmp_path}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    while not list(tmp_path.glob("default/*/history.csv")):
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.05)
    process.send_signal(number)
    _, error = process.communicate()
    assert process.returncode == 75
    assert error.endswith("eat-run: stopped: the same command continues\n")
    [record] = tmp_path.glob("default/*/record.json")
    assert '"interrupted"' in record.read_text()
    assert (record.parent / "checkpoint.pt").exists()


@pytest.mark.long
def test_runs_side_by_side_keep_their_number_of_threads(folder: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    assert command(folder, "-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "lambda=0,1", "name=joblib") == 0
    records = [json.loads(path.read_text()) for path in (folder / "results" / "joblib").glob("*/record.json")]
    assert [(record["status"], record["threads"]) for record in records] == [("finished", 1)] * 2
    assert len(rows(folder / "results" / "joblib" / "summary.csv")) == 2
