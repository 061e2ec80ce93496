"""Prompted models on volumes: prompts from a file and from masks, combined, written back in place."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("transformers", reason="needs the extra hf")
from safetensors.torch import save_file

import segtune
from segtune.data.preview import BOXED
from segtune.data.volumes.nifti import read_canonical, read_header
from segtune.data.volumes.places import Places
from segtune.data.volumes.scan import AXES, to_slices
from segtune.errors import SegtuneError, UsageError
from segtune.models import MODELS
from segtune.models.build import build_model
from segtune.report.panel import GAP
from segtune.report.write import write_report
from tests.support import TINY_SAM
from tests.volumes import affine_of, head, orientations, save

ORIENTATIONS = [((0, 1, 2), (1, 1, 1)), ((0, 1, 2), (-1, -1, 1)), ((2, 0, 1), (1, -1, -1))]


@pytest.fixture(scope="module")
def patients(tmp_path_factory) -> Path:
    """Three patients with two modalities; each file runs along other axes."""
    root = tmp_path_factory.mktemp("patients")
    for number, (permutation, flips) in enumerate(ORIENTATIONS):
        image, mask = head(number)
        affine = affine_of(permutation, flips, (1, 1, 2.5))
        for name, array in (("T1", image), ("FLAIR", 2 * image), ("seg", 4 * mask)):
            turned = _stored(array, permutation, flips)
            save(root / f"p{number}" / f"p{number}_{name}.nii.gz", turned, affine)
    return root


def _stored(canonical: np.ndarray, permutation: tuple[int, ...], flips: tuple[int, ...]) -> np.ndarray:
    """The canonical volume as a file holds it whose axis i runs along permutation[i]."""
    array = canonical.transpose(permutation)
    for axis, flip in enumerate(flips):
        array = np.flip(array, axis) if flip < 0 else array
    return array


@pytest.fixture(scope="module")
def run(patients, tmp_path_factory) -> Path:
    """A run of a network that is prompted with boxes."""
    folder = tmp_path_factory.mktemp("run")
    model = build_model("sam-vit-base", 2, MODELS.settings("sam-vit-base")(prompts="box", **TINY_SAM), seed=3)
    save_file({n: t.contiguous() for n, t in model.state_dict().items()}, folder / "tiny.safetensors")
    settings: dict[str, Any] = {
        "model.weights": str(folder / "tiny.safetensors"),
        "model.prompts": "box",
        **{f"model.{name}": value for name, value in TINY_SAM.items()},
        "data.volume.crop": "16,16",
        "data.volume.labels": "tumour",
        "data.volume.modalities": "separate",
        "data.volume.slices": "max-area",
        "data.volume.cache": str(folder / "cache"),
        "data.crop": None,
        "data.val_fraction": 0.34,
        "data.test_fraction": 0,
        "train.precision": "32",
        "train.accelerator": "cpu",
        "train.threads": 1,
        "train.monitor": "volume_dice",
    }
    segtune.fit(patients, model="sam-vit-base", method="zero-shot", out=folder / "run", settings=settings)
    return folder / "run"


@pytest.fixture(scope="module")
def from_masks(run, patients, tmp_path_factory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("masks")
    made = segtune.predict(run, patients, out=out, batch_size=4, prompts_from_masks=True)
    return {prediction.mask.name.removesuffix(".nii.gz"): prediction.mask for prediction in made}


def boxes_of(patients: Path, axis: int = 2) -> dict[str, list[dict[str, Any]]]:
    """Boxes of each case as a user would find them: with nibabel, in the file's own voxels."""
    found: dict[str, list[dict[str, Any]]] = {}
    for case in sorted(path.name for path in patients.iterdir()):
        file = nibabel.load(patients / case / f"{case}_seg.nii.gz")
        across = nibabel.aff2axcodes(file.affine).index(
            "S" if "S" in nibabel.aff2axcodes(file.affine) else "I"
        )
        found[case] = []
        for number in range(file.shape[across]):
            first, second = np.nonzero(np.asarray(file.dataobj).take(number, across))
            if len(first):
                box = [int(v) for v in (first.min(), second.min(), first.max(), second.max())]
                found[case].append({"class": "tumour", "slice": number, "box": box})
    return found


