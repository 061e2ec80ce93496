"""Rasters of any size: the same classes as from the whole image, in the same place, in bounded memory."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from click.testing import CliRunner
from PIL import Image
from pyogrio.raw import read as read_vector
from rasterio.transform import from_origin

from segtune.cli import cli
from segtune.data.base import Classes
from segtune.data.channels import ChannelRule
from segtune.data.raster import is_raster, open_raster
from segtune.data.transforms import to_tensor
from segtune.engine import raster as module
from segtune.engine.infer import Inference, InferenceSettings
from segtune.engine.polygons import area, well_known_binary, write_polygons
from segtune.engine.predict import Prediction
from segtune.engine.raster import RasterPrediction, band_width, predict_images, raster_parts
from segtune.engine.reporter import Reporter
from segtune.engine.run import LoadedRun, load_run
from segtune.errors import MissingExtraError, SegtuneError, UsageError
from tests.support import scene

CRS = "EPSG:32632"
TRANSFORM = from_origin(500_000, 5_000_000, 0.5, 0.5)


@pytest.fixture(scope="module")
def run(tiny_run: Path) -> LoadedRun:
    return load_run(tiny_run)


def write(path: Path, image: Any, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width, count = image.shape
    profile = {"crs": CRS, "transform": TRANSFORM, "dtype": image.dtype.name} | options
    with rasterio.open(path, "w", driver="GTiff", height=height, width=width, count=count, **profile) as file:
        file.write(np.moveaxis(image, -1, 0))
    return path


def predict(
    run: LoadedRun, inputs: list[Path], out: Path, settings: InferenceSettings | None = None, **options: Any
) -> list[Prediction]:
    return list(predict_images(run, inputs, out, settings=settings or InferenceSettings(), **options))


def whole(run: LoadedRun, image: Any, settings: InferenceSettings) -> Any:
    return Inference(run.tunable.model, settings).classes(to_tensor(image)[None])[0].numpy()


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("size", [(300, 700), (611, 290), (48, 600)])
@pytest.mark.parametrize("memory", [1, 2**28])
def test_parts_equal_the_sliding_window_in_memory(
    run: LoadedRun, tmp_path: Path, flip: bool, size: tuple[int, int], memory: int
) -> None:
    """Also where a row of windows does not fit, so that the raster is worked through in bands."""
    image = scene(3, size)[0]
    settings = InferenceSettings(window=(64, 96), overlap=0.3, flip_tta=flip)
    path = write(tmp_path / "a.tif", image)
    got = np.full(size, 77, np.uint8)
    lefts = set()
    with open_raster(path) as raster:
        for top, left, part in raster_parts(
            Inference(run.tunable.model, settings), raster, path, ChannelRule(), batch_size=3, memory=memory
        ):
            place = got[top : top + part.shape[0], left : left + part.shape[1]]
            assert (place == 77).all()
            place[:] = part
            lefts.add(left)
    assert len(lefts) == (-(-size[1] // 256) if memory == 1 else 1)
    want = whole(run, image, settings)
    assert len(np.unique(want)) > 1
    # Sums of the same numbers in another order may tip a tie.
    assert (got != want).mean() < 1e-4


def test_the_result_lies_where_the_raster_lies(run: LoadedRun, tmp_path: Path) -> None:
    image = scene(1, (300, 520))[0]
    path = write(tmp_path / "in" / "a.tif", image)
    settings = InferenceSettings(window=(128, 128))
    (made,) = predict(run, [path.parent], tmp_path / "out", settings, polygons=True)
    out = tmp_path / "out"
    assert made == RasterPrediction(
        image=path, mask=out / "a.tif", overlay=out / "a_overlay.png", polygons=out / "a.gpkg"
    )
    assert sorted(file.name for file in out.iterdir()) == ["a.gpkg", "a.tif", "a_overlay.png"]
    with rasterio.open(made.mask) as file:
        assert (file.crs, file.transform, file.shape) == (
            rasterio.CRS.from_string(CRS),
            TRANSFORM,
            (300, 520),
        )
        assert (file.count, file.dtypes, file.nodata) == (1, ("uint8",), 255)
        assert file.profile["compress"] == "deflate"
        assert file.block_shapes == [(256, 256)]
        colours = file.colormap(1)
        assert [colours[k][:3] for k in range(3)] == list(run.description.palette)
        got = file.read(1)
    assert (got != whole(run, image, settings)).mean() < 1e-4
    assert made.overlay is not None
    with Image.open(made.overlay) as picture:
        assert picture.size == (520, 300)
    _, _, shapes, fields = read_vector(out / "a.gpkg")
    names, pixels, areas = fields
    for label, name in enumerate(run.description.class_names):
        assert pixels[names == name].sum() == (got == label).sum()
    assert areas == pytest.approx(pixels * 0.25)
    assert len(shapes) == len(names) > 3


def test_what_holds_nothing_stays_nothing_and_is_not_predicted(
    run: LoadedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = scene(1, (256, 512))[0]
    image[image == 0] = 1
    image[:, :300] = 0
    image[10:20, 400:410] = 0
    path = write(tmp_path / "a.tif", image, nodata=0)
    sizes = []
    real = Inference.window
    monkeypatch.setattr(
        Inference, "window", lambda self, images: sizes.append(len(images)) or real(self, images)
    )
    settings = InferenceSettings(window=(64, 64), overlap=0.0)
    (made,) = predict(run, [path], tmp_path / "out", settings)
    with rasterio.open(made.mask) as file:
        got = file.read(1)
    empty = (image == 0).all(axis=-1)
    assert ((got == 255) == empty).all()
    assert sum(sizes) == 4 * 4
    assert (got != whole(run, image, settings))[~empty].mean() < 1e-4


def test_nan_and_bands_and_values(run: LoadedRun, tmp_path: Path) -> None:
    image = scene(1, (100, 150))[0]
    deep = np.concatenate([np.full((100, 150, 1), -5.0), image * 10.0], axis=-1).astype(np.float32)
    deep[:10] = np.nan
    settings = InferenceSettings(window=(64, 64), bands=(1, 2, 3), value_range=(0.0, 2550.0))
    (made,) = predict(run, [write(tmp_path / "a.tif", deep)], tmp_path / "out", settings)
    with rasterio.open(made.mask) as file:
        got = file.read(1)
    assert (got[:10] == 255).all()
    black = image.copy()
    black[:10] = 0
    assert (got != whole(run, black, InferenceSettings(window=(64, 64))))[10:].mean() < 1e-4


def test_images_and_rasters_of_one_folder(run: LoadedRun, tmp_path: Path) -> None:
    write(tmp_path / "in" / "b.tif", scene(1)[0])
    Image.fromarray(scene(2)[0]).save(tmp_path / "in" / "a.png")
    Image.fromarray(scene(3)[0]).save(tmp_path / "in" / "c.tif")
    made = predict(run, [tmp_path / "in"], tmp_path / "out", overlays=False)
    assert [one.mask.name for one in made] == ["b.tif", "a.png", "c.png"]
    assert [one.overlay for one in made] == [None] * 3


def test_large_images_without_coordinates_are_rasters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(scene(0)[0]).save(path)
    assert not is_raster(path)
    monkeypatch.setattr("segtune.data.raster.WHOLE_PIXELS", 1000)
    assert is_raster(path)
    (tmp_path / "b.tif").write_bytes(b"no tiff")
    assert not is_raster(tmp_path / "b.tif")


def test_a_raster_without_coordinates_gives_a_mask_without(
    run: LoadedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(scene(0, (100, 120))[0]).save(tmp_path / "a.tif")
    monkeypatch.setattr("segtune.data.raster.WHOLE_PIXELS", 1000)
    (made,) = predict(run, [tmp_path / "a.tif"], tmp_path / "out", InferenceSettings(window=(64, 64)))
    with open_raster(made.mask) as file:
        assert file.crs is None
        assert file.transform.is_identity


def test_a_raster_that_breaks_off_leaves_nothing(run: LoadedRun, tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", scene(1, (600, 400))[0])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(SegtuneError, match="none of the 1 images"):
        predict(run, [path], tmp_path / "out", InferenceSettings(window=(64, 64)))
    assert list((tmp_path / "out").iterdir()) == []


def test_mistakes(run: LoadedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.tif", scene(1)[0])
    with pytest.raises(UsageError, match="would replace an image"):
        predict(run, [path], tmp_path)
    Image.fromarray(scene(2)[0]).save(tmp_path / "c.png")
    with pytest.raises(UsageError, match="polygons are drawn for GeoTIFF"):
        predict(run, [tmp_path / "c.png"], tmp_path / "out", polygons=True)
    monkeypatch.setattr(module, "WHOLE_PIXELS", 1000)
    with pytest.raises(UsageError, match="too many for an image that is taken whole"):
        predict(run, [path], tmp_path / "out", InferenceSettings(window=None))
    assert not list((tmp_path / "out").iterdir())
    six = write(tmp_path / "six.tif", np.zeros((50, 60, 6), np.uint8))
    with pytest.raises(SegtuneError, match="gives 6 channels, the model takes 3"):
        predict(run, [six], tmp_path / "out")
    monkeypatch.setitem(__import__("sys").modules, "rasterio", None)
    with pytest.raises(MissingExtraError, match=r"segtune\[geo\]"):
        predict(run, [path], tmp_path / "out")


def test_progress_ends_with_the_last_window(run: LoadedRun, tmp_path: Path) -> None:
    heard = []

    class Heard(Reporter):
        def evaluating(self, done: int, total: int) -> None:
            heard.append((done, total))

    path = write(tmp_path / "a.tif", scene(1, (150, 200))[0])
    predict(
        run, [path], tmp_path / "out", InferenceSettings(window=(64, 64), flip_tta=True), reporter=Heard()
    )
    assert heard[-1][0] == heard[-1][1] == 3 * 4 * 2


def test_bands_are_narrower_where_memory_is_short(tmp_path: Path) -> None:
    with rasterio.open(write(tmp_path / "a.tif", np.zeros((9, 9, 3), np.uint8))) as raster:
        assert band_width(raster, 1000, 2, 1000 * (8 * 3 + 6) * 1024, 100) == 1024
        assert band_width(raster, 1000, 2, 1, 300) == 512


def test_holes_are_no_area() -> None:
    outer = [(0.0, 0.0), (0.0, 4.0), (4.0, 4.0), (4.0, 0.0), (0.0, 0.0)]
    hole = [(1.0, 1.0), (2.0, 1.0), (2.0, 2.0), (1.0, 2.0), (1.0, 1.0)]
    assert area([outer, hole]) == 15
    content = well_known_binary([outer, hole])
    assert struct.unpack_from("<BIII", content) == (1, 3, 2, 5)
    assert len(content) == 9 + 2 * 4 + 2 * 5 * 16


def test_polygons_of_degrees_have_no_area_in_metres(tmp_path: Path) -> None:
    mask = np.full((4, 6, 1), 255, np.uint8)
    mask[:2, :3] = 1
    path = write(
        tmp_path / "m.tif", mask, crs="EPSG:4326", transform=from_origin(8, 50, 0.1, 0.1), nodata=255
    )
    classes = Classes(names=("a", "b"), palette=((0, 0, 0), (1, 1, 1)))
    write_polygons(path, tmp_path / "m.gpkg", classes)
    meta, _, _, (names, pixels, areas) = read_vector(tmp_path / "m.gpkg")
    assert meta["crs"] == "EPSG:4326"
    assert list(names) == ["b"]
    assert list(pixels) == [6]
    assert np.isnan(areas).all()


def test_the_command(tiny_run: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", scene(1)[0])
    result = CliRunner().invoke(
        cli, ["predict", str(tiny_run), str(path), "--out", str(tmp_path / "out"), "--polygons", "--json"]
    )
    assert result.exit_code == 0, result.output
    (made,) = json.loads(result.stdout)
    assert made["polygons"] == str(tmp_path / "out" / "a.gpkg")
    assert Path(made["mask"]).is_file()
