"""DeepLabV3, FCN and LR-ASPP of torchvision, with its published weights.

The classifier, and the auxiliary classifier where there is one, end in a new convolution for K
classes. State-dict keys are those of torchvision, so that its checkpoints load unchanged.
Published weights: `coco` (the whole network, trained on the 21 classes of Pascal VOC in COCO) and
`imagenet` (the backbone alone).

Source: Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017; Long et
al., "Fully Convolutional Networks for Semantic Segmentation", 2015; Howard et al., "Searching for
MobileNetV3", 2019, section 6.4.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from pydantic import Field
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights

from segtune.models.base import PublishedWeights, SegModel
from segtune.models.sections import Section, run_sections
from segtune.models.sites import scan_sites
from segtune.settings import Settings
from segtune.types import InputSpec, Part, Site

_MINIMUM = 32
"""Pixels; the backbones halve up to four times, and training batch norm takes more than one value."""


class TorchvisionModelSettings(Settings):
    """What is built around the backbone."""

    auxiliary: bool = Field(
        True, description="train a second classifier on an earlier feature map, where the network has one"
    )


class TorchvisionModel(SegModel):
    """A segmentation network of torchvision.

    Args:
        variant: torchvision's name, e.g. "deeplabv3_resnet50".
        num_classes: K, at least 2.
        settings: with or without the auxiliary classifier.
    """

    def __init__(self, variant: str, num_classes: int, settings: TorchvisionModelSettings) -> None:
        super().__init__(num_classes, InputSpec(minimum=_MINIMUM))
        self.variant = variant
        self._small = variant.startswith("lraspp")
        options: dict[str, Any] = {} if self._small else {"aux_loss": settings.auxiliary}
        network = get_model(variant, weights=None, weights_backbone=None, num_classes=num_classes, **options)
        self.backbone: Any = network.backbone
        self.classifier: nn.Module = network.classifier
        self.aux_classifier: nn.Module | None = None if self._small else network.aux_classifier
        if variant.startswith("deeplabv3"):
            self.pooled_norms.append(self.get_submodule("classifier.0.convs.4.2"))
        self._sites = self._scan()

    def encode_maps(self, images: Tensor) -> dict[str, Tensor]:
        """Images to the backbone's maps: "out" and "aux", or "high" and "low"."""
        maps: dict[str, Tensor] = run_sections(self.sections(), images)
        return maps

    def sections(self) -> tuple[Section, ...]:
        """The backbone's modules in order; the last output, and the maps that the decoder takes."""
        outputs: dict[str, str] = self.backbone.return_layers
        steps = [
            Section(f"backbone.{name}", partial(_run_module, module, outputs.get(name)))
            for name, module in self.backbone.items()
        ]
        first, last = steps[0], steps[-1]
        steps[0] = Section(first.name, lambda images: first.run((images, {})))
        steps[-1] = Section(last.name, lambda state: last.run(state)[1])
        return tuple(steps)

    def decode_maps(self, maps: dict[str, Tensor], padded: tuple[int, int]) -> Tensor:
        """Maps to logits [B, K, H / 8, W / 8] or [B, K, H / 16, W / 16]."""
        logits: Tensor = self.classifier(maps if self._small else maps["out"])
        return logits

    def auxiliary_maps(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """Logits of the auxiliary classifier, at the resolution of its map."""
        return {} if self.aux_classifier is None else {"aux": self.aux_classifier(maps["aux"])}

    def sites(self) -> tuple[Site, ...]:
        """Convolutions, batch norms, residual blocks with their stages, and the classifiers' ends."""
        return self._sites

    def head_names(self) -> tuple[str, ...]:
        """The last convolution of the classifier (two in LR-ASPP) and of the auxiliary classifier."""
        if self._small:
            return ("classifier.low_classifier", "classifier.high_classifier")
        main = ("classifier.4",)
        return main if self.aux_classifier is None else (*main, "aux_classifier.4")

    def encoder_names(self) -> tuple[str, ...]:
        """The backbone."""
        return ("backbone",)

    def published(self) -> Mapping[str, PublishedWeights]:
        """Torchvision's own: `coco` for the network, `imagenet` for the backbone."""
        backbone = self.variant.partition("_")[2]
        return {
            "coco": _published(get_model_weights(self.variant)["COCO_WITH_VOC_LABELS_V1"].url, "model"),
            "imagenet": _published(get_model_weights(backbone)["IMAGENET1K_V1"].url, "encoder"),
        }

    def convert(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Accepts also the backbone's classification checkpoint, and one with an unused auxiliary."""
        if "fc.weight" in state or any(key.startswith("features.") for key in state):
            return {
                f"backbone.{key.removeprefix('features.')}": value
                for key, value in state.items()
                if not key.startswith(("fc.", "classifier."))
            }
        if self.aux_classifier is None:
            return {key: value for key, value in state.items() if not key.startswith("aux_classifier.")}
        return state

    def _scan(self) -> tuple[Site, ...]:
        if "resnet" in self.variant:
            stages = [f"backbone.layer{index}" for index in range(1, 5)]
            blocks = [f"{stage}.{name}" for stage in stages for name, _ in _children(self, stage)]
        else:
            stages = []
            blocks = [f"backbone.{name}" for name, _ in _children(self, "backbone")]
        return scan_sites(
            self,
            part=lambda name: Part.ENCODER if name.startswith("backbone.") else Part.DECODER,
            head=self.head_names(),
            blocks=blocks,
            stages=stages,
        )


def _run_module(
    module: nn.Module, output: str | None, state: tuple[Tensor, dict[str, Tensor]]
) -> tuple[Tensor, dict[str, Tensor]]:
    hidden, maps = state
    hidden = module(hidden)
    return hidden, maps if output is None else {**maps, output: hidden}


def _children(model: nn.Module, name: str) -> list[tuple[str, nn.Module]]:
    return list(model.get_submodule(name).named_children())


def _published(url: str, covers: str) -> PublishedWeights:
    """Torchvision ends its file names with the first characters of the content's sha256."""
    filename = url.rpartition("/")[2]
    return PublishedWeights(
        url=url,
        filename=filename,
        sha256=filename.removesuffix(".pth").rpartition("-")[2],
        covers=covers,
    )
