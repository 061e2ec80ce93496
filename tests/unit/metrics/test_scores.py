"""Scores: against loops, against torchmetrics, and the policy on absent classes."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segtune.errors import UnknownNameError
from segtune.metrics import METRICS
from segtune.metrics.miou_per_image import image_scores
from segtune.metrics.per_class import per_class
from segtune.metrics.scores import compute_scores
from segtune.metrics.tally import Tally

IGNORE = 255


def tally_of(*samples, num_classes):
    tally = Tally(num_classes, IGNORE)
    for number, (prediction, mask) in enumerate(samples):
        tally.update(np.asarray(prediction), np.asarray(mask), str(number))
    return tally


def random_samples(seed, num_classes, count=6, used=None):
    rng = np.random.default_rng(seed)
    result = []
    for _ in range(count):
        shape = tuple(rng.integers(3, 12, size=2))
        mask = rng.integers(used or num_classes, size=shape)
        prediction = np.where(rng.random(shape) < 0.5, mask, rng.integers(used or num_classes, size=shape))
        mask[rng.random(shape) < 0.2] = IGNORE
        result.append((prediction, mask))
    return result


def slow_scores(samples, num_classes):
    """Every score from plain counts, class by class."""
    pairs = [
        (int(p), int(t))
        for prediction, mask in samples
        for p, t in zip(prediction.flat, mask.flat, strict=True)
        if t != IGNORE
    ]
    iou, dice, precision, recall = {}, {}, {}, {}
    for c in range(num_classes):
        right = sum(p == t == c for p, t in pairs)
        false = sum(p == c != t for p, t in pairs)
        missed = sum(t == c != p for p, t in pairs)
        if right + false + missed:
            iou[c] = right / (right + false + missed)
            dice[c] = 2 * right / (2 * right + false + missed)
            precision[c] = right / (right + false) if right + false else 0
        if right + missed:
            recall[c] = right / (right + missed)
    mean = {
        name: sum(of_class.values()) / len(of_class)
        for name, of_class in {"miou": iou, "dice": dice, "precision": precision, "recall": recall}.items()
    }
    mean["mean_accuracy"] = mean["recall"]
    mean["pixel_accuracy"] = sum(p == t for p, t in pairs) / len(pairs)
    if len(samples) > 1:
        mean["miou_per_image"] = sum(slow_scores([s], num_classes)["miou"] for s in samples) / len(samples)
    error = {}
    for c in range(num_classes):
        of_class = [p for p, t in pairs if t == c]
        of_rest = [p for p, t in pairs if t != c]
        if of_class and of_rest:
            missed, false = sum(p != c for p in of_class), sum(p == c for p in of_rest)
            error[c] = (missed / len(of_class) + false / len(of_rest)) / 2
    mean["mean_ber"] = sum(error.values()) / len(error)
    if num_classes == 2:
        mean |= {"foreground_iou": iou[1], "foreground_dice": dice[1], "ber": error[1]}
        if len(samples) > 1:
            single = [slow_scores([s], 2) for s in samples]
            ious, dices = ([s[f"foreground_{name}"] for s in single] for name in ("iou", "dice"))
            mean["foreground_iou_per_image"] = sum(ious) / len(ious)
            mean["foreground_dice_per_image"] = sum(dices) / len(dices)
            mean["thresholded_jaccard"] = sum(iou for iou in ious if iou >= 0.65) / len(ious)
    return mean


FOR_TWO = {name for name in METRICS if name.startswith("foreground")} | {"ber", "thresholded_jaccard"}


@pytest.mark.parametrize(("num_classes", "used"), [(2, None), (5, None), (7, 4)])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_score_against_loops(num_classes, used, seed):
    samples = random_samples(seed, num_classes, used=used)
    scores = compute_scores(tally_of(*samples, num_classes=num_classes))
    assert scores == pytest.approx(slow_scores(samples, num_classes), rel=1e-12)
    assert set(scores) == set(METRICS) - (FOR_TWO if num_classes > 2 else set())


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("num_classes", "used"), [(2, None), (5, None), (7, 4)])
def test_agrees_with_torchmetrics(num_classes, used):
    """Also where classes are absent from masks and predictions alike."""
    theirs = pytest.importorskip("torchmetrics.functional.classification")
    samples = random_samples(3, num_classes, used=used)
    flat = [torch.cat([torch.from_numpy(s[i]).flatten() for s in samples]) for i in (0, 1)]
    options = {"num_classes": num_classes, "ignore_index": IGNORE}
    expected = {
        "miou": theirs.multiclass_jaccard_index(*flat, average="macro", **options),
        "dice": theirs.multiclass_f1_score(*flat, average="macro", **options),
        "precision": theirs.multiclass_precision(*flat, average="macro", **options),
        "recall": theirs.multiclass_recall(*flat, average="macro", **options),
        "mean_accuracy": theirs.multiclass_accuracy(*flat, average="macro", **options),
        "pixel_accuracy": theirs.multiclass_accuracy(*flat, average="micro", **options),
    }
    scores = compute_scores(tally_of(*samples, num_classes=num_classes), expected)
    assert scores == pytest.approx({name: value.item() for name, value in expected.items()}, rel=1e-5)


# --- the policy on absent classes ----------------------------------------------------------------


def test_class_absent_from_masks_and_predictions_is_left_out():
    tally = tally_of(([[0, 0, 1, 1]], [[0, 0, 1, 0]]), num_classes=3)
    of_classes = per_class(tally)
    assert all(values[2] is None for values in of_classes.values())
    scores = compute_scores(tally)
    assert scores["miou"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert scores["miou_per_image"] == scores["miou"]


def test_class_predicted_but_in_no_mask_counts_as_zero_but_not_for_recall():
    tally = tally_of(([[0, 0, 0, 2]], [[0, 0, 0, 0]]), num_classes=3)
    assert per_class(tally) == {
        "iou": [0.75, None, 0.0],
        "dice": [pytest.approx(6 / 7), None, 0.0],
        "precision": [1.0, None, 0.0],
        "recall": [0.75, None, None],
    }
    scores = compute_scores(tally)
    assert scores["miou"] == scores["miou_per_image"] == 0.375
    assert scores["precision"] == 0.5
    assert scores["recall"] == scores["mean_accuracy"] == 0.75


def test_class_never_predicted_counts_as_zero_for_precision_too():
    tally = tally_of(([[0, 0, 0, 0]], [[0, 0, 0, 1]]), num_classes=2)
    assert per_class(tally)["precision"] == [0.75, 0.0]
    assert per_class(tally)["recall"] == [1.0, 0.0]
    assert compute_scores(tally)["foreground_dice"] == 0


def test_class_absent_from_one_image_still_counts_in_the_set():
    samples = ([[0, 1]], [[0, 1]]), ([[0, 1]], [[0, 0]])
    scores = compute_scores(tally_of(*samples, num_classes=2))
    assert scores["miou"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert scores["miou_per_image"] == pytest.approx((1 + (1 / 2 + 0) / 2) / 2)


def test_image_that_is_all_ignored_is_left_out_of_the_mean_over_images():
    samples = ([[0, 1]], [[0, 1]]), ([[0, 1]], [[IGNORE, IGNORE]])
    tally = tally_of(*samples, num_classes=2)
    assert compute_scores(tally)["miou_per_image"] == 1
    assert image_scores(tally) == [1, pytest.approx(math.nan, nan_ok=True)]


def test_nothing_counted_gives_no_score_and_no_warning():
    tally = Tally(2, IGNORE)
    assert compute_scores(tally) == {}
    assert all(math.isnan(score) for score in compute_scores(tally, METRICS).values())
    assert json.dumps(per_class(tally), allow_nan=False)


def test_foreground_scores_are_for_two_classes():
    tally = tally_of(([[0, 1, 2]], [[0, 1, 2]]), num_classes=3)
    assert math.isnan(compute_scores(tally, ["foreground_iou"])["foreground_iou"])


def test_unknown_metric_suggests_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'miou'"):
        compute_scores(Tally(2, IGNORE), ["mio"])


def test_thresholded_jaccard_counts_poor_images_as_zero():
    samples = ([[1, 1, 0, 0]], [[1, 1, 1, 0]]), ([[1, 0, 0, 0]], [[1, 1, 0, 0]]), ([[0, 0]], [[0, 0]])
    scores = compute_scores(tally_of(*samples, num_classes=2))
    assert scores["foreground_iou_per_image"] == pytest.approx((2 / 3 + 1 / 2) / 2)  # the third has none
    assert scores["thresholded_jaccard"] == pytest.approx((2 / 3 + 0) / 2)


def test_error_rate_of_a_class_without_a_rest_or_in_no_mask_is_left_out():
    tally = tally_of(([[0, 0, 1, 2]], [[0, 0, 0, 1]]), num_classes=3)
    scores = compute_scores(tally)
    assert scores["mean_ber"] == pytest.approx(((1 / 3 + 0) / 2 + (1 + 1 / 3) / 2) / 2)
    assert "mean_ber" not in compute_scores(tally_of(([[0, 1]], [[0, 0]]), num_classes=2))


# --- what scores may not depend on ----------------------------------------------------------------


def test_scores_do_not_depend_on_the_order_of_images_to_the_last_bit():
    samples = random_samples(4, 4, count=4)
    results = [compute_scores(tally_of(*order, num_classes=4)) for order in itertools.permutations(samples)]
    assert all(result == results[0] for result in results)


def test_scores_do_not_depend_on_how_the_set_is_cut_into_batches():
    samples = random_samples(5, 4, count=6)
    whole = compute_scores(tally_of(*samples, num_classes=4))
    for size in (1, 2, 4):
        tally = Tally(4, IGNORE)
        for first in range(0, len(samples), size):
            tally.merge(tally_of(*samples[first : first + size], num_classes=4))
        assert compute_scores(tally) == whole


@given(st.lists(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0, 1, 2, 3, IGNORE])), min_size=1)))
def test_every_score_is_a_fraction_and_dice_follows_from_iou(cases):
    samples = [tuple(np.array(case).T.reshape(2, 1, -1)) for case in cases]
    tally = tally_of(*samples, num_classes=4)
    assert all(0 <= score <= 1 for score in compute_scores(tally).values())
    of_classes = per_class(tally)
    for iou, dice in zip(of_classes["iou"], of_classes["dice"], strict=True):
        assert (iou is None) == (dice is None)
        assert iou is None or dice == pytest.approx(2 * iou / (1 + iou))


def test_every_metric_says_what_it_is():
    for name in METRICS:
        assert METRICS.summary(name)
        assert METRICS.load(name).__name__ == name
