"""hydra/launcher=slurm on a real cluster of one node, which the test starts itself: slurmctld, slurmd, nobody else.

Without an accounting database sacct knows nothing; a stand-in answers from scontrol, which knows the jobs of the last
hour. Everything else is SLURM's own.
"""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import pytest

from processes import command_line, finish, outcomes, output, results, run_folders

pytestmark = pytest.mark.long

EPOCH = re.compile(r"^digits-\S+-seed(\d)-\S+  epoch (\d+) ", re.MULTILINE)
CPUS, GRACE_S, PATIENCE_S = 3, 15, 240.0
CONFIGURATION = """
ClusterName=lab
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/none
CryptoType=crypto/none
AuthInfo=cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
KillWait=5
MinJobAge=3600
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=1000 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime={grace}
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""
SACCT = r"""#!/bin/sh
echo 'JobID|State|NodeList'
scontrol show job -o | sed -nE \
  -e 's/^JobId=[0-9]+ ArrayJobId=([0-9]+) ArrayTaskId=([0-9]+) .*JobState=([A-Z_]+) .*/\1_\2|\3|/p' \
  -e 's/^JobId=([0-9]+) JobName=.*JobState=([A-Z_]+) .*/\1|\2|/p'
"""
# submitit asks the cluster less and less often, after minutes every few minutes
COMMAND = """
from submitit.slurm.slurm import SlurmJob
from eat_runner.cli.run import main
SlurmJob.watcher._delay_s = 3
main()
"""


def free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


Environment = dict[str, str]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    """The environment in which SLURM's commands find the cluster."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="the extra slurm is not installed")
    if not (shutil.which("slurmctld") and shutil.which("slurmd")):
        pytest.skip("SLURM is not installed: apt-get install slurm-wlm munge")
    if os.geteuid() != 0:
        pytest.skip("only root can start this cluster")
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("state", "spool", "bin"):
        (folder / name).mkdir()
    host = socket.gethostname().partition(".")[0]
    configuration = CONFIGURATION.format(host=host, ports=free_ports(2), folder=folder, cpus=CPUS, grace=GRACE_S)
    (folder / "slurm.conf").write_text(configuration)
    sacct = folder / "bin" / "sacct"
    sacct.write_text(SACCT)
    sacct.chmod(0o755)
    path = f"{folder / 'bin'}:{os.environ['PATH']}:/usr/sbin"
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": path}
    with (folder / "daemons.txt").open("w") as log:
        daemons = [
            subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
            for command in (["slurmctld", "-D", "-c"], ["slurmd", "-D"])
        ]
    try:
        if not wait(lambda: "idle" in slurm(environment, "sinfo", "-h", "-o", "%t"), patience_s=60.0):
            missing("SLURM does not start here: " + (folder / "slurmctld.log").read_text()[-500:])
        yield environment
    finally:
        slurm(environment, "scancel", "-u", "root")
        wait(lambda: not slurm(environment, "squeue", "-h"), "all jobs have ended")
        for daemon in daemons:
            daemon.terminate()
        for daemon in daemons:
            daemon.wait(60)


def missing(reason: str) -> NoReturn:
    """Where SLURM is installed and nobody looks, a skipped test would hide that it does not work."""
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)


def slurm(environment: Environment, *command: str) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout


def wait(happened: Callable[[], Any], what: str = "", patience_s: float = PATIENCE_S) -> bool:
    """Whether it happened; where ``what`` is expected, it must."""
    end = time.monotonic() + patience_s
    while not happened():
        if time.monotonic() > end:
            assert not what, f"waited {patience_s:.0f} s, but not: {what}"
            return False
        time.sleep(0.2)
    return True


def start(folder: Path, environment: Environment, arguments: str) -> "subprocess.Popen[str]":
    """``eat-run ARGUMENTS`` with the launcher for SLURM."""
    folder.mkdir(exist_ok=True)
    line = [*arguments.split(), "hydra/launcher=slurm", "hydra.launcher.timeout_min=60"]
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *command_line(folder, line)],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def state(environment: Environment, seed: int) -> dict[str, str]:
    """What SLURM says about the newest job array's task; tasks are numbered as the seeds are."""
    lines = slurm(environment, "scontrol", "show", "job", "-o").splitlines()
    jobs = [dict(word.partition("=")[::2] for word in line.split()) for line in lines]
    newest = max((int(job["ArrayJobId"]) for job in jobs if "ArrayJobId" in job), default=0)
    ours = [job for job in jobs if (job.get("ArrayJobId"), job.get("ArrayTaskId")) == (str(newest), str(seed))]
    return ours[0] if ours else {"JobState": "", "Restarts": "0"}


def of_seed(folder: Path, seed: int, name: str) -> bool:
    return bool(list(results(folder).glob(f"*-seed{seed}-*/{name}")))


def job_process(array: str, task: int) -> int:
    """The process that works on a task of a job array."""
    wanted = {f"SLURM_ARRAY_JOB_ID={array}", f"SLURM_ARRAY_TASK_ID={task}"}
    found: list[int] = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            is_job = b"submitit.core._submit" in words and words[0] == os.fsencode(sys.executable)
            if is_job and wanted <= set((folder / "environ").read_bytes().decode(errors="replace").split("\0")):
                found.append(int(folder.name))
    [one] = found
    return one


def job_output(folder: Path) -> str:
    logs = results(folder).rglob(".submitit/*/*_log.*")
    return output(folder) + "".join(f"\n--- {path.name}\n{path.read_text()}" for path in logs)


