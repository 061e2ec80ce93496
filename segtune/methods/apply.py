"""Applying one method, or several joined by `+`, to a model: all or nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from segtune.errors import AdapterError, MergeError
from segtune.methods import METHODS
from segtune.methods.attach import Operation, num_numbers
from segtune.methods.base import Host, Method, MethodSettings, Owned, Role
from segtune.types import Site


@dataclass(eq=False)
class Applied:
    """A method on a model: what it owns, and how to save, merge or remove it.

    The model itself is changed in place; this object knows what belongs to the method.
    """

    method: str
    """The name as given, parts joined by "+"."""
    settings: dict[str, MethodSettings]
    """Settings of each part."""
    host: Host

    @property
    def model(self) -> nn.Module:
        """The adapted model."""
        return self.host.model

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites in use, in the model's order."""
        return tuple(site for site in self.host.sites if site in self.host.used)

    @property
    def operations(self) -> tuple[Operation, ...]:
        """Everything attached to a layer."""
        return tuple(operation for _, _, operation in self.host.operations)

    def owned(self) -> dict[str, Owned]:
        """Trained parameters and saved buffers by state-dict key, in the model's order."""
        named = [*self.model.named_parameters(), *self.model.named_buffers()]
        return {name: self.host.owned[t] for name, t in named if t in self.host.owned}

    def parameters(self) -> dict[str, nn.Parameter]:
        """Trained parameters by state-dict key."""
        return {n: o.tensor for n, o in self.owned().items() if _is_trained(o)}  # type: ignore[misc]

    def buffers(self) -> dict[str, Tensor]:
        """Other tensors that are saved with the parameters, by state-dict key."""
        return {n: o.tensor for n, o in self.owned().items() if not _is_trained(o)}

    def keys(self) -> set[str]:
        """Every state-dict key of what is owned; a tensor that several layers share has several."""
        named = [
            *self.model.named_parameters(remove_duplicate=False),
            *self.model.named_buffers(remove_duplicate=False),
        ]
        return {name for name, tensor in named if tensor in self.host.owned}

    def rate_factors(self) -> dict[str, float]:
        """Learning rate of every trained parameter by state-dict key, as a multiple of the run's."""
        special = {
            operation.get_parameter(name): factor
            for operation in self.operations
            for name, factor in operation.rate_factors().items()
        }
        return {name: special.get(parameter, 1.0) for name, parameter in self.parameters().items()}

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that must be saved to get this model back from its base."""
        return {name: owned.tensor.detach() for name, owned in self.owned().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copies saved tensors into the model.

        Raises:
            AdapterError: a tensor is missing, unknown or of another shape; nothing is copied then.
        """
        own = self.state_dict()
        missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        wrong = [name for name in own.keys() & state.keys() if own[name].shape != state[name].shape]
        if missing or unknown or wrong:
            parts = [
                f"{len(names)} {what} ({', '.join(names[:3])})"
                for what, names in (("missing", missing), ("unknown", unknown), ("of another shape", wrong))
                if names
            ]
            raise AdapterError(
                f"the saved tensors do not fit method {self.method!r} on this model: {'; '.join(parts)}",
                hint="load it with the model, method and settings it was saved with",
            )
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(state[name])

    def counts(self) -> dict[str, int]:
        """Number of parameters: "total" of the base, "trainable", and the trained ones by role."""
        roles = Counter[str]()
        for owned in self.owned().values():
            if _is_trained(owned):
                roles[owned.role] += owned.tensor.numel()
        added = {t for t, owned in self.host.owned.items() if owned.role is Role.ADAPTER}
        total = sum(num_numbers(parameter) for parameter in self.model.parameters() if parameter not in added)
        return {"total": total, "trainable": roles.total(), **{role.value: roles[role] for role in Role}}

    def num_bytes(self) -> int:
        """Bytes of the tensors that are saved."""
        return sum(t.numel() * t.element_size() for t in self.state_dict().values())

    def merge_refusals(self) -> list[str]:
        """Why the method cannot be merged, one line for each kind of operation; empty where it can."""
        found: dict[tuple[str, str], list[str]] = {}
        for site, name, operation in self.host.operations:
            reason = operation.merge_refusal()
            if reason is not None:
                found.setdefault((name, reason), []).append(site.name)
        return [
            f"{name} on {where[0]}{f' and {len(where) - 1} more' if len(where) > 1 else ''}: {reason}"
            for (name, reason), where in sorted(found.items())
        ]

    @torch.no_grad()
    def merge(self) -> None:
        """Folds every operation into its layer; the model is then an ordinary one, owned by nobody.

        Raises:
            MergeError: an operation cannot be folded; the model is left as it was.
        """
        refusals = self.merge_refusals()
        if refusals:
            raise MergeError(
                f"{self.method} cannot be merged: {refusals[0]}",
                hint="use the run as it is: predict and evaluate work on the unmerged adapter",
            )
        for site, _, operation in sorted(self.host.operations, key=lambda entry: entry[2].order):
            operation.fold(site.module)
        self._release()

    def _release(self) -> None:
        self.host.undo()
        self.host.operations.clear()
        self.host.owned.clear()

    @torch.no_grad()
    def remove(self) -> None:
        """Gives the base back: operations off, changed base tensors as they were, flags as before.

        Raises:
            AdapterError: the method was applied without keeping the originals.
        """
        changed = [owned for owned in self.host.owned.values() if owned.role is not Role.ADAPTER]
        if any(owned.original is None for owned in changed):
            raise AdapterError(
                "the base's own tensors were not kept, so they cannot be given back",
                hint="apply the method with removable=True, or load the base anew",
            )
        for owned in changed:
            assert owned.original is not None
            owned.tensor.copy_(owned.original)
        self._release()


