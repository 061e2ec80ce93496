"""Every decoder and encoder of segmentation_models_pytorch, as smp:DECODER/ENCODER.

For example `smp:unet/resnet34`, `smp:deeplabv3plus/mobilenet_v2`, `smp:segformer/mit_b0`, or with
an encoder of timm `smp:upernet/tu-convnext_tiny`, `smp:dpt/tu-vit_base_patch16_224`. Published
weights cover the encoder; those of an encoder for RGB are adapted to other numbers of channels.
State-dict keys are those of the library, so that its checkpoints load unchanged.

Needs the extra `smp`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from segtune.errors import MissingExtraError, UnknownNameError, UsageError
from segtune.models.base import PublishedWeights, SegModel, input_spec
from segtune.models.sites import Trace, scan_sites, trace
from segtune.registry import nearest
from segtune.settings import Settings
from segtune.types import Part, Site, SiteKind

_HUB = "https://huggingface.co/{repository}/resolve/{revision}/model.safetensors"
_TIMM = "tu-"
"""What the library puts in front of the names of timm's encoders."""

_SMALLEST_MAP = {"pan": 8}
"""Smallest side of the last map, by decoder, where two pixels are not enough: PAN halves it thrice."""

_PARTS = ("encoder.", "decoder.", "segmentation_head.")
_QUERY_KEY_VALUE = {
    "qkv": "qkv",
    "kv": "kv",
    **{name: letter for letter in "qkv" for name in (letter, f"{letter}_proj")},
}
"""Name of a layer of an attention -> what its outputs are, in equal parts."""
_PROJECTION = ("proj", "out_proj", "o_proj")

_Colours = tuple[float, ...]
_INCEPTION: tuple[_Colours, _Colours] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_IMAGENET: tuple[_Colours, _Colours] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_DPN: tuple[_Colours, _Colours] = ((124 / 255, 117 / 255, 104 / 255), (1 / (0.0167 * 255),) * 3)
_NORMALISATION = {
    "inception": _INCEPTION,
    "xception": _INCEPTION,
    "timm-tf_efficientnet_lite": _INCEPTION,
    "dpn": _DPN,
}
"""Mean and standard deviation with which encoders were pretrained, by the start of their name."""


class SmpModelSettings(Settings):
    """What is built around the chosen decoder and encoder."""

    channels: int = Field(3, ge=1, le=1024, description="channels of the input image")


