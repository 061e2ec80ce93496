"""Values of the losses against references that are slow and plain, and against other libraries."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from segtune.losses import LOSSES

IGNORE = 255
OF_LOGITS = [name for name in LOSSES if not getattr(LOSSES.load(name), "takes_proposals", False)]
SIZES = [(2, 0), (2, 1), (5, 2), (5, 3)]


def build(name, num_classes, **settings):
    return LOSSES.load(name)(LOSSES.settings(name)(**settings), num_classes, IGNORE)


def sample(num_classes, seed, shape=(2, 5, 4), drop=None):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(shape[0], num_classes, *shape[1:], generator=generator)
    masks = torch.randint(num_classes, shape, generator=generator)
    if drop is not None:
        masks[masks == drop] = (drop + 1) % num_classes
    masks[torch.rand(shape, generator=generator) < 0.25] = IGNORE
    return logits, masks


def pixels(logits, masks):
    """(probabilities of the classes, true class) of each pixel that counts, in float64."""
    result = []
    for image, row, column in np.ndindex(*masks.shape):
        true = int(masks[image, row, column])
        if true != IGNORE:
            values = [math.exp(float(v)) for v in logits[image, :, row, column]]
            result.append(([v / sum(values) for v in values], true))
    return result


def slow_cross_entropy(logits, masks, weights, smoothing):
    num_classes = logits.shape[1]
    total = weight = 0.0
    for p, true in pixels(logits, masks):
        for c in range(num_classes):
            target = smoothing / num_classes + (1 - smoothing) * (c == true)
            total -= target * weights[c] * math.log(p[c])
        weight += weights[true]
    return total / weight


def slow_focal(logits, masks, weights, gamma):
    total = weight = 0.0
    for p, true in pixels(logits, masks):
        total -= weights[true] * (1 - p[true]) ** gamma * math.log(p[true])
        weight += weights[true]
    return total / weight


def slow_dice(logits, masks, smooth):
    losses = []
    known = pixels(logits, masks)
    for c in range(logits.shape[1]):
        size = sum(true == c for _, true in known)
        if size:
            overlap = sum(p[c] for p, true in known if true == c)
            predicted = sum(p[c] for p, _ in known)
            losses.append(1 - (2 * overlap + smooth) / (predicted + size + smooth))
    return sum(losses) / len(losses)


def jaccard_loss(wrong, foreground):
    """Equation 5 of the paper: |wrong| / |foreground or wrong| for a set of wrong pixels."""
    return len(wrong) / len(foreground | wrong)


def slow_lovasz(logits, masks):
    """Definition 1 of the paper: the Jaccard loss of growing sets of pixels, weighted by the errors."""
    losses = []
    known = pixels(logits, masks)
    for c in range(logits.shape[1]):
        foreground = {i for i, (_, true) in enumerate(known) if true == c}
        if foreground:
            errors = [1 - p[c] if true == c else p[c] for p, true in known]
            order = sorted(range(len(known)), key=lambda i: -errors[i])
            loss = 0.0
            for k, pixel in enumerate(order):
                with_it = jaccard_loss(set(order[: k + 1]), foreground)
                loss += errors[pixel] * (with_it - jaccard_loss(set(order[:k]), foreground))
            losses.append(loss)
    return sum(losses) / len(losses)


def foregrounds(num_classes):
    return [1] if num_classes == 2 else range(num_classes)


def slow_structure(logits, masks, edge_factor):
    """Pixel by pixel, the window by counting."""
    chances = logits.double().softmax(1)
    losses = []
    for image, k in itertools.product(range(len(masks)), foregrounds(logits.shape[1])):
        mask = masks[image]
        height, width = mask.shape
        total = bce = overlap = union = 0.0
        for y, x in np.ndindex(height, width):
            if mask[y, x] == IGNORE:
                continue
            foreground = known = 0
            for v, u in itertools.product(range(y - 15, y + 16), range(x - 15, x + 16)):
                if not (0 <= v < height and 0 <= u < width):
                    known += 1
                elif mask[v, u] != IGNORE:
                    known += 1
                    foreground += int(mask[v, u] == k)
            true, p = int(mask[y, x] == k), float(chances[image, k, y, x])
            weight = 1 + edge_factor * abs(foreground / known - true)
            total += weight
            bce -= weight * math.log(p if true else 1 - p)
            overlap += weight * p * true
            union += weight * (p + true - p * true)
        losses.append(bce / total + 1 - (overlap + 1) / (union + 1))
    return sum(losses) / len(losses)


def slow_balanced_bce(logits, masks):
    known = pixels(logits, masks)
    losses = []
    for k in foregrounds(logits.shape[1]):
        positive = sum(true == k for _, true in known)
        negative = len(known) - positive
        losses.append(
            sum(
                -negative / len(known) * math.log(p[k])
                if true == k
                else -positive / len(known) * math.log(1 - p[k])
                for p, true in known
            )
            / len(known)
        )
    return sum(losses) / len(losses)


def slow_symmetric(logits, masks, weights, alpha, beta, log_of_zero):
    total = weight = 0.0
    for p, true in pixels(logits, masks):
        reverse = -sum(p[c] * (0 if c == true else log_of_zero) for c in range(len(p)))
        total += weights[true] * (-alpha * math.log(p[true]) + beta * reverse)
        weight += weights[true]
    return total / weight


def slow_bootstrapped(logits, masks, weights, belief, beta):
    total = weight = 0.0
    for p, true in pixels(logits, masks):
        for c, chance in enumerate(p):
            believed = chance if belief == "soft" else float(chance == max(p))
            total -= weights[true] * (beta * (c == true) + (1 - beta) * believed) * math.log(chance)
        weight += weights[true]
    return total / weight


def weights_of(num_classes):
    return tuple(0.5 + c for c in range(num_classes))


@pytest.mark.parametrize(("num_classes", "seed"), SIZES)
@pytest.mark.parametrize(("weighted", "smoothing"), [(False, 0.0), (True, 0.0), (False, 0.2), (True, 0.2)])
def test_cross_entropy(num_classes, seed, weighted, smoothing):
    logits, masks = sample(num_classes, seed)
    weights = weights_of(num_classes) if weighted else None
    value = build("cross_entropy", num_classes, weights=weights, label_smoothing=smoothing)(logits, masks)
    slow = slow_cross_entropy(logits, masks, weights or [1] * num_classes, smoothing)
    assert value.item() == pytest.approx(slow, rel=1e-5)
    library = F.cross_entropy(
        logits,
        masks,
        weight=torch.tensor(weights) if weights else None,
        ignore_index=IGNORE,
        label_smoothing=smoothing,
    )
    torch.testing.assert_close(value, library)


@pytest.mark.parametrize(("num_classes", "seed"), SIZES)
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 3.5])
@pytest.mark.parametrize("weighted", [False, True])
def test_focal(num_classes, seed, gamma, weighted):
    logits, masks = sample(num_classes, seed)
    weights = weights_of(num_classes) if weighted else None
    value = build("focal", num_classes, gamma=gamma, weights=weights)(logits, masks)
    slow = slow_focal(logits, masks, weights or [1] * num_classes, gamma)
    assert value.item() == pytest.approx(slow, rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 2.0])
def test_focal_has_a_finite_gradient_at_certainty(gamma):
    logits = torch.tensor([[[[200.0]], [[-200.0]]]], requires_grad=True)
    for true in (0, 1):
        build("focal", 2, gamma=gamma)(logits, torch.full((1, 1, 1), true)).backward()
        assert torch.isfinite(logits.grad).all()


def test_focal_without_focus_is_cross_entropy():
    logits, masks = sample(4, 7)
    weights = weights_of(4)
    torch.testing.assert_close(
        build("focal", 4, gamma=0, weights=weights)(logits, masks),
        build("cross_entropy", 4, weights=weights)(logits, masks),
    )


@pytest.mark.parametrize(("num_classes", "seed"), SIZES)
@pytest.mark.parametrize("smooth", [0.0, 1.0])
@pytest.mark.parametrize("drop", [None, 1])
def test_dice(num_classes, seed, smooth, drop):
    logits, masks = sample(num_classes, seed, drop=drop)
    value = build("dice", num_classes, smooth=smooth)(logits, masks)
    assert value.item() == pytest.approx(slow_dice(logits, masks, smooth), rel=1e-5)


@pytest.mark.parametrize(("num_classes", "seed"), SIZES)
@pytest.mark.parametrize("drop", [None, 1])
def test_lovasz(num_classes, seed, drop):
    logits, masks = sample(num_classes, seed, drop=drop)
    value = build("lovasz", num_classes)(logits, masks)
    assert value.item() == pytest.approx(slow_lovasz(logits, masks), rel=1e-5)


def test_lovasz_of_hard_predictions_is_one_minus_the_mean_iou():
    logits, masks = sample(3, 5, shape=(1, 20, 20))
    predicted = logits.argmax(1)
    counts = masks != IGNORE
    ious = [
        ((predicted == c) & (masks == c)).sum() / (((predicted == c) | (masks == c)) & counts).sum()
        for c in range(3)
    ]
    hard = 1e4 * F.one_hot(predicted, 3).movedim(3, 1)
    assert build("lovasz", 3)(hard, masks).item() == pytest.approx(1 - sum(ious).item() / 3, rel=1e-5)


def test_lovasz_gradient_keeps_its_digits_on_many_pixels():
    """Each pixel's share of the gradient is near 1 / P; differences of a loss near 1 would lose it."""
    probabilities = torch.linspace(0.9, 0.1, 200_001)
    margin = torch.logit(probabilities)
    logits = torch.stack([-margin, torch.zeros_like(margin)]).view(1, 2, 1, -1).requires_grad_()
    masks = torch.ones(1, 1, logits.shape[-1], dtype=torch.int64)  # every pixel missed by its own error
    build("lovasz", 2)(logits, masks).backward()
    slope = probabilities.double() * (1 - probabilities.double()) / len(probabilities)
    torch.testing.assert_close(logits.grad[0, 0, 0].double().abs(), slope, rtol=1e-3, atol=0)


