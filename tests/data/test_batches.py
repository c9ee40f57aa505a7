"""Batches against naive versions that treat one image at a time, and what the draws of a batch depend on."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from eat_runner.config import DatasetConfig
from eat_runner.data import ImageSet, batches
from eat_runner.data.batches import evaluation_batches, steps_per_epoch, training_batches

CPU = torch.device("cpu")
CONF = Path(__file__).parents[2] / "conf" / "dataset"
PLAIN = DatasetConfig()
AUGMENTED = [
    DatasetConfig(crop_padding=2),
    DatasetConfig(flip=True),
    DatasetConfig(crop_padding=3, flip=True),
    DatasetConfig(rotation_degrees=15.0),
    DatasetConfig(crop_padding=2, flip=True, rotation_degrees=180.0),
]


def noise(n=23, size=8, channels=3) -> ImageSet:
    """Labels are the places in the set."""
    pixels = np.random.default_rng(0).integers(0, 256, (n, size, size, channels), dtype=np.uint8)
    return ImageSet(pixels, np.arange(n))


def epoch(images, config=PLAIN, batch_size=5, seed=0, number=0, first_step=0, channels=None, **options):
    """The batches as lists, values 0 to 255."""
    zero, one = (0.0,) * images.images_nhwc.shape[-1], (1 / 255,) * images.images_nhwc.shape[-1]
    options |= {"seed": seed, "epoch": number, "device": CPU, "first_step": first_step, "channels": channels}
    return list(training_batches(images, config, batch_size, zero, one, **options))


def same(a, b):
    return len(a) == len(b) and all(
        torch.equal(x, v) and torch.equal(y, w) for (x, y), (v, w) in zip(a, b, strict=True)
    )


class Drawn:
    """A generator whose draws are given: of shifts (rows, columns), coin tosses (below 0.5: flipped), degrees."""

    def __init__(self, shift, coin, degrees):
        self.values = {"integers": np.array(shift), "random": np.array(coin), "uniform": np.array(degrees)}

    def permutation(self, n):
        return np.arange(n)

    def __getattr__(self, kind):
        return lambda *_: self.values[kind]


def augmented(monkeypatch, images, config, shift, coin, degrees):
    """One batch with these draws, as float64 NHWC."""
    monkeypatch.setattr(batches, "_generator", lambda *_: Drawn(shift, coin, degrees))
    [(x_nchw, labels)] = epoch(images, config, len(images))
    assert labels.tolist() == list(range(len(images)))
    return x_nchw.permute(0, 2, 3, 1).double().numpy()


def draws(n, pad):
    rng = np.random.default_rng(1)
    return rng.integers(-pad, pad + 1, (2, n)), rng.random(n), rng.uniform(-180, 180, n)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("pad", [0, 1, 4])
@pytest.mark.parametrize("flip", [False, True])
def test_crop_and_flip_against_padding_and_slicing(monkeypatch, channels, pad, flip):
    images = noise(size=6, channels=channels)
    shift, coin, degrees = draws(len(images), pad)
    config = DatasetConfig(crop_padding=pad, flip=flip)
    result = augmented(monkeypatch, images, config, shift, coin, degrees)
    for i, image in enumerate(images.images_nhwc):
        padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
        row, column = shift[0, i] + pad, shift[1, i] + pad
        expected = padded[row : row + 6, column : column + 6]
        expected = expected[:, ::-1] if flip and coin[i] < 0.5 else expected
        assert np.array_equal(result[i], expected)


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_rotation_by_right_angles(monkeypatch, turns):
    """A sampling grid turned clockwise turns the picture counter-clockwise, like numpy.rot90."""
    images = noise(size=7)
    nothing = np.zeros((2, len(images)), dtype=np.int64), np.ones(len(images))
    degrees = np.full(len(images), 90.0 * turns)
    result = augmented(monkeypatch, images, DatasetConfig(rotation_degrees=180.0), *nothing, degrees)
    for image, expected in zip(result, images.images_nhwc, strict=True):
        assert np.allclose(image, np.rot90(expected, turns), atol=1e-2)


def bilinear(image, row, column):
    """The value at a place between pixels; black outside. float64."""
    top, left, value = math.floor(row), math.floor(column), 0.0
    for r in (top, top + 1):
        for c in (left, left + 1):
            if 0 <= r < image.shape[0] and 0 <= c < image.shape[1]:
                value += (1 - abs(row - r)) * (1 - abs(column - c)) * image[r, c].astype(np.float64)
    return value


@pytest.mark.parametrize("flip", [False, True])
def test_rotation_against_a_naive_bilinear_one(monkeypatch, flip):
    """Each output pixel: mirrored, turned about the centre, moved by the shift, read between the pixels."""
    size, images = 6, noise(9, 6)
    shift, coin, degrees = draws(len(images), 2)
    config = DatasetConfig(crop_padding=2, flip=flip, rotation_degrees=180.0)
    result = augmented(monkeypatch, images, config, shift, coin, degrees)
    centre = (size - 1) / 2
    for i, image in enumerate(images.images_nhwc):
        turn, mirror = math.radians(degrees[i]), -1 if flip and coin[i] < 0.5 else 1
        for row in range(size):
            for column in range(size):
                x, y = mirror * (column - centre), row - centre
                from_x = x * math.cos(turn) - y * math.sin(turn) + centre + shift[1, i]
                from_y = x * math.sin(turn) + y * math.cos(turn) + centre + shift[0, i]
                assert np.allclose(result[i, row, column], bilinear(image, from_y, from_x), atol=1e-2)


@pytest.mark.parametrize("flip", [False, True])
def test_no_rotation_is_the_limit_of_a_small_one(flip):
    images = noise()
    still = epoch(images, DatasetConfig(crop_padding=3, flip=flip))
    nearly = epoch(images, DatasetConfig(crop_padding=3, flip=flip, rotation_degrees=1e-7))
    for (x, y), (v, w) in zip(still, nearly, strict=True):
        assert torch.equal(y, w)
        assert torch.allclose(x, v, atol=1e-2)


def test_shifts_flips_and_angles_are_uniform_over_their_range():
    """A single bright pixel in the middle of a black image shows where it went."""
    n, size = 4000, 9
    images = ImageSet(np.zeros((n, size, size, 1), np.uint8), np.arange(n))
    images.images_nhwc[:, 4, 3] = 255
    [(x, _)] = epoch(images, DatasetConfig(crop_padding=2, flip=True), n)
    row, column = np.unravel_index(x[:, 0].flatten(1).argmax(1).numpy(), (size, size))
    assert np.array_equal(np.unique(row), np.arange(2, 7))
    assert np.array_equal(np.unique(column), np.arange(1, 8))
    assert np.all(np.abs(np.bincount(row)[2:] / n - 0.2) < 0.03)
    expected = np.array([1, 1, 2, 2, 2, 1, 1]) / 10  # 3 -+ 2 or, mirrored, 5 -+ 2
    assert np.all(np.abs(np.bincount(column)[1:] / n - expected) < 0.03)
    images = ImageSet(np.zeros((n, 65, 65, 1), np.uint8), np.arange(n))
    images.images_nhwc[:, 32, 62:] = 255  # due east
    [(x, _)] = epoch(images, DatasetConfig(rotation_degrees=30.0), n)
    weight = x[:, 0].double()
    north = (weight.sum(2) * (32 - torch.arange(65))).sum(1) / weight.sum((1, 2))
    east = (weight.sum(1) * (torch.arange(65) - 32)).sum(1) / weight.sum((1, 2))
    angle = torch.rad2deg(torch.atan2(north, east))
    assert angle.abs().max() <= 30.5
    assert angle.abs().max() > 29
    assert abs(angle.mean()) < 1
    assert angle.std() == pytest.approx(60 / 12**0.5, rel=0.05)


@pytest.mark.parametrize("config", AUGMENTED)
def test_the_same_seed_and_epoch_give_the_same_bits_under_any_number_of_threads(config):
    images, threads = noise(), torch.get_num_threads()
    first = epoch(images, config, seed=3, number=5)
    try:
        torch.set_num_threads(3 - min(threads, 2))  # 1 where it was 2, 2 where it was 1
        assert same(first, epoch(images, config, seed=3, number=5))
    finally:
        torch.set_num_threads(threads)
    assert not same(first, epoch(images, config, seed=4, number=5))
    assert not same(first, epoch(images, config, seed=3, number=6))


@pytest.mark.parametrize("config", AUGMENTED)
def test_resuming_gives_the_batches_that_were_left(config):
    images = noise()
    whole = epoch(images, config)
    for step in range(5):
        assert same(whole[step:], epoch(images, config, first_step=step))


def test_neither_global_generators_nor_earlier_draws_matter():
    images, config = noise(), AUGMENTED[-1]
    first = epoch(images, config)
    np.random.seed(7)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    assert same(first, epoch(images, config))
    assert torch.equal(state, torch.get_rng_state())


def test_batches_of_one_epoch_are_augmented_differently():
    images = ImageSet(np.repeat(noise(1).images_nhwc, 40, 0), np.arange(40))
    for config in AUGMENTED[2:]:
        different = {x.numpy().tobytes() for batch, _ in epoch(images, config, 10) for x in batch}
        assert len(different) > 10
        assert not same(epoch(images, config, 10)[:1], epoch(images, config, 10)[1:2])


@pytest.mark.parametrize(
    ("n", "batch_size", "steps"), [(23, 5, 4), (20, 5, 4), (5, 5, 1), (3, 5, 1), (1, 512, 1), (9, 1, 9)]
)
def test_every_image_at_most_once_an_epoch_and_whole_batches_only(n, batch_size, steps):
    images = noise(n)
    orders = [torch.cat([labels for _, labels in epoch(images, PLAIN, batch_size, number=e)]).tolist() for e in (0, 1)]
    assert steps_per_epoch(n, batch_size) == steps == len(epoch(images, PLAIN, batch_size))
    for order in orders:
        assert len(order) == len(set(order)) == min(steps * batch_size, n)
    assert n < 5 or orders[0] != orders[1]


@pytest.mark.parametrize("config", [PLAIN, *AUGMENTED[:-1]])
def test_labels_stay_with_their_images(config):
    """Each image is one colour, its label, and what is in the middle stays there."""
    n = 200
    images = ImageSet(
        np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 8, 8, 1)).copy(), np.arange(n)
    )
    for x, labels in epoch(images, config, 32):
        assert torch.allclose(x[:, 0, 4, 4], labels.float(), atol=1e-2)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("wanted", [None, 3])
def test_normalisation_against_a_naive_one(channels, wanted):
    images = noise(channels=channels)
    mean, std = (0.1, 0.5, 0.9)[:channels], (0.3, 0.2, 0.7)[:channels]
    naive = (images.images_nhwc.astype(np.float64) / 255 - np.array(mean)) / np.array(std)
    naive = np.repeat(naive, 3, axis=3) if wanted == 3 and channels == 1 else naive
    options = {"device": CPU, "channels": wanted}
    trained = list(training_batches(images, PLAIN, 23, mean, std, seed=0, epoch=0, **options))
    evaluated = list(evaluation_batches(images, 10, mean, std, **options))
    assert [len(x) for x, _ in evaluated] == [10, 10, 3]
    assert torch.cat([labels for _, labels in evaluated]).tolist() == list(range(23))
    for x, labels in trained + evaluated:
        assert (x.dtype, labels.dtype) == (torch.float32, torch.int64)
        assert x.shape == (len(labels), wanted or channels, 8, 8)
        assert np.allclose(x.permute(0, 2, 3, 1).double().numpy(), naive[labels.numpy()], atol=1e-6)


def test_pretrained_normalisation_of_three_channels_fits_grey_images():
    images, mean, std = noise(channels=1), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    [(x, _)] = evaluation_batches(images, 23, mean, std, CPU, channels=3)
    for c in range(3):
        expected = (images.images_nhwc[..., 0].astype(np.float64) / 255 - mean[c]) / std[c]
        assert np.allclose(x[:, c].double().numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("config", [PLAIN, *AUGMENTED])
@pytest.mark.parametrize(("channels", "wanted"), [(1, None), (1, 3), (3, None)])
def test_batches_are_channels_last_in_memory(config, channels, wanted):
    images = noise(channels=channels)
    options = {"device": CPU, "channels": wanted}
    mean, std = (0.5,) * channels, (0.2,) * channels
    for x, _ in [
        *training_batches(images, config, 5, mean, std, seed=0, epoch=0, **options),
        *evaluation_batches(images, 5, mean, std, **options),
    ]:
        assert x.is_contiguous(memory_format=torch.channels_last)
        assert x.permute(0, 2, 3, 1).is_contiguous()


def test_an_empty_split_has_no_batches():
    assert list(evaluation_batches(noise(0), 10, (0.0,) * 3, (1.0,) * 3, CPU)) == []


def test_the_images_in_memory_are_left_as_they_are():
    images = noise()
    before = images.images_nhwc.copy()
    for config in [PLAIN, *AUGMENTED]:
        for x, _ in epoch(images, config):
            x.add_(1)
    for x, _ in evaluation_batches(images, 5, (0.0,) * 3, (1.0,) * 3, CPU):
        x.add_(1)
    assert np.array_equal(images.images_nhwc, before)


@pytest.mark.parametrize("name", ["gtsrb", "digits", "cifar10", "cifar100", "celeba", "image_folder"])
def test_these_data_sets_are_never_mirrored(name):
    """The left half is white: mirrored, the right one would be. (Rotation and crops keep more of it on the left.)"""
    values = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    values.pop("defaults")
    config, n = DatasetConfig(**values), 64
    size = config.image_size
    images = ImageSet(np.zeros((n, size, size, 1), np.uint8), np.arange(n))
    images.images_nhwc[:, :, : size // 2] = 255
    for x, _ in epoch(images, config, 32):
        left, right = x[:, 0, :, : size // 2].mean((1, 2)), x[:, 0, :, size // 2 :].mean((1, 2))
        assert torch.all(left > right)


@pytest.mark.parametrize("config", [PLAIN, *AUGMENTED])
def test_parts_of_the_batches_have_the_images_of_the_whole_ones(config):
    images = noise()
    parts = [
        epoch(images, config, batch_size=7, number=3, part=part) for part in (slice(0, 3), slice(3, 5), slice(5, 7))
    ]
    put_together = [
        tuple(torch.cat(tensors) for tensors in zip(*batch, strict=True)) for batch in zip(*parts, strict=True)
    ]
    assert same(put_together, epoch(images, config, batch_size=7, number=3))