class SmpModel(SegModel):
    """A network of segmentation_models_pytorch.

    Args:
        variant: "smp:DECODER/ENCODER".
        num_classes: K, at least 2.
        settings: number of input channels.

    Raises:
        MissingExtraError: the library is not installed.
        UnknownNameError: no such decoder or encoder.
        UsageError: the decoder cannot be built on this encoder, or takes images of one size only.
    """

    def __init__(self, variant: str, num_classes: int, settings: SmpModelSettings) -> None:
        network = _build(variant, num_classes, settings.channels)
        encoder_name = variant.partition("/")[2]
        mean, std = _normalisation(encoder_name)
        decoder_name = _decoder_name(variant)
        # DPT halves the last map once more.
        multiple = network.encoder.output_stride * (2 if decoder_name == "dpt" else 1)
        minimum = _SMALLEST_MAP.get(decoder_name, 2) * multiple
        super().__init__(
            num_classes,
            input_spec(settings.channels, multiple=multiple, minimum=minimum, mean=mean, std=std),
        )
        self.variant = variant
        self.encoder_name = encoder_name
        self.encoder: nn.Module = network.encoder
        self.decoder: nn.Module = network.decoder
        self.segmentation_head: nn.Module = network.segmentation_head
        self._with_tokens = decoder_name == "dpt"
        traced = _trace(self)
        self.unused = frozenset(name for name, _ in self.named_parameters() if name not in traced.used)
        self.pooled_norms += [
            module
            for name, module in self.named_modules()
            if isinstance(module, _BatchNorm) and traced.shapes.get(name, ())[2:] == (1, 1)
        ]
        self._sites = self._scan(traced)

    def encode_maps(self, images: Tensor) -> Any:
        """Images to the encoder's maps (and prefix tokens, for DPT)."""
        return self.encoder(images)

    def decode_maps(self, maps: Any, padded: tuple[int, int]) -> Tensor:
        """Maps to logits [B, K, H, W]."""
        hidden = self.decoder(*maps) if self._with_tokens else self.decoder(maps)
        logits: Tensor = self.segmentation_head(hidden)
        return logits

    def sites(self) -> tuple[Site, ...]:
        """Every layer that takes part in the output, the blocks and stages, and the head."""
        return self._sites

    def head_names(self) -> tuple[str, ...]:
        """The last convolution."""
        convolutions = [
            name for name, module in self.segmentation_head.named_modules() if isinstance(module, nn.Conv2d)
        ]
        return (f"segmentation_head.{convolutions[-1]}",)

    def published(self) -> Mapping[str, PublishedWeights]:
        """The encoder's weights on the model hub, by the library's names; `imagenet` first."""
        if self.encoder_name.startswith(_TIMM):
            return _timm_weights(self.encoder_name)
        from segmentation_models_pytorch.encoders import encoders

        table = encoders[self.encoder_name]["pretrained_settings"]
        names = sorted(table, key=lambda name: name != "imagenet")
        return {name: _hub_file(table[name]["repo_id"], table[name]["revision"]) for name in names}

    def convert(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Accepts also an encoder's own checkpoint, with its classifier and for RGB."""
        if any(key.startswith(_PARTS) for key in state):
            return state
        own = self.encoder.state_dict()
        found: dict[str, Tensor] = {}
        for key, value in state.items():
            name = next((name for name in _encoder_keys(key) if name in own), None)
            if name is not None:
                found[name] = _fit_channels(value, own[name])
        if any(name not in found and not name.endswith(".num_batches_tracked") for name in own):
            return state
        return {f"encoder.{name}": value for name, value in found.items()}

    def _scan(self, traced: Trace) -> tuple[Site, ...]:
        blocks = [f"encoder.{name}" for name in _repeated_blocks(self.encoder)]
        decoder_blocks = dict(self.decoder.named_children()).get("blocks", nn.Module())
        blocks += [f"decoder.blocks.{name}" for name, _ in decoder_blocks.named_children()]
        blocks = sorted(
            (name for name in blocks if name in traced.shapes), key=lambda name: traced.order[name]
        )
        stages = {name.rpartition(".")[0] for name in blocks if name.startswith("encoder.")}
        sites = scan_sites(
            self,
            part=lambda name: Part.ENCODER if name.startswith("encoder.") else Part.DECODER,
            head=self.head_names(),
            blocks=blocks,
            stages=sorted(stages & traced.shapes.keys()),
            linear_kind=_linear_kind,
            traced=traced,
        )
        found: list[Site] = []
        for site in sites:
            found.append(replace(site, splits=_splits(site)))
            if site.kind is SiteKind.BLOCK and _takes_tokens(site.module):
                found.append(replace(site, name=f"{site.name}.tokens", kind=SiteKind.TOKENS))
        return tuple(found)


def _takes_tokens(block: nn.Module) -> bool:
    """Whether a block mixes a sequence of any length, as those of the plain vision transformer do."""
    if type(block).__module__ != "timm.models.vision_transformer":
        return False
    from timm.layers.attention import Attention
    from timm.models.vision_transformer import Block

    return type(block) is Block and type(block.attn) is Attention


def _decoder_name(variant: str) -> str:
    return variant.partition(":")[2].partition("/")[0].lower()


def _build(variant: str, num_classes: int, channels: int) -> Any:
    try:
        import segmentation_models_pytorch as library
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "segmentation-models-pytorch", extra="smp", purpose=f"the model {variant!r}"
        ) from error
    decoder, encoder = _decoder_name(variant), variant.partition("/")[2]
    decoders = sorted(library.MODEL_ARCHITECTURES_MAPPING)
    _require(decoder, decoders, f"{variant!r}: there is no decoder", f"Decoders: {', '.join(decoders)}")
    options: dict[str, Any] = {}
    if encoder.startswith(_TIMM):
        import timm

        name = encoder.removeprefix(_TIMM)
        if not timm.is_model(name):
            _require(
                name, timm.list_models(), f"{variant!r}: timm has no encoder", "timm.list_models() lists them"
            )
        options = _any_size(name)
    else:
        encoders = library.encoders.get_encoder_names()
        _require(
            encoder,
            encoders,
            f"{variant!r}: there is no encoder",
            f"Encoders: {', '.join(encoders)}, and tu-NAME for those of timm",
        )
    try:
        with _DropRates():
            return library.create_model(
                decoder, encoder, encoder_weights=None, in_channels=channels, classes=num_classes, **options
            )
    except (ValueError, NotImplementedError) as error:
        raise UsageError(
            f"{variant!r} cannot be built: {error}", hint="choose another encoder for this decoder"
        ) from error


