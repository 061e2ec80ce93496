"""What a run uses of the machine, sampled by a thread beside it."""

from __future__ import annotations

import importlib.util
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
        self._gpu_load: list[int] = []
        self._process = psutil.Process()
        self._reads_load = importlib.util.find_spec("pynvml") is not None  # nvidia-ml-py is an extra
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
        if self.device.type == "cuda" and self._reads_load:
            self._gpu_load.append(torch.cuda.utilization(self.device))

    def snapshot(self) -> dict[str, Any]:
        """Memory so far in bytes, and the GPU's mean load in percent where there is one."""
        values: dict[str, Any] = {"peak_process_bytes": self.peak_process_bytes}
        if self.device.type == "cuda":
            values["peak_gpu_bytes"] = torch.cuda.max_memory_allocated(self.device)
            if self._gpu_load:
                values["gpu_utilisation_percent"] = sum(self._gpu_load) / len(self._gpu_load)
        return values
