import builtins
from collections import Counter

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("transformers", reason="needs the extra hf")
from transformers import SamConfig, SamModel
from transformers.models.sam.configuration_sam import (
    SamMaskDecoderConfig,
    SamPromptEncoderConfig,
    SamVisionConfig,
)

from segtune.engine.inspect import inspect
from segtune.errors import MissingExtraError, UsageError
from segtune.methods.apply import apply
from segtune.models import MODELS
from segtune.models.build import build_model
from segtune.models.proposals import combine
from segtune.models.sites import probe_access
from segtune.settings import read_settings
from segtune.types import Access, Part, Proposals, SiteKind
from tests.contracts.table import parts_of

TINY = {
    "width": 48,
    "depth": 4,
    "heads": 3,
    "global_blocks": (1, 3),
    "window": 3,
    "image_size": 128,
    "decoder_width": 32,
}
SIZES = [(128, 128), (96, 160), (50, 71), (16, 200), (1, 1)]


def build(num_classes=2, seed=0, **settings):
    chosen = MODELS.settings("sam-vit-base")(**{**TINY, **settings})
    return build_model("sam-vit-base", num_classes, chosen, seed=seed).eval()


def randomise(network, seed=3):
    """Weights of the usual size: transformers starts with 1e-10, where every comparison passes."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        for name, parameter in network.named_parameters():
            if "rel_pos" in name or "pos_embed" in name:
                parameter.normal_(std=0.3)
            elif name.endswith("positional_embedding"):
                parameter.normal_()
    return network


def library_model(attention="sdpa"):
    image = {"image_size": 128, "patch_size": 16}
    config = SamConfig(
        vision_config=SamVisionConfig(
            **image,
            hidden_size=48,
            num_hidden_layers=4,
            num_attention_heads=3,
            global_attn_indexes=[1, 3],
            window_size=3,
            output_channels=32,
            num_pos_feats=16,
        ),
        prompt_encoder_config=SamPromptEncoderConfig(**image, hidden_size=32),
        mask_decoder_config=SamMaskDecoderConfig(hidden_size=32, mlp_dim=256, iou_head_hidden_dim=32),
    )
    config._attn_implementation = attention
    return randomise(SamModel(config)).eval()


def loaded(library, num_classes=2, **settings):
    model = build(num_classes, **settings)
    model.load_state_dict(model.convert(library.state_dict()), strict=num_classes == 2)
    return model


# --- equal to the library ---------------------------------------------------------------------------


@torch.no_grad()
def test_the_mask_is_that_of_the_library_bit_for_bit():
    library = library_model()
    model = loaded(library)
    images = torch.rand(2, 3, 128, 128)
    pixels = (images - model.mean) / model.std
    expected = library(pixel_values=pixels, multimask_output=False).pred_masks[:, 0]  # [2, 1, 32, 32]
    assert expected.std() > 0.01
    maps = model.encode(images).maps
    assert torch.equal(maps, library.vision_encoder(pixels).last_hidden_state)
    logits = model.decode_maps(maps, (128, 128))
    assert torch.equal(logits[:, 1:], expected)
    assert torch.allclose(logits.softmax(dim=1)[:, 1:], expected.sigmoid())
    full = F.interpolate(expected, (128, 128), mode="bilinear", align_corners=False)
    assert torch.equal(model(images).logits[:, 1:], full)


@torch.no_grad()
def test_fused_attention_includes_the_relative_positions():
    library = library_model("eager")
    model = loaded(library)
    images = torch.rand(1, 3, 128, 128)
    pixels = (images - model.mean) / model.std
    expected = library.vision_encoder(pixels).last_hidden_state
    assert torch.allclose(model.encode(images).maps, expected, atol=1e-5)
    model.vision_encoder.layers[1].attn.rel_pos_h.zero_()
    assert not torch.allclose(model.encode(images).maps, expected, atol=1e-3)


def plain_attention(layer, x):
    """[1, h, w, C], token by token, with positions interpolated to the grid."""
    _, height, width, channels = x.shape
    heads, size = layer.num_heads, channels // layer.num_heads
    query, key, value = layer.qkv(x[0]).reshape(height * width, 3, heads, size).unbind(1)
    tables = [
        F.interpolate(t.T[None], size=2 * count - 1, mode="linear")[0].T
        for t, count in ((layer.rel_pos_h, height), (layer.rel_pos_w, width))
    ]
    rows, columns = torch.arange(height * width) // width, torch.arange(height * width) % width
    down = tables[0][rows[:, None] - rows[None] + height - 1]  # [hw, hw, size]
    right = tables[1][columns[:, None] - columns[None] + width - 1]
    scores = torch.einsum("qnc,knc->nqk", query, key) / size**0.5
    scores = scores + torch.einsum("qnc,qkc->nqk", query, down + right)
    out = torch.einsum("nqk,knc->qnc", scores.softmax(dim=-1), value)
    return layer.proj(out.reshape(1, height, width, channels))


@torch.no_grad()
@pytest.mark.parametrize("grid", [(8, 8), (6, 10), (13, 2), (1, 1)])
def test_blocks_on_grids_that_are_not_square(grid):
    model = loaded(library_model())
    windowed, whole = model.vision_encoder.layers[0], model.vision_encoder.layers[1]
    x = torch.randn(1, *grid, 48)
    assert torch.allclose(whole.attn(x)[0], plain_attention(whole.attn, x), atol=1e-5)
    # windowed: zeros up to a multiple of 3, then each window for itself
    normed = windowed.layer_norm1(x)
    padded = F.pad(normed, (0, 0, 0, -grid[1] % 3, 0, -grid[0] % 3))
    out = torch.zeros_like(padded)
    for row in range(0, padded.shape[1], 3):
        for column in range(0, padded.shape[2], 3):
            window = (slice(None), slice(row, row + 3), slice(column, column + 3))
            out[window] = plain_attention(windowed.attn, padded[window])
    hidden = x + out[:, : grid[0], : grid[1]]
    expected = hidden + windowed.mlp(windowed.layer_norm2(hidden))
    assert torch.allclose(windowed(x), expected, atol=1e-5)


# --- any size ---------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("num_classes", [2, 4])
def test_logits_have_the_size_of_the_images(size, num_classes):
    logits = build(num_classes)(torch.rand(2, 3, *size)).logits
    assert logits.shape == (2, num_classes, *size)
    assert torch.isfinite(logits).all()


@torch.no_grad()
def test_positions_are_interpolated_to_the_grid():
    encoder = build().vision_encoder
    assert encoder.positions((8, 8)) is encoder.pos_embed
    ramp = torch.linspace(0, 1, 8).view(1, 8, 1, 1).expand(1, 8, 8, 48)
    encoder.pos_embed.copy_(ramp)
    wide = encoder.positions((16, 24))
    assert wide.shape == (1, 16, 24, 48)
    assert torch.allclose(wide, wide[:, :, :1].expand_as(wide), atol=1e-6)
    assert (wide[0, :, 0, 0].diff() > 0).all()


@torch.no_grad()
def test_the_decoders_positions_are_exact_under_autocast():
    model = build()
    maps = torch.zeros(1, 32, 8, 8)
    expected = model._positions(maps)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model._positions(maps), expected)


# --- several classes --------------------------------------------------------------------------------


@torch.no_grad()
def test_proposals_are_the_librarys_masks_for_the_librarys_tokens():
    library = library_model()
    hyper_networks = library.mask_decoder.output_hypernetworks_mlps
    for other in hyper_networks[1:]:
        other.load_state_dict(hyper_networks[0].state_dict())
    model = loaded(library, 3, num_tokens=4)
    model.class_tokens.weight.copy_(library.mask_decoder.mask_tokens.weight)
    images = torch.rand(2, 3, 128, 128)
    pixels = (images - model.mean) / model.std
    expected = [library(pixel_values=pixels, multimask_output=m).pred_masks[:, 0] for m in (False, True)]
    proposals = model.proposals(model.encode(images).maps)
    assert proposals.class_logits.shape == (2, 4, 4)
    assert torch.allclose(proposals.mask_logits, torch.cat(expected, dim=1), atol=1e-5)


def test_class_logits_are_the_logarithm_of_the_summed_probabilities():
    classes = torch.randn(2, 5, 4, dtype=torch.float64)
    masks = torch.randn(2, 5, 6, 7, dtype=torch.float64) * 3
    inside = masks.sigmoid()
    chances = classes.softmax(dim=-1)
    expected = sum(chances[:, n, :3, None, None] * inside[:, n, None] for n in range(5))
    assert torch.allclose(
        combine(Proposals(class_logits=classes, mask_logits=masks)), expected.log(), atol=1e-12
    )


def test_far_from_every_mask_and_class_nothing_breaks():
    classes = torch.tensor([[[200.0, -200.0, 0.0], [0.0, 200.0, -200.0]]], requires_grad=True)
    masks = torch.full((1, 2, 2, 2), -300.0, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = combine(Proposals(class_logits=classes, mask_logits=masks))
    assert logits.dtype is torch.float32
    F.cross_entropy(logits, torch.tensor([[[0, 1], [1, 0]]])).backward()
    for tensor in (logits, classes.grad, masks.grad):
        assert torch.isfinite(tensor).all()
    assert masks.grad.abs().sum() > 0


def test_the_number_of_tokens():
    assert build(3).class_tokens.weight.shape == (10, 32)
    assert build(12).class_tokens.weight.shape == (12, 32)
    assert build(3, num_tokens=2).class_tokens.weight.shape == (2, 32)


@pytest.mark.parametrize("num_classes", [2, 4])
def test_cross_entropy_learns_a_scene(num_classes):
    model = build(num_classes, decoder_width=128, depth=2, global_blocks=(1,)).train()
    masks = torch.zeros(1, 64, 64, dtype=torch.int64)
    masks[:, :32] = 1
    if num_classes == 4:
        masks[:, 32:, :24], masks[:, 32:, 40:] = 2, 3
    images = masks[:, None] / 5 + 0.3 * torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(75):
        optimizer.zero_grad()
        F.cross_entropy(model(images).logits, masks).backward()
        optimizer.step()
    # one class everywhere would be right for 0.5
    assert (model.eval()(images).logits.argmax(dim=1) == masks).float().mean() > 0.65


# --- sites and counts -------------------------------------------------------------------------------


def test_sites():
    model = build()
    sites = model.sites()
    by_name = {site.name: site for site in sites}
    assert all(model.get_submodule(site.name) is site.module for site in sites)
    assert Counter(str(s.kind) for s in sites if s.part is not Part.HEAD) == {
        "tokens": 4, "conv": 3, "block": 4, "norm": 10, "attention_qkv": 4, "attention_proj": 4, "mlp": 8
    }  # fmt: skip
    assert {s.kind for s in sites if s.part is Part.HEAD} == {SiteKind.HEAD}
    qkv = by_name["vision_encoder.layers.2.attn.qkv"]
    assert qkv.splits == (("q", 0, 48), ("k", 48, 96), ("v", 96, 144))
    assert (qkv.block, qkv.windowed, qkv.channel_axis) == (2, True, -1)
    assert by_name["vision_encoder.layers.3"].windowed is False
    assert by_name["vision_encoder.neck.layer_norm1"].windowed is None
    assert {s.name: s.access for s in sites} == probe_access(model, sites)


@torch.no_grad()
@pytest.mark.parametrize("num_classes", [2, 3])
def test_channel_axes(num_classes):
    model = build(num_classes)
    wrong = []

    def check(site):
        def hook(module, args, output):
            channels = getattr(module, "out_features", None) or getattr(module, "out_channels", None)
            if channels is None:
                channels = 48 if site.kind in (SiteKind.BLOCK, SiteKind.TOKENS) else module.weight.numel()
            if output.shape[site.channel_axis] != channels:
                wrong.append(site.name)

        return hook

    for site in model.sites():
        site.module.register_forward_hook(check(site))
    model(torch.rand(1, 3, 96, 160))
    assert wrong == []


@pytest.mark.parametrize("num_classes", [2, 3])
def test_the_output_depends_on_all_parameters_but_the_unused(num_classes):
    model = build(num_classes)
    # the squares: a mean over masks would hide what every mask has in common
    model(torch.rand(2, 3, 96, 160)).logits[:, 1:].square().sum().backward()
    moving = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert {n for n, _ in model.named_parameters()} - moving == model.unused


@pytest.mark.parametrize("method", ["head", "lora", "bitfit", "norm", "full"])
def test_two_classes_train_with_every_method(method):
    model = build()
    applied = apply(model, model.sites(), parts_of(method), unused=model.unused)
    F.cross_entropy(model(torch.rand(1, 3, 64, 96)).logits, torch.ones(1, 64, 96).long()).backward()
    assert all(p.grad is not None for p in applied.parameters().values())
    assert {n for n, p in model.named_parameters() if p.grad is not None} == set(applied.parameters())


PUBLISHED = [
    ("head", {}, 3.51, 3_506_304),
    ("bitfit", {}, 3.96, 3_958_656),
    ("lora", {"rank": 3}, 4.00, 3_997_824),
    ("lora", {"rank": 6}, 4.49, 4_489_344),
    ("lora", {"rank": 12}, 5.48, 5_472_384),
    ("lora", {"rank": 24}, 7.44, 7_438_464),
    ("conv-lora", {"rank": 3}, 4.02, 4_020_864),
    ("vpt", {"num_tokens": 12}, 4.00, 3_997_824),
    ("conv-lora+vpt", {"rank": 3, "num_tokens": 5}, 4.23, 4_225_664),
    ("adapter", {"width": 5}, 3.92, 3_915_904),
    ("ssf", {}, 4.42, 4_411_520),
    ("sam-adapter", {}, 3.98, 3_981_344),
    ("lst", {}, 11.49, 11_494_976),
]
"""Method, settings, millions in tables 1 and 12 of the Conv-LoRA paper, and what the formulas give."""


@pytest.mark.parametrize(("method", "settings", "millions", "exactly"), PUBLISHED)
def test_published_parameter_counts(method, settings, millions, exactly):
    report = inspect(
        model="sam-vit-huge", model_settings=None, num_classes=2, parts=parts_of(method, **settings)
    )
    assert report["parameters_trainable"] == exactly
    assert report["parameters_trainable"] / 1e6 == pytest.approx(millions, abs=0.01)
    assert report["parameters_by_role"]["head"] == 3_506_304
    # 641,090,864 in transformers, where the 2 x 128 random frequencies count as parameters
    assert report["parameters_total"] == 641_090_864 - 256


@pytest.mark.parametrize(("name", "total"), [("sam-vit-base", 93_735_472), ("sam-vit-large", 312_342_832)])
def test_the_other_published_sizes(name, total):
    model = build_model(name, 2, meta=True)
    assert sum(parameter.numel() for parameter in model.parameters()) == total


@pytest.mark.parametrize("num_classes", [3, 12])
def test_published_counts_of_the_mask_decoder_for_several_classes(num_classes):
    model = build_model("sam-vit-huge", num_classes, meta=True)
    applied = apply(model, model.sites(), parts_of("head"), removable=False, unused=model.unused)
    assert applied.counts()["trainable"] / 1e6 == pytest.approx(3.51, abs=0.01)


# --- memory and compilation -------------------------------------------------------------------------


def test_checkpointing_gives_equal_gradients_and_keeps_less():
    results = []
    for checkpointing in (False, True):
        model = build(checkpointing=checkpointing)
        applied = apply(model, model.sites(), parts_of("lora"), unused=model.unused)
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            loss = model(torch.linspace(0, 1, 3 * 96 * 160).view(1, 3, 96, 160)).logits.square().mean()
        loss.backward()
        results.append((applied.parameters(), sum(t.numel() for t in kept)))
    (plain, plain_size), (saving, saving_size) = results
    assert all(torch.equal(p.grad, saving[name].grad) for name, p in plain.items())
    assert saving_size < plain_size / 2


def test_compiles_without_graph_breaks_for_two_classes():
    model = build(depth=2, global_blocks=(1,))
    apply(model, model.sites(), parts_of("lora"), unused=model.unused)
    torch._dynamo.reset()
    images = torch.rand(1, 3, 64, 96)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(images).logits, model(images).logits, atol=1e-6)


# --- mistakes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heads": 5}, r"model\.width=48 cannot be split"),
        ({"image_size": 100}, r"model\.image_size=100 is no multiple"),
        ({"global_blocks": (1, 4)}, r"names block 4, and there are 4"),
    ],
)
def test_sizes_that_cannot_be(settings, message):
    with pytest.raises(UsageError, match=message):
        build(**settings)


def test_transformers_is_an_extra(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.partition(".")[0] == "transformers":
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"needs the package 'transformers'") as caught:
        build()
    assert "segtune[hf]" in str(caught.value)


def test_settings_are_read_without_the_library():
    assert set(TINY) < set(read_settings("segtune.models.sam")["SamSettings"].model_fields)


def test_embeddings_are_reached_by_their_weight():
    accesses = {s.name: s.access for s in build(3).sites()}
    assert accesses["class_tokens"] is Access.WEIGHT
    assert "mask_decoder.mask_tokens" not in accesses
