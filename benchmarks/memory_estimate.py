"""The memory estimate of ten runs against the peak that each reaches.

Usage: python benchmarks/memory_estimate.py [--only TEXT] [--again] [--threads 1]

Each run is a `segtune.fit` of two steps in a process of its own, on a processor. The peak is the kernel's own
record (VmHWM), set back when training begins and read behind the last step; the estimate is the one that the
run announces. Results go to benchmarks/memory_estimate.json; runs that are in it are not repeated unless
--only names them. --again estimates anew and measures nothing: peaks stay as they are, and the program's
memory is taken from what the process had before its first step.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import segtune
from segtune.engine.files import write_json

STEPS = 2
RESULT = Path(__file__).with_suffix(".json")
SEGFORMER = {"model_type": "segformer", "architectures": ["SegformerForSemanticSegmentation"]}
"""Of transformers, in its default sizes: those of B0."""
CASES: dict[str, tuple[dict[str, Any], int, int, str]] = {
    # settings, side of the images in pixels, batch size, precision
    "unet, full": ({"model": "unet", "model.width": 32, "method": "full"}, 256, 4, "32"),
    "unet, lora": ({"model": "unet", "model.width": 32, "method": "lora"}, 256, 4, "bf16"),
    "unet, head": ({"model": "unet", "model.width": 32, "method": "head"}, 256, 4, "32"),
    "deeplabv3 resnet50, full": ({"model": "deeplabv3_resnet50", "method": "full"}, 256, 2, "32"),
    "lraspp, lora": ({"model": "lraspp_mobilenet_v3_large", "method": "lora"}, 384, 4, "32"),
    "segformer b0, lora": ({"model": "smp:segformer/mit_b0", "method": "lora"}, 256, 4, "32"),
    "sam vit-b, head": ({"model": "sam-vit-base", "method": "head"}, 512, 1, "32"),
    "sam vit-b, lora": ({"model": "sam-vit-base", "method": "lora"}, 512, 1, "32"),
    "sam vit-b, lora, last 2 blocks": (
        {"model": "sam-vit-base", "method": "lora", "method.last_blocks": 2},
        512,
        1,
        "bf16",
    ),
    "sam vit-b, full": ({"model": "sam-vit-base", "method": "full"}, 512, 1, "32"),
    # not looked at while the estimate was written
    "smp unet resnet34, lora": ({"model": "smp:unet/resnet34", "method": "lora"}, 256, 4, "32"),
    "smp unet resnet34, full": ({"model": "smp:unet/resnet34", "method": "full"}, 320, 2, "bf16"),
    "sam vit-b, conv-lora": ({"model": "sam-vit-base", "method": "conv-lora"}, 256, 1, "32"),
    "sam vit-b, vpt": ({"model": "sam-vit-base", "method": "vpt"}, 256, 2, "bf16"),
    "hf segformer b0, full": ({"model": "hf:{folder}/segformer", "method": "full"}, 384, 2, "32"),
}


class StepsDoneError(Exception):
    """All steps are done; what comes behind them is not in the estimate."""


def memory(key: str) -> int:
    """A value of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def images(folder: Path, side: int) -> Path:
    """Four images of noise to train on and one to validate, with masks of two classes."""
    generator = np.random.default_rng(0)
    for number in range(5):
        split = "val" if number == 4 else "train"
        for kind, shape, most in (("images", (side, side, 3), 256), ("masks", (side, side), 2)):
            path = folder / split / kind / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, most, shape, dtype=np.uint8)).save(path)
    (folder / "dataset.yaml").write_text("classes: [a, b]\nmasks: index\n", encoding="utf-8")
    return folder


def configure(name: str, folder: str, threads: int) -> Any:
    """The settings of a case, with its data and, where one is needed, its network below a folder."""
    from segtune.config.layers import nest
    from segtune.config.load import load_config

    settings, side, batch_size, precision = CASES[name]
    network = Path(folder) / "segformer" / "config.json"
    network.parent.mkdir()
    network.write_text(json.dumps(SEGFORMER), encoding="utf-8")
    values = {
        "model.weights": "none",
        **settings,
        "model": settings["model"].format(folder=folder),
        "data.path": str(images(Path(folder) / "data", side)),
        "data.crop": [side, side],
        "train.batch_size": batch_size,
        "train.precision": precision,
        "train.accelerator": "cpu",
        "train.threads": threads,
        "train.steps": STEPS,
    }
    return load_config([nest(values.items(), "benchmark")])


def measure(name: str, threads: int) -> dict[str, Any]:
    """One run: its estimate and its peak."""
    from segtune.engine import fit as fitting
    from segtune.engine.reporter import Reporter

    found: dict[str, int] = {}
    estimates = []
    prepare = fitting.prepare

    def prepared(*given: Any) -> Any:
        job = prepare(*given)
        estimates.append(job.estimate)
        return job

    class Peak(Reporter):
        def training(self, first_step: int, num_steps: int | None) -> None:
            found["before"] = memory("VmRSS")
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")

        def step(self, values: Mapping[str, Any]) -> None:
            found["peak"] = memory("VmHWM")
            if values["step"] == STEPS:
                raise StepsDoneError

    fitting.prepare = prepared
    with tempfile.TemporaryDirectory() as folder, suppress(StepsDoneError):
        fitting.fit(configure(name, folder, threads), Path(folder) / "run", reporter=Peak())
    return row(name, estimates[0], found["before"], found["peak"])


def estimate_again(name: str, threads: int, before: dict[str, Any]) -> dict[str, Any]:
    """What was measured, with an estimate of the present program."""
    from segtune.engine.cost import KERNELS
    from segtune.engine.inspect import inspect_config

    with tempfile.TemporaryDirectory() as folder:
        _, estimate = inspect_config(configure(name, folder, threads), num_classes=2, data=None)
    program = before["before_bytes"] - estimate.weights + KERNELS
    return row(name, replace(estimate, program=program), before["before_bytes"], before["peak_bytes"])


def row(name: str, estimate: Any, before: int, peak: int) -> dict[str, Any]:
    """What is written of a case."""
    _, side, batch_size, precision = CASES[name]
    return {
        "run": name,
        "side": side,
        "batch_size": batch_size,
        "precision": precision,
        "steps": STEPS,
        "estimate": {**estimate.to_dict(), "process": estimate.process},
        "before_bytes": before,
        "peak_bytes": peak,
        "error": estimate.process / peak - 1,
    }


def main() -> None:
    """Measures what is not in the results yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    rows = json.loads(RESULT.read_text(encoding="utf-8"))["rows"] if RESULT.is_file() else []
    known = {row["run"]: row for row in rows}
    for name in CASES:
        if (arguments.only or "") not in name:
            continue
        # the program's memory is known where it was written down
        if not (
            "before_bytes" in known.get(name, {}) if arguments.again else arguments.only or name not in known
        ):
            continue
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            if arguments.again:
                found = pool.apply(estimate_again, (name, arguments.threads, known[name]))
            else:
                found = pool.apply(measure, (name, arguments.threads))
        known[name] = found
        print(f"{name:<34} estimate {found['estimate']['process'] / 2**20:7.0f} MiB", end="  ")
        print(f"peak {found['peak_bytes'] / 2**20:7.0f} MiB  {found['error']:+.1%}", flush=True)
        rows = [known[case] for case in CASES if case in known]
        write_json(RESULT, {"threads": arguments.threads, "version": segtune.__version__, "rows": rows})


if __name__ == "__main__":
    main()
