"""Peak memory of a run by two processes: the whole model in each, or divided between them.

Usage: python benchmarks/sharding.py [--size 256]

SAM ViT-B with random weights, LoRA and full tuning, two steps on generated images, one for each process, on a
processor. Counted is the first process with the one that it starts, so both. Results go to
benchmarks/sharding.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

RESULT = Path(__file__).with_suffix(".json")
SETTINGS = {
    "model.weights": "none",
    "train.devices": 2,
    "train.steps": 2,
    "train.batch_size": 2,
    "train.precision": "32",
    "train.accelerator": "cpu",
    "train.threads": 1,
    "optim.name": "adamw",
}


def write_data(folder: Path, size: int) -> Path:
    random = np.random.default_rng(0)
    for split, number in (("train", 4), ("val", 1)):
        for name in ("images", "masks"):
            (folder / split / name).mkdir(parents=True)
        for i in range(number):
            image = random.integers(0, 255, (size, size, 3), dtype=np.uint8)
            Image.fromarray(image).save(folder / split / "images" / f"{i}.png")
            mask = (image[..., 0] > 127).astype(np.uint8)
            Image.fromarray(mask).save(folder / split / "masks" / f"{i}.png")
    return folder


def measure(data: Path, out: Path, method: str, strategy: str, size: int) -> dict[str, Any]:
    settings = {
        **SETTINGS,
        "train.strategy": strategy,
        "model.image_size": size,
        "data.crop": f"{size},{size}",
    }
    words = [f"--set={key}={value}" for key, value in settings.items()]
    command = [sys.executable, "-m", "segtune", "fit", str(data), "--model=sam-vit-base"]
    words += [f"--method={method}", f"--out={out}"]
    subprocess.run([*command, *words], check=True, capture_output=True)
    result = json.loads((out / "result.json").read_text())
    losses = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {
        "method": method,
        "strategy": strategy,
        "peak_bytes": result["peak_process_bytes"],
        "seconds": result["train_seconds"],
        "losses": [line["loss"] for line in losses if line["kind"] == "train"],
        "versions": result["versions"],
        "commit": result["commit"],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=256)
    size = parser.parse_args().size
    with tempfile.TemporaryDirectory() as folder:
        data = write_data(Path(folder) / "data", size)
        rows = [
            measure(data, Path(folder) / f"{method}-{strategy}", method, strategy, size)
            for method in ("lora", "full")
            for strategy in ("ddp", "fsdp")
        ]
    found = {"size": size, "settings": SETTINGS, "rows": rows}
    RESULT.write_text(json.dumps(found, indent=2) + "\n")
    for row in rows:
        print(row["method"], row["strategy"], f"{row['peak_bytes'] / 2**30:.2f} GiB", row["losses"])


if __name__ == "__main__":
    main()
