"""What every segmentation model of segtune is: encode, decode, and a list of sites."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segtune.errors import TrainingError, UsageError
from segtune.models.proposals import combine
from segtune.models.sections import Cut, Section, run_sections
from segtune.types import InputSpec, Prompts, Proposals, SegOutput, Site


@dataclass(frozen=True, kw_only=True)
class PublishedWeights:
    """A weights file that somebody published.

    Args:
        url: where it is downloaded from.
        filename: its name in the cache folder.
        sha256: hash of the content, or its first characters (at least 8); empty where the publisher
            names none beforehand: the download is then checked against the hash that the server
            sends with it.
        covers: "model" for a whole segmentation network, "encoder" for its encoder only.
        locate: finds the file where no address is known beforehand; url, filename and sha256 are
            then for information only.
    """

    url: str
    filename: str
    sha256: str
    covers: str = "model"
    locate: Callable[[], Path] | None = None


@dataclass
class Features:
    """What `encode` hands to `decode`."""

    maps: Any
    """The family's own feature maps."""
    size: tuple[int, int]
    """Height and width of the images before padding, in pixels."""
    padded: tuple[int, int]
    """Height and width after padding, in pixels."""


class SegModel(nn.Module):
    """A segmentation network: float32 images [B, C, H, W] in [0, 1] to logits [B, K, H, W].

    A family implements `encode_maps`, `decode_maps`, `sites` and `head_names`; this class
    normalises, pads to the network's multiple, crops back and resizes to the size asked for, so
    that every height and width works. A family that is prompted names the kinds in `prompted` and
    implements `decode_prompted` as well.

    Args:
        num_classes: K, at least 2.
        input_spec: channels, normalisation and size multiple.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, num_classes: int, input_spec: InputSpec) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.input_spec = input_spec
        shape = (1, input_spec.channels, 1, 1)
        self.register_buffer("mean", torch.tensor(input_spec.mean).view(shape), persistent=False)
        self.register_buffer("std", torch.tensor(input_spec.std).view(shape), persistent=False)
        self.penalty_layers: list[Any] = []
        """Layers, put there by a method, whose attribute `penalty` is a scalar after a forward.

        Those with an attribute `image_size` are told the padded image's height and width before it."""
        self.pooled_norms: list[nn.Module] = []
        """Batch norms behind a global pooling: with one image they have one value to normalise."""
        self.unused: frozenset[str] = frozenset()
        """Names of parameters on which no output depends (parts of an encoder that are not needed)."""
        self.prompted: frozenset[str] = frozenset()
        """What each object must be pointed at with, "box" and "point"; empty: the model takes no prompts."""
        self.proposes_masks = False
        """Whether `proposals` gives something: a loss that matches proposals can train this model."""

    # --- what a family implements -------------------------------------------------------------

    @abstractmethod
    def encode_maps(self, images: Tensor) -> Any:
        """Normalised, padded images [B, C, H, W] to the family's feature maps."""

    @abstractmethod
    def decode_maps(self, maps: Any, padded: tuple[int, int]) -> Tensor:
        """Feature maps to logits [B, K, *, *], at any resolution."""

    def sections(self) -> tuple[Section, ...]:
        """The encoder as sections: together they are `encode_maps`. Default: one, the whole encoder.

        A method that leaves the first ones as they are can be trained on what they gave once
        (docs/decisions/0023-frozen-prefix-cache.md).
        """
        return (Section("the encoder", self.encode_maps),)

    def decode_prompted(self, maps: Any, padded: tuple[int, int], prompts: Prompts) -> Tensor:
        """Feature maps and the objects pointed at to logits [B, K, *, *]; for models with `prompted`."""
        raise NotImplementedError

    def auxiliary_maps(self, maps: Any) -> dict[str, Tensor]:
        """Feature maps to logits of auxiliary classifiers, by name; empty where there are none."""
        return {}

    def proposals(self, maps: Any) -> Proposals | None:
        """Feature maps to the masks that `decode_maps` combines; None where there are none.

        In training the logits are combined from these, and `decode_maps` is not called; so `decode_maps`
        of a model that proposes masks is `combine(self.proposals(maps))`.
        """
        return None

    @abstractmethod
    def sites(self) -> tuple[Site, ...]:
        """Every place where a method may attach something, from the input to the output."""

    @abstractmethod
    def head_names(self) -> tuple[str, ...]:
        """Module paths of the layers that are new for K classes (final and auxiliary classifier)."""

    def encoder_names(self) -> tuple[str, ...]:
        """Module paths of the encoder: what weights that cover "encoder" consist of."""
        return ("encoder",)

    def published(self) -> Mapping[str, PublishedWeights]:
        """Published weights by name; the first is the default."""
        return {}

    def convert(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A foreign checkpoint's tensors under this model's names."""
        return state

    # --- what every model does ----------------------------------------------------------------

    def encode(self, images: Tensor, cut: Cut | None = None) -> Features:
        """Images [B, C, H, W] in [0, 1] to features.

        Args:
            images: float32; with a cut only their size counts.
            cut: what the first sections made of these images.

        Raises:
            TrainingError: a single image, while batch norm behind a global pooling is training.
        """
        if len(images) == 1 and any(norm.training for norm in self.pooled_norms):
            raise TrainingError(
                "a batch of one image cannot train this model: batch norm behind its global pooling "
                "would have one value to normalise",
                hint="batches of 2 or more images (also the last one of an epoch), or frozen norm statistics",
            )
        height, width = images.shape[-2:]
        padded = self.padded_size((height, width))
        for layer in self.penalty_layers:
            if hasattr(layer, "image_size"):
                layer.image_size = self.network_size(padded)
        if cut is None:
            maps = self.encode_maps(self.prepared(images))
        else:
            maps = run_sections(self.sections()[cut.num_sections :], cut.state)
        return Features(maps=maps, size=(height, width), padded=padded)

    def prepared(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] in [0, 1], normalised and padded: what `encode_maps` takes."""
        height, width = images.shape[-2:]
        images = (images - self.mean) / self.std
        padded = self.padded_size((height, width))
        if padded != (height, width):
            images = F.pad(images, (0, padded[1] - width, 0, padded[0] - height))
        return images

    def network_size(self, padded: tuple[int, int]) -> tuple[int, int]:
        """Height and width, in pixels, that the network works on for images of a padded size."""
        return padded

    def padded_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width, in pixels, that images of a size are padded to at the bottom and the right."""
        multiple, minimum = self.input_spec.multiple, self.input_spec.minimum
        height, width = size
        return height + max(-height % multiple, minimum - height), width + max(
            -width % multiple, minimum - width
        )

    def decode(
        self, features: Features, size: tuple[int, int] | None = None, prompts: Prompts | None = None
    ) -> Tensor:
        """Features to logits [B, K, *size]; size defaults to that of the images.

        Raises:
            UsageError: prompts are missing, or the model takes none.
        """
        if prompts is None and not self.prompted:
            return self._fit(self.decode_maps(features.maps, features.padded), features, size)
        prompts = self._checked(prompts)
        return self._fit(self.decode_prompted(features.maps, features.padded, prompts), features, size)

    def forward(
        self,
        images: Tensor,
        size: tuple[int, int] | None = None,
        prompts: Prompts | None = None,
        cut: Cut | None = None,
    ) -> SegOutput:
        """Images [B, C, H, W] to logits at `size`, with auxiliary logits and proposals while training.

        Args:
            images: float32 [B, C, H, W] in [0, 1].
            size: height and width of the logits in pixels; default: those of the images.
            prompts: the objects of each image, for models with `prompted`.
            cut: what the first sections made of these images; only the rest runs then.

        Raises:
            UsageError: prompts are missing, or the model takes none.
        """
        features = self.encode(images, cut)
        proposals = self.proposals(features.maps) if self.training else None
        if proposals is None:
            output = SegOutput(logits=self.decode(features, size, prompts))
        else:
            output = SegOutput(logits=self._fit(combine(proposals), features, size))
            output.proposals = self._without_padding(proposals, features)
        if self.training:
            for name, logits in self.auxiliary_maps(features.maps).items():
                output.auxiliary[name] = self._fit(logits, features, size)
            penalties = [layer.penalty for layer in self.penalty_layers if layer.penalty is not None]
            if penalties:
                output.penalties["balance"] = torch.stack(penalties).sum()
        return output

    def _fit(self, logits: Tensor, features: Features, size: tuple[int, int] | None) -> Tensor:
        if logits.shape[-2:] != features.padded:
            logits = F.interpolate(logits, features.padded, mode="bilinear", align_corners=False)
        logits = logits[..., : features.size[0], : features.size[1]]
        if size is not None and size != features.size:
            logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
        return logits

    def _checked(self, prompts: Prompts | None) -> Prompts:
        """The prompts, with all that the model needs."""
        if not self.prompted:
            raise UsageError("this model takes no prompts", hint="model.prompts=box (sam-..., sam2-...)")
        given = {"box": prompts and prompts.boxes, "point": prompts and prompts.points}
        missing = sorted(kind for kind in self.prompted if given[kind] is None)
        if prompts is None or missing:
            raise UsageError(
                f"this model needs prompts for each object ({' and '.join(sorted(self.prompted))})",
                hint="model(images, prompts=Prompts(...)); model.prompts=none builds it without prompts",
            )
        return prompts

    def _without_padding(self, proposals: Proposals, features: Features) -> Proposals:
        """The same where nothing was padded: masks are then left at the network's own resolution."""
        if features.padded == features.size:
            return proposals
        return replace(proposals, mask_logits=self._fit(proposals.mask_logits, features, None))

    def head_keys(self) -> set[str]:
        """State-dict keys of the head."""
        return set(keys_below(self.state_dict().keys(), self.head_names()))


def input_spec(
    channels: int,
    *,
    multiple: int = 1,
    minimum: int = 1,
    mean: tuple[float, ...] = InputSpec.mean,
    std: tuple[float, ...] = InputSpec.std,
) -> InputSpec:
    """The spec of an input with any number of channels.

    Args:
        channels: C, at least 1.
        multiple: height and width are padded to a multiple of this, in pixels.
        minimum: smallest height and width, in pixels.
        mean: of RGB images, in units of the [0, 1] image; others are taken to have 0.5.
        std: of RGB images; others are taken to have 0.25.

    Returns:
        The spec.
    """
    if channels != 3:
        mean, std = (0.5,) * channels, (0.25,) * channels
    return InputSpec(channels=channels, mean=mean, std=std, multiple=multiple, minimum=minimum)


def keys_below(keys: Iterable[str], modules: Iterable[str]) -> list[str]:
    """The state-dict keys that belong to one of the modules."""
    prefixes = tuple(f"{name}." for name in modules)
    return [key for key in keys if key.startswith(prefixes)]
