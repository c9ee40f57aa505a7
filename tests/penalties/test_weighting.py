"""How the layers' sums become one number: factors by hand, and the names of outputs that a weighting is given."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from eat_runner.config import L0Config, penalty
from eat_runner.errors import UserError
from eat_runner.penalties.observer import Observer
from eat_runner.penalties.weighting import WEIGHTINGS, Output, Weighting, build_weighting, numbered

OUTPUTS = numbered(["conv", "relu", "relu"], [12, 8, 2])


@pytest.mark.parametrize(
    ("name", "factors"),
    [  # of 4 images by a network of 10 parameters
        ("layer_mean", [1 / 36, 1 / 24, 1 / 6]),
        ("elements", [1 / 22] * 3),
        ("parameters", [1 / 40] * 3),
    ],
)
def test_factors_by_hand(name: str, factors: list[float]) -> None:
    assert list(build_weighting(name).factors(OUTPUTS, 4, 10)) == pytest.approx(factors)


def test_an_output_is_known_by_what_made_it_and_by_the_how_manieth_of_its_calls_it_is() -> None:
    assert [Output("conv", 0, 12), Output("relu", 0, 8), Output("relu", 1, 2)] == OUTPUTS


def test_the_configuration_allows_what_there_is() -> None:
    assert set(penalty.WEIGHTINGS) == set(WEIGHTINGS)
    with pytest.raises(
        UserError, match=r"penalty\.weighting=max is unknown: choose one of layer_mean, elements, param"
    ):
        build_weighting("max")


class Twice(nn.Module):
    """Calls one ReLU twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.relu = nn.Linear(2, 2), nn.Linear(2, 2), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.second(self.relu(self.first(x))))


class SecondCallOnly(Weighting):
    """Knows one output by its key, and gives its factor as a tensor."""

    def factors(self, outputs: Sequence[Output], batch_size: int, parameters: int) -> Sequence[float | Tensor]:
        assert (batch_size, parameters) == (3, 12)
        assert [output[:2] for output in outputs] == [("first", 0), ("relu", 0), ("second", 0), ("relu", 1)]
        return [torch.tensor(5.0) if output[:2] == ("relu", 1) else 0.0 for output in outputs]


@pytest.mark.parametrize("in_backward", [False, True])
def test_a_weighting_that_knows_modules_and_calls(in_backward: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WEIGHTINGS, "mine", SecondCallOnly)
    torch.manual_seed(0)
    model, x = Twice().double(), torch.randn(3, 2, dtype=torch.float64)
    out = model(x)
    expected = 5.0 * (out**2 / (out**2 + 1.0)).sum()
    gradients = torch.autograd.grad(out.sum() + 2.0 * expected, list(model.parameters()))
    with Observer(model, L0Config(weighting="mine", sigma=1.0), x, in_backward) as observer:
        value = observer.backward(model(x).sum(), 2.0, 3)
    assert value is not None
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    for p, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(p.grad, gradient)