def test_a_sweep_on_slurm_is_the_sweep_of_one_machine(cluster: Environment, tmp_path: Path) -> None:
    sweep = "-m lambda=0,1 trainer.epochs=2"
    assert finish(tmp_path / "here", sweep) == 0
    process = start(tmp_path / "slurm", cluster, sweep)
    text, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, text
    assert outcomes(tmp_path / "slurm") == outcomes(tmp_path / "here")
    assert (results(tmp_path / "slurm") / "summary.csv").read_text().count("finished") == 2


def test_killed_preempted_and_timed_out_jobs(cluster: Environment, tmp_path: Path) -> None:
    """Seed 0 is killed, seed 1 gets the signal that SLURM sends before a time limit, seed 2 is preempted."""
    sweep = "-m lambda=1 seed=0,1,2 trainer.epochs=150"
    folder = tmp_path / "slurm"
    process = start(folder, cluster, sweep)
    for seed in range(3):
        wait(lambda: of_seed(folder, seed, "checkpoint.pt"), f"seed {seed} trains")  # noqa: B023

    array = state(cluster, 0)["ArrayJobId"]
    os.kill(job_process(array, 0), signal.SIGKILL)  # as the kernel does where memory runs out
    wait(lambda: state(cluster, 0)["JobState"] in {"FAILED", "CANCELLED"}, "seed 0 is dead")
    assert not of_seed(folder, 0, "record.json")

    slurm(cluster, "scancel", "-s", "USR2", f"{array}_1")
    wait(lambda: of_seed(folder, 1, "record.json"), "seed 1 wrote a record")
    wait(lambda: state(cluster, 1)["Restarts"] == "1", "seed 1 is requeued")

    slurm(cluster, "sbatch", "-p", "high", "-c", str(CPUS), "-o", "/dev/null", "--wrap", "sleep 3")
    wait(lambda: of_seed(folder, 2, "record.json"), "seed 2 wrote a record")
    [interrupted] = [run for run in run_folders(folder) if "-seed2-" in run.path.name]
    assert json.loads(interrupted.record.read_text())["status"] in {"interrupted", "finished"}
    wait(lambda: state(cluster, 2)["Restarts"] == "1", "seed 2 is requeued")

    text, _ = process.communicate(timeout=2 * PATIENCE_S)
    assert process.returncode == 1, text
    statuses = {run.path.name.split("-")[-2]: run.is_final() for run in run_folders(folder)}
    assert statuses == {"seed0": False, "seed1": True, "seed2": True}, job_output(folder)
    epochs = Counter(EPOCH.findall(job_output(folder)))
    for seed in (1, 2):  # each epoch once: they went on, and did not start again
        often = {epoch: times for (found, epoch), times in epochs.items() if found == str(seed)}
        assert often == dict.fromkeys(map(str, range(1, 151)), 1), job_output(folder)
    assert "1 of 3 runs are not in the front" in text
    assert "Traceback" not in text
    assert (results(folder) / "summary.csv").read_text().count("finished") == 2

    again = start(folder, cluster, sweep)
    text, _ = again.communicate(timeout=2 * PATIENCE_S)
    assert again.returncode == 0, text
    assert (results(folder) / "summary.csv").read_text().count("finished") == 3
    assert finish(tmp_path / "here", sweep) == 0
    assert outcomes(folder) == outcomes(tmp_path / "here")


def test_an_array_of_workers_searches_as_docs_search_md_says(cluster: Environment, tmp_path: Path) -> None:
    """Three workers of one array; one is stopped as at its time limit, and the same array once more goes on."""
    pytest.importorskip("optuna", reason="the extra search is not installed")
    folder = tmp_path / "search"
    folder.mkdir()
    line = "trials=6 sampler=random lambda=log(0.1,10) model.width=4,6 hardware=fused_7nm_int8 trainer.epochs=12"
    words = [sys.executable, "-m", "eat_runner.cli.search", *command_line(folder, line.split())]
    array = ["sbatch", "--parsable", "--array=1-3", "-c", "1", "-D", str(folder), "--wrap", "exec " + shlex.join(words)]

    def study() -> list[str]:
        journal = results(folder) / "search.journal"
        return re.findall(r'"run_id": ?"([^"]+)"', journal.read_text()) if journal.exists() else []

    first = slurm(cluster, *array).strip()
    wait(lambda: list(results(folder).glob("*/checkpoint.pt")), "a trial trains")
    slurm(cluster, "scancel", "--full", "-s", "TERM", f"{first}_1")
    wait(lambda: first not in slurm(cluster, "squeue", "-h", "-o", "%A"), "the array has ended")
    second = slurm(cluster, *array).strip()
    wait(lambda: second not in slurm(cluster, "squeue", "-h", "-o", "%A"), "the second array has ended")
    said = "".join(path.read_text() for path in folder.glob("slurm-*.out"))
    assert "eat-search: stopped: the same command continues" in said
    assert "Traceback" not in said
    assert len(study()) == len({*study()}) == 6, said
    assert {run.path.name for run in run_folders(folder)} == {*study()}
    assert all(run.is_final() for run in run_folders(folder)), said


def test_who_waits_for_slurm_can_leave(cluster: Environment, tmp_path: Path) -> None:
    """The jobs go on without the command; the same command finds what they do."""
    sweep = "-m lambda=1 seed=0 trainer.epochs=40"
    folder = tmp_path / "slurm"
    process = start(folder, cluster, sweep)
    wait(lambda: of_seed(folder, 0, "checkpoint.pt"), "seed 0 trains")
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 75, text
    wait(lambda: of_seed(folder, 0, "record.json"), "seed 0 ends")
    again = start(folder, cluster, sweep)
    text, _ = again.communicate(timeout=PATIENCE_S)
    assert again.returncode == 0, text
    assert (results(folder) / "summary.csv").read_text().count("finished") == 1
