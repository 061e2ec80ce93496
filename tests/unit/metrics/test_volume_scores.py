"""Scores of volumes: against a slow reference, in millimetres, and where a region is empty."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segtune.metrics.volume_dice import volume_dice
from segtune.metrics.volume_hd95 import volume_hd95
from segtune.metrics.volume_scores import VolumeTally, diagonal
from segtune.metrics.volume_surface_dice import volume_surface_dice

SHAPE = (5, 6, 7)


def surface(region: np.ndarray) -> list[tuple[int, ...]]:
    """Voxels of a region that touch, by a face, what is not in it; beyond the rim nothing is."""
    points = []
    for place in zip(*np.nonzero(region), strict=True):
        for axis in range(3):
            for step in (-1, 1):
                other = list(place)
                other[axis] += step
                outside = not 0 <= other[axis] < region.shape[axis]
                if outside or not region[tuple(other)]:
                    points.append(tuple(map(int, place)))
    return sorted(set(points))


def distances(first: np.ndarray, second: np.ndarray, spacing: tuple[float, ...]) -> list[float]:
    """From every surface voxel of the first to the nearest of the second, one pair after the other."""
    result = []
    for a in surface(first):
        steps = [[(x - y) * s for x, y, s in zip(a, b, spacing, strict=True)] for b in surface(second)]
        result.append(min(math.hypot(*step) for step in steps))
    return result


@st.composite
def regions(draw):
    found = []
    for _ in range(2):
        low = [draw(st.integers(0, size - 2)) for size in SHAPE]
        high = [draw(st.integers(a + 1, size)) for a, size in zip(low, SHAPE, strict=True)]
        region = np.zeros(SHAPE, np.bool_)
        region[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
        holes = draw(st.lists(st.tuples(*[st.integers(0, size - 1) for size in SHAPE]), max_size=3))
        for hole in holes:
            region[hole] = False
        if not region.any():
            region[0, 0, 0] = True
        found.append(region)
    return tuple(found)


@settings(max_examples=25, deadline=None)
@given(
    pair=regions(),
    spacing=st.tuples(*[st.sampled_from((0.5, 1.0, 3.0))] * 3),
    limit=st.sampled_from((0.6, 1, 4)),
)
def test_surfaces_agree_with_a_slow_reference(pair, spacing, limit):
    first, second = pair
    there, back = distances(first, second, spacing), distances(second, first, spacing)
    want = max(np.percentile(there, 95), np.percentile(back, 95))
    assert volume_hd95(first, second, spacing, 0) == pytest.approx(want, rel=1e-5)
    near = sum(d <= limit + 1e-6 for d in there + back)
    assert volume_surface_dice(first, second, spacing, limit) == pytest.approx(
        near / (len(there) + len(back)), rel=1e-5
    )
    dice = 2 * (first & second).sum() / (first.sum() + second.sum())
    assert volume_dice(first, second, spacing, limit) == pytest.approx(dice)


def block(position: int) -> np.ndarray:
    volume = np.zeros((10, 6, 6), np.uint8)
    volume[position : position + 3, 2:4, 2:4] = 1
    return volume


def test_distances_are_millimetres():
    for step in (1.0, 2.5):
        tally = VolumeTally({"t": (1,)}, tolerance=1.0, ignore_index=255)
        tally.update(block(2), block(4), "a", (step, 1.0, 1.0))
        assert tally.cases["a"]["volume_hd95"]["t"] == pytest.approx(2 * step)


def test_empty_regions_follow_the_policy():
    tally = VolumeTally({"t": (1,), "u": (2,)}, tolerance=1.0, ignore_index=255)
    empty = np.zeros_like(block(0))
    tally.update(block(2), block(2), "right", (1, 1, 1))
    tally.update(empty, empty, "nothing", (1, 1, 1))
    tally.update(block(2), empty, "false alarm", (1, 1, 1))
    tally.update(empty, block(2), "missed", (1, 1, 1))
    assert tally.cases["nothing"]["volume_dice"] == {"t": None, "u": None}
    farthest = diagonal((10, 6, 6), (1, 1, 1))
    for case in ("false alarm", "missed"):
        assert tally.cases[case]["volume_dice"]["t"] == 0
        assert tally.cases[case]["volume_surface_dice"]["t"] == 0
        assert tally.cases[case]["volume_hd95"]["t"] == pytest.approx(math.sqrt(81 + 25 + 25)) == farthest
    assert tally.scores() == {
        "volume_dice": pytest.approx(1 / 3),
        "volume_hd95": pytest.approx(2 * farthest / 3),
        "volume_surface_dice": pytest.approx(1 / 3),
    }
    assert tally.region_means("volume_dice") == {"t": pytest.approx(1 / 3), "u": None}


def test_regions_join_classes_and_ignored_voxels_count_for_nothing():
    tally = VolumeTally({"whole": (1, 2), "core": (2,)}, tolerance=1.0, ignore_index=255)
    mask, prediction = block(2), block(2)
    mask[3], prediction[2:5] = 2 * mask[3], prediction[2:5] * 2
    mask[4] = 255
    tally.update(prediction, mask, "a", (1, 1, 1))
    assert tally.cases["a"]["volume_dice"] == {"whole": 1.0, "core": pytest.approx(2 / 3)}


def test_no_case_that_counts_gives_no_score():
    tally = VolumeTally({"t": (1,)}, tolerance=1.0, ignore_index=255)
    tally.update(np.zeros((2, 2, 2)), np.zeros((2, 2, 2)), "a", (1, 1, 1))
    assert tally.scores() == {}
