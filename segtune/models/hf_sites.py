"""Sites of the networks of transformers: which modules are blocks, attention and MLP, and what they take.

The library's classes have many names for the same things; what a layer is follows from the name of its
attribute, what a block takes from running it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from segtune.models.base import SegModel
from segtune.models.sites import COLUMNS, ROWS, Trace, scan_sites, trace
from segtune.types import Part, Site, SiteKind

_QUERY_KEY_VALUE = {
    "qkv": "qkv",
    "kv": "kv",
    **{f"{start}{name}": name[0] for start in ("", "in_proj_") for name in ("q", "k", "v")},
    **{name: name[0] for name in ("query", "key", "value", "q_proj", "k_proj", "v_proj", "value_proj")},
}
"""Name of a layer of an attention -> what its outputs are, in equal parts."""
_PROJECTION = ("dense", "proj", "out_proj", "o_proj", "output_proj")
_ATTENTION = ("attn", "attention")
_SEQUENCE = "hidden_states"
"""Name under which blocks take what they work on."""


@dataclass(frozen=True)
class _Sequence:
    """What a block takes that takes sequences of every length."""

    prefix: int
    """Tokens in front of those of the grid."""
    channels: int


def settle(model: SegModel, *, encoder: Sequence[str], head: Sequence[str]) -> tuple[tuple[Site, ...], Trace]:
    """Runs the model once without computing anything, and finds its sites.

    Args:
        model: with its network in place.
        encoder: module paths of the encoder.
        head: module paths of the layers that are new for K classes.

    Returns:
        The sites from the input to the output, and what the run showed.
    """
    in_encoder = tuple(f"{name}." for name in encoder)
    blocks, stages = find_blocks(model, in_encoder)
    with _longer_sequences(model, [name for name in blocks if name.startswith(in_encoder)]) as found:
        traced = trace(model)
    blocks = sorted((name for name in blocks if name in traced.order), key=traced.order.__getitem__)
    scanned = scan_sites(
        model,
        part=lambda name: Part.ENCODER if f"{name}.".startswith(in_encoder) else Part.DECODER,
        head=head,
        blocks=blocks,
        stages=stages,
        linear_kind=lambda name: _linear_kind(name, blocks),
        traced=traced,
    )
    sites: list[Site] = []
    entered: set[int] = set()
    for site in scanned:
        done = _complete(model, site, blocks, found, traced)
        index = site.block
        if index is not None and index not in entered and blocks[index] in found:
            entered.add(index)
            tokens = _token_site(model, blocks[index], index, found[blocks[index]])
            sites += [done, tokens] if site.kind is SiteKind.BLOCK else [tokens, done]
        else:
            sites.append(done)
    return tuple(sites), traced


def find_blocks(model: nn.Module, in_encoder: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Module paths of the repeated blocks, and of the stages of the encoder that hold such blocks.

    Outside of the encoder only what has attention of its own is a block.
    """
    blocks: list[str] = []
    stages: list[str] = []

    def visit(path: str, module: nn.Module, in_list: bool) -> None:
        inner = _has_blocks(module)
        if in_list and any(True for _ in module.children()) and not inner:
            if path.startswith(in_encoder) or _has_attention(module):
                blocks.append(path)
            return
        if in_list and inner and path.startswith(in_encoder):
            stages.append(path)
        for name, child in module.named_children():
            is_list = type(child) in (nn.ModuleList, nn.Sequential)
            visit(f"{path}.{name}" if path else name, child, _is_list(module) and not is_list)

    visit("", model, False)
    return blocks, stages


def _is_list(module: nn.Module) -> bool:
    return type(module) in (nn.ModuleList, nn.Sequential)


def _has_blocks(module: nn.Module) -> bool:
    """Whether a module is a stage: lists of blocks are lists of modules, in stages also sequences."""
    kinds = (nn.ModuleList, nn.Sequential) if "Stage" in type(module).__name__ else (nn.ModuleList,)
    return any(
        type(part) in kinds and any(True for element in part.children() for _ in element.children())
        for part in module.modules()
        if part is not module
    )


def _has_attention(module: nn.Module) -> bool:
    return any(
        isinstance(part, nn.MultiheadAttention) or name.rpartition(".")[2] in _QUERY_KEY_VALUE
        for name, part in module.named_modules()
    )


def _linear_kind(name: str, blocks: Sequence[str]) -> SiteKind:
    *above, last = name.split(".")
    if any(word in segment for segment in above[-3:] for word in _ATTENTION):
        if last in _QUERY_KEY_VALUE:
            return SiteKind.ATTENTION_QKV
        return SiteKind.ATTENTION_PROJ if last in _PROJECTION else SiteKind.LINEAR
    in_block = any(name.startswith(f"{block}.") for block in blocks)
    return SiteKind.MLP if in_block and last != "proj" else SiteKind.LINEAR


