"""Sites that SAM and SAM 2 have in common: fused attention layers, and the mask decoder as the head."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from segtune.models.base import SegModel
from segtune.types import Access, Part, Site, SiteKind


def thirds(layer: nn.Module) -> tuple[tuple[str, int, int], ...]:
    """Where q, k and v are among a fused layer's outputs."""
    assert isinstance(layer, nn.Linear)
    width = layer.out_features // 3
    return tuple((name, index * width, (index + 1) * width) for index, name in enumerate("qkv"))


def head_sites(model: SegModel) -> Iterator[Site]:
    """Every layer of the mask decoder that the output depends on, with the tokens and their classifier."""
    for name, module in model.named_modules():
        own = [f"{name}.{key}" for key in module._parameters]
        if name.startswith(("mask_decoder.", "class")) and own and model.unused.isdisjoint(own):
            yield _head_site(name, module)


def _head_site(name: str, module: nn.Module) -> Site:
    channel_first = (
        isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
        or getattr(module, "data_format", "") == "channels_first"
    )
    return Site(
        name=name,
        kind=SiteKind.HEAD,
        module=module,
        part=Part.HEAD,
        channel_axis=1 if channel_first else -1,
        # Tokens are read, never looked up.
        access=Access.WEIGHT if isinstance(module, nn.Embedding) else Access.CALL,
    )
