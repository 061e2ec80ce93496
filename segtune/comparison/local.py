"""Cells on this machine: one after another, several at once, or one for each GPU."""

from __future__ import annotations

import os
import queue
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from segtune.comparison.cell import CellFolder, run_cell
from segtune.comparison.settings import ComparisonSettings

Work = tuple[CellFolder, str]
"""A cell and its settings as YAML."""


def run_local(work: Sequence[Work], settings: ComparisonSettings) -> Iterator[tuple[int, str | None]]:
    """Runs cells and yields, as each ends, its place in `work` and why it failed, or None.

    With several jobs on a machine with GPUs each job sees one of them; on a processor the cores are
    divided among the jobs.
    """
    slots: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
    for number in range(settings.jobs):
        slots.put(_environment(number, settings.jobs))

    def one(folder: CellFolder, text: str) -> str | None:
        environment = slots.get()
        try:
            return run_cell(folder, text, environment)
        finally:
            slots.put(environment)

    pool = ThreadPoolExecutor(settings.jobs)
    try:
        places = {pool.submit(one, *cell): place for place, cell in enumerate(work)}
        for done in as_completed(places):
            yield places[done], done.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _environment(number: int, jobs: int) -> dict[str, str]:
    if jobs == 1:
        return {}
    cores = max(1, len(os.sched_getaffinity(0)) // jobs)
    environment = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(cores))}
    devices = _visible_gpus()
    if devices:
        environment["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]
    return environment


def _visible_gpus() -> list[str]:
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name]
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]
