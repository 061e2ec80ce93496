"""Finds the sites of a network: which layers there are, what they are, how they are reached.

A family says which module paths are its encoder, head, blocks and stages; the scan does the rest.
Two questions cannot be answered by looking at the modules alone: whether a layer is called at all
(its weight may be read by other code, or never), and which axis of a tensor is the channel axis.
`trace` answers them with one forward and backward on the meta device, where nothing is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from segtune.models.base import SegModel
from segtune.types import Access, Part, Site, SiteKind

LinearKind = Callable[[str], SiteKind]
"""Module path of a Linear layer to its kind."""

ROWS, COLUMNS = 7, 5
"""Sides of the traced image, in units of the model's size multiple."""

_CHANNEL_FIRST_NORMS = (_BatchNorm, _InstanceNorm, nn.GroupNorm)
_CHANNEL_LAST_NORMS = (nn.LayerNorm, nn.RMSNorm)


@dataclass(frozen=True, kw_only=True)
class Trace:
    """What one forward of a model showed."""

    order: Mapping[str, int]
    """Module path -> position of its first call; modules that were not called are absent."""
    shapes: Mapping[str, tuple[int, ...]]
    """Module path -> shape of its output, where that is a single tensor."""
    used: Collection[str]
    """Names of the parameters that took part in the output."""


