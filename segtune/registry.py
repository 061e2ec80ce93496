"""Names to components, imported only when one is built.

A registry maps a name to "module:object". Listing names, suggesting the nearest one, reading a
component's documentation and checking its settings never import the component itself.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from segtune.errors import UnknownNameError
from segtune.settings import Settings, read_docstring, read_settings


def nearest(name: str, names: list[str]) -> str | None:
    """The name that was probably meant, or None."""
    close = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    return close[0] if close else None


class Registry:
    """Components of one kind by name.

    Args:
        kind: what the components are, in the singular: "model", "method", "loss", ...
        entries: name -> "module:object". A name that ends in ":" is a family whose members are
            written behind the colon, e.g. "smp:" for "smp:unet/resnet34".
    """

    def __init__(self, kind: str, entries: Mapping[str, str]) -> None:
        self.kind = kind
        self._entries = dict(entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and not name.endswith(":") and self._key(name) is not None

    def _key(self, name: str) -> str | None:
        if name in self._entries:
            return name
        family = name.partition(":")[0] + ":"
        return family if family in self._entries else None

    def _target(self, name: str) -> tuple[str, str]:
        key = self._key(name)
        if key is None:
            names = [n + "..." if n.endswith(":") else n for n in self._entries]
            meant = nearest(name, names)
            raise UnknownNameError(
                f"there is no {self.kind} called {name!r}",
                hint=(f"did you mean {meant!r}? " if meant else "") + f"Available: {', '.join(names)}",
            )
        module, _, attribute = self._entries[key].partition(":")
        return module, attribute

    def check(self, name: str) -> None:
        """Raises UnknownNameError, with the nearest name, where there is no such component."""
        self._target(name)
        if name.endswith(":"):
            raise UnknownNameError(
                f"{name!r} is a family of {self.kind}s", hint=f"write its member behind the colon: {name}..."
            )

    def load(self, name: str) -> Any:
        """Imports the component and returns the registered object."""
        self.check(name)
        module, attribute = self._target(name)
        return getattr(importlib.import_module(module), attribute)

    def module(self, name: str) -> str:
        """Dotted name of the component's file."""
        return self._target(name)[0]

    def documentation(self, name: str) -> str:
        """The docstring of the component's file, without importing it."""
        return read_docstring(self.module(name))

    def summary(self, name: str) -> str:
        """The first line of the component's documentation."""
        return self.documentation(name).partition("\n")[0].rstrip(".")

    def settings(self, name: str) -> type[Settings]:
        """The component's settings class, without importing the component.

        The class is called like the registered object plus "Settings"; a component without one
        takes no settings.
        """
        module, attribute = self._target(name)
        return read_settings(module).get(f"{attribute}Settings", Settings)
