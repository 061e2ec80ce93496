"""Reads image and mask files into arrays, whatever their format, and says which file is at fault.

Pillow reads everything but TIFF files that it refuses or would change: those tifffile reads. Images and
masks are turned upright by their EXIF tag. Only the first frame of a file with several is read.
"""

from __future__ import annotations

import io
import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, TiffImagePlugin, UnidentifiedImageError
from PIL import Image as Pillow

from segtune.data.base import Colour, Image
from segtune.data.channels import ChannelRule
from segtune.data.mask_values import mask_values
from segtune.errors import DataError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp"})
"""Endings, in lower case, of the files that count as images."""
MAX_PIXELS = 1_000_000_000
"""Files whose header claims more pixels than this are refused before anything is decoded."""

MAX_BYTES = 8_000_000_000
"""The same for TIFF files that would take more bytes in memory: they state channels and bits freely."""

TIFF_PHOTOMETRICS = (1, 2)
"""What tifffile may read: grey where black is 0, and RGB; the rest needs a conversion."""
LOSSY = frozenset({"JPEG", "MPO", "WEBP"})

PLAIN = ChannelRule()
_HEADER = threading.Lock()
# Both report what they find odd through logging; without a handler that ends on stderr.
for _name in ("tifffile", "PIL.TiffImagePlugin"):
    logging.getLogger(_name).addHandler(logging.NullHandler())

_TURNS: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[::-1],
}
"""What makes an array upright, by EXIF orientation."""

Item = TypeVar("Item")
Result = TypeVar("Result")
Progress = Callable[[int, int], None]
"""Called with the number of finished items and their total."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a file says about itself before its pixels are decoded."""

    height: int
    """In pixels, upright."""
    width: int
    """In pixels, upright."""
    mode: str
    """Pillow's mode ("L", "RGB", "P", ...), or "array" for TIFF that only tifffile reads."""
    format: str
    rotated: bool
    """Whether the EXIF tag asks for the image to be turned or mirrored."""
    frames: int
    channels: int


def read_image(path: Path, rule: ChannelRule = PLAIN) -> Image:
    """Reads an image as [H, W, C], uint8 or uint16 (or float32 within [0, 1]).

    Args:
        path: of the file.
        rule: which channels; as it stands grey is repeated three times and an alpha channel dropped.

    Raises:
        DataError: the file is missing, empty, damaged, too large or of a kind that is not read.
    """
    return rule.apply(_read(path, _image_array), path)


def decode_image(content: bytes, name: Path, rule: ChannelRule = PLAIN) -> Image:
    """Reads an image out of bytes that are no file of their own.

    Args:
        content: what an image file would hold.
        name: of what holds the bytes, for messages.
        rule: as for `read_image`.

    Raises:
        DataError: as `read_image`.
    """
    array = _decode(content, name, lambda image: _upright(image, _image_array))
    return rule.apply(array, name)


def decode_mask(content: bytes, name: Path) -> MaskFile:
    """Reads a mask out of bytes; arguments as `decode_image`, errors as `read_mask_file`."""
    return _decode(content, name, lambda image: _mask_file(image, name))


def _decode(content: bytes, name: Path, use: Callable[[Pillow.Image], Result]) -> Result:
    try:
        with ExitStack() as stack:
            with _quiet_pillow():
                image = stack.enter_context(Pillow.open(io.BytesIO(content)))
            _check_pixels(name, *image.size)
            return use(image)
    except DataError:
        raise
    except Exception as error:  # decoders raise anything on foreign bytes
        raise _unreadable(name, error) from None


def _mask_file(image: Pillow.Image, path: Path) -> MaskFile:
    array = _upright(image, _mask_array)
    palette = _palette(image) if array.ndim == 2 else None
    if palette is not None and all(colour == (i, i, i) for i, colour in enumerate(palette)):
        palette = None
    return MaskFile(values=mask_values(array, path), palette=palette, lossy=image.format in LOSSY)


@dataclass(frozen=True, kw_only=True)
class MaskFile:
    """What a mask file stores, without any meaning given to it."""

    values: NDArray[Any]
    """[H, W] grey values or palette indices, uint8 or uint16 (1-bit files give 0 and 255), or
    [H, W, 3] uint8 colours."""
    palette: tuple[Colour, ...] | None
    """Colours by index, where the values are palette indices."""
    lossy: bool
    """Whether values may differ a little from those that were stored."""


