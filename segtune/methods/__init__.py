"""Tuning methods by name. A new method is one file here and one line below."""

from __future__ import annotations

from segtune.registry import Registry

METHODS = Registry(
    "method",
    {
        "full": "segtune.methods.full:Full",
        "scratch": "segtune.methods.scratch:Scratch",
        "head": "segtune.methods.head:Head",
        "bitfit": "segtune.methods.bitfit:BitFit",
        "norm": "segtune.methods.norm:Norm",
        "lora": "segtune.methods.lora:Lora",
        "conv-lora": "segtune.methods.conv_lora:ConvLora",
        "conv-lora:multi-scale": "segtune.methods.conv_lora_multi_scale:MultiScale",
        "conv-lora:inception": "segtune.methods.conv_lora_inception:Inception",
    },
)
