"""What the learning-rate finder saw, as a figure and as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from segtune.engine.files import write_json, write_with
from segtune.engine.rate_finder import RateCurve
from segtune.report.style import figure_style, new_figure


def write_rates(found: RateCurve, out: Path, title: str) -> list[Path]:
    """Writes rates.json, rates.svg and rates.png.

    Args:
        found: by the finder.
        out: folder.
        title: of the figure.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    written = [out / "rates.json", out / "rates.svg", out / "rates.png"]
    with figure_style():
        figure = _draw(found, title)
        for path in written[1:]:
            write_with(path, figure.savefig)
    write_json(written[0], found.to_dict())
    return written


def _draw(found: RateCurve, title: str) -> Any:
    """Every loss as a dot, the curve with two standard errors, and the rate that is suggested."""
    figure, axis = new_figure(6.8, 3.8)
    for number, ramp in enumerate(found.losses):
        label = "a step's loss" if number == 0 else None
        axis.plot(found.rates[: len(ramp)], ramp, ".", color="#999999", markersize=3, label=label)
    rates = found.rates[: len(found.curve)]
    band = 2 * found.standard_error
    low, high = ([value + sign * band for value in found.curve] for sign in (-1, 1))
    axis.fill_between(rates, low, high, color="#0072B2", alpha=0.2, linewidth=0)
    axis.plot(rates, found.curve, color="#0072B2", label="mean, with two standard errors")
    axis.axhline(found.start, color="#999999", linewidth=0.8, linestyle=":", label="before the first step")
    if found.suggestion is not None:
        axis.axvline(
            found.suggestion, color="#D55E00", linestyle="--", label=f"suggested: {found.suggestion:g}"
        )
    axis.set_xscale("log")
    top = max(found.start, *found.curve[: max(1, len(found.curve) // 2)])
    bottom = min(found.curve)
    # a loss that has risen far would press the rest flat
    axis.set_ylim(bottom - 0.2 * (top - bottom) - band, top + 0.8 * (top - bottom) + band)
    axis.set_xlabel("learning rate")
    axis.set_ylabel("training loss after the step")
    axis.set_title(title)
    axis.legend()
    return figure
