"""Whether a run can keep the activations of its frozen prefix, and what that takes."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from segtune.config.run import RunConfig
from segtune.data.base import DataIndex
from segtune.data.settings import Size
from segtune.data.transforms import num_views
from segtune.engine.build import Tunable
from segtune.engine.infer import InferenceSettings, window_size, window_starts
from segtune.engine.prefix import Prefix, find_prefix
from segtune.engine.prefix_cache import PrefixCache, cache_folder
from segtune.errors import UsageError
from segtune.models.weights import fingerprint

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class CachePlan:
    """What a run's cache will hold."""

    prefix: Prefix
    num_entries: int
    entry_bytes: int
    """Of one training sample."""
    needed_bytes: int
    """Of all entries; validation images of other sizes count by their area."""
    views: int
    """Different training samples that each image becomes."""

    def describe(self) -> str:
        """One line for the user."""
        return (
            f"cache: {self.prefix.num_sections} of the encoder's {self.prefix.num_all} sections never change"
            f" (up to {self.prefix.last}) and are run once for each image; {self.num_entries} entries of"
            f" {self.entry_bytes / 2**20:.1f} MiB, {self.needed_bytes / GIB:.2f} GiB, in {cache_folder()}"
        )


def plan_cache(
    config: RunConfig,
    tunable: Tunable,
    index: DataIndex,
    sizes: Mapping[Size, int],
    *,
    crop: Size | None,
    inference: InferenceSettings,
) -> CachePlan:
    """Works out what a cache would hold.

    Args:
        config: with `train.cache=prefix`.
        tunable: model and method.
        index: the data.
        sizes: height and width in pixels of its images, with the number of images that have them.
        crop: of training samples; None for whole images.
        inference: how images are scored.

    Raises:
        UsageError: nothing stays the same, augmentation makes ever new images, or the disk or the limit
            is too small; the hint says what would help.
    """
    if config.train.strategy == "fsdp":
        raise UsageError(
            "train.cache=prefix: with train.strategy=fsdp no process holds the frozen part as a whole",
            hint="train.strategy=ddp; a step with the cache needs less memory anyway",
        )
    size = crop or config.data.resize or max(sizes, key=lambda size: size[0] * size[1])
    prefix = find_prefix(tunable.model, tunable.applied, size, inference.precision)
    if prefix.num_sections == 0:
        raise UsageError(
            f"train.cache=prefix: {config.model} with {config.method} changes from the start"
            f" ({prefix.reason}), so that no activation can be kept",
            hint=_hint(prefix),
        )
    views = num_views(config.data, crop, sizes)
    if config.train.cache_views is not None:
        views = config.train.cache_views if views is None else min(views, config.train.cache_views)
    if views is None:
        raise UsageError(
            "train.cache=prefix: training samples are drawn anew in each epoch (crop, scale or colour), so"
            " that none is seen twice",
            hint=f"train.cache_views=4 keeps four augmented views of each image; or {_plain(config, sizes)}",
        )
    half = config.train.cache_precision == "bf16"
    entry = prefix.num_bytes_bf16 if half else prefix.num_bytes
    num_train = len(index.training) * views
    # validation images are taken to have the sizes of all images
    each = len(index.split("val")) / sum(sizes.values())
    num_windows, area = 0.0, 0.0
    for image_size, num_images in sizes.items():
        count, pixels = _windows(inference, image_size)
        num_windows += each * num_images * count
        area += each * num_images * count * pixels
    needed = round(entry * (num_train + area / (size[0] * size[1])))
    plan = CachePlan(
        prefix=prefix,
        num_entries=num_train + round(num_windows),
        entry_bytes=entry,
        needed_bytes=needed,
        views=views,
    )
    _require_room(config, plan, half=half)
    return plan


def build_cache(config: RunConfig, tunable: Tunable, plan: CachePlan, precision: str) -> PrefixCache:
    """The cache of a run, with room made for it."""
    settings: dict[str, Any] = config.model_settings.model_dump(mode="json")
    cache = PrefixCache(
        tunable.model,
        prefix=plan.prefix,
        precision=precision,
        half=config.train.cache_precision == "bf16",
        identity={"model": config.model, "settings": settings},
        weights=fingerprint(tunable.model, exclude=tunable.applied.keys()),
        limit=round(config.train.cache_limit * GIB),
    )
    cache.make_room(plan.needed_bytes)
    return cache


def _windows(inference: InferenceSettings, size: Size) -> tuple[int, int]:
    """How many windows an image is scored in, and the pixels of each."""
    height, width = inference.resize or size
    rows, columns = window_size(inference, height, width)
    count = len(window_starts(height, rows, inference.overlap)) * len(
        window_starts(width, columns, inference.overlap)
    )
    return count * (2 if inference.flip_tta else 1), rows * columns


def _hint(prefix: Prefix) -> str:
    if prefix.num_all == 1:
        return "method=head; this model can be cut behind its encoder only"
    return "method=head, or a method with method.last_blocks=2: what is in front of those blocks is kept"


def _plain(config: RunConfig, sizes: Mapping[Size, int]) -> str:
    """The settings with which training samples repeat."""
    changes = []
    if config.data.crop is not None:
        changes.append("data.crop=null")
        if config.data.resize is None and len(sizes) > 1 and config.train.num_images > 1:
            height, width = next(iter(sizes))
            changes.append(f"data.resize={height},{width}")
    data = config.data
    changes += [f"data.{name}=0" for name in ("colour", "rand_augment") if getattr(data, name)]
    if data.scale[0] != data.scale[1]:
        changes.append("data.scale=1,1")
    return " ".join(f"--set {change}" for change in changes)


def _require_room(config: RunConfig, plan: CachePlan, *, half: bool) -> None:
    limit = config.train.cache_limit * GIB
    folder = cache_folder()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    room = min(limit, free)
    if plan.needed_bytes <= room:
        return
    ways = [] if half else ["train.cache_precision=bf16"]
    if plan.views > 1:
        ways.append("no flips (data.horizontal_flip=0), or train.cache_views=1")
    if free > plan.needed_bytes:
        ways.append(f"train.cache_limit={-(-plan.needed_bytes // GIB)}")
    else:
        ways.append("another disk (SEGTUNE_PREFIX_CACHE=FOLDER)")
    raise UsageError(
        f"train.cache=prefix needs {plan.needed_bytes / GIB:.1f} GiB for {plan.num_entries} entries of"
        f" {plan.entry_bytes / 2**20:.1f} MiB; train.cache_limit is {config.train.cache_limit:g} GiB, and"
        f" {free / GIB:.1f} GiB are free in {cache_folder()}",
        hint="; ".join([*ways, "smaller images (data.resize)"]),
    )
