"""What transformers keeps beside a network's weights: its description, and how images are prepared.

Everything is read from a local folder, or by its name from the model hub (from the hub's cache first).
No code of a folder or of the hub is ever run.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segtune.errors import MissingExtraError, UsageError, WeightsError
from segtune.models.base import PublishedWeights
from segtune.models.files import FOLDER_FILES, INDEX, shards
from segtune.models.weights import file_of_folder
from segtune.types import InputSpec

CONFIG = "config.json"
_PREPARATION = ("preprocessor_config.json", "processor_config.json")
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
PRETRAINED = "pretrained"
"""Name of the weights that lie beside the description."""


@dataclass(frozen=True)
class Source:
    """A folder of transformers' layout, or a name on the model hub.

    Args:
        variant: the model as the user wrote it, e.g. "hf:models/mine" or "hf:nvidia/mit-b0".
    """

    variant: str

    @property
    def where(self) -> str:
        """Folder, or name on the hub."""
        return self.variant.partition(":")[2]

    @property
    def folder(self) -> Path | None:
        """The folder; None for the hub."""
        folder = Path(self.where).expanduser()
        return folder if folder.is_dir() else None

    def file(self, name: str) -> Path | None:
        """A file beside the description; None where there is no such file.

        Raises:
            UsageError: neither a folder nor a name that the hub knows, or the hub cannot be reached.
        """
        if self.folder is not None:
            path = self.folder / name
            return path if path.is_file() else None
        if not _HUB_ID.fullmatch(self.where):
            raise UsageError(
                f"{self.variant!r}: there is no folder {str(Path(self.where).expanduser().resolve())!r}",
                hint="the folder holds config.json, as save_pretrained writes it",
            )
        return self._hub_file(name)

    def _hub_file(self, name: str) -> Path | None:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        try:
            return Path(hf_hub_download(self.where, name, local_files_only=True))
        except LocalEntryNotFoundError:
            pass
        try:
            return Path(hf_hub_download(self.where, name))
        except LocalEntryNotFoundError as error:
            raise self._unreachable(name, "the model hub cannot be reached") from error
        except EntryNotFoundError:
            return None
        except (OSError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise self._unreachable(name, reason) from error

    def _unreachable(self, name: str, reason: str) -> UsageError:
        return UsageError(
            f"{self.variant!r}: {name} of {self.where!r} is neither a folder here nor in the hub's cache, "
            f"and cannot be downloaded: {reason}",
            hint=f"with a connection: hf download {self.where} --local-dir FOLDER, then "
            f"{self.variant.partition(':')[0]}:FOLDER; log in (hf auth login) where the model asks for it",
        )

    def config(self) -> Any:
        """The network's description, as an object of transformers.

        Raises:
            MissingExtraError: transformers is not installed.
            UsageError: there is none, or this transformers does not know the architecture.
        """
        try:
            from transformers.models.auto.configuration_auto import CONFIG_MAPPING
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                "transformers", extra="hf", purpose=f"the model {self.variant!r}"
            ) from error
        path = self.file(CONFIG)
        if path is None:
            raise UsageError(
                f"{self.variant!r}: no {CONFIG} in {self.where!r}",
                hint="a folder as save_pretrained writes it, or a name on the model hub",
            )
        values = _read_json(path)
        architecture = values.get("model_type", "")
        try:
            return CONFIG_MAPPING[architecture].from_dict(values)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise UsageError(
                f"{path}: this transformers cannot build the architecture {architecture!r}: {reason}",
                hint="models that bring code of their own are not supported; "
                "for a newer architecture, a newer transformers",
            ) from error

    def preparation(self) -> Preparation:
        """How images are normalised, as far as the folder says so."""
        for name in _PREPARATION:
            path = self.file(name)
            if path is not None:
                values = _read_json(path)
                return Preparation.read(values.get("image_processor", values))
        return Preparation()

    def weights(self) -> PublishedWeights:
        """The weights beside the description."""
        return PublishedWeights(url=self.where, filename=self.where, sha256="", locate=self._locate)

    def _locate(self) -> Path:
        if self.folder is not None:
            return file_of_folder(self.folder)
        for name in FOLDER_FILES:
            path = self.file(name)
            if path is not None:
                if name.endswith(INDEX):
                    for part in shards(path):
                        self.file(part.name)
                return path
        raise WeightsError(
            f"{self.where!r} on the model hub has neither {FOLDER_FILES[0]} nor {FOLDER_FILES[2]}",
            hint="name a weights file: model.weights=FILE",
        )


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What a network was trained to see.

    Args:
        mean: per channel, in units of the [0, 1] image.
        std: per channel.
        reversed_channels: blue, green, red instead of red, green, blue.
    """

    mean: tuple[float, ...] = InputSpec.mean
    std: tuple[float, ...] = InputSpec.std
    reversed_channels: bool = False

    @classmethod
    def read(cls, values: dict[str, Any]) -> Preparation:
        """From the values of transformers' `preprocessor_config.json`."""
        flips = bool(values.get("do_flip_channel_order", False))
        mean, std = values.get("image_mean"), values.get("image_std")
        if values.get("do_normalize") is False or (flips and mean is None):
            mean, std = (0.0,), (1.0,)
        if mean is None or std is None:
            return cls(reversed_channels=flips)
        # Images of 0..1 times what the network expects of 0..255.
        scale = (
            255 * float(values.get("rescale_factor", 1 / 255)) if values.get("do_rescale", True) else 255.0
        )
        return cls(
            mean=tuple(float(value) / scale for value in _sequence(mean)),
            std=tuple(float(value) / scale for value in _sequence(std)),
            reversed_channels=flips,
        )

    def for_channels(self, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of so many channels."""
        if len(self.mean) == channels:
            return self.mean, self.std
        if len(set(self.mean)) == len(set(self.std)) == 1:
            return self.mean[:1] * channels, self.std[:1] * channels
        return (0.5,) * channels, (0.25,) * channels


def _sequence(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}", hint="fetch or copy the file again") from error
    if not isinstance(values, dict):
        raise UsageError(f"{path} holds a {type(values).__name__}, not settings", hint="use a copy")
    return values
