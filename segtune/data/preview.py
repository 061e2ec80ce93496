"""Writes a contact sheet of a data set: image, mask in colours, and both together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from segtune.data.base import SPLITS, Classes, Colour, DataIndex, Image, Mask, Sample
from segtune.errors import DataError
from segtune.types import IGNORE_INDEX

TILE = 248
"""Width of one picture, in pixels."""
GAP = 8
MARGIN = 28
CAPTION = 22
LEGEND_ROW = 24
COLUMNS = 2
"""Samples (of three pictures each) beside each other."""
WIDTH = 2 * MARGIN + COLUMNS * (3 * TILE + 2 * GAP) + (COLUMNS - 1) * MARGIN

PAPER: Colour = (250, 250, 248)
INK: Colour = (30, 32, 36)
FAINT: Colour = (120, 124, 130)
IGNORED: tuple[Colour, Colour] = ((236, 236, 236), (208, 208, 208))
"""The two colours of the stripes that stand for ignored pixels."""
BOXED: Colour = (240, 228, 66)
"""Of the boxes that a model was given."""


def write_preview(index: DataIndex, path: Path, num: int = 12) -> Path:
    """Writes a contact sheet of a data set as PNG.

    Args:
        index: the data set.
        path: the file to write; an existing one is replaced as a whole.
        num: how many samples, drawn evenly from all splits.

    Returns:
        The path.
    """
    samples = choose(index, num)
    rows = [samples[i : i + COLUMNS] for i in range(0, len(samples), COLUMNS)]
    drawn = [[triplet(index, sample) for sample in row] for row in rows]
    heights = [max(picture.height for picture in row) for row in drawn]
    legend = _legend_places(index.classes)
    top = MARGIN + 34
    legend_height = (legend[-1][1] + 1) * LEGEND_ROW + GAP * 2
    height = top + legend_height + sum(heights) + len(rows) * (CAPTION + GAP * 2) + MARGIN
    sheet = Pillow.new("RGB", (WIDTH, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN - 6), index.root.resolve().name, fill=INK, font=_font(22))
    sizes = ", ".join(f"{count} {split}" for split, count in index.split_sizes.items())
    subtitle = f"{sizes}   ·   {index.classes.num_classes} classes   ·   read as {index.format}"
    draw.text((WIDTH - MARGIN, MARGIN), subtitle, fill=FAINT, font=_font(14), anchor="ra")
    _draw_legend(draw, index.classes, legend, top)
    y = top + legend_height
    for row, pictures, row_height in zip(rows, drawn, heights, strict=True):
        for column, (sample, picture) in enumerate(zip(row, pictures, strict=True)):
            x = MARGIN + column * (3 * TILE + 2 * GAP + MARGIN)
            caption = f"{sample.name}   {sample.split or ''}"
            draw.text((x, y), _shortened(caption, picture.width, 13), fill=INK, font=_font(13))
            sheet.paste(picture, (x, y + CAPTION))
        y += row_height + CAPTION + GAP * 2
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        sheet.save(temporary, format="PNG")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def colour_mask(mask: Mask, classes: Classes) -> NDArray[np.uint8]:
    """A class map [H, W] as colours [H, W, 3]; ignored pixels are striped grey."""
    table = np.zeros((IGNORE_INDEX + 1, 3), np.uint8)
    table[: classes.num_classes] = classes.palette
    colours: NDArray[np.uint8] = table[mask]
    ignored = mask == IGNORE_INDEX
    if ignored.any():
        rows, columns = np.nonzero(ignored)
        stripes = ((rows + columns) // 4) % 2
        colours[rows, columns] = np.array(IGNORED, np.uint8)[stripes]
    return colours


def overlay(
    image: NDArray[np.uint8], mask: Mask, classes: Classes, strength: float = 0.5
) -> NDArray[np.uint8]:
    """An image [H, W, 3] tinted by its class map [H, W], with the borders of classes drawn white.

    Black classes (usually the background) and ignored pixels are not tinted.
    """
    colours = colour_mask(mask, classes)
    tinted = (mask != IGNORE_INDEX) & colours.any(axis=2)
    mixed = image.astype(np.float32)
    mixed[tinted] = (1 - strength) * mixed[tinted] + strength * colours[tinted]
    border = np.zeros(mask.shape, np.bool_)
    border[:, 1:] |= mask[:, 1:] != mask[:, :-1]
    border[1:] |= mask[1:] != mask[:-1]
    mixed[border] = 255
    result: NDArray[np.uint8] = np.rint(mixed).astype(np.uint8)
    return result


def outline_boxes(picture: NDArray[np.uint8], boxes: ArrayLike, colour: Colour = BOXED) -> NDArray[np.uint8]:
    """A picture [H, W, 3] with the rims of boxes drawn in one colour.

    Args:
        picture: is left as it is.
        boxes: [N, 4] left, top, right, bottom in pixels; what lies beyond the picture is not drawn.
        colour: of the rims.
    """
    drawn = Pillow.fromarray(picture)
    draw = ImageDraw.Draw(drawn)
    for left, top, right, bottom in np.rint(np.asarray(boxes, np.float64)).astype(int).reshape(-1, 4):
        draw.rectangle((int(left), int(top), int(right), int(bottom)), outline=colour)
    return np.array(drawn)


def choose(index: DataIndex, num: int) -> list[Sample]:
    """Samples drawn evenly from every split; small splits are shown as well."""
    splits = [split for split in SPLITS if index.split(split)]
    chosen: list[Sample] = []
    for place, split in enumerate(splits):
        own = [sample for sample in index.split(split) if sample.trained] or index.split(split)
        count = min(len(own), max(1, (num - len(chosen)) // (len(splits) - place)))
        chosen += [own[i * len(own) // count] for i in range(count)]
    return chosen[:num]


def triplet(index: DataIndex, sample: Sample) -> Pillow.Image:
    """Image, mask in colours and both together beside each other; where they cannot be read, the reason."""
    try:
        image = _eight_bit(index.reader.image(sample))
        mask = index.reader.mask(sample)
    except DataError as error:
        return _failure(error.message.rpartition("/")[2])
    scale = min(TILE / image.shape[1], 1.5 * TILE / image.shape[0])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    small = Pillow.fromarray(image).resize(size, Pillow.Resampling.LANCZOS)
    small_mask = np.asarray(Pillow.fromarray(mask).resize(size, Pillow.Resampling.NEAREST))
    pictures = [
        small,
        Pillow.fromarray(colour_mask(small_mask, index.classes)),
        Pillow.fromarray(overlay(np.asarray(small), small_mask, index.classes)),
    ]
    strip = Pillow.new("RGB", (3 * TILE + 2 * GAP, size[1]), PAPER)
    for place, picture in enumerate(pictures):
        strip.paste(picture, (place * (TILE + GAP), 0))
    return strip


def _failure(message: str) -> Pillow.Image:
    strip = Pillow.new("RGB", (3 * TILE + 2 * GAP, 60), (250, 225, 222))
    ImageDraw.Draw(strip).text(
        (12, 20), _shortened(message, strip.width - 24, 13), fill=(150, 30, 20), font=_font(13)
    )
    return strip


def _eight_bit(image: Image) -> NDArray[np.uint8]:
    if image.shape[2] != 3:
        # People see three: the first ones, or one in grey.
        image = image[:, :, [0, 1, 2] if image.shape[2] > 3 else [0, 0, 0]]
    if image.dtype == np.uint8:
        return image
    # Scientific images often use a small part of their range; the sheet shows all of it.
    values = image.astype(np.float32)
    low, high = (float(v) for v in np.percentile(values, (0.5, 99.5)))
    scaled = np.clip((values - low) / max(high - low, 1e-6), 0, 1) * 255
    result: NDArray[np.uint8] = scaled.astype(np.uint8)
    return result


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _shortened(text: str, width: int, size: int) -> str:
    font = _font(size)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def _legend_labels(classes: Classes) -> list[tuple[str, Colour | None]]:
    labels: list[tuple[str, Colour | None]] = list(zip(classes.names, classes.palette, strict=True))
    return [*labels[:60], ("ignored", None)]


def _legend_places(classes: Classes) -> list[tuple[int, int]]:
    """Place in pixels and row of every entry of the legend."""
    places = []
    x, row = MARGIN, 0
    for name, _ in _legend_labels(classes):
        width = 16 + 6 + round(_font(13).getlength(name)) + 20
        if x + width > WIDTH - MARGIN and x > MARGIN:
            x, row = MARGIN, row + 1
        places.append((x, row))
        x += width
    return places


def _draw_legend(
    draw: ImageDraw.ImageDraw, classes: Classes, places: Sequence[tuple[int, int]], top: int
) -> None:
    for (name, colour), (x, row) in zip(_legend_labels(classes), places, strict=True):
        y = top + row * LEGEND_ROW
        box = (x, y, x + 15, y + 15)
        draw.rectangle(box, fill=colour or IGNORED[0], outline=FAINT)
        if colour is None:
            for offset in (4, 10, 16):
                draw.line(
                    (x + max(offset - 14, 1), y + min(offset, 14), x + min(offset, 14), y + 1), IGNORED[1], 2
                )
        draw.text((x + 22, y), name, fill=INK, font=_font(13))