class _DropRates(TorchFunctionMode):
    """Keeps linspace off the meta device: some encoders read their drop rates from its result."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        return func(*args, **({"device": "cpu", **options} if func is torch.linspace else options))


def _trace(model: SmpModel) -> Trace:
    try:
        return trace(model)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"{model.variant!r} does not take images of every size: {error}",
            hint="choose another encoder: convolutional, or a transformer without a fixed image size",
        ) from error


def _require(name: str, names: list[str], message: str, available: str) -> None:
    if name not in names:
        meant = nearest(name, names)
        raise UnknownNameError(
            f"{message} {name!r}", hint=(f"did you mean {meant!r}? " if meant else "") + available
        )


def _any_size(name: str) -> dict[str, Any]:
    """The option by which a transformer of timm takes images of any size; none for other networks."""
    import timm

    for option in ("dynamic_img_size", "strict_img_size"):
        wanted: dict[str, Any] = {option: option.startswith("dynamic")}
        try:
            with torch.device("meta"):
                timm.create_model(name, pretrained=False, **wanted)
        except TypeError:
            continue
        return wanted
    return {}


def _normalisation(name: str) -> tuple[_Colours, _Colours]:
    if name.startswith(_TIMM):
        config = _timm_config(name)
        return config.mean, config.std
    return next((value for start, value in _NORMALISATION.items() if name.startswith(start)), _IMAGENET)


def _timm_config(name: str) -> Any:
    import timm

    return timm.models.get_pretrained_cfg(name.removeprefix(_TIMM), allow_unregistered=False)


def _hub_file(repository: str, revision: str) -> PublishedWeights:
    return PublishedWeights(
        url=_HUB.format(repository=repository, revision=revision),
        filename=f"{repository.replace('/', '-')}-{revision[:8]}.safetensors",
        sha256="",
        covers="encoder",
    )


def _timm_weights(name: str) -> dict[str, PublishedWeights]:
    config = _timm_config(name)
    if not config.hf_hub_id or config.hf_hub_filename:
        return {}
    return {config.tag: _hub_file(config.hf_hub_id, "main")}


def _encoder_keys(key: str) -> list[str]:
    """Names that a checkpoint's key may have in the encoder."""
    # Checkpoints of DenseNet from before 2018 write norm.1 for norm1; timm joins stages.0 to stages_0.
    renamed = re.sub(r"\.(norm|conv)\.([12])\.", r".\1\2.", key)
    return [key, renamed, f"model.{key}", f"model.{key.replace('.', '_', 1)}"]


def _fit_channels(weight: Tensor, own: Tensor) -> Tensor:
    """A first convolution's weight [O, 3, h, w] for other images than RGB; the sum of its input stays."""
    channels = own.shape[1] if own.ndim == 4 else 0
    if weight.ndim != 4 or weight.shape[1] != 3 or channels == 3 or weight.shape[0] != own.shape[0]:
        return weight
    if channels == 1:
        return weight.sum(dim=1, keepdim=True)
    return weight[:, torch.arange(channels) % 3] * (3 / channels)


def _repeated_blocks(encoder: nn.Module) -> list[str]:
    """Paths of the modules with layers of their own that stand in a list, the outermost only."""
    found: list[str] = []

    def visit(path: str, module: nn.Module) -> None:
        in_list = isinstance(module, (nn.Sequential, nn.ModuleList))
        for name, child in module.named_children():
            below = f"{path}.{name}" if path else name
            is_list = type(child) in (nn.Sequential, nn.ModuleList)
            if in_list and not is_list and any(True for _ in child.children()):
                found.append(below)
            else:
                visit(below, child)

    visit("", encoder)
    return found


def _linear_kind(name: str) -> SiteKind:
    *path, last = name.split(".")
    above = path[-1] if path else ""
    if last in _QUERY_KEY_VALUE:
        return SiteKind.ATTENTION_QKV
    if last in _PROJECTION:
        return SiteKind.ATTENTION_PROJ
    return SiteKind.MLP if above in ("mlp", "ffn") else SiteKind.LINEAR


def _splits(site: Site) -> tuple[tuple[str, int, int], ...]:
    """Which outputs of a layer of an attention are queries, keys and values."""
    if site.kind is not SiteKind.ATTENTION_QKV:
        return ()
    assert isinstance(site.module, nn.Linear)
    names = _QUERY_KEY_VALUE[site.name.rpartition(".")[2]]
    width = site.module.out_features // len(names)
    return tuple((name, index * width, (index + 1) * width) for index, name in enumerate(names))
