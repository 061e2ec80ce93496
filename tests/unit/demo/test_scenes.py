"""Generated street scenes: the same everywhere, sane as data, written as an ordinary folder."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from segtune.demo.canvas import (
    BUILDING,
    CAR,
    PERSON,
    POLE,
    ROAD,
    SKY,
    TILE,
    Camera,
    Canvas,
    Draws,
    noise_tile,
)
from segtune.demo.scenes import CLASS_NAMES, PALETTE, SIZE, Domain, Scene, render_scene, write_dataset
from segtune.errors import UsageError

DOMAINS: tuple[Domain, ...] = ("day", "dusk")
MASKS = {
    "day": "4ea11d66811e9861d7e6db30a962b94e36828d1ab6fe59888680a3a1f7580645",
    "dusk": "1e2945ca52943cdc2f825a7e927f1a3ed315bbe789a23c8a1b7a447f4e9b050b",
}
MEANS = {"day": (107.86, 112.01, 103.93), "dusk": (70.65, 75.27, 85.59)}


@pytest.fixture(scope="module")
def scenes() -> dict[Domain, list[Scene]]:
    return {domain: [render_scene(domain, 0, index) for index in range(48)] for domain in DOMAINS}


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_scene_is_the_same_on_every_machine(domain: Domain) -> None:
    image, mask = render_scene(domain, 0, 0)
    assert hashlib.sha256(mask.tobytes()).hexdigest() == MASKS[domain]
    # Loose, so that a last bit of one pixel on an untested processor is no failure.
    np.testing.assert_allclose(image.mean((0, 1)), MEANS[domain], atol=0.1)


def test_scenes_do_not_depend_on_the_process_or_on_what_was_drawn_before() -> None:
    render_scene("dusk", 5, 1)
    image, mask = render_scene("day", 3, 7, (64, 96))
    here = hashlib.sha256(image.tobytes() + mask.tobytes()).hexdigest()
    code = (
        "import hashlib, sys; from segtune.demo.scenes import render_scene\n"
        "image, mask = render_scene('day', 3, 7, (64, 96))\n"
        "assert not {'torch', 'scipy'} & set(sys.modules)\n"
        "print(hashlib.sha256(image.tobytes() + mask.tobytes()).hexdigest())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == here


def test_seed_index_and_domain_change_the_street() -> None:
    masks = [render_scene(*key)[1] for key in (("day", 0, 0), ("day", 0, 1), ("day", 1, 0), ("dusk", 0, 0))]
    for place, mask in enumerate(masks):
        for other in masks[place + 1 :]:
            assert (mask != other).mean() > 0.1


@pytest.mark.parametrize("size", [(128, 192), (32, 32), (33, 47), (200, 120), (32, 160)])
@pytest.mark.parametrize("domain", DOMAINS)
def test_every_size_gives_uint8_arrays_with_valid_classes(domain: Domain, size: tuple[int, int]) -> None:
    for index in range(6):
        image, mask = render_scene(domain, 2, index, size)
        assert image.shape == (*size, 3) and image.dtype == np.uint8 and image.flags.c_contiguous
        assert mask.shape == size and mask.dtype == np.uint8
        assert mask.max() < len(CLASS_NAMES)


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_class_has_a_fair_share(scenes: dict[Domain, list[Scene]], domain: Domain) -> None:
    masks = np.stack([mask for _, mask in scenes[domain]])
    shares = np.bincount(masks.ravel(), minlength=len(CLASS_NAMES)) / masks.size
    assert shares.min() > 0.005
    assert shares.max() < 0.5


def test_classes_stand_where_streets_have_them(scenes: dict[Domain, list[Scene]]) -> None:
    masks = np.stack([mask for pairs in scenes.values() for _, mask in pairs])
    height = SIZE[0]
    assert not (masks[:, -8:] == SKY).any()
    assert not (masks[:, : height // 5] == ROAD).any()
    assert (masks[:, height // 2 :] == ROAD).mean() > 0.4
    assert (masks[:, : height // 2] == BUILDING).mean() > 0.3


def test_no_class_is_told_by_its_colour_alone(scenes: dict[Domain, list[Scene]]) -> None:
    """The nearest mean colour names well under two thirds of the pixels: context is needed."""
    pixels = np.concatenate([image.reshape(-1, 3)[::17] for image, _ in scenes["day"]]).astype(np.float64)
    labels = np.concatenate([mask.ravel()[::17] for _, mask in scenes["day"]])
    means = np.stack([pixels[labels == label].mean(0) for label in range(len(CLASS_NAMES))])
    nearest = ((pixels[:, None] - means) ** 2).sum(-1).argmin(1)
    assert (nearest == labels).mean() < 0.6


def test_dusk_is_darker_flatter_and_foggier_than_day(scenes: dict[Domain, list[Scene]]) -> None:
    brightness, contrast, lowest = {}, {}, {}
    for domain, pairs in scenes.items():
        images = np.stack([image for image, _ in pairs]).astype(np.float64)
        brightness[domain] = images.mean()
        contrast[domain] = images.std((1, 2, 3)).mean()
        # Fog lifts what is far: there, buildings and sky come close to each other.
        lowest[domain] = np.mean(
            [
                abs(image[:64][mask[:64] == SKY].mean() - image[:64][mask[:64] == BUILDING].mean())
                for image, mask in pairs
                if (mask[:64] == SKY).any() and (mask[:64] == BUILDING).any()
            ]
        )
    assert brightness["dusk"] < 0.85 * brightness["day"]
    assert contrast["dusk"] < 0.75 * contrast["day"]
    assert lowest["dusk"] < 0.75 * lowest["day"]


def test_near_things_cover_far_ones() -> None:
    camera = Camera(
        height_px=64, width_px=64, focal=60, horizon=30, vanishing=32, roll=0, height=1.5, position=0, bend=0
    )
    canvas = Canvas(camera)
    for z, label in ((20.0, CAR), (8.0, PERSON), (4.0, POLE)):
        upright = canvas.upright(0.0, z, 0.3, 1.2)
        assert upright is not None
        where = (np.abs(upright.across) < 0.3) & (upright.h > 0) & (upright.h < 1.2)
        upright.paint(where, (0.5, 0.5, 0.5), label)
    # 1.2 m at 4 m is 18 pixels high and 9 wide, and stands on row 30 + 1.5 * 60 / 4.
    rows, cols = np.nonzero(canvas.mask == POLE)
    assert rows.max() == 51 and 17 <= np.ptp(rows) + 1 <= 19 and 8 <= np.ptp(cols) + 1 <= 10
    assert np.all(canvas.depth[canvas.mask == POLE] == 4)
    assert not (canvas.mask[rows.min() : rows.max() + 1, 30:34] == CAR).any()


@pytest.mark.parametrize("kind", ["cloud", "leaf", "grain"])
def test_textures_repeat_without_a_seam(kind: str) -> None:
    tile = noise_tile(kind).reshape(TILE, TILE)
    assert tile.min() == 0 and tile.max() == 1
    for axis in (0, 1):
        inside = np.abs(np.diff(tile, axis=axis)).mean()
        seam = np.abs(tile.take(0, axis=axis) - tile.take(-1, axis=axis)).mean()
        assert seam < 1.5 * inside


def test_draws_stay_in_their_ranges() -> None:
    draws = Draws(1, 2)
    assert {draws.integer(2, 4) for _ in range(200)} == {2, 3, 4}
    assert {draws.pick("ab") for _ in range(50)} == {"a", "b"}
    assert all(-1 <= draws.between(-1, 3) < 3 for _ in range(200))
    assert all(0 < value <= 1 for _ in range(100) for value in draws.colour(((0.0, 0.5, 1.0),), 0.3))


def test_the_data_set_is_an_ordinary_folder(tmp_path: Path) -> None:
    folder = tmp_path / "scenes"
    write_dataset(folder, "dusk", num_train=3, num_val=1, num_test=2, seed=4, size=(48, 64))
    found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))
    expected = [
        f"{split}/{part}/dusk_{split}_{index:05d}.png"
        for split, count in (("train", 3), ("val", 1), ("test", 2))
        for part in ("images", "masks")
        for index in range(count)
    ]
    assert found == sorted(expected)
    described = yaml.safe_load((folder / "dataset.yaml").read_text(encoding="utf-8"))
    assert described == {
        "classes": {name: list(colour) for name, colour in zip(CLASS_NAMES, PALETTE, strict=True)}
    }
    image, mask = render_scene("dusk", 4, 1, (48, 64))
    with Image.open(folder / "train/images/dusk_train_00001.png") as stored:
        assert np.array_equal(np.asarray(stored), image)
    with Image.open(folder / "train/masks/dusk_train_00001.png") as stored:
        assert stored.mode == "P"
        assert np.array_equal(np.asarray(stored), mask)
        assert np.array_equal(np.asarray(stored.convert("RGB")), np.asarray(PALETTE, np.uint8)[mask])


def test_splits_differ_and_do_not_depend_on_each_other(tmp_path: Path) -> None:
    for name, num_train in (("small", 1), ("large", 4)):
        write_dataset(tmp_path / name, "day", num_train=num_train, num_val=1, num_test=1, size=(32, 32))
    small, large = (tmp_path / name / "test/images/day_test_00000.png" for name in ("small", "large"))
    assert small.read_bytes() == large.read_bytes()
    train = tmp_path / "small/train/images/day_train_00000.png"
    assert train.read_bytes() != small.read_bytes()


def test_its_own_folder_is_written_again_without_old_scenes(tmp_path: Path) -> None:
    write_dataset(tmp_path, "day", num_train=3, num_val=0, num_test=0, size=(32, 32))
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    write_dataset(tmp_path, "dusk", num_train=1, num_val=0, num_test=0, size=(32, 32))
    assert [path.name for path in (tmp_path / "train/images").iterdir()] == ["dusk_train_00000.png"]
    assert (tmp_path / "notes.txt").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("content", [b"classes: {}\n", b"\xff\xfe broken", None])
def test_another_folder_is_refused_and_left_alone(tmp_path: Path, content: bytes | None) -> None:
    other = tmp_path / ("photo.jpg" if content is None else "dataset.yaml")
    other.write_bytes(content or b"x")
    with pytest.raises(UsageError, match=r"not generated scenes.*\n.*hint: name a new"):
        write_dataset(tmp_path, "day", num_train=1, num_val=1, num_test=1)
    assert list(tmp_path.iterdir()) == [other]


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    path = tmp_path / "scenes"
    path.write_text("x", encoding="utf-8")
    with pytest.raises(UsageError, match="is a file"):
        write_dataset(path, "day", num_train=1, num_val=1, num_test=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("noon", 0, 0), "'noon'.*\n.*day, dusk"),
        (("day", -1, 0), "seed -1"),
        (("day", 0, -2), "index -2"),
        (("day", 0, 0, (31, 64)), "31 x 64"),
    ],
)
def test_wrong_arguments_are_named(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        render_scene(*arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"num_train": -1}, {"num_val": 100_001}, {"size": (8, 8)}, {"seed": -1}])
def test_wrong_data_sets_write_nothing(tmp_path: Path, wrong: dict[str, object]) -> None:
    settings: dict[str, object] = {"num_train": 1, "num_val": 1, "num_test": 1, **wrong}
    with pytest.raises(UsageError):
        write_dataset(tmp_path / "new", "day", **settings)  # type: ignore[arg-type]
    assert not (tmp_path / "new").exists()
