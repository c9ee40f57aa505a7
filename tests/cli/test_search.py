"""eat-search: what it refuses, what it leaves, and that nothing is lost or done twice, whoever dies."""

import csv
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from processes import after, appears, eat_run, ended, kill_when, output, results, run_folders, stamp

pytest.importorskip("optuna")

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from eat_runner.cli import search
from eat_runner.errors import UserError

KILLED = -signal.SIGKILL
RANGES = "write log(LOW,HIGH), uniform(LOW,HIGH) or int(LOW,HIGH)"
TINY = "lambda=log(0.1,10) model.width=4,6 hardware=fused_7nm_int8 dataset.train_limit=64 trainer.epochs=2"


def eat_search(folder: Path, arguments: str, before=None):
    return eat_run(folder, arguments, before, program="search")


def finish(folder: Path, arguments: str, before=None) -> int:
    return ended(eat_search(folder, arguments, before))


def trials(folder: Path):
    """Of the only study of the journal: those that the search made."""
    storage = JournalStorage(JournalFileBackend(str(results(folder) / "search.journal")))
    [study] = storage.get_all_studies()
    return [trial for trial in storage.get_all_trials(study._study_id) if "seeded" not in trial.user_attrs]


def table(folder: Path) -> list[dict[str, str]]:
    with (results(folder) / "search.csv").open() as file:
        return list(csv.DictReader(file))


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("", "there is nothing to search: write a range, such as 'lambda=log(0.1,10)', or a list, key=a,b"),
        ("lambda=log(1,0.1)", "lambda=log(1,0.1): 1 is not below 0.1: write log(LOW,HIGH)"),
        ("lambda=0,1 lambda=3", "lambda=0,1 and lambda=3: lambda is given twice: leave one out"),
        ("lamda=log(0.1,10)", "lamda is no key: did you mean lambda?"),
        ("model.width=uniform(4,8)", "model.width=4.0 is of the wrong type: model.width is a whole number"),
        ("model.width=int(0,8)", "model.width=0 is out of range: it must be between 1 and 1024"),
        ("trials=0 lambda=0,1", "trials=0: write a whole number from 1 on"),
        ("sampler=best lambda=0,1", "sampler=best is unknown: choose one of tpe, random, grid"),
        ("stop_early=no lambda=0,1", "stop_early=no is unknown: choose one of true, false"),
        ("seed=0,1", "seed=0,1: all trials of a search share seed: give it one value"),
        ("lambda=0,1 -m", "-m is no option of eat-search: start it several times to work in parallel"),
        ("lambda=0,1 hydra/launcher=joblib", "hydra/launcher=joblib is no option of eat-search: start it several "),
        ("lambda=0,1 nonsense", "nonsense: write key=value"),
        ("pruning.density=uniform(0.05,0.5)", "pruning is not chosen, so its keys mean nothing: leave them out, or "),
        ("pruning=none,energy pruning.density=uniform(0.1,1.5)", "pruning.density=1.5 is out of range: it must be "),
        ("recipe=st,foo", "recipe=foo is unknown: choose one of activations_100, "),
        ("experiment=demo model.width=4,8", "model.width=4: a search makes no sweep, and a file has one of its own "),
        ("dataset.validation=0 lambda=0,1", "dataset.validation=0: a search compares on the validation split, so "),
        ("path=lambda model.width=4,8", "path: a trial is one network, not a path of them: leave path out, and "),
        ("lambda=logg(0.1,10)", f"lambda=logg(0.1,10): logg is unknown: {RANGES}"),
        ("lambda=logg(0.1,10) model.width=8,16", f"lambda=logg(0.1,10): logg is unknown: {RANGES}"),
        ("lambda=log(0.1,10) model.width=Int(8,16)", f"model.width=Int(8,16): Int is unknown: {RANGES}"),
        ("model.width=8,16 lambda=log(0.1,10", "cannot read 'lambda=log(0.1,10': write key=value, and put quotes "),
        ("model.width=8,16 lambda=choice(1,,2)", "cannot read 'lambda=choice(1,,2)': write key=value, and put quotes "),
        ("lambda=interval(0,1)", "lambda=interval(0,1): a search takes log(LOW,HIGH), uniform(LOW,HIGH), int(LOW,"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(arguments, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as refused:
        search.command(arguments.split())
    assert str(refused.value).startswith(line)
    assert not list(tmp_path.iterdir())


WITHOUT = """
import sys
from eat_runner.cli.search import main
try:
    main()
finally:
    assert not {"torch", "optuna", "pandas", "matplotlib"} & set(sys.modules), "a heavy import"
"""


def test_help_needs_neither_torch_nor_optuna():
    done = subprocess.run([sys.executable, "-c", WITHOUT, "--help"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) <= 120
    for word in ("trials=", "sampler=", "stop_early=", "plan=true", "log(", "uniform(", "int("):
        assert word in done.stdout


# --- what is done --------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_search_is_ordinary_runs_and_repeats_nothing(tmp_path):
    folder = tmp_path / "here"
    assert finish(folder, f"{TINY} trials=1 sampler=random") == 0, output(folder)
    runs = run_folders(folder)
    assert len(runs) == 1
    assert {trial.state.name for trial in trials(folder)} == {"COMPLETE"}
    before = {run.path.name: stamp(run.record) for run in runs}
    # one more in all: the one that is there is not trained again
    assert finish(folder, f"{TINY} trials=2 sampler=random") == 0, output(folder)
    assert all(stamp(run.record) == before[run.path.name] for run in run_folders(folder) if run.path.name in before)
    rows = table(folder)
    assert [row["trial"] for row in rows] == ["1", "2"]
    assert {row["run_id"] for row in rows} == {run.path.name for run in run_folders(folder)}
    for row in rows:
        record = json.loads((results(folder) / row["run_id"] / "record.json").read_text())
        assert float(row["accuracy_validation"]) == record["accuracy"]["validation"]
        energy = record["energy"]["fused_7nm_int8"]["validation"]["energy_uj_per_image"]
        assert float(row["energy_validation_uj"]) == pytest.approx(energy)
        assert float(row["lambda"]) == record["config"]["lambda"] == float(f"{record['config']['lambda']:.3g}")
    assert (results(folder) / "pareto.png").exists()
    assert "search: 2 trials: 2 finished" in output(folder)


@pytest.mark.long
def test_the_plan_says_what_is_left_and_runs_nothing(tmp_path):
    folder = tmp_path / "here"
    assert finish(folder, f"{TINY} trials=5 plan=true") == 0
    assert "lambda=log(0.1,10)\nmodel.width=4,6\n5 trials, tpe: 0 done, 5 to do, about " in output(folder)
    assert not (folder / "results").exists()
    assert finish(folder, f"{TINY} trials=1") == 0
    assert finish(folder, f"{TINY} trials=5 plan=true") == 0
    assert output(folder).splitlines()[-1].startswith("5 trials, tpe: 1 done, 4 to do, about ")


@pytest.mark.long
def test_finished_runs_of_a_sweep_begin_the_study(tmp_path):
    folder = tmp_path / "here"
    sweep = TINY.replace("log(0.1,10)", "0.5,20").replace("4,6", "4")
    assert ended(eat_run(folder, f"-m {sweep}")) == 0
    assert finish(folder, f"{TINY} trials=1") == 0, output(folder)
    assert "the study begins with 1 finished runs of results/default" in output(folder)
    first = table(folder)[0]
    assert (first["seeded"], first["trial"], first["lambda"], first["model.width"]) == ("1", "", "0.5", "4")
    assert len(run_folders(folder)) == 3


@pytest.mark.long
def test_a_search_asked_to_stop_goes_on_with_the_same_command(tmp_path):
    folder = tmp_path / "here"
    long_runs = f"{TINY} trials=2 trainer.epochs=40".replace("trainer.epochs=2 ", "")
    code = kill_when(eat_search(folder, long_runs), appears(folder, "results/default/*/history.csv"), signal.SIGTERM)
    assert code == 75, output(folder)
    assert output(folder).endswith("eat-search: stopped: the same command continues\n")
    [run] = run_folders(folder)
    assert run.read_record().status == "interrupted"
    assert finish(folder, long_runs) == 0, output(folder)
    assert len(run_folders(folder)) == 2
    epochs = re.findall(rf"^{run.path.name}  epoch (\d+) ", output(folder), re.MULTILINE)
    assert epochs == [str(epoch) for epoch in range(1, 41)]  # each once: it went on


def hopeless_from_the_first_look() -> None:
    """In the new process: the rule says so of whatever is looked at."""
    from eat_runner.search import study

    study.why_hopeless = lambda epoch, *_: "beaten" if epoch == 1 else None


@pytest.mark.long
def test_a_trial_that_is_ended_early_is_done_for_the_search_and_goes_on_by_hand(tmp_path):
    folder = tmp_path / "here"
    assert finish(folder, f"{TINY} trials=1", hopeless_from_the_first_look) == 0, output(folder)
    [run] = run_folders(folder)
    record = run.read_record()
    assert (record.status, record.reason, record.epochs_done) == ("stopped", "beaten", 1)
    assert [trial.state.name for trial in trials(folder)] == ["PRUNED"]
    assert finish(folder, f"{TINY} trials=1") == 0  # nothing is left to do
    assert run.read_record().status == "stopped"
    point = trials(folder)[0].user_attrs["run"]["point"]
    by_hand = TINY.replace("log(0.1,10)", point["lambda"]).replace("4,6", point["model.width"])
    assert ended(eat_run(folder, by_hand)) == 0
    assert run.read_record().status == "finished"
    off = tmp_path / "off"
    assert finish(off, f"{TINY} trials=1 stop_early=false", hopeless_from_the_first_look) == 0
    assert [trial.state.name for trial in trials(off)] == ["COMPLETE"]


@pytest.mark.long
def test_four_processes_and_random_kills_lose_nothing_and_do_nothing_twice(tmp_path):
    seed = int(os.environ.get("KILL_SEED", time.time_ns() % 10**6))
    print(f"KILL_SEED={seed}")
    chance, folder = random.Random(seed), tmp_path / "here"
    written, kills, wanted = {}, 0, 0
    while wanted < 10 or (kills < 4 and wanted < 30):  # new trials a round: a process may outrun its end
        wanted += 5
        command = f"{TINY} trials={wanted}"
        processes = [eat_search(folder, command) for _ in range(4)]
        for process in processes:
            file = chance.choice(["search.journal", "*/checkpoint.pt", "*/model.safetensors", "*/record.json", ""])
            happens = appears(folder, f"results/default/{file}") if file else after(chance.uniform(0.0, 4.0))
            kills += kill_when(process, happens) == KILLED
        for run in run_folders(folder) if results(folder).exists() else ():
            if run.is_final():
                assert written.setdefault(run.path, stamp(run.record)) == stamp(run.record)
    codes = [ended(process) for process in [eat_search(folder, command) for _ in range(4)]]
    assert codes == [0] * 4, output(folder)
    assert finish(folder, command) == 0  # what a process left whose run another one had
    assert kills >= 4
    made = [trial for trial in trials(folder) if "run" in trial.user_attrs]
    assert [trial.state.name for trial in made] == ["COMPLETE"] * wanted
    runs = {trial.user_attrs["run"]["run_id"] for trial in made}
    assert runs == {run.path.name for run in run_folders(folder)}
    assert all(run.is_final() for run in run_folders(folder))
    assert all(stamp(path / "record.json") == before for path, before in written.items())
    assert len(table(folder)) == wanted
    assert "importance for being near the front" in output(folder)
    assert "Traceback" not in output(folder)
