from __future__ import annotations

import numpy as np
import pytest
import torch

from segtune.data.rand_augment import COLOUR, GEOMETRY, OPERATIONS, RandAugment
from segtune.data.settings import DataSettings
from segtune.data.transforms import TrainTransform, pad, resize, resolve_crop, to_tensor
from segtune.errors import SettingsError

IGNORE = 255
STILL = {"horizontal_flip": 0.0}


def transform(crop=(16, 16), channels=3, **settings):
    return TrainTransform(DataSettings(**settings), crop=crop, channels=channels, ignore_index=IGNORE)


def blocks(height=64, width=96, block=16, classes=(0, 1, 2), channels=3):
    """An image whose brightness is its class, in blocks: whatever moves, the two must agree."""
    rng = np.random.default_rng(0)
    small = rng.choice(classes, size=(-(-height // block), -(-width // block)))
    mask = np.kron(small, np.ones((block, block), dtype=int))[:height, :width].astype(np.uint8)
    return np.repeat((mask * 80)[..., None], channels, axis=2).astype(np.uint8), mask


def agreement(image, mask):
    """Share of the pixels that count whose brightness is that of their class."""
    counts = mask != IGNORE
    return (image[0] * 255 / 80 - mask.float()).abs()[counts].lt(0.3).float().mean().item()


# --- to_tensor -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "top"), [(np.uint8, 255), (np.uint16, 65535), (np.float32, 1), (np.float64, 1)]
)
def test_every_image_type_becomes_float32_between_0_and_1(kind, top):
    image = np.array([[[0, top]], [[top, 0]], [[top, top]]], dtype=kind)
    tensor = to_tensor(image)
    assert tensor.dtype == torch.float32
    assert tensor.tolist() == [[[0.0], [1.0], [1.0]], [[1.0], [0.0], [1.0]]]


def test_floats_are_clipped_and_the_source_is_left_alone():
    image = np.array([[[-1.0], [2.0]]], dtype=np.float32)
    assert to_tensor(image).tolist() == [[[0.0, 1.0]]]
    assert image.tolist() == [[[-1.0], [2.0]]]


# --- resolve_crop --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "multiple", "crop"),
    [
        ([(360, 480)], 1, (360, 480)),
        ([(360, 480)], 32, (352, 480)),
        ([(1024, 2048), (700, 900)], 32, (512, 512)),
        ([(400, 900), (900, 300)], 16, (400, 288)),
        ([(20, 600)], 32, (32, 512)),
        ([(1000, 1000)], 14, (504, 504)),
    ],
)
def test_automatic_crop(sizes, multiple, crop):
    assert resolve_crop(sizes, multiple) == crop


# --- geometry ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(32, 48), (128, 192), (50, 70)])
def test_resized_mask_stays_on_its_image(size):
    image, mask = blocks()
    resized, labels = resize(to_tensor(image), torch.from_numpy(mask), size)
    assert resized.shape == (3, *size) and labels.shape == size
    assert agreement(resized, labels) > 0.85
    # A shift by two pixels of the source must be visible, or the line above proves nothing.
    _, shifted = resize(to_tensor(image), torch.from_numpy(np.roll(mask, (2, 2), (0, 1))), size)
    assert agreement(resized, shifted) < agreement(resized, labels) - 0.03


def test_halving_takes_each_mask_pixel_from_the_middle():
    mask = torch.arange(9 * 9).view(9, 9)
    _, small = resize(torch.zeros(1, 9, 9), mask, (3, 3))
    assert small.tolist() == mask[1::3, 1::3].tolist()


def test_padding_is_ignored_and_has_the_mean_colour():
    image = torch.rand(4, 3, 5)
    padded, mask = pad(image, torch.zeros(3, 5, dtype=torch.uint8), (6, 5), IGNORE)
    assert torch.equal(padded[:, :3], image)
    assert torch.allclose(padded[:, 3:], image.mean((1, 2)).view(4, 1, 1).expand(4, 3, 5))
    assert (mask[3:] == IGNORE).all() and (mask[:3] == 0).all()
    assert mask.dtype == torch.uint8


def test_flips():
    image, mask = blocks(16, 16, 4)
    got = transform(horizontal_flip=1, vertical_flip=1)(image, mask)
    assert torch.equal(got[0], to_tensor(image).flip(1, 2))
    assert torch.equal(got[1], torch.from_numpy(mask).flip(0, 1))


def test_image_of_the_crop_size_is_untouched_without_augmentation():
    image, mask = blocks(16, 16, 4)
    got = transform(**STILL)(image, mask)
    assert torch.equal(got[0], to_tensor(image))
    assert torch.equal(got[1], torch.from_numpy(mask))


def test_crop_is_a_piece_of_the_image():
    mask = np.arange(20 * 12, dtype=np.uint8).reshape(20, 12)
    image = mask[..., None].repeat(3, axis=2)
    corners = set()
    for _ in range(40):
        got_image, got_mask = transform((18, 10), **STILL)(image, mask)
        top, left = divmod(int(got_mask[0, 0]), 12)
        corners.add((top, left))
        assert torch.equal(got_mask, torch.from_numpy(mask[top : top + 18, left : left + 10]))
        assert torch.equal((got_image[0] * 255).round().byte(), got_mask)
    assert len(corners) > 4 and {top for top, _ in corners} == {left for _, left in corners} == {0, 1, 2}


@pytest.mark.parametrize(
    ("crop", "settings", "shape"),
    [
        ((40, 24), {"scale": (0.5, 2.0)}, (40, 24)),
        ((100, 200), {}, (100, 200)),
        ((100, 200), {"scale": (0.3, 0.3)}, (100, 200)),
        (None, {}, (64, 96)),
        (None, {"scale": (0.5, 0.5)}, (32, 48)),
        (None, {"resize": (30, 50)}, (30, 50)),
        ((16, 16), {"resize": (30, 50)}, (16, 16)),
    ],
)
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_shapes_and_types(crop, settings, shape, channels):
    torch.manual_seed(0)  # of where is cropped: some places hold more edges, where image and mask differ
    image, mask = blocks(channels=channels)
    got_image, got_mask = transform(crop, channels, **settings)(image, mask)
    assert got_image.shape == (channels, *shape) and got_image.dtype == torch.float32
    assert got_mask.shape == shape and got_mask.dtype == torch.uint8
    assert type(got_image) is type(got_mask) is torch.Tensor
    assert agreement(got_image, got_mask) > 0.85


def test_scale_makes_things_larger_or_smaller():
    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[::2] = 1  # stripes of one pixel become stripes of four
    image = mask[..., None] * np.uint8(255)
    _, got = transform((32, 32), 1, scale=(4.0, 4.0), **STILL)(image, mask)
    changes = (got[1:, 0] != got[:-1, 0]).nonzero().flatten()
    assert set(changes.diff().tolist()) == {4}
    _, got = transform((32, 32), 1, scale=(0.25, 0.25), **STILL)(image, mask)
    assert (got[:16, :16] != IGNORE).all()
    assert (got[16:] == IGNORE).all() and (got[:, 16:] == IGNORE).all()


# --- masks ---------------------------------------------------------------------------------------


def test_masks_never_gain_values():
    values = (0, 3, 200)
    image, mask = blocks(30, 50, 3, classes=values)
    augment = transform(
        (32, 32),
        scale=(0.4, 2.5),
        vertical_flip=0.5,
        colour=0.8,
        rand_augment=4,
        rand_augment_magnitude=30,
    )
    seen = set()
    for seed in range(60):
        torch.manual_seed(seed)
        got_image, got_mask = augment(image, mask)
        seen |= set(got_mask.unique().tolist())
        assert got_image.min() >= 0 and got_image.max() <= 1
        assert got_mask.dtype == torch.uint8
    assert seen == {*values, IGNORE}


def test_colour_changes_the_image_only():
    image, mask = blocks(16, 16, 4)
    got_image, got_mask = transform(colour=0.8, **STILL)(image, mask)
    assert not torch.equal(got_image, to_tensor(image))
    assert torch.equal(got_mask, torch.from_numpy(mask))


@pytest.mark.parametrize("name", ["colour", "rand_augment"])
def test_colour_on_other_than_grey_or_rgb_is_refused_with_the_setting(name):
    with pytest.raises(SettingsError, match=rf"data\.{name}: .* these have 4"):
        transform(channels=4, **{name: 1})


# --- class-aware crops ---------------------------------------------------------------------------


def shares_of(mask, limit, num=200):
    image = np.zeros((*mask.shape, 1), dtype=np.uint8)
    augment = transform((16, 16), 1, class_aware=limit, **STILL)
    torch.manual_seed(0)
    return torch.stack([augment(image, mask)[1] for _ in range(num)])


def test_crops_of_one_class_are_drawn_again():
    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[:, 28:36] = 1
    dull = {limit: (shares_of(mask, limit) == 0).all((1, 2)).float().mean() for limit in (1.0, 0.75)}
    assert dull[1.0] > 0.4
    assert dull[0.75] < 0.02


def test_of_ten_dull_crops_the_least_dull_is_taken():
    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[30:33, 30:33] = 1  # 9 of 256 pixels: no crop can be below the limit
    hit = {limit: (shares_of(mask, limit) == 1).any(2).any(1).float().mean() for limit in (1.0, 0.75)}
    assert hit[0.75] > hit[1.0] + 0.3


def test_crops_without_a_pixel_that_counts_are_drawn_again():
    mask = np.full((48, 48), IGNORE, dtype=np.uint8)
    mask[20:, 20:] = np.random.default_rng(0).integers(2, size=(28, 28))
    empty = (shares_of(mask, 1.0) == IGNORE).all((1, 2)).float().mean()
    assert empty < 0.02


def test_image_that_is_all_ignored_is_still_a_sample():
    mask = np.full((48, 48), IGNORE, dtype=np.uint8)
    assert (shares_of(mask, 0.75, num=1) == IGNORE).all()


# --- RandAugment ---------------------------------------------------------------------------------


def only(monkeypatch, name):
    monkeypatch.setattr("segtune.data.rand_augment.OPERATIONS", (name,))


@pytest.mark.parametrize("name", GEOMETRY)
@pytest.mark.parametrize("seed", [0, 3])
def test_what_moves_the_image_moves_the_mask(monkeypatch, name, seed):
    only(monkeypatch, name)
    image, mask = blocks()
    torch.manual_seed(seed)
    got_image, got_mask = RandAugment(1, 20, IGNORE)(to_tensor(image), torch.from_numpy(mask))
    assert not torch.equal(got_mask, torch.from_numpy(mask))
    assert (got_mask == IGNORE).any()
    assert agreement(got_image, got_mask) > 0.9
    assert got_image.shape == (3, 64, 96) and got_mask.shape == (64, 96)


@pytest.mark.parametrize("name", COLOUR)
@pytest.mark.parametrize("channels", [1, 3])
def test_colour_operations_leave_the_mask_and_the_range(monkeypatch, name, channels):
    only(monkeypatch, name)
    image = np.random.default_rng(0).integers(60, 180, size=(12, 10, channels), dtype=np.uint8)
    mask = torch.zeros(12, 10, dtype=torch.uint8)
    for magnitude in (1, 9, 30):
        got_image, got_mask = RandAugment(1, magnitude, IGNORE)(to_tensor(image), mask)
        assert got_mask is mask
        assert got_image.dtype == torch.float32 and got_image.shape == (channels, 12, 10)
        assert got_image.min() >= 0 and got_image.max() <= 1
    unchanged = name == "identity" or (name == "saturation" and channels == 1)
    assert torch.equal(got_image, to_tensor(image)) == unchanged


def test_every_operation_is_drawn_in_both_directions(monkeypatch):
    drawn = set()
    for name in COLOUR:
        monkeypatch.setitem(
            COLOUR, name, lambda image, strength, sign, name=name: drawn.add((name, sign)) or image
        )
    monkeypatch.setattr(
        RandAugment, "_move", lambda self, name, sign, image, mask: drawn.add((name, sign)) or (image, mask)
    )
    torch.manual_seed(0)
    RandAugment(400, 9, IGNORE)(torch.zeros(3, 4, 4), torch.zeros(4, 4))
    assert drawn == {(name, sign) for name in OPERATIONS for sign in (1.0, -1.0)}
