"""One cell of a comparison in a process of its own: an ordinary run, then the time of its inference.

A process of its own gives each cell its own peak of memory, and a cell that is killed takes no other
with it. Usage: python -m segtune.comparison.cell OUT NAME
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from segtune.config.layers import read_yaml
from segtune.config.load import load_config
from segtune.config.run import RunConfig
from segtune.engine.files import write_json, write_text
from segtune.engine.folder import RunFolder
from segtune.errors import SegtuneError

SPEED = "speed.json"
"""Written last into a cell's run folder: a cell that has it is done."""

LONGEST_REASON = 400
"""Characters of a failed cell's reason."""


@dataclass(frozen=True)
class CellFolder:
    """Where a cell lies: OUT/runs/NAME with its settings and its log beside it."""

    out: Path
    name: str

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.out / "runs" / self.name

    @property
    def config(self) -> Path:
        """The settings that the cell is started with."""
        return self.out / "cells" / f"{self.name}.yaml"

    @property
    def log(self) -> Path:
        """What the cell's process printed."""
        return self.out / "cells" / f"{self.name}.log"

    @property
    def lock(self) -> Path:
        """Held while a process works on the cell."""
        return self.out / "cells" / f"{self.name}.lock"

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do."""
        return (self.run / SPEED).is_file()


def settings_text(config: RunConfig) -> str:
    """A run's settings as its process reads them."""
    return yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True)


def run_cell(folder: CellFolder, settings: str, environment: Mapping[str, str]) -> str | None:
    """Runs a cell to its end, from wherever it stopped.

    Args:
        folder: of the cell.
        settings: of the run, as YAML.
        environment: variables beside those of this process.

    Returns:
        None where it is done, or the reason why it failed.
    """
    if folder.is_done:
        return None
    write_text(folder.config, settings)
    command = [sys.executable, "-m", "segtune.comparison.cell", str(folder.out), folder.name]
    with folder.log.open("w", encoding="utf-8") as log:
        done = subprocess.run(command, stdout=log, stderr=log, env={**os.environ, **environment}, check=False)
    if done.returncode == 0:
        return None
    return _reason(done.returncode, folder.log)


def _reason(code: int, log: Path) -> str:
    """The message of the error in a log, or what the exit code says."""
    if code < 0:
        return f"killed by signal {-code}" + (" (often: no memory left)" if code == -9 else "")
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [index for index, line in enumerate(lines) if line.startswith("error: ")]
    chosen = lines[errors[-1] :] if errors else lines[-1:]
    text = "; ".join(line.strip() for line in chosen).removeprefix("error: ")
    return text[:LONGEST_REASON] or f"exit code {code}"


def main(folder: CellFolder) -> None:
    """What the process does; another one that works on the same cell is waited for."""
    from segtune.comparison.speed import measure_speed
    from segtune.engine.fit import fit

    with folder.lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.is_done:
            return
        run = RunFolder(folder.run)
        if not run.result.is_file():
            resume = run.config.is_file()
            if run.path.exists() and not resume:
                shutil.rmtree(run.path)  # it was stopped before it had begun
            fit(load_config([read_yaml(folder.config)]), run.path, resume=resume)
        size = json.loads(run.data.read_text(encoding="utf-8"))["image_sizes"][0]
        write_json(run.path / SPEED, measure_speed(run.path, (size["height"], size["width"])))


if __name__ == "__main__":
    try:
        main(CellFolder(Path(sys.argv[1]), sys.argv[2]))
    except SegtuneError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
