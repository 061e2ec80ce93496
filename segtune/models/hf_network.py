"""Networks of transformers built from their description, and how each kind is run.

Most are run by the library's own forward. Where that leaves out the auxiliary classifier, or takes
images of one size only although the layers take any, the steps are spelled out here.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segtune.errors import UsageError
from segtune.models.proposals import combine
from segtune.types import Proposals


def build_segmenter(config: Any, num_classes: int, variant: str) -> nn.Module:
    """A network for semantic or universal segmentation with K classes and random weights.

    Args:
        config: transformers' description of the network.
        num_classes: K.
        variant: the model as the user wrote it, for messages.

    Raises:
        UsageError: no such architecture, or it cannot be built.
    """
    from transformers.models.auto import modeling_auto as auto

    mappings = (
        auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING,
        auto.MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING,
        auto.MODEL_FOR_IMAGE_SEGMENTATION_MAPPING,
    )
    found = next((mapping[type(config)] for mapping in mappings if type(config) in mapping), None)
    if found is None or config.model_type in _REFUSED:
        known = {cls.model_type for mapping in mappings for cls in mapping} - _REFUSED.keys()
        reason = _REFUSED.get(config.model_type, "has no segmentation head in transformers")
        raise UsageError(
            f"{variant!r}: the architecture {config.model_type!r} {reason}",
            hint=f"hf-backbone:... puts a head on backbones; hf:... takes {', '.join(sorted(known))}",
        )
    config = copy.deepcopy(config)
    config.num_labels = num_classes
    config.return_dict = True
    return build(found, config, variant)


_REFUSED = {
    "oneformer": "wants a sentence with every image, which a model of images alone cannot give",
    "videomt": "takes videos",
}


def build(network_class: Any, config: Any, variant: str, **options: Any) -> nn.Module:
    """A network of a class with random weights in float32."""
    try:
        network: nn.Module = network_class._from_config(config, dtype=torch.float32, **options)
    except (ValueError, TypeError, KeyError, AttributeError, ImportError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UsageError(
            f"{variant!r}: transformers cannot build {network_class.__name__} from its config.json: {reason}",
            hint="compare config.json with that of a published model of this architecture",
        ) from error
    return network


def head_names(config: Any, num_classes: int, variant: str) -> list[str]:
    """Module paths of the layers whose shape depends on the number of classes."""
    with torch.device("meta"):
        shapes = [
            {name: p.shape for name, p in build_segmenter(config, k, variant).named_parameters()}
            for k in (num_classes, num_classes + 1)
        ]
    changed = [name for name, shape in shapes[0].items() if shapes[1][name] != shape]
    return list(dict.fromkeys(name.rpartition(".")[0] for name in changed))


def encoder_names(network: nn.Module) -> list[str]:
    """Module paths of the part that looks at the image."""
    candidates = ("model.pixel_level_module.encoder", "model.backbone", "backbone")
    prefix = getattr(network, "base_model_prefix", "")
    modules = dict(network.named_modules())
    for name in (*candidates, prefix):
        if name and name in modules:
            return [name]
    return [name for name in ("embeddings", "rope_embeddings", "layers", "layernorm") if name in modules]


class Runner:
    """Runs a network whose own forward gives logits."""

    def prepare(self, network: Any) -> None:
        """Takes off what only the library's own losses use."""
        for name in ("criterion", "matcher"):
            if hasattr(network, name):
                setattr(network, name, None)

    def encode(self, network: Any, images: Tensor) -> Any:
        """Images to whatever the other steps need."""
        return network(pixel_values=images).logits

    def decode(self, network: Any, maps: Any) -> Tensor:
        """To logits [B, K, h, w]."""
        logits: Tensor = maps
        return logits

    def auxiliary(self, network: Any, maps: Any) -> dict[str, Tensor]:
        """To logits of the auxiliary classifier, if there is one."""
        return {}

    proposes = False
    """Whether `proposals` gives something."""

    def proposals(self, maps: Any) -> Proposals | None:
        """To masks with their classes, if the network proposes any."""
        return None


class _WithAuxiliary(Runner):
    """Feature maps, a head on them and an auxiliary one."""

    def auxiliary(self, network: Any, maps: Any) -> dict[str, Tensor]:
        """Of the auxiliary head."""
        return {} if network.auxiliary_head is None else {"aux": network.auxiliary_head(maps)}

    def decode(self, network: Any, maps: Any) -> Tensor:
        """Of the decode head."""
        logits: Tensor = network.decode_head(maps)
        return logits


class _UperNet(_WithAuxiliary):
    def encode(self, network: Any, images: Tensor) -> Any:
        """The backbone's maps."""
        return network.backbone.forward_with_filtered_kwargs(images).feature_maps


