"""The frozen base in fewer bits: weights of linear layers as int8 or nf4, made floats where they are used.

A layer keeps the codes in the place of its weight; an operation keeps the scales and runs the layer. Neither
pass keeps a weight made of floats, and what other code reads as `layer.weight` is right too.
"""

from __future__ import annotations

import logging
import sys
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from segtune.engine.half import is_read
from segtune.errors import MissingExtraError, UsageError
from segtune.methods.apply import Applied
from segtune.methods.attach import Adapted, Operation, attach, detach, own_weight
from segtune.methods.branch import as_computed
from segtune.methods.layers import has_plain_forward
from segtune.models.base import SegModel, keys_below

Kind = Literal["int8", "nf4"]
NAME = "quantized"
"""Of the operation on a layer."""
BLOCK = 64
"""Numbers of an nf4 weight that share a scale, as in QLoRA."""


class QuantizedWeight(Operation):
    """A linear layer's frozen weight as codes and scales.

    Args:
        layer: nn.Linear; its weight becomes a tensor of codes.
    """

    changes_weight = True
    replaces_call = True
    scales: Tensor

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        codes, scales = self.encode(own_weight(layer).detach())
        own_weight(layer).data = codes  # the same parameter: others hold it too, and would keep the floats
        self.register_buffer("scales", scales)

    @staticmethod
    @abstractmethod
    def fits(weight: Tensor) -> bool:
        """Whether a weight of this shape can be encoded."""

    @staticmethod
    @abstractmethod
    def encode(weight: Tensor) -> tuple[Tensor, Tensor]:
        """A weight [O, I] as codes and scales."""

    @staticmethod
    @abstractmethod
    def decode(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
        """The weight [O, I] of codes and scales, in a type of floats."""

    def weight(self, weight: Tensor) -> Tensor:
        """The weight as floats, for who reads it instead of calling the layer."""
        return self.decode(weight, self.scales, torch.float32)

    def call(self, layer: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output, computed in the type that autocast asks for."""
        x = as_computed(x)
        bias: Tensor | None = layer.bias  # type: ignore[assignment]
        y: Tensor = _Linear.apply(
            x, own_weight(layer), self.scales, None if bias is None else bias.to(x.dtype), type(self)
        )
        return y


class Int8Weight(QuantizedWeight):
    """Whole numbers from -127 to 127 with one scale for each output: 1 byte a number."""

    @staticmethod
    def fits(weight: Tensor) -> bool:
        """Always."""
        return True

    @staticmethod
    def encode(weight: Tensor) -> tuple[Tensor, Tensor]:
        """Each row over its largest value: codes [O, I], scales [O, 1]."""
        scales = weight.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny) / 127
        return (weight / scales).round_().to(torch.int8), scales

    @staticmethod
    def decode(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
        """Codes times scales."""
        return codes.to(dtype).mul_(scales.to(dtype))


class Nf4Weight(QuantizedWeight):
    """The 16 values of QLoRA's normal float, with one scale for 64 numbers: 0.56 bytes a number."""

    @staticmethod
    def fits(weight: Tensor) -> bool:
        """Whole blocks, and rows of whole bytes."""
        return weight.shape[1] % 2 == 0 and weight.numel() % BLOCK == 0

    @staticmethod
    def encode(weight: Tensor) -> tuple[Tensor, Tensor]:
        """Two numbers to a byte: codes [O, I/2], scales [O I/64]."""
        packed, state = _library().quantize_4bit(weight.contiguous(), blocksize=BLOCK, quant_type="nf4")
        return packed.view(len(weight), -1), state.absmax

    @staticmethod
    def decode(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
        """Values of the codes times scales."""
        functional = _library()
        # one block to a row: the library's kernel for processors is wrong where a block crosses into the next
        shape = torch.Size((len(scales), BLOCK))
        state = functional.QuantState(scales, shape=shape, dtype=dtype, blocksize=BLOCK, quant_type="nf4")
        weight: Tensor = functional.dequantize_4bit(codes.view(-1, 1), state)
        return weight.view(codes.shape[0], 2 * codes.shape[1])


KINDS: dict[Kind, type[QuantizedWeight]] = {"int8": Int8Weight, "nf4": Nf4Weight}


class _Linear(torch.autograd.Function):
    """x W^T + bias, which keeps the codes for the way back and not the floats made of them."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None, kind: type[QuantizedWeight]
    ) -> Tensor:
        ctx.save_for_backward(codes, scales)
        ctx.kind = kind
        return F.linear(x, kind.decode(codes, scales, x.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        codes, scales = ctx.saved_tensors
        grad_x = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ ctx.kind.decode(codes, scales, grad.dtype)
        if ctx.needs_input_grad[3]:
            grad_bias = grad.flatten(0, -2).sum(0)
        return grad_x, None, None, grad_bias, None


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """What was quantized."""

    kind: Kind
    num_layers: int
    bytes_before: int
    bytes_after: int

    def describe(self) -> str:
        """One line for the user."""
        return (
            f"quantized: {self.num_layers} frozen linear layers in {self.kind},"
            f" {self.bytes_after / 2**20:.1f} MiB in place of {self.bytes_before / 2**20:.1f}"
            " (model.quantize)"
        )


@torch.no_grad()
def quantize_frozen(applied: Applied, kind: Kind) -> Quantized:
    """Quantizes the weights of frozen linear layers that nothing changes or trains; the head stays.

    Args:
        applied: the method on the model, whose weights are loaded.
        kind: "int8" or "nf4".

    Raises:
        MissingExtraError: nf4, and bitsandbytes is not installed.
        UsageError: there is no such layer.
    """
    model = applied.model
    assert isinstance(model, SegModel)
    if kind == "nf4":
        _library()
    found = [layer for layer in _layers(applied, model) if KINDS[kind].fits(own_weight(layer))]
    if not found:
        raise UsageError(
            f"model.quantize={kind}, but no linear layer is frozen and left as it is by {applied.method}",
            hint="leave model.quantize out; it is for transformers with an adapter, e.g. sam-... with lora",
        )
    before = after = 0
    for layer in found:
        before += _bytes(own_weight(layer))
        operation = KINDS[kind](layer)
        attach(layer, NAME, operation)
        after += _bytes(own_weight(layer)) + _bytes(operation.scales)
    return Quantized(kind=kind, num_layers=len(found), bytes_before=before, bytes_after=after)


def _layers(applied: Applied, model: SegModel) -> Iterator[nn.Linear]:
    users = Counter(weight for module in model.modules() for weight in module._parameters.values())
    head = set(keys_below([f"{name}." for name, _ in model.named_modules()], model.head_names()))
    for name, layer in model.named_modules():
        if not isinstance(layer, nn.Linear) or f"{name}." in head or f"{name}.weight" in model.unused:
            continue
        weight = own_weight(layer)
        if (
            weight.dtype == torch.float32
            and weight not in applied.host.owned
            and users[weight] == 1  # another layer may need it as it is
            and has_plain_forward(layer)
            and not is_read(layer)
        ):
            yield layer


@torch.no_grad()
def give_back_floats(model: nn.Module) -> None:
    """Every quantized weight becomes the floats that it stands for."""
    for layer in list(model.modules()):
        if isinstance(layer, Adapted):
            for operation in list(layer.operations()):
                if isinstance(operation, QuantizedWeight):
                    whole = operation.weight(own_weight(layer))
                    detach(layer, NAME)
                    own_weight(layer).data = whole


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _library() -> Any:
    """`bitsandbytes.functional`.

    Raises:
        MissingExtraError: it is not installed.
    """
    loaded = sys.modules.get("bitsandbytes.functional")
    if loaded is not None:
        return loaded
    try:
        with _without_downloads():
            from bitsandbytes import functional
    except ImportError:
        raise MissingExtraError("bitsandbytes", extra="nf4", purpose="model.quantize=nf4") from None
    return functional


@contextmanager
def _without_downloads() -> Iterator[None]:
    """On some processors the library fetches compiled code from the Hub, or says that it could not.

    It does so where the package `kernels` is installed, and for a function that is not called here.
    """
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    level, hidden = logger.level, "kernels" not in sys.modules
    if hidden:
        nothing: dict[str, ModuleType | None] = sys.modules  # type: ignore[assignment]
        nothing["kernels"] = None  # importing it is an ImportError
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        if hidden:
            del sys.modules["kernels"]