def _complete(
    model: SegModel, site: Site, blocks: Sequence[str], found: Mapping[str, _Sequence], traced: Trace
) -> Site:
    """A site with its splits, and with what is known of the sequence that its block takes."""
    site = replace(site, prefix=0 if site.part is Part.ENCODER or _on_grid(site, traced) else None)
    if site.block is None:
        return replace(site, splits=_splits(site))
    name = blocks[site.block]
    return replace(
        site,
        splits=_splits(site),
        windowed=False if name in found else _windowed(model.get_submodule(name)),
        prefix=found[name].prefix if name in found else site.prefix,
    )


def _on_grid(site: Site, traced: Trace) -> bool:
    """Whether what a layer gives are maps, or as many tokens as a map of the traced image has pixels."""
    shape = traced.shapes.get(site.name, ())
    if len(shape) != 3:
        return len(shape) == 4
    pixels = ROWS * COLUMNS
    return shape[1] % pixels == 0 and math.isqrt(shape[1] // pixels) ** 2 == shape[1] // pixels


def _token_site(model: SegModel, name: str, index: int, sequence: _Sequence) -> Site:
    return Site(
        name=f"{name}.tokens",
        kind=SiteKind.TOKENS,
        module=model.get_submodule(name),
        part=Part.ENCODER,
        block=index,
        windowed=False,
        channel_axis=-1,
        channels=sequence.channels,
        prefix=sequence.prefix,
    )


def _windowed(block: nn.Module) -> bool | None:
    """What a block says about its window; None where it has no such attribute."""
    for module in block.modules():
        in_units = getattr(module, "use_mask_unit_attn", None)  # Hiera
        if in_units is not None:
            return bool(in_units)
        window = getattr(module, "window_size", None)
        if window is not None:
            side = window if isinstance(window, int) else max(window, default=0)
            return bool(side > 0)
    return None


def _splits(site: Site) -> tuple[tuple[str, int, int], ...]:
    """Which outputs of a layer of an attention are queries, keys and values."""
    if site.kind is not SiteKind.ATTENTION_QKV:
        return ()
    assert isinstance(site.module, nn.Linear)
    names = _QUERY_KEY_VALUE[site.name.rpartition(".")[2]]
    width = site.module.out_features // len(names)
    return tuple((name, index * width, (index + 1) * width) for index, name in enumerate(names))


@contextmanager
def _longer_sequences(model: SegModel, blocks: Sequence[str]) -> Iterator[dict[str, _Sequence]]:
    """Tries, while the model is traced, which blocks take one more token in front of their sequence.

    Yields:
        Such blocks by name, filled in by the run.
    """
    found: dict[str, _Sequence] = {}
    grid: list[int] = []

    def watch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given = _sequence(args, kwargs)
        # Relative positions could be interpolated to one token more, and would then be those of others.
        relative = any("relative_position" in name for name, _ in module.named_parameters())
        if relative or given is None or not grid or _shape(output) != given.shape:
            return
        batch, num_tokens, channels = given.shape
        longer = torch.cat([given[:, :1], given], dim=1)
        try:
            # Past the module's hooks, of which this is one.
            result = type(module).forward(module, *_replaced(args, longer), **_renamed(args, kwargs, longer))
        except (RuntimeError, ValueError, IndexError, AssertionError):
            return
        if _shape(result) == (batch, num_tokens + 1, channels) and num_tokens >= grid[-1]:
            found[names[module]] = _Sequence(num_tokens - grid[-1], channels)

    def measure(_module: nn.Module, _args: Any, output: Any) -> None:
        # The first convolution of a plain transformer cuts the image into patches.
        if not grid and isinstance(output, Tensor):
            grid.append(output[0, 0].numel())

    names = {model.get_submodule(name): name for name in blocks}
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    hooks = [module.register_forward_hook(watch, with_kwargs=True) for module in names]
    hooks += [module.register_forward_hook(measure) for module in convolutions]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _sequence(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    given = args[0] if args else kwargs.get(_SEQUENCE)
    return given if isinstance(given, Tensor) and given.ndim == 3 else None


def _replaced(args: tuple[Any, ...], sequence: Tensor) -> tuple[Any, ...]:
    return (sequence, *args[1:]) if args else ()


def _renamed(args: tuple[Any, ...], kwargs: dict[str, Any], sequence: Tensor) -> dict[str, Any]:
    return kwargs if args else {**kwargs, _SEQUENCE: sequence}


def _shape(output: Any) -> tuple[int, ...] | None:
    first = output[0] if isinstance(output, tuple) else output
    return tuple(first.shape) if isinstance(first, Tensor) else None
