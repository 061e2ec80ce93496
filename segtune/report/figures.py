"""Figures of runs, each a function from records to a matplotlib figure, or None without data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from segtune.report.records import RunRecord, moving_average
from segtune.report.style import bar_style, line_style, new_figure, whole_numbers

Figure = Any
"""matplotlib's Figure; the library is an extra."""

SMOOTHED = 20
"""The moving average takes the last twentieth of the steps."""
MOST_SIDE_BY_SIDE = 4
"""Runs whose classes are drawn over epochs."""
OF_A_CLASS = "iou/"
"""What columns of metrics.jsonl that hold the IoU of a class begin with."""
MOST_SHOWN_IN_CELLS = 20
"""Classes up to which a confusion matrix has its numbers written into it."""


def loss_curves(runs: Sequence[RunRecord]) -> Figure | None:
    """Training loss with its moving average, over steps and over time."""
    runs = [run for run in runs if run.steps]
    if not runs:
        return None
    figure, axes = new_figure(9, 3.4, columns=2)
    for number, run in enumerate(runs):
        loss = [step["loss"] for step in run.steps]
        smooth = moving_average(loss, max(1, len(loss) // SMOOTHED))
        seconds = np.cumsum([step["seconds"] for step in run.steps])
        style = line_style(number)
        for axis, x in zip(axes, ([step["step"] for step in run.steps], seconds / 60), strict=True):
            if len(runs) <= 3:
                axis.plot(x, loss, color=style["color"], alpha=0.25, linewidth=0.6)
            axis.plot(x, smooth, label=run.label, **style)
    for axis, name in zip(axes, ("step", "minutes of training"), strict=True):
        axis.set_xlabel(name)
        axis.set_ylabel("training loss")
    _legend(figure, axes[0], len(runs))
    return figure


def validation_curves(runs: Sequence[RunRecord]) -> Figure | None:
    """The monitored score and the loss of each validation, and the training loss beside it."""
    runs = [run for run in runs if len(run.validations) > 1 and "miou" in run.validations[0]]
    if not runs:
        return None
    score = _monitored(runs)
    figure, axes = new_figure(9, 3.4, columns=2)
    for number, run in enumerate(runs):
        epochs = [line["epoch"] for line in run.validations]
        style = line_style(number)
        axes[0].plot(epochs, _column(run.validations, score), label=run.label, **style)
        if all(f"train_{score}" in line for line in run.validations):
            train = [line[f"train_{score}"] for line in run.validations]
            axes[0].plot(epochs, train, color=style["color"], linewidth=0.8, marker=".", markersize=4)
        axes[1].plot(epochs, [line["cross_entropy"] for line in run.validations], **style)
    name = "mIoU" if score == "miou" else score
    dotted = any(f"train_{score}" in run.validations[0] for run in runs)
    axes[0].set_ylabel(f"{name}; thin with dots: training images" if dotted else name)
    axes[1].set_ylabel("validation cross entropy")
    for axis in axes:
        axis.set_xlabel("epoch")
        whole_numbers(axis)
    _legend(figure, axes[0], len(runs))
    return figure


def _monitored(runs: Sequence[RunRecord]) -> str:
    """The score that all runs have monitored, or the one that every run has."""
    names = {run.folder.read_config().train.monitor for run in runs}
    name = names.pop() if len(names) == 1 else "miou"
    return name if all(any(name in line for line in run.validations) for run in runs) else "miou"


def _column(lines: Sequence[dict[str, Any]], name: str) -> list[float]:
    """A score of each validation; a gap where it has none, as where nothing was found."""
    return [math.nan if line.get(name) is None else line[name] for line in lines]


def loss_by_rank(runs: Sequence[RunRecord]) -> Figure | None:
    """Training and validation loss over epochs, a line for each rank of a method that ran with several."""
    ranked = [(run.ranks, run) for run in runs if run.ranks and run.steps and run.validations]
    if len({ranks for ranks, _ in ranked}) < 2:
        return None
    figure, axes = new_figure(9, 3.4, columns=2)
    for number, (_, run) in enumerate(sorted(ranked, key=lambda pair: pair[0])):
        of_epochs: dict[int, list[float]] = {}
        for step in run.steps:
            of_epochs.setdefault(step["epoch"], []).append(step["loss"])
        style = {**line_style(number), "marker": ".", "label": run.label}
        axes[0].plot([*of_epochs], [float(np.mean(losses)) for losses in of_epochs.values()], **style)
        epochs = [line["epoch"] for line in run.validations]
        axes[1].plot(epochs, _column(run.validations, "cross_entropy"), **style)
    for axis, name in zip(axes, ("training loss, mean of an epoch", "validation cross entropy"), strict=True):
        axis.set_xlabel("epoch")
        whole_numbers(axis)
        axis.set_ylabel(name)
    _legend(figure, axes[0], len(ranked))
    return figure


def class_curves(runs: Sequence[RunRecord]) -> Figure | None:
    """IoU of each class in each validation, a plot for each run."""
    runs = [run for run in runs if len(run.validations) > 1 and _class_columns(run)][:MOST_SIDE_BY_SIDE]
    if not runs or len({tuple(_class_columns(run)) for run in runs}) > 1:
        return None
    figure, axes = new_figure(2.4 + 3.2 * len(runs), 3.4, columns=len(runs), share_y=True)
    for axis, run in zip(np.atleast_1d(axes), runs, strict=True):
        epochs = [line["epoch"] for line in run.validations]
        for number, column in enumerate(_class_columns(run)):
            axis.plot(
                epochs,
                _column(run.validations, column),
                label=column.removeprefix(OF_A_CLASS),
                **line_style(number),
            )
        axis.set_title(run.label, fontsize=9)
        axis.set_xlabel("epoch")
        whole_numbers(axis)
    first = np.atleast_1d(axes)[0]
    first.set_ylabel("IoU of validation images")
    first.set_ylim(0, 1)
    handles, labels = first.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper")
    return figure


def _class_columns(run: RunRecord) -> list[str]:
    """What a validation's line calls the IoU of each class."""
    return [name for name in run.validations[0] if name.startswith(OF_A_CLASS)]


def class_bars(runs: Sequence[RunRecord]) -> Figure | None:
    """IoU of each class, a bar for each run."""
    runs = [run for run in runs if run.evaluation]
    if not runs:
        return None
    names = runs[0].evaluation["class_names"]
    runs = [run for run in runs if run.evaluation["class_names"] == names]
    figure, axis = new_figure(max(5.0, 0.5 * len(names) * max(1.0, len(runs) / 3)), 3.4)
    width = 0.8 / len(runs)
    for number, run in enumerate(runs):
        values = [value if value is not None else 0.0 for value in run.evaluation["per_class"]["iou"]]
        places = np.arange(len(names)) + (number - (len(runs) - 1) / 2) * width
        axis.bar(places, values, width, label=run.label, **bar_style(number))
    axis.set_xticks(range(len(names)), names, rotation=40, ha="right")
    axis.set_ylabel("IoU")
    axis.set_ylim(0, 1)
    axis.grid(axis="x", visible=False)
    _legend(figure, axis, len(runs))
    return figure


def confusion_matrix(run: RunRecord) -> Figure | None:
    """Share of each true class's pixels that were predicted as each class."""
    if not run.evaluation:
        return None
    names = run.evaluation["class_names"]
    matrix = np.array(run.evaluation["confusion"], float)
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    side = min(9.0, 2.2 + 0.42 * len(names))
    figure, axis = new_figure(side + 0.8, side)
    image = axis.imshow(shares, vmin=0, vmax=1, cmap="cividis")
    axis.grid(visible=False)
    axis.set_xticks(range(len(names)), names, rotation=60, ha="right")
    axis.set_yticks(range(len(names)), names)
    axis.set_xlabel("predicted")
    axis.set_ylabel("ground truth")
    if len(names) <= MOST_SHOWN_IN_CELLS:
        for row, column in np.ndindex(shares.shape):
            share = shares[row, column]
            if share >= 0.005:
                colour = "black" if share > 0.55 else "white"
                axis.text(column, row, f"{share:.2f}", ha="center", va="center", color=colour, fontsize=7)
    figure.colorbar(image, ax=axis, label="share of the true class", shrink=0.8)
    return figure


def image_boxes(runs: Sequence[RunRecord]) -> Figure | None:
    """Box plots of the mean IoU of each image, run by run."""
    runs = [run for run in runs if run.evaluation.get("per_image")]
    if not runs:
        return None
    values = [[v for v in run.evaluation["per_image"].values() if v is not None] for run in runs]
    figure, axis = new_figure(6.4, 0.9 + 0.36 * len(runs))
    _draw_boxes(axis, values, [run.label for run in runs])
    what = "a volume" if any(run.evaluation.get("volumes") for run in runs) else "an image"
    axis.set_xlabel(f"mean IoU of {what} (line: median, triangle: mean)")
    return figure


def volume_boxes(runs: Sequence[RunRecord]) -> Figure | None:
    """Box plots of the Dice of each volume, run by run, for each region; a point for each volume."""
    runs = [run for run in runs if run.evaluation.get("volumes")]
    if not runs:
        return None
    regions = list(next(iter(runs[0].evaluation["volumes"].values()))["volume_dice"])
    figure, axes = new_figure(1.6 + 4.4 * len(regions), 0.9 + 0.4 * len(runs), columns=len(regions))
    for axis, region in zip(np.atleast_1d(axes), regions, strict=True):
        found = [
            [scores["volume_dice"].get(region) for scores in run.evaluation["volumes"].values()]
            for run in runs
        ]
        values = [[value for value in of_run if value is not None] for of_run in found]
        _draw_boxes(axis, values, [run.label for run in runs], outliers=False)
        for place, of_run in enumerate(values, start=1):
            axis.plot(of_run, [place] * len(of_run), "o", color="black", markersize=3.5, fillstyle="none")
        axis.set_xlabel(f"Dice of {region} in a volume (circles: volumes, line: median, triangle: mean)")
        axis.set_xlim(-0.02, 1.02)
    return figure


def _draw_boxes(
    axis: Any, values: Sequence[Sequence[float]], labels: Sequence[str], *, outliers: bool = True
) -> None:
    look: dict[str, Any] = {"showmeans": True, "patch_artist": True, "widths": 0.6}
    boxes = axis.boxplot(values, orientation="horizontal", showfliers=outliers, **look)
    for number, box in enumerate(boxes["boxes"]):
        style = bar_style(number)
        box.set(facecolor=style["color"], alpha=0.45, hatch=style["hatch"])
    for line in boxes["medians"]:
        line.set(color="black", linewidth=1.5)
    axis.set_yticks(range(1, len(labels) + 1), labels)
    axis.invert_yaxis()


def resources(runs: Sequence[RunRecord]) -> Figure | None:
    """Memory and load over the time of training."""
    runs = [run for run in runs if len(run.resources.get("seconds", [])) > 1]
    if not runs:
        return None
    kinds = [
        ("process_bytes", "process memory, GiB", 2**30),
        ("cpu_percent", "processor, % of one core", 1),
        ("gpu_bytes", "GPU memory, GiB", 2**30),
        ("gpu_percent", "GPU load, %", 1),
    ]
    shown = [kind for kind in kinds if any(kind[0] in run.resources for run in runs)]
    figure, axes = new_figure(4.5 * len(shown), 3.2, columns=len(shown))
    for axis, (column, title, unit) in zip(np.atleast_1d(axes), shown, strict=True):
        for number, run in enumerate(runs):
            if column in run.resources:
                minutes = np.array(run.resources["seconds"]) / 60
                axis.plot(
                    minutes, np.array(run.resources[column]) / unit, label=run.label, **line_style(number)
                )
        axis.set_xlabel("minutes")
        axis.set_ylabel(title)
        axis.set_ylim(bottom=0)
    _legend(figure, np.atleast_1d(axes)[0], len(runs))
    return figure


RUN_FIGURES: dict[str, tuple[str, Callable[[Sequence[RunRecord]], Figure | None]]] = {
    "loss": ("Training loss", loss_curves),
    "validation": ("Scores while training", validation_curves),
    "loss-by-rank": ("Loss by rank", loss_by_rank),
    "classes": ("IoU of each class", class_bars),
    "classes-by-epoch": ("IoU of each class while training", class_curves),
    "volumes": ("Dice of single volumes", volume_boxes),
    "images": ("Scores of single images", image_boxes),
    "resources": ("Memory and load", resources),
}
"""Name of the file -> title, function."""


def _legend(figure: Figure, axis: Any, num_series: int) -> None:
    """Below the plots where the series are many, inside where they are few, nowhere for one."""
    if num_series > 1:
        handles, labels = axis.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, num_series))
