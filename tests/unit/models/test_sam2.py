"""SAM 2: equal to the library, any size, sites that fit, prompts that point where they say."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("transformers", reason="needs the extra hf")
from transformers import Sam2Config, Sam2Model
from transformers.models.sam2.configuration_sam2 import (
    Sam2HieraDetConfig,
    Sam2MaskDecoderConfig,
    Sam2PromptEncoderConfig,
    Sam2VisionConfig,
)

from segtune.errors import UsageError
from segtune.models import MODELS
from segtune.models.build import build_model
from segtune.models.sites import probe_access
from segtune.types import Prompts, SiteKind

TINY = {
    "width": 16,
    "blocks": (1, 2, 3, 1),
    "heads": (1, 2, 2, 4),
    "windows": (8, 4, 6, 3),
    "global_blocks": (4,),
    "background": 3,
    "decoder_width": 32,
}
SIZES = [(128, 128), (96, 160), (50, 71), (1, 1)]


def build(num_classes=2, name="sam2.1-hiera-tiny", **settings):
    chosen = MODELS.settings(name)(**{**TINY, **settings})
    return build_model(name, num_classes, chosen).eval()


def library_model(size):
    """The library's network for square images of one size, with weights that show in every part."""
    config = Sam2Config(
        vision_config=Sam2VisionConfig(
            backbone_config=Sam2HieraDetConfig(
                hidden_size=16,
                num_attention_heads=1,
                window_positional_embedding_background_size=[3, 3],
                blocks_per_stage=[1, 2, 3, 1],
                embed_dim_per_stage=[16, 32, 64, 128],
                num_attention_heads_per_stage=[1, 2, 2, 4],
                window_size_per_stage=[8, 4, 6, 3],
                global_attention_blocks=[4],
            ),
            backbone_channel_list=[128, 64, 32, 16],
            backbone_feature_sizes=[[size // stride] * 2 for stride in (4, 8, 16)],
            fpn_hidden_size=32,
        ),
        prompt_encoder_config=Sam2PromptEncoderConfig(hidden_size=32, image_size=size),
        mask_decoder_config=Sam2MaskDecoderConfig(
            hidden_size=32, mlp_dim=256, iou_head_hidden_dim=32, dynamic_multimask_via_stability=False
        ),
    )
    config._attn_implementation = "sdpa"
    network = Sam2Model(config).eval()
    torch.manual_seed(3)
    with torch.no_grad():
        for module in network.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        for name, parameter in network.named_parameters():
            if "pos_embed" in name or "no_memory" in name:
                parameter.normal_(std=0.3)
        tables = network.prompt_encoder.shared_embedding, network.shared_image_embedding
        tables[0].positional_embedding.copy_(tables[1].positional_embedding)
    return network


def loaded(library, num_classes=2, **settings):
    model = build(num_classes, **settings)
    model.load_state_dict(model.convert(library.state_dict()), strict=num_classes == 2)
    return model


def prompts_of(kinds, classes=((1, 1), (1, 1))):
    boxes = torch.tensor([[[10.0, 20, 60, 90], [0, 0, 127, 127]], [[30, 30, 31, 40.5], [5, 7, 100, 44]]])
    labels = torch.tensor([[[1, 0], [1, 1]], [[1, -1], [0, 1]]])
    return Prompts(
        classes=torch.tensor(classes),
        boxes=boxes if "box" in kinds else None,
        points=boxes.reshape(2, 2, 2, 2) if "point" in kinds else None,
        labels=labels if "point" in kinds else None,
    )


@torch.no_grad()
def test_without_prompts_the_mask_is_that_of_the_library():
    library = library_model(128)
    model = loaded(library)
    images = torch.rand(2, 3, 128, 128)
    pixels = (images - model.mean) / model.std
    expected = library(pixel_values=pixels, multimask_output=False).pred_masks[:, 0]  # [2, 1, 32, 32]
    assert expected.std() > 0.01
    logits = model.decode_maps(model.encode(images).maps, (128, 128))
    assert torch.allclose(logits[:, 1:], expected, atol=1e-5)
    assert (logits[:, 0] == 0).all()


@torch.no_grad()
@pytest.mark.parametrize("kinds", ["box", "point", "box+point"])
def test_prompted_masks_are_those_of_the_library(kinds):
    library = library_model(128)
    model = loaded(library, prompts=kinds)
    images, prompts = torch.rand(2, 3, 128, 128), prompts_of(kinds)
    expected = library(
        pixel_values=(images - model.mean) / model.std,
        input_boxes=prompts.boxes,
        input_points=prompts.points,
        input_labels=prompts.labels,
        multimask_output=False,
    ).pred_masks[:, :, 0]
    masks = model.object_masks(model.encode(images).maps, (128, 128), prompts)
    assert masks.shape == (2, 2, 32, 32)
    assert torch.allclose(masks, expected, atol=1e-5)
    assert (expected[:, 0] - expected[:, 1]).abs().max() > 1e-3, "the prompts make a difference"
    largest = F.interpolate(expected.amax(dim=1, keepdim=True), (128, 128), mode="bilinear")
    assert torch.allclose(model(images, prompts=prompts).logits[:, 1:], largest, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("num_classes", [2, 4])
def test_logits_have_the_size_of_the_images(size, num_classes):
    logits = build(num_classes)(torch.rand(2, 3, *size)).logits
    assert logits.shape == (2, num_classes, *size)
    assert torch.isfinite(logits).all()
    prompted = build(num_classes, prompts="box")
    logits = prompted(torch.rand(2, 3, *size), prompts=prompts_of("box", ((1, -1), (-1, -1)))).logits
    assert logits.shape == (2, num_classes, *size)
    assert (logits[1].argmax(dim=0) == 0).all(), "an image without objects is background"


@pytest.mark.parametrize("settings", [{}, {"prompts": "box"}, {"prompts": "point"}, {"prompts": "box+point"}])
def test_everything_but_the_unused_gets_a_gradient(settings):
    model = build(3, **settings).train()
    prompts = prompts_of(settings["prompts"], ((1, 2), (2, -1))) if settings else None
    model(torch.rand(2, 3, 64, 96), prompts=prompts).logits.square().mean().backward()
    without = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert without == model.unused


def test_checkpointing_gives_equal_gradients():
    images, gradients = torch.rand(1, 3, 64, 96), []
    for checkpointing in (False, True):
        model = build(checkpointing=checkpointing).train()
        model(images).logits.square().mean().backward()
        gradients.append(model.vision_encoder.backbone.blocks[0].attn.qkv.weight.grad)
    assert torch.equal(*gradients)


def test_sites_are_reached_as_declared_and_name_their_channels():
    model = build(3)
    sites = model.sites()
    assert len({site.name for site in sites}) == len(sites)
    assert probe_access(model, sites) == {site.name: site.access for site in sites}
    kinds = {kind: [site for site in sites if site.kind is kind] for kind in SiteKind}
    assert len(kinds[SiteKind.BLOCK]) == len(kinds[SiteKind.ATTENTION_QKV]) == 7
    assert [site.block for site in kinds[SiteKind.BLOCK] if not site.windowed] == [4]
    assert len(kinds[SiteKind.LINEAR]) == 3, "three times the number of channels changes"
    assert kinds[SiteKind.ATTENTION_QKV][1].splits == (("q", 0, 32), ("k", 32, 64), ("v", 64, 96))
    for site in sites:
        assert model.get_submodule(site.name) is site.module


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("sam2-hiera-tiny", 38.9),
        ("sam2-hiera-small", 46.0),
        ("sam2-hiera-base-plus", 80.8),
        ("sam2.1-hiera-large", 224.4),
    ],
)
def test_published_sizes(name, millions):
    """The published counts hold the memory of videos as well, which is about 7 million parameters."""
    model = build_model(name, 2, meta=True)
    count = sum(p.numel() for p in model.parameters()) / 1e6
    assert millions - 8.0 < count < millions
    assert f"facebook/{name}" in model.published()


@torch.no_grad()
def test_files_of_the_video_model_are_accepted():
    library = library_model(64)
    state = {**library.state_dict(), "memory_encoder.x": torch.zeros(1), "no_object_pointer": torch.zeros(1)}
    del state["prompt_encoder.shared_embedding.positional_embedding"]
    build().load_state_dict(build().convert(state), strict=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"blocks": (1, 2)}, "four stages"),
        ({"heads": (3, 2, 2, 4)}, "cannot be split"),
        ({"windows": (8, 3, 6, 3)}, "cannot be halved"),
        ({"global_blocks": (9,)}, "names block 9"),
    ],
)
def test_impossible_sizes_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        build(**settings)
