import pytest
import torch
from safetensors.torch import save_file

pytest.importorskip("transformers", reason="needs the extra hf")

from segtune.errors import WeightsError
from segtune.models.build import build_model
from segtune.models.weights import load_weights
from tests.unit.models.test_sam import build, library_model

DEPTH, NUM_HEADS = 4, 4


def pairs(ours, theirs, *ends):
    return [(f"{ours}.{end}", f"{theirs}.{end}") for end in ends or ("weight", "bias")]


def original_names():
    """Every tensor's name in transformers with its name in the original code, listed by hand."""
    names = [("vision_encoder.pos_embed", "image_encoder.pos_embed")]
    names += pairs("vision_encoder.patch_embed.projection", "image_encoder.patch_embed.proj")
    for i in range(DEPTH):
        ours, theirs = f"vision_encoder.layers.{i}", f"image_encoder.blocks.{i}"
        names += pairs(f"{ours}.layer_norm1", f"{theirs}.norm1")
        names += pairs(f"{ours}.layer_norm2", f"{theirs}.norm2")
        names += pairs(f"{ours}.attn", f"{theirs}.attn", "rel_pos_h", "rel_pos_w")
        for layer in ("attn.qkv", "attn.proj", "mlp.lin1", "mlp.lin2"):
            names += pairs(f"{ours}.{layer}", f"{theirs}.{layer}")
    names += pairs("vision_encoder.neck.conv1", "image_encoder.neck.0", "weight")
    names += pairs("vision_encoder.neck.layer_norm1", "image_encoder.neck.1")
    names += pairs("vision_encoder.neck.conv2", "image_encoder.neck.2", "weight")
    names += pairs("vision_encoder.neck.layer_norm2", "image_encoder.neck.3")
    names += [
        (
            "prompt_encoder.shared_embedding.positional_embedding",
            "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
        )
    ]
    for i in range(4):
        names += pairs(f"prompt_encoder.point_embed.{i}", f"prompt_encoder.point_embeddings.{i}", "weight")
    for layer in ("not_a_point_embed", "no_mask_embed"):
        names += pairs(f"prompt_encoder.{layer}", f"prompt_encoder.{layer}", "weight")
    for ours, theirs in (("conv1", 0), ("layer_norm1", 1), ("conv2", 3), ("layer_norm2", 4), ("conv3", 6)):
        names += pairs(f"prompt_encoder.mask_embed.{ours}", f"prompt_encoder.mask_downscaling.{theirs}")
    return dict(names + decoder_names())


def decoder_names():
    names = []
    for token in ("iou_token", "mask_tokens"):
        names += pairs(f"mask_decoder.{token}", f"mask_decoder.{token}", "weight")
    transformer = "mask_decoder.transformer"
    attention = [f"{transformer}.final_attn_token_to_image"]
    for i in range(2):
        block = f"{transformer}.layers.{i}"
        attention += [
            f"{block}.{a}" for a in ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token")
        ]
        for norm in (1, 2, 3, 4):
            names += pairs(f"{block}.layer_norm{norm}", f"{block}.norm{norm}")
        for layer in ("mlp.lin1", "mlp.lin2"):
            names += pairs(f"{block}.{layer}", f"{block}.{layer}")
    for layer in attention:
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            names += pairs(f"{layer}.{projection}", f"{layer}.{projection}")
    names += pairs(f"{transformer}.layer_norm_final_attn", f"{transformer}.norm_final_attn")
    for ours, theirs in (("upscale_conv1", 0), ("upscale_layer_norm", 1), ("upscale_conv2", 3)):
        names += pairs(f"mask_decoder.{ours}", f"mask_decoder.output_upscaling.{theirs}")
    mlps = [f"output_hypernetworks_mlps.{i}" for i in range(NUM_HEADS)]
    for mlp in [*mlps, "iou_prediction_head"]:
        for index, layer in enumerate(("proj_in", "layers.0", "proj_out")):
            names += pairs(f"mask_decoder.{mlp}.{layer}", f"mask_decoder.{mlp}.layers.{index}")
    return names


@pytest.fixture(scope="module")
def library():
    return library_model()


