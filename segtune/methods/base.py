"""What a method is, and the model as a method sees it.

A method gets a `Host`: the model's sites, and the few things that may be done to them. It never sees
which network it works on. The host writes down everything it does, so that a failure half-way can
be undone and so that ownership is known by object, never by a parameter's name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase
from functools import partial
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from segtune.errors import NoSiteError, UsageError
from segtune.methods.attach import Operation, attach, detach, has_statistics, set_statistics_frozen
from segtune.settings import Settings
from segtune.types import Part, Site, SiteKind

LEAF_KINDS = frozenset(SiteKind) - {SiteKind.BLOCK, SiteKind.STAGE, SiteKind.TOKENS}
"""Kinds of sites that are single layers with parameters of their own."""


class MethodSettings(Settings):
    """Settings that every method has."""

    train_head: bool = Field(True, description="train the final classifier along with the method")
    train_norm: bool = Field(False, description="train scale and shift of every norm along")
    train_bias: bool = Field(False, description="train every existing bias along")
    statistics: Literal["auto", "frozen", "train"] = Field(
        "auto", description="running statistics of norms; auto: moved only where a whole part is trained"
    )


class PlacementSettings(MethodSettings):
    """Settings of a method that chooses among the model's sites."""

    include: tuple[str, ...] = Field(("*",), min_length=1, description="globs on site names to use")
    exclude: tuple[str, ...] = Field((), description="globs on site names to leave out")
    parts: tuple[Part, ...] = Field(
        (Part.ENCODER, Part.NECK, Part.DECODER), description="parts of the network to use"
    )
    first_blocks: int | None = Field(None, ge=1, description="only the first n blocks")
    last_blocks: int | None = Field(None, ge=1, description="only the last n blocks")
    attention: Literal["all", "global", "windowed"] = Field(
        "all", description="only blocks that attend to the whole image, or only within windows"
    )


class Role(StrEnum):
    """What a trained tensor is."""

    ADAPTER = "adapter"
    HEAD = "head"
    NORM = "norm"
    BIAS = "bias"
    BASE = "base"


@dataclass(eq=False)
class Owned:
    """A trained parameter or a moving buffer."""

    tensor: Tensor
    role: Role
    original: Tensor | None = None
    """The value before the method, on the CPU; None for tensors that the method made."""
    constant: bool = False
    """Saved with the rest, but nothing moves it."""


