"""How fast training samples are read from PNG, JPEG, TIFF and NIfTI files, with and without decoded images.

Usage: python benchmarks/loading.py [--rounds 5] [--steps 12]

Generated files: photographs of 1024 x 1024 pixels (smooth shapes and noise) with class maps, and NIfTI
volumes of 192 x 192 x 96 voxels. Batches of 4, crops of 512 x 512 (slices whole). Every way is timed once
in every round, one after the other, in a new order each time; medians over the rounds are kept, and the
ratio to PNG without workers within the same round, since other programs may run beside. Seconds of
processor time are those of the process and its workers together. Last, short runs tell what share of
training is spent waiting for batches. Results go to benchmarks/loading.json.
"""

from __future__ import annotations

import argparse
import random
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import segtune
from segtune.data.base import DataIndex
from segtune.data.loading import train_loader
from segtune.data.open import open_data
from segtune.data.settings import DataSettings
from segtune.engine.files import write_json
from segtune.engine.run import versions

RESULT = Path(__file__).with_suffix(".json")
SIDE, NUM_IMAGES = 1024, 16
CROP = (512, 512)
BATCH = 4
WORKERS = (0, 1, 2)
SAVED: dict[str, dict[str, Any]] = {
    "png": {},
    "jpg": {"quality": 90},
    "tif": {"compression": "tiff_lzw"},
}
"""Ending of the images -> how Pillow saves them."""
TRAINING = {
    "model.depth": 2,
    "model.width": 8,
    "train.batch_size": BATCH,
    "train.precision": "32",
    "train.accelerator": "cpu",
    "train.threads": 1,
    "train.steps": 4,
    "data.crop": (256, 256),
    "data.val_fraction": 0,
    "data.test_fraction": 0,
}


def write_pictures(folder: Path) -> None:
    """The same photographs in every format, each with a palette-free class map."""
    for number in range(NUM_IMAGES):
        generator = np.random.default_rng(number)
        coarse = Image.fromarray(generator.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float32)
        image = (smooth + generator.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8)
        mask = (smooth[..., 0] // 64).clip(0, 3).astype(np.uint8)
        for ending, options in SAVED.items():
            for kind, array, end, how in (("images", image, ending, options), ("masks", mask, "png", {})):
                path = folder / ending / kind / f"{number:02d}.{end}"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path, **how)


def write_volumes(folder: Path) -> None:
    """Two volumes with masks, compressed."""
    import nibabel

    (folder / "nifti").mkdir(parents=True)
    for number in range(2):
        generator = np.random.default_rng(number)
        voxels = generator.normal(300, 40, (192, 192, 96)).astype(np.int16)
        mask = np.zeros(voxels.shape, np.uint8)
        mask[60:120, 50:140, 20:70] = 1
        voxels[mask > 0] += 200
        for name, array in (("", voxels), ("_mask", mask)):
            nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), folder / "nifti" / f"p{number}{name}.nii.gz")


def measure(index: DataIndex, settings: DataSettings, steps: int, crop: tuple[int, int] | None) -> Any:
    """Images a second, and milliseconds of processor time for an image."""
    before = _processor()
    begin = time.perf_counter()
    loader = train_loader(index, settings, batch_size=BATCH, seed=0, start_step=0, num_steps=steps, crop=crop)
    images = sum(len(batch.names) for batch in loader)
    del loader  # the workers end, and their time is counted
    seconds = time.perf_counter() - begin
    return images / seconds, (_processor() - before) / images * 1000


def _processor() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def main() -> None:
    """Measures every format with every number of workers, then the waiting."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pictures(folder)
        write_volumes(folder)
        plain = {"val_fraction": 0, "test_fraction": 0, "crop": CROP}
        keep = {"decoded_cache": str(folder / "decoded"), "decoded_cache_gib": 4}
        volumes = {"cache": str(folder / "volumes")}
        ways: dict[tuple[str, bool, int], tuple[DataIndex, DataSettings]] = {}
        for data in (*SAVED, "nifti"):
            own = {**plain, **({"volume": volumes, "crop": None} if data == "nifti" else {})}
            index = open_data(folder / data, DataSettings(**own))
            for workers in WORKERS:
                ways[data, False, workers] = index, DataSettings(**own, workers=workers)
                if data != "nifti":
                    ways[data, True, workers] = index, DataSettings(**own, **keep, workers=workers)
        found: dict[tuple[str, bool, int], list[tuple[float, float, float]]] = {way: [] for way in ways}
        for turn in range(arguments.rounds + 1):
            order = list(ways)
            random.Random(turn).shuffle(order)
            this = {}
            for way in order:
                index, settings = ways[way]
                this[way] = measure(index, settings, arguments.steps, settings.crop)  # type: ignore[arg-type]
            if turn:  # the first one fills the caches
                reference = this["png", False, 0]
                for way, (rate, milliseconds) in this.items():
                    found[way].append((rate, milliseconds, rate / reference[0]))
            print("round", turn, {way: round(rate, 1) for way, (rate, _) in this.items()}, flush=True)
        rows = []
        for (data, decoded, workers), values in found.items():
            rates, times, ratios = zip(*values, strict=True)
            rows.append(
                {
                    "format": data,
                    "decoded_cache": decoded,
                    "workers": workers,
                    "images_per_second": statistics.median(rates),
                    "slowest": min(rates),
                    "fastest": max(rates),
                    "processor_ms": statistics.median(times),
                    "processor_ms_least": min(times),
                    "ratio": statistics.median(ratios),
                    "ratio_low": min(ratios),
                    "ratio_high": max(ratios),
                }
            )
        sizes = {
            data: sum(path.stat().st_size for path in (folder / data).rglob("*") if path.is_file())
            for data in (*SAVED, "nifti", "decoded")
        }
        waiting: list[dict[str, Any]] = []
        result = {
            "side": SIDE,
            "num_images": NUM_IMAGES,
            "crop": CROP,
            "batch_size": BATCH,
            "steps": arguments.steps,
            "rounds": arguments.rounds,
            "bytes": sizes,
            "versions": versions(),
            "rows": rows,
            "training": TRAINING,
            "waiting": waiting,
        }
        write_json(RESULT, result)
        for decoded in (False, True):
            for workers in WORKERS:
                own = {f"data.{key}": value for key, value in keep.items()} if decoded else {}
                run = segtune.fit(
                    folder / "png",
                    model="unet",
                    method="scratch",
                    out=folder / f"run-{decoded}-{workers}",
                    settings={**TRAINING, **own, "data.workers": workers},
                ).result
                waiting.append(
                    {
                        "decoded_cache": decoded,
                        "workers": workers,
                        "wait_share": run["wait_share"],
                        "images_per_second": run["images_per_second"],
                    }
                )
                print(waiting[-1], flush=True)
                write_json(RESULT, result)


if __name__ == "__main__":
    main()
