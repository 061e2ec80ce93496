"""Mean attention distance: how far, in pixels, each head of each block looks.

The distance of a head is the mean, over images and tokens, of the distance between a token and those it
attends to, weighted by the attention. A model is run as it is; what its blocks hand to PyTorch's
attention is taken on the way, relative positions included. Tokens that are no patches (a class token,
registers, prompts of a method) are left out, and the rest of the attention is scaled to a sum of one;
so are the patches that fill a window beyond the image. In windowed blocks distances are those inside a
window.

Source
    Dosovitskiy et al., An Image is Worth 16x16 Words, 2021, section 4.5; for SAM: Zhong et al.,
    Convolution Meets LoRA, 2024, figure 5.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from segtune.engine.infer import Inference
from segtune.errors import UsageError
from segtune.models.base import SegModel
from segtune.types import Site, SiteKind

MOST_ELEMENTS = 2**24
"""Of an attention matrix that is computed at once."""


@dataclass(frozen=True, kw_only=True)
class LayerDistance:
    """Mean attention distances of one block."""

    name: str
    block: int
    windowed: bool
    heads: tuple[float, ...]
    """Of each head, in pixels of the image as it enters the network."""


def attention_distances(
    inference: Inference, images: Iterable[Tensor], progress: Callable[[], None] | None = None
) -> list[LayerDistance]:
    """Runs a model on images and measures its attention.

    Args:
        inference: the model with its way of being fed.
        images: each [1, C, H, W] in [0, 1].
        progress: called after each image.

    Returns:
        One entry for each block that attends, from the input to the output.

    Raises:
        UsageError: the model has no block that attends through PyTorch's attention, or one whose
            queries and keys are not the same tokens.
    """
    blocks = [site for site in inference.model.sites() if site.kind is SiteKind.BLOCK]
    watch = _Watch(inference.model, blocks)
    try:
        with watch:
            for image in images:
                inference.probabilities(image)
                if progress is not None:
                    progress()
    finally:
        watch.remove_hooks()
    if not watch.found:
        raise UsageError(
            f"none of the model's {len(blocks)} blocks attends through PyTorch's"
            " scaled_dot_product_attention, so there is nothing to measure",
            hint="use a vision transformer, for example sam-vit-base",
        )
    return [watch.found[site.name].result(site) for site in blocks if site.name in watch.found]


class _Sum:
    """Distances of one block, added up."""

    def __init__(self) -> None:
        self.total: Tensor | float = 0.0
        self.count = 0
        self.windowed = False

    def result(self, site: Site) -> LayerDistance:
        assert isinstance(self.total, Tensor) and site.block is not None
        heads = (self.total / self.count).tolist()
        return LayerDistance(name=site.name, block=site.block, windowed=self.windowed, heads=tuple(heads))


class _Watch(TorchFunctionMode):
    """Takes what blocks hand to PyTorch's attention, and lets it go its way."""

    def __init__(self, model: SegModel, blocks: Sequence[Site]) -> None:
        super().__init__()
        self.found: dict[str, _Sum] = {}
        self._running: tuple[str, tuple[int, int], int] | None = None
        self._padded = (0, 0)
        self._hooks = [model.register_forward_pre_hook(self._image_enters)]
        for site in blocks:
            self._hooks.append(site.module.register_forward_pre_hook(self._enters(site), with_kwargs=True))
            self._hooks.append(site.module.register_forward_hook(self._leaves))

    def remove_hooks(self) -> None:
        """Leaves the model as it was."""
        for hook in self._hooks:
            hook.remove()

    def _image_enters(self, model: nn.Module, args: tuple[Any, ...]) -> None:
        assert isinstance(model, SegModel)
        height, width = args[0].shape[-2:]
        self._padded = model.padded_size((height, width))

    def _enters(self, site: Site) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            tokens = next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor))
            grid = _grid(tokens.shape, self._padded)
            self._running = None if grid is None else (site.name, grid, len(tokens))

        return hook

    def _leaves(self, *_: Any) -> None:
        self._running = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and self._running is not None:
            self._measure(*args, **kwargs)
        return func(*args, **kwargs)

    @torch.no_grad()
    def _measure(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> None:
        assert self._running is not None
        name, grid, batch = self._running
        tokens = query.shape[-2]
        own = key[..., :tokens, :]  # tokens that a method adds for others to look at stand behind
        if query.shape != own.shape or is_causal:
            raise UsageError(
                f"{name} attends from {query.shape[-2]} tokens to {key.shape[-2]} others; distances are"
                " measured where tokens attend to each other",
                hint="use a plain vision transformer, for example sam-vit-base",
            )
        window = _window(query.shape[-2], query.shape[0] // batch, grid)
        if window is None:
            raise UsageError(
                f"{name} attends among {query.shape[-2]} tokens, which are no window of its grid of"
                f" {grid[0]}x{grid[1]} patches",
                hint="use a plain vision transformer, for example sam-vit-base",
            )
        prefix = query.shape[-2] - window[0] * window[1]
        stride = (self._padded[0] / grid[0], self._padded[1] / grid[1])
        if attn_mask is not None:
            attn_mask = attn_mask.expand(*query.shape[:-1], key.shape[-2])[..., prefix:, prefix:tokens]
        total, count = _distance_sum(
            query[..., prefix:, :].float(),
            own[..., prefix:, :].float(),
            attn_mask,
            query.shape[-1] ** -0.5 if scale is None else scale,
            _distances(window, stride).to(query.device),
            _inside(grid, window).to(query.device),
        )
        found = self.found.setdefault(name, _Sum())
        found.total = found.total + total
        found.count += count
        found.windowed = window != grid


def _grid(shape: Sequence[int], padded: tuple[int, int]) -> tuple[int, int] | None:
    """Rows and columns of patches in a block's input, [B, h, w, C], [B, C, h, w] or [B, N, C]."""
    height, width = padded
    if len(shape) == 4:
        for rows, columns in ((shape[1], shape[2]), (shape[2], shape[3])):
            if height % rows == 0 and width % columns == 0 and height // rows == width // columns:
                return rows, columns
        return None
    if len(shape) != 3:
        return None
    for stride in range(1, min(height, width) + 1):  # the finest grid that the tokens are enough for
        if height % stride == 0 and width % stride == 0:
            rows, columns = height // stride, width // stride
            if rows * columns <= shape[1]:
                return rows, columns
    return None


def _window(num_tokens: int, num_windows: int, grid: tuple[int, int]) -> tuple[int, int] | None:
    """Rows and columns of the patches that attend to each other: the whole grid, or a square window."""
    if num_windows == 1 and num_tokens >= grid[0] * grid[1]:
        return grid
    for side in range(math.isqrt(num_tokens), 0, -1):
        if math.ceil(grid[0] / side) * math.ceil(grid[1] / side) == num_windows:
            return side, side
    return None


def _distances(window: tuple[int, int], stride: tuple[float, float]) -> Tensor:
    """Distance of each pair of patches in a window, in pixels, [n, n]."""
    rows, columns = (torch.arange(count) * step for count, step in zip(window, stride, strict=True))
    places = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).flatten(0, 1)  # [n, 2]
    return (places[:, None] - places[None]).square().sum(dim=-1).sqrt()


def _inside(grid: tuple[int, int], window: tuple[int, int]) -> Tensor:
    """Which patches of each window lie on the grid, bool [windows, n]; windows go row by row."""
    rows, columns = (math.ceil(g / w) for g, w in zip(grid, window, strict=True))
    inside = torch.zeros(rows * window[0], columns * window[1], dtype=torch.bool)
    inside[: grid[0], : grid[1]] = True
    parts = inside.view(rows, window[0], columns, window[1]).transpose(1, 2)
    return parts.reshape(rows * columns, -1)


def _distance_sum(
    query: Tensor, key: Tensor, mask: Tensor | None, scale: float, distances: Tensor, inside: Tensor
) -> tuple[Tensor, int]:
    """Sum over tokens of the mean distance that each head attends to, and the number of tokens.

    Args:
        query: [B windows, heads, n, d].
        key: of the same shape.
        mask: added to the logits, or False where there is no attention; [B windows, heads, n, n].
        scale: of the logits.
        distances: [n, n].
        inside: bool [windows, n].

    Returns:
        float64 [heads], and the number of tokens that it is the sum over.
    """
    num, heads, n, _ = query.shape
    inside = inside.repeat(num // len(inside), 1)  # [B windows, n]
    total = torch.zeros(heads, dtype=torch.float64, device=query.device)
    together = max(1, MOST_ELEMENTS // (heads * n * n))
    rows = max(1, min(n, MOST_ELEMENTS // (heads * n)))
    for first in range(0, num, together):
        these = slice(first, first + together)
        known = inside[these]
        for start in range(0, n, rows):
            part = slice(start, start + rows)
            logits = query[these, :, part] @ key[these].transpose(-1, -2) * scale
            if mask is not None and mask.dtype == torch.bool:
                logits = logits.masked_fill(~mask[these, :, part], -math.inf)
            elif mask is not None:
                logits = logits + mask[these, :, part].float()
            logits = logits.masked_fill(~known[:, None, None], -math.inf)
            looked = (logits.softmax(dim=-1) * distances[part]).sum(dim=-1)  # [these, heads, rows]
            # a patch beyond the image may see nothing that counts
            looked = torch.where(known[:, None, part], looked, 0.0)
            total += looked.sum(dim=(0, 2), dtype=torch.float64)
    return total, int(inside.sum())