@dataclass(eq=False)
class Host:
    """A model as a method sees it.

    Args:
        model: the network.
        sites: what the network declares.
        unused: names of parameters that no output depends on; they are never trained.
        keep_originals: keep a copy of every base tensor that is going to change, for `remove`.
    """

    model: nn.Module
    sites: tuple[Site, ...]
    keep_originals: bool = True
    unused: frozenset[str] = frozenset()
    head_trained: bool = False
    used: set[Site] = field(default_factory=set)
    owned: dict[Tensor, Owned] = field(default_factory=dict)
    operations: list[tuple[Site, str, Operation]] = field(default_factory=list)
    _undo: list[Callable[[], None]] = field(default_factory=list)

    def freeze(self) -> None:
        """Freezes every parameter and every running statistic of the model."""
        flags = {parameter: parameter.requires_grad for parameter in self.model.parameters()}
        norms = [module for module in self.model.modules() if has_statistics(module)]
        self._undo.append(partial(self._unfreeze, flags, norms))
        for parameter in flags:
            parameter.requires_grad_(False)
        for norm in norms:
            set_statistics_frozen(norm, True)

    def _unfreeze(self, flags: dict[nn.Parameter, bool], norms: list[nn.Module]) -> None:
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
        for norm in norms:
            set_statistics_frozen(norm, False)
            norm.train(self.model.training)

    def select(
        self,
        kinds: Collection[SiteKind],
        placement: PlacementSettings,
        method: str,
        *,
        among: Iterable[Site] | None = None,
    ) -> list[Site]:
        """The sites of these kinds that the settings ask for.

        The classifier counts as a site of its layer's kind where it is not trained as a whole.

        Args:
            kinds: what the method attaches to.
            placement: the user's wishes.
            method: the method's name, for messages.
            among: the sites that the method can use; default: all.

        Raises:
            NoSiteError: there is none; the message lists what the model offers.
        """
        usable = self.sites if among is None else among
        offered = [site for site in usable if self.kind_of(site) in kinds]
        chosen = [
            site
            for site in offered
            if (site.part in placement.parts or site.kind is SiteKind.HEAD)
            and any(fnmatchcase(site.name, glob) for glob in placement.include)
            and not any(fnmatchcase(site.name, glob) for glob in placement.exclude)
            and self._in_blocks(site, placement)
            and placement.attention in ("all", _attention(site))
        ]
        if not chosen:
            self._refuse(kinds, offered, placement, method)
        return chosen

    def kind_of(self, site: Site) -> SiteKind:
        """A site's kind; that of its layer for a classifier that is not trained as a whole."""
        if site.kind is not SiteKind.HEAD or self.head_trained:
            return site.kind
        if isinstance(site.module, nn.Conv2d):
            return SiteKind.CONV
        return SiteKind.LINEAR if isinstance(site.module, nn.Linear) else SiteKind.HEAD

    def _in_blocks(self, site: Site, placement: PlacementSettings) -> bool:
        if placement.first_blocks is None and placement.last_blocks is None:
            return True
        if site.block is None:
            return False
        num_blocks = 1 + max(other.block for other in self.sites if other.block is not None)
        first, last = placement.first_blocks, placement.last_blocks
        return (first is not None and site.block < first) or (
            last is not None and site.block >= num_blocks - last
        )

    def _refuse(
        self, kinds: Collection[SiteKind], offered: list[Site], placement: PlacementSettings, method: str
    ) -> None:
        attention = sorted({_attention(site) or "" for site in offered} - {""})
        if offered and placement.attention not in ("all", *attention):
            found = " and ".join(f"{form} ones" for form in attention) or "none that says how it attends"
            raise NoSiteError(
                f"{method}: method.attention={placement.attention}, and there is no such block in this model",
                hint=f"it has {found}; method.attention=all takes every block",
            )
        if offered:
            examples = ", ".join(site.name for site in offered[:4])
            raise NoSiteError(
                f"{method}: {len(offered)} sites are of the right kind, but include, exclude, parts, blocks"
                " and attention together leave none",
                hint=f"names of such sites: {examples}",
            )
        kinds_offered = sorted({str(site.kind) for site in self.sites})
        raise NoSiteError(
            f"{method} attaches to {', '.join(sorted(kinds))}, and this model has no such site",
            hint=f"the model offers: {', '.join(kinds_offered)}",
        )

    def attach(self, site: Site, name: str, operation: Operation) -> None:
        """Puts an operation on a site; all of its parameters are trained.

        The site counts as used where the operation has tensors of its own.

        While a method is applied, new tensors are made on the model's device by default.

        Raises:
            UsageError: two operations would each decide what the layer computes with.
        """
        self._refuse_clash(site, name, operation)
        attach(site.module, name, operation)
        self._undo.append(partial(detach, site.module, name))
        self.operations.append((site, name, operation))
        for parameter_name, parameter in operation.named_parameters():
            constant = parameter_name in operation.constants
            parameter.requires_grad_(not constant)
            self.owned[parameter] = Owned(parameter, Role.ADAPTER, constant=constant)
            self.used.add(site)
        for buffer_name, buffer in operation.named_buffers():
            self.owned[buffer] = Owned(buffer, Role.ADAPTER, constant=buffer_name in operation.constants)
            self.used.add(site)

    def _refuse_clash(self, site: Site, name: str, operation: Operation) -> None:
        """What runs in place of a layer does not see the weight as others have changed it."""
        for there, other_name, other in self.operations:
            both = (operation, other)
            if there.module is site.module and any(
                one.replaces_call and (two.replaces_call or two.changes_weight)
                for one, two in (both, both[::-1])
            ):
                raise UsageError(
                    f"{other_name} and {name} cannot both be on {site.name}: one of them runs in the layer's"
                    " place, and would not see the weight of the other",
                    hint=f"leave one of them off such layers (method.exclude={site.name})",
                )

    def train(self, site: Site, role: Role, names: Iterable[str] | None = None) -> None:
        """Trains a site's own parameters: all of them, or those named."""
        own = site.module._parameters
        for name in own if names is None else names:
            parameter = own.get(name)
            if parameter is not None and parameter not in self.owned:
                parameter.requires_grad_(True)
                self._own(parameter, role)
                self.used.add(site)

    def train_everything(self) -> None:
        """Trains every parameter of the model, also those that lie outside of sites."""
        for site in leaf_sites(self.sites):
            self.train(site, Role.HEAD if site.kind is SiteKind.HEAD else Role.BASE)
        for name, parameter in self.model.named_parameters():
            if name not in self.unused:
                parameter.requires_grad_(True)
                self._own(parameter, Role.BASE)

    def train_statistics(self, *, everywhere: bool) -> None:
        """Lets running statistics move, and owns them.

        Args:
            everywhere: those of every norm; otherwise only those of norms that are trained as part of
                the base or the head.
        """
        for module in self.model.modules():
            if not has_statistics(module):
                continue
            roles = {self.owned[p].role for p in module.parameters(recurse=False) if p in self.owned}
            if everywhere or roles & {Role.BASE, Role.HEAD}:
                set_statistics_frozen(module, False)
                module.train(self.model.training)
                for buffer in module.buffers(recurse=False):
                    self._own(buffer, Role.NORM)

    def _own(self, tensor: Tensor, role: Role) -> None:
        if tensor not in self.owned:
            original = tensor.detach().to("cpu", copy=True) if self.keep_originals else None
            self.owned[tensor] = Owned(tensor, role, original)

    def rebind(self, owned: Mapping[str, Owned]) -> None:
        """Owns, under each of these state-dict keys, the tensor that the model now has there.

        What was done can no longer be taken back: that would keep every replaced tensor in memory.
        """
        self._undo.clear()
        now = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        self.owned = {}
        for name, entry in owned.items():
            entry.tensor = now[name]
            self.owned[entry.tensor] = entry

    def undo(self) -> None:
        """Takes back everything that was done, the last thing first."""
        while self._undo:
            self._undo.pop()()


