"""Sites of the networks of transformers: which modules are blocks, attention and MLP, and what they take.

The library's classes have many names for the same things; what a layer is follows from the name of its
attribute, what a block takes from running it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from segtune.models.base import SegModel
from segtune.models.sites import Trace, scan_sites, trace
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


def settle(
    model: SegModel, *, encoder: Sequence[str], head: Sequence[str]
) -> tuple[tuple[Site, ...], Trace]:
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
    with _longer_sequences(model, [name for name in blocks if name.startswith(in_encoder)]) as counts:
        traced = trace(model)
    blocks = sorted((name for name in blocks if name in traced.order), key=traced.order.__getitem__)
    sites = scan_sites(
        model,
        part=lambda name: Part.ENCODER if f"{name}.".startswith(in_encoder) else Part.DECODER,
        head=head,
        blocks=blocks,
        stages=stages,
        linear_kind=lambda name: _linear_kind(name, blocks),
        traced=traced,
    )
    return tuple(_complete(sites, blocks, counts)), traced


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
        type(part) in kinds and any(True for element in part for _ in element.children())
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
    return SiteKind.MLP if in_block else SiteKind.LINEAR


def _complete(sites: Sequence[Site], blocks: Sequence[str], counts: dict[str, int]) -> Iterator[Site]:
    """Sites with splits, windows and prefix; a block that takes longer sequences is one of tokens too."""
    modules = {site.block: site.module for site in sites if site.kind is SiteKind.BLOCK}
    for site in sites:
        name = None if site.block is None else blocks[site.block]
        done = replace(
            site,
            splits=_splits(site),
            windowed=_windowed(modules.get(site.block), name in counts),
            prefix=counts.get(name, 0) if name is not None else 0,
        )
        yield done
        if site.kind is SiteKind.BLOCK and site.name in counts:
            yield replace(done, name=f"{site.name}.tokens", kind=SiteKind.TOKENS)


def _windowed(block: nn.Module | None, sees_all: bool) -> bool | None:
    if sees_all:
        return False
    for module in () if block is None else block.modules():
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
def _longer_sequences(model: SegModel, blocks: Sequence[str]) -> Iterator[dict[str, int]]:
    """Tries, while the model is traced, which blocks take one more token in front of their sequence.

    Yields:
        Filled in by the run: for each such block, how many tokens stand in front of those of the grid.
    """
    counts: dict[str, int] = {}
    grid: list[int] = []

    def watch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        name = names[module]
        given = _sequence(args, kwargs)
        first = output[0] if isinstance(output, tuple) else output
        if given is None or not isinstance(first, Tensor) or first.shape != given.shape:
            return
        longer = torch.cat([given[:, :1], given], dim=1)
        try:
            result = type(module).forward(module, *_replaced(args, kwargs, longer)[0], **_replaced(args, kwargs, longer)[1])
        except (RuntimeError, ValueError, IndexError, AssertionError):
            return
        found = result[0] if isinstance(result, tuple) else result
        if isinstance(found, Tensor) and found.shape == longer.shape and grid:
            counts[name] = given.shape[1] - grid[-1]

    def measure(_module: nn.Module, _args: Any, output: Any) -> None:
        # The first convolution cuts the image into patches.
        if not grid and isinstance(output, Tensor) and output.ndim == 4:
            grid.append(output.shape[2] * output.shape[3])

    names = {model.get_submodule(name): name for name in blocks}
    hooks = [module.register_forward_hook(watch, with_kwargs=True) for module in names]
    hooks += [
        module.register_forward_hook(measure) for module in model.modules() if isinstance(module, nn.Conv2d)
    ]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()


def _sequence(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    given = args[0] if args else kwargs.get("hidden_states")
    return given if isinstance(given, Tensor) and given.ndim == 3 else None


def _replaced(
    args: tuple[Any, ...], kwargs: dict[str, Any], sequence: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if args:
        return (sequence, *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": sequence}