@pytest.mark.parametrize("axis", list(AXES))
def test_every_voxel_of_a_file_is_found_in_its_slices(axis, tmp_path):
    array = np.arange(3 * 4 * 5, dtype=np.int16).reshape(3, 4, 5)
    for number, (permutation, flips) in enumerate(orientations()):
        path = save(tmp_path / f"{number}.nii", array, affine_of(permutation, flips))
        places = Places.of(read_header(path), axis)
        slices = to_slices(read_canonical(path), axis)
        assert slices.shape == places.shape
        for index in [(0, 0, 0), (2, 1, 4), (1, 3, 2)]:
            others = [index[i] for i in range(3) if i != places.axes[0]]
            column, row = places.point(*others)
            assert slices[places.position(index[places.axes[0]]), int(row), int(column)] == array[index]
            assert all(value < end for value, end in zip(others, places.sides, strict=True))


def test_boxes_in_a_files_own_voxels_give_what_the_masks_give(run, patients, from_masks, tmp_path):
    file = tmp_path / "boxes.json"
    file.write_text(json.dumps({f"{case}.nii.gz": own for case, own in boxes_of(patients).items()}))
    made = segtune.predict(run, patients, out=tmp_path / "out", prompts=file)
    assert len(made) == 3
    for prediction in made:
        name = prediction.mask.name.removesuffix(".nii.gz")
        assert np.asarray(nibabel.load(prediction.mask).dataobj).any(), "something is found"
        assert prediction.mask.read_bytes() == from_masks[name].read_bytes()


def test_predictions_score_as_the_evaluation_says_and_lie_in_place(run, patients, from_masks):
    sitk = pytest.importorskip("SimpleITK")
    evaluation = segtune.evaluate(run, split="val")
    assert evaluation.settings["prompts"] == "box for each class, from the ground truth"
    (case,) = evaluation.volumes
    for name, path in from_masks.items():
        mask, truth = nibabel.load(path), nibabel.load(patients / name / f"{name}_seg.nii.gz")
        assert np.array_equal(mask.affine, truth.affine) and mask.shape == truth.shape
        found, true = np.asarray(mask.dataobj) > 0, np.asarray(truth.dataobj) > 0
        if name == case:
            want = 2 * (found & true).sum() / (found.sum() + true.sum())
            assert evaluation.volumes[case]["volume_dice"]["tumour"] == pytest.approx(want)
        ours, source = (sitk.ReadImage(str(file)) for file in (path, patients / name / f"{name}_T1.nii.gz"))
        assert ours.GetSize() == source.GetSize()
        assert ours.GetDirection() == pytest.approx(source.GetDirection())
        assert ours.GetOrigin() == pytest.approx(source.GetOrigin())
        with_boxes = path.with_name(f"{name}_overlay.png")
        assert with_boxes.is_file()


def test_a_range_of_slices_is_one_box_in_three_dimensions(run, patients, tmp_path):
    file = tmp_path / "boxes.json"
    box = {"slice": [2, 3], "box": [6, 6, 12, 14]}
    singly = [{"slice": number, "box": box["box"]} for number in (2, 3)]
    results = []
    for objects in ([box], singly, []):
        file.write_text(json.dumps({"p0": objects}))
        (made,) = segtune.predict(run, patients / "p0", out=tmp_path / "out", prompts=file, overlays=False)
        results.append(np.asarray(nibabel.load(made.mask).dataobj))
    assert np.array_equal(results[0], results[1]) and not results[2].any()
    assert results[0].any(axis=(0, 1)).tolist() == [False, False, True, True, False, False]


