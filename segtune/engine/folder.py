"""The folder of a run.

    config.yaml      resolved settings            adapter/          the best adapter
    metrics.jsonl    one line a step and epoch    checkpoints/      last.pt, the best step-N.safetensors
    metrics.csv      one line an epoch            result.json       scores, seconds, memory, versions
    tensorboard/     the same (train.trackers)    data.json         how the data was read, findings
    images_SPLIT.csv counts of each scored image  resources.csv     memory and load, second by second
    attention/       mean attention distances, once measured

Nothing here imports torch, so that a wrong path is answered at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from segtune.config.layers import Layer, read_yaml
from segtune.config.load import load_config
from segtune.config.run import RunConfig
from segtune.engine.files import write_text
from segtune.errors import UsageError

DESCRIPTION = "adapter.json"
"""The file that marks an adapter's folder."""


@dataclass(frozen=True)
class RunFolder:
    """Paths inside a run's folder."""

    path: Path

    @property
    def config(self) -> Path:
        """Resolved settings."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """One JSON object a line: steps and validations."""
        return self.path / "metrics.jsonl"

    @property
    def table(self) -> Path:
        """The validations as CSV."""
        return self.path / "metrics.csv"

    @property
    def resources(self) -> Path:
        """Memory and load while training, as CSV."""
        return self.path / "resources.csv"

    @property
    def trackers(self) -> Path:
        """What trackers call the run."""
        return self.path / "trackers.json"

    @property
    def adapter(self) -> Path:
        """The best adapter."""
        return self.path / "adapter"

    @property
    def last(self) -> Path:
        """The checkpoint that `--resume` continues from."""
        return self.path / "checkpoints" / "last.pt"

    @property
    def profile(self) -> Path:
        """Folder of a profile: times of the parts of a step, and a trace."""
        return self.path / "profile"

    def kept(self, step: int | str) -> Path:
        """Tensors of a step that is kept: of a best validation, or of the last one."""
        return self.path / "checkpoints" / f"step-{step}.safetensors"

    @property
    def result(self) -> Path:
        """The finished run's numbers."""
        return self.path / "result.json"

    def images(self, split: str) -> Path:
        """Counts of each image that was scored, as CSV."""
        return self.path / f"images_{split}.csv"

    @property
    def data(self) -> Path:
        """How the data was read and what was found in it."""
        return self.path / "data.json"

    @property
    def attention(self) -> Path:
        """What `segtune attention` has measured."""
        return self.path / "attention"

    def claim(self, *, resume: bool) -> None:
        """Makes sure that a run may write here.

        Raises:
            UsageError: the folder is in use, or there is nothing to resume.
        """
        if resume:
            if not self.config.is_file():
                raise UsageError(
                    f"there is nothing to resume in {self.path}", hint="leave --resume out to start a run"
                )
        elif self.path.exists() and not self.path.is_dir():
            raise UsageError(f"the run folder {self.path} is a file", hint="give a folder with --out")
        elif self.path.exists() and any(self.path.iterdir()):
            raise UsageError(
                f"the run folder {self.path} is not empty",
                hint="go on with --resume, or give another folder with --out",
            )

    def write_config(self, config: RunConfig) -> None:
        """Writes the resolved settings."""
        text = yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True)
        write_text(self.config, text)

    def read_config(self) -> RunConfig:
        """Reads the resolved settings back.

        Raises:
            UsageError: the folder is not that of a run.
        """
        if not self.config.is_file():
            raise UsageError(
                f"{self.path} is not the folder of a run (config.yaml is missing)",
                hint="name a folder that `segtune fit --out` wrote",
            )
        return load_config([read_yaml(self.config)])


def data_layer(path: Path) -> Layer | None:
    """How a run reads its data, as settings to start from; None of an adapter's folder, which does not say.

    Raises:
        UsageError: not a run.
    """
    require_run(path)
    if (path / DESCRIPTION).is_file():
        return None
    return Layer(f"{path.name}/config.yaml", {"data": RunFolder(path).read_config().to_dict()["data"]})


def require_run(path: Path) -> None:
    """Raises UsageError where a path is neither a run's folder nor an adapter's."""
    if not path.is_dir():
        raise UsageError(f"there is no run folder {path}", hint="`segtune fit --out FOLDER` writes one")
    if not (path / DESCRIPTION).is_file() and not RunFolder(path).config.is_file():
        raise UsageError(
            f"{path} is not the folder of a run (config.yaml is missing)",
            hint="name a folder that `segtune fit --out` wrote",
        )
