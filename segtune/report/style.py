"""How figures look: readable in black and white and by colour-blind readers.

Colours are those of Okabe and Ito; lines also differ in dashes, bars in hatching, points in shape, so
that no two series are told apart by colour alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from segtune.errors import MissingExtraError

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#999933")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)), (0, (3, 3)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
HATCHES = ("", "//", "..", "xx", "\\\\", "++", "oo", "--")

SETTINGS: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 150,
    "svg.fonttype": "none",
    "svg.hashsalt": "segtune",  # equal figures are equal files
    "legend.frameon": False,
    "legend.fontsize": 8,
}


@contextmanager
def figure_style() -> Iterator[None]:
    """Figures made inside look alike; nothing is changed for anybody else.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise MissingExtraError("matplotlib", extra="report", purpose="figures") from error
    with matplotlib.rc_context(SETTINGS):
        yield


def new_figure(
    width: float = 6.4, height: float = 3.6, columns: int = 1, *, share_y: bool = False
) -> tuple[Any, Any]:
    """A figure that no window and no global state knows of, with its axes.

    Args:
        width: in inches.
        height: in inches.
        columns: plots side by side.
        share_y: whether plots side by side have one vertical axis.

    Returns:
        The figure and its axes: one, or an array of them.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    return figure, figure.subplots(1, columns, sharey=share_y)


def line_style(number: int) -> dict[str, Any]:
    """Colour and dashes of a series."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": DASHES[(number + number // len(COLOURS)) % len(DASHES)],
        "linewidth": 1.6,
    }


def point_style(number: int) -> dict[str, Any]:
    """Colour and shape of a point."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[(number + number // len(COLOURS)) % len(MARKERS)],
        "markeredgecolor": "black",
        "markeredgewidth": 0.5,
        "linestyle": "none",
    }


def bar_style(number: int) -> dict[str, Any]:
    """Colour and hatching of a bar."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "hatch": HATCHES[number % len(HATCHES)],
        "edgecolor": "white",
        "linewidth": 0.5,
    }


def whole_numbers(axis: Any) -> None:
    """Marks only whole numbers on the axis below: epochs have no halves."""
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
