"""What a run uses of the machine, sampled by a thread beside it."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any

import psutil
import torch


class ResourceMonitor:
    """Samples memory and load while its block runs.

    Args:
        device: where the model runs.
        peak_process_bytes: what an earlier session of the same run has reached.
        interval: seconds between samples.
    """

    def __init__(self, device: torch.device, peak_process_bytes: int = 0, interval: float = 0.1) -> None:
        self.device = device
        self.interval = interval
        self.peak_process_bytes = peak_process_bytes
        self._process = psutil.Process()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="resources")

    def __enter__(self) -> ResourceMonitor:
        """Starts sampling."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self.sample()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops sampling."""
        self.sample()
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self.interval):
            self.sample()

    def sample(self) -> None:
        """Takes the process's resident memory, worker processes included."""
        used = self._process.memory_info().rss
        for child in self._process.children(recursive=True):
            try:
                used += child.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        self.peak_process_bytes = max(self.peak_process_bytes, used)

    def snapshot(self) -> dict[str, Any]:
        """Memory so far in bytes, and the GPU's load in percent where there is one."""
        values: dict[str, Any] = {"peak_process_bytes": self.peak_process_bytes}
        if self.device.type == "cuda":
            values["peak_gpu_bytes"] = torch.cuda.max_memory_allocated(self.device)
            try:
                values["gpu_utilisation_percent"] = torch.cuda.utilization(self.device)
            except ModuleNotFoundError:  # nvidia-ml-py is an extra
                values["gpu_utilisation_percent"] = None
        return values
