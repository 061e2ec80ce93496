import builtins
from collections import Counter

import pytest
import torch
from safetensors.torch import save_file

from segtune.errors import MissingExtraError, TrainingError, UnknownNameError, UsageError, WeightsError
from segtune.models.build import build_model
from segtune.models.sites import probe_access
from segtune.models.smp import SmpModelSettings
from segtune.models.weights import load_weights
from segtune.types import Access, Part, SiteKind

library = pytest.importorskip("segmentation_models_pytorch", reason="needs the extra smp")
timm = pytest.importorskip("timm")

DECODERS = sorted(library.MODEL_ARCHITECTURES_MAPPING)
LIGHT = ["unet/resnet18", "fpn/efficientnet-b0", "deeplabv3plus/mobilenet_v2", "segformer/mit_b0"]


def encoder_for(decoder):
    return "tu-vit_tiny_patch16_224" if decoder == "dpt" else "resnet18"


def original(name, num_classes, channels=3):
    decoder, encoder = name.split("/")
    torch.manual_seed(7)
    return library.create_model(
        decoder, encoder, encoder_weights=None, classes=num_classes, in_channels=channels
    )


def kinds(model):
    return {kind.value: count for kind, count in Counter(s.kind for s in model.sites()).items()}


# --- building ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_decoder_on_the_meta_device(decoder):
    name = f"smp:{decoder}/{encoder_for(decoder)}"
    model = build_model(name, 4, SmpModelSettings(channels=5), meta=True)
    assert all(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    sites = model.sites()
    assert set(probe_access(model, sites).values()) <= set(Access)
    assert {s.part for s in sites} == {Part.ENCODER, Part.DECODER, Part.HEAD}
    assert [s.name for s in sites if s.kind is SiteKind.HEAD] == list(model.head_names())
    assert sites[-1].kind is SiteKind.HEAD
    blocks = [s.block for s in sites if s.kind is SiteKind.BLOCK]
    assert blocks == list(range(len(blocks)))
    assert len(blocks) >= 4
    assert model.head_keys() == {f"{model.head_names()[0]}.{end}" for end in ("weight", "bias")}


@pytest.mark.parametrize("decoder", ["unet", "deeplabv3plus", "pan", "upernet", "dpt"])
def test_the_smallest_images_train(decoder):
    model = build_model(f"smp:{decoder}/{encoder_for(decoder)}", 2)
    assert model(torch.rand(2, 3, 1, 1)).logits.shape == (2, 2, 1, 1)
    assert model.eval()(torch.rand(1, 3, 33, 40)).logits.shape == (1, 2, 33, 40)


@pytest.mark.parametrize("name", LIGHT)
def test_same_output_and_same_keys_as_the_library(name):
    theirs = original(name, 3).eval()
    ours = build_model(f"smp:{name}", 3).eval()
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    ours.load_state_dict(theirs.state_dict())
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(ours(images).logits, theirs((images - ours.mean) / ours.std))


def test_unused_parts_of_an_encoder_are_known_and_offer_no_sites():
    model = build_model("smp:pspnet/resnet18", 2, meta=True)
    assert {name.split(".")[1] for name in model.unused} == {"layer3", "layer4"}
    assert not any("layer4" in s.name for s in model.sites())
    assert build_model("smp:unet/resnet18", 2, meta=True).unused == frozenset()


@pytest.mark.parametrize(("name", "expected"), [
    ("unet/resnet18", {"conv": 30, "norm": 30, "stage": 4, "block": 13, "head": 1}),
    ("segformer/mit_b0", {
        "conv": 19, "norm": 31, "stage": 4, "block": 8, "attention_qkv": 16, "attention_proj": 8, "mlp": 16,
        "linear": 4, "head": 1,
    }),
    ("unet/tu-swinv2_tiny_window8_256", {
        "conv": 11, "norm": 38, "block": 17, "attention_qkv": 12, "attention_proj": 12, "mlp": 24,
        "linear": 27, "head": 1,
    }),
    ("dpt/tu-vit_tiny_patch16_224", {
        "conv": 31, "norm": 41, "block": 12, "attention_qkv": 12, "attention_proj": 12, "mlp": 24,
        "linear": 4, "conv_transpose": 2, "head": 1, "tokens": 12,
    }),
])  # fmt: skip
def test_site_counts(name, expected):
    assert kinds(build_model(f"smp:{name}", 2, meta=True)) == expected


def test_channel_axes_are_measured():
    sites = {s.name: s for s in build_model("smp:segformer/mit_b0", 2, meta=True).sites()}
    assert sites["encoder.patch_embed1.norm"].channel_axis == 1
    assert sites["encoder.block1.0.norm1"].channel_axis == -1
    assert sites["encoder.block1.0"].channel_axis == 1
    swin = {s.name: s for s in build_model("smp:unet/tu-swinv2_tiny_window8_256", 2, meta=True).sites()}
    assert swin["encoder.model.layers_0.blocks.0"].channel_axis == -1


def test_layers_read_through_their_weight_say_so():
    sites = build_model("smp:unet/tu-swinv2_tiny_window8_256", 2, meta=True).sites()
    by_weight = {s.kind for s in sites if s.access is Access.WEIGHT}
    assert by_weight == {SiteKind.ATTENTION_QKV}


def test_one_image_while_training():
    with pytest.raises(TrainingError, match="batch of one image"):
        build_model("smp:deeplabv3plus/mobilenet_v2", 2)(torch.rand(1, 3, 64, 64))


def test_normalisation_is_that_of_the_encoder():
    for name, mean in {
        "resnet18": 0.485, "xception": 0.5, "dpn68": 124 / 255, "tu-vit_tiny_patch16_224": 0.5,
    }.items():  # fmt: skip
        decoder = "dpt" if "vit" in name else "unet"
        assert build_model(f"smp:{decoder}/{name}", 2, meta=True).input_spec.mean[0] == pytest.approx(mean)


# --- mistakes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "message", "hint"), [
    ("smp:unett/resnet18", "there is no decoder 'unett'", "did you mean 'unet'"),
    ("smp:unet/resnet17", "there is no encoder 'resnet17'", "did you mean 'resnet1"),
    ("smp:unet", "there is no encoder ''", "Encoders: resnet18"),
    ("smp:unet/tu-convnext_tini", "timm has no encoder 'convnext_tini'", "did you mean 'convnext_tiny'"),
])  # fmt: skip
def test_unknown_names(name, message, hint):
    with pytest.raises(UnknownNameError, match=message) as caught:
        build_model(name, 2, meta=True)
    assert hint in caught.value.hint


