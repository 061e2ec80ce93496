"""Putting the parts of a run together; the only file that knows every package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import nn

from segtune.config.run import RunConfig
from segtune.data.base import Classes
from segtune.engine.quantize import Kind, Quantized, quantize_frozen
from segtune.errors import UsageError
from segtune.losses import LOSSES
from segtune.methods import METHODS
from segtune.methods.apply import Applied, apply
from segtune.methods.base import MethodSettings
from segtune.models.base import SegModel
from segtune.models.build import build_model
from segtune.models.weights import WeightsReport, fingerprint, load_weights
from segtune.settings import Settings


@dataclass(eq=False)
class Tunable:
    """A model with a method on it."""

    model: SegModel
    applied: Applied
    weights: WeightsReport
    quantized: Quantized | None = None
    whole_fingerprint: str | None = None
    """Of a quantized base: what `fingerprint` was before."""

    def fingerprint(self) -> str:
        """A hash of the base as it was loaded, without the tensors that the method owns."""
        return self.whole_fingerprint or fingerprint(self.model, exclude=self.applied.keys())


def build_tunable(
    *,
    model: str,
    model_settings: Settings | None,
    weights: str,
    num_classes: int,
    method_parts: Mapping[str, Settings],
    seed: int,
    quantize: Kind | Literal["none"] = "none",
    removable: bool = False,
) -> Tunable:
    """Builds a model, loads its weights and applies a method.

    Args:
        model: registered name.
        model_settings: None for the defaults.
        weights: "default", "none", a published name or a file.
        num_classes: K.
        method_parts: settings of each method by name.
        seed: of every random start: base, head, adapter.
        quantize: "none", or how the weights of frozen linear layers are kept: "int8", "nf4".
        removable: keep what `Applied.remove` needs; not with a quantized base.

    Returns:
        The model in eval mode on the CPU, with what the method owns.
    """
    parts = cast(Mapping[str, MethodSettings], method_parts)
    built = build_model(model, num_classes, model_settings, seed=seed)
    random_base = any(METHODS.load(name).random_base for name in parts)
    report = load_weights(built, "none" if random_base else weights)
    _check_untrained(model, parts, report, num_classes)
    headless = any(not settings.train_head and METHODS.load(name).trains for name, settings in parts.items())
    if report.source == "none" and headless:
        raise UsageError(
            "method.train_head=false needs weights with a classifier for these classes,"
            " and the base is random",
            hint="give model.weights=FILE, or leave train_head at true",
        )
    if not report.kept_head and headless:
        raise UsageError(
            f"method.train_head=false, but the classifier for {num_classes} classes is new",
            hint="leave train_head at true: a new classifier must be trained",
        )
    tunable = adapt_model(built, parts, report, seed=seed, removable=removable)
    if quantize != "none":
        tunable.whole_fingerprint = tunable.fingerprint()
        tunable.quantized = quantize_frozen(tunable.applied, quantize)
    return tunable


def _check_untrained(
    model: str, parts: Mapping[str, MethodSettings], report: WeightsReport, num_classes: int
) -> None:
    """Raises UsageError where a method that trains nothing would score random numbers."""
    untrained = [name for name in parts if not METHODS.load(name).trains]
    if not untrained:
        return
    if len(parts) > 1:
        raise UsageError(
            f"{untrained[0]} trains nothing and cannot be part of {'+'.join(parts)}",
            hint="use it alone, or leave it out",
        )
    if METHODS.load(untrained[0]).takes_random:
        return
    if report.source == "none":
        raise UsageError(
            f"{untrained[0]} trains nothing, and the weights of {model} are random",
            hint="leave model.weights at its default, or give model.weights=FILE",
        )
    if not report.kept_head:
        raise UsageError(
            f"{untrained[0]} trains nothing, and {model}'s classifier for {num_classes} classes is new and"
            " random",
            hint="train it, with method=head at least; sam-... with model.prompts=box needs no classifier",
        )


def adapt_model(
    model: SegModel,
    parts: Mapping[str, MethodSettings],
    report: WeightsReport,
    *,
    seed: int,
    removable: bool,
) -> Tunable:
    """Applies a method to a model with its weights loaded."""
    model.eval()
    applied = apply(model, model.sites(), parts, seed=seed, removable=removable, unused=model.unused)
    model.penalty_layers = list(applied.operations)
    return Tunable(model, applied, report)


def build_from_config(config: RunConfig, classes: Classes) -> Tunable:
    """The model and method of a run."""
    return build_tunable(
        model=config.model,
        model_settings=config.model_settings,
        weights=config.weights,
        num_classes=classes.num_classes,
        method_parts=config.method_parts,
        seed=config.train.seed,
        quantize=config.model_common.quantize,
    )


def build_loss(config: RunConfig, classes: Classes, model: SegModel) -> nn.Module:
    """The run's loss: (logits [B, K, H, W] or proposals, masks [B, H, W]) to a scalar.

    Raises:
        UsageError: the loss takes proposals and the model makes none.
        SettingsError: the loss's settings do not fit the classes.
    """
    loss: nn.Module = LOSSES.load(config.loss)(
        config.loss_settings, num_classes=classes.num_classes, ignore_index=classes.ignore_index
    )
    if takes_proposals(loss) and not model.proposes_masks:
        raise UsageError(
            f"loss.name={config.loss} trains masks that a model proposes, and {config.model} proposes none"
            f" for {classes.num_classes} classes",
            hint="loss.name=dice_cross_entropy, or a model that does: sam-vit-base, sam-vit-large or"
            " sam-vit-huge, with three or more classes",
        )
    return loss


def takes_proposals(loss: nn.Module) -> bool:
    """Whether a loss is called with what the model proposes instead of with logits."""
    return bool(getattr(loss, "takes_proposals", False))


def learning_rate(config: RunConfig, applied: Applied) -> float:
    """The peak learning rate: the setting, or that of the run's first method on its sites."""
    if config.optim.learning_rate != "auto":
        return config.optim.learning_rate
    rate: float = METHODS.load(next(iter(config.method_parts))).rate_for(applied.sites)
    return rate


def choose_device(accelerator: str) -> torch.device:
    """The device for "auto", "cpu" or "cuda".

    Raises:
        UsageError: cuda was asked for and there is none.
    """
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise UsageError("train.accelerator=cuda, but no CUDA device is available", hint="use auto or cpu")
    return torch.device("cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu")


def place(model: SegModel, device: torch.device) -> SegModel:
    """Moves a model to a device, in the memory layout that convolutions are fastest in.

    Channels-last needs 22 to 45 % less time for a step of a small U-Net on a CPU
    (docs/decisions/0008-memory-layout.md); every use of a model takes the same layout, so that equal
    weights give equal bits.
    """
    placed: SegModel = model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return placed


def choose_precision(precision: str, device: torch.device) -> str:
    """The precision for a device: "32", "bf16" or "16"; auto is bf16 where the processor has it.

    Raises:
        UsageError: 16 on a CPU.
    """
    if precision == "16" and device.type == "cpu":
        raise UsageError("train.precision=16 needs a GPU", hint="use bf16, 32 or auto")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "16"
    has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if has_bf16 else "32"