class Method(ABC):
    """A tuning technique.

    A method's file documents itself under fixed headings: what it changes, where it attaches,
    parameters (the formula), when to use it, source.
    """

    moves_statistics: ClassVar[bool] = False
    """True where the method trains whole parts, so that their running statistics move as well."""
    random_base: ClassVar[bool] = False
    """True where the base starts from random weights whatever weights were asked for."""

    trains: ClassVar[bool] = True
    """False where the method trains nothing, so that a run of it takes no step."""
    takes_random: ClassVar[bool] = False
    """Of a method that trains nothing: True where it may score weights that are random."""

    starts_as_base: ClassVar[bool] = True
    """False where the output at the start is not the same as the base's; the file says why."""
    start_difference: ClassVar[float] = 1e-3
    """How far it may be from the base's then, as a fraction of the base's largest value; inf: any far."""

    learning_rate: ClassVar[float] = 1e-3
    """Peak learning rate of `optim.learning_rate=auto`, where `rate_for` does not say otherwise."""

    settings: MethodSettings

    def __init__(self, settings: MethodSettings) -> None:
        self.settings = settings

    @classmethod
    def named(cls, name: str, settings: MethodSettings) -> Method:
        """The method under the name that the user gave; a family finds its member in it."""
        return cls(settings)

    @classmethod
    def rate_for(cls, sites: Iterable[Site]) -> float:
        """Peak learning rate of `optim.learning_rate=auto` for the sites in use."""
        return cls.learning_rate

    @abstractmethod
    def apply(self, host: Host) -> None:
        """Attaches to the host's sites or trains their parameters."""

    @abstractmethod
    def num_parameters(self, site: Site) -> int:
        """The docstring's formula: how many parameters the method trains at one of its sites."""

    def total_parameters(self, sites: Sequence[Site]) -> int:
        """The same for all sites in use: the sum, unless what is at one depends on the others."""
        return sum(self.num_parameters(site) for site in sites)


def _attention(site: Site) -> str | None:
    """How a site's block attends; None where it does not, or where the model does not say."""
    if site.windowed is None:
        return None
    return "windowed" if site.windowed else "global"


def leaf_sites(sites: Iterable[Site]) -> list[Site]:
    """The sites that are single layers."""
    return [site for site in sites if site.kind in LEAF_KINDS]


def mlp_pairs(sites: Iterable[Site]) -> list[tuple[Site, Site]]:
    """First and last layer of every MLP among the sites.

    Layers of kind `mlp` belong together where they lie in the same block or, outside of blocks, in
    the same module; a layer that is alone is left out.
    """
    groups: dict[object, list[Site]] = {}
    for site in sites:
        if site.kind is SiteKind.MLP:
            key = site.name.rpartition(".")[0] if site.block is None else site.block
            groups.setdefault(key, []).append(site)
    return [(group[0], group[-1]) for group in groups.values() if len(group) > 1]


def num_own_parameters(site: Site) -> int:
    """Number of parameters of a site's layer, without what methods put on it."""
    return sum(p.numel() for p in site.module._parameters.values() if p is not None)
