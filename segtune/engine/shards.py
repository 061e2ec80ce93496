"""A model whose parameters are divided among the processes of a run (`train.strategy=fsdp`).

Every process holds a part of each frozen parameter, and gathers those of a block when the block runs. What is
trained stays whole in every process where it is the smaller part of the model, as an adapter is: its
gradients are averaged. Where most of the model is trained (`full`), that is divided too, with its gradients
and the optimiser's state (docs/decisions/0026-sharding.md).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from segtune.methods.apply import Applied
from segtune.methods.base import Role
from segtune.types import SiteKind

CUT_AT = (SiteKind.BLOCK, SiteKind.STAGE)
"""Kinds of sites whose parameters are gathered and given up together, the first that a model has."""


class Shards:
    """The divided model of one run, as one process sees it.

    Args:
        applied: the method on the model; divided in place.
        mesh: the processes.
    """

    def __init__(self, applied: Applied, mesh: DeviceMesh) -> None:
        self.applied = applied
        counts = applied.counts()
        of_base = counts["trainable"] - counts[Role.ADAPTER]
        self.trained_too = 2 * of_base > counts["total"]
        """Whether what is trained is divided as well."""
        kept = set() if self.trained_too else set(applied.parameters().values())
        self._owned = applied.owned()
        # what the network returns is a view where it was padded; nobody writes into it
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
        for parameter in applied.model.parameters():
            parameter.data = parameter.data.contiguous()  # only such can be divided; channels-last is not
        parts = _parts(applied)
        for part in (*parts, applied.model):
            fully_shard(part, mesh=mesh, ignored_params=kept)
        self.modules = [module for module in applied.model.modules() if isinstance(module, FSDPModule)]
        # what is gathered next on the way back is named, not left to the order of past forwards: processes
        # score unequal numbers of images, and would then wait for each other over different blocks
        root, *blocks = self.modules
        root.set_modules_to_backward_prefetch([blocks[-1] if blocks else root])
        for number, block in enumerate(blocks):
            block.set_modules_to_backward_prefetch([blocks[max(number - 1, 0)]])
        self._rebind()

    def _rebind(self) -> None:
        """Dividing and gathering put other tensors under the same names."""
        self.applied.host.rebind(self._owned)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Within it every process has the whole model, and runs it without the others.

        What is written to a divided parameter within it is lost.
        """
        for module in self.modules:
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()
        self._rebind()
        for buffer in self.applied.buffers().values():  # each process has moved its own
            dist.broadcast(buffer, src=0)
        try:
            yield
        finally:
            for module in self.modules:
                module.set_reshard_after_forward(module is not self.applied.model, recurse=False)
                module.reshard()
            self._rebind()

    def synchronise(self, enabled: bool) -> None:
        """Whether the next backward pass averages the gradients of what is divided."""
        for module in self.modules:
            module.set_requires_gradient_sync(enabled, recurse=False)

    def average_gradients(self) -> None:
        """Averages over the processes the gradients of what is whole in each of them."""
        if self.trained_too:
            return
        parameters = list(self.applied.parameters().values())
        used = torch.tensor([float(parameter.grad is not None) for parameter in parameters])
        flat = torch.cat([used.to(parameters[0].device), *(_gradient(p).flatten() for p in parameters)])
        dist.all_reduce(flat)
        sizes = [len(parameters), *(parameter.numel() for parameter in parameters)]
        used, *parts = torch.split(flat, sizes)
        for parameter, part, count in zip(parameters, parts, used.tolist(), strict=True):
            # no process had a gradient: no step, no weight decay
            parameter.grad = part.view_as(parameter) / dist.get_world_size() if count else None


def _parts(applied: Applied) -> list[nn.Module]:
    for kind in CUT_AT:
        found = [site.module for site in applied.host.sites if site.kind is kind]
        if found:
            return found
    return []


def _gradient(parameter: nn.Parameter) -> Tensor:
    """Zeros where nothing in this process's part of the batch needed it (no prompt of that kind)."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def gathered(state: Any, keep: bool = True) -> Any:
    """An optimiser's state with every divided tensor put together, on the processor.

    Args:
        state: what `state_dict` of the optimiser gives; every process must call this at once.
        keep: whether this process needs the result; otherwise the tensors in it are None.
    """
    if isinstance(state, DTensor):
        whole = state.full_tensor()
        return whole.cpu() if keep else None
    if isinstance(state, Mapping):
        return {key: gathered(value, keep) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(gathered(value, keep) for value in state)
    return state


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Loads an optimiser's whole state, each tensor divided as its parameter is."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    divided = {
        number: {
            name: value if name == "step" else _like(value, parameters[number])
            for name, value in values.items()
        }
        for number, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": divided})


def _like(value: Any, parameter: Tensor) -> Any:
    if isinstance(parameter, DTensor) and isinstance(value, Tensor):
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    return value
