"""The time that a plan names: what is left of each run, whatever goes wrong in another."""

from dataclasses import replace

from eat_runner import run
from eat_runner.run.plan import Pace, already_done, plan
from eat_runner.run.resume import checkpoint


def test_the_time_that_is_left() -> None:
    """40 epochs of 10 steps of 2 s, each with a look of 3 s; the test split takes 5 s."""
    pace = Pace(step_s=2.0, steps=10, epochs=40, look_s=3.0, looks_every=1, measurement_s=5.0)
    assert pace.seconds() == 40 * (20 + 3) + 5
    assert pace.seconds(30) == 10 * (20 + 3) + 5
    assert pace.seconds(30, 4) == 10 * (20 + 3) - 8 + 5
    assert pace.seconds(40) == 3 + 5


def test_looks_after_some_epochs_only() -> None:
    """After epochs 4, 8 and at the end of 10."""
    pace = Pace(step_s=0.0, steps=10, epochs=10, look_s=1.0, looks_every=4, measurement_s=0.0)
    assert [pace.seconds(done) for done in (0, 3, 4, 7, 8, 9)] == [3, 3, 2, 2, 1, 1]
    assert replace(pace, epochs=0).seconds() == 1


def test_what_is_done_stands_in_the_checkpoint(small_config) -> None:
    experiment = run.locate_and_build(small_config)
    assert already_done(experiment.folder) == (0, 0)
    trainer = experiment.trainer()
    steps = iter(range(trainer.steps + 2))
    for _ in trainer.epochs(lambda: next(steps, None) is None, lambda done, figures: None):
        pass
    experiment.folder.create()
    checkpoint(trainer, experiment)
    epochs, step = already_done(experiment.folder)
    assert (epochs, step) == (trainer.epoch, trainer.step)
    assert epochs == 1
    assert step > 0
    [planned] = plan([small_config])
    assert (planned.status, planned.reason) == ("interrupted", "")
    assert planned.seconds > 0
    experiment.folder.checkpoint.write_bytes(b"damaged")  # the run begins again
    assert already_done(experiment.folder) == (0, 0)


def test_a_step_that_goes_wrong_is_that_runs_alone(small_config) -> None:
    wild = replace(small_config, trainer=replace(small_config.trainer, lr=1e20, batch_size=8))
    first, second = plan([wild, small_config])
    assert second.seconds > 0
    assert second.reason == ""
    assert first.reason == "" or first.reason.startswith("NonFiniteError: ")
