"""Properties that every registered loss of logits has; a new loss inherits them by being in the registry."""

from __future__ import annotations

import pytest
import torch

from segtune.errors import SettingsError
from segtune.losses import LOSSES

IGNORE = 255
OF_LOGITS = [name for name in LOSSES if not getattr(LOSSES.load(name), "takes_proposals", False)]
"""Those that take proposals are tested in test_set_matching.py."""
WEIGHTED = [name for name in LOSSES if "weights" in LOSSES.settings(name).model_fields]


def build(name, num_classes, ignore_index=IGNORE, **settings):
    return LOSSES.load(name)(LOSSES.settings(name)(**settings), num_classes, ignore_index)


def sample(num_classes, seed=0, shape=(2, 9, 7)):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(shape[0], num_classes, *shape[1:], generator=generator)
    masks = torch.randint(num_classes, shape, generator=generator)
    masks[torch.rand(shape, generator=generator) < 0.3] = IGNORE
    return logits.requires_grad_(), masks


@pytest.fixture(params=OF_LOGITS)
def name(request):
    return request.param


@pytest.mark.parametrize("num_classes", [2, 5])
def test_ignored_pixels_give_exactly_zero_gradient_and_all_others_some(name, num_classes):
    logits, masks = sample(num_classes)
    build(name, num_classes)(logits, masks).backward()
    ignored = (masks == IGNORE).unsqueeze(1).expand_as(logits)
    assert ignored.any()
    assert (logits.grad[ignored] == 0).all()
    assert logits.grad[~ignored].abs().sum() > 0


@pytest.mark.parametrize("num_classes", [2, 5])
def test_ignored_pixels_do_not_move_the_value(name, num_classes):
    logits, masks = sample(num_classes)
    loss = build(name, num_classes)
    other = torch.where((masks == IGNORE).unsqueeze(1), -7 * logits.flip(0), logits)
    assert torch.equal(loss(logits, masks), loss(other, masks))


def test_all_ignored_is_zero_with_zero_gradient(name):
    logits, masks = sample(3)
    value = build(name, 3)(logits, torch.full_like(masks, IGNORE))
    value.backward()
    assert value.item() == 0
    assert (logits.grad == 0).all()


def test_a_class_can_be_the_ignored_value(name):
    logits, masks = sample(3)
    masks = torch.where(masks == IGNORE, 0, masks)
    build(name, 3, ignore_index=0)(logits, masks).backward()
    ignored = (masks == 0).unsqueeze(1).expand_as(logits)
    assert (logits.grad[ignored] == 0).all()
    assert logits.grad.abs().sum() > 0


def test_scalar_float32_whatever_the_precision_of_the_logits(name):
    logits, masks = sample(4)
    loss = build(name, 4)
    half = logits.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(half, masks)
    value.backward()
    assert value.dtype == torch.float32
    assert value.shape == ()
    assert torch.equal(value, loss(half.float(), masks))
    assert torch.isfinite(half.grad).all()


def test_extreme_logits_stay_finite(name):
    _, masks = sample(3)
    for scale in (1e4, -1e4):
        one_hot = torch.nn.functional.one_hot(masks % IGNORE % 3, 3).movedim(3, 1)
        logits = (scale * one_hot).requires_grad_()
        value = build(name, 3)(logits, masks)
        value.backward()
        assert torch.isfinite(value)
        assert torch.isfinite(logits.grad).all()


def test_memory_layout_does_not_matter(name):
    logits, masks = sample(4)
    loss = build(name, 4)
    channels_last = logits.detach().contiguous(memory_format=torch.channels_last)
    wide = torch.zeros(2, 4, 9, 14)
    wide[..., ::2] = logits.detach()
    expected = loss(logits, masks)
    torch.testing.assert_close(loss(channels_last, masks), expected)
    torch.testing.assert_close(loss(wide[..., ::2], masks.mT.contiguous().mT), expected)


def test_right_is_better_than_wrong(name):
    _, masks = sample(3)
    right = 8.0 * torch.nn.functional.one_hot(masks % IGNORE % 3, 3).movedim(3, 1)
    loss = build(name, 3)
    assert loss(right, masks) < 0.05 < loss(torch.zeros_like(right), masks) < loss(-right, masks)


def test_has_nothing_to_train_or_to_save(name):
    loss = build(name, 3)
    assert not list(loss.parameters())
    assert not loss.state_dict()


@pytest.mark.parametrize("name", WEIGHTED)
@pytest.mark.parametrize(
    ("weights", "message"),
    [((1, 2), "loss.weights: 2 values for 3 classes"), ((0, 0, 0), "every value is 0")],
)
def test_weights_that_do_not_fit_are_refused(name, weights, message):
    with pytest.raises(SettingsError, match=message):
        build(name, 3, weights=weights)


@pytest.mark.parametrize("name", WEIGHTED)
def test_a_batch_of_a_class_with_weight_zero_is_finite(name):
    logits, masks = sample(2)
    value = build(name, 2, weights=(0, 1))(logits, torch.zeros_like(masks))
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(logits.grad).all()