@pytest.mark.parametrize(("num_classes", "seed"), SIZES)
@pytest.mark.parametrize("edge_factor", [0.0, 5.0])
def test_structure(num_classes, seed, edge_factor):
    logits, masks = sample(num_classes, seed, shape=(2, 6, 7))
    value = build("structure", num_classes, edge_factor=edge_factor)(logits, masks)
    assert value.item() == pytest.approx(slow_structure(logits, masks, edge_factor), rel=1e-5)


def test_structure_is_that_of_one_map_and_its_sigmoid():
    """The published form: one logit, the mask's mean of a window with zeros around the image."""
    generator = torch.Generator().manual_seed(0)
    logit = torch.randn(2, 1, 40, 50, generator=generator)
    mask = (torch.rand(2, 1, 40, 50, generator=generator) < 0.3).float()
    weight = 1 + 5 * (F.avg_pool2d(mask, 31, stride=1, padding=15) - mask).abs()
    bce = (weight * F.binary_cross_entropy_with_logits(logit, mask, reduction="none")).sum((2, 3))
    overlap = (weight * logit.sigmoid() * mask).sum((2, 3))
    union = (weight * (logit.sigmoid() + mask)).sum((2, 3))
    expected = (bce / weight.sum((2, 3)) + 1 - (overlap + 1) / (union - overlap + 1)).mean()
    both = torch.cat([torch.zeros_like(logit), logit], dim=1)
    torch.testing.assert_close(build("structure", 2)(both, mask[:, 0].long()), expected)


