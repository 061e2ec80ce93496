"""Cells on a Ray cluster: an existing one, or one that Ray starts on this machine.

The folder of the comparison and the data must lie where every machine of the cluster sees them under
the same path, as on a shared disk.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

from segtune.comparison.cell import CellFolder, run_cell
from segtune.comparison.settings import ComparisonSettings
from segtune.errors import MissingExtraError, SegtuneError


def run_on_ray(
    work: Sequence[tuple[CellFolder, str]], settings: ComparisonSettings
) -> Iterator[tuple[int, str | None]]:
    """Runs cells as Ray tasks and yields, as each ends, its place in `work` and why it failed, or None.

    A cell whose worker is lost is begun again, up to `retries` times; it goes on from its last
    checkpoint. `RAY_ADDRESS` names a cluster; without it a local one is used or started.

    Raises:
        MissingExtraError: ray is not installed.
        SegtuneError: the cluster cannot be reached or started.
    """
    try:
        import ray as library
    except ModuleNotFoundError as error:
        raise MissingExtraError("ray", extra="ray", purpose="compare.engine=ray") from error
    ray: Any = library
    started = not ray.is_initialized()
    if started:
        _join(ray)
    try:
        gpus = settings.gpus_per_job if ray.cluster_resources().get("GPU") else 0
        threads = os.environ.get("OMP_NUM_THREADS", str(settings.cpus_per_job))
        remote: Any = ray.remote(
            num_cpus=settings.cpus_per_job,
            num_gpus=gpus,
            max_retries=settings.retries,
            retry_exceptions=False,
        )(run_cell)
        places = {
            remote.remote(folder, text, {"OMP_NUM_THREADS": threads}): place
            for place, (folder, text) in enumerate(work)
        }
        waiting = list(places)
        while waiting:
            (done,), waiting = ray.wait(waiting, num_returns=1)
            try:
                reason = ray.get(done)
            except ray.exceptions.RayError as error:
                reason = f"its worker was lost {settings.retries + 1} times: {str(error).splitlines()[0]}"
            yield places[done], reason
    finally:
        if started:
            ray.shutdown()


def _join(ray: Any) -> None:
    """Joins the cluster that is named, or starts one here.

    Raises:
        SegtuneError: neither can be had.
    """
    address = os.environ.get("RAY_ADDRESS")
    try:
        ray.init(address=address, log_to_driver=False, include_dashboard=False)
    except Exception as error:  # Ray raises bare exceptions where its processes do not come up in time
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise SegtuneError(
            f"there is no Ray cluster to run on: {reason}",
            hint=f"check that {address} is up and can be reached (`ray status`), or unset RAY_ADDRESS"
            if address
            else "this machine may be too busy to start one in time: try again, or --engine local",
        ) from error
