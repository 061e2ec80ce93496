"""Models by name. A new model is one file here and one line below."""

from __future__ import annotations

from segtune.registry import Registry

MODELS = Registry(
    "model",
    {
        "unet": "segtune.models.unet:UNet",
        "deeplabv3_resnet50": "segtune.models.torchvision:TorchvisionModel",
        "deeplabv3_resnet101": "segtune.models.torchvision:TorchvisionModel",
        "deeplabv3_mobilenet_v3_large": "segtune.models.torchvision:TorchvisionModel",
        "fcn_resnet50": "segtune.models.torchvision:TorchvisionModel",
        "lraspp_mobilenet_v3_large": "segtune.models.torchvision:TorchvisionModel",
        "sam-vit-base": "segtune.models.sam:Sam",
        "sam-vit-large": "segtune.models.sam:Sam",
        "sam-vit-huge": "segtune.models.sam:Sam",
        "sam2-hiera-tiny": "segtune.models.sam2:Sam2",
        "sam2-hiera-small": "segtune.models.sam2:Sam2",
        "sam2-hiera-base-plus": "segtune.models.sam2:Sam2",
        "sam2-hiera-large": "segtune.models.sam2:Sam2",
        "sam2.1-hiera-tiny": "segtune.models.sam2:Sam2",
        "sam2.1-hiera-small": "segtune.models.sam2:Sam2",
        "sam2.1-hiera-base-plus": "segtune.models.sam2:Sam2",
        "sam2.1-hiera-large": "segtune.models.sam2:Sam2",
        "smp:": "segtune.models.smp:SmpModel",
        "hf:": "segtune.models.hf:HfModel",
        "hf-backbone:": "segtune.models.hf_backbone:HfBackbone",
    },
)
