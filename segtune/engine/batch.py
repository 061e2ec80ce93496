"""`train.batch_size=auto`: the largest batch that the device's memory holds."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil
import torch

from segtune.config.run import RunConfig
from segtune.data.check_report import CheckReport
from segtune.engine.build import build_from_config, choose_device, choose_precision, place
from segtune.engine.cost import cached_sections, estimate_memory, training_size
from segtune.engine.failures import is_out_of_memory
from segtune.engine.memory import run_step
from segtune.errors import UsageError

MOST = 64
"""Images; beyond it a larger batch gains little time for a step."""
SHARE = {"cpu": 0.7, "cuda": 0.9}
"""Of the free memory that a batch may fill: what kernels need inside is not in the estimate."""
_CGROUP = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current"))


@dataclass(frozen=True)
class BatchChoice:
    """What was chosen, and why."""

    batch_size: int
    note: str


def choose_batch_size(
    config: RunConfig,
    *,
    num_classes: int,
    num_training: int,
    sizes: Collection[tuple[int, int]],
    confirm: Callable[[int], bool] | None = None,
) -> BatchChoice:
    """A number for "auto", by the estimate.

    Args:
        config: the settings.
        num_classes: K.
        num_training: images to train on.
        sizes: of the images, height and width in pixels.
        confirm: whether a step of so many images fits indeed.

    Raises:
        UsageError: not even one image fits.
    """
    device = choose_device(config.train.accelerator)
    processes = config.train.devices * config.train.num_nodes
    most = _most(config, num_training, sizes)
    available = available_bytes(device)
    size = training_size(config, sizes)
    precision = choose_precision(config.train.precision, device)

    @cache
    def needed(count: int) -> int:
        return estimate_memory(
            model=config.model,
            model_settings=config.model_settings,
            num_classes=num_classes,
            parts=config.method_parts,
            batch_size=count,
            size=size,
            precision=precision,
            quantize=config.model_common.quantize,
            optimizer=config.optim.name,
            accumulate=config.train.accumulate,
            num_sections=cached_sections(config),
            on_gpu=device.type != "cpu",
        ).total

    room = int(SHARE[device.type] * available)
    count = largest_batch(needed, room=room, most=most // processes)
    while count and confirm is not None and not confirm(count):
        count //= 2
    if not count:
        raise UsageError(
            f"train.batch_size=auto: one image of {size[0]}x{size[1]} pixels needs about"
            f" {needed(1) / 2**30:.1f} GiB, and {available / 2**30:.1f} GiB are free on {device}",
            hint="`segtune inspect` says what would lower it, e.g. --method head, or a smaller data.crop",
        )
    chosen = count * processes
    reason = f"the most that is tried: {MOST}, and no more than there are training images"
    if chosen < most:
        tried = "" if confirm is None else ", confirmed by a step"
        reason = f"{SHARE[device.type]:.0%} of the {available / 2**30:.1f} GiB free on {device}{tried}"
    note = f"train.batch_size=auto: {chosen} ({needed(count) / 2**30:.2f} GiB a step; {reason})"
    return BatchChoice(chosen, note)


def batch_size_of_run(config: RunConfig, check: CheckReport) -> BatchChoice:
    """`choose_batch_size` for a run's data; on a GPU confirmed by a step.

    Raises:
        UsageError: not even one image fits.
    """
    device = choose_device(config.train.accelerator)
    sizes = check.image_sizes

    def runs(count: int) -> bool:
        precision = choose_precision(config.train.precision, device)
        return _runs(config, check, count, training_size(config, sizes), precision, device)

    return choose_batch_size(
        config,
        num_classes=check.usable.classes.num_classes,
        num_training=len(check.usable.training),
        sizes=sizes,
        confirm=runs if device.type == "cuda" else None,
    )


def largest_batch(needed: Callable[[int], int], *, room: int, most: int) -> int:
    """The largest number of images whose step fits, 0 where none does.

    Args:
        needed: bytes of a step with so many images; grows about evenly with them.
        room: bytes.
        most: images.
    """
    one = needed(1)
    if one > room or most < 1:
        return 0
    if most == 1:
        return 1
    each = max(1, needed(2) - one)
    count = min(most, 1 + (room - one) // each)
    while count > 1 and needed(count) > room:
        count -= max(1, count // 10)
    return count


def available_bytes(device: torch.device) -> int:
    """Memory that is free on a device; on a processor, no more than the container may have."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available
    try:
        limit, used = (int(path.read_text()) for path in _CGROUP)
    except (OSError, ValueError):  # no limit, or not such a system
        return int(free)
    return int(min(free, max(0, limit - used)))


def _most(config: RunConfig, num_training: int, sizes: Collection[tuple[int, int]]) -> int:
    """The largest batch that makes sense, a multiple of the number of processes."""
    processes = config.train.devices * config.train.num_nodes
    if config.data.crop is None and config.data.resize is None and len(sizes) > 1:
        return processes  # images of different sizes cannot make a batch
    most = min(MOST, num_training)
    return max(most - most % processes, processes)


def _runs(
    config: RunConfig,
    check: CheckReport,
    count: int,
    size: tuple[int, int],
    precision: str,
    device: torch.device,
) -> bool:
    """Whether a forward and a backward fit, on a model that is built for it and given up."""
    tunable = build_from_config(config, check.usable.classes)
    place(tunable.model, device).train()
    try:
        run_step(tunable.model, tunable.applied, batch_size=count, size=size, precision=precision)
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            return False
        raise
    finally:
        del tunable
        torch.cuda.empty_cache()
    return True
