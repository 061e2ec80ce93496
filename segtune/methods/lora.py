"""Low-rank change of every linear and convolution layer.

What it changes
    A layer's weight becomes `W0 + s B A` with B = 0 at the start, so that the model starts as the
    base. `s = alpha / r`, or `alpha / sqrt(r)` with `rank_stabilised`. With `targets`, only those outputs
    of a fused layer are changed (e.g. queries and values) and B has rows for them alone.

Where it attaches
    Linear, Conv2d and ConvTranspose2d layers with any stride, dilation, groups (depthwise too),
    padding mode, `padding="same"`, and subclasses of them; the classifier where it is not trained as
    a whole (`train_head=false`). Unless `kinds` says otherwise: the query, key and value projections
    of a model that has attention, every such layer of one that has none.

Parameters
    Linear `r (I + O)`; Conv2d `r (I/g k k + O)`; ConvTranspose2d `r (I k k + O/g)`, for I inputs, O
    outputs (of a fused layer with `targets`: those), g groups and a k x k kernel.

When to use it
    For adapters of a few megabytes that merge into the base at no cost in inference. It saves
    optimiser state and file size; it does not save activation memory, and a step is not faster than
    full tuning.

Source
    Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021, section 4.1; scale of rank
    stabilisation: Kalajdzievski, 2023, section 3.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from segtune.errors import UsageError
from segtune.methods.attach import Operation, Order, full_precision, own_weight
from segtune.methods.base import Host, Method, PlacementSettings
from segtune.methods.branch import add_product, as_computed
from segtune.methods.layers import Ranges, named_ranges, runs_as_called, spread, width_of
from segtune.types import Access, Site, SiteKind

Form = Literal["branch", "weight"]

BRANCH_FAN_IN = 1024
"""From this many inputs of a convolution's output pixel on, the branch is the faster form."""

LAYER_KINDS = frozenset(
    {
        SiteKind.ATTENTION_QKV,
        SiteKind.ATTENTION_PROJ,
        SiteKind.MLP,
        SiteKind.LINEAR,
        SiteKind.CONV,
        SiteKind.CONV_TRANSPOSE,
    }
)
"""Kinds of sites that have a weight to change."""


class LowRankSettings(PlacementSettings):
    """Settings of every method that changes weights by a product of two thin matrices."""

    rank: int = Field(4, ge=1, description="r, the rank of the change")
    alpha: float | None = Field(None, gt=0, description="scale numerator; default: the rank, so that s = 1")
    targets: tuple[str, ...] | None = Field(
        None, min_length=1, description="outputs of fused layers to change, e.g. q,v; default: all"
    )
    kinds: (
        tuple[Literal["attention_qkv", "attention_proj", "mlp", "linear", "conv", "conv_transpose"], ...]
        | None
    ) = Field(
        None,
        min_length=1,
        description="kinds of sites to attach to; default: attention_qkv where the model has it, else all",
    )


class LoraSettings(LowRankSettings):
    """Settings of `lora`."""

    rank_stabilised: bool = Field(False, description="scale by alpha / sqrt(r) (rsLoRA)")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of the branch's inputs dropped in training")


