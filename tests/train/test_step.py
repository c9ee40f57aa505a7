"""One training step, against SGD written out by hand; where methods and further terms of the loss come in."""

from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional as F

from eat_runner.config import MethodConfig
from eat_runner.config.hardware import PublishedHardware
from eat_runner.methods.base import Method, Progress
from eat_runner.penalties.base import Penalty
from eat_runner.train.step import Step

PROGRESS = Progress(3, 5, 2)


def parts():
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    return model, optimizer, torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])


class Quadratic(Penalty):
    """Half the squared weights, so that the gradient is the weights."""

    def __init__(self, model):
        self.model = model

    def backward(self, loss, lambda_, batch_size, value=True):
        assert batch_size == 6
        penalty = self.model.weight.square().sum() / 2
        (loss + lambda_ * penalty).backward()
        return penalty.detach() if value else None


def test_a_step_is_sgd_on_cross_entropy_plus_terms_plus_lambda_times_the_penalty():
    model, optimizer, x, labels = parts()
    w, b = (p.detach().clone().requires_grad_() for p in (model.weight, model.bias))
    logits = x @ w.T + b
    loss = F.cross_entropy(logits, labels) + 0.5 * (logits**2).mean() + 2.0 * (w**2).sum() / 2
    gradients = torch.autograd.grad(loss, [w, b])
    step = Step(
        forward=model,
        optimizer=optimizer,
        penalty=Quadratic(model),
        terms=[lambda x_nchw, logits, labels: 0.5 * (logits**2).mean()],
    )
    made = step(x, labels, 2.0, PROGRESS, value=True)
    for p, old, gradient in zip(model.parameters(), (w, b), gradients, strict=True):
        torch.testing.assert_close(p.detach(), old.detach() - 0.1 * (gradient + 0.01 * old.detach()))
    torch.testing.assert_close(made.cross_entropy, F.cross_entropy(logits, labels).detach())
    torch.testing.assert_close(made.logits, logits.detach())
    torch.testing.assert_close(made.penalty, (w**2).sum().detach() / 2)
    assert not made.cross_entropy.requires_grad
    assert step(x, labels, 2.0, PROGRESS).penalty is None


def test_without_a_penalty_it_is_plain_training():
    model, optimizer, x, labels = parts()
    other, plain, _, _ = parts()
    made = Step(forward=model, optimizer=optimizer, penalty=Penalty())(x, labels, 5.0, PROGRESS, value=True)
    F.cross_entropy(other(x), labels).backward()
    plain.step()
    assert made.penalty is None
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def test_methods_act_around_the_forward_pass_and_after_the_update_in_their_order():
    model, optimizer, x, labels = parts()
    heard = []
    before = model.weight.detach().clone()

    class Hears(Method):
        def __init__(self, name):
            super().__init__(MethodConfig(name=name), PublishedHardware())

        def say(self, what):
            heard.append((self.config.name, what, torch.equal(model.weight, before)))

        def before_step(self, progress):
            assert progress is PROGRESS
            self.say("before")

        @contextmanager
        def numbers(self):
            self.say("in")
            yield
            self.say("out")

        def after_step(self, progress):
            self.say("after")

    methods = [Hears("a"), Hears("b")]
    Step(forward=model, optimizer=optimizer, penalty=Penalty(), methods=methods)(x, labels, 0.0, PROGRESS)
    assert heard == [
        ("a", "before", True),
        ("b", "before", True),
        ("a", "in", True),
        ("b", "in", True),
        ("b", "out", True),
        ("a", "out", True),
        ("a", "after", False),
        ("b", "after", False),
    ]


def test_progress_goes_from_nothing_to_one():
    assert [Progress(step, 2, 3).part for step in range(6)] == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert Progress(0, 1, 1).part == 1.0
