"""Low-rank change with small convolutions at several scales between its two matrices.

What it changes
    A layer's output becomes `W0 x + s W_d (z + sum over i of g_i E_i(z))` with `z = W_e x` as a map of
    r channels. An expert enlarges z by its scale, convolves it with a 3x3 kernel, applies a GELU, and
    shrinks it again (bicubic both ways). A gate sends each map that enters the layer, a window where
    attention is windowed, to its best `top_k` experts. `W_d` = 0 at the start, so that the model starts
    as the base. `formula=paper` leaves out the GELU and the summand z and resizes bilinearly.

Where it attaches
    Linear layers (by default those of attention's queries, keys and values) and convolutions. Layers
    whose weight is read instead of being called, and grouped convolutions, are left out. Tokens
    [B, N, C] are put on the grid of the image's shape, or on a square one; class and register tokens in
    front of them pass the experts by. Tokens that lie on no grid are refused.

Parameters
    `r (I + O) + E (9 r r + r) + 2 E r` for I inputs, O outputs, E experts; I k k in place of I for a
    k x k convolution. The last summand is the gate, which is not there for a single expert.

When to use it
    Where a plain transformer lacks a sense of place: fine structures, edges, small objects. It needs a
    little more than `lora` of the same rank, and does not merge. As released, the gate learns from the
    balance loss alone (`loss.penalty_weight`), so that routing stays close to random; `gate=switch` lets
    the task teach it.

Source
    Zhong et al., Convolution Meets LoRA, 2024, section 3, and the authors' released code, from which the
    defaults are; as there, the noise's deviation is at least 0.01 and the balance loss takes unbiased
    variances.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from segtune.errors import NoSiteError, UsageError
from segtune.methods.attach import Operation, full_precision
from segtune.methods.base import Host, Method, PlacementSettings
from segtune.methods.branch import add_product, as_computed
from segtune.methods.experts import Experts, num_expert_parameters
from segtune.methods.lora import branch_possible, factor_shape
from segtune.methods.routing import Gate, mix
from segtune.types import Site, SiteKind


class ConvLoraSettings(PlacementSettings):
    """Settings of `conv-lora`."""

    rank: int = Field(3, ge=1, description="r, the rank of the change, channels of the experts")
    alpha: float | None = Field(None, gt=0, description="scale numerator; default: the rank, so that s = 1")
    num_experts: int = Field(8, ge=1, description="E, with scales 1 to E")
    scales: tuple[int, ...] | None = Field(
        None, min_length=1, description="how much each expert enlarges the map; default: 1 to num_experts"
    )
    kernel_sizes: tuple[int, ...] = Field(
        (3,), min_length=1, description="side of the experts' kernels, odd: one for all, or one for each"
    )
    routing: Literal["gate", "all"] = Field(
        "gate",
        description="gate: each map goes to its best experts; all: to every one, their mean counts",
    )
    top_k: int = Field(1, ge=1, description="experts that the gate sends each map to")
    gate: Literal["released", "switch"] = Field(
        "released",
        description="weight of an expert: softmax over those kept (1 for top_k=1), or over all (switch)",
    )
    formula: Literal["released", "paper"] = Field(
        "released", description="released: GELU, summand z, bicubic; paper: none of them, bilinear"
    )
    interpolation: Literal["bicubic", "bilinear"] | None = Field(
        None, description="of both resizings; default: that of the formula"
    )
    kinds: tuple[Literal["attention_qkv", "attention_proj", "mlp", "linear", "conv"], ...] = Field(
        ("attention_qkv",), min_length=1, description="kinds of sites to attach to"
    )

    @model_validator(mode="after")
    def _experts_agree(self) -> ConvLoraSettings:
        scales = self.expert_scales()
        if "num_experts" in self.model_fields_set and self.num_experts != len(scales):
            raise ValueError(f"num_experts={self.num_experts}, but scales has {len(scales)} values")
        if any(scale < 1 for scale in scales):
            raise ValueError(f"scales={scales}: a scale is at least 1")
        if any(size < 1 or size % 2 == 0 for size in self.kernel_sizes):
            raise ValueError(f"kernel_sizes={self.kernel_sizes}: a kernel's side is odd")
        if len(self.kernel_sizes) not in (1, len(scales)):
            raise ValueError(f"kernel_sizes has {len(self.kernel_sizes)} values for {len(scales)} experts")
        if self.routing == "gate" and self.top_k > len(scales):
            raise ValueError(f"top_k={self.top_k} is more than the {len(scales)} experts there are")
        return self

    def expert_scales(self) -> tuple[int, ...]:
        """Scale of each expert."""
        return tuple(range(1, self.num_experts + 1)) if self.scales is None else self.scales

    def expert_kernel_sizes(self) -> tuple[int, ...]:
        """Side of each expert's kernel."""
        count = len(self.expert_scales())
        return self.kernel_sizes * count if len(self.kernel_sizes) == 1 else self.kernel_sizes

    def has_gate(self) -> bool:
        """Whether there is something to choose."""
        return self.routing == "gate" and len(self.expert_scales()) > 1


