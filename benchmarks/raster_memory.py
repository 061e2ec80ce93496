"""Peak memory of `segtune predict` for generated GeoTIFF files of growing size.

Usage: python benchmarks/raster_memory.py [--sides 4096 8192 16384] [--threads 1]

A tiny U-Net, trained for one step; windows of 1024 x 1024 pixels with the usual overlap. Each
raster is predicted in a process of its own. Results go to benchmarks/raster_memory.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

RESULT = Path(__file__).with_suffix(".json")
SETTINGS = {
    "model.depth": 1,
    "model.width": 4,
    "train.steps": 1,
    "train.batch_size": 2,
    "train.precision": "32",
    "train.accelerator": "cpu",
    "data.window": (1024, 1024),
}


def write_raster(path: Path, side: int) -> None:
    """A raster [side, side, 3] of noise over coarse spots, written in blocks."""
    import rasterio
    from rasterio.windows import Window

    random = np.random.default_rng(side)
    profile = {"tiled": True, "compress": "deflate", "zlevel": 1, "crs": "EPSG:32632"}
    transform = rasterio.Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=side,
        height=side,
        count=3,
        dtype="uint8",
        transform=transform,
        **profile,
    ) as file:
        for top in range(0, side, 1024):
            for left in range(0, side, 1024):
                coarse = random.integers(0, 240, (3, 16, 16), dtype=np.uint8).repeat(64, 1).repeat(64, 2)
                noise = random.integers(0, 4, coarse.shape, dtype=np.uint8)
                file.write(coarse + noise, window=Window(left, top, 1024, 1024))


def make_run(folder: Path, threads: int) -> Path:
    """A run of one step on generated images."""
    import segtune

    random = np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / "data" / name).mkdir(parents=True)
    for i in range(8):
        image = random.integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(image).save(folder / "data" / "images" / f"{i}.png")
        Image.fromarray((image[..., 0] > 127).astype(np.uint8)).save(folder / "data" / "masks" / f"{i}.png")
    segtune.fit(
        folder / "data",
        model="unet",
        method="scratch",
        out=folder / "run",
        settings={**SETTINGS, "train.threads": threads},
    )
    return folder / "run"


def predict(run: Path, raster: Path, threads: int) -> None:
    """Predicts one raster and prints what it took."""
    import rasterio  # noqa: F401  (counts for the memory before)
    import torch

    import segtune

    torch.set_num_threads(threads)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    begin = time.perf_counter()
    (made,) = segtune.predict(run, raster, out=raster.parent / "out", overlays=False)
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    row = {"peak_bytes": peak, "before_bytes": before, "seconds": seconds}
    print(json.dumps({**row, "mask_bytes": made.mask.stat().st_size}))


def main() -> None:
    """Measures every size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sides", type=int, nargs="+", default=[4096, 8192, 16384])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--predict", type=Path, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.predict is not None:
        predict(*arguments.predict, arguments.threads)
        return

    from segtune.engine.files import write_json
    from segtune.engine.raster import MEMORY
    from segtune.engine.run import versions

    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = make_run(folder, arguments.threads)
        for side in arguments.sides:
            raster = folder / f"{side}.tif"
            write_raster(raster, side)
            command = [sys.executable, __file__, "--threads", str(arguments.threads)]
            done = subprocess.run(
                [*command, "--predict", run, raster], check=True, capture_output=True, text=True
            )
            row = {"side": side, "pixels_bytes": side * side * 3, **json.loads(done.stdout.splitlines()[-1])}
            rows.append(row)
            print(row, flush=True)
            raster.unlink()
            write_json(
                RESULT,
                {
                    "settings": {key: str(value) for key, value in SETTINGS.items()},
                    "threads": arguments.threads,
                    "memory_for_a_row_of_windows": MEMORY,
                    "versions": versions(),
                    "rows": rows,
                },
            )


if __name__ == "__main__":
    main()
