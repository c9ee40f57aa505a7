"""The loop: rows that are whole, looks for who wants them, and a state that carries everything."""

from dataclasses import asdict, replace

import pytest
import torch

from eat_runner import run
from eat_runner.config import L0Config, ScheduleConfig, penalty
from eat_runner.energy.estimate import estimate
from eat_runner.energy.hardware import load_hardware
from eat_runner.penalties.weighting import WEIGHTINGS, Weighting
from eat_runner.train.checkpoint import pack, unpack
from examples import MaskConfig


def train(trainer, steps=10**9):
    done = iter(range(steps))
    return list(trainer.epochs(lambda: next(done, None) is None, lambda *_: None))


def trainer_of(config):
    return run.locate_and_build(config).trainer()


def same(a, b):
    return all(torch.equal(x, b[key]) for key, x in a.items())


def untimed(rows):
    return [asdict(row) | {"seconds": 0} for row in rows]


@pytest.mark.parametrize("evaluate_every", [1, 2, 5])
def test_a_row_is_whole_before_anybody_sees_it(small_config, evaluate_every):
    settings = replace(small_config.trainer, epochs=3, evaluate_every=evaluate_every)
    rows = train(trainer_of(replace(small_config, trainer=settings)))
    looked = [row.epoch for row in rows if row.validation_accuracy is not None]
    assert looked == {1: [1, 2, 3], 2: [2, 3], 5: [3]}[evaluate_every]
    for row in rows:
        figures = (row.validation_loss, row.validation_accuracy, row.firing_rate, row.energy_ratio, row.energy)
        assert all(figure is not None for figure in figures) == (row.epoch in looked)


def test_a_row_has_the_energy_of_the_run_s_hardware(small_config):
    for name in ("fused_7nm", "eyeriss_65nm"):
        hardware = load_hardware(name)
        trainer = trainer_of(replace(small_config, hardware=hardware))
        rows = train(trainer)
        priced = estimate(trainer.validation.counts, hardware, "validation")
        macs = sum(layer.energy_pj for layer in priced.layers) / 1e6
        assert rows[-1].energy == (macs if hardware.relative else priced.energy_uj_per_image)
        assert rows[0].energy not in (None, rows[-1].energy)


def test_the_multiplier_scales_lambda_and_is_carried_by_the_state(small_config):
    config = replace(small_config, schedule=ScheduleConfig(name="linear", warmup=1.0), lambda_=2.0)
    trainer = trainer_of(config)
    plain = [trainer.lambda_t_at(step) for step in range(trainer.steps)]
    assert plain == pytest.approx([2.0 * step / 9 for step in range(5)])
    trainer.ascent.multiplier = 3.0
    assert [trainer.lambda_t_at(step) for step in range(5)] == pytest.approx([3 * value for value in plain])
    resumed = trainer_of(config)
    resumed.load_state(unpack(pack(trainer.state())))
    assert resumed.ascent.multiplier == 3.0
    assert train(resumed)[-1].lambda_t == pytest.approx(6.0)


def test_a_checkpoint_of_the_first_version_goes_on(small_config):
    whole = trainer_of(small_config)
    train(whole)
    part = trainer_of(small_config)
    train(part, 3)
    state = {key: value for key, value in part.state().items() if key not in {"penalty", "methods", "ascent"}}
    resumed = trainer_of(small_config)
    resumed.load_state(state | {"lr_schedule": {}})
    train(resumed)
    assert same(resumed.model.state_dict(), whole.model.state_dict())


def test_a_method_hears_of_every_step_and_epoch_and_its_state_is_carried(small_config, mask_method):
    config = replace(small_config, methods={"mask": MaskConfig(name="small")}, lambda_=0.0)
    whole = trainer_of(config)
    train(whole)
    [mask] = whole.methods.values()
    # two epochs of five steps; no look after the last, whose row has just been measured
    steps = [(what, step) for step in range(10) for what in ("before", "after")]
    steps.insert(10, ("look", 4))
    steps.insert(0, ("first look", 0))
    assert [entry[:2] for entry in mask.heard] == steps
    looks = [entry[2] for entry in mask.heard if "look" in entry[0]]
    assert looks == [160, 160]  # fewer training images than a look takes
    assert all(entry[2] for entry in mask.heard if entry[0] == "before")
    assert not all(entry[2] for entry in mask.heard if entry[0] == "after")  # momentum and decay have moved them
    assert mask.kept()

    part = trainer_of(config)
    train(part, 7)
    resumed = trainer_of(config)
    resumed.load_state(unpack(pack(part.state())))
    train(resumed)
    assert same(resumed.model.state_dict(), whole.model.state_dict())
    assert untimed(resumed.history) == untimed(whole.history)
    assert resumed.methods["mask"].looks == mask.looks == 1


def test_a_weighting_that_wants_looks_gets_one_before_the_training_and_its_state_is_carried(small_config, monkeypatch):
    class Shrinking(Weighting):
        """One over the number of looks so far, for every output alike."""

        wants_look = True
        looks = 0

        def factors(self, outputs, batch_size, parameters):
            return [1e-3 / self.looks] * len(outputs)

        def look(self, counts):
            assert counts.images == 160
            self.looks += 1

        def state(self):
            return {"looks": self.looks}

        def load_state(self, state):
            self.looks = state["looks"]

    monkeypatch.setitem(WEIGHTINGS, "mine", Shrinking)
    monkeypatch.setattr(penalty, "WEIGHTINGS", ("mine",))
    config = replace(small_config, penalty=L0Config(weighting="mine"))
    whole = trainer_of(config)
    train(whole)
    assert whole.penalty.weighting.looks == 2
    for steps in (1, 5, 8):
        part = trainer_of(config)
        train(part, steps)
        resumed = trainer_of(config)
        resumed.load_state(unpack(pack(part.state())))
        train(resumed)
        assert same(resumed.model.state_dict(), whole.model.state_dict())
        assert untimed(resumed.history) == untimed(whole.history)
