"""What goes wrong in training, said so that the user can do something about it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from segtune.config.run import RunConfig
from segtune.engine.folder import RunFolder
from segtune.errors import TrainingError


def not_a_number(value: float, names: Sequence[str], step: int, folder: RunFolder) -> TrainingError:
    """The loss or its gradient is not finite.

    Args:
        value: what it is.
        names: images of the batch.
        step: from 1; its update was not done.
        folder: where the last good state lies.
    """
    kept = (
        f"the last good state is kept in {folder.last}" if folder.last.is_file() else "no state was kept yet"
    )
    return TrainingError(
        f"the loss or its gradient is {value} at step {step}, on the images {', '.join(names)}; {kept}",
        hint="lower optim.learning_rate, set train.precision=32, or look at these images",
    )


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error of torch means that memory ran out, on a GPU or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def out_of_memory(
    config: RunConfig, device: torch.device, crop: tuple[int, int] | None, estimated_bytes: int
) -> TrainingError:
    """Memory ran out; the hint keeps the effective batch size where it can."""
    size = config.train.num_images
    hint = (
        f"--set train.batch_size={max(1, size // 2)} --set train.accumulate={config.train.accumulate * 2}"
        if size > 1
        else "--set data.crop=256,256, or --method head"
    )
    return TrainingError(
        f"out of memory on {device} with batches of {size} and crops of {crop} pixels"
        f" (estimated need: {estimated_bytes / 2**30:.1f} GiB)",
        hint=hint,
    )