class LoraOperation(Operation):
    """`W0 + s B A` on one layer.

    Two forms compute the same function from the same tensors. The branch adds `s B (A x)` to the
    layer's output; the weight form lets the layer run on `W0 + s B A`, which is right for every
    layer whatever it does with its weight, and costs a full weight gradient.

    Args:
        layer: nn.Linear, nn.Conv2d or nn.ConvTranspose2d, or a subclass.
        rank: r.
        scale: s.
        dropout: share of the branch's inputs set to zero in training.
        form: "branch" or "weight".
        ranges: of the outputs that are changed; default: all.
    """

    down: Tensor

    def __init__(
        self,
        layer: nn.Module,
        *,
        rank: int,
        scale: float,
        dropout: float = 0.0,
        form: Form,
        ranges: Ranges | None = None,
    ) -> None:
        super().__init__()
        self.rows, columns = factor_shape(layer)
        self.ranges = ((0, self.rows),) if ranges is None else tuple(ranges)
        self.scale = scale
        self.dropout = dropout
        self.changes_weight = form == "weight"
        self.transposed = isinstance(layer, nn.ConvTranspose2d)
        self.down = nn.Parameter(torch.empty(rank, columns))  # A
        self.up = nn.Parameter(torch.zeros(width_of(self.ranges), rank))  # B
        # uniform in +-1/sqrt(fan in), as the layers themselves start
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def factors(self) -> tuple[Tensor, Tensor]:
        """B, with zeros for the outputs that are not changed, and A."""
        return spread(self.up, self.ranges, self.rows, 0.0), self.down

    def delta(self, shape: torch.Size) -> Tensor:
        """`s B A` in the shape of the layer's weight."""
        with full_precision(self.up.device):
            up, down = self.factors()
            up = up * self.scale
            if self.transposed:  # weight [I, O/g, k, k] = sum over r of A[r, I, k, k] B[O/g, r]
                inputs, _, height, width = shape
                return torch.einsum("or,rikl->iokl", up, down.view(-1, inputs, height, width))
            return torch.mm(up, down).view(shape)

    def weight(self, weight: Tensor) -> Tensor:
        """`W0 + s B A`."""
        return weight + self.delta(weight.shape).to(weight.dtype)

    def before(self, x: Tensor) -> Tensor:
        """The input as it is; for the branch in the type that layer and branch compute in."""
        return x if self.changes_weight else as_computed(x)

    def after(self, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """`y + s B (A x)`; unchanged in the weight form."""
        if self.changes_weight:
            return y
        if self.dropout and self.training:
            x = F.dropout(x, self.dropout)
        up, down = self.factors()
        down = down.to(x.dtype)
        if isinstance(layer, nn.Linear):
            return add_product(y, F.linear(x, down), up, self.scale)
        if isinstance(layer, nn.ConvTranspose2d):
            kernel = down.view(-1, layer.in_channels, *layer.kernel_size).transpose(0, 1)
            assert not isinstance(layer.padding, str)
            low = F.conv_transpose2d(
                x, kernel, None, layer.stride, layer.padding, layer.output_padding, 1, layer.dilation
            )
        else:
            assert isinstance(layer, nn.Conv2d)
            kernel = down.view(-1, layer.in_channels, *layer.kernel_size)
            low = layer._conv_forward(x, kernel, None)  # [B, r, h, w]
        if y.is_contiguous():
            batch = up.to(y.dtype).expand(y.shape[0], -1, -1)
            return torch.baddbmm(y.flatten(2), batch, low.flatten(2), alpha=self.scale).view(y.shape)
        if y.is_contiguous(memory_format=torch.channels_last):
            return add_product(y, low, up, self.scale, channel_axis=1)
        return y + F.conv2d(low, (up.to(y.dtype) * self.scale)[:, :, None, None])

    @property
    def order(self) -> Order:
        """A sum, in either form."""
        return Order.ADDS_TO_WEIGHT

    def fold(self, layer: nn.Module) -> None:
        """Adds `s B A` to the layer's weight."""
        weight = own_weight(layer)
        weight.add_(self.delta(weight.shape).to(weight.dtype))

    def merge_refusal(self) -> str | None:
        """None: it always folds."""
        return None


def factor_shape(layer: nn.Module) -> tuple[int, int]:
    """Rows of B and columns of A for a layer: the two sides of its weight as a matrix."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    assert isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d))
    height, width = layer.kernel_size
    if isinstance(layer, nn.ConvTranspose2d):
        return layer.out_channels // layer.groups, layer.in_channels * height * width
    return layer.out_channels, layer.in_channels // layer.groups * height * width


def branch_possible(layer: nn.Module, access: Access) -> bool:
    """Whether the branch computes the same as the changed weight on this layer."""
    if not runs_as_called(layer, access):
        return False
    if isinstance(layer, nn.Linear):
        return True
    assert isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d))
    return layer.groups == 1


def choose_form(layer: nn.Module, access: Access) -> Form:
    """The faster form of the two that are right for this layer (benchmarks/lora_forms.py)."""
    if not branch_possible(layer, access):
        return "weight"
    if isinstance(layer, nn.Linear):
        return "branch"
    assert isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d))
    fan_in = layer.in_channels * math.prod(layer.kernel_size)
    return "branch" if fan_in >= BRANCH_FAN_IN else "weight"


class LowRank(Method):
    """A method that changes weights by a product of two thin matrices."""

    settings: LowRankSettings
    name: ClassVar[str]
    """The method's own, for the keys of its tensors and in messages."""

    @classmethod
    def rate_for(cls, sites: Iterable[Site]) -> float:
        """Five times as much on convolutions alone, where 1e-3 learns too slowly (docs/results.md)."""
        convolutions = {SiteKind.CONV, SiteKind.CONV_TRANSPOSE, SiteKind.HEAD}
        only = all(site.kind in convolutions for site in sites)
        return cls.learning_rate * (5 if only else 1)

    def apply(self, host: Host) -> None:
        """Attaches an operation to every chosen site."""
        self._check_targets(host)
        usable = [site for site in host.sites if self.ranges(site) != ()]
        for site in host.select(self._kinds(host), self.settings, self.name, among=usable):
            host.attach(site, self.name, self.operation(site))

    @abstractmethod
    def operation(self, site: Site) -> Operation:
        """What is attached to a site."""

    @property
    def scale(self) -> float:
        """`s`."""
        return 1.0 if self.settings.alpha is None else self.settings.alpha / self.settings.rank

    def ranges(self, site: Site) -> Ranges | None:
        """Which outputs of a site are changed; None: all."""
        if self.settings.targets is None or not site.splits:
            return None
        return named_ranges(site, self.settings.targets)

    def num_rows(self, site: Site) -> int:
        """Rows of B."""
        ranges = self.ranges(site)
        return factor_shape(site.module)[0] if ranges is None else width_of(ranges)

    def _kinds(self, host: Host) -> frozenset[SiteKind]:
        if self.settings.kinds is not None:
            return frozenset(SiteKind(kind) for kind in self.settings.kinds)
        has_attention = any(site.kind is SiteKind.ATTENTION_QKV for site in host.sites)
        return frozenset({SiteKind.ATTENTION_QKV}) if has_attention else LAYER_KINDS

    def num_parameters(self, site: Site) -> int:
        """`r (rows of B + columns of A)`."""
        return self.settings.rank * (self.num_rows(site) + factor_shape(site.module)[1])

    def _check_targets(self, host: Host) -> None:
        known = {name for site in host.sites for name, _, _ in site.splits}
        names = ", ".join(sorted(known))
        for target in self.settings.targets or ():
            if target not in known:
                raise UsageError(
                    f"{self.name}: method.targets names {target!r}; no layer of this model has such outputs",
                    hint=f"named outputs: {names}" if known else "leave method.targets out",
                )


class Lora(LowRank):
    """LoRA on linear and convolution layers."""

    settings: LoraSettings
    name = "lora"
    operation_class: ClassVar[type[LoraOperation]] = LoraOperation

    @property
    def scale(self) -> float:
        """`s`."""
        rank = self.settings.rank
        return super().scale * (math.sqrt(rank) if self.settings.rank_stabilised else 1.0)

    def operation(self, site: Site) -> LoraOperation:
        """A `LoraOperation`, in the faster form of those that are right for the site."""
        form = choose_form(site.module, site.access)
        if self.settings.dropout:
            if not branch_possible(site.module, site.access):
                raise UsageError(
                    f"{self.name}: dropout cannot be had on {site.name} ({_describe(site.module)}), whose"
                    " change goes through the weight",
                    hint="set method.dropout=0, or leave such layers out with method.exclude",
                )
            form = "branch"
        return self.operation_class(
            site.module,
            rank=self.settings.rank,
            scale=self.scale,
            dropout=self.settings.dropout,
            form=form,
            ranges=self.ranges(site),
        )


def _describe(layer: nn.Module) -> str:
    groups = getattr(layer, "groups", 1)
    cls = getattr(type(layer), "adapted_class", type(layer))
    return f"{cls.__name__}, {groups} groups" if groups != 1 else cls.__name__
