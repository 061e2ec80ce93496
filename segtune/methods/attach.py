"""Attaching trained tensors to a layer that stays where it is, what it is and what it is called.

`attach` swaps the layer's class for a subclass made at run time and adds one child that holds the
operations. Module paths, `isinstance` and every state-dict key of the base stay unchanged, and code
that reads `layer.weight` instead of calling the layer sees the adapted weight: a wrapper module
would be bypassed there without a word (docs/decisions/0002-adapter-layer.md).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from enum import IntEnum
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

OPERATIONS = "adapters"
"""Name of the child that holds a layer's operations; the keys of its tensors start with it."""


class Order(IntEnum):
    """When an operation acts on a layer that has several; equal ones act as they were attached.

    A sum is computed as a branch beside the layer or in its weight, whichever is faster. Because of
    this order the outcome does not depend on which one it was, and folding gives the same.
    """

    REPLACES_WEIGHT = 0
    ADDS_TO_WEIGHT = 1
    AROUND = 2


class Operation(nn.Module):
    """What a method does on one layer: any of three hooks around the layer's own forward.

    Every hook starts as the identity. Tensors are kept in float32 whatever the layer's type, as
    steps of a small learning rate vanish in the rounding of bfloat16 weights.
    """

    changes_weight: bool = False
    """True where `weight` is used: the layer then computes with the changed weight (and bias)."""

    replaces_call: bool = False
    """True where `call` runs in place of the layer's own forward."""

    constants: frozenset[str] = frozenset()
    """Names of tensors that are saved with the adapter and that nothing moves."""

    penalty: Tensor | None = None
    """Scalar loss of the last forward in training, where the operation has one."""

    def before(self, x: Tensor) -> Tensor:
        """The layer's input, changed."""
        return x

    def weight(self, weight: Tensor) -> Tensor:
        """The layer's weight, changed; same shape."""
        return weight

    def bias(self, bias: Tensor | None) -> Tensor | None:
        """The layer's bias, changed; asked for where `changes_weight`."""
        return bias

    def call(self, layer: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The layer's output for the input x; asked for where `replaces_call`."""
        raise AssertionError(f"{type(self).__name__} does not run in place of its layer")

    def after(self, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """The layer's output y for the input x, changed; same shape as y."""
        return y

    def fold(self, layer: nn.Module) -> None:
        """Writes the operation into the layer's own tensors, under `no_grad`."""
        raise AssertionError(f"{type(self).__name__} is not mergeable")  # checked by the caller

    def merge_refusal(self) -> str | None:
        """Why the operation cannot be folded into its layer; None where it can."""
        return "it is not a linear change of the layer's weights"

    @property
    def order(self) -> Order:
        """When it acts on a layer that has several operations."""
        return Order.REPLACES_WEIGHT if self.changes_weight else Order.AROUND

    def rate_factors(self) -> Mapping[str, float]:
        """Learning rates of its parameters by name, as multiples of the run's, where they differ from it."""
        return {}


class Adapted:
    """Mixed in before a layer's own class."""

    adapted_class: ClassVar[type[nn.Module]]
    _modules: dict[str, nn.Module | None]
    _parameters: dict[str, nn.Parameter | None]
    training: bool
    statistics_frozen = False

    def operations(self) -> Iterator[Operation]:
        """The layer's operations in the order in which they were attached."""
        held = self._modules.get(OPERATIONS)
        if held is not None:
            yield from held.children()  # type: ignore[misc]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The layer's own forward, or what runs in its place, with every operation around it."""
        run = super().forward  # type: ignore[misc]
        for operation in self.operations():
            x = operation.before(x)
            if operation.replaces_call:
                run = functools.partial(operation.call, self)  # type: ignore[arg-type]
        y = run(x, *args, **kwargs)
        for operation in self.operations():
            y = operation.after(self, x, y)  # type: ignore[arg-type]
        return y

    def train(self, mode: bool = True) -> Any:
        """Sets the mode; frozen running statistics stay as they are."""
        super().train(mode)  # type: ignore[misc]
        if self.statistics_frozen:
            self.training = False
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _rebuild, (self.adapted_class, isinstance(self, AdaptedWeight)), self.__dict__


class AdaptedWeight(Adapted):
    """The same for a layer that has a weight."""

    @property
    def weight(self) -> Tensor:
        """The effective weight: what the layer, and whoever reads it, computes with."""
        weight = self._parameters["weight"]
        assert weight is not None
        effective: Tensor = weight
        if hasattr(weight, "full_tensor"):  # a shard: read by what shards it, nobody computes with it
            return effective
        for operation in self.operations():
            if operation.changes_weight:
                effective = operation.weight(effective)
        return effective

    @property
    def bias(self) -> Tensor | None:
        """The effective bias."""
        if "bias" not in self._parameters:
            raise AttributeError(f"{type(self).__name__} has no bias")
        effective: Tensor | None = self._parameters["bias"]
        if hasattr(effective, "full_tensor"):
            return effective
        for operation in self.operations():
            if operation.changes_weight:
                effective = operation.bias(effective)
        return effective


class AdaptedSequence(Adapted):
    """The same for a sequence of layers, whose forward runs through its children."""

    def __iter__(self) -> Iterator[nn.Module | None]:
        return (child for name, child in self._modules.items() if name != OPERATIONS)

    def __len__(self) -> int:
        return len(self._modules) - (OPERATIONS in self._modules)


@functools.cache
def _make(cls: Any, has_weight: bool) -> Any:
    mixin: type[Adapted] = AdaptedWeight if has_weight else Adapted
    if issubclass(cls, nn.Sequential):
        mixin = AdaptedSequence
    return type(f"Adapted{cls.__name__}", (mixin, cls), {"adapted_class": cls})


def _adapted(cls: type[nn.Module], has_weight: bool) -> type[nn.Module]:
    key: Any = cls
    made: type[nn.Module] = _make(key, has_weight)
    return made


def _rebuild(cls: type[nn.Module], has_weight: bool) -> nn.Module:
    made = _adapted(cls, has_weight)
    return made.__new__(made)


def own_weight(layer: nn.Module) -> nn.Parameter:
    """The layer's own weight, without any operation."""
    weight = layer._parameters["weight"]
    assert weight is not None
    return weight


def num_numbers(parameter: Tensor) -> int:
    """How many numbers a parameter holds: a byte of codes holds two of 4 bits (engine/quantize.py)."""
    return parameter.numel() * (2 if parameter.dtype == torch.uint8 else 1)


def _swap(layer: nn.Module) -> None:
    if not isinstance(layer, Adapted):
        layer.__class__ = _adapted(type(layer), layer._parameters.get("weight") is not None)


def _restore(layer: nn.Module) -> None:
    if isinstance(layer, Adapted) and not layer.statistics_frozen and OPERATIONS not in layer._modules:
        layer.__class__ = layer.adapted_class  # type: ignore[assignment]


def attach(layer: nn.Module, name: str, operation: Operation) -> None:
    """Puts an operation on a layer, behind those it has of the same order.

    Args:
        layer: any module whose first argument is a tensor, and whose result is what `after` expects.
        name: the operation's name, unique on this layer.
        operation: put on the layer's device, and into its training mode.
    """
    _swap(layer)
    held = layer._modules.get(OPERATIONS)
    if held is None:
        held = nn.ModuleDict()
        held.train(layer.training)
        layer.add_module(OPERATIONS, held)
    assert isinstance(held, nn.ModuleDict) and name not in held, f"{name} is on the layer already"
    held[name] = operation.train(layer.training)
    in_order = sorted(held.items(), key=_order_of)
    held.clear()
    held.update(dict(in_order))


def _order_of(item: tuple[str, nn.Module]) -> Order:
    assert isinstance(item[1], Operation)
    return item[1].order


def detach(layer: nn.Module, name: str) -> None:
    """Takes an operation off; the layer gets its own class back with the last one."""
    held = layer._modules[OPERATIONS]
    assert isinstance(held, nn.ModuleDict)
    del held[name]
    if not len(held):
        del layer._modules[OPERATIONS]
    _restore(layer)


def set_statistics_frozen(layer: nn.Module, frozen: bool) -> None:
    """Keeps (or no longer keeps) a norm layer's running statistics still in training mode."""
    if frozen:
        _swap(layer)
        assert isinstance(layer, Adapted)
        layer.statistics_frozen = True
        layer.train(layer.training)
    elif isinstance(layer, Adapted) and layer.statistics_frozen:
        del layer.statistics_frozen
        _restore(layer)


def has_statistics(layer: nn.Module) -> bool:
    """Whether a layer keeps running statistics."""
    return isinstance(layer, nn.modules.batchnorm._NormBase) and layer.running_mean is not None


def full_precision(device: torch.device) -> torch.autocast:
    """A context in which weights are computed in their own precision, under autocast too."""
    return torch.autocast(device.type if device.type != "meta" else "cpu", enabled=False)
