"""Small NIfTI data sets, written by tests."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

SHAPE = (20, 24, 6)
"""Voxels along the canonical axes: right, front, head."""


def affine_of(
    permutation: Sequence[int] = (0, 1, 2),
    flips: Sequence[int] = (1, 1, 1),
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
) -> np.ndarray:
    """An affine whose file axis i runs along canonical axis permutation[i], forwards or backwards."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (target, flip, step) in enumerate(zip(permutation, flips, spacing, strict=True)):
        affine[target, axis] = flip * step
    affine[:3, 3] = (3.5, -20.25, 11)
    return affine


def save(path: Path, array: Any, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.asarray(array), affine_of() if affine is None else affine), path)
    return path


def head(seed: int, shape: tuple[int, ...] = SHAPE, outside: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """A bright ball with a brighter block in it, and the block's mask; the surroundings are constant."""
    random = np.random.default_rng(seed)
    grid = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    body = sum(axis**2 for axis in grid) < 0.9
    mask = np.zeros(shape, np.uint8)
    x, y = random.integers(5, 9), random.integers(6, 12)
    mask[x : x + 5, y : y + 6, 2:5] = 1
    mask &= body.astype(np.uint8)
    values = np.where(body, random.normal(100, 5, shape) + 60 * mask, outside).astype(np.float32)
    return values, mask


def make_msd(root: Path, num: int = 6, *, description: dict[str, Any] | None = None) -> Path:
    """`imagesTr` and `labelsTr`; every second volume is stored in another orientation."""
    for number in range(num):
        image, mask = head(number)
        affine = affine_of(flips=(-1, -1, 1) if number % 2 else (1, 1, 1), spacing=(1, 1, 2.5))
        save(root / "imagesTr" / f"case_{number:02d}.nii.gz", image, affine)
        save(root / "labelsTr" / f"case_{number:02d}.nii.gz", mask, affine)
    if description is not None:
        (root / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    return root


def make_brats(
    root: Path,
    num: int = 3,
    names: Sequence[str] = ("t1n", "t1c", "t2w", "t2f"),
    mask_name: str = "seg",
    values: tuple[int, int] = (1, 3),
) -> Path:
    """Patients' folders; the block's lower half has the first value, the rest the second."""
    for number in range(num):
        patient = f"BraTS-MEN-{number:05d}-000"
        for place, name in enumerate(names):
            image, mask = head(number, outside=-3.0)
            save(root / patient / f"{patient}-{name}.nii.gz", image * (place + 1))
        labels = np.where(mask > 0, values[1], 0).astype(np.uint8)
        labels[:, :, :3] = np.where(mask[:, :, :3] > 0, values[0], 0)
        save(root / patient / f"{patient}-{mask_name}.nii.gz", labels)
    return root


def orientations() -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """All 48 ways in which a file's axes may run."""
    return list(itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)))
