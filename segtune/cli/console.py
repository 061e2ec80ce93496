"""What a run tells, drawn on the terminal (stderr)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from segtune.engine.reporter import Reporter


class ConsoleReporter(Reporter):
    """Progress bars where stderr is a terminal, lines where it is a file."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        self._progress: Progress | None = None
        self._training: TaskID | None = None
        self._evaluating: TaskID | None = None
        self._score = ""

    def note(self, *lines: str) -> None:
        """Prints lines."""
        for line in lines:
            self.console.print(escape(line), soft_wrap=True)

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Prints a table; the first column is left-aligned, numbers are right-aligned."""
        self.note(title)
        self.console.print(make_table(header, rows))

    def training(self, first_step: int, num_steps: int | None) -> None:
        """Starts the bar."""
        bar = self._bar()
        self._training = bar.add_task("training", total=num_steps, completed=first_step, text="")

    def step(self, values: Mapping[str, Any]) -> None:
        """Moves the bar."""
        text = (
            f"epoch {values['epoch']}  loss {values['loss']:.4f}{self._score}"
            f"  {values['images_per_second']:.1f} images/s"
        )
        if self._training is not None:
            self._bar().update(self._training, completed=values["step"], text=text)

    def evaluating(self, done: int, total: int) -> None:
        """Moves a second bar, which goes away when it is full."""
        bar = self._bar()
        if self._evaluating is None:
            self._evaluating = bar.add_task("evaluating", total=total, text="")
        bar.update(self._evaluating, completed=done)
        if done >= total:
            bar.remove_task(self._evaluating)
            self._evaluating = None

    def validated(self, values: Mapping[str, Any]) -> None:
        """Prints a line for each validation."""
        parts = [f"epoch {values['epoch']:>3}  step {values['step']:>5}  loss {values['train_loss']:.4f}"]
        if "miou" in values:
            self._score = f"  mIoU {values['miou']:.4f}"
            parts.append(
                f"mIoU {values['miou']:.4f}  accuracy {values['pixel_accuracy']:.4f}"
                f"  val loss {values['cross_entropy']:.4f}"
            )
        parts.append(f"{values['seconds']:.0f} s" + ("  (best)" if values["best"] else ""))
        self.note("  ".join(parts))

    def close(self) -> None:
        """Takes the bars away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _bar(self) -> Progress:
        if self._progress is None:
            self._progress = Progress(
                TextColumn("{task.description:<10}"),
                BarColumn(bar_width=30),
                TextColumn("{task.completed}/{task.total}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[text]}"),
                console=self.console,
                transient=True,
                disable=not self.console.is_terminal,
            )
            self._progress.start()
        return self._progress


def make_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A plain table: first column left, the others right."""
    table = Table(box=None, pad_edge=False)
    for position, name in enumerate(header):
        table.add_column(escape(name), justify="left" if position == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    return table
