"""A folder of the library peft as an adapter of segtune.

The library loads the folder onto a model of ours, so that patterns, scales and names mean what they mean
there. What it has put on each layer is then taken over into one of our methods: `lora`, `dora`, `ia3`, or
for other tuners `peft:NAME`.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from segtune.data.base import Classes
from segtune.data.palette import default_palette
from segtune.engine.adapter import describe, save_adapter, verify_adapter
from segtune.engine.build import Tunable, adapt_model
from segtune.engine.infer import InferenceSettings
from segtune.engine.merge import logits_of, probes
from segtune.engine.peft_folder import (
    CARD,
    CONFIG,
    TENSORS,
    UNUSUAL,
    has_usual_form,
    library,
    prove_equal,
    quiet,
    saved_modules,
    tuned_layers,
)
from segtune.engine.tensors import read_tensors
from segtune.errors import AdapterError, UsageError
from segtune.methods import METHODS
from segtune.methods.attach import own_weight
from segtune.methods.base import MethodSettings
from segtune.methods.dora import DoraOperation
from segtune.methods.ia3 import InputScale, OutputScale
from segtune.methods.lora import LoraOperation
from segtune.methods.peft import PeftOperation, copy_tuned
from segtune.methods.peft_tuners import PEFT_FAILURES, RESERVED, find_tuner
from segtune.models import MODELS
from segtune.models.base import SegModel
from segtune.models.build import build_model
from segtune.models.weights import WeightsReport, load_weights
from segtune.settings import Settings
from segtune.types import Site, SiteKind

ADAPTER = "default"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Base:
    """What a folder of peft does not say, or says in segtune.json."""

    model: str
    model_settings: dict[str, Any]
    weights: str
    seed: int
    classes: Classes
    inference: dict[str, Any]


def read_base(
    folder: Path, *, model: str | None, settings: dict[str, Any], weights: str | None, num_classes: int | None
) -> Base:
    """The base of a folder: from the arguments, or else from its segtune.json.

    Raises:
        AdapterError: no folder of peft, or damaged.
        UsageError: neither says which model or how many classes.
    """
    for file in (CONFIG, TENSORS):
        if not (folder / file).is_file():
            raise AdapterError(
                f"{folder} is no folder of peft that can be read: {file} is missing",
                hint="name a folder that save_pretrained wrote; an adapter_model.bin, which may run code when"
                " it is read, must be saved anew",
            )
    card: dict[str, Any] = {}
    if (folder / CARD).is_file():
        try:
            card = dict(json.loads((folder / CARD).read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise AdapterError(f"{folder / CARD} is damaged: {error}", hint="use a copy") from None
    name: Any = model or card.get("model")
    if name is None:
        raise UsageError("which model the folder belongs to is missing", hint="--model NAME")
    names = tuple(card.get("class_names", ()))
    if num_classes is not None and num_classes != len(names):
        names = ("background", *(f"class {index}" for index in range(1, num_classes)))
        card.pop("palette", None)
    if not names:
        raise UsageError("the number of classes is missing", hint="--classes K")
    palette = tuple((r, g, b) for r, g, b in card.get("palette", default_palette(len(names))))
    same = model is None or model == card.get("model")
    return Base(
        model=name,
        model_settings={**(card.get("model_settings", {}) if same else {}), **settings},
        weights=weights or card.get("weights", "default"),
        seed=card.get("seed", 0),
        classes=Classes(names=names, palette=palette),
        inference=card.get("inference") or InferenceSettings().to_dict(),
    )


def import_peft(folder: Path, base: Base, out: Path) -> dict[str, Any]:
    """Writes a folder of peft as an adapter's folder of segtune.

    Args:
        folder: with adapter_config.json and adapter_model.safetensors.
        base: the model that it belongs to.
        out: a folder that does not exist yet.

    Returns:
        The method, its settings, and the differences measured.

    Raises:
        UsageError: `out` exists.
        AdapterError: the folder does not fit the model, or holds what no method of ours computes.
    """
    if out.exists():
        raise UsageError(f"{out} exists already", hint="give another name with --out")
    settings = MODELS.settings(base.model).model_validate(base.model_settings)
    theirs, _ = _load(folder, *_build(base, settings))
    images = probes(theirs.base_model.model)
    expected = [logits_of(theirs, image) for image in images]
    model, report = _build(base, settings)
    tunable = _take_over(theirs, model, report, seed=base.seed)
    differences = prove_equal(tunable.model.eval(), images, expected, "the imported adapter")
    config = SimpleNamespace(model=base.model, model_settings=settings, train=SimpleNamespace(seed=base.seed))
    try:
        save_adapter(tunable, describe(tunable, config, base.classes, base.inference), out)
        verify_adapter(tunable, out, images[0])
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise
    (method,) = tunable.applied.settings
    return {
        "adapter": str(out),
        "model": base.model,
        "method": method,
        "settings": tunable.applied.settings[method].model_dump(mode="json", exclude_defaults=True),
        "layers": len(tunable.applied.host.operations),
        "sizes": [list(image.shape[-2:]) for image in images],
        "relative_differences": differences,
    }


def _build(base: Base, settings: Settings) -> tuple[SegModel, WeightsReport]:
    built = build_model(base.model, base.classes.num_classes, settings, seed=base.seed)
    return built.eval(), load_weights(built, base.weights)


def _load(folder: Path, model: SegModel, report: WeightsReport) -> tuple[Any, WeightsReport]:
    peft = library()
    try:
        with quiet():
            loaded = peft.PeftModel.from_pretrained(model, str(folder)).eval()
            known = peft.get_peft_model_state_dict(loaded, save_embedding_layers=False)
    except (*PEFT_FAILURES, OSError) as error:
        text = " ".join(str(error).split())
        raise AdapterError(
            f"peft cannot load {folder} onto {type(model).__name__}: {text}",
            hint="give the model, and model.* settings, that it was trained on",
        ) from error
    saved = read_tensors(folder / TENSORS)
    strangers = sorted(known.keys() ^ saved.keys())
    if strangers:
        raise AdapterError(
            f"{folder} does not fit the model: {len(strangers)} tensors are on one side only,"
            f" e.g. {strangers[0]}",
            hint="give the model, and model.* settings, that it was trained on",
        )
    return loaded, report


def _take_over(theirs: Any, model: SegModel, report: WeightsReport, *, seed: int) -> Tunable:
    """One of our methods on a fresh base, with the library's tensors in it."""
    layers = tuned_layers(theirs.base_model.model)
    sites = {site.name: site for site in model.sites() if site.kind not in _GROUPS}
    for name in layers:
        if name not in sites:
            raise AdapterError(
                f"peft changes {name}, which is no site of this model", hint="see segtune inspect --sites"
            )
    kind = str(theirs.peft_config[ADAPTER].peft_type.value)
    changed = _changed_base(theirs, model)
    if kind == "LORA":
        method, own = _low_rank_settings(layers, sites)
    elif kind == "IA3":
        method, own = "ia3", {}
    else:
        find_tuner(kind.lower())  # says why where it cannot be used
        method, own = f"peft:{kind.lower()}", {"config": _given(theirs.peft_config[ADAPTER])}
    head = {name for site in sites.values() if site.kind is SiteKind.HEAD for name in _parameters_of(site)}
    norms = {name for site in sites.values() if site.kind is SiteKind.NORM for name in _parameters_of(site)}
    train_head = bool(changed.keys() & head) or not report.kept_head
    kinds = {_kind(sites[name], train_head) for name in layers}
    options = {
        **own,
        "include": tuple(layers),
        "kinds": tuple(sorted(kinds)),
        "train_head": train_head,
        "train_norm": bool(changed.keys() & norms),
        "train_bias": any(n.endswith(".bias") and n not in head | norms for n in changed),
        "statistics": "train" if any(n.endswith("running_mean") for n in changed) else "auto",
    }
    try:
        settings: Any = METHODS.settings(method).model_validate(options)
    except ValueError as error:
        raise AdapterError(
            f"{method} does not take layers of the kinds {', '.join(sorted(kinds))}: {error}",
            hint="such a folder can be used with peft alone",
        ) from None
    parts: Mapping[str, MethodSettings] = {method: settings}
    tunable = adapt_model(model, parts, report, seed=seed, removable=False)
    _fill(tunable, layers, changed)
    return tunable


