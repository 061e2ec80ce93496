from __future__ import annotations

import numpy as np
import pytest
import torch

from segtune.errors import DataError
from segtune.metrics.tally import Tally

IGNORE = 255


def images(seed, num_classes, count=5):
    rng = np.random.default_rng(seed)
    result = []
    for number in range(count):
        shape = tuple(rng.integers(1, 12, size=2))
        mask = rng.integers(num_classes, size=shape).astype(np.uint8)
        mask[rng.random(shape) < 0.2] = IGNORE
        result.append((rng.integers(num_classes, size=shape), mask, f"image{number}"))
    return result


def tally_of(samples, num_classes):
    tally = Tally(num_classes, IGNORE)
    for sample in samples:
        tally.update(*sample)
    return tally


@pytest.mark.parametrize("num_classes", [2, 5])
def test_counts_as_loops_do(num_classes):
    samples = images(0, num_classes)
    tally = tally_of(samples, num_classes)
    confusion = np.zeros((num_classes, num_classes), dtype=int)
    for number, (prediction, mask, _) in enumerate(samples):
        for place in np.ndindex(mask.shape):
            if mask[place] != IGNORE:
                confusion[mask[place], prediction[place]] += 1
        for c in range(num_classes):
            pairs = [(p == c, t == c) for p, t in zip(prediction.flat, mask.flat, strict=True) if t != IGNORE]
            assert tally.intersections[number, c] == sum(p and t for p, t in pairs)
            assert tally.unions[number, c] == sum(p or t for p, t in pairs)
    assert np.array_equal(tally.confusion, confusion)
    assert tally.names == [name for _, _, name in samples]


def test_takes_tensors_and_arrays_of_any_integer_type():
    prediction, mask, name = images(1, 4, count=1)[0]
    expected = tally_of([(prediction, mask, name)], 4)
    for kind in (torch.uint8, torch.int64):
        got = tally_of([(torch.from_numpy(prediction), torch.from_numpy(mask).to(kind), name)], 4)
        assert np.array_equal(got.confusion, expected.confusion)
    got = tally_of([(prediction.astype(np.uint8), mask.astype(np.int32), name)], 4)
    assert np.array_equal(got.confusion, expected.confusion)


def test_merged_parts_are_the_whole():
    samples = images(2, 3)
    whole, part = tally_of(samples, 3), tally_of(samples[:2], 3)
    part.merge(tally_of(samples[2:], 3))
    part.merge(Tally(3, IGNORE))
    assert np.array_equal(part.confusion, whole.confusion)
    assert np.array_equal(part.intersections, whole.intersections)
    assert np.array_equal(part.unions, whole.unions)
    assert part.names == whole.names


def test_empty_tally_has_shapes():
    tally = Tally(3, IGNORE)
    assert tally.confusion.shape == (3, 3)
    assert tally.intersections.shape == tally.unions.shape == (0, 3)


@pytest.mark.parametrize("value", [3, 200, -1])
def test_mask_value_without_a_class_is_an_error_that_names_the_image(value):
    mask = np.zeros((2, 2), dtype=np.int64)
    mask[1, 0] = value
    tally = Tally(3, IGNORE)
    with pytest.raises(DataError, match=rf"frame7: the mask holds the value {value}, .* 3 classes"):
        tally.update(np.zeros((2, 2), dtype=np.int64), mask, "frame7")
    assert not tally.confusion.any() and not tally.names


def test_ignored_class_value_is_not_an_error():
    tally = Tally(2, 0)
    tally.update(np.array([[0, 1]]), np.array([[0, 1]]), "a")
    assert tally.confusion.tolist() == [[0, 0], [0, 1]]
