"""What leaves frozen work out, alone and together: LoRA and `head` on SAM ViT-B at 512 x 512.

Usage: python benchmarks/frozen_levers.py [--threads 1] [--steps 3]

Every case has a process of its own: one image in a batch, random weights, forward, loss, backward and
step; the first step prepares kernels, and fills the cache. Seconds are those of the processor (user and
system), which other programs disturb less than the clock's; the smallest behind the first is kept.
Memory is the kernel's own record of the process (VmHWM) during those steps. Results go to
benchmarks/frozen_levers.json.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from segtune.engine.files import write_json

RESULT = Path(__file__).with_suffix(".json")
SIDE = 512


@dataclass(frozen=True)
class Case:
    """What one process measures."""

    name: str
    method: str = "lora"
    options: dict[str, Any] = field(default_factory=dict)
    precision: str = "32"
    checkpointing: bool = False
    cache: bool = False


LAST = {"last_blocks": 2}
CASES = (
    Case("lora on every block"),
    Case("bf16", precision="bf16"),
    Case("checkpointing", checkpointing=True),
    Case("last 2 blocks", options=LAST),
    Case("last 2 blocks, cache", options=LAST, cache=True),
    Case("last 2 blocks, cache, bf16", options=LAST, cache=True, precision="bf16"),
    Case("last 2 blocks, cache, bf16, checkpointing", "lora", LAST, "bf16", True, True),
    Case("head", "head"),
    Case("head, cache", "head", cache=True),
    Case("head, cache, bf16", "head", cache=True, precision="bf16"),
    Case("full", "full"),
)


def memory(key: str) -> int:
    """A value of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def measure(case: Case, threads: int, steps: int) -> dict[str, Any]:
    """Processor seconds of a step, and the process's peak."""
    import torch

    from segtune.engine.build import place
    from segtune.engine.prefix import autocast, find_prefix
    from segtune.engine.prefix_cache import PrefixCache
    from segtune.methods import METHODS
    from segtune.methods.apply import apply
    from segtune.models import MODELS
    from segtune.models.build import build_model

    torch.set_num_threads(threads)
    device = torch.device("cpu")
    settings = MODELS.settings("sam-vit-base")(checkpointing=case.checkpointing)
    model = build_model("sam-vit-base", 2, settings)
    parts = {case.method: METHODS.settings(case.method)(**case.options)}
    applied = apply(model, model.sites(), parts, removable=False, unused=model.unused)
    place(model, device).train()
    image = torch.rand(1, 3, SIDE, SIDE).to(memory_format=torch.channels_last)
    mask = torch.randint(2, (1, SIDE, SIDE))
    cache = None
    if case.cache:
        prefix = find_prefix(model, applied, (SIDE, SIDE), case.precision)
        cache = PrefixCache(
            model,
            prefix=prefix,
            precision=case.precision,
            half=False,
            identity={},
            weights="random",
            limit=2**33,
        )
    parameters = list(applied.parameters().values())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    seconds = []
    for step in range(steps + 1):
        if step == 1:
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        begin = time.process_time()
        with autocast(device, case.precision):
            logits = model(image, cut=None if cache is None else cache(image)).logits
            loss = torch.nn.functional.cross_entropy(logits.float(), mask)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.process_time() - begin)
    return {**asdict(case), "first_seconds": seconds[0], "seconds": min(seconds[1:]), "peak": memory("VmHWM")}


def main() -> None:
    """Measures every case."""
    from segtune.engine.run import versions

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3)
    arguments = parser.parse_args()
    processes = multiprocessing.get_context("spawn")
    settings = {"side": SIDE, "threads": arguments.threads, "steps": arguments.steps}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SEGTUNE_PREFIX_CACHE"] = folder
        for case in CASES:
            with ProcessPoolExecutor(1, mp_context=processes) as pool:
                rows.append(pool.submit(measure, case, arguments.threads, arguments.steps).result())
            write_json(RESULT, {**settings, "versions": versions(), "rows": rows})
            print({key: rows[-1][key] for key in ("name", "first_seconds", "seconds", "peak")}, flush=True)


if __name__ == "__main__":
    main()
