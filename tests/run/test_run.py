"""Experiments on real digits, small enough for a test: training against a naive loop, resuming, statuses, loading."""

import json
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch.nn import functional as F

import eat_runner
from eat_runner import data, models
from eat_runner import run as experiment
from eat_runner.config import L0Config, ModelConfig, ScheduleConfig
from eat_runner.config.logger import LoggerConfig
from eat_runner.config.path import PathConfig
from eat_runner.data.batches import training_batches
from eat_runner.environment import multiplies_bf16
from eat_runner.errors import UserError
from eat_runner.loggers import LOGGERS
from eat_runner.loggers.base import Logger
from eat_runner.methods import METHODS
from eat_runner.records import RunFolder, RunRecord
from eat_runner.train.checkpoint import pack, unpack
from eat_runner.train.loop import Trainer
from examples import Mask, MaskConfig


@pytest.fixture
def config(small_config):
    dataset = replace(small_config.dataset, rotation_degrees=5.0)
    return replace(small_config, dataset=dataset, schedule=ScheduleConfig(name="linear"))


def trainer_of(config):
    e = experiment.locate_and_build(config)
    return Trainer(e.network, e.dataset, e.config, e.device)


def train(trainer, steps=None):
    """To the end, or for so many steps."""
    done = iter(range(10**9 if steps is None else steps))
    for _ in trainer.epochs(lambda: next(done, None) is None, lambda *_: None):
        pass
    return trainer


def same(a, b):
    return all(torch.equal(x, b[key]) for key, x in a.items())


def test_training_is_sgd_on_cross_entropy_plus_lambda_times_the_penalty(config):
    """A loop written from the paper's Eq. 1 and 3, with plain hooks (a VGG has no additions that overwrite)."""
    config = replace(
        config,
        model=ModelConfig(name="vgg11", width=4),
        penalty=L0Config(sigma=1e-2),
        schedule=ScheduleConfig(),
        lambda_=2.0,
        trainer=replace(config.trainer, epochs=1, lr_schedule="constant", weight_decay=0.01, channels_last=False),
    )
    trainer = train(trainer_of(config))

    dataset = data.load(config.dataset, Path(config.data_dir), False)
    torch.manual_seed(config.seed)
    model = models.build(config.model, 8, 1, 10).module.train()
    seen = []
    leaves = [m for m in model.modules() if not any(m.children())]
    for leaf in leaves:
        if hasattr(leaf, "inplace"):
            leaf.inplace = False
        if not isinstance(leaf, torch.nn.Dropout):
            leaf.register_forward_hook(lambda module, args, output: seen.append(output))
    momentum = [torch.zeros_like(p) for p in model.parameters()]
    losses = []
    batches = training_batches(
        dataset.train, config.dataset, 32, dataset.mean, dataset.std, seed=0, epoch=0, device=torch.device("cpu")
    )
    for x, y in batches:
        seen.clear()
        cross_entropy = F.cross_entropy(model(x), y)
        penalty = sum((a * a / (a * a + 1e-2)).mean() for a in seen) / len(seen)
        model.zero_grad()
        (cross_entropy + 2.0 * penalty).backward()
        losses.append((cross_entropy.item(), penalty.item()))
        with torch.no_grad():
            for p, v in zip(model.parameters(), momentum, strict=True):
                v.mul_(0.9).add_(p.grad + 0.01 * p)
                p.sub_(config.trainer.lr * v)
    row = trainer.history[0]
    assert row.cross_entropy == pytest.approx(sum(c for c, _ in losses) / len(losses), rel=1e-4)
    taken = [p for _, p in losses[::20]]  # the value of every twentieth step is recorded
    assert row.penalty == pytest.approx(sum(taken) / len(taken), rel=1e-4)
    for ours, theirs in zip(trainer.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-4)


def test_same_seed_same_bits_other_seed_other_bits(config):
    first, again = train(trainer_of(config)), train(trainer_of(config))
    other = train(trainer_of(replace(config, seed=1)))
    assert same(first.model.state_dict(), again.model.state_dict())
    assert not same(first.model.state_dict(), other.model.state_dict())


