"""Where the time of a training step goes: a table of its parts and a trace of single operations.

The first steps of a run are warm-up, the next ones are timed part by part, and a few more are recorded by
torch's profiler; the run then goes on, with the same numbers as without a profile. On a GPU the parts are
timed by waiting for it at the end of each: the times are then true for each part, and their sum is more
than a step takes otherwise, where parts overlap.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from segtune.engine.files import write_json, write_text, write_with
from segtune.engine.phases import Phases

WARM_UP = 3
"""Steps that are not timed: memory is allocated and kernels are chosen in them."""
RECORDED = 3
"""Steps that the trace shows; a trace of many is too large to open."""
STEP_PARTS = (
    "data wait",
    "host to device",
    "encoder forward",
    "decoder forward",
    "forward, the rest",
    "loss",
    "decoder backward",
    "encoder backward",
    "optimiser",
)
VALIDATION_PARTS = ("read", "network", "metrics")


class Profiler(Phases):
    """Times the parts of a run.

    Args:
        model: its encoder and decoder are told apart by wrapping both until `close`.
        device: where it runs.
        num_steps: steps to time.
        folder: for the table and the trace.
    """

    def __init__(self, model: nn.Module, device: torch.device, num_steps: int, folder: Path) -> None:
        self.device = device
        self.num_steps = num_steps
        self.folder = folder
        self.seconds: dict[str, float] = defaultdict(float)
        self.step_seconds = 0.0
        self.num_timed = 0
        self._steps_done = 0
        self._open: list[list[Any]] = []
        self._boundary: float | None = None
        self._trace: Any = None
        self._wrapped = ExitStack()
        for name, part, watch in (("encode", "encoder forward", True), ("decode", "decoder forward", False)):
            self._wrapped.enter_context(self._wrap(model, name, part, watch=watch))

    @property
    def _is_timing(self) -> bool:
        return WARM_UP <= self._steps_done < WARM_UP + self.num_steps

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Times what is done inside, less the parts inside it."""
        if name in STEP_PARTS and not self._is_timing and self._trace is None:
            yield
            return
        begin = self._now()
        self._open.append([name, 0.0])
        try:
            with record_function(name):
                yield
        finally:
            spent = self._now() - begin
            _, inside = self._open.pop()
            if self._open:
                self._open[-1][1] += spent
            if name not in STEP_PARTS or self._is_timing:
                self._count(name, begin, spent - inside)

    def _count(self, name: str, begin: float, spent: float) -> None:
        if name == "decoder backward" and self._boundary is not None:
            self.seconds[name] += self._boundary - begin
            self.seconds["encoder backward"] += begin + spent - self._boundary
        else:
            self.seconds[name] += spent
        self._boundary = None

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    @contextmanager
    def _wrap(self, model: nn.Module, name: str, part: str, *, watch: bool) -> Iterator[None]:
        """Replaces a method of one model for a while."""
        own: Callable[..., Any] = getattr(model, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if not torch.is_grad_enabled():  # a validation, whose network is one part
                return own(*args, **kwargs)
            with self(part):
                output = own(*args, **kwargs)
            if watch and self._is_timing:
                for tensor in _tensors(output.maps):
                    if tensor.requires_grad:
                        tensor.register_hook(self._reached_encoder)  # type: ignore[no-untyped-call]
            return output

        object.__setattr__(model, name, wrapped)
        try:
            yield
        finally:
            object.__delattr__(model, name)

    def _reached_encoder(self, gradient: Tensor) -> None:
        """The first gradient of the features: what was made behind them has been gone through."""
        if self._boundary is None:
            self._boundary = self._now()

    def step_done(self, seconds: float) -> None:
        """Goes on to the next stage where it is time."""
        if self._is_timing:
            self.num_timed += 1
            self.step_seconds += seconds
        self._steps_done += 1
        after = self._steps_done - WARM_UP - self.num_steps
        if after == 0:
            activities = [ProfilerActivity.CPU]
            if self.device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
            self._trace = profile(activities=activities)
            self._trace.start()
        elif after == RECORDED:
            self._end_trace()

    def _end_trace(self) -> None:
        if self._trace is not None:
            self._trace.stop()
            write_with(self.folder / "trace.json", lambda path: self._trace.export_chrome_trace(str(path)))
            self._trace = None

    def close(self) -> None:
        """Ends a trace that has fewer steps than planned, and gives the model its own methods back."""
        self._end_trace()
        self._wrapped.close()

    def write(self, run_seconds: dict[str, float], num_evaluated: int) -> list[Table]:
        """Writes the tables as text and as numbers.

        Args:
            run_seconds: of the whole run by what they were spent on.
            num_evaluated: images that were evaluated, over all validations and the end.

        Returns:
            The tables.
        """
        parts = {name: self.seconds[name] for name in STEP_PARTS if name in self.seconds}
        parts["the rest"] = max(0.0, self.step_seconds - sum(parts.values()))
        images = {name: self.seconds[name] for name in VALIDATION_PARTS if name in self.seconds}
        each_step, each_image = 1e3 / max(1, self.num_timed), 1e3 / max(1, num_evaluated)
        tables = [
            Table(f"training step, mean of {self.num_timed}", "ms", _rows(parts, each_step)),
            Table(f"evaluated image, mean of {num_evaluated}", "ms", _rows(images, each_image)),
            Table("run", "s", _rows(run_seconds, 1.0)),
        ]
        text = "\n".join(table.as_markdown() for table in tables)
        write_text(self.folder / "profile.md", f"# Where the time goes\n\n{text}")
        write_json(
            self.folder / "profile.json",
            {
                "steps_timed": self.num_timed,
                "step_seconds": parts,
                "images_evaluated": num_evaluated,
                "evaluation_seconds": images,
                "run_seconds": run_seconds,
                "device": self.device.type,
            },
        )
        return tables

    def advice(self) -> str | None:
        """What to do where the run was too short to be measured."""
        if self._steps_done >= WARM_UP + self.num_steps + RECORDED:
            return None
        return (
            f"the run was too short for the whole profile, which takes {WARM_UP} steps of warm-up,"
            f" {self.num_steps} to time (train.profile_steps) and {RECORDED} for the trace"
        )


@dataclass(frozen=True)
class Table:
    """Times of the parts of something, with their shares."""

    title: str
    unit: str
    rows: list[tuple[str, str, str]]

    @property
    def header(self) -> tuple[str, str, str]:
        """Of the columns."""
        return self.title, self.unit, "share"

    def as_markdown(self) -> str:
        """For a page."""
        lines = [self.header, ("---", "---:", "---:"), *self.rows]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _rows(seconds: dict[str, float], factor: float) -> list[tuple[str, str, str]]:
    total = sum(seconds.values())
    rows = [
        (name, f"{value * factor:.1f}", f"{value / total if total else 0:.1%}")
        for name, value in seconds.items()
    ]
    return [*rows, ("all", f"{total * factor:.1f}", "")]


def _tensors(maps: Any) -> Iterator[Tensor]:
    """Every tensor in nested lists and mappings."""
    if isinstance(maps, Tensor):
        yield maps
    elif isinstance(maps, dict):
        for item in maps.values():
            yield from _tensors(item)
    elif isinstance(maps, list | tuple):
        for item in maps:
            yield from _tensors(item)
