"""SAM with prompts: equal to the library, any size, tuned, saved, and loaded in a fresh process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra hf")

from segtune.engine.prompts import example_prompts, mirror_prompts, scale_prompts
from segtune.errors import UsageError
from segtune.models.sam_prompts import ABSENT, KINDS, combine_objects
from segtune.types import Prompts
from tests.contracts.table import make_applied
from tests.unit.models.test_sam import build, library_model, loaded

BOXES = torch.tensor([[[10.0, 20, 60, 90], [0, 0, 127, 127]], [[30, 30, 31, 40.5], [5, 7, 100, 44]]])
LABELS = torch.tensor([[[1, 0], [1, 1]], [[1, -1], [0, 1]]])
PROMPTED = [kinds for kinds in KINDS if kinds != "none"]


def prompts_of(kinds, classes=((1, 1), (1, 1))):
    return Prompts(
        classes=torch.tensor(classes),
        boxes=BOXES if "box" in kinds else None,
        points=BOXES.reshape(2, 2, 2, 2) if "point" in kinds else None,
        labels=LABELS if "point" in kinds else None,
    )


@torch.no_grad()
@pytest.mark.parametrize("kinds", PROMPTED)
def test_masks_are_those_of_the_library_bit_for_bit(kinds):
    library = library_model()
    model = loaded(library, prompts=kinds)
    images, prompts = torch.rand(2, 3, 128, 128), prompts_of(kinds)
    expected = library(
        pixel_values=(images - model.mean) / model.std,
        input_boxes=prompts.boxes,
        input_points=prompts.points,
        input_labels=prompts.labels,
        multimask_output=False,
    ).pred_masks[:, :, 0]
    assert torch.equal(model.object_masks(model.encode(images).maps, (128, 128), prompts), expected)
    assert (expected[:, 0] - expected[:, 1]).abs().max() > 1e-4, "the prompts make a difference"


@torch.no_grad()
@pytest.mark.parametrize("size", [(96, 160), (50, 71), (16, 200)])
def test_a_box_lies_where_the_image_has_the_same_positions(size):
    """A corner in the middle of a patch gets the positions of that patch, on every grid."""
    model = build(prompts="box")
    features = model.encode(torch.rand(1, 3, *size))
    grid = features.maps.shape[-2:]
    positions = model._positions(features.maps)[0].permute(1, 2, 0)  # [h, w, D]
    row, column = grid[0] - 1, grid[1] // 2
    corner = torch.tensor([[[0.0, 0, column * 16 + 7.5, row * 16 + 7.5]]])
    captured = []
    handle = model.mask_decoder.register_forward_pre_hook(
        lambda module, args, kwargs: captured.append(kwargs["sparse_prompt_embeddings"]), with_kwargs=True
    )
    model.decode(features, prompts=Prompts(classes=torch.ones(1, 1, dtype=torch.long), boxes=corner))
    handle.remove()
    expected = positions[row, column] + model.prompt_encoder.point_embed[3].weight[0]
    assert torch.allclose(captured[0][0, 0, 1], expected, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("kinds", PROMPTED)
def test_any_size_any_number_of_classes_and_images_without_objects(kinds):
    model = build(4, prompts=kinds)
    assert model.head_names() == () and model.class_tokens is None
    for size in [(128, 128), (50, 71), (1, 1)]:
        logits = model(torch.rand(2, 3, *size), prompts=prompts_of(kinds, ((3, 1), (-1, -1)))).logits
        assert logits.shape == (2, 4, *size)
        assert torch.isfinite(logits).all()
        assert (logits[0, 2] == ABSENT).all() and (logits[:, 0] == 0).all()
        assert (logits[1].argmax(dim=0) == 0).all()


@torch.no_grad()
def test_objects_do_not_depend_on_each_other():
    model = build(3, prompts="box")
    images = torch.rand(2, 3, 96, 96)
    together = model(images, prompts=prompts_of("box", ((1, 2), (2, -1)))).logits
    alone = model(images[1:], prompts=Prompts(classes=torch.tensor([[2]]), boxes=BOXES[1:, :1])).logits
    assert torch.allclose(together[1:], alone, atol=1e-5)


def test_the_most_certain_object_of_a_class_decides():
    masks = torch.randn(2, 4, 3, 5)
    classes = torch.tensor([[1, 1, 2, -1], [2, 2, 2, 2]])
    logits = combine_objects(masks, classes, 3)
    assert torch.equal(logits[0, 1], masks[0, :2].amax(0))
    assert torch.equal(logits[0, 2], masks[0, 2])
    assert torch.equal(logits[1, 2], masks[1].amax(0))
    assert (logits[:, 0] == 0).all() and (logits[1, 1] == ABSENT).all()


def test_cross_entropy_reaches_the_objects_that_decide_and_no_padding():
    masks = torch.tensor([[[[3.0, -2.0]], [[1.0, -1.0]], [[9.0, 9.0]]]], requires_grad=True)  # [1, 3, 1, 2]
    logits = combine_objects(masks, torch.tensor([[1, 1, -1]]), 3)
    torch.nn.functional.cross_entropy(logits, torch.tensor([[[0, 1]]]), reduction="sum").backward()
    expected = [[torch.tensor(3.0).sigmoid(), 0.0], [0.0, torch.tensor(-1.0).sigmoid() - 1], [0.0, 0.0]]
    assert torch.allclose(masks.grad[0, :, 0], torch.tensor(expected), atol=1e-6)
    impossible = torch.nn.functional.cross_entropy(logits, torch.full((1, 1, 2), 2))
    assert torch.isfinite(impossible) and impossible < 50, "a class without prompt is learnable to avoid"


@pytest.mark.parametrize("kinds", PROMPTED)
def test_everything_but_the_unused_gets_a_gradient(kinds):
    model = build(3, prompts=kinds).train()
    prompts = prompts_of(kinds, ((1, 2), (2, -1)))
    if prompts.labels is not None:
        prompts.labels = torch.ones_like(LABELS)  # as drawn for training
    model(torch.rand(2, 3, 64, 96), prompts=prompts).logits.square().mean().backward()
    assert {n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()} == model.unused
    assert (
        not any(name.startswith("prompt_encoder.point_embed.2") for name in model.unused)
        or "box" not in kinds
    )


def test_missing_and_unwanted_prompts_are_refused():
    images = torch.rand(1, 3, 32, 32)
    with pytest.raises(UsageError, match="needs prompts"):
        build(prompts="box")(images)
    with pytest.raises(UsageError, match=r"box and point"):
        build(prompts="box+point")(images, prompts=example_prompts(build(prompts="box"), images))
    with pytest.raises(UsageError, match="takes no prompts"):
        build()(images, prompts=example_prompts(build(prompts="box"), images))


def test_prompts_follow_a_resized_and_a_mirrored_image():
    prompts = prompts_of("box+point")
    scaled = scale_prompts(prompts, (100, 200), (50, 400))
    # the pixel (x, y) covers x..x+1, y..y+1: its centre moves with the image
    assert torch.allclose(scaled.boxes[0, 0] + 0.5, torch.tensor([21.0, 10.25, 121.0, 45.25]))
    assert torch.allclose(scale_prompts(scaled, (50, 400), (100, 200)).points, prompts.points, atol=1e-4)
    mirrored = mirror_prompts(prompts, 128)
    assert mirrored.boxes[0, 0].tolist() == [67, 20, 117, 90]
    assert torch.equal(mirror_prompts(mirrored, 128).boxes, prompts.boxes)
    assert mirrored.points[0, 0, 0].tolist() == [117, 20]


SCRIPT = """
import sys, torch
from tests.unit.models.test_sam_prompts import TUNED, tuned
for number, (method, train_head) in enumerate(TUNED):
    saved = torch.load(f"{sys.argv[1]}/{number}.pt", weights_only=True)
    model, applied, images, prompts = tuned(method, train_head)
    applied.load_state_dict(saved["tensors"])
    with torch.no_grad():
        print(torch.equal(model.eval()(images, prompts=prompts).logits, saved["logits"]))
