from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segtune.data.regions import decode_counts, polygon_region, runs_region, union

COORDINATES = st.floats(-8, 24).map(lambda value: round(value, 2))


def inside(points, x, y):
    """Whether an odd number of edges lies to the left of a position."""
    odd = False
    for (x0, y0), (x1, y1) in zip(points, [*points[1:], points[0]], strict=True):
        if (y0 <= y) != (y1 <= y) and x0 + (y - y0) * (x1 - x0) / (y1 - y0) <= x:
            odd = not odd
    return odd


def painted(region, height, width):
    mask = np.zeros((height, width), np.uint8)
    region.paint(mask, 1)
    return mask


@given(points=st.lists(st.tuples(COORDINATES, COORDINATES), min_size=3, max_size=9))
def test_a_pixel_is_inside_where_its_centre_is(points):
    height, width = 11, 17
    own = painted(polygon_region(np.array(points), height, width), height, width)
    slow = [[inside(points, x + 0.5, y + 0.5) for x in range(width)] for y in range(height)]
    assert (own == np.array(slow)).all()


def test_rectangles_have_their_area():
    square = np.array([(2, 3), (7, 3), (7, 5), (2, 5)], np.float64)
    assert painted(polygon_region(square, 10, 10), 10, 10).sum() == 10
    assert painted(polygon_region(square * 1e6, 10, 10), 10, 10).sum() == 0
    around = np.array([(-1e7, -1e7), (1e7, -1e7), (1e7, 1e7), (-1e7, 1e7)])
    assert painted(polygon_region(around, 10, 10), 10, 10).all()


def test_union_of_regions():
    height, width = 12, 14
    squares = [np.array([(x, y), (x + 3, y), (x + 3, y + 3), (x, y + 3)], float) for x, y in [(1, 1), (8, 7)]]
    regions = [polygon_region(square, height, width) for square in squares]
    both = painted(regions[0], height, width) | painted(regions[1], height, width)
    assert (painted(union(regions), height, width) == both).all()


def encode_counts(counts):
    """COCO's compressed form, written from its description."""
    text = ""
    for place, count in enumerate(counts):
        number = count - counts[place - 2] if place > 2 else count
        while True:
            bits = number & 0x1F
            number >>= 5
            done = number == (-1 if bits & 0x10 else 0)
            text += chr(48 + bits + (0 if done else 0x20))
            if done:
                break
    return text


@given(counts=st.lists(st.integers(0, 100_000), max_size=12))
def test_run_lengths_come_back_from_the_compressed_form(counts):
    assert decode_counts(encode_counts(counts)) == counts


def test_a_form_written_by_the_reference_program():
    """From pycocotools 2.0.11: columns 1 to 3 of 6 x 5 pixels, and a rectangle with a hole."""
    assert decode_counts("6b06") == [6, 18, 6]
    mask = np.zeros((40, 50), np.uint8)
    mask[3:30, 5:40] = 1
    mask[8:12, 10:13] = 0
    text = "[6k0=00000000ZOG=9CG=9CG=99" + "0" * 52 + "]<"
    assert (painted(runs_region(decode_counts(text), 40, 50), 40, 50) == mask).all()


def test_runs_go_down_the_columns():
    region = runs_region([2, 3, 7], 3, 4)
    assert painted(region, 3, 4).tolist() == [[0, 1, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0]]


@pytest.mark.parametrize("counts", [[5], [13], [-1, 13], [6.0, 6], [True, 11], ["a"], [10**30], []])
def test_wrong_runs_are_refused(counts):
    with pytest.raises(ValueError, match="run"):
        runs_region(counts, 3, 4)


@pytest.mark.parametrize("text", ["\x00", "~~~~", "P", "o" * 40, "ü"])
def test_wrong_compressed_forms_are_refused(text):
    with pytest.raises(ValueError, match="run"):
        decode_counts(text)