def _given(config: Any) -> dict[str, Any]:
    """A configuration's own settings that are not the library's defaults, as plain values."""
    usual = type(config)()
    own = [field.name for field in dataclasses.fields(config) if field.init and field.name not in RESERVED]
    values = {name: getattr(config, name) for name in own if getattr(config, name) != getattr(usual, name)}
    return {name: sorted(value) if isinstance(value, set) else value for name, value in values.items()}


_GROUPS = frozenset({SiteKind.BLOCK, SiteKind.STAGE, SiteKind.TOKENS})


def _parameters_of(site: Site) -> list[str]:
    return [f"{site.name}.{name}" for name in (*site.module._parameters, *site.module._buffers)]


def _kind(site: Site, train_head: bool) -> str:
    if site.kind is SiteKind.HEAD:
        if train_head:
            raise AdapterError(
                f"{site.name} has an adapter, and is part of the head, which is trained as a whole",
                hint="such a folder can be used with peft alone",
            )
        return "conv" if isinstance(site.module, nn.Conv2d) else "linear"
    return str(site.kind)


def _changed_base(theirs: Any, model: SegModel) -> dict[str, Tensor]:
    """Base tensors that the folder holds, and that differ from the base's, by our names."""
    wrapped = theirs.base_model.model
    inside = {name: wrapper.modules_to_save[ADAPTER] for name, wrapper in saved_modules(wrapped).items()}
    found = {
        f"{name}.{key}": tensor
        for name, module in inside.items()
        for key, tensor in module.state_dict().items()
    }
    for name, tensor in wrapped.state_dict().items():
        plain = name.replace(".base_layer.", ".")
        if plain.endswith(".bias") and plain not in found and ".original_module." not in name:
            found[plain] = tensor
    own = model.state_dict()
    return {name: t for name, t in found.items() if name in own and not torch.equal(t, own[name])}


