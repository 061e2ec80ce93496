"""Masks for rasters of any size: GeoTIFF files in the place of the raster, streamed in windows.

Windows lie where `engine/infer.py` would lay them and are blended with the same weights. A raster is
worked through in bands from top to bottom, as wide as the memory for one row of windows
allows; windows on the border of two bands are predicted for both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PillowImage
from torch import Tensor

from segtune.data.base import Classes
from segtune.data.channels import ChannelRule
from segtune.data.preview import overlay
from segtune.data.raster import (
    CACHE,
    WHOLE_PIXELS,
    Window,
    import_rasterio,
    is_raster,
    num_channels,
    open_raster,
    quiet,
    read_window,
)
from segtune.data.transforms import to_tensor
from segtune.engine.files import write_with
from segtune.engine.infer import Inference, InferenceSettings, window_size, window_starts, window_weights
from segtune.engine.polygons import import_pyogrio, write_polygons
from segtune.engine.predict import Prediction, display, find_images, output_names, predict_files
from segtune.engine.reporter import Reporter
from segtune.engine.run import LoadedRun
from segtune.errors import DataError, SegtuneError, UsageError
from segtune.types import IGNORE_INDEX

BLOCK = 256
"""Height and width, in pixels, of the blocks that the result is stored in."""
MEMORY = 256 * 2**20
"""Bytes that one row of windows may take."""
PREVIEW = 2048
"""Largest height and width of an overlay, in pixels."""

Part = tuple[int, int, NDArray[np.uint8]]
"""First row, first column and classes [h, w] of a finished part."""


@dataclass(frozen=True, kw_only=True)
class RasterPrediction(Prediction):
    """The files made for one raster."""

    polygons: Path | None


def predict_images(
    run: LoadedRun,
    inputs: Sequence[Path],
    out: Path,
    *,
    settings: InferenceSettings,
    overlays: bool = True,
    batch_size: int = 1,
    prompts: Path | None = None,
    polygons: bool = False,
    reporter: Reporter | None = None,
) -> Iterator[Prediction]:
    """Predicts a mask for each image: rasters in windows, all others with `predict_files`.

    Args:
        run: a loaded run.
        inputs: files and folders.
        out: folder for NAME.tif of a raster (with its coordinates), NAME.png of an image, and overlays.
        settings: how images are fed.
        overlays: write the pictures for people too.
        batch_size: windows, or images of equal size, that enter the model at once.
        prompts: of images, for models that are prompted.
        polygons: write the areas of a raster's classes as NAME.gpkg too.
        reporter: hears about progress and about files that could not be read.

    Yields:
        The files of each raster, then of each image.

    Raises:
        UsageError: there is nothing to predict, no raster to draw polygons from, or a result would replace an
            input.
        SegtuneError: no raster at all could be predicted.
        MissingExtraError: the extra `geo` is not installed.
    """
    reporter = reporter or Reporter()
    found = find_images(inputs, out)
    # Prompts are pixels of an image that the model sees whole.
    prompted = prompts is not None or bool(run.tunable.model.prompted)
    rasters = [] if prompted else [path for path, _ in found if is_raster(path)]
    if polygons and not rasters:
        raise UsageError(
            "polygons are drawn for GeoTIFF files, and there is none among the images"
            + (" that a prompted model could take" if prompted else ""),
            hint="leave --polygons out",
        )
    if rasters:
        import_rasterio("predicting GeoTIFF files")
    if polygons:
        import_pyogrio()
    names = dict(zip((path for path, _ in found), output_names(found), strict=True))
    inference = Inference(run.tunable.model, settings)
    targets = {path: _targets(out / names[path]) for path in rasters}
    _keep_sources([path for path, _ in found], targets.values())
    failures: list[str] = []
    for path in rasters:
        try:
            yield _predict_raster(
                run, inference, path, out / names[path], overlays, polygons, batch_size, reporter
            )
        except DataError as error:
            failures.append(str(error))
            reporter.note(f"left out: {failures[-1]}")
    if rasters and len(failures) == len(found):
        raise SegtuneError(f"none of the {len(found)} images could be predicted: {failures[0]}")
    if len(rasters) < len(found):
        yield from predict_files(
            run,
            inputs,
            out,
            settings=settings,
            overlays=overlays,
            batch_size=batch_size,
            prompts=prompts,
            reporter=reporter,
            leave=frozenset(rasters),
        )


def _targets(stem: Path) -> tuple[Path, Path, Path]:
    """Mask, overlay and polygons."""
    return (
        stem.with_name(f"{stem.name}.tif"),
        stem.with_name(f"{stem.name}_overlay.png"),
        stem.with_name(f"{stem.name}.gpkg"),
    )


def _keep_sources(sources: Sequence[Path], targets: Any) -> None:
    """Refuses a folder in which a result would replace one of the images."""
    resolved = {path.resolve() for path in sources}
    for target in (target for several in targets for target in several):
        if target.resolve() in resolved:
            raise UsageError(
                f"the result {target} would replace an image of the same name",
                hint="give another folder with --out",
            )


def _predict_raster(
    run: LoadedRun,
    inference: Inference,
    path: Path,
    stem: Path,
    overlays: bool,
    polygons: bool,
    batch_size: int,
    reporter: Reporter,
) -> RasterPrediction:
    settings, classes = inference.settings, run.description.classes
    mask, picture, areas = _targets(stem)
    wanted = run.tunable.model.input_spec.channels
    rule = ChannelRule(bands=settings.bands, value_range=settings.value_range)
    with open_raster(path) as raster:
        given = rule.num_channels(num_channels(raster))
        if given != wanted:
            raise DataError(
                f"{path} gives {given} channels, the model takes {wanted}",
                hint="data.bands of the run says which channels are taken",
            )

        def write(temporary: Path) -> None:
            parts = raster_parts(inference, raster, path, rule, batch_size=batch_size, reporter=reporter)
            _write_mask(temporary, raster, parts, classes)

        write_with(mask, write)
        if overlays:
            whole = Window(0, 0, raster.height, raster.width)
            scale = max(1.0, max(raster.shape) / PREVIEW)
            size = (max(1, round(raster.height / scale)), max(1, round(raster.width / scale)))
            image, _ = read_window(raster, whole, rule, path, size)
            with open_raster(mask) as made:
                small = made.read(1, out_shape=size)
            drawn = overlay(display(image), small, classes)
            write_with(picture, PillowImage.fromarray(drawn).save)
    if polygons:
        write_with(areas, lambda temporary: write_polygons(mask, temporary, classes))
    return RasterPrediction(
        image=path,
        mask=mask,
        overlay=picture if overlays else None,
        polygons=areas if polygons else None,
    )


def raster_parts(
    inference: Inference,
    raster: Any,
    path: Path,
    rule: ChannelRule,
    *,
    batch_size: int = 1,
    memory: int = MEMORY,
    reporter: Reporter | None = None,
) -> Iterator[Part]:
    """The classes of a raster, part by part: bands from left to right, each from top to bottom.

    Args:
        inference: the model with its way of being fed.
        raster: open for reading.
        path: of the raster, for messages.
        rule: which channels.
        batch_size: windows that enter the model at once.
        memory: bytes that one row of windows may take.
        reporter: hears about progress.

    Yields:
        Parts that together cover the raster once. Pixels that hold nothing are ignored ones.

    Raises:
        UsageError: the settings take images whole, and the raster is too large for that.
        DataError: the raster cannot be read.
    """
    reporter = reporter or Reporter()
    settings = inference.settings
    height, width = raster.shape
    rows, columns = window_size(settings, height, width)
    if settings.resize is not None or (rows, columns) == (height, width):
        if height * width > WHOLE_PIXELS:
            raise UsageError(
                f"{path} has {width} x {height} pixels, too many for an image that is taken whole",
                hint="--set data.window=1024,1024 --set data.resize=null takes it in windows",
            )
        image, valid = read_window(raster, Window(0, 0, height, width), rule, path)
        whole = inference.classes(to_tensor(image)[None])[0].numpy().astype(np.uint8)
        whole[~valid] = IGNORE_INDEX
        reporter.evaluating(1, 1)
        yield 0, 0, whole
        return
    tops = window_starts(height, rows, settings.overlap)
    lefts = window_starts(width, columns, settings.overlap)
    passes = [_Pass(lefts, mirrored=False)]
    if settings.flip_tta:
        passes.append(_Pass([width - left - columns for left in lefts], mirrored=True))
    band = band_width(raster, rows, inference.model.num_classes * len(passes), memory, columns)
    bands = [(left, min(left + band, width)) for left in range(0, width, band)]
    total = len(tops) * sum(len(one.inside(left, right, columns)) for left, right in bands for one in passes)
    done = 0
    weight = window_weights(rows, columns, settings.overlap).to(inference.device)
    for left, right in bands:
        own = [(one, one.inside(left, right, columns)) for one in passes]
        first = min(start for _, starts in own for start in starts)
        last = max(start for _, starts in own for start in starts) + columns
        sums = [_Sum(inference, rows, left, right, weight) for _ in own]
        for top, bottom in zip(tops, [*tops[1:], height], strict=True):
            image, valid = read_window(raster, Window(top, first, rows, last - first), rule, path)
            for (one, starts), target in zip(own, sums, strict=True):
                full = [s for s in starts if valid[:, s - first : s - first + columns].any()]
                for place in range(0, len(full), batch_size):
                    batch = full[place : place + batch_size]
                    images = torch.stack(
                        [to_tensor(image[:, s - first : s - first + columns]) for s in batch]
                    )
                    target.add(batch, one.probabilities(inference, images))
                done += len(starts)
                reporter.evaluating(done, total)
            ready = bottom - top
            mean = sum((target.take(ready) for target in sums[1:]), sums[0].take(ready))
            classes = mean.argmax(dim=0).cpu().numpy().astype(np.uint8)
            classes[~valid[:ready, left - first : right - first]] = IGNORE_INDEX
            yield top, left, classes


@dataclass(frozen=True)
class _Pass:
    """Windows of the raster, or of its mirror image: their first columns in the raster."""

    lefts: Sequence[int]
    mirrored: bool

    def inside(self, left: int, right: int, columns: int) -> list[int]:
        """First columns of the windows that reach into a band."""
        return [start for start in self.lefts if start < right and start + columns > left]

    def probabilities(self, inference: Inference, images: Tensor) -> Tensor:
        """Of windows [B, C, h, w] of the raster, the right way round."""
        if self.mirrored:
            return inference.window(images.flip(-1)).flip(-1)
        return inference.window(images)


class _Sum:
    """Weighted probabilities of one row of windows within a band; what is finished is taken off its top."""

    def __init__(self, inference: Inference, rows: int, left: int, right: int, weight: Tensor) -> None:
        self.left, self.right, self.weight = left, right, weight
        device = inference.device
        self.total = torch.zeros(inference.model.num_classes, rows, right - left, device=device)
        self.weights = torch.zeros(rows, right - left, device=device)

    def add(self, starts: Sequence[int], probabilities: Tensor) -> None:
        """Adds windows by their first columns in the raster."""
        columns = self.weight.shape[1]
        for start, part in zip(starts, probabilities, strict=True):
            begin, end = max(start, self.left), min(start + columns, self.right)
            source, target = slice(begin - start, end - start), slice(begin - self.left, end - self.left)
            self.total[..., target] += part[..., source] * self.weight[:, source]
            self.weights[:, target] += self.weight[:, source]

    def take(self, rows: int) -> Tensor:
        """Probabilities [K, rows, w]; where no window was predicted, any numbers."""
        finished = self.total[:, :rows] / self.weights[:rows].clamp(min=1e-12)
        for tensor in (self.total, self.weights):
            rest = tensor[..., rows:, :].clone()
            tensor.zero_()
            tensor[..., : rest.shape[-2], :] = rest
        return finished


def band_width(raster: Any, rows: int, num_maps: int, memory: int, columns: int) -> int:
    """Width of a band in pixels, a multiple of the blocks', so that a row of windows fits into memory.

    Args:
        raster: open; its channels are held twice, as they are and as an image.
        rows: height of the windows.
        num_maps: maps of float32 that are summed up, each with a copy.
        memory: in bytes.
        columns: width of the windows; a band is not narrower.
    """
    stored = sum(np.dtype(kind).itemsize for kind in raster.dtypes)
    fitting = memory // (rows * (8 * (num_maps + 1) + 2 * stored))
    blocks: int = max(math.ceil(columns / BLOCK), fitting // BLOCK)
    return blocks * BLOCK


def _write_mask(path: Path, raster: Any, parts: Iterator[Part], classes: Classes) -> None:
    """Writes the parts of a raster's classes as a GeoTIFF in the raster's place."""
    rasterio = import_rasterio()
    colours = {label: (*colour, 255) for label, colour in enumerate(classes.palette)}
    points, points_crs = raster.gcps
    profile = {
        "driver": "GTiff",
        "height": raster.height,
        "width": raster.width,
        "count": 1,
        "dtype": "uint8",
        "nodata": classes.ignore_index,
        "tiled": True,
        "blockxsize": BLOCK,
        "blockysize": BLOCK,
        "compress": "deflate",
        "BIGTIFF": "IF_SAFER",
        "crs": points_crs if points else raster.crs,
    }
    if points:
        profile["gcps"] = points
    elif not raster.transform.is_identity:
        profile["transform"] = raster.transform
    with rasterio.Env(GDAL_CACHEMAX=CACHE), quiet(), rasterio.open(path, "w", **profile) as file:
        file.write_colormap(1, colours)
        held = np.zeros((0, 0), np.uint8)
        for top, left, part in parts:
            start = top - len(held)
            held = part if not len(held) else np.concatenate([held, part])
            end = top + len(part)
            # Blocks are compressed once each, so that the file holds no waste.
            ready = len(held) if end == raster.height else len(held) // BLOCK * BLOCK
            place = ((start, start + ready), (left, left + part.shape[1]))
            if ready:
                file.write(held[:ready], 1, window=rasterio.windows.Window.from_slices(*place))
            held = held[ready:]