def trace(model: SegModel) -> Trace:
    """Runs a forward and a backward on the meta device; the model is left as it was.

    The image's sides have an unusual ratio, by which the spatial axes of a map are recognised.
    """
    spec = model.input_spec
    unit = max(spec.multiple, spec.minimum)
    images = torch.empty(2, spec.channels, ROWS * unit, COLUMNS * unit, device="meta")
    names = {module: name for name, module in model.named_modules()}
    order: dict[str, int] = {}
    shapes: dict[str, tuple[int, ...]] = {}

    def before(module: nn.Module, _args: Any) -> None:
        order.setdefault(names[module], len(order))

    def after(module: nn.Module, _args: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            shapes.setdefault(names[module], tuple(output.shape))

    hooks = [module.register_forward_pre_hook(before) for module in names]
    hooks += [module.register_forward_hook(after) for module in names]
    parameters = {
        name: parameter.detach().to("meta").requires_grad_() for name, parameter in model.named_parameters()
    }
    buffers = {name: buffer.to("meta") for name, buffer in model.named_buffers()}
    try:
        with _auxiliary_in_eval(model), torch.enable_grad(), torch.device("meta"):
            output = torch.func.functional_call(model, {**parameters, **buffers}, (images,))
            total = torch.stack([output.logits.sum(), *(a.sum() for a in output.auxiliary.values())]).sum()
            gradients = torch.autograd.grad(total, tuple(parameters.values()), allow_unused=True)
    finally:
        for hook in hooks:
            hook.remove()
    used = {name for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None}
    return Trace(order=order, shapes=shapes, used=frozenset(used))


@contextmanager
def _auxiliary_in_eval(model: SegModel) -> Iterator[None]:
    """Layers in eval mode, while the model itself still computes its auxiliary logits."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    model.training = True
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def probe_access(model: SegModel, sites: Sequence[Site]) -> dict[str, Access | Literal["unused"]]:
    """How each site's layer is really reached, found by running the model.

    Args:
        model: a model without adapters.
        sites: what it declares.

    Returns:
        For each site CALL, WEIGHT (the layer is never called, its weight is read) or "unused".
    """
    traced = trace(model)
    names = {module: name for name, module in model.named_modules()}
    return {site.name: _access(names[site.module], site.kind, traced) or "unused" for site in sites}


def _access(name: str, kind: SiteKind, traced: Trace) -> Access | None:
    called = name in traced.order
    if kind in (SiteKind.BLOCK, SiteKind.STAGE, SiteKind.TOKENS):
        return Access.CALL if called else None
    if f"{name}.weight" not in traced.used:
        return None
    return Access.CALL if called else Access.WEIGHT


def scan_sites(
    root: nn.Module,
    *,
    part: Callable[[str], Part],
    head: Collection[str],
    blocks: Sequence[str] = (),
    stages: Sequence[str] = (),
    linear_kind: LinearKind = lambda _name: SiteKind.LINEAR,
    traced: Trace | None = None,
) -> tuple[Site, ...]:
    """Every layer, block and stage of a network that a method may attach to.

    Args:
        root: the network; site names are module paths from here.
        part: module path -> part of the network (asked for everything but the head).
        head: module paths of the layers that are new for K classes.
        blocks: module paths of the repeated blocks, from input to output.
        stages: module paths of the groups of blocks.
        linear_kind: kind of a Linear layer, by its path.
        traced: what a forward showed; without it every layer counts as called, in the order in
            which the modules were registered.

    Returns:
        Sites from the input to the output; a block or stage stands before the layers inside it.
    """
    block_index = {name: index for index, name in enumerate(blocks)}
    groups = {**dict.fromkeys(stages, SiteKind.STAGE), **dict.fromkeys(blocks, SiteKind.BLOCK)}
    found: list[Site] = []
    for name, module in root.named_modules():
        kind = groups.get(name) or _layer_kind(name, module, linear_kind)
        if kind is None:
            continue
        access = Access.CALL if traced is None else _access(name, kind, traced)
        if access is None:
            continue
        is_group = name in groups
        if is_group and traced is not None and name not in traced.shapes:
            continue
        axis = _channel_axis(name, module, is_group, traced)
        in_head = any(name == top or name.startswith(f"{top}.") for top in head)
        found.append(
            Site(
                name=name,
                kind=SiteKind.HEAD if in_head else kind,
                module=module,
                part=Part.HEAD if in_head else part(name),
                block=_enclosing(name, block_index),
                channel_axis=axis,
                channels=traced.shapes[name][axis] if is_group and traced else _num_outputs(module),
                access=access,
            )
        )
    if traced is not None:
        found.sort(key=lambda site: _position(site.name, traced.order))
    return tuple(found)


def _layer_kind(name: str, module: nn.Module, linear_kind: LinearKind) -> SiteKind | None:
    if isinstance(module, nn.Conv2d):
        return SiteKind.CONV
    if isinstance(module, nn.ConvTranspose2d):
        return SiteKind.CONV_TRANSPOSE
    if isinstance(module, nn.Linear):
        return linear_kind(name)
    # A norm without parameters has nothing that could be tuned.
    if isinstance(module, _CHANNEL_FIRST_NORMS + _CHANNEL_LAST_NORMS) and module.weight is not None:
        return SiteKind.NORM
    return None


def _channel_axis(name: str, module: nn.Module, is_group: bool, traced: Trace | None) -> int:
    if isinstance(module, nn.Linear):
        return -1
    if not is_group and not isinstance(module, _CHANNEL_LAST_NORMS):
        return 1
    shape = traced.shapes.get(name) if traced is not None else None
    if shape is None:
        # Without a trace, the libraries' naming custom decides: a LayerNorm2d takes [B, C, H, W].
        return 1 if is_group or type(module).__name__.endswith("2d") else -1
    return 1 if len(shape) == 4 and not _channels_last(shape) else -1


def _num_outputs(module: nn.Module) -> int:
    """Output channels of a layer; of a group, those of the last layer that was registered in it."""
    for layer in reversed(list(module.modules())):
        if isinstance(layer, nn.Linear):
            return layer.out_features
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            return layer.out_channels
        if isinstance(layer, _CHANNEL_FIRST_NORMS + _CHANNEL_LAST_NORMS) and layer.weight is not None:
            return layer.weight.numel()
    raise AssertionError(f"{type(module).__name__} holds no layer")


def _channels_last(shape: tuple[int, ...]) -> bool:
    """Whether a traced tensor is [B, H, W, C]."""
    return shape[1] * COLUMNS == shape[2] * ROWS and shape[2] * COLUMNS != shape[3] * ROWS


def _enclosing(name: str, block_index: Mapping[str, int]) -> int | None:
    while name:
        if name in block_index:
            return block_index[name]
        name = name.rpartition(".")[0]
    return None


def _position(name: str, order: Mapping[str, int]) -> int:
    """Position of the first call of a module, or of the nearest module above that was called."""
    while name not in order:
        name = name.rpartition(".")[0]
    return order[name]