@torch.no_grad()
def test_the_original_layout(tmp_path, library):
    names = original_names()
    state = library.state_dict()
    shared = "shared_image_embedding.positional_embedding"
    assert state.keys() - names.keys() == {shared}
    path = tmp_path / "sam_vit_tiny.pth"
    torch.save({theirs: state[ours] for ours, theirs in names.items()}, path)
    model = build()
    report = load_weights(model, str(path))
    assert {k for k, v in model.state_dict().items() if not torch.equal(v, state[k])} == set()
    assert "the decoder's weights are the file's" in report.lines[1]
    pixels = torch.randn(1, 3, 128, 128)
    expected = library(pixel_values=pixels, multimask_output=False).pred_masks[:, 0]
    assert torch.equal(model.decode_maps(model.encode_maps(pixels), (128, 128))[:, 1:], expected)


@torch.no_grad()
def test_a_folder_of_transformers(tmp_path, library):
    library.save_pretrained(tmp_path)
    model = build()
    load_weights(model, str(tmp_path))
    pixels = torch.randn(1, 3, 128, 128)
    expected = library(pixel_values=pixels, multimask_output=False).pred_masks[:, 0]
    assert torch.equal(model.decode_maps(model.encode_maps(pixels), (128, 128))[:, 1:], expected)


@pytest.mark.parametrize("left_out", [0, 1])
def test_the_table_of_frequencies_under_either_name(tmp_path, library, left_out):
    names = ["shared_image_embedding", "prompt_encoder.shared_embedding"]
    path = tmp_path / "weights.bin"
    state = library.state_dict()
    del state[f"{names[left_out]}.positional_embedding"]
    torch.save(state, path)
    model = build()
    load_weights(model, str(path))
    for name in names:
        assert torch.equal(
            model.get_submodule(name).positional_embedding,
            library.shared_image_embedding.positional_embedding,
        )


def test_several_classes_start_from_the_first_mask_token(tmp_path, library):
    path = tmp_path / "weights.pth"
    torch.save(library.state_dict(), path)
    model = build(3)
    report = load_weights(model, str(path))
    assert not report.kept_head
    own, first = model.class_tokens.weight, library.mask_decoder.mask_tokens.weight[0]
    assert (own.mean(dim=0) - first).abs().mean() < (build(3).class_tokens.weight - first).abs().mean()
    assert torch.pdist(own).min() > 1
    again = build(3)
    load_weights(again, str(path))
    assert torch.equal(again.class_tokens.weight, own)


@pytest.mark.parametrize(
    ("saved", "wanted", "kept"), [(3, 3, True), (3, 5, False), (3, 12, False), (3, 2, True)]
)
def test_own_files_for_other_numbers_of_classes(tmp_path, saved, wanted, kept):
    path = tmp_path / "weights.safetensors"
    other = build(saved, seed=9)
    save_file(other.state_dict(), path)
    model = build(wanted)
    assert load_weights(model, str(path)).kept_head is kept
    assert torch.equal(model.vision_encoder.pos_embed, other.vision_encoder.pos_embed)
    if wanted in (3, 5):  # as many tokens
        assert torch.equal(model.class_tokens.weight, other.class_tokens.weight)


def test_the_image_encoder_alone(tmp_path, library):
    path = tmp_path / "encoder.pth"
    state = {k: v for k, v in library.state_dict().items() if k.startswith("vision_encoder.")}
    torch.save(state, path)
    model = build()
    decoder = model.mask_decoder.iou_token.weight.clone()
    report = load_weights(model, str(path))
    assert not report.kept_head
    assert "encoder alone" in report.lines[1]
    assert torch.equal(model.vision_encoder.pos_embed, library.vision_encoder.pos_embed)
    assert torch.equal(model.mask_decoder.iou_token.weight, decoder)


def test_another_size_is_refused(tmp_path, library):
    path = tmp_path / "weights.pth"
    torch.save(library.state_dict(), path)
    with pytest.raises(WeightsError, match="do not fit the model"):
        load_weights(build(width=24), str(path))


@pytest.mark.parametrize("size", ["base", "large", "huge"])
def test_published_weights(size):
    published = build_model(f"sam-vit-{size}", 2, meta=True).published()
    first = next(iter(published))
    assert first == f"facebook/sam-vit-{size}"
    assert published[first].url == f"https://huggingface.co/{first}/resolve/main/model.safetensors"
    assert published["segment-anything"].filename.startswith(f"sam_vit_{size[0]}_")
    assert len(published["segment-anything"].sha256) == 64
    assert len({weights.filename for weights in published.values()}) == len(published)
    assert ("wanglab/medsam-vit-base" in published) == (size == "base")
