"""Tuning methods by name. A new method is one file here and one line below."""

from __future__ import annotations

from segtune.registry import Registry

METHODS = Registry(
    "method",
    {
        "full": "segtune.methods.full:Full",
        "scratch": "segtune.methods.scratch:Scratch",
        "base": "segtune.methods.untuned:Untuned",
        "zero-shot": "segtune.methods.zero_shot:ZeroShot",
        "head": "segtune.methods.head:Head",
        "bitfit": "segtune.methods.bitfit:BitFit",
        "norm": "segtune.methods.norm:Norm",
        "ia3": "segtune.methods.ia3:Ia3",
        "lora": "segtune.methods.lora:Lora",
        "conv-lora": "segtune.methods.conv_lora:ConvLora",
        "conv-lora:multi-scale": "segtune.methods.conv_lora_multi_scale:MultiScale",
        "conv-lora:inception": "segtune.methods.conv_lora_inception:Inception",
        "rslora": "segtune.methods.rslora:RsLora",
        "dora": "segtune.methods.dora:Dora",
        "lora-plus": "segtune.methods.lora_plus:LoraPlus",
        "lora-fa": "segtune.methods.lora_fa:LoraFa",
        "interpolated-lora": "segtune.methods.interpolated_lora:InterpolatedLora",
        "pissa": "segtune.methods.pissa:Pissa",
        "ssf": "segtune.methods.ssf:Ssf",
        "adapter": "segtune.methods.adapter:Adapter",
        "sam-adapter": "segtune.methods.sam_adapter:SamAdapter",
        "vpt": "segtune.methods.vpt:Vpt",
        "lst": "segtune.methods.lst:Lst",
        "peft:": "segtune.methods.peft:Peft",
    },
)