class ConvLoraOperation(Operation):
    """`W0 x + s W_d (z + sum of g_i E_i(z))` on one layer.

    Between W_e and W_d everything is computed in the type of the adapter's own tensors, float32, under
    autocast too: it is a few channels only, and gates are sensitive to rounding.

    Args:
        layer: nn.Linear or nn.Conv2d without groups, or a subclass.
        rank: r.
        scale: s.
        experts: on maps of r channels.
        gate: None: the mean of all experts.
        residual: whether z itself is a summand.
        prefix: tokens in front of those of the grid, which pass the experts by.
    """

    routing_entropy: Tensor | None = None
    """Entropy in nats of the experts' shares of the last forward's maps; None without a gate."""
    image_size: tuple[int, int] | None = None
    """Height and width of the network's input in pixels, told by the model; says which grid tokens lie on."""

    def __init__(
        self,
        layer: nn.Module,
        *,
        rank: int,
        scale: float,
        experts: Experts,
        gate: Gate | None,
        residual: bool,
        prefix: int = 0,
    ) -> None:
        super().__init__()
        self.prefix = prefix
        rows, columns = factor_shape(layer)
        self.scale = scale
        self.residual = residual
        self.down = nn.Parameter(torch.empty(rank, columns))  # W_e
        self.up = nn.Parameter(torch.zeros(rows, rank))  # W_d
        self.experts = experts
        self.gate = gate
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def __getstate__(self) -> dict[str, Any]:
        # what the last forward left behind belongs to its graph
        return {k: v for k, v in self.__dict__.items() if k not in {"penalty", "routing_entropy"}}

    def before(self, x: Tensor) -> Tensor:
        """The input in the type that layer and branch compute in."""
        return as_computed(x)

    def after(self, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """`y + s W_d (z + sum of g_i E_i(z))`."""
        down = self.down.to(x.dtype)
        front: Tensor | None = None
        if isinstance(layer, nn.Linear):
            low = F.linear(x, down)
            if self.prefix:
                front, low = low[:, : self.prefix], low[:, self.prefix :]
            height, width = self._grid(low)
            maps = low.reshape(x.shape[0], height, width, -1).permute(0, 3, 1, 2)
        else:
            assert isinstance(layer, nn.Conv2d)
            maps = layer._conv_forward(x, down.view(-1, layer.in_channels, *layer.kernel_size), None)
        with full_precision(x.device):
            maps = self._mixed(maps.to(self.down.dtype).contiguous()).to(y.dtype)  # [B, r, h, w]
        if isinstance(layer, nn.Linear):
            low = maps.permute(0, 2, 3, 1).flatten(1, 2)  # [B, h w, r]
            if front is not None:
                low = torch.cat(
                    [front.to(low.dtype) if self.residual else torch.zeros_like(front), low], dim=1
                )
            return add_product(y, low, self.up, self.scale)
        if y.is_contiguous(memory_format=torch.channels_last):
            return add_product(y, maps, self.up, self.scale, channel_axis=1)
        return y + F.conv2d(maps, (self.up.to(y.dtype) * self.scale)[:, :, None, None])

    def _mixed(self, maps: Tensor) -> Tensor:
        """`z + sum of g_i E_i(z)` for z [B, r, h, w]."""
        experts = self.experts
        if self.gate is None:
            self.penalty = None
            total = torch.zeros_like(maps)
            for index in range(len(experts)):
                total = total + experts.run(index, maps)
            total = total / len(experts)
        else:
            routing = self.gate(maps)
            self.penalty = routing.penalty
            self.routing_entropy = routing.entropy
            total = mix(maps, routing, experts.run, len(experts))
        return maps + total if self.residual else total

    def _grid(self, x: Tensor) -> tuple[int, int]:
        """Height and width of the map that a linear layer's input is."""
        if x.ndim == 4:  # [B, h, w, C]
            return x.shape[1], x.shape[2]
        if x.ndim != 3:
            raise UsageError(
                f"conv-lora needs maps [B, h, w, C] or tokens [B, N, C]; a layer got {x.ndim} axes",
                hint="leave that layer out with method.exclude",
            )
        num_tokens = x.shape[1]
        for height, width in (self.image_size or (1, 1), (1, 1)):
            rows = math.isqrt(num_tokens * height // width)
            if rows * rows * width == num_tokens * height and num_tokens % rows == 0:
                return rows, num_tokens // rows
        size = "unknown" if self.image_size is None else " x ".join(map(str, self.image_size))
        raise UsageError(
            f"conv-lora: {num_tokens} tokens lie on no grid, neither on a square one nor on one of the"
            f" image's shape ({size})",
            hint="class tokens cannot be convolved: leave that layer out with method.exclude, or use lora",
        )

    def merge_refusal(self) -> str | None:
        """Its convolutions look at neighbours, and which of them is used depends on the input."""
        return "its experts convolve and are chosen for each input, which no weight of this layer can do"


class ConvLora(Method):
    """Conv-LoRA on linear layers and convolutions."""

    settings: ConvLoraSettings

    def apply(self, host: Host) -> None:
        """Attaches a `ConvLoraOperation` to every chosen site that can have one."""
        settings = self.settings
        on_grid = [site for site in host.sites if site.prefix is not None]
        kinds = {SiteKind(kind) for kind in settings.kinds}
        chosen = host.select(kinds, settings, "conv-lora", among=on_grid)
        sites = [site for site in chosen if branch_possible(site.module, site.access)]
        if not sites:
            raise NoSiteError(
                f"conv-lora: the layers chosen ({', '.join(site.name for site in chosen[:4])}) have groups,"
                " or are not called but have their weight read",
                hint="choose others with method.kinds and method.include, or use method=lora",
            )
        for site in sites:
            host.attach(site, "conv-lora", self._operation(site.module, site.prefix or 0))

    def _operation(self, layer: nn.Module, prefix: int) -> ConvLoraOperation:
        settings = self.settings
        released = settings.formula == "released"
        scales = settings.expert_scales()
        experts = Experts(
            settings.rank,
            scales,
            settings.expert_kernel_sizes(),
            settings.interpolation or ("bicubic" if released else "bilinear"),
            gelu=released,
        )
        gate = None
        if settings.has_gate():
            gate = Gate(settings.rank, len(scales), settings.top_k, settings.gate)
        alpha = settings.rank if settings.alpha is None else settings.alpha
        return ConvLoraOperation(
            layer,
            rank=settings.rank,
            scale=alpha / settings.rank,
            experts=experts,
            gate=gate,
            residual=released,
            prefix=prefix,
        )

    def num_parameters(self, site: Site) -> int:
        """`r (I + O)`, `k k r r + r` for each expert, and `2 E r` for the gate."""
        settings = self.settings
        sizes = settings.expert_kernel_sizes()
        gate = 2 * len(sizes) * settings.rank if settings.has_gate() else 0
        factors = settings.rank * sum(factor_shape(site.module))
        return factors + num_expert_parameters(settings.rank, sizes) + gate
