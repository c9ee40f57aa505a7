"""Runs whose network a method changes, runs that begin where another ended, and runs that end early."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import eat_runner
from eat_runner import data, run
from eat_runner.analysis.table import collate
from eat_runner.config.hardware import FusedHardware, PublishedHardware
from eat_runner.config.identity import determinants, run_id
from eat_runner.errors import UserError
from eat_runner.methods import METHODS
from eat_runner.records import RunFolder, file_hash
from examples import Clip, MaskConfig


def folder_of(config, record):
    return RunFolder(Path(config.results_dir) / config.name / record.run_id)


@pytest.fixture
def masked(small_config, mask_method):
    return replace(small_config, methods={"mask": MaskConfig(name="small")}, lambda_=0.0)


def accuracy_of(config, model, preprocessing):
    dataset = data.load(config.dataset, Path(config.data_dir), False)
    images = torch.from_numpy(dataset.test.images_nhwc.copy()).permute(0, 3, 1, 2)
    answers = model(preprocessing(images)).argmax(1)
    return (answers == torch.as_tensor(dataset.test.labels)).float().mean().item()


def test_what_a_method_did_is_in_the_record_and_loading_gives_back_the_very_network(masked):
    record = run.run(masked)
    folder = folder_of(masked, record)
    assert (record.status, record.reason) == ("finished", "")
    assert folder.read_record().changes == [{"method": "mask", "choice": "small", "limit": 20.0}]
    loaded = eat_runner.load_run(folder.path)
    [clip] = [m for m in loaded.model.modules() if isinstance(m, Clip)]
    assert clip.limit.item() == 20.0
    assert accuracy_of(masked, loaded.model, loaded.preprocessing) == pytest.approx(record.accuracy["test"], abs=1e-6)
    weights = [m.weight for m in loaded.model.modules() if isinstance(m, torch.nn.Conv2d)]
    zeros = sum(int((w == 0).sum()) for w in weights)
    assert 0 < zeros < sum(w.numel() for w in weights)
    layers = folder.read_counts().select("test").layers
    counted = sum(row.weight_elements - row.weight_nonzeros for row in layers if row.op == "Conv2d")
    assert counted == zeros


def test_the_look_after_the_last_epoch_is_not_taken_for_a_changed_network(masked):
    counts = folder_of(masked, run.run(masked)).read_counts()
    for split in ("validation", "test"):
        assert [row.op for row in counts.select(split).layers].count("Hardtanh") == 1


def test_a_method_is_no_standard_training_and_has_an_identity_of_its_own(small_config, masked):
    standard = replace(masked, methods=small_config.methods)
    assert standard.is_baseline
    assert not masked.is_baseline
    names = [run_id(config, "data") for config in (standard, masked)]
    assert names[0].startswith("digits-resnet18-none-lambda0-seed0-")
    assert names[1].startswith("digits-resnet18-none-mask_small-lambda0-seed0-")
    assert determinants(masked, "data")["mask"] == {"name": "small"}
    assert "mask" not in determinants(standard, "data")


def test_hardware_is_in_the_identity_by_its_prices_if_a_method_reads_them(masked):
    cheap, dear = FusedHardware(name="a", add_pj=1.0), FusedHardware(name="b", add_pj=2.0)
    renamed = replace(cheap, name="c", note="another", source={"add_pj": "mine"}, process_nm=3)
    prices = {"mask": MaskConfig(name="small", prices=True)}
    for methods, told in ((prices, True), (masked.methods, False)):
        names = [run_id(replace(masked, methods=methods, hardware=h), "data") for h in (cheap, dear, renamed)]
        assert names[0] == names[2]
        assert (names[0] != names[1]) == told


def test_zero_epochs_run_the_stages_alone(small_config, masked):
    parent = run.run(replace(small_config, lambda_=0.0))
    place = folder_of(small_config, parent).path
    stages = replace(masked, init=str(place), trainer=replace(masked.trainer, epochs=0))
    record = run.run(stages)
    assert record.status == "finished"
    assert record.changes == [{"method": "mask", "choice": "small", "limit": 10.0}]
    assert record.epochs_done == 0
    assert not folder_of(stages, record).history.exists()


def test_a_child_is_named_by_its_parents_run_id_and_knows_its_checksum(masked):
    parent = run.run(masked)
    place = folder_of(masked, parent)
    child = replace(masked, init=str(place.path), methods={}, trainer=replace(masked.trainer, epochs=1))
    record = run.run(child)
    assert record.determinants["parent"] == parent.run_id
    assert "init" not in record.determinants
    assert record.parent == {"run_id": parent.run_id, "checksum": file_hash(place.weights)}
    # the child's network is the changed one, and whoever loads it gets that
    assert record.changes == parent.changes
    assert any(isinstance(m, Clip) for m in eat_runner.load_run(folder_of(child, record).path).model.modules())
    # the file inside is the same parent
    assert run.locate(replace(child, init=str(place.weights))).run_id == record.run_id
    # a copy of the weights alone is no run: it counts by its content
    copied = Path(masked.results_dir) / "copy.safetensors"
    copied.write_bytes(place.weights.read_bytes())
    assert run.locate(replace(child, init=str(copied))).origin.start.file_hash == file_hash(place.weights)


def test_a_parent_of_another_width_says_what_to_write(small_config):
    place = folder_of(small_config, run.run(small_config))
    other = replace(small_config, init=str(place.path), model=replace(small_config.model, width=7))
    width = small_config.model.width
    with pytest.raises(
        UserError, match=rf"init=.* is a network of model\.width={width}: write model\.width={width}, too$"
    ):
        run.locate_and_build(other)


def test_a_checkpoint_that_began_with_other_weights_of_the_parent_is_not_used(small_config):
    """Another machine has trained the parent anew, with other last bits."""
    parent = run.run(small_config)
    place = folder_of(small_config, parent)
    child = replace(small_config, init=str(place.path), seed=5)
    ends = run.run(child, ends_early=lambda row: "enough")
    assert ends.status == "stopped"
    state = bytearray(place.weights.read_bytes())
    state[-1] ^= 1
    place.weights.write_bytes(state)
    record = place.read_record()
    place.write_record(record)
    again = run.run(child)
    assert again.run_id == ends.run_id
    assert again.messages == [
        "checkpoint.pt could not be used (it began with other weights of the parent): training started from the "
        "beginning"
    ]
    assert again.status == "finished"


def test_a_run_that_is_ended_early_is_stopped_and_goes_on_to_the_same_result(small_config):
    whole = run.run(replace(small_config, name="whole"))
    seen = []

    def after_one(row):
        seen.append(row)
        return f"hopeless at {row.validation_accuracy:.1f}" if row.epoch == 1 else None

    stopped = run.run(small_config, ends_early=after_one)
    folder = folder_of(small_config, stopped)
    assert (stopped.status, stopped.epochs_done, stopped.final) == ("stopped", 1, False)
    assert stopped.reason == f"hopeless at {seen[0].validation_accuracy:.1f}"
    assert folder.read_record() == stopped
    assert [row["epoch"] for row in folder.read_history()] == [1]
    assert [planned.status for planned in run.plan([small_config])] == ["stopped"]
    table = collate(Path(small_config.results_dir) / small_config.name, PublishedHardware())
    assert table["status"].tolist() == ["stopped"]
    resumed = run.run(small_config)
    other = RunFolder(Path(small_config.results_dir) / "whole" / whole.run_id)
    assert folder.weights.read_bytes() == other.weights.read_bytes()
    assert resumed.accuracy == whole.accuracy


def test_a_network_changed_by_a_method_that_is_not_known_is_refused(masked, monkeypatch):
    record = run.run(masked)
    monkeypatch.delitem(METHODS, "mask")
    with pytest.raises(UserError, match="was changed by mask, which this version does not know: install a newer one"):
        eat_runner.load_run(folder_of(masked, record).path)


def test_a_method_that_nobody_implements_is_refused(masked, monkeypatch):
    monkeypatch.delitem(METHODS, "mask")
    with pytest.raises(UserError, match=r"^the config group=mask is unknown"):
        run.locate(masked)
