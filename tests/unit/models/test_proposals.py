"""Models that propose masks: what their forward returns, and training by set matching."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

pytest.importorskip("transformers", reason="needs the extra hf")

from segtune.losses import LOSSES
from segtune.methods.apply import apply
from segtune.models import MODELS
from segtune.models.build import build_model
from segtune.models.proposals import combine
from tests.contracts.table import parts_of
from tests.support import TINY_SAM


def build(num_classes, **settings):
    chosen = MODELS.settings("sam-vit-base")(**{**TINY_SAM, **settings})
    return build_model("sam-vit-base", num_classes, chosen, seed=0)


def set_matching(num_classes):
    return LOSSES.load("set_matching")(LOSSES.settings("set_matching")(), num_classes, 255)


def test_proposals_come_while_training_and_only_where_there_are_any():
    images = torch.rand(1, 3, 64, 96)
    model = build(4)
    assert model.proposes_masks
    assert model.eval()(images).proposals is None
    output = model.train()(images)
    assert output.proposals.class_logits.shape == (1, 10, 5)
    assert output.proposals.mask_logits.shape == (1, 10, 16, 24)
    binary = build(2).train()
    assert not binary.proposes_masks
    assert binary(images).proposals is None
    assert build_model("unet", 4, None, seed=0).proposals(None) is None


def test_logits_are_those_of_decode_and_the_decoder_runs_once():
    model = build(4).train()
    images = torch.rand(2, 3, 50, 71)
    calls = []
    model.mask_decoder.transformer.register_forward_hook(lambda *_: calls.append(1))
    output = model(images)
    assert len(calls) == 1
    assert torch.equal(output.logits, model.decode(model.encode(images)))


def test_masks_cover_the_image_without_its_padding():
    model = build(4).train()
    images = torch.rand(1, 3, 50, 71)
    output = model(images)
    assert output.proposals.mask_logits.shape == (1, 10, 50, 71)
    normalised = torch.nn.functional.pad((images - model.mean) / model.std, (0, 9, 0, 14))
    whole = model(normalised * model.std + model.mean)
    enlarged = torch.nn.functional.interpolate(
        whole.proposals.mask_logits, (64, 80), mode="bilinear", align_corners=False
    )
    torch.testing.assert_close(output.proposals.mask_logits, enlarged[..., :50, :71])
    torch.testing.assert_close(output.proposals.class_logits, whole.proposals.class_logits)


def scene():
    masks = torch.zeros(1, 64, 64, dtype=torch.int64)
    masks[:, :32] = 1
    masks[:, 32:, :24], masks[:, 32:, 40:] = 2, 3
    noise = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return masks[:, None] / 5 + 0.3 * noise, masks


def test_set_matching_learns_a_scene():
    model = build(4, decoder_width=128).train()
    images, masks = scene()
    loss = set_matching(4)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    values = []
    for _ in range(60):
        optimizer.zero_grad()
        values.append(loss(model(images).proposals, masks))
        values[-1].backward()
        optimizer.step()
    assert values[-1] < 0.3 * values[0]
    # what is read from the model is the combination of the proposals, which no loss has seen
    assert (model.eval()(images).logits.argmax(dim=1) == masks).float().mean() > 0.9


@pytest.mark.parametrize("method", ["full", "lora", "head"])
def test_set_matching_gives_every_trained_parameter_a_gradient(method):
    model = build(4)
    applied = apply(model, model.sites(), parts_of(method), unused=model.unused)
    images, masks = scene()
    set_matching(4)(model.train()(images).proposals, masks).backward()
    assert all(p.grad is not None for p in applied.parameters().values())
    moving = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    zero_at_the_start = {n for n in applied.parameters() if n.endswith(".lora.down")}  # the other is 0
    assert set(applied.parameters()) - moving <= zero_at_the_start


@pytest.mark.parametrize("num_classes", [2, 4])
def test_compiles_without_graph_breaks_while_training(num_classes):
    model = build(num_classes).train()
    images = torch.rand(1, 3, 64, 96)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    output, expected = compiled(images), model(images)
    torch.testing.assert_close(output.logits, expected.logits)
    assert (output.proposals is None) == (num_classes == 2)
    if num_classes > 2:
        torch.testing.assert_close(combine(output.proposals), combine(expected.proposals))


@pytest.fixture
def process_group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_set_matching_leaves_no_parameter_to_a_parallel_model_to_wait_for(process_group):
    """The check for parameters without a gradient is the same with one process as with many."""
    model = build(4)
    applied = apply(model, model.sites(), parts_of("lora"), unused=model.unused)
    parallel = DistributedDataParallel(model.train())
    images, masks = scene()
    for known in (masks, torch.full_like(masks, 255), masks):  # it would fail at the step behind
        model.zero_grad()
        set_matching(4)(parallel(images).proposals, known).backward()
        assert all(p.grad is not None for p in applied.parameters().values())
