"""Adapters to folders of the library peft and back."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from segtune.data.base import Classes
from segtune.engine.adapter import describe, save_adapter
from segtune.engine.build import build_tunable
from segtune.engine.merge import logits_of, probes
from segtune.engine.peft_export import export_peft
from segtune.engine.peft_import import import_peft, read_base
from segtune.engine.run import LoadedRun, load_run
from segtune.errors import AdapterError, UsageError
from segtune.methods import METHODS
from segtune.models import MODELS
from tests.support import TINY_SAM

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")

UNET = {"depth": 2, "width": 8, "up": "bilinear"}
CONVS = {"kinds": ("conv",)}


def make_run(
    folder: Path, model: str, model_settings: dict, num_classes: int = 2, **methods: dict
) -> LoadedRun:
    """A run's adapter as after training: every trained tensor moved at random."""
    settings = MODELS.settings(model)(**model_settings)
    tunable = build_tunable(
        model=model,
        model_settings=settings,
        weights="none",
        num_classes=num_classes,
        method_parts={name: METHODS.settings(name)(**own) for name, own in methods.items()},
        seed=3,
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in tunable.applied.parameters().values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    names = tuple(f"class {index}" for index in range(num_classes))
    classes = Classes(names=names, palette=tuple((index, 0, 0) for index in range(num_classes)))
    config = SimpleNamespace(model=model, model_settings=settings, train=SimpleNamespace(seed=3))
    save_adapter(tunable, describe(tunable, config, classes, {}), folder)
    return load_run(folder, accelerator="cpu")


CASES = {
    "lora": ("sam-vit-base", TINY_SAM, {"lora": {"rank": 3, "alpha": 5.0}}),
    "a fused layer's queries and values": ("sam-vit-base", TINY_SAM, {"lora": {"targets": ("q", "v")}}),
    "rslora": ("sam-vit-base", TINY_SAM, {"rslora": {"rank": 4, "kinds": ("mlp", "attention_proj")}}),
    "lora-plus": ("sam-vit-base", TINY_SAM, {"lora-plus": {}}),
    "lora-fa": ("sam-vit-base", TINY_SAM, {"lora-fa": {}}),
    "pissa": ("sam-vit-base", TINY_SAM, {"pissa": {}}),
    "dora": ("sam-vit-base", TINY_SAM, {"dora": {}}),
    "dora of values": ("sam-vit-base", TINY_SAM, {"dora": {"targets": ("v",)}}),
    "ia3": ("sam-vit-base", TINY_SAM, {"ia3": {}}),
    "norms trained along": ("sam-vit-base", TINY_SAM, {"lora": {"train_norm": True}}),
    "biases trained along": ("sam-vit-base", TINY_SAM, {"lora": {"train_bias": True}}),
    "convolutions": ("unet", UNET, {"lora": CONVS}),
    "dora of convolutions": ("unet", UNET, {"dora": CONVS}),
    "ia3 of convolutions": ("unet", UNET, {"ia3": CONVS}),
    "pissa of several ranks": ("unet", UNET, {"pissa": {**CONVS, "rank": 12}}),
    "peft:loha": ("sam-vit-base", TINY_SAM, {"peft:loha": {"config": {"r": 4, "alpha": 6}}}),
    "peft:vera, whose layers share tensors": ("sam-vit-base", TINY_SAM, {"peft:vera": {"config": {"r": 8}}}),
    "peft:ln_tuning": ("sam-vit-base", TINY_SAM, {"peft:ln_tuning": {}}),
    "peft:lokr of convolutions": ("unet", UNET, {"peft:lokr": CONVS}),
    "running statistics": ("unet", UNET, {"lora": {**CONVS, "train_norm": True, "statistics": "train"}}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_library_loads_what_is_exported_with_equal_outputs(case: str, tmp_path: Path) -> None:
    model, settings, methods = CASES[case]
    run = make_run(tmp_path / "adapter", model, settings, **methods)
    report = export_peft(run, tmp_path / "out")
    assert set(report["files"]) == {"adapter_config.json", "adapter_model.safetensors", "segtune.json"}
    base = build_tunable(
        model=model,
        model_settings=MODELS.settings(model)(**settings),
        weights="none",
        num_classes=2,
        method_parts={"head": METHODS.settings("head")()},
        seed=3,
    ).model
    images = probes(run.tunable.model)
    untouched = logits_of(base, images[0])
    loaded = peft.PeftModel.from_pretrained(base, str(tmp_path / "out")).eval()
    for image in images:
        want, got = logits_of(run.tunable.model, image), logits_of(loaded, image)
        assert (want - got).abs().max() <= 1e-5 * want.abs().max()
    assert not torch.allclose(untouched, logits_of(run.tunable.model, images[0]), rtol=1e-3)


def largest_difference(first: torch.nn.Module, second: torch.nn.Module, images: list[torch.Tensor]) -> float:
    pairs = [(logits_of(first, image), logits_of(second, image)) for image in images]
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)


def known_base(folder: Path, **given: object):
    return read_base(folder, **{"model": None, "settings": {}, "weights": None, "num_classes": None, **given})


@pytest.mark.parametrize("case", CASES)
def test_what_was_exported_comes_back_with_equal_outputs(case: str, tmp_path: Path) -> None:
    model, settings, methods = CASES[case]
    run = make_run(tmp_path / "adapter", model, settings, **methods)
    export_peft(run, tmp_path / "out")
    report = import_peft(tmp_path / "out", known_base(tmp_path / "out"), tmp_path / "back")
    back = load_run(tmp_path / "back", accelerator="cpu")
    assert largest_difference(run.tunable.model, back.tunable.model, probes(run.tunable.model)) <= 1e-5
    assert {site.name for site, _, _ in back.tunable.applied.host.operations} == {
        site.name for site, _, _ in run.tunable.applied.host.operations
    }
    (method,) = methods
    assert report["method"] == (method if method in ("dora", "ia3") or ":" in method else "lora")
    assert back.description.class_names == run.description.class_names


def test_three_classes_have_a_head_that_comes_along(tmp_path: Path) -> None:
    run = make_run(tmp_path / "adapter", "sam-vit-base", TINY_SAM, num_classes=3, lora={})
    export_peft(run, tmp_path / "out")
    import_peft(tmp_path / "out", known_base(tmp_path / "out"), tmp_path / "back")
    back = load_run(tmp_path / "back", accelerator="cpu")
    assert largest_difference(run.tunable.model, back.tunable.model, probes(run.tunable.model)) <= 1e-5


def fresh_sam() -> torch.nn.Module:
    settings = MODELS.settings("sam-vit-base")(**TINY_SAM)
    return build_tunable(
        model="sam-vit-base",
        model_settings=settings,
        weights="none",
        num_classes=2,
        method_parts={"head": METHODS.settings("head")()},
        seed=0,
    ).model


def sam_of_transformers(state: dict[str, torch.Tensor]) -> torch.nn.Module:
    """The library's own SamModel with the sizes of TINY_SAM."""
    from transformers import SamConfig, SamModel

    encoder = {
        "hidden_size": TINY_SAM["width"],
        "num_hidden_layers": TINY_SAM["depth"],
        "num_attention_heads": TINY_SAM["heads"],
        "global_attn_indexes": TINY_SAM["global_blocks"],
        "window_size": TINY_SAM["window"],
        "image_size": TINY_SAM["image_size"],
        "patch_size": 16,
        "mlp_dim": 4 * TINY_SAM["width"],
        "output_channels": TINY_SAM["decoder_width"],
    }
    own = fresh_sam().mask_decoder
    decoder = {
        "hidden_size": 16,
        "mlp_dim": own.transformer.layers[0].mlp.lin1.out_features,
        "num_attention_heads": own.transformer.layers[0].self_attn.num_attention_heads,
        "iou_head_hidden_dim": own.iou_prediction_head.proj_in.out_features,
        "iou_head_depth": 2 + len(own.iou_prediction_head.layers),
        "attention_downsample_rate": 16 // own.transformer.final_attn_token_to_image.q_proj.out_features,
    }
    prompts = {
        "hidden_size": 16,
        "image_size": TINY_SAM["image_size"],
        "patch_size": 16,
        "mask_input_channels": 16,
    }
    config = SamConfig(vision_config=encoder, prompt_encoder_config=prompts, mask_decoder_config=decoder)
    model = SamModel(config).eval()
    fitting = {n: t for n, t in state.items() if n.startswith("vision_encoder.")}
    missing, unknown = model.load_state_dict(fitting, strict=False)
    assert not unknown and not [name for name in missing if name.startswith("vision_encoder.")]
    return model


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_the_export_of_sam_loads_onto_the_model_of_transformers(tmp_path: Path) -> None:
    run = make_run(tmp_path / "adapter", "sam-vit-base", TINY_SAM, lora={"rank": 3})
    export_peft(run, tmp_path / "out")
    state = build_tunable(
        model="sam-vit-base",
        model_settings=MODELS.settings("sam-vit-base")(**TINY_SAM),
        weights="none",
        num_classes=2,
        method_parts={"head": METHODS.settings("head")()},
        seed=3,
    ).model.state_dict()
    loaded = peft.PeftModel.from_pretrained(sam_of_transformers(state), str(tmp_path / "out")).eval()
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        want = run.tunable.model.vision_encoder(images)
        got = loaded.base_model.model.vision_encoder(images).last_hidden_state
    assert (want - got).abs().max() <= 1e-5 * want.abs().max()
    decoder = loaded.base_model.model.mask_decoder.upscale_conv1
    ours = run.tunable.model.mask_decoder.upscale_conv1
    assert torch.equal(decoder.modules_to_save["default"].weight, ours.weight)


FOREIGN = {
    "patterns": {
        "target_modules": ["qkv", "proj"],
        "r": 4,
        "lora_alpha": 6,
        "rank_pattern": {"layers.1.attn.qkv": 2},
        "alpha_pattern": {"proj": 3},
    },
    "a regular expression": {
        "target_modules": r"vision_encoder\.layers\.0\.mlp\.lin[12]",
        "use_rslora": True,
    },
    "some layers": {"target_modules": ["qkv"], "layers_to_transform": [1], "layers_pattern": "layers"},
    "fan in": {"target_modules": ["qkv"], "fan_in_fan_out": True},
    "dora": {"target_modules": r"vision_encoder.*\.(lin1|neck\.conv2)", "use_dora": True},
    "saved modules": {"target_modules": ["qkv"], "modules_to_save": ["neck.layer_norm1", "mask_decoder"]},
    "ia3": {
        "ia3": True,
        "target_modules": r"vision_encoder.*\.lin2",
        "feedforward_modules": r"vision_encoder.*\.lin2",
    },
}


def write_foreign(folder: Path, config: object) -> torch.nn.Module:
    """A folder as the library writes it, with random tensors, and the model that it was written from."""
    model = peft.get_peft_model(fresh_sam(), config).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "original_module" not in name and "base_layer" not in name and parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(str(folder))
    return model


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize("case", FOREIGN)
def test_a_folder_of_the_library_is_taken_over_with_equal_outputs(case: str, tmp_path: Path) -> None:
    given = dict(FOREIGN[case])
    config = peft.IA3Config(**given) if given.pop("ia3", False) else peft.LoraConfig(**given)
    theirs = write_foreign(tmp_path / "in", config)
    base = known_base(tmp_path / "in", model="sam-vit-base", settings=TINY_SAM, weights="none", num_classes=2)
    import_peft(tmp_path / "in", base, tmp_path / "back")
    back = load_run(tmp_path / "back", accelerator="cpu")
    assert largest_difference(theirs, back.tunable.model, probes(back.tunable.model)) <= 1e-5


def test_layers_of_a_head_that_is_not_trained_are_taken_over(tmp_path: Path) -> None:
    theirs = write_foreign(tmp_path / "in", peft.LoraConfig(target_modules=["lin1"]))
    weights = tmp_path / "sam.safetensors"
    save_file(fresh_sam().state_dict(), weights)
    base = known_base(
        tmp_path / "in", model="sam-vit-base", settings=TINY_SAM, weights=str(weights), num_classes=2
    )
    report = import_peft(tmp_path / "in", base, tmp_path / "back")
    back = load_run(tmp_path / "back", accelerator="cpu")
    assert report["settings"]["train_head"] is False
    assert largest_difference(theirs, back.tunable.model, probes(back.tunable.model)) <= 1e-5


REFUSED_IMPORTS = {
    "low-rank bias": (lambda: peft.LoraConfig(target_modules=["qkv"], lora_bias=True), "lora_bias"),
    "a trained layer": (
        lambda: peft.LoraConfig(target_modules=["qkv"], modules_to_save=["lin1"]),
        r"mlp\.lin1",
    ),
    "scaled queries": (
        lambda: peft.IA3Config(target_modules=["qkv"], feedforward_modules=[]),
        "neither keys",
    ),
}


@pytest.mark.parametrize("case", REFUSED_IMPORTS)
def test_what_no_method_of_ours_computes_is_refused_by_name(case: str, tmp_path: Path) -> None:
    config, message = REFUSED_IMPORTS[case]
    write_foreign(tmp_path / "in", config())
    base = known_base(tmp_path / "in", model="sam-vit-base", settings=TINY_SAM, weights="none", num_classes=2)
    with pytest.raises(AdapterError, match=message):
        import_peft(tmp_path / "in", base, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_folder_that_does_not_fit_or_is_incomplete_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"adapter_config\.json is missing"):
        known_base(tmp_path)
    write_foreign(tmp_path / "in", peft.LoraConfig(target_modules=["qkv"]))
    with pytest.raises(UsageError, match="which model"):
        known_base(tmp_path / "in")
    with pytest.raises(UsageError, match="number of classes"):
        known_base(tmp_path / "in", model="unet")
    base = known_base(tmp_path / "in", model="unet", settings=UNET, num_classes=2)
    with pytest.raises(AdapterError, match="cannot load"):
        import_peft(tmp_path / "in", base, tmp_path / "back")
    (tmp_path / "in" / "adapter_model.safetensors").rename(tmp_path / "in" / "adapter_model.bin")
    with pytest.raises(AdapterError, match="may run code"):
        known_base(tmp_path / "in", model="unet")


REFUSED_EXPORTS = {
    "conv-lora": ("sam-vit-base", TINY_SAM, {"conv-lora": {}}, "no counterpart"),
    "lora and ia3": (
        "sam-vit-base",
        TINY_SAM,
        {"lora": {}, "ia3": {"kinds": ("mlp",)}},
        "no counterpart",
    ),
    "two on one layer": ("sam-vit-base", TINY_SAM, {"lora": {}, "pissa": {}}, "twice"),
    "nothing on a layer": ("sam-vit-base", TINY_SAM, {"head": {}}, "nothing on a layer"),
    "transposed convolutions": (
        "unet",
        {**UNET, "up": "transpose"},
        {"lora": {"kinds": ("conv_transpose",)}},
        "transposed",
    ),
    "dilated or depthwise convolutions": ("lraspp_mobilenet_v3_large", {}, {"lora": {}}, "dilation"),
    "depthwise convolutions of an encoder": (
        "smp:segformer/mit_b0",
        {},
        {"lora": {"kinds": ("conv",)}},
        "dilation",
    ),
    "biases beside ia3": ("sam-vit-base", TINY_SAM, {"ia3": {"train_bias": True}}, "biases"),
}


@pytest.mark.parametrize("case", REFUSED_EXPORTS)
def test_what_the_library_has_no_words_for_is_refused_by_name(case: str, tmp_path: Path) -> None:
    model, settings, methods, message = REFUSED_EXPORTS[case]
    run = make_run(tmp_path / "adapter", model, settings, **methods)
    with pytest.raises(AdapterError, match=message):
        export_peft(run, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_nothing_is_left_where_the_written_folder_differs(tmp_path: Path, monkeypatch) -> None:
    run = make_run(tmp_path / "adapter", "sam-vit-base", TINY_SAM, lora={})
    save = peft.PeftModel.save_pretrained

    def spoil(self: object, folder: str, **options: object) -> None:
        save(self, folder, **options)
        path = Path(folder) / "adapter_config.json"
        values = json.loads(path.read_text())
        path.write_text(json.dumps({**values, "lora_alpha": 2 * values["lora_alpha"]}))

    monkeypatch.setattr(peft.PeftModel, "save_pretrained", spoil)
    with pytest.raises(AdapterError, match="the written folder"):
        export_peft(run, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        export_peft(run, tmp_path / "out")
