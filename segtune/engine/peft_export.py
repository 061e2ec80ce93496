"""A run's adapter as a folder of the library peft."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segtune.engine.adapter import rebuild, weights_name
from segtune.engine.build import place
from segtune.engine.files import write_json
from segtune.engine.merge import differences_of, logits_of, probes
from segtune.engine.peft_folder import (
    CARD,
    UNUSUAL,
    has_usual_form,
    library,
    prove_equal,
    quiet,
    saved_modules,
    tuned_layers,
)
from segtune.engine.run import LoadedRun, versions
from segtune.errors import AdapterError, UsageError
from segtune.methods.apply import Applied
from segtune.methods.attach import Operation, own_weight
from segtune.methods.base import Role, mlp_pairs
from segtune.methods.dora import DoraOperation
from segtune.methods.ia3 import InputScale, OutputScale
from segtune.methods.layers import runs_as_called
from segtune.methods.lora import LoraOperation
from segtune.methods.lora_fa import LoraFaOperation
from segtune.methods.lora_plus import LoraPlusOperation
from segtune.methods.peft import PeftOperation, copy_tuned
from segtune.methods.peft_tuners import configuration
from segtune.methods.pissa import PissaOperation
from segtune.models import MODELS
from segtune.models.base import SegModel
from segtune.models.build import build_model
from segtune.models.weights import load_weights
from segtune.types import Site

LOW_RANK = (LoraOperation, LoraFaOperation, LoraPlusOperation, PissaOperation)
ADAPTER = "default"
_Placed = Sequence[tuple[Site, Operation]]


def export_peft(run: LoadedRun, out: Path) -> dict[str, Any]:
    """Writes a folder that `PeftModel.from_pretrained(base, folder)` loads.

    The library's model is compared with ours at two sizes before anything is written, and the written
    folder is loaded onto a fresh base and compared once more. An adapter of a quantized base is put on the
    original one, which is what the folder will be loaded onto; how far the run is from that is measured.

    Args:
        run: a loaded run; it stays as it is.
        out: a folder that does not exist yet.

    Returns:
        The folder, its files, what is in it, and the differences measured.

    Raises:
        UsageError: the folder exists.
        AdapterError: the library has no words for this adapter, or computes something else with it.
    """
    if out.exists():
        raise UsageError(f"{out} exists already", hint="give another name with --out")
    peft = library()
    quantized, quantize = run.tunable.model.eval(), run.description.quantize
    images = probes(quantized)
    if quantize != "none":
        run = _on_whole_base(run)
    applied, ours = run.tunable.applied, run.tunable.model.eval()
    expected = [logits_of(ours, image) for image in images]
    config, whole, biases = _configuration(run)
    base = _fresh_base(run)
    own = dict(base.named_parameters())
    with quiet():
        theirs = peft.get_peft_model(base, config).eval()
        _copy_operations(applied, theirs.base_model.model)
        _copy_modules(applied, theirs.base_model.model, whole)
        with torch.no_grad():
            for name in biases:
                own[name].copy_(applied.state_dict()[name])
    differences = {"exported": prove_equal(theirs, images, expected, "the exported adapter")}
    part = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        with quiet():
            # the library may have shortened the names to endings; the folder holds them in full
            theirs.peft_config[ADAPTER].target_modules = set(_names(applied))
            theirs.save_pretrained(str(part), save_embedding_layers=False)
            loaded = peft.PeftModel.from_pretrained(_fresh_base(run), str(part)).eval()
        differences["reloaded"] = prove_equal(loaded, images, expected, "the written folder")
        (part / "README.md").unlink(missing_ok=True)  # a form to fill in about a language model
        card = asdict(run.description)
        del card["base_fingerprint"], card["self_contained"]
        write_json(part / CARD, card)
        for path in part.iterdir():
            path.chmod(0o644)
        part.replace(out)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return {
        "folder": str(out),
        "files": sorted(path.name for path in out.iterdir()),
        "bytes": sum(path.stat().st_size for path in out.iterdir()),
        "peft_type": str(config.peft_type.value),
        "layers": len(_names(applied)),
        "modules_to_save": whole,
        "biases": len(biases),
        "sizes": [list(image.shape[-2:]) for image in images],
        "relative_differences": differences,
        "quantize": quantize,
        "difference_of_quantized": differences_of(quantized, images, expected),
        "versions": {**versions(), "peft": peft.__version__},
    }


def _fresh_base(run: LoadedRun) -> SegModel:
    description = run.description
    settings = MODELS.settings(description.model).model_validate(description.model_settings)
    built = build_model(description.model, len(description.class_names), settings, seed=description.seed)
    load_weights(built, weights_name(run.tunable.weights, run.tunable.model))
    return place(built.eval(), next(run.tunable.model.parameters()).device)


def _on_whole_base(run: LoadedRun) -> LoadedRun:
    """The run's adapter on the base as it was before it was quantized."""
    description = replace(run.description, quantize="none")
    whole = rebuild(description, weights_name(run.tunable.weights, run.tunable.model))
    whole.applied.load_state_dict(run.tunable.applied.state_dict())
    place(whole.model, next(run.tunable.model.parameters()).device)
    return replace(run, tunable=whole, description=description)


def _names(applied: Applied) -> list[str]:
    return sorted({site.name for site, _, _ in applied.host.operations})


