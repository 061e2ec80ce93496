"""SAM ViT-B on images of 1024 x 1024 pixels, with what is frozen run in every epoch and run once.

Usage: python benchmarks/prefix_cache.py SHARED_DATA [--threads 2] [--images 1] [--epochs 2]

Frames of CamVid at 1024 x 1024, one image in a batch, no augmentation: `head`, and LoRA on the last
2 of 12 blocks. The base has random weights. Each way takes its turn with the steps of one epoch, after
a first epoch that fills the cache, which is timed too. Every case has a process of its own, and seconds are
those of the processor, which other programs disturb less than the clock. Gradients of
the first image are compared with those of a forward through the whole network. Results go to
benchmarks/prefix_cache.json.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segtune.data.settings import DataSettings
from segtune.data.transforms import TrainTransform
from segtune.engine.build import place
from segtune.engine.files import write_json
from segtune.engine.prefix import autocast, find_prefix
from segtune.engine.prefix_cache import PrefixCache
from segtune.engine.run import versions
from segtune.methods import METHODS
from segtune.methods.apply import Applied, apply
from segtune.models import MODELS
from segtune.models.base import SegModel
from segtune.models.build import build_model

RESULT = Path(__file__).with_suffix(".json")
SIDE = 1024
CASES: dict[str, dict[str, Any]] = {
    "head": {"head": {}},
    "lora, last 2 blocks": {"lora": {"last_blocks": 2}},
}
WAYS = {
    "off": {},
    "prefix": {"half": False},
    "prefix, kept as bf16": {"half": True},
}


def images_of(data: Path, count: int) -> list[tuple[Tensor, Tensor]]:
    """Images [1, 3, H, W] with masks [1, H, W] of two classes: car, or not."""
    import numpy as np
    from PIL import Image

    settings = DataSettings(resize=(SIDE, SIDE), horizontal_flip=0.0)
    transform = TrainTransform(settings, crop=None, channels=3, ignore_index=255)
    found = []
    for image in sorted((data / "camvid" / "train" / "images").iterdir())[:: 367 // count][:count]:
        mask = image.parent.parent / "masks" / f"{image.stem}.png"
        classes = (np.asarray(Image.open(mask)) == 8).astype(np.uint8)
        pixels, labels = transform(np.asarray(Image.open(image).convert("RGB")), classes)
        found.append((pixels[None], labels[None].long()))
    return found


def tuned(parts: dict[str, dict[str, Any]]) -> tuple[SegModel, Applied]:
    """SAM ViT-B with a method, in training mode."""
    model = build_model("sam-vit-base", 2, MODELS.settings("sam-vit-base")())
    settings = {name: METHODS.settings(name)(**values) for name, values in parts.items()}
    applied = apply(model, model.sites(), settings, removable=False, unused=model.unused)
    place(model, torch.device("cpu")).train()
    return model, applied


def gradients(
    model: SegModel, applied: Applied, image: Tensor, mask: Tensor, cache: PrefixCache | None, precision: str
) -> list[Tensor]:
    """Of every trained parameter, for one image."""
    with autocast(torch.device("cpu"), precision):
        cut = None if cache is None else cache(image)
        logits = model(image.to(memory_format=torch.channels_last), cut=cut).logits
        loss = torch.nn.functional.cross_entropy(logits.float(), mask)
    return list(torch.autograd.grad(loss, list(applied.parameters().values())))


def difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """Norm of the difference of all gradients, as a share of the norm of those expected."""
    change = sum(float((one - other).square().sum()) for one, other in zip(found, expected, strict=True))
    return float((change / sum(float(other.square().sum()) for other in expected)) ** 0.5)


def measure(
    name: str, precision: str, folder: Path, num_images: int, epochs: int, threads: int
) -> dict[str, Any]:
    """Seconds per image of each way, first epoch and later, and what the cache takes."""
    torch.set_num_threads(threads)
    data = images_of(folder, num_images)
    model, applied = tuned(CASES[name])
    prefix = find_prefix(model, applied, (SIDE, SIDE), precision)
    caches = {
        way: PrefixCache(
            model, prefix=prefix, precision=precision, identity={}, weights=name, limit=2**33, **options
        )
        if options
        else None
        for way, options in WAYS.items()
    }
    reference = gradients(model, applied, *data[0], None, precision)
    rows: dict[str, Any] = {}
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for way, cache in caches.items():
        begin = time.process_time()
        found = gradients(model, applied, *data[0], cache, precision)
        rows[way] = {
            "first_seconds": time.process_time() - begin,
            "gradient_difference": difference(found, reference),
            "equal_bits": all(map(torch.equal, found, reference)),
        }
        if cache is not None:
            for image, _ in data[1:]:
                cache(image)
    for _ in range(epochs):
        for way, cache in caches.items():
            for image, mask in data:
                begin = time.process_time()
                gradients(model, applied, image, mask, cache, precision)
                times[way].append(time.process_time() - begin)
    for way, cache in caches.items():
        rows[way]["seconds"] = statistics.median(times[way])
        rows[way]["times_faster"] = statistics.median(times["off"]) / statistics.median(times[way])
        if cache is not None:
            size = sum(file.stat().st_size for file in cache.folder.glob("*.safetensors"))
            rows[way]["entry_bytes"] = size // len(data)
    result = {"method": name, "precision": precision, "last_kept": prefix.last, "ways": rows}
    print(result, flush=True)
    return result


def main() -> None:
    """Measures both methods in both precisions."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=2)
    arguments = parser.parse_args()
    settings = {
        "side": SIDE,
        "images": arguments.images,
        "epochs": arguments.epochs,
        "threads": arguments.threads,
    }
    processes = multiprocessing.get_context("spawn")
    given = (arguments.data, arguments.images, arguments.epochs, arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SEGTUNE_PREFIX_CACHE"] = folder
        rows: list[dict[str, Any]] = []
        for precision, name in itertools.product(("32", "bf16"), CASES):
            with ProcessPoolExecutor(1, mp_context=processes) as pool:
                rows.append(pool.submit(measure, name, precision, *given).result())
            write_json(RESULT, {**settings, "versions": versions(), "rows": rows})


if __name__ == "__main__":
    main()
