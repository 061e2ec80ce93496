"""Mean attention distances of a run's base and of the tuned model: as data and as a plot."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segtune.engine.attention import LayerDistance
from segtune.engine.files import write_json, write_text, write_with
from segtune.errors import MissingExtraError, UsageError
from segtune.report.style import whole_numbers

COLOURS = {"base": "#888888", "tuned": "#c8102e"}


def require_matplotlib() -> None:
    """Raises MissingExtraError where nothing can be drawn; said before anything is measured."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtraError("matplotlib", extra="report", purpose="a plot") from error


def write_attention(
    distances: Mapping[str, Sequence[LayerDistance]], out: Path, *, title: str, num_images: int
) -> tuple[Path, Path, Path]:
    """Writes attention.json, attention.csv and attention.png.

    Args:
        distances: of "base" and "tuned", block by block.
        out: a folder; it is made where it does not exist.
        title: of the plot.
        num_images: that were measured.

    Returns:
        The three files.

    Raises:
        UsageError: the folder's name is taken by a file.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file", hint="give a folder with --out")
    out.mkdir(parents=True, exist_ok=True)
    files = out / "attention.json", out / "attention.csv", out / "attention.png"
    write_json(files[0], to_dict(distances, num_images))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", "block", "name", "windowed", "head", "pixels"])
    for model, layers in distances.items():
        for layer in layers:
            for head, distance in enumerate(layer.heads):
                writer.writerow([model, layer.block, layer.name, layer.windowed, head, distance])
    write_text(files[1], text.getvalue())
    figure = draw(distances, title)
    write_with(files[2], lambda path: figure.savefig(path, format="png", dpi=150))
    return files


def to_dict(distances: Mapping[str, Sequence[LayerDistance]], num_images: int) -> dict[str, Any]:
    """Plain values."""
    return {
        "unit": "pixels",
        "images": num_images,
        **{model: [vars(layer) for layer in layers] for model, layers in distances.items()},
    }


def from_dict(content: Mapping[str, Any]) -> tuple[dict[str, list[LayerDistance]], int]:
    """What `to_dict` made plain: the distances and the number of images."""
    return {
        model: [LayerDistance(**layer) for layer in content[model]] for model in COLOURS if model in content
    }, content["images"]


def draw(distances: Mapping[str, Sequence[LayerDistance]], title: str) -> Any:
    """A matplotlib figure: a dot for each head, a bar at their mean, one colour for each model.

    Blocks are not joined by lines: windowed and global ones reach differently far by their make.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for number, (model, layers) in enumerate(distances.items()):
        shift = (number - (len(distances) - 1) / 2) * 0.24
        colour = COLOURS[model]
        for layer in layers:
            place = [layer.block + shift] * len(layer.heads)
            axes.scatter(
                place,
                layer.heads,
                s=18,
                alpha=0.7,
                linewidths=1,
                edgecolors=colour,
                facecolors="none" if layer.windowed else colour,
            )
            mean = sum(layer.heads) / len(layer.heads)
            axes.hlines(mean, place[0] - 0.1, place[0] + 0.1, color=colour, lw=2)
        axes.plot([], [], color=colour, lw=2, label=f"{model}, mean of heads")
    if any(layer.windowed for layers in distances.values() for layer in layers):
        axes.scatter([], [], s=18, facecolors="none", edgecolors="black", label="head within windows")
    axes.scatter([], [], s=18, color="black", label="head")
    axes.set(title=title, xlabel="block", ylabel="mean attention distance (pixels)", ylim=(0, None))
    whole_numbers(axes)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize="small")
    return figure
