"""Whatever bytes the files hold: an error that names the file, or data, and nothing else."""

from __future__ import annotations

import io

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from segtune.data.check import check_data
from segtune.data.description import read_description
from segtune.data.files import image_size, read_image, read_mask_values
from segtune.data.open import open_data
from segtune.errors import SegtuneError

RELAXED = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
PICTURE = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)


def _encoded(suffix: str) -> bytes:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PICTURE).save(
        buffer, format={"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper()), exif=exif
    )
    return buffer.getvalue()


def _deep_tiff() -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, PICTURE.astype(np.uint16), photometric="rgb")
    return buffer.getvalue()


WHOLE = {suffix: _encoded(suffix) for suffix in ("png", "jpg", "tif", "gif", "bmp", "webp")} | {
    "tiff": _deep_tiff()
}


@pytest.mark.parametrize("suffix", WHOLE)
@RELAXED
@given(data=st.data())
def test_damaged_images(tmp_path, suffix, data):
    content = bytearray(WHOLE[suffix])
    for _ in range(data.draw(st.integers(0, 12))):
        # Headers are where the damage is interesting.
        last = data.draw(st.sampled_from([min(80, len(content) - 1), len(content) - 1]))
        content[data.draw(st.integers(0, last))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    _read_all(tmp_path / f"a.{suffix}", bytes(content))


@RELAXED
@given(content=st.binary(max_size=400), suffix=st.sampled_from(sorted(WHOLE)), whole=st.booleans())
def test_random_bytes(tmp_path, content, suffix, whole):
    _read_all(tmp_path / f"a.{suffix}", (WHOLE[suffix][:8] if whole else b"") + content)


def _read_all(path, content: bytes) -> None:
    path.write_bytes(content)
    for read in (read_image, read_mask_values, image_size):
        try:
            read(path)
        except SegtuneError as error:
            assert str(path) in str(error)


TEXT = st.one_of(
    st.binary(max_size=200),
    st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.text(alphabet="imagemask,x/y.png0123\"'\n;\t\\ .", max_size=200).map(str.encode),
)
CELLS = st.lists(
    st.lists(
        st.one_of(
            st.sampled_from(["images/0.png", "masks/0.png", "images/1.png", "", "..", "train", "vall", "\0"]),
            st.text(max_size=20),
        ),
        max_size=5,
    ),
    max_size=6,
).map(lambda rows: "\n".join(",".join(row) for row in rows).encode("utf-8", "surrogatepass"))


@RELAXED
@given(
    header=st.sampled_from([b"", b"image,mask\n", b"image,mask,split,group\n", b"\xef\xbb\xbfimage;mask\n"]),
    body=TEXT | CELLS,
)
def test_csv(make_folder, header, body):
    root = make_folder([np.eye(24, 32, dtype=np.uint8)] * 2)
    (root / "list.csv").write_bytes(header + body)
    for path in (root, root / "list.csv"):
        try:
            check_data(path)
        except SegtuneError:
            continue


YAML_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=10)
    | st.sampled_from(["train", "index", "(a", "*"]),
    lambda children: (
        st.lists(children, max_size=4)
        | st.dictionaries(
            st.text(max_size=5) | st.sampled_from(["train", "val", "seed"]), children, max_size=4
        )
    ),
    max_leaves=8,
)
KEYS = [
    "classes",
    "palette",
    "ignored_colours",
    "ignore_index",
    "masks",
    "threshold",
    "values",
    "split",
    "group",
    "x",
]


@RELAXED
@given(content=st.dictionaries(st.sampled_from(KEYS), YAML_VALUES, max_size=5))
def test_dataset_yaml_of_any_values(make_folder, content):
    import yaml

    root = make_folder([np.eye(24, 32, dtype=np.uint8)] * 2)
    (root / "dataset.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    try:
        check_data(root)
    except SegtuneError:
        return


@RELAXED
@given(content=TEXT | st.text(alphabet="classes:[]{}&*!|>-? \n\"'#%@a1", max_size=120).map(str.encode))
def test_dataset_yaml_of_any_text(tmp_path, content):
    (tmp_path / "dataset.yaml").write_bytes(content)
    try:
        read_description(tmp_path)
    except SegtuneError as error:
        assert "dataset.yaml" in str(error)


@RELAXED
@given(names=st.lists(st.text(alphabet="abmask_-. 01", min_size=1, max_size=12), max_size=6, unique=True))
def test_names_of_any_kind(tmp_path_factory, names):
    root = tmp_path_factory.mktemp("names")
    for name in names:
        if name.strip(". "):
            (root / f"{name}.png").write_bytes(WHOLE["png"])
    try:
        open_data(root)
    except SegtuneError:
        return
