"""Where a tuned model begins to change: how many of its sections give the same for an image for ever."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves

from segtune.methods.apply import Applied
from segtune.methods.attach import has_statistics
from segtune.models.base import SegModel


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """The sections of a model that stay the same while it is trained."""

    num_sections: int
    num_all: int
    last: str
    """Name of the last of them; empty where there is none."""
    reason: str
    """What changes in the section behind; empty where all stay the same."""
    num_bytes: int
    """What the last of them gives for one image, in bytes, as it is."""
    num_bytes_bf16: int
    """The same with its float32 tensors in bfloat16."""
    tree: TreeSpec
    """How the tensors that it gives are put together."""


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which models run in a precision."""
    dtype = torch.float16 if precision == "16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "32")


def find_prefix(model: SegModel, applied: Applied, size: tuple[int, int], precision: str) -> Prefix:
    """Runs the sections one by one on tensors without data until one changes.

    Args:
        model: the network with the method on it; its mode is left as it was.
        applied: the method.
        size: height and width of the images in pixels.
        precision: "32", "bf16" or "16".
    """
    device = next(model.parameters()).device
    sections = model.sections()
    frozen, state, reason = 0, None, ""
    # the fake mode first: what is made inside of it has no data
    with (
        _in_training(model),
        detect_fake_mode() or FakeTensorMode(allow_non_fake_inputs=True),
        autocast(device, precision),
        _called(model) as called,
        _RandomNumbers() as random,
    ):
        found: Any = model.prepared(torch.empty(1, model.input_spec.channels, *size, device=device))
        for section in sections:
            called.clear()
            found = section.run(found)
            reason = _change(applied, called, random.ops, found)
            if reason:
                break
            frozen, state = frozen + 1, found
    leaves, tree = tree_flatten(state)
    tensors = list({id(leaf): leaf for leaf in leaves if leaf is not None}.values())
    full = [t.numel() * t.element_size() for t in tensors]
    halved = [t.numel() * (2 if t.dtype == torch.float32 else t.element_size()) for t in tensors]
    return Prefix(
        num_sections=frozen,
        num_all=len(sections),
        last=sections[frozen - 1].name if frozen else "",
        reason=f"{sections[frozen].name}: {reason}" if reason else "",
        num_bytes=sum(full),
        num_bytes_bf16=sum(halved),
        tree=tree,
    )


def _change(applied: Applied, called: Collection[nn.Module], random: Collection[str], found: Any) -> str:
    """Why a section does not give the same for an image for ever; empty where it does."""
    for site, name, _ in applied.host.operations:
        if site.module in called:
            return f"{name} is on {site.name}"
    trained = {parameter: name for name, parameter in applied.parameters().items()}
    for module in called:
        for parameter in module.parameters(recurse=False):
            if parameter in trained:
                return f"{trained[parameter]} is trained"
    if any(isinstance(leaf, torch.Tensor) and leaf.requires_grad for leaf in tree_leaves(found)):
        return "a tensor that it uses is trained"
    if any(module.training and has_statistics(module) for module in called):
        return "running statistics of its norms move"
    if random:
        return f"it draws random numbers ({', '.join(sorted(random))})"
    return ""


@contextmanager
def _in_training(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _called(model: nn.Module) -> Iterator[dict[nn.Module, None]]:
    """The modules that are called while the block runs, in the order of their first call."""
    called: dict[nn.Module, None] = {}

    def note(module: nn.Module, _: Any) -> None:
        called[module] = None

    hooks = [module.register_forward_pre_hook(note) for module in model.modules()]
    try:
        yield called
    finally:
        for hook in hooks:
            hook.remove()


class _RandomNumbers(TorchDispatchMode):
    """Notes the operations that draw random numbers."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ops: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            names = [argument.name for argument in func._schema.arguments]
            given = {**dict(zip(names, args, strict=False)), **(kwargs or {})}
            # attention and dropout draw only where something is dropped
            absent = 0.0 if "dropout_p" in names else 1.0
            if given.get("dropout_p", given.get("p", absent)):
                self.ops.add(func._schema.name.partition("::")[2])
        return func(*args, **(kwargs or {}))
