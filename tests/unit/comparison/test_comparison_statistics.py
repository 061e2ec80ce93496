"""Intervals and paired tests against independent references."""

from __future__ import annotations

import numpy as np
import pytest

from segtune.comparison.statistics import (
    PER_IMAGE,
    SCORES,
    Draws,
    difference,
    interval,
    score_of,
)
from segtune.engine.image_counts import ImageCounts
from segtune.metrics.scores import compute_scores
from segtune.metrics.tally import Tally


def tally_of(num_images: int, num_classes: int, seed: int) -> Tally:
    generator = np.random.default_rng(seed)
    tally = Tally(num_classes, 255)
    for number in range(num_images):
        mask = generator.integers(num_classes, size=(6, 7))
        wrong = generator.random((6, 7)) < 0.3
        prediction = np.where(wrong, generator.integers(num_classes, size=(6, 7)), mask)
        tally.update(prediction, np.where(generator.random((6, 7)) < 0.1, 255, mask), f"image{number}")
    return tally


def counts_of(tally: Tally) -> ImageCounts:
    return ImageCounts.from_tally(tally, dict.fromkeys(tally.names))


@pytest.mark.parametrize(
    ("score", "num_classes"),
    [
        (score, k)
        for score in sorted({*SCORES, *PER_IMAGE})
        for k in (2, 4)
        if k == 2 or "foreground" not in score
    ],
)
def test_scores_equal_the_metrics_of_the_same_names(score: str, num_classes: int) -> None:
    tally = tally_of(9, num_classes, 0)
    assert score_of(counts_of(tally), score) == pytest.approx(compute_scores(tally)[score], rel=1e-12)


@pytest.mark.parametrize("score", ["miou", "foreground_dice", "miou_per_image"])
def test_a_draw_scores_as_the_drawn_images_do(score: str) -> None:
    counts = counts_of(tally_of(6, 2, 1))
    draws = Draws(counts.names, None, 100, seed=3)
    scores = draws.scores(counts, score)
    for number in (0, 17, 99):
        drawn = np.repeat(np.arange(6), draws.weights[number].astype(int))
        chosen = ImageCounts(
            tuple(counts.names[i] for i in drawn),
            (None,) * len(drawn),
            counts.right[drawn],
            counts.true[drawn],
            counts.predicted[drawn],
        )
        assert len(drawn) == 6
        assert scores[number] == pytest.approx(score_of(chosen, score), rel=1e-12)


def test_groups_are_drawn_whole() -> None:
    groups = ["a", "a", "b", None, "b", None]
    draws = Draws([str(i) for i in range(6)], groups, 200)
    assert draws.num_units == 4
    assert (draws.weights[:, 0] == draws.weights[:, 1]).all()
    assert (draws.weights[:, 2] == draws.weights[:, 4]).all()
    assert not (draws.weights[:, 3] == draws.weights[:, 5]).all()


def test_the_interval_holds_the_true_value_as_often_as_it_says() -> None:
    """200 data sets from one distribution, whose true accuracy is 0.7: about 95 % of intervals hold it."""
    generator = np.random.default_rng(0)
    held = 0
    for number in range(200):
        right = generator.binomial(50, 0.7, size=(60, 1))
        true = np.full((60, 1), 50)
        counts = ImageCounts(tuple(map(str, range(60))), (None,) * 60, right, true, true)
        drawn = Draws(counts.names, None, 400, seed=number).scores(counts, "pixel_accuracy")
        found = interval(score_of(counts, "pixel_accuracy"), drawn)
        held += found.low <= 0.7 <= found.high
    assert 0.89 <= held / 200 <= 0.99


def test_a_paired_test_sees_a_small_steady_difference_that_intervals_hide() -> None:
    generator = np.random.default_rng(1)
    right = generator.integers(200, 900, size=(80, 1))
    true = np.full((80, 1), 1000)
    names = tuple(map(str, range(80)))
    better = ImageCounts(names, (None,) * 80, right + 20, true, true)
    worse = ImageCounts(names, (None,) * 80, right, true, true)
    draws = Draws(names, None, 1000)
    first, second = (draws.scores(counts, "pixel_accuracy")[None] for counts in (better, worse))
    assert interval(0.0, first[0]).low < interval(0.0, second[0]).high  # the intervals overlap
    found = difference(0.02, first, second, draws)
    assert found.low == pytest.approx(0.02) and found.high == pytest.approx(0.02)


def test_a_difference_between_seeds_of_one_row_is_no_difference_between_rows() -> None:
    counts = counts_of(tally_of(40, 2, 2))
    draws = Draws(counts.names, None, 1000)
    same = draws.scores(counts, "miou")
    first, second = np.stack([same, same + 0.05]), np.stack([same + 0.01, same + 0.03])
    found = difference(0.005, first, second, draws)
    assert found.low < 0 < found.high


def test_a_class_that_no_drawn_image_holds_is_left_out_as_in_the_metrics() -> None:
    right = np.array([[5, 0], [5, 3]])
    counts = ImageCounts(("a", "b"), (None, None), right, right, right)
    draws = Draws(counts.names, None, 100)
    assert np.nanmax(draws.scores(counts, "miou")) == pytest.approx(1.0)
    assert set(SCORES) >= {"miou", "dice"}
