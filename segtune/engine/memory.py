"""How much memory a training step holds at its peak, found by running it on tensors without data.

Every tensor that an operation makes is counted from then on until nothing refers to it any more, through
forward, loss and backward, as on the real device; the same requests go to a model of the C library's heap
(engine/heap.py). What kernels need inside of one operation is not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry

from segtune.engine.build import takes_proposals
from segtune.engine.heap import Heap
from segtune.engine.prefix import autocast
from segtune.engine.prompts import example_prompts
from segtune.methods.apply import Applied
from segtune.models.base import SegModel
from segtune.models.chunked_attention import STANDS_FOR
from segtune.models.sections import Cut, run_sections
from segtune.types import SegOutput


@dataclass(frozen=True)
class Step:
    """What a training step takes."""

    peak: int
    """Bytes of living tensors at their peak, beside weights and the optimiser's state."""
    heap: int
    """Bytes that the C library holds for these at its own peak."""
    operations: int
    """Additions and multiplications of its products, convolutions and attention."""


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors that were made inside of it and are still there, and operations."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.peak = 0
        self.operations = 0
        self.heap = Heap()
        self._sizes: dict[int, tuple[Any, int, int]] = {}
        self._foreign: frozenset[int] = frozenset()

    def leave_out(self, tensors: Iterable[Tensor]) -> None:
        """Tensors that were there before, and views of them, are not counted."""
        self._foreign = frozenset(tensor.untyped_storage()._cdata for tensor in tensors)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.operations += STANDS_FOR.get() * count(*args, **(kwargs or {}), out_val=result)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._hold(leaf.untyped_storage())
        self.peak = max(self.peak, self.live)
        return result

    def _hold(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._sizes or key in self._foreign:
            return
        size = storage.nbytes()
        self.live += size
        block = self.heap.allocate(size)
        self._sizes[key] = (weakref.ref(storage, lambda _: self._free(key)), size, block)

    def _free(self, key: int) -> None:
        _, size, block = self._sizes.pop(key)
        self.live -= size
        self.heap.free(block)


def run_step(
    model: SegModel,
    applied: Applied,
    *,
    batch_size: int,
    size: tuple[int, int],
    precision: str,
    loss: nn.Module | None = None,
    accumulate: bool = False,
    num_sections: int = 0,
) -> Step:
    """Runs a training step, but for the optimiser's, and counts what it takes.

    Args:
        model: made of tensors without data, in training mode.
        applied: the method on it.
        batch_size: images in a batch.
        size: height and width of the training images in pixels.
        precision: "32", "bf16" or "16".
        loss: (logits or proposals, masks) to a scalar; default, and where it cannot run without data:
            cross entropy.
        accumulate: gradients of an earlier batch are there already.
        num_sections: sections of the model whose activations are read from a cache.
    """
    device = next(model.parameters()).device
    with LiveBytes() as counted:
        counted.leave_out([*model.parameters(), *model.buffers()])
        parameters = list(applied.parameters().values())
        if accumulate:
            for parameter in parameters:
                parameter.grad = torch.empty_like(parameter)
        # on a processor the loader's own batch is there too
        loaded = torch.empty(batch_size, model.input_spec.channels, *size, device=device)
        images = loaded.to(memory_format=torch.channels_last)
        if device.type != "cpu":
            del loaded
        masks = torch.zeros(batch_size, *size, dtype=torch.long, device=device)
        with autocast(device, precision):
            cut = _cut(model, images, num_sections)
            counted.operations = 0  # from the second epoch on
            output = model(images, prompts=example_prompts(model, images), cut=cut)
            total = _loss(output, masks, loss)
        del output
        if total.requires_grad:
            total.backward()  # type: ignore[no-untyped-call]
        for parameter in parameters:
            parameter.grad = None
    return Step(peak=counted.peak, heap=counted.heap.peak, operations=counted.operations)


def _cut(model: SegModel, images: Tensor, num_sections: int) -> Cut | None:
    if not num_sections:
        return None
    with torch.no_grad():
        state = run_sections(model.sections()[:num_sections], model.prepared(images[:1]))
    count = len(images)
    return Cut(num_sections, tree_map(lambda kept: kept.repeat(count, *[1] * (kept.ndim - 1)), state))


def _loss(output: SegOutput, masks: Tensor, loss: nn.Module | None) -> Tensor:
    logits = [output.logits.float(), *(each.float() for each in output.auxiliary.values())]
    if loss is not None:
        try:
            if takes_proposals(loss):
                total: Tensor = loss(output.proposals, masks)
            else:
                total = torch.stack([loss(each, masks) for each in logits]).sum()
            return total
        except (DataDependentOutputException, DynamicOutputShapeException):
            pass  # what it makes depends on the data
    return torch.stack([nn.functional.cross_entropy(each, masks) for each in logits]).sum()


@contextmanager
def without_data(model: SegModel) -> Iterator[None]:
    """A model on the meta device becomes one of tensors without data inside of the block."""
    model.to(memory_format=torch.channels_last)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        yield