def _configuration(run: LoadedRun) -> tuple[Any, list[str], list[str]]:
    """The library's configuration, the modules saved as a whole, and the biases saved one by one."""
    applied = run.tunable.applied
    placed = [(site, operation) for site, _, operation in applied.host.operations]
    if not placed:
        raise AdapterError(
            f"{applied.method} puts nothing on a layer, and a folder of peft needs something there",
            hint="lora, its relatives and ia3 can be exported; or use the run's own adapter folder",
        )
    repeated = [name for name, n in Counter(site.name for site, _ in placed).items() if n > 1]
    if repeated:
        raise AdapterError(
            f"{applied.method} changes {repeated[0]} twice; a folder of peft has one change for a layer",
            hint="export runs of a single method",
        )
    for site, operation in placed:
        if not isinstance(operation, PeftOperation) and not runs_as_called(site.module, site.access):
            raise AdapterError(
                f"other code reads the weight of {site.name} instead of calling it, and would not see peft's",
                hint="merge the run instead, or train with method.exclude for such layers",
            )
    whole, biases = _trained_base(applied, {site.name for site, _ in placed})
    common = {
        "target_modules": _names(applied),
        "modules_to_save": whole or None,
        "base_model_name_or_path": weights_name(run.tunable.weights, run.tunable.model),
    }
    peft = library()
    kinds = {type(operation) for _, operation in placed}
    if kinds <= set(LOW_RANK) or kinds == {DoraOperation}:
        bias = "all" if biases else "none"
        return peft.LoraConfig(**common, **_low_rank(placed), bias=bias), whole, biases
    if kinds <= {InputScale, OutputScale} and not biases:
        return peft.IA3Config(**common, **_scales(placed)), whole, biases
    if kinds == {PeftOperation} and not biases:
        name = next(name for name in applied.settings if name.startswith("peft:"))
        return _own_configuration(name, applied, common), whole, biases
    reason = "biases beside it" if biases else ", ".join(sorted(kind.__name__ for kind in kinds))
    raise AdapterError(
        f"the adapter of {applied.method} has no counterpart in a folder of peft ({reason})",
        hint="lora, rslora, lora-plus, lora-fa, pissa, dora, ia3 and peft:... have, each by itself;"
        " head and norm may be trained along",
    )


def _own_configuration(name: str, applied: Applied, common: Mapping[str, Any]) -> Any:
    """The configuration that a method peft:NAME was made with."""
    settings: Any = applied.settings[name]
    feedforward = [last.name for _, last in mlp_pairs(applied.host.sites)]
    member = name.partition(":")[2].lower()
    config = configuration(member, settings.config, common["target_modules"], feedforward)
    config.modules_to_save = common["modules_to_save"]
    config.base_model_name_or_path = common["base_model_name_or_path"]
    return config


def _trained_base(applied: Applied, adapted: set[str]) -> tuple[list[str], list[str]]:
    whole: dict[str, None] = {}
    biases = []
    for name, owned in applied.owned().items():
        module = name.rpartition(".")[0]
        if owned.role is Role.BIAS:
            biases.append(name)
        elif owned.role is not Role.ADAPTER:
            if module in adapted or not module:
                raise AdapterError(
                    f"{name} is trained beside an adapter on the same layer, which peft cannot keep",
                    hint="export a run that trains the head, norms or biases along at most",
                )
            whole[module] = None
    return list(whole), biases


def _low_rank(placed: _Placed) -> dict[str, Any]:
    ranks, alphas = {}, {}
    for site, operation in placed:
        assert isinstance(operation, LoraOperation)
        if not has_usual_form(site.module):
            raise AdapterError(
                f"peft cannot hold the low-rank change of {site.name} ({site.module}): {UNUSUAL},"
                " and it has none for transposed convolutions",
                hint="merge the run instead, or train with method.exclude for such layers",
            )
        ranks[site.name] = operation.factors()[1].shape[0]
        alphas[site.name] = operation.scale * ranks[site.name]
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {name: own for name, own in ranks.items() if own != rank},
        "alpha_pattern": {name: own for name, own in alphas.items() if own != alpha},
        "use_dora": isinstance(placed[0][1], DoraOperation),
    }


def _scales(placed: _Placed) -> dict[str, Any]:
    for site, _ in placed:
        if isinstance(site.module, nn.ConvTranspose2d):
            raise AdapterError(
                f"peft's ia3 has no transposed convolutions ({site.name})",
                hint="merge the run instead, or train with method.exclude for such layers",
            )
    return {"feedforward_modules": [site.name for site, own in placed if isinstance(own, InputScale)]}


@torch.no_grad()
def _copy_operations(applied: Applied, model: nn.Module) -> None:
    layers = tuned_layers(model)
    strangers = sorted(layers.keys() ^ set(_names(applied)))
    if strangers:
        raise AdapterError(
            f"peft matches other layers than those of the adapter, e.g. {strangers[0]}",
            hint="this is a defect of segtune: please report it with the run's config.yaml",
        )
    for site, _, operation in applied.host.operations:
        layer = layers[site.name]
        if isinstance(operation, LoraOperation):
            up, down = operation.factors()
            _fill(layer.lora_A[ADAPTER].weight, down)
            _fill(layer.lora_B[ADAPTER].weight, up)
            if isinstance(operation, DoraOperation):
                _fill(layer.lora_magnitude_vector[ADAPTER].weight, operation.lengths(own_weight(site.module)))
        elif isinstance(operation, PeftOperation):
            copy_tuned(operation.tuned, layer)
        elif isinstance(operation, OutputScale):
            _fill(layer.ia3_l[ADAPTER], operation.factors())
        else:
            assert isinstance(operation, InputScale)
            _fill(layer.ia3_l[ADAPTER], operation.scale)


def _fill(theirs: Tensor, ours: Tensor) -> None:
    theirs.copy_(ours.reshape(theirs.shape))


def _copy_modules(applied: Applied, model: nn.Module, whole: Sequence[str]) -> None:
    """Modules saved as a whole, as they are in our model."""
    wrappers = saved_modules(model)
    for name in whole:
        source = applied.model.get_submodule(name)
        wrappers[name].modules_to_save[ADAPTER].load_state_dict(source.state_dict())
