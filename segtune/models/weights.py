"""Loads pretrained weights into a model: by published name, from a local file, or not at all.

Nothing is copied into the model before every tensor has been checked, so that a failure leaves the
model as it was. Files are read as safetensors or with torch's `weights_only`; a file that would
have to run code is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from segtune.errors import UnknownNameError, WeightsError
from segtune.models.base import PublishedWeights, SegModel, keys_below
from segtune.models.download import cached_file, file_hash
from segtune.models.files import FOLDER_FILES, INDEX, READABLE, read_weights, shards
from segtune.registry import nearest

_SHOWN = 3
"""How many wrong keys an error message lists."""


@dataclass(frozen=True, kw_only=True)
class WeightsReport:
    """Where a model's weights came from.

    Args:
        source: "none", the published name, or the path as the user wrote it.
        path: the file; None for random weights.
        sha256: hash of the file; None for random weights.
        kept_head: the file's classifier fits K classes and was kept.
        metadata: what a safetensors file says about itself.
        lines: the same in words, for the user.
    """

    source: str
    path: Path | None = None
    sha256: str | None = None
    kept_head: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict)
    lines: tuple[str, ...] = ()


def load_weights(model: SegModel, weights: str) -> WeightsReport:
    """Loads weights into a model, completely or not at all.

    Args:
        model: a model with real (not meta) tensors; its head may have another number of classes.
        weights: "default" (the first published weights; random where nothing is published), "none"
            (keep the random weights), a published name, or the path of a .safetensors, .pth, .pt,
            .ckpt or .bin file, or of a folder with model.safetensors or pytorch_model.bin in it (or with
            several files and their index).

    Returns:
        What was loaded, with the hash of the file.

    Raises:
        UnknownNameError: neither a published name nor a file.
        WeightsError: missing, damaged, unsafe, or of another architecture.
    """
    assert not any(tensor.is_meta for tensor in model.state_dict().values()), "a meta model has no weights"
    published = model.published()
    if weights == "default" and not published:
        return WeightsReport(
            source="none", lines=("random weights: no published weights exist for this model",)
        )
    if weights == "none":
        return WeightsReport(source="none", lines=("random weights, as asked for",))
    name = next(iter(published)) if weights == "default" else weights
    path = _published_file(published[name]) if name in published else _local_file(name, published)
    state, metadata = read_weights(path)
    return _load(model, state, source=name, path=path, metadata=metadata)


def _published_file(weights: PublishedWeights) -> Path:
    return cached_file(weights) if weights.locate is None else weights.locate()


def _local_file(weights: str, published: Mapping[str, PublishedWeights]) -> Path:
    path = Path(weights).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        return file_of_folder(path)
    if path.suffix in READABLE or len(path.parts) > 1:
        raise WeightsError(f"weights file {weights!r} does not exist", hint="check model.weights")
    names = ["default", "none", *published]
    meant = nearest(weights, names)
    raise UnknownNameError(
        f"this model has no published weights called {weights!r}, and there is no such file",
        hint=(f"did you mean {meant!r}? " if meant else "") + f"Available: {', '.join(names)}, or a path",
    )


def file_of_folder(folder: Path) -> Path:
    """The weights file of a folder as transformers saves one, or the index of several.

    Raises:
        WeightsError: there is none.
    """
    found = [folder / name for name in FOLDER_FILES if (folder / name).is_file()]
    if not found:
        raise WeightsError(
            f"weights {str(folder)!r} is a folder without {FOLDER_FILES[0]} or {FOLDER_FILES[2]}",
            hint=f"name a file: {', '.join(READABLE)}",
        )
    return found[0]


def _hash(path: Path) -> str:
    """The sha256 of a weights file; of several, that of their hashes."""
    if not path.name.endswith(INDEX):
        return file_hash(path)
    return hashlib.sha256("".join(file_hash(part) for part in shards(path)).encode()).hexdigest()


def _load(
    model: SegModel, state: dict[str, Tensor], *, source: str, path: Path, metadata: Mapping[str, str]
) -> WeightsReport:
    own = model.state_dict()
    state = model.convert(state)
    head = model.head_keys()
    encoder = set(keys_below(own, model.encoder_names()))
    encoder_only = bool(encoder) and bool(state) and state.keys() <= encoder
    head_fits = not encoder_only and all(key in state and state[key].shape == own[key].shape for key in head)
    wanted = encoder if encoder_only else own.keys() - head
    found = state.keys() - head
    # Files from before 2018 lack the counters of batch norm; nothing depends on their value.
    missing = {key for key in wanted - found if not key.endswith(".num_batches_tracked")}
    unexpected = found - wanted
    wrong_shape = {key for key in found & wanted if state[key].shape != own[key].shape}
    if missing or unexpected or wrong_shape:
        raise _misfit(path, own, state, missing=missing, unexpected=unexpected, wrong_shape=wrong_shape)
    chosen = found | (head if head_fits else set())
    model.load_state_dict({key: state[key] for key in chosen}, strict=False)
    return WeightsReport(
        source=source,
        path=path,
        sha256=_hash(path),
        kept_head=head_fits,
        metadata=metadata,
        lines=(
            f"weights {source}: {len(chosen)} of {len(own)} tensors from {path}",
            _describe_head(model, head, state, head_fits, encoder_only),
        ),
    )


def _describe_head(
    model: SegModel, head: Collection[str], state: Mapping[str, Tensor], fits: bool, encoder_only: bool
) -> str:
    if fits and not head:
        return "classifier: none of its own; the decoder's weights are the file's"
    if fits:
        return f"classifier: kept from the file ({model.num_classes} classes)"
    if encoder_only:
        return "the file holds the encoder alone: decoder and classifier start from random weights"
    shapes = [state[key].shape for key in sorted(head) if key in state]
    there = f"the file's is for {shapes[0][0]} classes" if shapes else "the file has none"
    return f"classifier: new for {model.num_classes} classes ({there})"


def _misfit(
    path: Path,
    own: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    *,
    missing: Collection[str],
    unexpected: Collection[str],
    wrong_shape: Collection[str],
) -> WeightsError:
    fitting = sum(key in own and own[key].shape == state[key].shape for key in state)
    lines = [
        f"{path}: the weights do not fit the model: {fitting} of the file's {len(state)} tensors fit, "
        f"the model has {len(own)}"
    ]
    for title, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", wrong_shape)):
        if not keys:
            continue
        lines.append(f"    {len(keys)} {title}:")
        for key in sorted(keys)[:_SHOWN]:
            detail = ""
            if key in wrong_shape:
                detail = f" (file {tuple(state[key].shape)}, model {tuple(own[key].shape)})"
            elif key in unexpected and (close := nearest(key, sorted(missing))):
                detail = f" (the model has {close})"
            lines.append(f"      {key}{detail}")
        if len(keys) > _SHOWN:
            lines.append("      ...")
    return WeightsError(
        "\n".join(lines), hint="choose the model (and model.* settings) that these weights were trained for"
    )


def fingerprint(model: torch.nn.Module, exclude: Collection[str] = frozenset()) -> str:
    """A hash of a model's tensors: equal for equal weights, on every machine and device.

    Args:
        model: any module with real (not meta) tensors.
        exclude: state-dict keys to leave out (those that an adapter owns).

    Returns:
        sha256, in hexadecimal, over name, type, shape and content of the tensors in order of name.
    """
    digest = hashlib.sha256()
    state = model.state_dict()
    for name in sorted(state.keys() - set(exclude)):
        tensor = state[name].detach()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
