"""Reads weights files without ever running code from them."""

from __future__ import annotations

import json
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from segtune.errors import WeightsError

_PICKLED = (".pth", ".pt", ".ckpt", ".bin")
READABLE = (".safetensors", *_PICKLED)
"""File names that can be read end in one of these."""

INDEX = ".index.json"
"""End of the name of a file that says which of several files holds which tensor."""

FOLDER_FILES = tuple(name + end for name in ("model.safetensors", "pytorch_model.bin") for end in ("", INDEX))
"""What the weights file in a folder of transformers is called, the better one first."""

_WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model")
"""Keys under which training scripts keep the weights beside their other state."""

_PREFIXES = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put in front of every name."""

_CONVERT = (
    "if you trust its origin, convert it once: "
    "safetensors.torch.save_file(torch.load(FILE, weights_only=False)['state_dict'], 'weights.safetensors')"
)


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a weights file, by name.

    Args:
        path: a .safetensors file, or a .pth, .pt, .ckpt or .bin file written by torch.save, which may
            wrap the tensors ({"state_dict": ...}, {"model": ...}) and prefix their names ("module."), or
            the index (.index.json) of weights that are spread over several such files.

    Returns:
        Tensors on the CPU, and the metadata of a safetensors file (else empty).

    Raises:
        WeightsError: unreadable, damaged, would run code, or no tensors in it.
    """
    if path.name.endswith(INDEX):
        parts = [read_weights(part) for part in shards(path)]
        return {key: tensor for state, _ in parts for key, tensor in state.items()}, {}
    suffix = path.suffix.lower()
    if suffix not in READABLE:
        raise WeightsError(
            f"{path}: {suffix or 'a file without an ending'} is not a weights file",
            hint=f"readable are {', '.join(READABLE)}",
        )
    start = _start(path)
    if start.startswith(b"version https://git-lfs"):
        raise WeightsError(
            f"{path}: only a git-lfs pointer, not the weights themselves", hint="git lfs pull fetches them"
        )
    if suffix == ".safetensors":
        return _read_safetensors(path)
    if not start.startswith((b"PK", b"\x80")):
        raise _damaged(path, "it does not begin like a file of torch.save")
    return _unwrap(path, _read_pickled(path)), {}


def shards(index: Path) -> list[Path]:
    """The files that an index names, beside it, in order of name.

    Raises:
        WeightsError: not an index, or it names files of another folder.
    """
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise _damaged(index, f"it does not say which file holds which tensor ({error})") from error
    outside = [name for name in names if not isinstance(name, str) or Path(name).name != name]
    if outside:
        raise WeightsError(f"{index}: names the file {outside[0]!r} of another folder", hint="use a copy")
    return [index.with_name(name) for name in names]


def _start(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(64)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}") from error


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise _damaged(path, error) from error


def _read_pickled(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            # About the pickle protocol; what it could lead to is an error here anyway.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        text = str(error)
        if not re.search(r"Unsupported|GLOBAL|Trying to", text):
            raise _damaged(path, error) from error
        names = re.findall(r"GLOBAL ([\w.]+)", text)
        wants = f": it wants to use {names[0]}" if names else ""
        raise WeightsError(
            f"{path}: refused, because reading it would run code from the file{wants}", hint=_CONVERT
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError) as error:
        if "TorchScript" in str(error):
            raise WeightsError(
                f"{path}: a TorchScript program, not a weights file", hint="save its state_dict() instead"
            ) from error
        raise _damaged(path, error) from error


def _damaged(path: Path, reason: object) -> WeightsError:
    size = path.stat().st_size
    line = (str(reason).splitlines() or [type(reason).__name__])[0]
    return WeightsError(
        f"{path}: damaged or cut off ({size} bytes): {line}", hint="fetch or copy the file again"
    )


def _unwrap(path: Path, content: Any) -> dict[str, Tensor]:
    while isinstance(content, Mapping):
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(
            f"{path}: holds a {type(content).__name__}, not named tensors", hint="save model.state_dict()"
        )
    state = {str(key): value for key, value in content.items()}
    other = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if other:
        raise WeightsError(
            f"{path}: {other[0]!r} is not a tensor but a {type(state[other[0]]).__name__}",
            hint="save model.state_dict(), alone or under the key 'state_dict'",
        )
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state
