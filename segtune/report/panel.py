"""Pictures side by side: one row for each image, one column for each way of looking at it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Picture = NDArray[np.uint8]
"""[H, W, 3]."""
Colour = tuple[int, int, int]
Entry = tuple[int, str, Colour]
"""Left edge in pixels, class name, colour."""
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

GAP = 6
LABEL = 20
BACKGROUND = (255, 255, 255)
INK = (30, 30, 30)


def draw_panel(
    columns: Sequence[str],
    rows: Sequence[Sequence[Picture]],
    *,
    legend: Sequence[tuple[str, Colour]] = (),
    row_names: Sequence[str] = (),
    width: int = 240,
) -> Image.Image:
    """Draws a grid of pictures with the columns' names above and a legend of classes below.

    Args:
        columns: names, one for each picture of a row.
        rows: pictures of one image, all of one size.
        legend: class name and colour.
        row_names: written into the first picture of each row; default: none.
        width: of each picture in pixels; heights follow.
    """
    font = ImageFont.load_default(13)
    heights = [max(1, round(width * row[0].shape[0] / row[0].shape[1])) for row in rows]
    total_width = GAP + len(columns) * (width + GAP)
    lines = _legend_lines(legend, total_width, font)
    total_height = LABEL + sum(height + GAP for height in heights) + len(lines) * LABEL + GAP
    sheet = Image.new("RGB", (total_width, total_height), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for position, name in enumerate(columns):
        draw.text((GAP + position * (width + GAP), 3), name, fill=INK, font=font)
    top = LABEL
    for number, (row, height) in enumerate(zip(rows, heights, strict=True)):
        for position, picture in enumerate(row):
            scaled = Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR)
            sheet.paste(scaled, (GAP + position * (width + GAP), top))
        if number < len(row_names) and row_names[number]:
            place = (GAP + 5, top + 4)
            draw.text(place, row_names[number], fill=BACKGROUND, font=font, stroke_width=2, stroke_fill=INK)
        top += height + GAP
    for line in lines:
        for left, name, colour in line:
            draw.rectangle((left, top + 4, left + 11, top + 15), fill=colour, outline=INK)
            draw.text((left + 16, top + 2), name, fill=INK, font=font)
        top += LABEL
    return sheet


def _legend_lines(
    legend: Sequence[tuple[str, Colour]],
    width: int,
    font: Font,
) -> list[list[Entry]]:
    lines: list[list[Entry]] = []
    left = width
    for name, colour in legend:
        needed = 16 + round(font.getlength(name)) + 14
        if left + needed > width:
            lines.append([])
            left = GAP
        lines[-1].append((left, name, colour))
        left += needed
    return lines