def test_structure_of_an_image_that_does_not_count_is_left_out():
    logits, masks = sample(2, 3)
    masks[1] = IGNORE
    loss = build("structure", 2)
    torch.testing.assert_close(loss(logits, masks), loss(logits[:1], masks[:1]))


@pytest.mark.parametrize(("num_classes", "seed"), SIZES)
@pytest.mark.parametrize("drop", [None, 1])
def test_balanced_bce(num_classes, seed, drop):
    logits, masks = sample(num_classes, seed, drop=drop)
    value = build("balanced_bce", num_classes)(logits, masks)
    assert value.item() == pytest.approx(slow_balanced_bce(logits, masks), rel=1e-5)


@pytest.mark.parametrize(("num_classes", "seed"), SIZES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("settings", [(1.0, 1.0, -4.0), (0.1, 2.0, -6.0), (0.0, 1.0, -1.0)])
def test_symmetric_cross_entropy(num_classes, seed, weighted, settings):
    logits, masks = sample(num_classes, seed)
    weights = weights_of(num_classes) if weighted else None
    named = dict(zip(("alpha", "beta", "log_of_zero"), settings, strict=True))
    value = build("symmetric_cross_entropy", num_classes, weights=weights, **named)(logits, masks)
    slow = slow_symmetric(logits, masks, weights or [1] * num_classes, *settings)
    assert value.item() == pytest.approx(slow, rel=1e-5)


@pytest.mark.parametrize(("num_classes", "seed"), SIZES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("belief", "beta", "share"), [("soft", None, 0.95), ("hard", None, 0.8), ("hard", 0.3, 0.3)]
)
def test_bootstrapped_cross_entropy(num_classes, seed, weighted, belief, beta, share):
    logits, masks = sample(num_classes, seed)
    weights = weights_of(num_classes) if weighted else None
    name = "bootstrapped_cross_entropy"
    value = build(name, num_classes, weights=weights, belief=belief, beta=beta)(logits, masks)
    slow = slow_bootstrapped(logits, masks, weights or [1] * num_classes, belief, share)
    assert value.item() == pytest.approx(slow, rel=1e-5)


@pytest.mark.parametrize("name", ["symmetric_cross_entropy", "bootstrapped_cross_entropy"])
def test_losses_for_noisy_labels_hold_the_cross_entropy_as_a_special_case(name):
    logits, masks = sample(4, 7)
    settings = {"beta": 1.0} if name.startswith("boot") else {"beta": 1e-9}
    expected = build("cross_entropy", 4, weights=weights_of(4))(logits, masks)
    torch.testing.assert_close(build(name, 4, weights=weights_of(4), **settings)(logits, masks), expected)


@pytest.mark.parametrize("belief", ["soft", "hard"])
def test_a_label_that_the_model_is_sure_is_wrong_pulls_less(belief):
    logits = torch.tensor([[[[8.0]], [[0.0]]]], requires_grad=True)
    masks = torch.ones(1, 1, 1, dtype=torch.int64)
    slopes = []
    for loss in (build("bootstrapped_cross_entropy", 2, belief=belief), build("cross_entropy", 2)):
        logits.grad = None
        loss(logits, masks).backward()
        slopes.append(logits.grad.abs().sum().item())
    assert 0 < slopes[0] < slopes[1]


def test_dice_cross_entropy_is_the_weighted_sum():
    logits, masks = sample(4, 8)
    weights = weights_of(4)
    value = build(
        "dice_cross_entropy",
        4,
        dice_factor=0.7,
        cross_entropy_factor=2.0,
        weights=weights,
        label_smoothing=0.1,
        smooth=0.5,
    )(logits, masks)
    cross_entropy = build("cross_entropy", 4, weights=weights, label_smoothing=0.1)(logits, masks)
    torch.testing.assert_close(value, 0.7 * build("dice", 4, smooth=0.5)(logits, masks) + 2 * cross_entropy)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("num_classes", "seed"), SIZES)
