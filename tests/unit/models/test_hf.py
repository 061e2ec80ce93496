import json
import re

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("transformers", reason="needs the extra hf")
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTModel
from transformers.models.auto import modeling_auto as auto

from segtune.errors import UsageError, WeightsError
from segtune.methods.apply import apply
from segtune.models import MODELS
from segtune.models.build import build_model
from segtune.models.hf_source import Preparation, Source
from segtune.models.proposals import combine
from segtune.models.sites import probe_access
from segtune.models.weights import load_weights
from segtune.types import Access, Part, Proposals, SiteKind
from tests.contracts.table import parts_of
from tests.contracts.tiny_transformers import CONFIGS, variant

SEGMENTERS = [name for name in CONFIGS if name.startswith("hf:")]
BACKBONES = [name for name in CONFIGS if name.startswith("hf-backbone:")]
PLAIN = ["hf:dpt", "hf:beit-absolute", "hf:eomt", "hf:eomt-dinov3"] + [
    f"hf-backbone:{name}" for name in ("dinov2", "dinov3", "vit")
]
SEGMENTATION = (
    auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING,
    auto.MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING,
)


def build(name, num_classes=3, **settings):
    registered = variant(name)
    return build_model(registered, num_classes, MODELS.settings(registered)(**settings))


def images(height, width, batch=2):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


def saved(name, folder, num_labels=2):
    """The library's own network with random weights, saved as people save theirs."""
    config = CONFIGS[name]()
    config.num_labels = num_labels
    found = next((mapping[type(config)] for mapping in SEGMENTATION if type(config) in mapping), None)
    torch.manual_seed(3)
    network = (found or auto.MODEL_MAPPING[type(config)])(config)
    for key, buffer in network.named_buffers():
        if key.endswith("attn_mask_probs"):  # as in published files
            buffer.zero_()
    network.save_pretrained(folder)
    return network.eval(), f"{name.partition(':')[0]}:{folder}"


@pytest.mark.parametrize("name", CONFIGS)
def test_every_size_works_and_a_method_trains_its_sites(name):
    model = build(name).eval()
    assert build_model(variant(name), 3, meta=True).state_dict().keys() == model.state_dict().keys()
    with torch.no_grad():
        for size in ((64, 96), (61, 35)):
            assert model(images(*size)).logits.shape == (2, 3, *size)
    sites = model.sites()
    names = [site.name for site in sites]
    assert len(names) == len(set(names))
    attention = [site for site in sites if site.kind is SiteKind.ATTENTION_QKV]
    assert all(site.splits[-1][2] == site.module.out_features for site in attention)
    layers = [site for site in sites if site.kind is not SiteKind.TOKENS]
    assert probe_access(model, layers) == {site.name: site.access for site in layers}
    assert {site.part for site in layers} == {Part.ENCODER, Part.DECODER, Part.HEAD}
    applied = apply(model, sites, parts_of("lora"), seed=1, unused=model.unused)
    output = model.train()(images(64, 96))
    loss = output.logits.square().mean() + sum(x.square().mean() for x in output.auxiliary.values())
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in applied.parameters().values())


@pytest.mark.parametrize("name", SEGMENTERS)
def test_logits_equal_the_librarys_own(name, tmp_path):
    network, registered = saved(name, tmp_path)
    model = build_model(registered, 2)
    report = load_weights(model, "default")
    assert report.kept_head and report.sha256
    x = images(64, 64)
    with torch.no_grad():
        entering = (x - model.mean) / model.std
        # without a description of its own in the folder, MobileViT takes blue, green, red
        found = network(pixel_values=entering.flip(1) if name == "hf:mobilevit" else entering)
        ours = model.eval()(x, (64, 64)).logits
    if "class_queries_logits" in found:
        masks = found.masks_queries_logits
        expected = combine(Proposals(class_logits=found.class_queries_logits, mask_logits=masks))
    else:
        expected = found.logits
    expected = F.interpolate(expected, (64, 64), mode="bilinear", align_corners=False)
    assert torch.allclose(ours, expected, atol=1e-4), (ours - expected).abs().max()


