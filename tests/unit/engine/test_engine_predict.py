"""Masks and overlays: names, palettes, folders, and files that cannot be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from segtune.data.base import Classes
from segtune.data.transforms import to_tensor
from segtune.engine.predict import Prediction, find_images, output_names, predict_files, save_mask
from segtune.engine.reporter import Reporter
from segtune.engine.run import LoadedRun, load_run
from segtune.errors import SegtuneError, UsageError
from tests.support import scene


class Notes(Reporter):
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.done: list[tuple[int, int]] = []

    def note(self, *lines: str) -> None:
        self.lines += lines

    def evaluating(self, done: int, total: int) -> None:
        self.done.append((done, total))


@pytest.fixture(scope="module")
def run(tiny_run: Path) -> LoadedRun:
    return load_run(tiny_run)


def write(path: Path, seed: int = 0, size: tuple[int, int] = (48, 64)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(scene(seed, size)[0]).save(path)
    return path


def predict(run: LoadedRun, inputs: list[Path], out: Path, **options: Any) -> list[Prediction]:
    return list(predict_files(run, inputs, out, **options))


def test_masks_keep_classes_and_palette(run: LoadedRun, tmp_path: Path) -> None:
    image = write(tmp_path / "in" / "a.png", size=(37, 53))
    (made,) = predict(run, [image], tmp_path / "out")
    assert made == Prediction(
        image=image, mask=tmp_path / "out" / "a.png", overlay=tmp_path / "out" / "a_overlay.png"
    )
    with Image.open(made.mask) as mask:
        assert mask.mode == "P"
        assert mask.size == (53, 37)
        got = np.array(mask)
        palette = mask.getpalette()
        assert palette is not None
        assert [tuple(palette[3 * k : 3 * k + 3]) for k in range(3)] == list(run.description.palette)
    with torch.no_grad():
        want = run.tunable.model(to_tensor(scene(0, (37, 53))[0])[None]).logits.argmax(1)[0]
    assert np.array_equal(got, want.numpy())
    assert made.overlay is not None
    with Image.open(made.overlay) as picture:
        assert picture.size == (53, 37)
        assert picture.mode == "RGB"


def test_every_class_survives_the_file(tmp_path: Path) -> None:
    classes = np.arange(256, dtype=np.uint8).reshape(16, 16)
    palette = Classes(names=tuple(map(str, range(200))), palette=tuple((k, 0, 255 - k) for k in range(200)))
    save_mask(tmp_path / "m.png", classes, palette)
    with Image.open(tmp_path / "m.png") as mask:
        assert np.array_equal(np.array(mask), classes)
        colours = np.array(mask.convert("RGB")).reshape(-1, 3)
    assert [tuple(map(int, c)) for c in colours[:200]] == list(palette.palette)


def test_folders_keep_their_structure(run: LoadedRun, tmp_path: Path) -> None:
    for name in ("a.png", "sub/a.png", "sub/deep/b.tif"):
        write(tmp_path / "in" / name)
    made = predict(run, [tmp_path / "in"], tmp_path / "out", overlays=False)
    assert [p.mask.relative_to(tmp_path / "out").as_posix() for p in made] == [
        "a.png",
        "sub/a.png",
        "sub/deep/b.png",
    ]
    assert all(p.overlay is None for p in made)
    assert sum(1 for p in (tmp_path / "out").rglob("*") if p.is_file()) == 3


def test_equal_stems_get_names_of_their_own(run: LoadedRun, tmp_path: Path) -> None:
    paths = [write(tmp_path / "in" / name, seed) for seed, name in enumerate(("a.png", "a.tif", "b.png"))]
    made = predict(run, [tmp_path / "in"], tmp_path / "out")
    assert sorted(p.mask.name for p in made) == ["a_png.png", "a_tif.png", "b_png.png"]
    assert [p.image for p in made] == paths
    one = write(tmp_path / "one" / "x.png")
    two = write(tmp_path / "two" / "x.png")
    made = predict(run, [one, two], tmp_path / "out2")
    assert [p.mask.name for p in made] == ["00000_x_png.png", "00001_x_png.png"]


def test_an_overlay_never_has_the_name_of_a_mask() -> None:
    found = [(Path(n), Path(n)) for n in ("a.png", "a_overlay.png")]
    names = output_names(found)
    files = [f"{n}{end}" for n in names for end in (".png", "_overlay.png")]
    assert len(set(files)) == 4


def test_unreadable_images_are_left_out_and_named(run: LoadedRun, tmp_path: Path) -> None:
    good = write(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "b.png").write_bytes(good.read_bytes()[:50])
    Image.fromarray(scene(0)[0][..., 0]).save(tmp_path / "in" / "c.png")
    write(tmp_path / "in" / "d.png")
    notes = Notes()
    made = predict(run, [tmp_path / "in"], tmp_path / "out", reporter=notes)
    names = [p.image.name for p in made]
    left_out = [line for line in notes.lines if line.startswith("left out: ")]
    assert "b.png" in left_out[0]
    assert set(names) | {name for name in ("b.png", "c.png") if any(name in line for line in left_out)} == {
        "a.png", "b.png", "c.png", "d.png",
    }  # fmt: skip
    assert not (tmp_path / "out" / "b.png").exists()


def test_nothing_that_can_be_predicted(run: LoadedRun, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(SegtuneError, match="none of the 1 images could be predicted"):
        predict(run, [tmp_path / "a.png"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="there is no image in"):
        predict(run, [tmp_path / "empty"], tmp_path / "out")
    with pytest.raises(UsageError, match="there is no file or folder"):
        predict(run, [tmp_path / "missing.png"], tmp_path / "out")


def test_an_image_is_never_replaced(run: LoadedRun, tmp_path: Path) -> None:
    image = write(tmp_path / "in" / "a.png")
    content = image.read_bytes()
    for inputs in ([image], [tmp_path / "in"]):
        with pytest.raises(UsageError, match="would replace an image") as caught:
            predict(run, inputs, tmp_path / "in")
        assert "--out" in str(caught.value.hint)
    assert image.read_bytes() == content
    assert [p.name for p in (tmp_path / "in").iterdir()] == ["a.png"]


def test_jpeg_and_its_mask_may_share_a_folder(run: LoadedRun, tmp_path: Path) -> None:
    image = write(tmp_path / "a.jpg")
    (made,) = predict(run, [image], tmp_path)
    assert made.mask == tmp_path / "a.png"


def test_results_inside_of_the_input_are_no_input(
    run: LoadedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "in" / "a.png")
    out = tmp_path / "in" / "masks"
    for _ in range(2):
        assert [p.image.name for p in predict(run, [tmp_path / "in"], out)] == ["a.png"]
    monkeypatch.chdir(tmp_path)
    assert len(find_images([Path("in")], out)) == 1
    assert len(find_images([out], out)) == 2


def test_batches_make_the_same_masks(run: LoadedRun, tmp_path: Path) -> None:
    for number, size in enumerate([(48, 64), (48, 64), (40, 64), (48, 64), (48, 64)]):
        write(tmp_path / "in" / f"{number}.png", number, size)
    notes = Notes()
    one = predict(run, [tmp_path / "in"], tmp_path / "one")
    two = predict(run, [tmp_path / "in"], tmp_path / "two", batch_size=2, reporter=notes)
    for a, b in zip(one, two, strict=True):
        assert a.mask.read_bytes() == b.mask.read_bytes()
    assert notes.done[-1] == (5, 5)
