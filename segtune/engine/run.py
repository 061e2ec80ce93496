"""A model back from the folder of its run, and what the run's numbers depended on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segtune.config.run import RunConfig
from segtune.engine.adapter import AdapterDescription, load_adapter
from segtune.engine.build import Tunable, choose_device, place
from segtune.engine.folder import DESCRIPTION, RunFolder, require_run


@dataclass(eq=False)
class LoadedRun:
    """A tuned model, ready for use."""

    tunable: Tunable
    description: AdapterDescription
    config: RunConfig | None
    """None where only an adapter folder was given."""


def load_run(path: Path | str, *, weights: str | None = None, accelerator: str = "auto") -> LoadedRun:
    """Loads the best model of a run.

    Args:
        path: a run's folder, or an adapter's folder.
        weights: where the base's weights lie now, if not where they were.
        accelerator: "auto", "cpu" or "cuda".

    Returns:
        The model in eval mode on the device.

    Raises:
        UsageError: not a run.
        AdapterError: the run has no adapter yet, or it belongs to another base.
    """
    path = Path(path)
    require_run(path)
    folder = RunFolder(path)
    is_adapter = (path / DESCRIPTION).is_file()
    config = None if is_adapter else folder.read_config()
    tunable, description = load_adapter(path if is_adapter else folder.adapter, weights=weights)
    place(tunable.model, choose_device(accelerator))
    return LoadedRun(tunable, description, config)


def git_commit(path: Path) -> str | None:
    """The commit that a repository's folder stands at, read from its files; None where it is none."""
    folder = path / ".git"
    if folder.is_file():  # a worktree: its own HEAD lies in the repository that it belongs to
        folder = path / folder.read_text(encoding="utf-8").removeprefix("gitdir: ").strip()
    if not (folder / "HEAD").is_file():
        return None
    text = (folder / "HEAD").read_text(encoding="utf-8").strip()
    if not text.startswith("ref: "):
        return text
    common = folder / "commondir"
    shared = folder / common.read_text(encoding="utf-8").strip() if common.is_file() else folder
    reference = shared / text.removeprefix("ref: ")
    return reference.read_text(encoding="utf-8").strip() if reference.is_file() else None


def versions() -> dict[str, Any]:
    """Versions of everything that numbers depend on."""
    import platform

    import numpy
    import torch
    import torchvision

    import segtune

    return {
        "segtune": segtune.__version__,
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "numpy": numpy.__version__,
        "python": platform.python_version(),
        "processor": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
    }
