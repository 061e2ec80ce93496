"""What `hf:` and `hf-backbone:` share: a network of transformers as a segmentation model.

The network is the attribute `network`, so that its tensors are those of the library's files with
"network." in front.
"""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from segtune.errors import UsageError
from segtune.models.base import PublishedWeights, SegModel
from segtune.models.hf_network import resize
from segtune.models.hf_sites import settle
from segtune.models.hf_source import PRETRAINED, Source
from segtune.types import InputSpec, Site

_PREFIX = "network."
_MAP_NORMS = f"{_PREFIX}hidden_states_norms."
_HALVED = 32
"""Pixels; how often networks of several scales halve the image, at most five times."""


class TransformersModel(SegModel):
    """A network of transformers.

    A family calls `finish` at the end of its constructor.

    Args:
        num_classes: K, at least 2.
        source: where the network's description lies.
        network: as the library builds it.
    """

    def __init__(self, num_classes: int, source: Source, network: nn.Module) -> None:
        self.preparation = source.preparation()
        config = network.config
        channels = find_value(config, "num_channels", 3)
        mean, std = self.preparation.for_channels(channels)
        multiple = patch_side(config) or _HALVED
        super().__init__(
            num_classes,
            InputSpec(channels=channels, mean=mean, std=std, multiple=multiple, minimum=2 * multiple),
        )
        self.variant = source.variant
        self.source = source
        self.network: Any = network
        self.fixed_size: tuple[int, int] | None = None
        """Height and width that images are resized to; None where every size will do."""
        self._sites: tuple[Site, ...] = ()

    @abstractmethod
    def run(self, images: Tensor) -> Any:
        """Images at a size that the network takes to the family's feature maps."""

    def finish(self) -> None:
        """Finds the sites, and whether the network takes images of every size.

        Raises:
            UsageError: the network does not run.
        """
        try:
            self._sites, traced = self._settle()
        except _FAILURES as error:
            size = find_value(self.network.config, "image_size", None)
            if size is None:
                raise self._does_not_run(error) from error
            height, width = (size, size) if isinstance(size, int) else tuple(size)[-2:]
            self.fixed_size = (height, width)
            try:
                self._sites, traced = self._settle()
            except _FAILURES as second:
                raise self._does_not_run(second) from second
        self.unused = frozenset(name for name, _ in self.named_parameters() if name not in traced.used)
        self.pooled_norms += [
            module
            for name, module in self.named_modules()
            if isinstance(module, _BatchNorm) and traced.shapes.get(name, ())[2:] == (1, 1)
        ]

    def _settle(self) -> Any:
        return settle(self, encoder=self.encoder_names(), head=self.head_names())

    def _does_not_run(self, error: Exception) -> UsageError:
        reason = str(error).strip().partition("\n")[0]
        return UsageError(
            f"{self.variant!r}: {type(self.network).__name__} does not run on images alone: {reason}",
            hint="compare config.json with that of a published model of this architecture",
        )

    def encode_maps(self, images: Tensor) -> Any:
        """Images to the family's feature maps."""
        if self.preparation.reversed_channels:
            images = images.flip(1)
        if self.fixed_size is not None and images.shape[-2:] != self.fixed_size:
            images = resize(images, self.fixed_size)
        return self.run(images)

    def network_size(self, padded: tuple[int, int]) -> tuple[int, int]:
        """The one size that the network takes, or that of the images."""
        return self.fixed_size or padded

    def sites(self) -> tuple[Site, ...]:
        """Every layer that takes part in the output, the blocks and stages, and the head."""
        return self._sites

    def published(self) -> Mapping[str, PublishedWeights]:
        """The weights that lie beside the network's description."""
        return {PRETRAINED: self.source.weights()}

    def convert(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Accepts files of transformers: also older ones, and those of a network without this head."""
        if any(key.startswith(_PREFIX) for key in state):
            return state
        found = {f"{_PREFIX}{key}": value for key, value in rename_as_library(self.network, state).items()}
        if not found:
            return state
        # Files lack what backbones put on their maps, and what nothing depends on.
        own = self.network.state_dict(prefix=_PREFIX)
        spare = {key for key in own if key in self.unused or key.startswith(_MAP_NORMS)}
        return {**{key: own[key] for key in spare}, **found}


_FAILURES = (RuntimeError, ValueError, TypeError, AssertionError, IndexError, AttributeError)


def find_value(config: Any, name: str, default: Any) -> Any:
    """A value of a network's description, or of that of its backbone."""
    for each in (config, getattr(config, "backbone_config", None)):
        value = getattr(each, name, None)
        if value is not None:
            return value
    return default


def patch_side(config: Any) -> int | None:
    """Side of a patch of a plain transformer in pixels; None for networks of several scales."""
    patch = find_value(config, "patch_size", 1)
    side = patch if isinstance(patch, int) else max(patch)
    return side if side > 8 else None


def rename_as_library(network: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's tensors under the names that a network of transformers has today.

    The library's own loading does it, on a second network.

    Args:
        network: that the tensors are for.
        state: tensors of a file of transformers.

    Returns:
        What the file has for the network; tensors of another shape as they are; tensors of deeper
        networks of the same kind, so that they are noticed.
    """
    with _silence(), torch.random.fork_rng(devices=[]):
        loaded, report = type(network).from_pretrained(
            None,
            config=network.config,
            state_dict=dict(state),
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            dtype=torch.float32,
        )
    own = network.state_dict().keys()
    misfits = {key: shape for key, shape, _ in report["mismatched_keys"] if key in own}
    absent = {*report["missing_keys"], *misfits}
    found = {key: value for key, value in loaded.state_dict().items() if key in own and key not in absent}
    for key, shape in misfits.items():
        found[key] = state[key] if key in state else torch.empty(shape, device="meta")
    for key in report["unexpected_keys"]:
        if _belongs(key, network):
            # Reported under today's name; the tensor is never copied.
            found[key] = state.get(key, torch.empty(0, device="meta"))
    return found


def _belongs(key: str, network: nn.Module) -> bool:
    """Whether a tensor lies in a module that the network has."""
    base = getattr(network, getattr(network, "base_model_prefix", "") or "base", None)
    first = key.partition(".")[0]
    return any(
        first in dict(module.named_children()) for module in (network, base) if isinstance(module, nn.Module)
    )


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Without the library's progress bars and load report; ours is shorter."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def below(prefix: str, names: Collection[str] | Sequence[str]) -> tuple[str, ...]:
    """Module paths with the path of what they are in."""
    return tuple(f"{prefix}.{name}" for name in names)