ReadMask = Callable[[Path], MaskFile]
"""Takes what is stored out of a mask file."""


def read_mask_file(path: Path) -> MaskFile:
    """Reads what a mask file stores, upright.

    GIF files give colours, never indices, since their writers number colours freely; palettes
    that are a plain grey ramp count as grey.

    Raises:
        DataError: as `read_image`, and where the mask holds fractions or negative numbers.
    """

    def use_tiff(path: Path) -> MaskFile:
        return MaskFile(values=mask_values(_tiff_array(path), path), palette=None, lossy=False)

    return _open(path, lambda image: _mask_file(image, path), use_tiff)


def read_mask_values(path: Path) -> NDArray[Any]:
    """The stored values of a mask: [H, W] grey values or palette indices, or [H, W, 3] colours."""
    return read_mask_file(path).values


def read_header(path: Path) -> Header:
    """Reads a file's header; no pixel is decoded.

    Raises:
        DataError: the file is missing, empty, too large or no image.
    """

    def header(image: Pillow.Image) -> Header:
        orientation = _orientation(image)
        width, height = image.size
        if orientation >= 5:
            width, height = height, width
        return Header(
            height=height,
            width=width,
            mode=image.mode,
            format=image.format or "",
            rotated=orientation > 1,
            frames=int(getattr(image, "n_frames", 1)),
            channels=3 if image.mode == "P" else len(image.getbands()),
        )

    return _open(path, header, _tiff_header)


def image_size(path: Path) -> tuple[int, int]:
    """Height and width in pixels of the upright image, from the file's header."""
    header = read_header(path)
    return header.height, header.width


def map_threads(
    function: Callable[[Item], Result], items: Iterable[Item], progress: Progress | None = None
) -> list[Result]:
    """Applies a function to every item in threads; results in the order of the items."""
    items = list(items)
    results = []
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as threads:
        for result in threads.map(function, items):
            results.append(result)
            if progress is not None:
                progress(len(results), len(items))
    return results


def _read(path: Path, convert: Callable[[Pillow.Image], NDArray[Any]]) -> NDArray[Any]:
    return _open(path, lambda image: _upright(image, convert), _tiff_array)


def _open(path: Path, use: Callable[[Pillow.Image], Result], use_tiff: Callable[[Path], Result]) -> Result:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}", hint="check the path and its rights") from None
    if size == 0:
        raise DataError(f"{path}: the file is empty (0 bytes)", hint="copy it again, or remove it")
    try:
        with ExitStack() as stack:
            with _quiet_pillow():
                image = stack.enter_context(Pillow.open(path))
            _check_pixels(path, *image.size)
            if not _needs_tifffile(image):
                return use(image)
    except DataError:
        raise
    except Exception as error:  # decoders raise anything on foreign bytes
        if path.suffix.lower() not in {".tif", ".tiff"}:
            raise _unreadable(path, error) from None
    try:
        return use_tiff(path)
    except DataError:
        raise
    except Exception as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> DataError:
    if isinstance(error, UnidentifiedImageError):
        reason = "this is no image of a known kind"
    else:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
    return DataError(
        f"{path}: the image cannot be read: {reason}",
        hint="the file may be truncated or have a wrong ending: copy or save it again, or remove it",
    )


