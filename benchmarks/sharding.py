"""Memory of each of two processes that train together: the whole model in each, or divided between them.

Usage: MALLOC_MMAP_THRESHOLD_=65536 python benchmarks/sharding.py [--size 256]

SAM ViT-B with random weights, LoRA and full tuning, two steps of one image for each process, on a processor.
The variable makes the C library give freed tensors back to the system, as a GPU's allocator reuses them;
without it, what was gathered for a moment stays counted. Results go to benchmarks/sharding.json.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import socket
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from segtune.engine.build import build_tunable
from segtune.engine.run import versions
from segtune.engine.shards import Shards
from segtune.methods import METHODS
from segtune.models import MODELS

RESULT = Path(__file__).with_suffix(".json")
MODEL = "sam-vit-base"


class Peak:
    """Largest resident memory of this process in bytes while its block runs."""

    def __enter__(self) -> Peak:
        self.process = psutil.Process()
        self.bytes = self.process.memory_info().rss
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def _run(self) -> None:
        while not self._stop.wait(0.005):
            self.bytes = max(self.bytes, self.process.memory_info().rss)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()


def worker(rank: int, port: int, method: str, strategy: str, size: int, out: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    before = psutil.Process().memory_info().rss
    tunable = build_tunable(
        model=MODEL,
        model_settings=MODELS.settings(MODEL)(image_size=size),
        weights="none",
        num_classes=2,
        method_parts={method: METHODS.settings(method)()},
        seed=0,
    )
    model: Any = tunable.model.train()
    shards = None
    if strategy == "fsdp":
        shards = Shards(tunable.applied, init_device_mesh("cpu", (2,)))
    else:
        model = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(tunable.applied.parameters().values(), lr=1e-4)
    image = torch.rand(1, 3, size, size)
    losses, seconds = [], []
    for _ in range(2):
        begin = time.perf_counter()
        with Peak() as peak:
            optimizer.zero_grad()
            loss = model(image).logits.square().mean()
            loss.backward()
            if shards is not None:
                shards.average_gradients()
            optimizer.step()
        seconds.append(time.perf_counter() - begin)
        losses.append(loss.item())
        del loss
    gc.collect()
    rest = psutil.Process().memory_info().rss
    if rank == 0:
        row = {
            "method": method,
            "strategy": strategy,
            "before_bytes": before,
            "peak_bytes": peak.bytes,
            "rest_bytes": rest,
            "seconds": seconds[-1],
            "losses": losses,
        }
        Path(out).write_text(json.dumps(row))
    dist.destroy_process_group()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=256)
    size = parser.parse_args().size
    rows = []
    for method in ("lora", "full"):
        for strategy in ("ddp", "fsdp"):
            with tempfile.NamedTemporaryFile() as out:
                given = (free_port(), method, strategy, size, out.name)
                torch.multiprocessing.spawn(worker, args=given, nprocs=2)
                rows.append(json.loads(Path(out.name).read_text()))
            print(rows[-1], flush=True)
    found = {
        "size": size,
        "threshold": os.environ.get("MALLOC_MMAP_THRESHOLD_"),
        "versions": versions(),
        "rows": rows,
    }
    RESULT.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
