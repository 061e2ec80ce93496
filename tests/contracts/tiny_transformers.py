"""Tiny networks of transformers, as folders that hold their description and nothing else."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from segtune.models.base import SegModel
from segtune.models.build import build_model

_PLAIN = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": 64,
    "patch_size": 16,
}
_SCALES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
_FOUR = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}


def _swin(**options: Any) -> Any:
    from transformers import SwinConfig

    return SwinConfig(
        embed_dim=16, depths=[1, 2, 1, 1], num_heads=[1, 2, 2, 2], window_size=4, image_size=64, **options
    )


def _segformer() -> Any:
    from transformers import SegformerConfig

    return SegformerConfig(num_attention_heads=[1, 2, 2, 4], decoder_hidden_size=16, **_SCALES)


def _upernet() -> Any:
    from transformers import UperNetConfig

    return UperNetConfig(backbone_config=_swin(**_FOUR), hidden_size=16, auxiliary_channels=16)


def _upernet_convnext() -> Any:
    from transformers import ConvNextConfig, UperNetConfig

    backbone = ConvNextConfig(**_SCALES, **_FOUR)
    return UperNetConfig(backbone_config=backbone, hidden_size=16, auxiliary_channels=16)


def _dpt() -> Any:
    from transformers import DPTConfig

    return DPTConfig(
        **_PLAIN,
        intermediate_size=64,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=16,
        is_hybrid=False,
    )


def _beit(relative: bool) -> Any:
    from transformers import BeitConfig

    return BeitConfig(
        **_PLAIN,
        intermediate_size=64,
        out_indices=[1, 2, 3, 4],
        use_relative_position_bias=relative,
        use_absolute_position_embeddings=not relative,
    )


def _data2vec() -> Any:
    from transformers import Data2VecVisionConfig

    return Data2VecVisionConfig(
        **_PLAIN, intermediate_size=64, out_indices=[1, 2, 3, 4], use_relative_position_bias=True
    )


def _mobilenet() -> Any:
    from transformers import MobileNetV2Config

    return MobileNetV2Config(depth_multiplier=0.25)


def _mobilevit() -> Any:
    from transformers import MobileViTConfig

    return MobileViTConfig(
        hidden_sizes=[16, 24, 32],
        neck_hidden_sizes=[8, 8, 16, 16, 24, 24, 32],
        num_attention_heads=2,
        aspp_out_channels=16,
    )


def _mask2former() -> Any:
    from transformers import Mask2FormerConfig

    return Mask2FormerConfig(
        backbone_config=_swin(**_FOUR),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        dim_feedforward=32,
        encoder_layers=1,
        decoder_layers=3,
        num_attention_heads=2,
        num_queries=8,
    )


def _eomt() -> Any:
    from transformers import EomtConfig

    return EomtConfig(**_PLAIN, num_blocks=2, num_queries=8, num_register_tokens=4)


def _eomt_dinov3() -> Any:
    from transformers import EomtDinov3Config

    return EomtDinov3Config(
        **_PLAIN, intermediate_size=64, num_blocks=2, num_queries=8, num_register_tokens=4
    )


def _dinov2() -> Any:
    from transformers import Dinov2Config

    return Dinov2Config(**{**_PLAIN, "patch_size": 14, "image_size": 56}, mlp_ratio=2)


def _dinov3() -> Any:
    from transformers import DINOv3ViTConfig

    return DINOv3ViTConfig(**_PLAIN, intermediate_size=64, num_register_tokens=4)


def _vit() -> Any:
    from transformers import ViTConfig

    return ViTConfig(**_PLAIN, intermediate_size=64)


def _hiera() -> Any:
    from transformers import HieraConfig

    return HieraConfig(embed_dim=16, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 2], image_size=[64, 64])


def _pvt() -> Any:
    from transformers import PvtV2Config

    return PvtV2Config(num_attention_heads=[1, 2, 2, 4], **_SCALES)


def _convnext() -> Any:
    from transformers import DINOv3ConvNextConfig

    return DINOv3ConvNextConfig(**_SCALES)


CONFIGS: dict[str, Callable[[], Any]] = {
    "hf:segformer": _segformer,
    "hf:upernet-swin": _upernet,
    "hf:upernet-convnext": _upernet_convnext,
    "hf:dpt": _dpt,
    "hf:beit": functools.partial(_beit, True),
    "hf:beit-absolute": functools.partial(_beit, False),
    "hf:data2vec": _data2vec,
    "hf:mobilenet": _mobilenet,
    "hf:mobilevit": _mobilevit,
    "hf:mask2former": _mask2former,
    "hf:eomt": _eomt,
    "hf:eomt-dinov3": _eomt_dinov3,
    "hf-backbone:dinov2": _dinov2,
    "hf-backbone:dinov3": _dinov3,
    "hf-backbone:vit": _vit,
    "hf-backbone:swin": _swin,
    "hf-backbone:hiera": _hiera,
    "hf-backbone:pvt": _pvt,
    "hf-backbone:convnext": _convnext,
}
"""Description of each by family and name."""


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="segtune-transformers-")


@functools.cache
def variant(name: str) -> str:
    """The registered name of one of CONFIGS, whose folder is written on the first call."""
    family, _, short = name.partition(":")
    folder = Path(_folder().name) / family / short
    CONFIGS[name]().save_pretrained(folder)
    return f"{family}:{folder}"


def tiny(name: str) -> Callable[[int], SegModel]:
    """Builds one of CONFIGS with random weights for so many classes."""
    return lambda num_classes: build_model(variant(name), num_classes)
