"""Saliency scores against plain loops, and against the package pysodmetrics where it is installed."""

from __future__ import annotations

import csv
import itertools
import math

import numpy as np
import pytest
from PIL import Image

from segtune.metrics import SALIENCY
from segtune.metrics.saliency import SaliencyTally, saliency_scores

IGNORE = 255


def blob(seed, size=(24, 30)):
    """A rectangle, whose nearest pixel is always one, and a map that resembles it."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(size, np.uint8)
    top, left = rng.integers(1, 8), rng.integers(1, 10)
    mask[top : top + rng.integers(4, 12), left : left + rng.integers(4, 15)] = 1
    probability = (0.6 * mask + rng.normal(0.2, 0.2, size)).clip(0, 1).astype(np.float32)
    return probability, mask


def tally_of(*samples):
    tally = SaliencyTally(IGNORE)
    for probability, mask in samples:
        tally.update(probability, mask)
    return tally


# --- plain references -----------------------------------------------------------------------------


def slow_e(cut, truth):
    """The published form: a matrix of deviations from the mean for each of both."""
    if not truth.any():
        return (1 - cut).sum() / (truth.size - 1)
    if truth.all():
        return cut.sum() / (truth.size - 1)
    x, y = cut - cut.mean(), truth - truth.mean()
    alignment = 2 * x * y / (x**2 + y**2)
    return ((alignment + 1) ** 2 / 4).sum() / (truth.size - 1)


def slow_ssim(x, y):
    x, y = x.ravel().tolist(), y.ravel().tolist()
    n = len(x)
    mean_x, mean_y = sum(x) / n, sum(y) / n
    var_x = sum((v - mean_x) ** 2 for v in x) / max(1, n - 1)
    var_y = sum((v - mean_y) ** 2 for v in y) / max(1, n - 1)
    cov = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / max(1, n - 1)
    above, below = 4 * mean_x * mean_y * cov, (mean_x**2 + mean_y**2) * (var_x + var_y)
    return above / below if above else float(below == 0)


def slow_s(p, truth):
    def part(values):
        m = sum(values) / len(values)
        sd = math.sqrt(sum((v - m) ** 2 for v in values) / max(1, len(values) - 1))
        return 2 * m / (m * m + 1 + sd)

    inside = [p[at] for at in np.ndindex(p.shape) if truth[at]]
    outside = [1 - p[at] for at in np.ndindex(p.shape) if not truth[at]]
    objects = (part(inside) * len(inside) + part(outside) * len(outside)) / p.size
    places = [at for at in np.ndindex(p.shape) if truth[at]]
    row, column = (round(sum(at[axis] for at in places) / len(places)) + 1 for axis in (0, 1))
    regions = 0.0
    for v, h in itertools.product((slice(0, row), slice(row, None)), (slice(0, column), slice(column, None))):
        if p[v, h].size:
            regions += p[v, h].size * slow_ssim(p[v, h], truth[v, h].astype(float)) / p.size
    return max(0, 0.5 * objects + 0.5 * regions)


def slow_weighted_f(p, truth):
    height, width = p.shape
    places = [at for at in np.ndindex(p.shape) if truth[at]]
    nearest = {
        at: min(places, key=lambda o, at=at: (o[0] - at[0]) ** 2 + (o[1] - at[1]) ** 2)
        for at in np.ndindex(p.shape)
    }
    error = {at: abs(p[at] - truth[at]) for at in nearest}
    window = {(i, j): math.exp(-(i * i + j * j) / 50) for i in range(-3, 4) for j in range(-3, 4)}
    true = false = 0.0
    for at, place in nearest.items():
        if truth[at]:
            around = sum(
                weight * error[nearest[at[0] + i, at[1] + j]]
                for (i, j), weight in window.items()
                if 0 <= at[0] + i < height and 0 <= at[1] + j < width
            ) / sum(window.values())
            true += min(error[at], around)
        else:
            far = math.dist(at, place)
            false += error[at] * (2 - math.exp(math.log(0.5) / 5 * far))
    found = len(places) - true
    recall, precision = 1 - true / len(places), found / (found + false)
    return 2 * recall * precision / (recall + precision)


@pytest.mark.parametrize("seed", range(3))
def test_every_score_against_plain_references(seed):
    samples = [blob(10 * seed + n) for n in range(3)]
    maps = [(p.astype(np.float64), mask == 1) for p, mask in samples]
    levels = [(np.floor(p * 255), t) for p, t in maps]
    curve = [np.mean([slow_e(v >= cut, t) for v, t in levels]) for cut in range(255, -1, -1)]
    expected = {
        "s_measure": np.mean([slow_s(p, t) for p, t in maps]),
        "e_measure_max": max(curve),
        "e_measure_mean": np.mean(curve),
        "e_measure_adaptive": np.mean([slow_e(p >= min(1, 2 * p.mean()), t) for p, t in maps]),
        "weighted_f": np.mean([slow_weighted_f(p, t) for p, t in maps]),
        "mean_absolute_error": np.mean([abs(p - t).mean() for p, t in maps]),
    }
    assert saliency_scores(tally_of(*samples)) == pytest.approx(expected, rel=1e-9)


def library_scores(samples):
    library = pytest.importorskip("py_sod_metrics")
    measures = [library.Smeasure(), library.Emeasure(), library.WeightedFmeasure(), library.MAE()]
    for probability, mask in samples:
        for measure in measures:
            measure.step(probability.astype(np.float64), mask == 1, normalize=False)
    s, e, f, error = (measure.get_results() for measure in measures)
    return {
        "s_measure": s["sm"],
        "e_measure_max": e["em"]["curve"].max(),
        "e_measure_mean": e["em"]["curve"].mean(),
        "e_measure_adaptive": e["em"]["adp"],
        "weighted_f": f["wfm"],
        "mean_absolute_error": error["mae"],
    }


@pytest.mark.filterwarnings("default")
def test_agrees_with_pysodmetrics_on_random_maps():
    rng = np.random.default_rng(0)
    samples = [blob(seed, (37, 41)) for seed in range(4)]
    samples += [(rng.random((20, 25)), (rng.random((20, 25)) < 0.3).astype(np.uint8)) for _ in range(3)]
    samples += [(rng.random((9, 8)), np.ones((9, 8), np.uint8)), (np.zeros((9, 8)), blob(1, (9, 8))[1])]
    assert saliency_scores(tally_of(*samples)) == pytest.approx(library_scores(samples), rel=1e-6)


@pytest.mark.filterwarnings("default")
def test_agrees_with_pysodmetrics_on_real_masks(shared_data):
    rng = np.random.default_rng(0)
    folder = shared_data / "cvc612"
    with (folder / "frames.csv").open() as file:
        rows = list(csv.DictReader(file))[::120]
    samples = []
    for row in rows:
        mask = (np.asarray(Image.open(folder / row["mask"]).convert("L")) > 127).astype(np.uint8)
        noise = rng.normal(0, 0.15, mask.shape)
        shifted = np.roll(mask, (7, -5), (0, 1))
        samples.append(((0.7 * shifted + 0.1 + noise).clip(0, 1), mask))
    assert saliency_scores(tally_of(*samples)) == pytest.approx(library_scores(samples), rel=1e-6)


# --- policies ---------------------------------------------------------------------------------------


def test_a_perfect_map_is_perfect():
    _, mask = blob(0)
    scores = saliency_scores(tally_of((mask.astype(float), mask)))
    assert scores.pop("mean_absolute_error") == 0
    assert scores["s_measure"] == pytest.approx(1)
    assert scores["weighted_f"] == pytest.approx(1)
    # as published the sum is divided by one pixel less; the last of 256 thresholds predicts everything
    of_pixels = mask.size / (mask.size - 1)
    assert scores["e_measure_max"] == scores["e_measure_adaptive"] == pytest.approx(of_pixels)
    assert scores["e_measure_mean"] == pytest.approx((255 * of_pixels + of_pixels / 4) / 256)


def test_an_image_without_foreground():
    """The share left empty; weighted F has nothing to recall and leaves the image out."""
    empty = np.zeros((10, 10), np.uint8)
    some = np.zeros((10, 10))
    some[:, :2] = 1
    assert saliency_scores(tally_of((some, empty))) == {
        "s_measure": 0.8,
        "e_measure_max": pytest.approx(80 / 99),
        "e_measure_mean": pytest.approx((255 * 80 + 0) / 99 / 256),
        "e_measure_adaptive": pytest.approx(80 / 99),
        "mean_absolute_error": pytest.approx(0.2),
    }


def test_ignored_pixels_do_not_move_a_score():
    probability, mask = blob(2)
    mask[3:6, 2:9] = IGNORE
    other = np.where(mask == IGNORE, 0.77, probability)
    assert saliency_scores(tally_of((probability, mask))) == saliency_scores(tally_of((other, mask)))


def test_an_image_without_a_pixel_that_counts_is_left_out():
    probability, mask = blob(3)
    tally = tally_of((probability, mask), (probability, np.full_like(mask, IGNORE)))
    assert saliency_scores(tally) == saliency_scores(tally_of((probability, mask)))
    assert saliency_scores(tally_of()) == {}


def test_scores_do_not_depend_on_the_order_of_images_to_the_last_bit():
    samples = [blob(seed) for seed in range(3)]
    results = [saliency_scores(tally_of(*order)) for order in itertools.permutations(samples)]
    assert all(result == results[0] for result in results)


def test_every_score_says_what_it_is():
    for name in SALIENCY:
        assert SALIENCY.summary(name)
        assert SALIENCY.load(name).__name__ == name