@pytest.mark.parametrize("name", ["hf-backbone:dinov2", "hf-backbone:swin", "hf-backbone:vit"])
def test_backbones_give_the_librarys_own_maps(name, tmp_path):
    network, registered = saved(name, tmp_path)
    model = build_model(registered, 2, MODELS.settings(registered)(head="linear"))
    report = load_weights(model, "default")
    assert "encoder alone" in report.lines[1]
    x = images(*(56, 56) if "dinov2" in name else (64, 64))
    with torch.no_grad():
        (ours,) = model.eval().run(x)
        if name == "hf-backbone:vit":
            expected = network(x).last_hidden_state[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
        else:
            backbone = auto.MODEL_FOR_BACKBONE_MAPPING[type(network.config)].from_pretrained(tmp_path)
            expected = backbone.eval()(x).feature_maps[-1]
    assert torch.allclose(ours, expected, atol=1e-5)


def test_universal_models_hand_out_what_they_combine():
    model = build("hf:mask2former")
    output = model.train()(images(64, 96))
    assert output.proposals.class_logits.shape == (2, 8, 4)
    assert output.proposals.mask_logits.shape == (2, 8, 16, 24)
    assert model.eval()(images(64, 96)).proposals is None
    assert build("hf:segformer").train()(images(64, 64)).proposals is None


@pytest.mark.parametrize("name", ["hf:upernet-swin", "hf:beit", "hf:dpt"])
def test_auxiliary_classifiers_are_trained_along(name):
    model = build(name)
    assert model.train()(images(61, 35)).auxiliary["aux"].shape == (2, 3, 61, 35)
    assert sum("auxiliary" in head for head in model.head_names()) == 1
    assert model.eval()(images(61, 35)).auxiliary == {}


@pytest.mark.parametrize("name", PLAIN)
def test_blocks_of_plain_transformers_take_tokens_in_front(name):
    model = build(name).eval()
    places = [site for site in model.sites() if site.kind is SiteKind.TOKENS]
    assert [site.block for site in places] == [0, 1, 2, 3][: len(places)] and len(places) >= 3
    seen = []

    def with_two_more(place):
        forward = place.module.forward

        def longer(*args, **kwargs):
            first = args[0] if args else kwargs.pop("hidden_states")
            assert first.shape[-1] == place.channels
            seen.append(first.shape[1])
            extended = torch.cat([first.new_zeros(len(first), 2, first.shape[2]), first], dim=1)
            output = forward(extended, *args[1:], **kwargs)
            return (output[0][:, 2:], *output[1:]) if isinstance(output, tuple) else output[:, 2:]

        place.module.forward = longer

    for place in places:
        with_two_more(place)
    with torch.no_grad():
        assert model(images(64, 96)).logits.shape == (2, 3, 64, 96)
    size = model.fixed_size or (70, 98) if "dinov2" in name else model.fixed_size or (64, 96)
    multiple = model.input_spec.multiple
    assert seen[0] - places[0].prefix == (size[0] // multiple) * (size[1] // multiple)


@pytest.mark.parametrize("name", ["hf:upernet-swin", "hf:beit", "hf:segformer", "hf:mobilevit"])
def test_where_tokens_would_mean_something_else_there_is_no_place_for_them(name):
    assert not [site for site in build(name).sites() if site.kind is SiteKind.TOKENS]


def test_swin_attends_in_windows_and_vit_does_not():
    windows = {s.windowed for s in build("hf:upernet-swin").sites() if s.kind is SiteKind.ATTENTION_QKV}
    assert windows == {True}
    assert {s.windowed for s in build("hf-backbone:vit").sites() if s.kind is SiteKind.MLP} == {False}


def test_attention_read_through_its_weight_is_declared_so():
    sites = [s for s in build("hf:mask2former").sites() if s.kind is SiteKind.ATTENTION_PROJ]
    assert {s.access for s in sites if "cross_attn" in s.name} == {Access.WEIGHT}
    assert {s.prefix for s in sites if "transformer_module" in s.name} == {None}


@pytest.mark.parametrize("name", ["hf:segformer", "hf:upernet-swin", "hf-backbone:dinov2"])
def test_checkpointing_gives_equal_gradients(name):
    gradients = []
    for checkpointing in (False, True):
        model = build(name, checkpointing=checkpointing).train()
        for module in model.modules():
            if type(module).__name__.endswith("DropPath") or isinstance(module, torch.nn.Dropout):
                module.eval()
        model(images(64, 64)).logits.square().mean().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.allclose(g, gradients[1][n], atol=1e-6) for n, g in gradients[0].items())


def test_checkpointing_is_refused_where_the_library_cannot():
    with pytest.raises(UsageError, match="cannot checkpoint"):
        build("hf:mobilenet", checkpointing=True)


@pytest.mark.parametrize("name", ["hf:upernet-swin", "hf-backbone:dinov3"])
def test_compiles_without_graph_breaks(name):
    model = build(name).eval()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x = images(64, 96)
    with torch.no_grad():
        assert torch.allclose(compiled(x).logits, model(x).logits, atol=1e-5)


# --- weights ---------------------------------------------------------------------------------


def test_another_number_of_classes_replaces_the_classifier_alone(tmp_path):
    _, registered = saved("hf:upernet-swin", tmp_path, num_labels=7)
    model = build_model(registered, 3)
    before = model.get_parameter("network.decode_head.classifier.weight").clone()
    report = load_weights(model, "default")
    assert not report.kept_head and "the file's is for 7 classes" in report.lines[1]
    assert torch.equal(model.get_parameter("network.decode_head.classifier.weight"), before)
    state = load_file(tmp_path / "model.safetensors")
    own = model.state_dict()
    name = "decode_head.fpn_bottleneck.conv.weight"
    assert torch.equal(own[f"network.{name}"], state[name])


def test_weights_spread_over_several_files(tmp_path):
    network, _ = saved("hf:segformer", tmp_path / "one")
    network.save_pretrained(tmp_path / "many", max_shard_size="60KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    models = [build_model(f"hf:{tmp_path / name}", 2) for name in ("one", "many")]
    reports = [load_weights(model, "default") for model in models]
    first, second = (model.state_dict() for model in models)
    assert all(torch.equal(tensor, second[key]) for key, tensor in first.items())
    assert reports[1].sha256 != reports[0].sha256
    (tmp_path / "many" / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "../b.safetensors"}}'
    )
    with pytest.raises(WeightsError, match="of another folder"):
        load_weights(models[1], "default")