def _check_pixels(path: Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise DataError(
            f"{path}: the header claims {width} x {height} pixels, more than {MAX_PIXELS:,}",
            hint="cut the image into tiles",
        )
    if width * height == 0:
        raise DataError(f"{path}: the image has no pixels", hint="remove it")


@contextmanager
def _quiet_pillow() -> Iterator[None]:
    """Without Pillow's own size limit and its warnings of odd headers."""
    # Both switches are global to the process, hence the lock; nothing is decoded inside.
    with _HEADER, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        limit, Pillow.MAX_IMAGE_PIXELS = Pillow.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Pillow.MAX_IMAGE_PIXELS = limit


def _needs_tifffile(image: Pillow.Image) -> bool:
    """Whether Pillow would cut a TIFF down to 8 bits, turn it wrongly, or find it too large."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return False
    # Pillow garbles uncompressed files that lie on their side.
    turned = image.tag_v2.get(ExifTags.Base.Orientation, 1) != 1
    deep = max(image.tag_v2.get(ExifTags.Base.BitsPerSample, (8,))) > 8 and image.mode in {"RGB", "RGBA"}
    large = image.width * image.height > (Pillow.MAX_IMAGE_PIXELS or MAX_PIXELS)
    return bool(turned or deep or large)


def _orientation(image: Pillow.Image) -> int:
    """The EXIF orientation, 1..8, as far as it is known before or after decoding."""
    if image.format == "PNG" and "exif" not in image.info:
        # Pillow would decode the whole file to look for a chunk behind the pixels.
        return 1
    with _quiet_pillow():
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    return orientation if orientation in _TURNS else 1


def _upright(image: Pillow.Image, convert: Callable[[Pillow.Image], NDArray[Any]]) -> NDArray[Any]:
    image.load()
    return _TURNS[_orientation(image)](convert(image))


def _palette(image: Pillow.Image) -> tuple[Colour, ...] | None:
    if image.mode != "P" or image.palette is None:
        return None
    colours = image.getpalette("RGB") or []
    return tuple((colours[i], colours[i + 1], colours[i + 2]) for i in range(0, len(colours) - 2, 3))


def _image_array(image: Pillow.Image) -> NDArray[Any]:
    if image.mode == "1":
        image = image.convert("L")
    elif image.mode in {"P", "PA"}:
        # By way of RGBA, because Pillow warns of palettes with transparency.
        image = image.convert("RGBA")
    elif image.mode not in {"L", "LA", "RGB", "RGBA", "RGBX", "F"} and not image.mode.startswith("I"):
        image = image.convert("RGB")
    return np.asarray(image)


def _mask_array(image: Pillow.Image) -> NDArray[Any]:
    if image.mode == "PA" or (image.mode == "P" and image.format == "GIF"):
        image = image.convert("RGBA")
    elif image.mode not in {"1", "L", "LA", "P", "RGB", "RGBA", "RGBX", "F"} and not image.mode.startswith(
        "I"
    ):
        image = image.convert("RGB")
    return np.asarray(image)


def _tiff_page(path: Path, stack: ExitStack) -> tuple[Any, int]:
    from tifffile import TiffFile

    page = stack.enter_context(TiffFile(path)).pages.first
    _check_pixels(path, page.imagewidth, page.imagelength)
    depth = max(1, int(page.imagedepth)) * int(page.samplesperpixel) * max(8, int(page.bitspersample)) // 8
    if page.imagewidth * page.imagelength * depth > MAX_BYTES:
        raise DataError(
            f"{path}: the header claims {page.imagewidth} x {page.imagelength} pixels of {depth} bytes each, "
            f"more than {MAX_BYTES:,} bytes",
            hint="cut the image into tiles",
        )
    tag = page.tags.get("Orientation")
    orientation = int(tag.value) if tag is not None else 1
    return page, orientation if orientation in _TURNS else 1


def _tiff_header(path: Path) -> Header:
    with ExitStack() as stack:
        page, orientation = _tiff_page(path, stack)
        height, width = page.imagelength, page.imagewidth
        if orientation >= 5:
            height, width = width, height
        return Header(
            height=int(height),
            width=int(width),
            mode="array",
            format="TIFF",
            rotated=orientation > 1,
            frames=len(page.parent.pages),
            channels=int(page.samplesperpixel),
        )


def _tiff_array(path: Path) -> NDArray[Any]:
    with ExitStack() as stack:
        page, orientation = _tiff_page(path, stack)
        if page.photometric not in TIFF_PHOTOMETRICS:
            raise DataError(
                f"{path}: a TIFF of kind {getattr(page.photometric, 'name', page.photometric)}",
                hint="save it as plain grey or RGB",
            )
        array = np.asarray(page.asarray(maxworkers=1))
        if page.axes == "SYX":
            array = np.moveaxis(array, 0, -1)
        if array.ndim not in (2, 3):
            raise DataError(
                f"{path}: a TIFF of shape {array.shape} ({page.axes})",
                hint="save one flat image for each file",
            )
        return _TURNS[orientation](array)
