"""Densities by hand, masks against sorting."""

import pytest
import torch

from eat_runner.config.pruning import PruningConfig
from eat_runner.methods.masks import erk_densities, largest, of_every_four, share_at


def test_the_density_follows_the_cube():
    config = PruningConfig(begin=0.1, end=0.6)
    # before, at the beginning, half way (q = 1/2: 0.2 + 0.8 / 8), at the end, after it
    assert [share_at(config, 0.2, part) for part in (0.0, 0.1, 0.35, 0.6, 1.0)] == pytest.approx([1, 1, 0.3, 0.2, 0.2])


def test_erk_densities_by_hand():
    # (8 + 4 + 3 + 3) / 288 = 1/16 and (10 + 20) / 200 = 0.15: a third of 488 weights is 162.67 = s (18 + 30)
    scale = 488 / 3 / 48
    shapes = [torch.Size((8, 4, 3, 3)), torch.Size((10, 20))]
    assert erk_densities(shapes, 1 / 3) == pytest.approx([scale / 16, scale * 0.15])
    # at 0.9 the second would have more weights than there are: it is full, and the first gets the rest
    assert erk_densities(shapes, 0.9) == pytest.approx([(0.9 * 488 - 200) / 288, 1.0])
    assert erk_densities(shapes, 1.0) == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize("kept", [1, 7, 20, 24])
def test_the_largest_are_those_that_sorting_finds(kept: int):
    torch.manual_seed(0)
    scores = [torch.rand(3, 4), torch.rand(12)]
    limit = sorted(torch.cat([s.flatten() for s in scores]).tolist())[-kept]
    masks = largest(scores, kept)
    for mask, score in zip(masks, scores, strict=True):
        assert torch.equal(mask, score >= limit)


@pytest.mark.parametrize(("density", "kept"), [(1.0, 4), (0.76, 4), (0.75, 3), (0.6, 3), (0.5, 2)])
def test_of_every_four_inputs_the_largest_stay(density: float, kept: int):
    torch.manual_seed(0)
    scores = torch.rand(3, 8, 2, 2)
    mask = of_every_four(scores, density)
    for output in range(3):
        for y in range(2):
            for x in range(2):
                for first in (0, 4):
                    four = scores[output, first : first + 4, y, x].tolist()
                    limit = sorted(four, reverse=True)[kept - 1]
                    assert mask[output, first : first + 4, y, x].tolist() == [value >= limit for value in four]


def test_of_every_four_inputs_of_a_linear_layer():
    mask = of_every_four(torch.tensor([[4.0, 1.0, 3.0, 2.0, 0.1, 0.3, 0.2, 0.4]]), 0.5)
    assert mask.tolist() == [[True, False, True, False, False, True, False, True]]
