"""What a run uses of the machine, sampled by a thread beside it.

The samples of each second go into a CSV file: seconds since the start of this session, memory of the
process with its workers in bytes, processor load in percent of one core, and on a GPU its load in percent
and the memory that torch has allocated there in bytes.
"""

from __future__ import annotations

import importlib.util
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import psutil
import torch

COLUMNS = ("seconds", "process_bytes", "cpu_percent", "gpu_percent", "gpu_bytes")
LOG_INTERVAL = 1.0
"""Seconds between the lines of the log."""


class ResourceMonitor:
    """Samples memory and load while its block runs.

    Args:
        device: where the model runs.
        peak_process_bytes: what an earlier session of the same run has reached.
        interval: seconds between samples.
        log: file that the samples are appended to; None for none.
    """

    def __init__(
        self,
        device: torch.device,
        peak_process_bytes: int = 0,
        interval: float = 0.1,
        log: Path | None = None,
    ) -> None:
        self.device = device
        self.interval = interval
        self.peak_process_bytes = peak_process_bytes
        self._gpu_load: list[int] = []
        self._log_path = log
        self._log: TextIO | None = None
        self._begin = self._logged = time.perf_counter()
        self._process = psutil.Process()
        self._reads_load = importlib.util.find_spec("pynvml") is not None  # nvidia-ml-py is an extra
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="resources")

    def __enter__(self) -> ResourceMonitor:
        """Starts sampling."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        if self._log_path is not None:
            is_new = not self._log_path.exists()
            self._log = self._log_path.open("a", encoding="utf-8", buffering=1)
            if is_new:
                self._log.write(",".join(COLUMNS) + "\n")
        self._process.cpu_percent()  # the first call begins the measurement
        self.sample()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops sampling."""
        self._stop.set()
        self._thread.join()
        self.sample()
        if self._log is not None:
            self._log.close()

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
        now = time.perf_counter()
        if self._log is not None and now - self._logged >= LOG_INTERVAL:
            self._logged = now
            self._log.write(",".join(map(str, self._line(now, used))) + "\n")

    def _line(self, now: float, used: int) -> list[Any]:
        on_gpu = self.device.type == "cuda"
        return [
            round(now - self._begin, 2),
            used,
            self._process.cpu_percent(),
            self._gpu_load[-1] if self._gpu_load else "",
            torch.cuda.memory_allocated(self.device) if on_gpu else "",
        ]

    def snapshot(self) -> dict[str, Any]:
        """Memory so far in bytes, and the GPU's mean load in percent where there is one."""
        values: dict[str, Any] = {"peak_process_bytes": self.peak_process_bytes}
        if self.device.type == "cuda":
            values["peak_gpu_bytes"] = torch.cuda.max_memory_allocated(self.device)
            if self._gpu_load:
                values["gpu_utilisation_percent"] = sum(self._gpu_load) / len(self._gpu_load)
        return values