def _low_rank_settings(layers: Mapping[str, Any], sites: Mapping[str, Site]) -> tuple[str, dict[str, Any]]:
    variants = set()
    for name, layer in layers.items():
        if not hasattr(layer, "lora_A") or ADAPTER not in layer.lora_A:
            raise AdapterError(
                f"peft changes {name} by {type(layer).__name__}, which no method of segtune computes",
                hint="linear and convolution layers with low-rank changes can be taken over",
            )
        if not has_usual_form(sites[name].module):
            raise AdapterError(
                f"the change of {name} cannot be taken over: {UNUSUAL}",
                hint="such a folder can be used with peft",
            )
        if layer.lora_bias.get(ADAPTER):
            raise AdapterError(f"{name} has a low-rank bias (lora_bias), which lora has not")
        variants.add(type(layer.lora_variant[ADAPTER]).__name__ if ADAPTER in layer.lora_variant else "")
    if not (variants == {""} or all(name.startswith("Dora") for name in variants)):
        raise AdapterError(
            f"the folder holds low-rank changes of kinds that cannot be taken over: {sorted(variants)}",
            hint="plain LoRA can, rank-stabilised or not, and DoRA on every layer",
        )
    rank = max(layer.r[ADAPTER] for layer in layers.values())
    scale = _usual_scale(layers)
    return ("lora" if variants == {""} else "dora"), {"rank": rank, "alpha": scale * rank}


def _usual_scale(layers: Mapping[str, Any]) -> float:
    counted = Counter(float(layer.scaling[ADAPTER]) for layer in layers.values())
    return counted.most_common(1)[0][0]


@torch.no_grad()
def _fill(tunable: Tunable, layers: Mapping[str, Any], changed: Mapping[str, Tensor]) -> None:
    applied = tunable.applied
    owned = applied.state_dict()
    unknown = sorted(changed.keys() - owned.keys() - tunable.model.unused)
    if unknown:
        raise AdapterError(
            f"the folder holds a trained {unknown[0]} and {len(unknown) - 1} more tensors that are neither"
            " of the head nor of a norm",
            hint="such a folder can be used with peft alone",
        )
    for name, tensor in changed.items():
        if name in owned:
            owned[name].copy_(tensor)
    found = {site.name for site, _, _ in applied.host.operations}
    if found != layers.keys():
        missing = sorted(layers.keys() - found)[0]
        raise AdapterError(
            f"peft changes {missing}, where {applied.method} has nothing to change",
            hint="such a folder can be used with peft alone",
        )
    for site, _, operation in applied.host.operations:
        layer = layers[site.name]
        if isinstance(operation, LoraOperation):
            _fill_low_rank(operation, layer, site)
        elif isinstance(operation, PeftOperation):
            copy_tuned(layer, operation.tuned)
        else:
            assert isinstance(operation, (InputScale, OutputScale))
            _fill_scale(operation, layer, site)


def _fill_low_rank(operation: LoraOperation, layer: Any, site: Site) -> None:
    down, up = layer.lora_A[ADAPTER].weight.flatten(1), layer.lora_B[ADAPTER].weight.flatten(1)
    rank = down.shape[0]
    operation.down.zero_()  # a smaller rank than the largest is filled up with zeros
    operation.up.zero_()
    operation.down[:rank] = down
    factor = layer.scaling[ADAPTER] / operation.scale
    operation.up[:, :rank] = up if abs(factor - 1) < 1e-9 else up * factor
    if isinstance(operation, DoraOperation):
        magnitude = layer.lora_magnitude_vector[ADAPTER].weight.flatten()
        operation.magnitude.copy_(magnitude - operation.lengths(own_weight(site.module)))


def _fill_scale(operation: InputScale | OutputScale, layer: Any, site: Site) -> None:
    factors = layer.ia3_l[ADAPTER].flatten()
    if layer.is_feedforward is not isinstance(operation, InputScale):
        raise AdapterError(
            f"peft scales the {'in' if layer.is_feedforward else 'out'}put of {site.name}, ia3 does not",
            hint="such a folder can be used with peft alone",
        )
    if isinstance(operation, InputScale):
        operation.scale.copy_(factors)
        return
    operation.scale.copy_(torch.cat([factors[first:end] for first, end in operation.ranges]))
    if not torch.equal(operation.factors(), factors):
        raise AdapterError(
            f"peft scales outputs of {site.name} that are neither keys nor values",
            hint="such a folder can be used with peft alone",
        )