@pytest.mark.parametrize(("name", "message"), [
    ("smp:deeplabv3/vgg11", "cannot be built: 'VGG' models do not support dilated mode"),
    ("smp:linknet/mit_b0", "cannot be built: Encoder `mit_b0` is not supported"),
    ("smp:dpt/resnet18", "cannot be built: Only Timm encoders are supported"),
    ("smp:unet/tu-coatnet_nano_rw_224", "does not take images of every size"),
])  # fmt: skip
def test_impossible_pairs(name, message):
    with pytest.raises(UsageError, match=message):
        build_model(name, 2, meta=True)


def test_the_library_is_optional(monkeypatch):
    load = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "segmentation_models_pytorch":
            raise ModuleNotFoundError(name=name)
        return load(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingExtraError, match="segmentation-models-pytorch") as caught:
        build_model("smp:unet/resnet18", 2)
    assert "segtune[smp]" in caught.value.hint


# --- weights ----------------------------------------------------------------------------------------


def test_published_weights_are_those_of_the_library():
    published = build_model("smp:unet/resnet18", 2, meta=True).published()
    assert list(published) == ["imagenet", "ssl", "swsl"]
    table = library.encoders.encoders["resnet18"]["pretrained_settings"]
    for name, entry in published.items():
        assert table[name]["repo_id"] in entry.url
        assert table[name]["revision"] in entry.url
        assert entry.covers == "encoder"
    tagged = build_model("smp:unet/tu-resnet18", 2, meta=True).published()
    assert (
        tagged["a1_in1k"].url == "https://huggingface.co/timm/resnet18.a1_in1k/resolve/main/model.safetensors"
    )


def test_a_checkpoint_of_the_library_loads_unchanged(tmp_path):
    theirs = original("fpn/resnet18", 3)
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "fpn.pth")
    model = build_model("smp:fpn/resnet18", 3)
    assert load_weights(model, str(tmp_path / "fpn.pth")).kept_head
    assert all(torch.equal(value, theirs.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "mobilenet_v2"])
def test_an_encoders_own_checkpoint(tmp_path, name):
    theirs = original(f"unet/{name}", 2).encoder
    state = {**theirs.state_dict(), "fc.weight": torch.zeros(10, 4), "fc.bias": torch.zeros(10)}
    if name == "densenet121":
        state = {key.replace("norm1.", "norm.1."): value for key, value in state.items()}
    save_file(state, tmp_path / "encoder.safetensors")
    model = build_model(f"smp:unet/{name}", 2)
    report = load_weights(model, str(tmp_path / "encoder.safetensors"))
    assert "encoder alone" in report.lines[1]
    assert all(torch.equal(v, theirs.state_dict()[k]) for k, v in model.encoder.state_dict().items())


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "mobilenetv3_small_100", "pvt_v2_b0"])
def test_a_classification_checkpoint_of_timm(tmp_path, name):
    theirs = timm.create_model(name, pretrained=False).eval()
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    model = build_model(f"smp:unet/tu-{name}", 2).eval()
    load_weights(model, str(tmp_path / "model.safetensors"))
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        features = model.encode_maps(images)[-1]
        # Everything below the pooling is the same network, so the last maps agree.
        expected = theirs.forward_intermediates(images, intermediates_only=True)[-1]
    assert torch.allclose(features, expected, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_weights_for_rgb_are_adapted_to_other_channels(tmp_path, channels):
    theirs = original("unet/resnet18", 2).encoder
    save_file(theirs.state_dict(), tmp_path / "encoder.safetensors")
    model = build_model("smp:unet/resnet18", 2, SmpModelSettings(channels=channels))
    load_weights(model, str(tmp_path / "encoder.safetensors"))
    # As the library does it.
    theirs.set_in_channels(channels, pretrained=True)
    assert torch.allclose(model.encoder.conv1.weight, theirs.conv1.weight)


def test_weights_of_another_encoder_are_refused(tmp_path):
    save_file(original("unet/mobilenet_v2", 2).encoder.state_dict(), tmp_path / "encoder.safetensors")
    with pytest.raises(WeightsError, match="do not fit the model"):
        load_weights(build_model("smp:unet/resnet18", 2), str(tmp_path / "encoder.safetensors"))


def test_layers_of_an_attention_name_their_queries_keys_and_values():
    def splits(name):
        model = build_model(name, 2, SmpModelSettings())
        return [site.splits for site in model.sites() if site.kind is SiteKind.ATTENTION_QKV]

    assert splits("smp:segformer/mit_b0")[:2] == [(("q", 0, 32),), (("k", 0, 32), ("v", 32, 64))]
    fused = (("q", 0, 192), ("k", 192, 384), ("v", 384, 576))
    assert set(splits("smp:dpt/tu-vit_tiny_patch16_224")) == {fused}