@pytest.mark.parametrize(
    ("objects", "message", "hint"),
    [
        ({"p0": [{"box": [1, 1, 2, 2]}]}, "slice: field required", "the format is"),
        ({"p0": [{"slice": 6, "box": [1, 1, 2, 2]}]}, "slices 6 to 6 of 6", "from 0 to 5 along axis 2"),
        ({"p0": [{"slice": 1, "box": [1, 1, 21, 2]}]}, "beyond the 20 x 24 voxels", "voxel indices"),
        ({"p0": [{"slice": 1}]}, "the object has no box", "the model needs box"),
        ({"p1": []}, "no prompts for 1 of 1 volumes, the first is p0", "empty list"),
        ({"p0": [{"slice": 1, "class": "liver", "box": [1, 1, 2, 2]}]}, "'liver' is no class", "tumour"),
    ],
)
def test_mistakes_in_a_file_of_prompts_are_named(run, patients, tmp_path, objects, message, hint):
    file = tmp_path / "boxes.json"
    file.write_text(json.dumps(objects))
    with pytest.raises(UsageError, match=message) as error:
        segtune.predict(run, patients / "p0", out=tmp_path / "out", prompts=file)
    assert hint in str(error.value.hint)
    assert not (tmp_path / "out").exists()


def test_refusals(run, patients, tmp_path):
    file = tmp_path / "boxes.json"
    file.write_text("{}")
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="needs them") as error:
        segtune.predict(run, patients, out=out)
    assert "--prompts-from-masks" in str(error.value.hint)
    with pytest.raises(UsageError, match="only where no file gives them"):
        segtune.predict(run, patients, out=out, prompts=file, prompts_from_masks=True)
    with pytest.raises(SegtuneError, match="p0_T1: there is no mask"):
        segtune.predict(run, patients / "p0" / "p0_T1.nii.gz", out=out, prompts_from_masks=True)
    strange = tmp_path / "strange" / "p9"
    for name in ("T1", "FLAIR", "seg"):
        image = nibabel.load(patients / "p0" / f"p0_{name}.nii.gz")
        values = np.asarray(image.dataobj)
        save(strange / f"p9_{name}.nii.gz", np.where(values == 4, 7, values), image.affine)
    with pytest.raises(SegtuneError, match="p9: its mask holds the values 7"):
        segtune.predict(run, strange, out=out, prompts_from_masks=True)


def test_the_report_shows_boxes_and_masks_over_each_modality(run, tmp_path):
    """Columns: image, ground truth, the run. Rows: t1, flair, combined, errors."""
    page = write_report([run], tmp_path, formats=("png",))
    assert "Best, median and worst volume" in page.read_text(encoding="utf-8")
    assert (tmp_path / "figures" / "volumes.png").is_file()
    sheet = np.asarray(Image.open(tmp_path / "figures" / "case-best.png").convert("RGB"))
    assert sheet.shape[1] == GAP + 3 * (240 + GAP)
    assert 4 * 240 < sheet.shape[0] < 5 * 240
    boxed = (np.abs(sheet.astype(int) - BOXED).max(axis=2) < 30).astype(int)
    tiles = (
        boxed[20 : 20 + 4 * 246].reshape(4, 246, -1)[:, :, : 3 * 246].reshape(4, 246, 3, 246).sum(axis=(1, 3))
    )
    assert (tiles[:3, [0, 2]] > 20).all(), "boxes on images and answers"
    assert (tiles[:, 1] < 20).all() and (tiles[3] < 20).all(), "none on the ground truth and on errors"


def test_the_command_prints_a_row_for_each_volume(run, capsys):
    from segtune.cli import run as run_command

    assert run_command(["evaluate", str(run), "--split", "val"]) == 0
    said = capsys.readouterr().out
    assert "12 images of 1 volume in" in said and "prompts: box for each class" in said
    (case,) = segtune.evaluate(run, split="val").volumes
    assert re.search(rf"^{case} +tumour +0\.\d{{4}} +\d+\.\d{{4}} +0\.\d{{4}}", said, re.MULTILINE)
    assert "absent: in neither mask nor prediction" in said
