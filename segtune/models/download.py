"""Fetches published weights into the cache: checked by hash, never half-written."""

from __future__ import annotations

import hashlib
import os
import urllib.error
import urllib.request
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import IO, Any

import torch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from segtune.errors import WeightsError
from segtune.models.base import PublishedWeights

_CHUNK = 1 << 20
_TIMEOUT = 30.0
"""Seconds without an answer after which a download is given up."""


def cache_folder() -> Path:
    """Where downloaded weights are kept: $SEGTUNE_CACHE, else the checkpoints folder of torch.hub."""
    chosen = os.environ.get("SEGTUNE_CACHE")
    return Path(chosen) if chosen else Path(torch.hub.get_dir()) / "checkpoints"


def file_hash(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cached_file(weights: PublishedWeights) -> Path:
    """The file of published weights in the cache, downloaded if it is not there.

    Raises:
        WeightsError: not reachable, or the content does not have the published hash.
    """
    path = cache_folder() / weights.filename
    if not path.exists():
        _download(weights, path)
    elif not file_hash(path).startswith(weights.sha256):
        raise WeightsError(
            f"{path}: the content is not what was published: sha256 {file_hash(path)} does not start "
            f"with {weights.sha256}",
            hint=f"delete it, so that it is downloaded again from {weights.url}",
        )
    return path


def _download(weights: PublishedWeights, path: Path) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        found, announced = _fetch(weights, part)
        expected = weights.sha256 or announced
        if not expected or not found.startswith(expected):
            raise WeightsError(
                f"{weights.url}: the download has sha256 {found}, published is {expected or 'none'}",
                hint=f"try again, or put the right file at {path}",
            )
        part.replace(path)
    except (urllib.error.URLError, HTTPException, OSError) as error:
        raise WeightsError(
            f"weights {weights.filename} are not in the cache and cannot be downloaded: {error}",
            hint=f"download {weights.url} elsewhere and put it, as {weights.filename}, into the folder "
            f"{path.parent} (or set SEGTUNE_CACHE to the folder that has it); "
            "model.weights=none starts from random weights",
        ) from error
    finally:
        part.unlink(missing_ok=True)


def _fetch(weights: PublishedWeights, part: Path) -> tuple[str, str]:
    """Downloads to `part`; returns the content's hash and the one that the server announced."""
    redirects = _AnnouncedHash()
    opener = urllib.request.build_opener(redirects)
    request = urllib.request.Request(weights.url, headers={"User-Agent": "segtune"})
    digest = hashlib.sha256()
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with (
        opener.open(request, timeout=_TIMEOUT) as response,
        part.open("wb") as file,
        Progress(*columns, console=Console(stderr=True)) as progress,
    ):
        length = response.headers.get("Content-Length")
        task = progress.add_task(weights.filename, total=int(length) if length else None)
        while chunk := response.read(_CHUNK):
            file.write(chunk)
            digest.update(chunk)
            progress.advance(task, len(chunk))
        file.flush()
        os.fsync(file.fileno())
        announced = redirects.sha256 or _announced(response.headers)
    return digest.hexdigest(), announced


class _AnnouncedHash(urllib.request.HTTPRedirectHandler):
    """Keeps the sha256 that a model hub sends along with its redirect to the storage."""

    sha256 = ""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> Any:
        """Called for each redirect, before it is followed."""
        self.sha256 = self.sha256 or _announced(headers)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _announced(headers: HTTPMessage) -> str:
    tag = (headers.get("X-Linked-Etag") or "").strip('"')
    return tag if len(tag) == hashlib.sha256().digest_size * 2 else ""
