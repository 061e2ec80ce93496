"""Georeferenced rasters: tiles, nodata, coordinates, bands; and that ordinary TIFF files are left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from segtune.data.geotiff import GeoTiff
from segtune.data.open import open_data
from segtune.data.settings import DataSettings
from segtune.errors import DataError, MissingExtraError, SettingsError

CRS = "EPSG:32632"
TRANSFORM = from_origin(500_000, 5_000_000, 0.5, 0.5)


def write(path: Path, array: Any, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.asarray(array)
    array = array[..., None] if array.ndim == 2 else array
    height, width, count = array.shape
    profile = {"crs": CRS, "transform": TRANSFORM, "dtype": array.dtype.name} | options
    with rasterio.open(path, "w", driver="GTiff", height=height, width=width, count=count, **profile) as file:
        file.write(np.moveaxis(array, -1, 0))
    return path


def pair(
    root: Path, name: str = "a", *, height: int = 100, width: int = 150, bands: int = 3
) -> tuple[Any, Any]:
    """Writes an image without black pixels and a mask of three classes."""
    random = np.random.default_rng(len(name) + ord(name[0]))
    image = random.integers(1, 255, (height, width, bands), dtype=np.uint8)
    mask = random.integers(0, 3, (height, width), dtype=np.uint8)
    write(root / "images" / f"{name}.tif", image)
    write(root / "masks" / f"{name}.tif", mask)
    return image, mask


def together(index: Any, name: str, read: str, shape: Any) -> Any:
    """The tiles of a raster put together by their place."""
    rows: dict[str, list[Any]] = {}
    for sample in index.samples:
        if sample.group == name:
            rows.setdefault(sample.image.name[:3], []).append(getattr(index.reader, read)(sample))
    whole = np.concatenate([np.concatenate(row, axis=1) for row in rows.values()])
    assert whole.shape[:2] == shape
    return whole


def test_tiles_cover_each_raster_once_and_stay_together(tmp_path: Path) -> None:
    made = {name: pair(tmp_path, name) for name in "abc"}
    index = open_data(tmp_path, DataSettings(options={"tile": 64}))
    assert index.format == "geotiff"
    assert len(index.samples) == 3 * 2 * 3
    for name, (image, mask) in made.items():
        assert np.array_equal(together(index, name, "image", (100, 150)), image)
        assert np.array_equal(together(index, name, "mask", (100, 150)), mask)
        assert len({sample.split for sample in index.samples if sample.group == name}) == 1
    assert {index.reader.image(sample).shape for sample in index.samples} == {(50, 50, 3)}
    assert index.classes.num_classes == 3


def test_nodata_of_image_and_mask_is_ignored_and_empty_tiles_are_left_out(tmp_path: Path) -> None:
    image, mask = pair(tmp_path)
    image[:, :75] = 0
    image[0, 80] = 0
    mask[1, 90] = 9
    write(tmp_path / "images" / "a.tif", image, nodata=0)
    write(tmp_path / "masks" / "a.tif", mask, nodata=9)
    index = open_data(tmp_path, DataSettings(options={"tile": 75}))
    assert [sample.name for sample in index.samples] == ["a/000_001", "a/001_001"]
    assert any("2 that hold nothing are left out" in line for line in index.evidence)
    got = together(index, "a", "mask", (100, 75))
    want = mask[:, 75:].copy()
    want[0, 5] = want[1, 15] = 255
    assert np.array_equal(got, want)
    assert index.classes.num_classes == 3
    assert "few-rasters" in {finding.code for finding in index.findings}


def test_a_background_that_is_called_nodata(tmp_path: Path) -> None:
    _, mask = pair(tmp_path)
    write(tmp_path / "masks" / "a.tif", mask, nodata=0)
    ignored = open_data(tmp_path)
    assert (together(ignored, "a", "mask", mask.shape) == np.where(mask == 0, 255, mask)).all()
    kept = open_data(tmp_path, DataSettings(options={"mask_nodata": "class"}))
    assert (together(kept, "a", "mask", mask.shape) == mask).all()


def test_any_bands_and_types(tmp_path: Path) -> None:
    image, _ = pair(tmp_path, bands=6)
    deep = image.astype(np.float32) * 10 - 100
    write(tmp_path / "images" / "a.tif", deep)
    index = open_data(tmp_path, DataSettings(value_range=(-100, 2450)))
    assert index.channels == 6
    chosen = open_data(tmp_path, DataSettings(bands=(5, 1), value_range=(-100, 2450)))
    assert chosen.channels == 2
    got = chosen.reader.image(chosen.samples[0])
    assert got == pytest.approx(image[:, :, [5, 1]] / 255, abs=1e-6)


@pytest.mark.parametrize(
    "change",
    [{"crs": "EPSG:25832"}, {"transform": from_origin(500_000.2, 5_000_000, 0.5, 0.5)}],
)
def test_a_mask_that_lies_elsewhere_is_refused(tmp_path: Path, change: Any) -> None:
    _, mask = pair(tmp_path)
    write(tmp_path / "masks" / "a.tif", mask, **change)
    with pytest.raises(DataError, match=r"(?s)does not lie where.*image: EPSG:32632.*mask:  EPSG:"):
        open_data(tmp_path)


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    _, mask = pair(tmp_path)
    write(tmp_path / "masks" / "a.tif", mask[:-1])
    with pytest.raises(DataError, match=r"(?s)150 x 100.*150 x 99"):
        open_data(tmp_path)


def test_a_mask_without_coordinates_is_taken_with_a_warning(tmp_path: Path) -> None:
    _, mask = pair(tmp_path)
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        write(tmp_path / "masks" / "a.tif", mask, crs=None, transform=rasterio.Affine.identity())
    assert "mask-without-coordinates" in {finding.code for finding in open_data(tmp_path).findings}


def test_ordinary_files_are_no_rasters(tmp_path: Path, make_folder: Any) -> None:
    root = make_folder([np.eye(24, 32, dtype=np.uint8)] * 2, suffix=".tif")
    assert GeoTiff().detect(root) is None
    for path in (root / "images").iterdir():
        path.with_suffix(".tif").write_bytes(path.read_bytes())
        path.unlink()
    assert GeoTiff().detect(root) is None


def test_rasters_with_a_png_among_them_are_a_folder(tmp_path: Path, write: Any) -> None:
    pair(tmp_path)
    assert GeoTiff().detect(tmp_path) is not None
    write("images/x.png", np.zeros((8, 8, 3), np.uint8))
    write("masks/x.png", np.zeros((8, 8), np.uint8))
    assert GeoTiff().detect(tmp_path) is None


def test_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image, _ = pair(tmp_path)
    with pytest.raises(SettingsError, match="tile"):
        open_data(tmp_path, DataSettings(options={"tile": 1}))
    write(tmp_path / "images" / "a.tif", np.zeros_like(image), nodata=0)
    with pytest.raises(DataError, match="nothing but nodata"):
        open_data(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "rasterio", None)
    with pytest.raises(MissingExtraError, match=r"segtune\[geo\]"):
        open_data(tmp_path)