"""
TUNED = [("lora", True), ("lora", False), ("full", True)]


def tuned(method, train_head):
    """A tiny prompted SAM with a method on it, images, and prompts."""
    model = build(3, prompts="box")
    applied = make_applied(model, method, train_head=train_head)
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    return model, applied, images, prompts_of("box", ((1, 2), (2, -1)))


def test_tuning_moves_what_is_declared_and_comes_back_in_a_fresh_process(tmp_path):
    masks = torch.randint(3, (2, 64, 96), generator=torch.Generator().manual_seed(2))
    for number, (method, train_head) in enumerate(TUNED):
        model, applied, images, prompts = tuned(method, train_head)
        assert train_head or all(".attn." in name for name in applied.parameters()), "all else is frozen"
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        optimizer = torch.optim.Adam(applied.parameters().values(), lr=1e-2)
        losses = []
        for _ in range(4):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model.train()(images, prompts=prompts).logits, masks)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0]
        state = model.state_dict()
        assert {n for n, t in state.items() if not torch.equal(t, before[n])} == set(applied.owned())
        with torch.no_grad():
            logits = model.eval()(images, prompts=prompts).logits
        torch.save({"tensors": applied.state_dict(), "logits": logits}, tmp_path / f"{number}.pt")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).resolve().parents[3],
    )
    assert done.stdout.split() == ["True"] * len(TUNED)


@pytest.mark.parametrize("name", ["sam", "sam2"])
def test_compiles_without_graph_breaks(name):
    if name == "sam":
        model = build(3, prompts="box+point")
    else:
        from tests.unit.models.test_sam2 import build as build_sam2

        model = build_sam2(3, prompts="box+point")
    images, prompts = torch.rand(2, 3, 64, 96), prompts_of("box+point", ((1, 2), (2, -1)))
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert torch.allclose(
            model(images, prompts=prompts).logits, compiled(images, prompts=prompts).logits, atol=1e-5
        )
