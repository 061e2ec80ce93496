"""Set matching against every possible assignment, tried one after the other."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from segtune.losses import LOSSES
from segtune.losses.set_matching import match
from segtune.types import Proposals

IGNORE = 255


def build(num_classes, ignore_index=IGNORE, **settings):
    name = "set_matching"
    return LOSSES.load(name)(LOSSES.settings(name)(**settings), num_classes, ignore_index)


def sample(num_classes, num_proposals, seed=0, batch=3, size=(8, 12), cell=1):
    generator = torch.Generator().manual_seed(seed)
    proposals = Proposals(
        class_logits=torch.randn(batch, num_proposals, num_classes + 1, generator=generator),
        mask_logits=2 * torch.randn(batch, num_proposals, *(n // cell for n in size), generator=generator),
    )
    masks = torch.randint(num_classes, (batch, *size), generator=generator)
    masks[0][masks[0] == 1] = 0
    masks[torch.rand(masks.shape, generator=generator) < 0.2] = IGNORE
    return proposals, masks


def requires_grad(proposals):
    proposals.class_logits.requires_grad_()
    proposals.mask_logits.requires_grad_()
    return proposals


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def slow_pair(logits, mask, label):
    """BCE and Dice of one mask as that of one class; each pixel sees the logit of its cell."""
    rows, columns = mask.shape[0] // logits.shape[0], mask.shape[1] // logits.shape[1]
    bce = overlap = size = 0.0
    count = 0
    for y, x in itertools.product(*map(range, mask.shape)):
        if mask[y, x] == IGNORE:
            continue
        p = sigmoid(float(logits[y // rows, x // columns]))
        bce -= math.log(p if mask[y, x] == label else 1 - p)
        overlap += p * (mask[y, x] == label).item()
        size += p + (mask[y, x] == label).item()
        count += 1
    cell = rows * columns
    return bce / count, 1 - (2 * overlap / cell + 1) / (size / cell + 1)


def slow_loss(proposals, masks, num_classes, factors, no_object):
    class_factor, mask_factor, dice_factor = factors
    class_total = class_weight = mask_total = dice_total = 0.0
    num_pairs = 0
    for class_logits, mask_logits, mask in zip(
        proposals.class_logits, proposals.mask_logits, masks, strict=True
    ):
        known = sorted(set(mask.flatten().tolist()) - {IGNORE})
        if not known:
            continue
        chances = class_logits.double().softmax(-1)
        pairs = {
            (n, k): slow_pair(mask_logits[n], mask, k)
            for n, k in itertools.product(range(len(mask_logits)), known)
        }

        def cost(assignment, pairs=pairs, chances=chances):
            return sum(
                mask_factor * pairs[n, k][0] + dice_factor * pairs[n, k][1] - class_factor * chances[n, k]
                for n, k in assignment
            )

        numbers = range(len(mask_logits))
        if len(numbers) >= len(known):
            options = [list(zip(p, known, strict=True)) for p in itertools.permutations(numbers, len(known))]
        else:
            options = [
                list(zip(numbers, p, strict=True)) for p in itertools.permutations(known, len(numbers))
            ]
        best = min(options, key=cost)
        label_of = dict(best)
        for n in numbers:
            weight = 1.0 if n in label_of else no_object
            class_total -= weight * math.log(chances[n, label_of.get(n, num_classes)])
            class_weight += weight
        for pair in best:
            mask_total += pairs[pair][0]
            dice_total += pairs[pair][1]
        num_pairs += len(best)
    classes = class_total / class_weight
    return class_factor * classes + (mask_factor * mask_total + dice_factor * dice_total) / num_pairs


@pytest.mark.parametrize(("num_classes", "num_proposals"), [(2, 1), (3, 3), (3, 5), (4, 2)])
@pytest.mark.parametrize("cell", [1, 4])
def test_against_all_permutations(num_classes, num_proposals, cell):
    proposals, masks = sample(num_classes, num_proposals, seed=num_proposals, cell=cell)
    for factors, no_object in (((10, 5, 5), 0.1), ((1, 20, 0.5), 0.7)):
        names = ("class_factor", "mask_factor", "dice_factor")
        loss = build(num_classes, no_object_weight=no_object, **dict(zip(names, factors, strict=True)))
        slow = slow_loss(proposals, masks, num_classes, factors, no_object)
        assert loss(proposals, masks).item() == pytest.approx(slow, rel=1e-5)


def test_the_pairs_are_the_cheapest():
    generator = torch.Generator().manual_seed(0)
    costs = torch.randn(4, 5, 4, generator=generator)
    present = torch.tensor([[1, 1, 1, 1], [0, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]]).bool()
    image, proposal, label = match(costs, present)
    assert image.tolist() == [0] * 4 + [1] * 2 + [3]
    for number in (0, 1, 3):
        known = present[number].nonzero().flatten().tolist()
        totals = [
            sum(costs[number, n, k] for n, k in zip(p, known, strict=True))
            for p in itertools.permutations(range(5), len(known))
        ]
        mine = image == number
        assert torch.isclose(costs[number, proposal[mine], label[mine]].sum(), min(totals))
        assert sorted(label[mine].tolist()) == known


@pytest.mark.parametrize("cell", [1, 4])
def test_ignored_cells_have_a_gradient_of_exactly_zero_and_all_others_some(cell):
    proposals, masks = sample(3, 4, cell=cell)
    masks[:, :4, :4] = IGNORE
    build(3)(requires_grad(proposals), masks).backward()
    ignored = torch.nn.functional.max_pool2d((masks != IGNORE).float(), cell) == 0
    gradient = proposals.mask_logits.grad.abs().sum(dim=1)
    assert ignored.any()
    assert (gradient[ignored] == 0).all()
    assert (gradient[~ignored] > 0).all()
    assert (proposals.class_logits.grad.abs().sum(dim=-1) > 0).all()


def test_ignored_pixels_do_not_move_the_value():
    proposals, masks = sample(3, 4)
    other = Proposals(
        class_logits=proposals.class_logits,
        mask_logits=torch.where((masks == IGNORE)[:, None], -9.0, proposals.mask_logits),
    )
    assert torch.equal(build(3)(proposals, masks), build(3)(other, masks))


def test_all_ignored_is_zero_with_zero_gradient():
    proposals, masks = sample(3, 4)
    value = build(3)(requires_grad(proposals), torch.full_like(masks, IGNORE))
    value.backward()
    assert value.item() == 0
    assert (proposals.class_logits.grad == 0).all()
    assert (proposals.mask_logits.grad == 0).all()


def test_an_image_without_a_pixel_that_counts_has_no_part():
    proposals, masks = sample(3, 4, batch=2)
    masks[1] = IGNORE
    alone = Proposals(class_logits=proposals.class_logits[:1], mask_logits=proposals.mask_logits[:1])
    torch.testing.assert_close(build(3)(proposals, masks), build(3)(alone, masks[:1]))


def test_a_class_can_be_the_ignored_value():
    proposals, masks = sample(3, 4)
    masks[masks == IGNORE] = 0
    build(3, ignore_index=0)(requires_grad(proposals), masks).backward()
    gradient = proposals.mask_logits.grad.abs().sum(dim=1)
    assert (gradient[masks == 0] == 0).all()
    assert (gradient[masks != 0] > 0).all()


def test_scalar_float32_whatever_the_precision():
    proposals, masks = sample(3, 4, cell=4)
    half = Proposals(
        class_logits=proposals.class_logits.bfloat16(), mask_logits=proposals.mask_logits.bfloat16()
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = build(3)(requires_grad(half), masks)
    value.backward()
    assert value.dtype == torch.float32
    wide = Proposals(class_logits=half.class_logits.float(), mask_logits=half.mask_logits.float())
    assert torch.equal(value, build(3)(wide, masks))
    assert torch.isfinite(half.mask_logits.grad).all()


def test_extreme_logits_stay_finite_and_what_is_no_number_shows():
    proposals, masks = sample(3, 4)
    for scale in (1e4, -1e4):
        extreme = Proposals(
            class_logits=scale * proposals.class_logits, mask_logits=scale * proposals.mask_logits
        )
        value = build(3)(requires_grad(extreme), masks)
        value.backward()
        assert torch.isfinite(value)
        assert torch.isfinite(extreme.mask_logits.grad).all()
    broken = Proposals(class_logits=proposals.class_logits, mask_logits=proposals.mask_logits * math.nan)
    assert build(3)(broken, masks).isnan()


def test_right_masks_cost_next_to_nothing_whichever_proposal_has_them():
    masks = torch.tensor([[[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 2, 2], [2, 2, 2, 2]]])
    order = [2, 0, 1]
    classes = torch.full((1, 4, 4), -20.0)
    for n, k in enumerate([*order, 3]):
        classes[0, n, k] = 20
    shapes = torch.stack([*(masks[0] == k for k in order), torch.zeros(4, 4)])[None]
    right = Proposals(class_logits=classes, mask_logits=40 * shapes.float() - 20)
    wrong = Proposals(class_logits=classes, mask_logits=-right.mask_logits)
    assert build(3)(right, masks) < 1e-3 < build(3)(wrong, masks)


def test_has_nothing_to_train_or_to_save():
    assert not list(build(3).parameters())
    assert not build(3).state_dict()
