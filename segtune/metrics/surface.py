"""MONAI's surface metrics, imported when they are first used: that takes seconds."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segtune.errors import MissingExtraError


def surface_metric(name: str, *regions: NDArray[np.bool_], **options: Any) -> float:
    """Calls a function of `monai.metrics` on two regions [D, H, W] that are not empty.

    Args:
        name: of the function.
        regions: prediction and mask.
        options: further arguments.

    Raises:
        MissingExtraError: MONAI, or scipy, which it finds surfaces with, is not installed.
    """
    import torch

    batches = [torch.from_numpy(np.ascontiguousarray(region))[None, None].float() for region in regions]
    metric = getattr(_monai_metrics(), name)
    with warnings.catch_warnings():
        # MONAI 1.6 hands itself an argument that it has deprecated.
        warnings.simplefilter("ignore", FutureWarning)
        return float(metric(*batches, include_background=True, **options))


def _monai_metrics() -> Any:
    for package in ("scipy", "monai"):
        try:
            __import__(package)
        except ImportError:
            raise MissingExtraError(package, extra="medical", purpose="scoring surfaces of volumes") from None
    import monai.metrics

    return monai.metrics