def _is_trained(owned: Owned) -> bool:
    return isinstance(owned.tensor, nn.Parameter) and not owned.constant


def apply(
    model: nn.Module,
    sites: Sequence[Site],
    parts: Mapping[str, MethodSettings],
    *,
    seed: int = 0,
    removable: bool = True,
    unused: Collection[str] = (),
) -> Applied:
    """Freezes a model and applies a method to it, in place.

    Args:
        model: the network, with its weights loaded.
        sites: the sites that it declares.
        parts: settings of each method by name, applied in this order; several are a combination.
        seed: of the random start of new tensors; the global generator is left alone.
        unused: names of parameters that no output depends on; they are never trained.
        removable: keep a copy of base tensors that will change, so that `Applied.remove` works.

    Returns:
        What the method owns on the model.

    Raises:
        UnknownNameError: no such method.
        NoSiteError: a method finds nothing to attach to. The model is left as it was.
    """
    methods: dict[str, Method] = {
        name: METHODS.load(name).named(name, settings) for name, settings in parts.items()
    }
    host = Host(model, tuple(sites), keep_originals=removable, unused=frozenset(unused))
    host.head_trained = all(settings.train_head for settings in parts.values())
    try:
        with torch.random.fork_rng(devices=[]), next(model.parameters()).device:
            torch.default_generator.manual_seed(seed)
            host.freeze()
            if host.head_trained:
                for site in host.sites:
                    if site.kind.value == "head":
                        host.train(site, Role.HEAD)
            for method in methods.values():
                method.apply(host)
        _train_along(host, parts, methods)
    except BaseException:
        host.undo()
        raise
    return Applied("+".join(parts), dict(parts), host)


def _train_along(host: Host, parts: Mapping[str, MethodSettings], methods: Mapping[str, Method]) -> None:
    """Norms, biases and running statistics that the settings ask for beside the method itself."""
    if any(settings.train_norm for settings in parts.values()):
        for site in host.sites:
            if site.kind.value == "norm":
                host.train(site, Role.NORM)
    if any(settings.train_bias for settings in parts.values()):
        for site in host.sites:
            host.train(site, Role.BIAS, ["bias"])
    wishes = {settings.statistics for settings in parts.values()}
    if "train" in wishes:
        host.train_statistics(everywhere=True)
    elif "auto" in wishes and any(method.moves_statistics for method in methods.values()):
        host.train_statistics(everywhere=False)