class _Beit(_WithAuxiliary):
    """BEiT and Data2Vec: four layers of a plain transformer, brought to four scales."""

    def encode(self, network: Any, images: Tensor) -> Any:
        """Maps of four scales."""
        config = network.config
        encoder = getattr(network, network.base_model_prefix)
        hidden = encoder(images, interpolate_pos_encoding=True, output_hidden_states=True).hidden_states
        grid = tuple(side // config.patch_size for side in images.shape[-2:])
        maps = [hidden[i - 1][:, 1:].transpose(1, 2).unflatten(2, grid) for i in config.out_indices]
        if hasattr(network, "fpn"):
            return network.fpn(tuple(maps))
        steps = (network.fpn1, network.fpn2, network.fpn3, network.fpn4)
        return [step(each) for step, each in zip(steps, maps, strict=True)]


class _Dpt(_WithAuxiliary):
    def encode(self, network: Any, images: Tensor) -> Any:
        """The neck's maps, the finest last."""
        config = network.config
        found = network.dpt(images, output_hidden_states=True)
        layers = found.hidden_states[1:]
        chosen = config.backbone_out_indices
        if config.is_hybrid:
            hidden = [*found.intermediate_activations, *(layers[i] for i in chosen[2:])]
        else:
            hidden = [layers[i] for i in chosen]
        rows, columns = (side // _patch(config) for side in images.shape[-2:])
        return network.neck(hidden, rows, columns)

    def decode(self, network: Any, maps: Any) -> Tensor:
        """Of the head."""
        logits: Tensor = network.head(maps)
        return logits

    def auxiliary(self, network: Any, maps: Any) -> dict[str, Tensor]:
        """Of the head on the finest map."""
        return {} if network.auxiliary_head is None else {"aux": network.auxiliary_head(maps[-1])}


def _contiguous(
    _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs of an attention in one piece: for others torch chooses the kernel by `requires_grad`."""
    whole = [value.contiguous() if isinstance(value, Tensor) else value for value in args]
    named = {k: value.contiguous() if isinstance(value, Tensor) else value for k, value in kwargs.items()}
    return tuple(whole), named


class _Universal(Runner):
    """Queries with a class and a mask each."""

    proposes = True

    def prepare(self, network: Any) -> None:
        """Also makes attention give the same bits whether or not its weights are trained."""
        super().prepare(network)
        for module in network.modules():
            if isinstance(module, nn.MultiheadAttention):
                module.register_forward_pre_hook(_contiguous, with_kwargs=True)

    def encode(self, network: Any, images: Tensor) -> Any:
        """Class logits [B, N, K + 1] and mask logits [B, N, h, w]."""
        found = network(pixel_values=images)
        if hasattr(found, "pred_masks"):
            return found.logits, found.pred_masks
        return found.class_queries_logits, found.masks_queries_logits

    def decode(self, network: Any, maps: Any) -> Tensor:
        """The proposals, combined."""
        return combine(self.proposals(maps))

    def proposals(self, maps: Any) -> Proposals:
        """Both."""
        return Proposals(class_logits=maps[0], mask_logits=maps[1])


class _Eomt(_Universal):
    """EoMT, with the masks in its attention switched off, as they are at the end of its own training."""

    def prepare(self, network: Any) -> None:
        """Without the probabilities of masking, on which a run would depend."""
        super().prepare(network)
        count = len(network.attn_mask_probs)
        del network.attn_mask_probs
        network.attn_mask_probs = [0.0] * count

    def encode(self, network: Any, images: Tensor) -> Any:
        """Class and mask logits, on the grid of these images."""
        network.grid_size = tuple(side // _patch(network.config) for side in images.shape[-2:])
        # While it trains, the library's forward computes masks that nothing would use.
        network.training = False
        return super().encode(network, images)


_RUNNERS: dict[str, type[Runner]] = {
    "upernet": _UperNet,
    "beit": _Beit,
    "data2vec-vision": _Beit,
    "dpt": _Dpt,
    "eomt": _Eomt,
    "eomt_dinov3": _Eomt,
    **dict.fromkeys(("mask2former", "maskformer", "detr"), _Universal),
}


def runner_for(config: Any) -> Runner:
    """How networks of this architecture are run."""
    return _RUNNERS.get(config.model_type, Runner)()


def _patch(config: Any) -> int:
    patch = config.patch_size
    return int(patch if isinstance(patch, int) else patch[0])


def set_checkpointing(network: nn.Module, variant: str) -> None:
    """Keeps only the inputs of the library's blocks for the backward pass.

    Raises:
        UsageError: the architecture has no blocks that can do so.
    """
    from functools import partial

    from torch.utils.checkpoint import checkpoint

    layers = [module for module in network.modules() if hasattr(module, "gradient_checkpointing")]
    if not layers:
        raise UsageError(
            f"{variant!r}: transformers cannot checkpoint activations of this architecture",
            hint="leave model.checkpointing at false; smaller crops or batches need less memory too",
        )
    for layer in layers:
        layer.gradient_checkpointing = True  # type: ignore[assignment]
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)  # type: ignore[assignment]


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images at the one size that a network takes."""
    return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
