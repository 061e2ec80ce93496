"""Activations of the frozen prefix on disk, computed once for each image.

An entry's name is the hash of the pixels that it was computed from, its folder's name that of everything
else that it depends on (docs/decisions/0023-frozen-prefix-cache.md).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_unflatten

from segtune.engine.files import write_json
from segtune.engine.prefix import Prefix, autocast
from segtune.engine.tensors import write_tensors
from segtune.models.base import SegModel
from segtune.models.sections import Cut, run_sections

VERSION = 1
"""Of the files' layout; a change of how models compute is a change of it too."""
ABOUT = "about.json"
LEAVES = "leaves"


def cache_folder() -> Path:
    """Where activations are kept: $SEGTUNE_PREFIX_CACHE, else ~/.cache/segtune/prefix."""
    chosen = os.environ.get("SEGTUNE_PREFIX_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "segtune" / "prefix"


@dataclass(frozen=True)
class _Entry:
    """What the sections give for one image."""

    stored: dict[str, Tensor]
    leaves: list[dict[str, Any]]
    """Of each tensor of the state: its name above, its type and order in memory."""


@dataclass
class Counts:
    """What a cache was used for."""

    read: int = 0
    computed: int = 0
    written_bytes: int = 0
    unwritten: int = 0
    """Computed and not kept, as the disk or the limit had no room."""


class PrefixCache:
    """What a model's first sections give for an image, from disk where it is there.

    Args:
        model: the network with its method.
        prefix: the sections of it that never change.
        precision: that they are run in: "32", "bf16" or "16".
        half: keep float32 tensors as bfloat16.
        identity: everything but the weights and the arguments above that activations depend on: the
            model's name and settings.
        weights: fingerprint of the base.
        limit: bytes of the whole folder of caches.
    """

    def __init__(
        self,
        model: SegModel,
        *,
        prefix: Prefix,
        precision: str,
        half: bool,
        identity: dict[str, Any],
        weights: str,
        limit: int,
    ) -> None:
        self.model = model
        self.prefix = prefix
        self.precision = precision
        self.half = half
        self.counts = Counts()
        self.device = next(model.parameters()).device
        about = {
            **identity,
            "weights": weights,
            "sections": prefix.num_sections,
            "precision": precision,
            "kept_as": "bf16" if half else "computed",
            "device": self.device.type,
            "torch": torch.__version__,
            "version": VERSION,
        }
        text = json.dumps(about, sort_keys=True)
        self.folder = cache_folder() / hashlib.sha256(text.encode()).hexdigest()[:32]
        self._about = about
        self._room = limit - _folder_bytes(cache_folder())

    def __call__(self, images: Tensor) -> Cut:
        """Images [B, C, H, W] in [0, 1], before normalisation, to what the first sections give for them."""
        entries = [self._entry(image[None]) for image in images]
        leaves = entries[0].leaves
        stored = {
            name: torch.cat([entry.stored[name] for entry in entries]).to(self.device, non_blocking=True)
            for name in entries[0].stored
        }
        state = [_unpack(stored[leaf["tensor"]], leaf) for leaf in leaves]
        return Cut(self.prefix.num_sections, tree_unflatten(state, self.prefix.tree))

    def _entry(self, image: Tensor) -> _Entry:
        pixels = image.detach().cpu().contiguous()
        digest = hashlib.sha256(f"{tuple(pixels.shape)}".encode())
        digest.update(pixels.numpy().data)
        path = self.folder / f"{digest.hexdigest()[:40]}.safetensors"
        entry = _read(path)
        if entry is None:
            entry = self._compute(image)
            self.counts.computed += 1
            self._write(path, entry)
        else:
            self.counts.read += 1
        return entry

    def _compute(self, image: Tensor) -> _Entry:
        # As in training, whatever the entry is for: kernels may be others where no gradient is wanted.
        # None of these sections needs one, so that nothing is kept for it.
        with torch.inference_mode(False), torch.enable_grad(), autocast(self.device, self.precision):
            images = image.clone().to(self.device, memory_format=torch.channels_last)
            sections = self.model.sections()[: self.prefix.num_sections]
            state = run_sections(sections, self.model.prepared(images))
        stored: dict[str, Tensor] = {}
        names: dict[int, str] = {}
        leaves = []
        for tensor in tree_leaves(state):
            # one tensor may be in several places
            name = names.setdefault(id(tensor), str(len(names)))
            packed, leaf = _pack(tensor, half=self.half)
            stored[name] = packed.cpu()
            leaves.append({"tensor": name, **leaf})
        return _Entry(stored, leaves)

    def _write(self, path: Path, entry: _Entry) -> None:
        size = sum(tensor.numel() * tensor.element_size() for tensor in entry.stored.values())
        if size > self._room:
            self.counts.unwritten += 1
            return
        try:
            if not (self.folder / ABOUT).exists():
                write_json(self.folder / ABOUT, self._about)
            write_tensors(path, entry.stored, {LEAVES: json.dumps(entry.leaves)})
        except OSError:
            self.counts.unwritten += 1
            return
        self._room -= size
        self.counts.written_bytes += size

    def make_room(self, needed: int) -> None:
        """Deletes other caches, the longest unused first, until `needed` bytes are free.

        Entries that are there already count as needed. Where it is not enough, fewer are kept.
        """
        with contextlib.suppress(OSError):
            os.utime(self.folder)
        missing = needed - _folder_bytes(self.folder) - self._room
        for folder in _others(self.folder):
            if missing <= 0:
                break
            size = _folder_bytes(folder)
            shutil.rmtree(folder, ignore_errors=True)
            missing -= size
            self._room += size


def _read(path: Path) -> _Entry | None:
    try:
        with safe_open(path, framework="pt") as file:
            leaves = json.loads(file.metadata()[LEAVES])
            return _Entry({name: file.get_tensor(name) for name in file.keys()}, leaves)  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError, TypeError):
        return None  # not there, or damaged: it is computed


def _others(folder: Path) -> Iterator[Path]:
    """The caches beside one, the longest unused first."""
    found = [path for path in folder.parent.glob("*") if (path / ABOUT).is_file() and path != folder]
    yield from sorted(found, key=lambda path: path.stat().st_mtime)


def _folder_bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*.safetensors"):
        with contextlib.suppress(OSError):  # another process deletes too
            total += path.stat().st_size
    return total


def _pack(tensor: Tensor, *, half: bool) -> tuple[Tensor, dict[str, Any]]:
    """A tensor in the order in which it lies in memory, and how to get it back from there."""
    strides = tensor.stride()
    order = sorted(range(1, tensor.ndim), key=lambda axis: -strides[axis])
    packed = tensor.detach().permute(0, *order).contiguous()
    dtype = str(packed.dtype).removeprefix("torch.")
    if half and packed.dtype == torch.float32:
        packed = packed.to(torch.bfloat16)
    return packed, {"order": order, "dtype": dtype}


def _unpack(packed: Tensor, leaf: dict[str, Any]) -> Tensor:
    """The tensor as it was computed; kernels may round differently for another order in memory."""
    order = [0, *leaf["order"]]
    back = [order.index(axis) for axis in range(len(order))]
    return packed.to(getattr(torch, leaf["dtype"])).permute(back)
