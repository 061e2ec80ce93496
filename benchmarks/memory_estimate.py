"""The memory estimate of ten runs against the peak that each reaches.

Usage: python benchmarks/memory_estimate.py [--only TEXT] [--threads 1]

Each run is a `segtune.fit` of two steps in a process of its own, on a processor. The peak is the kernel's own
record (VmHWM), set back when training begins and read behind the last step; the estimate is the one that the
run announces, with the program itself as it was before the model was built. Results go to
benchmarks/memory_estimate.json; runs that are in it are not repeated unless --only names them.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import segtune
from segtune.engine.files import write_json

RESULT = Path(__file__).with_suffix(".json")
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
}


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


def measure(name: str, threads: int) -> dict[str, Any]:
    """One run: its estimate and its peak."""
    from segtune.config.layers import nest
    from segtune.config.load import load_config
    from segtune.engine.fit import fit
    from segtune.engine.reporter import Reporter

    settings, side, batch_size, precision = CASES[name]
    found: dict[str, int] = {}

    class Peak(Reporter):
        def training(self, first_step: int, num_steps: int | None) -> None:
            found["before"] = memory("VmRSS")
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")

        def step(self, values: Mapping[str, Any]) -> None:
            found["peak"] = memory("VmHWM")

    with tempfile.TemporaryDirectory() as folder:
        values = {
            "model.weights": "none",
            **settings,
            "data.path": str(images(Path(folder) / "data", side)),
            "data.crop": [side, side],
            "train.batch_size": batch_size,
            "train.precision": precision,
            "train.accelerator": "cpu",
            "train.threads": threads,
            "train.steps": 2,
        }
        from segtune.engine import job

        estimates = []
        original = job.estimate_memory
        job.estimate_memory = lambda **given: estimates.append(original(**given)) or estimates[-1]
        result = fit(load_config([nest(values.items(), "benchmark")]), Path(folder) / "run", reporter=Peak())
    estimate = estimates[0]
    return {
        "run": name,
        "side": side,
        "batch_size": batch_size,
        "precision": precision,
        "steps": result.result["steps"],
        "estimate": {**estimate.to_dict(), "process": estimate.process},
        "before_bytes": found["before"],
        "peak_bytes": found["peak"],
        "error": estimate.process / found["peak"] - 1,
    }


def main() -> None:
    """Measures what is not in the results yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    rows = json.loads(RESULT.read_text(encoding="utf-8"))["rows"] if RESULT.is_file() else []
    known = {row["run"]: row for row in rows}
    for name in CASES:
        if name in known if arguments.only is None else arguments.only not in name:
            continue
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            known[name] = pool.apply(measure, (name, arguments.threads))
        row = known[name]
        print(f"{name:<34} estimate {row['estimate']['process'] / 2**20:7.0f} MiB", end="  ")
        print(f"peak {row['peak_bytes'] / 2**20:7.0f} MiB  {row['error']:+.1%}", flush=True)
        rows = [known[case] for case in CASES if case in known]
        write_json(RESULT, {"threads": arguments.threads, "version": segtune.__version__, "rows": rows})


if __name__ == "__main__":
    main()
