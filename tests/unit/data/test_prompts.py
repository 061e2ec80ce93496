"""Prompts drawn from masks: exact for scores, seeded for training, one shape for a batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from scipy.spatial import distance

from segtune.data.loading import collate, eval_loader, train_loader
from segtune.data.prompts import PromptSource, deepest_points, stack_prompts
from segtune.data.settings import DataSettings
from tests.support import memory_index, scene

BOTH = ("box", "point")


def source(kinds=BOTH, **settings):
    return PromptSource(DataSettings(**{f"prompt_{k}": v for k, v in settings.items()}), kinds, 255)


def two_objects():
    """Class 1 in two parts, class 2 in one, a rim of ignored pixels."""
    mask = torch.zeros(20, 30, dtype=torch.uint8)
    mask[2:6, 3:8] = 1
    mask[10:19, 20:29] = 1
    mask[12:14, 2:5] = 2
    mask[:, -1] = 255
    return mask


def test_boxes_of_classes_and_of_components():
    mask = two_objects()
    by_class = source(("box",)).exact(mask)
    assert by_class.classes.tolist() == [[1, 2]]
    assert by_class.boxes.tolist() == [[[3, 2, 28, 18], [2, 12, 4, 13]]]
    assert by_class.points is None and by_class.labels is None
    parts = source(("box",), per="component").exact(mask)
    assert parts.classes.tolist() == [[1, 1, 2]]
    assert parts.boxes.tolist() == [[[20, 10, 28, 18], [3, 2, 7, 5], [2, 12, 4, 13]]], "largest first"


def test_parts_that_touch_at_a_corner_are_one_object():
    mask = torch.zeros(4, 4, dtype=torch.uint8)
    mask[0, 0] = mask[1, 1] = 1
    mask[3, 3] = 1
    assert source(per="component").exact(mask).classes.tolist() == [[1, 1]]


def test_an_image_without_an_object_has_one_of_no_class():
    for mask in (torch.zeros(8, 8, dtype=torch.uint8), torch.full((8, 8), 255, dtype=torch.uint8)):
        prompts = source().exact(mask)
        assert prompts.classes.tolist() == [[-1]]
        assert prompts.boxes.shape == (1, 1, 4) and prompts.points.shape == (1, 1, 1, 2)
        assert prompts.labels.tolist() == [[[-1]]]
        assert torch.equal(source().draw(mask)[1], mask)


def test_objects_left_out_are_ignored_in_training():
    mask = two_objects()
    torch.manual_seed(0)
    prompts, kept = source(per="component", area=10).draw(mask)
    assert sorted(prompts.classes[0].tolist()) == [1, 1]
    assert torch.equal(kept, torch.where(mask == 2, 255, mask))
    seen = set()
    for _ in range(20):
        prompts, kept = source(("box",), per="component", objects=1, jitter=0).draw(mask)
        left, top, right, bottom = prompts.boxes[0, 0].int().tolist()
        inside = kept[top : bottom + 1, left : right + 1]
        assert (inside == prompts.classes[0, 0]).all()
        assert (kept == prompts.classes[0, 0]).sum() == inside.numel()
        assert ((kept == mask) | (kept == 255)).all()
        seen.add((left, top))
    assert len(seen) == 3, "every object has its turn"
    assert source(per="component", objects=1).exact(mask).classes.tolist() == [[1]]


@effort(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.floats(0, 0.45), st.integers(0, 30), st.sampled_from(["class", "component"]))
def test_drawn_prompts_belong_to_their_object(seed, jitter, pixels, per):
    mask = torch.from_numpy(scene(seed)[1])
    torch.manual_seed(seed)
    drawn, _ = source(jitter=jitter, jitter_pixels=pixels, per=per, points=3).draw(mask)
    torch.manual_seed(seed)
    exact, _ = source(jitter=0, per=per, points=3).draw(mask)
    sides = (exact.boxes[..., 2:] - exact.boxes[..., :2] + 1).repeat(1, 1, 2)
    moved = (drawn.boxes - exact.boxes).abs()
    assert (moved <= (jitter * sides).clamp(max=pixels) + 1e-3).all()
    assert (drawn.boxes[..., :2] <= drawn.boxes[..., 2:]).all()
    assert (drawn.boxes >= 0).all()
    assert (drawn.boxes <= torch.tensor([63, 47, 63, 47])).all()
    columns, rows = drawn.points.long().unbind(-1)
    assert (mask[rows, columns] == drawn.classes[..., None]).all()
    assert (drawn.labels == 1).all()


@effort(max_examples=20, deadline=None)
@given(st.integers(0, 2**31))
def test_the_deepest_point_is_farthest_from_everything_else(seed):
    pixels = np.random.default_rng(seed).random((7, 9)) < 0.7
    pixels[3, 4] = True
    points = deepest_points(pixels, 2)
    outside = np.argwhere(~np.pad(pixels, 1)) - 1
    depths = distance.cdist(np.argwhere(pixels), outside).min(axis=1)
    x, y = points[0].int().tolist()
    assert pixels[y, x]
    assert distance.cdist([[y, x]], outside).min() == depths.max()


def test_an_object_of_fewer_pixels_than_points():
    mask = torch.zeros(5, 5, dtype=torch.uint8)
    mask[2, 3] = 1
    prompts = source(points=3).exact(mask)
    assert prompts.points[0, 0, 0].tolist() == [3, 2]
    assert prompts.labels.tolist() == [[[1, -1, -1]]]
    assert not prompts.points.isnan().any()


def test_a_batch_is_filled_up_with_objects_of_no_class():
    one, none = source(per="component").exact(two_objects()), source().exact(torch.zeros_like(two_objects()))
    batch = stack_prompts([none, one])
    assert batch.classes.tolist() == [[-1, -1, -1], [1, 1, 2]]
    assert torch.equal(batch.boxes[1:], one.boxes) and torch.equal(batch.points[1:], one.points)
    assert batch.labels.shape == (2, 3, 1)


@pytest.mark.parametrize("workers", [0, 2])
def test_training_prompts_depend_on_seed_epoch_and_index_alone(workers):
    index = memory_index({f"s{n}": scene(n) for n in range(4)}, split="train")

    def batches(start, count, workers):
        settings = DataSettings(workers=workers, crop=(40, 40), prompt_per="component")
        loader = train_loader(
            index,
            settings,
            batch_size=2,
            seed=3,
            start_step=start,
            num_steps=count,
            crop=(40, 40),
            prompts=PromptSource(settings, BOTH, 255),
        )
        return list(loader)

    whole, rest = batches(0, 4, 0), batches(2, 2, workers)
    assert not torch.equal(whole[0].prompts.boxes, whole[2].prompts.boxes)
    for first, second in zip(whole[2:], rest, strict=True):
        assert first.names == second.names
        for name in ("classes", "boxes", "points", "labels"):
            assert torch.equal(getattr(first.prompts, name), getattr(second.prompts, name))


def test_images_are_the_same_with_prompts_and_without():
    index = memory_index({f"s{n}": scene(n) for n in range(4)}, split="train")
    settings = DataSettings(crop=(40, 40))
    options = {"batch_size": 2, "seed": 3, "start_step": 0, "num_steps": 2, "crop": (40, 40)}
    plain = list(train_loader(index, settings, **options))
    prompted = list(train_loader(index, settings, **options, prompts=PromptSource(settings, BOTH, 255)))
    for first, second in zip(plain, prompted, strict=True):
        assert first.prompts is None and second.prompts is not None
        assert torch.equal(first.images, second.images) and torch.equal(first.masks, second.masks)
    samples = list(eval_loader(index, index.samples, settings, PromptSource(settings, BOTH, 255)))
    assert collate(samples).prompts.classes.shape == (4, 2)
