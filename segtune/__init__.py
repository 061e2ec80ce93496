"""segtune: tune segmentation models on your own data, and learn which tuning method is worth it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from segtune.api import adapt, compare, evaluate, fit, load_model, merge, predict

__all__ = ["__version__", "adapt", "compare", "evaluate", "fit", "load_model", "merge", "predict"]


def __getattr__(name: str) -> Any:
    """Imports a public function when it is first used: `import segtune` loads no torch."""
    if name in __all__:
        from segtune import api

        return getattr(api, name)
    raise AttributeError(f"module 'segtune' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