def test_bf16_is_another_precision_of_the_same_training(config):
    rows = []
    for precision in ("fp32", "bf16"):
        settings = replace(config.trainer, precision=precision, epochs=1)
        rows.append(train(trainer_of(replace(config, trainer=settings, schedule=ScheduleConfig()))).history[0])
    single, half = rows
    assert half.cross_entropy != single.cross_entropy
    assert half.cross_entropy == pytest.approx(single.cross_entropy, rel=0.02)  # bf16 keeps 8 bits
    assert half.penalty == pytest.approx(single.penalty, rel=0.02)


def test_measuring_a_run_needs_neither_the_compiler_nor_torchvision():
    """Optimisers need the compiler, and find it there once it was imported for them."""
    lines = """
import sys
from eat_runner import run as experiment
import eat_runner.run.measure
assert "torchvision" not in sys.modules
compiler = "torch._dynamo"
print(compiler in sys.modules)
experiment.import_optimizers()
print(compiler in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["False", "True"]


def with_precision(config, precision):
    return replace(config, trainer=replace(config.trainer, precision=precision))


@pytest.mark.parametrize(("instructions", "precision"), [(True, "bf16"), (False, "fp32")])
def test_the_precision_that_the_machine_chooses_is_the_runs(small_config, instructions, precision, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: instructions, False)
    job = experiment.locate(with_precision(small_config, "auto"))
    assert job.config.trainer.precision == precision
    assert job.run_id == experiment.locate(with_precision(small_config, precision)).run_id
    along = replace(
        with_precision(small_config, "auto"),
        others=small_config.others | {"path": PathConfig(name="lambda", over=[1.0, 2.0])},
    )
    named = replace(along, trainer=with_precision(small_config, precision).trainer)
    assert experiment.located_points(along) == experiment.located_points(named)
    ids = [[run.run_id for run in experiment.plan([config])] for config in (along, named)]
    assert ids[0] == ids[1]
    assert len(ids[0]) == 3


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="the processor's instructions are not in /proc")
@pytest.mark.skipif(not hasattr(torch.cpu, "_is_avx512_bf16_supported"), reason="this torch does not say")
def test_the_processors_own_word_on_bf16():
    """Linux names its instructions."""
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    assert multiplies_bf16(torch.device("cpu")) == ("avx512_bf16" in flags)
    assert not multiplies_bf16(torch.device("mps"))


@pytest.mark.parametrize("lr_schedule", ["exponential", "onecycle", "cosine", "constant"])
def test_a_trainer_resumes_to_the_bit_from_any_step(config, lr_schedule):
    config = replace(config, trainer=replace(config.trainer, lr_schedule=lr_schedule))
    whole = train(trainer_of(config))
    for steps in (1, 5, 7):
        part = train(trainer_of(config), steps)
        assert not part.done
        resumed = trainer_of(config)
        resumed.load_state(unpack(pack(part.state())))
        train(resumed)
        assert same(resumed.model.state_dict(), whole.model.state_dict())
        untimed = [[asdict(row) | {"seconds": 0} for row in t.history] for t in (resumed, whole)]
        assert untimed[0] == untimed[1]


@pytest.mark.parametrize(
    "schedule",
    [ScheduleConfig(name=name, every_epochs=1) for name in ("constant", "linear", "cosine", "step", "exponential")],
    ids=lambda schedule: schedule.name,
)
def test_a_trainer_resumes_to_the_bit_with_any_schedule_flips_and_dropout(config, schedule):
    config = replace(
        config,
        schedule=schedule,
        dataset=replace(config.dataset, train_limit=64, flip=True),
        model=ModelConfig(name="vgg11", width=1, head="imagenet"),
    )
    whole = train(trainer_of(config))
    assert any(isinstance(layer, torch.nn.Dropout) for layer in whole.model.modules())
    part = train(trainer_of(config), 3)  # of the second epoch's two steps, one
    assert (part.epoch, part.step) == (1, 1)
    resumed = trainer_of(config)
    resumed.load_state(unpack(pack(part.state())))
    train(resumed)
    assert same(resumed.model.state_dict(), whole.model.state_dict())
    untimed = [[asdict(row) | {"seconds": 0} for row in t.history] for t in (resumed, whole)]
    assert untimed[0] == untimed[1]


def test_lambda_follows_its_schedule(config):
    """Linear warm-up over half of 10 steps: progress of step k is k / 9, the factor twice that up to 1."""
    trainer = train(trainer_of(replace(config, lambda_=1.0)))
    assert trainer.steps == 5
    assert [row.lambda_t for row in trainer.history] == pytest.approx([8 / 9, 1.0])


def test_a_damaged_checkpoint_is_noticed(config):
    data = bytearray(pack(train(trainer_of(config), 3).state()))
    data[len(data) // 2] ^= 1
    with pytest.raises(ValueError, match="damaged"):
        unpack(bytes(data))
    with pytest.raises(ValueError, match="damaged"):
        unpack(bytes(data[: len(data) // 2]))


def test_a_run_writes_its_files_and_is_not_repeated(config):
    record = experiment.run(config)
    folder = RunFolder(Path(config.results_dir) / config.name / record.run_id)
    assert (record.status, record.reason) == ("finished", "")
    assert folder.read_record() == record
    files = {path.name for path in folder.path.iterdir() if path.name != ".lock"}
    measured = {"layers.csv", "batches.csv", "predictions.csv.gz"}
    assert files == {"config.yaml", "record.json", "history.csv", "model.safetensors", *measured}
    assert [row["epoch"] for row in folder.read_history()] == [1, 2]
    answers = pd.read_csv(folder.predictions)
    right = (answers["label"] == answers["predicted"]).groupby(answers["split"]).mean()
    assert set(right.index) == {"validation", "test"}
    for split, accuracy in right.items():  # the validation split's answers are those of the look at the end of training
        assert record.accuracy[split] == pytest.approx(accuracy, rel=1e-6)
    dataset = experiment.locate(config).dataset
    for split, images in (("validation", dataset.validation), ("test", dataset.test)):
        assert answers.loc[answers["split"] == split, "label"].tolist() == images.labels.tolist()
    written = folder.weights.stat().st_mtime_ns
    assert experiment.run(config) == record
    assert folder.weights.stat().st_mtime_ns == written


class StopsAtStep30(Logger):
    def step(self, done, figures):
        if done == 30:
            signal.raise_signal(signal.SIGTERM)


def test_a_stopped_run_continues_to_the_same_result(config, monkeypatch):
    config = replace(config, trainer=replace(config.trainer, batch_size=8))  # 20 steps an epoch
    whole = experiment.run(replace(config, name="whole"))
    monkeypatch.setitem(LOGGERS, "stops", StopsAtStep30)
    with pytest.raises(experiment.Interrupted) as stopped:
        experiment.run(replace(config, loggers={"stops": LoggerConfig()}))
    assert stopped.value.code == 75
    folder = RunFolder(Path(config.results_dir) / config.name / whole.run_id)
    assert folder.read_record().status == "interrupted"
    checkpoint = unpack(folder.checkpoint.read_bytes())
    assert (checkpoint["epoch"], checkpoint["step"]) == (1, 10)
    resumed = experiment.run(config)
    other = RunFolder(Path(config.results_dir) / "whole" / whole.run_id)
    assert folder.weights.read_bytes() == other.weights.read_bytes()
    assert len(folder.read_history()) == 2
    untimed = [replace(r, timings={}, config={}) for r in (resumed, whole)]
    assert untimed[0] == untimed[1]


def test_another_runs_checkpoint_is_not_used(config):
    first = experiment.run(replace(config, trainer=replace(config.trainer, keep_checkpoint=True)))
    other = replace(config, seed=1)
    foreign = (Path(config.results_dir) / config.name / first.run_id / "checkpoint.pt").read_bytes()
    expected = experiment.run(replace(other, name="clean"))
    folder = Path(config.results_dir) / config.name / expected.run_id
    folder.mkdir(parents=True)
    (folder / "checkpoint.pt").write_bytes(foreign)
    record = experiment.run(other)
    assert record.messages == [
        "checkpoint.pt could not be used (it belongs to another run): training started from the beginning"
    ]
    assert record.accuracy == expected.accuracy


def test_a_diverged_run_is_a_result(config):
    record = experiment.run(replace(config, trainer=replace(config.trainer, lr=1e30, lr_schedule="constant")))
    assert record.status == "diverged"
    assert record.accuracy["test"] is None
    assert record.final


class Fails(Mask):
    message = ""

    def after_training(self, trained):
        raise RuntimeError(self.message)


def test_a_failing_run_keeps_its_traceback(config, mask_method, monkeypatch):
    config = replace(config, methods={"mask": MaskConfig(name="small")})
    monkeypatch.setitem(METHODS, "mask", type("OutOfMemory", (Fails,), {"message": "out of memory\nmore lines"}))
    record = experiment.run(config)
    folder = RunFolder(Path(config.results_dir) / config.name / record.run_id)
    assert (record.status, record.reason) == ("failed", "RuntimeError: out of memory")
    assert "more lines" in folder.traceback.read_text()
    monkeypatch.setitem(METHODS, "mask", Mask)
    assert experiment.run(config).status == "finished"
    assert not folder.traceback.exists()


def test_a_traceback_can_hold_any_text(config, mask_method, monkeypatch):
    config = replace(config, methods={"mask": MaskConfig(name="small")})
    # a name that is not UTF-8, as os.listdir hands it out
    monkeypatch.setitem(METHODS, "mask", type("Unreadable", (Fails,), {"message": "file \udcff\x1b[2J"}))
    record = experiment.run(config)
    folder = RunFolder(Path(config.results_dir) / config.name / record.run_id)
    assert record.reason == "RuntimeError: file ??[2J"
    assert folder.read_record() == record
    assert "file \\udcff" in folder.traceback.read_text()


def test_what_a_planted_checkpoint_says_cannot_move_the_cursor(config, capsys):
    run_id = experiment.plan([config])[0].run_id
    folder = RunFolder(Path(config.results_dir) / config.name / run_id)
    state = train(trainer_of(config), 6).state()
    state["history"] = [row | {"\x1b]0;title\x07": 1} for row in state["history"]]
    folder.create()
    folder.checkpoint.write_bytes(pack(state | {"run_id": run_id}))
    [message] = experiment.run(config).messages
    assert "unexpected keyword argument '?]0;title?'" in message
    assert message in capsys.readouterr().err
    assert folder.read_record().messages == [message]


def test_the_record_of_another_run_is_no_result(config):
    first = experiment.run(config)
    other = replace(config, seed=1)
    place = Path(config.results_dir) / config.name
    copied = place / experiment.plan([other])[0].run_id
    shutil.copytree(place / first.run_id, copied)
    line = f"{copied}/record.json is the record of another run, {first.run_id}: delete it to do this one"
    for use in (experiment.run, lambda config: experiment.plan([config])):
        with pytest.raises(UserError) as refused:
            use(other)
        assert str(refused.value) == line
    assert RunFolder(copied).read_record() == first


def test_a_final_record_need_not_say_how_it_was_trained(config):
    identity = experiment.plan([config])[0].run_id
    folder = RunFolder(Path(config.results_dir) / config.name / identity)
    folder.create()
    folder.write_record(RunRecord(run_id=identity, status="finished"))
    assert experiment.run(config).status == "finished"


def test_weights_with_a_flipped_bit_are_not_loaded(config):
    record = experiment.run(config)
    folder = RunFolder(Path(config.results_dir) / config.name / record.run_id)
    whole = folder.weights.read_bytes()
    folder.weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    damaged = r"model\.safetensors is damaged: it is not the file that record\.json was written for"
    with pytest.raises(UserError, match=damaged):
        eat_runner.load_run(folder.path)
    for init in (folder.path, folder.weights):
        with pytest.raises(UserError, match=damaged):
            experiment.locate_and_build(replace(config, init=str(init)))
    folder.weights.write_bytes(whole)
    eat_runner.load_run(folder.path)
    experiment.locate_and_build(replace(config, init=str(folder.weights)))


def test_zero_epochs_only_measures(config, tmp_path):
    trained = experiment.run(config)
    folder = RunFolder(Path(config.results_dir) / config.name / trained.run_id)
    only_measured = replace(config.trainer, epochs=0)
    measured = experiment.run(
        replace(config, init=str(folder.path), trainer=only_measured, lambda_=0.0, name="measured")
    )
    assert measured.status == "finished"
    assert measured.run_id != trained.run_id
    assert measured.accuracy["test"] == trained.accuracy["test"]
    assert measured.energy["published"]["test"]["ratio"] == trained.energy["published"]["test"]["ratio"]
    # the validation split is not measured anew after the last epoch's look at it
    other = RunFolder(Path(config.results_dir) / "measured" / measured.run_id)
    assert folder.layers.read_text() == other.layers.read_text()
    assert folder.batches.read_text() == other.batches.read_text()
    assert [row.split for row in folder.read_counts().batches if row.is_floor] == ["validation", "test"]


def test_a_finished_run_can_be_loaded(config):
    record = experiment.run(config)
    run = eat_runner.load_run(Path(config.results_dir) / config.name / record.run_id)
    dataset = data.load(config.dataset, Path(config.data_dir), False)
    images = torch.from_numpy(dataset.test.images_nhwc.copy()).permute(0, 3, 1, 2)
    answers = run.model(run.preprocessing(images)).argmax(1)
    correct = (answers == torch.as_tensor(dataset.test.labels)).float().mean().item()
    assert correct == pytest.approx(record.accuracy["test"], abs=1e-6)
    assert run.class_names == tuple("0123456789")


def test_a_plan_lists_what_is_done_and_what_is_left(config):
    done = experiment.run(config)
    planned = experiment.plan([config, replace(config, seed=1), replace(config, lambda_=0.0), replace(config, seed=1)])
    assert [run.status for run in planned] == ["finished", "missing", "missing"]
    assert planned[0].run_id == done.run_id
    assert planned[0].seconds == 0
    assert all(run.seconds > 0 for run in planned[1:])
    assert not planned[1].folder.exists()


def test_a_baseline_has_no_penalty_in_its_identity(config):
    grid = [replace(config, lambda_=0.0, penalty=L0Config(sigma=s)) for s in (1e-4, 1e-2)]
    assert len({run.run_id for run in experiment.plan(grid)}) == 1


def test_without_a_validation_split_training_images_are_monitored(config):
    whole = replace(config.dataset, validation=0.0)
    record = experiment.run(replace(config, dataset=whole))
    history = RunFolder(Path(config.results_dir) / config.name / record.run_id).read_history()
    assert record.accuracy["validation"] is None
    assert history[-1]["validation_accuracy"] is None
    assert 0 < history[-1]["firing_rate"] < 1


def test_another_process_has_the_run(config):
    from eat_runner.claims import claim

    folder = experiment.locate_and_build(config).folder
    folder.create()
    seen = []
    with claim(folder.path) as ours:
        assert ours
        other = threading.Thread(target=lambda: seen.append(experiment.run(config)))
        other.start()
        other.join()
    assert seen[0].status == "running"
    assert not folder.record.exists()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"device": "mps"}, "device=mps is not on this machine: choose one of auto, cpu"),
        ({"lambda_": -1.0}, "lambda=-1 is out of range: it must be a finite number >= 0"),
        ({"init": "nowhere.pt"}, "init=nowhere.pt is not there: give a state dict (.safetensors, .pt, .pth) or"),
    ],
)
def test_prepare_refuses(config, change, line):
    with pytest.raises(UserError) as refused:
        experiment.locate_and_build(replace(config, **change))
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)


def test_compiling_needs_a_compiler(config, monkeypatch):
    """160 images in batches of 32 are 5 steps an epoch: 1,000 epochs are the 5,000 steps from which auto compiles."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    auto = replace(config.trainer, compile="auto", epochs=999)
    experiment.locate_and_build(replace(config, trainer=auto))
    with pytest.raises(UserError, match=r"^trainer.compile=auto .* set trainer.compile=off$"):
        experiment.locate_and_build(replace(config, trainer=replace(auto, epochs=1000)))


def test_the_record_is_plain_json(config):
    record = experiment.run(replace(config, lambda_=0.0))
    path = Path(config.results_dir) / config.name / record.run_id / "record.json"
    values = json.loads(path.read_text())
    assert values["config"]["lambda"] == 0
    assert values["determinants"]["penalty"] == {"name": "none"}
    assert set(values["versions"]) >= {"python", "torch"}


@pytest.mark.long
def test_compiled_trainings_in_one_process_do_not_share_their_penalties(config):
    """The same network with no observer, then with one, then with another."""
    for lambda_, sigma in ((0.0, 1e-4), (1.0, 1e-4), (1.0, 1e-1)):
        rows = {}
        for compiled in ("on", "off"):
            settings = replace(config.trainer, compile=compiled, epochs=1)
            changed = replace(config, lambda_=lambda_, penalty=L0Config(sigma=sigma), trainer=settings)
            rows[compiled] = train(trainer_of(changed)).history[0]
        assert rows["on"].cross_entropy == pytest.approx(rows["off"].cross_entropy, rel=0.02)  # a small sigma is stiff
        assert rows["on"].penalty == (pytest.approx(rows["off"].penalty, rel=1e-3) if lambda_ else None)
