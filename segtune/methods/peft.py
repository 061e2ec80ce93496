"""Any tuner of the library peft that changes single layers, as peft:NAME.

What it changes
    What the tuner of that name changes, with the library's own code: `peft:loha`, `peft:lokr`, `peft:oft`,
    `peft:boft`, `peft:vera`, `peft:ln_tuning` and others. Capital letters do not matter; an unknown name
    is answered with all of them. The layers stay where they are and keep their names: the tuner's layer
    is called in their place, and computes with their weights.

Where it attaches
    The layers that the placement settings choose, each by its full name. Unless `kinds` says otherwise: the
    query, key and value projections of a model that has attention, all linear and convolution layers of
    one that has none; norms for `peft:ln_tuning`. A layer on which the tuner cannot be right (one whose
    weight is read instead of called, a convolution whose form the tuner leaves out of account) is refused
    by name. So is a second method that changes the weight of the same layer.

Parameters
    Those of the tuner; `segtune inspect` counts them. Tensors that several layers share count once.

When to use it
    For a technique that segtune has no method of its own for, or to compare with the library. Where both
    have one (`lora`, `rslora`, `dora`, `pissa`, `ia3`), segtune's own fits more layers and is tested further.
    Merges where the tuner merges. Whether the output at the start is the base's depends on the tuner
    and its settings. Needs the extra `peft`.

Source
    Mangrulkar et al., PEFT, 2022, https://github.com/huggingface/peft; and the papers that it names for each
    tuner.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily

from segtune.errors import UsageError
from segtune.methods.attach import Operation, Order
from segtune.methods.base import Host, Method, MethodSettings, PlacementSettings, mlp_pairs
from segtune.methods.layers import has_plain_forward
from segtune.methods.peft_tuners import PEFT_FAILURES, configuration, find_tuner, words_of
from segtune.types import Access, Site, SiteKind

ADAPTER_NAME = "default"

LAYER_KINDS = frozenset(
    {
        SiteKind.ATTENTION_QKV,
        SiteKind.ATTENTION_PROJ,
        SiteKind.MLP,
        SiteKind.LINEAR,
        SiteKind.CONV,
        SiteKind.CONV_TRANSPOSE,
    }
)


class PeftSettings(PlacementSettings):
    """Settings of `peft:NAME`."""

    config: dict[str, Any] = Field(
        {}, description="the tuner's own settings by the library's names, e.g. {r: 8, alpha: 16}"
    )
    kinds: (
        tuple[
            Literal["attention_qkv", "attention_proj", "mlp", "linear", "conv", "conv_transpose", "norm"], ...
        ]
        | None
    ) = Field(
        None,
        min_length=1,
        description="kinds of sites to attach to; default: attention_qkv where the model has it, else all",
    )


class PeftOperation(Operation):
    """A tuner's layer, called in the place of the layer that it changes.

    Args:
        tuned: the tuner's layer; it gives up its own base layer.
        layer: the layer that stays where it is.
    """

    replaces_call = True

    def __init__(self, tuned: nn.Module, layer: nn.Module) -> None:
        super().__init__()
        for owner in (tuned, *tuned.children()):
            if "base_layer" in owner._modules:
                del owner._modules["base_layer"]
                # not a child: the layer holds this operation, and the parameters are its own
                owner.__dict__["base_layer"] = without_operations(layer)
        self.tuned = tuned
        self.takes_tokens = isinstance(layer, nn.Linear)
        """Some tuners take sequences [B, N, C] alone, and no tuner takes less."""
        self.constants = frozenset(
            [name for name, parameter in self.named_parameters() if not parameter.requires_grad]
            + [name for name, _ in self.named_buffers()]
        )

    def call(self, layer: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The tuner's output for the layer's input."""
        if isinstance(x, FakeTensor):  # memory is estimated
            return self._without_numbers(x)
        return self._run(x, *args, **kwargs)

    def _without_numbers(self, x: Tensor) -> Any:
        """The output in eval mode, as drawing by lot needs numbers; the base's where that needs them too."""
        self.tuned.eval()
        try:
            return self._run(x)
        except RuntimeError:
            return self.tuned.get_base_layer()(x)  # type: ignore[operator]

    def _run(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if x.ndim == 4 and self.takes_tokens:  # [B, h, w, C]
            return self.tuned(x.flatten(1, 2), *args, **kwargs).unflatten(1, x.shape[1:3])
        return self.tuned(x, *args, **kwargs)

    @property
    def order(self) -> Order:
        """Before sums, which are added to whatever the tuner's layer gives."""
        return Order.REPLACES_WEIGHT

    def fold(self, layer: nn.Module) -> None:
        """Lets the tuner merge, and takes over the outcome."""
        merge_tuned(self.tuned)
        merged = self.tuned.get_base_layer()  # type: ignore[operator]
        for name, tensor in merged._parameters.items():
            own = layer._parameters[name]
            if own is not None and own is not tensor:
                own.copy_(tensor)

    def merge_refusal(self) -> str | None:
        """Why the tuner does not merge into this layer, in the library's words."""
        trial = copy.deepcopy(self.tuned)
        if "base_layer" in trial.__dict__:
            trial.__dict__["base_layer"] = _real_copy(trial.__dict__["base_layer"])
        try:
            with torch.device("cpu"):
                merge_tuned(trial)
        except PEFT_FAILURES as error:
            return f"peft does not merge {type(self.tuned).__name__}: {error or type(error).__name__}"
        return None


class Peft(Method):
    """A tuner of the library peft.

    Args:
        settings: placement, and the tuner's own settings.
        name: peft:NAME.
    """

    settings: PeftSettings
    starts_as_base = False

    def __init__(self, settings: MethodSettings, name: str) -> None:
        super().__init__(settings)
        self.name = name.lower()
        self.member = self.name.partition(":")[2]
        self.tuner = find_tuner(self.member)

    @classmethod
    def named(cls, name: str, settings: MethodSettings) -> Peft:
        """The method that was registered under a family's name."""
        return cls(settings, name)

    def apply(self, host: Host) -> None:
        """Builds the tuner's layers beside the model, then attaches them."""
        sites = host.select(self._kinds(host), self.settings, self.name)
        feedforward = {last for _, last in mlp_pairs(host.sites)}
        for site, operation in self.build(sites, feedforward).items():
            host.attach(site, self.name.replace(":", "_"), operation)

    def build(self, sites: Iterable[Site], feedforward: Iterable[Site] = ()) -> dict[Site, PeftOperation]:
        """The tuner's layer for each site; the model is left as it is.

        Args:
            sites: chosen layers.
            feedforward: last layers of MLPs, which some tuners treat in another way.

        Raises:
            UsageError: a setting is wrong, or the tuner is not right on a layer.
        """
        chosen = {site.name: site for site in sites}
        for site in chosen.values():
            self._require_called(site)
        config = configuration(
            self.member, self.settings.config, list(chosen), [site.name for site in feedforward]
        )
        # The library looks for layers by the ends of their names, writes flags into the base and may write
        # weights: here it sees copies of the chosen layers and nothing else.
        device = next(
            (own.device for s in chosen.values() if _has_data(s.module) for own in s.module.parameters()),
            "cpu",
        )
        with unset_fake_temporarily(), torch.device(device), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shell = _shell({name: _real_copy(site.module) for name, site in chosen.items()})
            try:
                self.tuner(shell, config, ADAPTER_NAME)
            except PEFT_FAILURES as error:
                raise UsageError(
                    f"{self.name} cannot be put on the chosen layers: {words_of(error)}",
                    hint=f"check method.config and method.kinds; layers: {', '.join(list(chosen)[:4])}",
                ) from error
        agreed: set[str] = set()
        return {
            site: self._operation(site, shell.get_submodule(name), agreed) for name, site in chosen.items()
        }

    def _operation(self, site: Site, tuned: nn.Module, agreed: set[str]) -> PeftOperation:
        from peft.tuners.tuners_utils import BaseTunerLayer

        trained = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
        if not isinstance(tuned, BaseTunerLayer) or not any(p.numel() for p in trained):
            raise UsageError(
                f"{self.name} with method.config = {self.settings.config} trains nothing on {site.name}"
                f" ({type(without_operations(site.module)).__name__})",
                hint=f"change method.config, method.kinds, or method.exclude={site.name}",
            )
        if not _has_data(site.module):
            return PeftOperation(tuned, site.module)
        base = tuned.get_base_layer()
        for name, own in site.module._parameters.items():
            if own is not None and not torch.equal(base._parameters[name], own):
                raise UsageError(
                    f"{self.name} with these settings changes the base's own weights ({site.name}.{name}),"
                    " which an adapter must leave as they are",
                    hint="choose another way of starting in method.config, or segtune's own pissa",
                )
        self._require_right(site, tuned, agreed)
        return PeftOperation(tuned, site.module)

    def _require_called(self, site: Site) -> None:
        if site.access is Access.WEIGHT or (
            site.kind is not SiteKind.NORM and not has_plain_forward(site.module)
        ):
            raise UsageError(
                f"{self.name} runs in the place of a layer, and other code reads the weight of {site.name}",
                hint=f"method.exclude={site.name}, or lora, which changes the weight itself",
            )

    def _require_right(self, site: Site, tuned: nn.Module, agreed: set[str]) -> None:
        """Holds each form of convolution against its merged weight: not every tuner knows every form."""
        layer = site.module
        if not isinstance(layer, nn.Conv2d):
            return
        form = (
            f"kernel {layer.kernel_size}, stride {layer.stride}, padding {layer.padding}"
            f" ({layer.padding_mode}), dilation {layer.dilation}, {layer.groups} groups"
        )
        if form not in agreed and not _agrees_with_merged(tuned, layer):
            raise UsageError(
                f"{self.name} does not compute what it merges on {site.name}, a convolution with {form}",
                hint=f"method.exclude={site.name}, or lora, which takes every form of convolution",
            )
        agreed.add(form)

    def _kinds(self, host: Host) -> frozenset[SiteKind]:
        if self.settings.kinds is not None:
            return frozenset(SiteKind(kind) for kind in self.settings.kinds)
        if self.name == "peft:ln_tuning":
            return frozenset({SiteKind.NORM})
        has_attention = any(site.kind is SiteKind.ATTENTION_QKV for site in host.sites)
        return frozenset({SiteKind.ATTENTION_QKV}) if has_attention else LAYER_KINDS

    def num_parameters(self, site: Site) -> int:
        """What the tuner trains on this layer alone."""
        (operation,) = self.build([site]).values()
        return sum(parameter.numel() for parameter in operation.parameters() if parameter.requires_grad)


def without_operations(layer: nn.Module) -> nn.Module:
    """A layer as it was before any method: another object with the same parameters and buffers."""
    cls: type[nn.Module] = getattr(type(layer), "adapted_class", type(layer))
    bare = cls.__new__(cls)
    nn.Module.__init__(bare)
    kept = {key: value for key, value in layer.__dict__.items() if "_hooks" not in key and key != "_modules"}
    bare.__dict__.update(kept)
    return bare


def _real_copy(layer: nn.Module) -> nn.Module:
    """A copy that can be computed with; of a layer without data one with random numbers."""
    bare = without_operations(layer)
    if _has_data(layer):
        return copy.deepcopy(bare)
    bare._parameters = {
        name: None if own is None else nn.Parameter(torch.rand(own.shape, dtype=own.dtype, device="cpu"))
        for name, own in layer._parameters.items()
    }
    return bare


def _has_data(layer: nn.Module) -> bool:
    own = [parameter for parameter in layer._parameters.values() if parameter is not None]
    return not any(parameter.is_meta or isinstance(parameter, FakeTensor) for parameter in own)


def merge_tuned(tuned: nn.Module) -> None:
    """Lets a tuner's layer write itself into its base layer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned.merge()  # type: ignore[operator]


def copy_tuned(source: nn.Module, target: nn.Module) -> None:
    """Copies what a tuner has added to a layer into the same tuner's layer elsewhere."""
    found = dict([*target.named_parameters(), *target.named_buffers()])
    for name, tensor in [*source.named_parameters(), *source.named_buffers()]:
        if not name.startswith("base_layer."):
            found[name].copy_(tensor)


def _shell(layers: Mapping[str, nn.Module]) -> nn.Module:
    """A network of nothing but these layers, under their full names."""
    shell = nn.Module()
    for name, layer in layers.items():
        *path, last = name.split(".")
        parent = shell
        for step in path:
            if step not in parent._modules:
                parent.add_module(step, nn.Module())
            parent = parent.get_submodule(step)
        parent.add_module(last, layer)
    return shell


@torch.no_grad()
def _agrees_with_merged(tuned: nn.Module, layer: nn.Conv2d) -> bool:
    trial = copy.deepcopy(tuned).double().eval()
    for name, parameter in trial.named_parameters():
        if not name.startswith("base_layer."):
            parameter.add_(0.1 * torch.randn_like(parameter))
    reach = [rate * (side - 1) + 4 for rate, side in zip(layer.dilation, layer.kernel_size, strict=True)]
    x = torch.randn(1, layer.in_channels, *reach, dtype=torch.float64, device=layer.weight.device)
    try:
        unmerged = trial(x)
        merge_tuned(trial)
        # the merged weight in the layer itself, which knows its own form
        merged = trial.get_base_layer()(x)  # type: ignore[operator]
    except PEFT_FAILURES:
        return False
    return unmerged.shape == merged.shape and torch.allclose(unmerged, merged, rtol=1e-4, atol=1e-4)