def test_an_encoders_weights_fit_a_segmentation_network(tmp_path):
    from transformers import SegformerForImageClassification

    config = CONFIGS["hf:segformer"]()
    SegformerForImageClassification(config).save_pretrained(tmp_path)
    model = build_model(f"hf:{tmp_path}", 3)
    assert "encoder alone" in load_weights(model, "default").lines[1]


def test_weights_of_a_deeper_network_are_refused(tmp_path):
    _, registered = saved("hf-backbone:vit", tmp_path / "shallow")
    deeper = ViTModel(ViTConfig(**{**CONFIGS["hf-backbone:vit"]().to_dict(), "num_hidden_layers": 5}))
    deeper.save_pretrained(tmp_path / "deep")
    model = build_model(registered, 2)
    with pytest.raises(WeightsError, match="do not fit"):
        load_weights(model, str(tmp_path / "deep"))


def test_what_was_saved_comes_back(tmp_path):
    _, registered = saved("hf:segformer", tmp_path)
    model = build_model(registered, 3, seed=1)
    save_file(model.state_dict(), tmp_path / "mine.safetensors")
    other = build_model(registered, 3, seed=2)
    assert load_weights(other, str(tmp_path / "mine.safetensors")).kept_head
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in model.state_dict().items())


# --- what a folder says ----------------------------------------------------------------------


def test_images_are_prepared_as_the_folder_says(tmp_path):
    config = CONFIGS["hf:mobilevit"]()
    config.save_pretrained(tmp_path)
    plain = build_model(f"hf:{tmp_path}", 3).eval()
    assert plain.input_spec.mean == (0.485, 0.456, 0.406)
    (tmp_path / "preprocessor_config.json").write_text('{"do_flip_channel_order": true, "do_rescale": true}')
    flipped = build_model(f"hf:{tmp_path}", 3).eval()
    assert flipped.input_spec.mean == (0, 0, 0) and flipped.input_spec.std == (1, 1, 1)
    x = images(64, 64)
    with torch.no_grad():
        normalised = (x.flip(1) - plain.mean) / plain.std
        flipped_logits = flipped(normalised.flip(1)).logits
        assert torch.allclose(flipped_logits, plain(x.flip(1)).logits, atol=1e-5)


@pytest.mark.parametrize(
    ("values", "mean", "std"),
    [
        ({"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.1]}, (0.5, 0.4, 0.3), (0.2, 0.2, 0.1)),
        ({"image_mean": [127.5] * 3, "image_std": [51] * 3, "do_rescale": False}, (0.5,) * 3, (0.2,) * 3),
        ({"image_mean": 0.5, "image_std": 0.5, "rescale_factor": 1 / 127.5}, (0.25,) * 3, (0.25,) * 3),
        ({"do_normalize": False, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}, (0,) * 3, (1,) * 3),
        ({}, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ],
)
def test_normalisation_is_brought_to_images_from_0_to_1(values, mean, std):
    found = Preparation.read(values).for_channels(3)
    assert found[0] == pytest.approx(mean) and found[1] == pytest.approx(std)


def test_mistakes_say_what_to_do(tmp_path):
    for name, message in (
        ("hf:./nowhere/at/all", "there is no folder"),
        (f"hf:{tmp_path}", "no config.json"),
        (f"hf-backbone:{variant('hf:segformer').partition(':')[2]}", "gives no feature maps"),
        (f"hf:{variant('hf-backbone:vit').partition(':')[2]}", "no segmentation head"),
    ):
        with pytest.raises(UsageError, match=re.escape(message)) as caught:
            build_model(name, 3)
        assert caught.value.hint
    (tmp_path / "config.json").write_text("{broken")
    with pytest.raises(UsageError, match="cannot be read"):
        build_model(f"hf:{tmp_path}", 3)


def test_code_of_a_folder_is_never_run(tmp_path):
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}})
    )
    with pytest.raises(UsageError, match="cannot build the architecture 'evil'"):
        build_model(f"hf:{tmp_path}", 3)


def test_without_a_connection_the_message_says_how_to_get_the_model(monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def unreachable(*_args, **_kwargs):
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    with pytest.raises(UsageError, match="cannot be reached") as caught:
        Source("hf:nvidia/mit-b0").config()
    assert "hf download nvidia/mit-b0" in caught.value.hint
