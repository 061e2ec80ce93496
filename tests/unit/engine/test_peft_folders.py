"""Adapters to folders of the library peft and back."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from segtune.data.base import Classes
from segtune.engine.adapter import describe, save_adapter
from segtune.engine.build import build_tunable
from segtune.engine.merge import logits_of, probes
from segtune.engine.peft_export import export_peft
from segtune.engine.run import LoadedRun, load_run
from segtune.errors import AdapterError, UsageError
from segtune.methods import METHODS
from segtune.models import MODELS

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")

SAM = {
    "width": 32,
    "depth": 2,
    "heads": 2,
    "global_blocks": (1,),
    "window": 3,
    "image_size": 64,
    "decoder_width": 16,
}
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
    "lora": ("sam-vit-base", SAM, {"lora": {"rank": 3, "alpha": 5.0}}),
    "a fused layer's queries and values": ("sam-vit-base", SAM, {"lora": {"targets": ("q", "v")}}),
    "rslora": ("sam-vit-base", SAM, {"rslora": {"rank": 4, "kinds": ("mlp", "attention_proj")}}),
    "lora-plus": ("sam-vit-base", SAM, {"lora-plus": {}}),
    "lora-fa": ("sam-vit-base", SAM, {"lora-fa": {}}),
    "pissa": ("sam-vit-base", SAM, {"pissa": {}}),
    "dora": ("sam-vit-base", SAM, {"dora": {}}),
    "dora of values": ("sam-vit-base", SAM, {"dora": {"targets": ("v",)}}),
    "ia3": ("sam-vit-base", SAM, {"ia3": {}}),
    "norms trained along": ("sam-vit-base", SAM, {"lora": {"train_norm": True}}),
    "biases trained along": ("sam-vit-base", SAM, {"lora": {"train_bias": True}}),
    "convolutions": ("unet", UNET, {"lora": CONVS}),
    "dora of convolutions": ("unet", UNET, {"dora": CONVS}),
    "ia3 of convolutions": ("unet", UNET, {"ia3": CONVS}),
    "pissa of several ranks": ("unet", UNET, {"pissa": {**CONVS, "rank": 12}}),
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