def test_agrees_with_segmentation_models_pytorch(num_classes, seed):
    """Where definitions agree: Dice with every class present, softmax focal, Lovász-Softmax."""
    losses = pytest.importorskip("segmentation_models_pytorch.losses")
    functional = pytest.importorskip("segmentation_models_pytorch.losses._functional")
    logits, masks = sample(num_classes, seed, shape=(2, 8, 8))
    assert set(masks.unique().tolist()) == {*range(num_classes), IGNORE}
    for smooth in (0.0, 1.0):  # theirs is added to half of numerator and denominator
        theirs = losses.DiceLoss("multiclass", smooth=smooth / 2, ignore_index=IGNORE)(logits, masks)
        torch.testing.assert_close(build("dice", num_classes, smooth=smooth)(logits, masks), theirs)
    theirs = losses.LovaszLoss("multiclass", ignore_index=IGNORE)(logits, masks)
    torch.testing.assert_close(build("lovasz", num_classes)(logits, masks), theirs)
    known = torch.where(masks == IGNORE, 0, masks)
    for gamma in (0.0, 2.0):
        theirs = functional.softmax_focal_loss_with_logits(logits, known, gamma=gamma)
        torch.testing.assert_close(build("focal", num_classes, gamma=gamma)(logits, known), theirs)


@pytest.mark.parametrize("name", OF_LOGITS)
def test_gradient_is_the_slope_of_the_value(name):
    logits, masks = sample(3, 11, shape=(1, 3, 4))
    loss = build(name, 3)
    logits.requires_grad_()
    loss(logits, masks).backward()
    step = 1e-2
    for c, row in itertools.product(range(3), range(3)):
        shift = torch.zeros_like(logits)
        shift[0, c, row, 1] = step
        with torch.no_grad():
            slope = (loss(logits + shift, masks) - loss(logits - shift, masks)).item() / (2 * step)
        assert logits.grad[0, c, row, 1].item() == pytest.approx(slope, abs=3e-4)
