"""Data sets of volumes: layouts, labels, slices, crops, intensities, and files that do not fit."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from segtune.data.base import Severity
from segtune.data.check import check_data
from segtune.data.open import open_data
from segtune.data.settings import DataSettings
from segtune.data.volumes.build import chosen_slices
from segtune.data.volumes.labels import Labels, choose_labels
from segtune.data.volumes.reader import VolumeReader
from segtune.errors import DataError, SettingsError
from tests.volumes import affine_of, head, make_brats, make_msd, save


@pytest.fixture
def read(tmp_path):
    """Opens a folder with settings of volumes; the cache is the test's own."""

    def function(root: Path, volume: dict[str, Any] | None = None, **data: Any):
        own = {"cache": str(tmp_path / "cache"), **(volume or {})}
        return open_data(root, DataSettings(volume=own, **data))

    return function


def cases_of(index, split: str | None = None) -> list[str]:
    samples = index.samples if split is None else index.split(split)
    return list(dict.fromkeys(sample.case for sample in samples))


# --- layouts -------------------------------------------------------------------------------------


def test_decathlon(tmp_path, read):
    root = make_msd(
        tmp_path / "d", description={"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "block"}}
    )
    index = read(root)
    assert index.format == "msd"
    assert index.classes.names == ("background", "block")
    assert len(cases_of(index)) == 6
    assert len(index.samples) == 36
    assert {sample.group for sample in index.samples} == set(cases_of(index))
    assert index.reader.recipe.modality_names == ("MRI",)
    sample = index.samples[0]
    assert sample.name == "case_00/000"
    assert index.reader.image(sample).shape == (24, 20, 3)
    assert index.reader.mask(sample).shape == (24, 20)


def test_nnunet_with_channels_and_an_ignored_label(tmp_path, read):
    root = tmp_path / "d"
    for number in range(4):
        image, mask = head(number)
        mask[:, :, 0] = 2
        for channel in range(2):
            save(root / "imagesTr" / f"case_{number:03d}_000{channel}.nii.gz", image + channel)
        save(root / "labelsTr" / f"case_{number:03d}.nii.gz", mask)
    labels = {"background": 0, "block": 1, "ignore": 2}
    channels = {"0": "T1", "1": "T2"}
    (root / "dataset.json").write_text(json.dumps({"channel_names": channels, "labels": labels}))
    index = read(root)
    assert index.classes.names == ("background", "block")
    assert index.channels == 2
    assert index.reader.recipe.modality_names == ("T1", "T2")
    assert (index.reader.mask(index.samples[0]) == 255).all()


def test_nnunet_regions_are_nested_classes(tmp_path, read):
    root = make_msd(
        tmp_path / "d",
        description={"channel_names": {"0": "MRI"}, "labels": {"background": 0, "whole": [1, 2], "core": 2}},
    )
    index = read(root)
    assert index.classes.names == ("background", "whole only", "core")
    assert index.reader.recipe.regions == {"whole": (1, 2), "core": (2,)}


def test_four_dimensional_files_hold_several_modalities(tmp_path, read):
    root = tmp_path / "d"
    for number in range(3):
        image, mask = head(number)
        save(root / "imagesTr" / f"b{number}.nii.gz", np.stack([image, image * 2, 300 - image], axis=3))
        save(root / "labelsTr" / f"b{number}.nii.gz", mask)
    (root / "dataset.json").write_text(json.dumps({"modality": {"0": "a", "1": "b", "2": "c"}}))
    index = read(root, {"modality_names": "c,a"})
    assert index.channels == 2
    image = index.reader.image(index.samples[3])
    # c falls where a rises
    inside = (image > 0).all(axis=2)
    assert np.corrcoef(image[inside].T)[0, 1] < -0.9


def test_a_labelled_test_folder_is_the_test_split(tmp_path, read):
    root = make_msd(tmp_path / "d")
    image, mask = head(50)
    save(root / "imagesTs" / "other.nii.gz", image)
    save(root / "labelsTs" / "other.nii.gz", mask)
    index = read(root)
    assert cases_of(index, "test") == ["other"]
    assert len(cases_of(index, "val")) == 1


@pytest.mark.parametrize(
    ("names", "mask", "values", "enhancing"),
    [
        (("t1n", "t1c", "t2w", "t2f"), "seg", (1, 3), 3),
        (("T1", "T1ce", "T2", "FLAIR"), "seg", (1, 4), 4),
        (("T1c_subtrMeanDivStd", "Flair_subtrMeanDivStd"), "OTMultiClass", (3, 4), 4),
    ],
)
def test_brats_namings(tmp_path, read, names, mask, values, enhancing):
    root = make_brats(tmp_path / "d", names=names, mask_name=mask, values=values)
    index = read(root, {"labels": "regions"})
    assert index.format == "brats"
    known = ("t1c", "flair") if len(names) == 2 else ("t1", "t1c", "t2", "flair")
    assert index.reader.recipe.modality_names == known
    assert index.reader.recipe.classes_of[enhancing] == 3
    assert index.reader.recipe.regions == {
        "whole tumour": (1, 2, 3), "tumour core": (2, 3), "enhancing tumour": (3,)
    }  # fmt: skip


def test_brats_splits_are_folders(tmp_path, read):
    make_brats(tmp_path / "d" / "train", 2)
    make_brats(tmp_path / "d" / "validation", 3)
    (tmp_path / "d" / "validation" / "BraTS-MEN-00000-000").rename(tmp_path / "d" / "validation" / "p7")
    (tmp_path / "d" / "validation" / "BraTS-MEN-00001-000").rename(tmp_path / "d" / "validation" / "p8")
    index = read(tmp_path / "d")
    assert cases_of(index, "train") == ["BraTS-MEN-00000-000", "BraTS-MEN-00001-000"]
    assert cases_of(index, "val") == ["BraTS-MEN-00002-000", "p7", "p8"]


def test_plain_pairs(tmp_path, read):
    for number, (image, mask) in enumerate(
        [("a/scan.nii.gz", "a/scan_seg-manual.nii.gz"), ("b/x.nii", "b/label.nii.gz"),
         ("images/c.nii.gz", "masks/c.nii.gz"), ("images/c_2.nii.gz", "masks/c_2.nii.gz")]
    ):  # fmt: skip
        values, labels = head(number)
        save(tmp_path / "d" / image, values)
        save(tmp_path / "d" / mask, labels)
    index = read(tmp_path / "d")
    assert index.format == "nifti"
    assert {s.case: s.mask.name for s in index.samples} == {
        "a/scan": "scan_seg-manual.nii.gz", "b/x": "label.nii.gz", "c": "c.nii.gz", "c_2": "c_2.nii.gz"
    }  # fmt: skip


# --- splits, limits, slices ----------------------------------------------------------------------


def test_a_patient_is_in_one_split_and_limits_count_patients(tmp_path, read):
    index = read(make_msd(tmp_path / "d", 10), limit=1)
    splits = [cases_of(index, split) for split in ("train", "val", "test")]
    assert [len(cases) for cases in splits] == [1, 1, 1]
    assert len(index.samples) == 18
    assert cases_of(read(tmp_path / "d", include=("case_03", "case_07"))) == ["case_03", "case_07"]


def test_lists_of_patients_in_dataset_yaml(tmp_path, read):
    root = make_msd(tmp_path / "d", 4)
    (root / "dataset.yaml").write_text("split: {train: ['case_0[01]'], val: [case_02], test: [case_03]}")
    index = read(root)
    assert cases_of(index, "train") == ["case_00", "case_01"]
    assert len(index.split("val")) == 6


@pytest.mark.parametrize(
    ("slices", "chosen"),
    [
        ("all", {0, 1, 2, 3, 4, 5, 6, 7}),
        ("tumour", {1, 2, 4, 5, 7}),
        ("every-2nd", {1, 4, 7}),
        ("max-area", {4}),
    ],
)
def test_slices_to_train_on(tmp_path, read, slices, chosen):
    recipe = read(make_msd(tmp_path / "d", 3), {"slices": slices}).reader.recipe
    values = {"0": [9] * 8, "1": [0, 1, 2, 0, 2, 1, 0, 1], "2": [0, 0, 0, 0, 5, 0, 0, 0], "9": [4] * 8}
    assert chosen_slices(values, {0: 0, 1: 1, 2: 2, 9: 255}, recipe, "a") == chosen


def test_a_random_sample_of_slices_is_the_same_everywhere(tmp_path, read):
    recipe = read(make_msd(tmp_path / "d", 3), {"slices": "random-n", "num_slices": 3}).reader.recipe
    values = {"0": [9] * 12, "1": [0] + [1] * 11}
    first = chosen_slices(values, {0: 0, 1: 1}, recipe, "a")
    assert first == {2, 3, 5}
    assert chosen_slices(values, {0: 0, 1: 1}, recipe, "b") != first


def test_training_uses_the_slices_chosen_and_scores_use_all(tmp_path, read):
    index = read(make_msd(tmp_path / "d", 6), {"slices": "max-area"})
    assert len(index.training) == len(cases_of(index, "train")) == 4
    assert len(index.split("train")) == 24
    assert all(index.reader.mask(sample).any() for sample in index.training)


# --- slice images --------------------------------------------------------------------------------


def test_the_surroundings_are_black_and_the_body_is_normalised(tmp_path, read):
    root = make_brats(tmp_path / "d", 3, names=("t1", "flair"), values=(1, 4))
    index = read(root, {"modality_names": "flair", "percentiles": "0,100", "z_limit": 5})
    sample = next(s for s in index.samples if s.slice.position == 3)
    image = index.reader.image(sample)
    assert image.dtype == np.float32
    assert (image[..., 0] == image[..., 2]).all()  # grey is repeated
    volume = np.asarray(nibabel.load(sample.image).dataobj)
    body = volume[volume != -6]  # what lies around it is -3, times 2 for the second modality
    plane = volume[::-1, ::-1, 3].T
    want = np.clip((plane - body.mean()) / body.std() / 10 + 0.5, 0, 1)
    assert np.allclose(image[..., 0], np.where(plane == -6, 0, want), atol=1e-5)


def test_a_brain_mask_says_what_the_brain_is(tmp_path, read):
    root = make_brats(tmp_path / "d", 3, names=("t1", "flair"), values=(1, 4))
    for patient in root.iterdir():
        mask = np.zeros((20, 24, 6), np.float32)
        mask[4:12, 6:20, 1:5] = 1
        save(patient / "brainmask.nii.gz", mask)
    index = read(root, {"crop": "brain"})
    assert index.reader.recipe.crop == (14, 8)
    image = index.reader.image(next(s for s in index.samples if s.slice.position == 3))
    assert image.shape == (14, 8, 2)
    assert not index.reader.image(index.samples[0]).any()


def test_percentiles_and_windows(tmp_path, read):
    root = make_msd(tmp_path / "d", 3)
    index = read(root, {"normalise": "window", "window": "90,110"})
    sample = index.samples[3]
    plane = np.asarray(nibabel.load(sample.image).dataobj)[::-1, ::-1, 3].T
    assert np.allclose(index.reader.image(sample)[..., 0], np.clip((plane - 90) / 20, 0, 1), atol=1e-5)
    image = read(root, {"normalise": "percentile", "percentiles": "10,90"}).reader.image(sample)
    assert (image.min(), image.max()) == (0, 1)


def test_neighbours_are_channels_and_the_last_slice_stands_in_beyond_the_end(tmp_path, read):
    index = read(make_msd(tmp_path / "d", 3), {"neighbours": 1})
    plain = read(tmp_path / "d")
    first, second = (plain.reader.image(sample)[..., 0] for sample in plain.samples[:2])
    image = index.reader.image(index.samples[0])
    assert index.channels == 3
    assert all(np.array_equal(image[..., k], want) for k, want in enumerate((first, first, second)))


def test_separate_modalities_are_images_with_one_mask(tmp_path, read):
    root = make_brats(tmp_path / "d", 3, names=("t1", "flair"), values=(1, 4))
    index = read(root, {"modalities": "separate"})
    pair = index.samples[6:8]
    assert [sample.name[-5:] for sample in pair] == ["03-t1", "flair"]
    assert pair[0].mask == pair[1].mask
    assert index.channels == 3
    assert np.array_equal(*(index.reader.mask(sample) for sample in pair))


@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("crop", [(9, 7), (40, 50), (16, 50)])
def test_a_crop_is_put_back_where_it_was(tmp_path, read, axis, crop):
    index = read(make_msd(tmp_path / "d", 3), {"axis": axis, "crop": crop})
    whole = read(tmp_path / "d", {"axis": axis})
    for sample in index.samples[::4]:
        part = index.reader.mask(sample)
        assert part.shape == crop
        back = index.reader.put_back(sample.case, np.where(part == 255, 0, part).astype(np.uint8))
        full = whole.reader.mask(sample)
        assert back.shape == full.shape
        inside = index.reader.put_back(sample.case, (part != 255).astype(np.uint8)) == 1
        assert np.array_equal(back[inside], full[inside])
        assert inside.sum() == (part != 255).sum() == np.prod(np.minimum(crop, full.shape))


def test_the_crop_is_learned_from_training_volumes_alone(tmp_path, read):
    root = make_msd(tmp_path / "d", 4)
    (root / "dataset.yaml").write_text("split: {train: ['case_0[01]'], val: [case_02], test: [case_03]}")
    small = np.zeros((20, 24, 6), np.float32)
    small[8:12, 10:16] = np.random.default_rng(0).normal(5, 1, (4, 6, 6))
    for number in range(2):
        save(root / "imagesTr" / f"case_{number:02d}.nii.gz", small, affine_of(spacing=(1, 1, 2.5)))
        save(root / "labelsTr" / f"case_{number:02d}.nii.gz", head(1)[1], affine_of(spacing=(1, 1, 2.5)))
    assert read(root, {"crop": "brain"}).reader.recipe.crop == (6, 4)


# --- labels --------------------------------------------------------------------------------------


def labels(present, volume=None, known=None, **data):
    settings = DataSettings(volume=volume or {}, **data)
    return choose_labels(Labels(**(known or {})), present, settings)


def test_values_with_gaps_are_classes_and_come_back():
    found = labels([0, 1, 2, 4])
    assert found.classes.names == ("background", "class_1", "class_2", "class_4")
    assert found.values == (0, 1, 2, 4)


def test_any_tumour_is_one_class():
    found = labels([0, 1, 2, 4], {"labels": "tumour"})
    assert [found.classes_of[value] for value in (0, 1, 2, 4)] == [0, 1, 1, 1]
    assert found.values == (0, 1)


def test_regions_that_a_format_does_not_know_are_refused():
    with pytest.raises(SettingsError, match="names no regions"):
        labels([0, 1], {"labels": "regions"})


def test_wrong_number_of_names():
    with pytest.raises(DataError, match="2 class names"):
        labels([0, 1, 2], classes=("a", "b"))


def test_stated_values():
    found = labels([0, 5, 7], values={0: 0, 5: 1, 7: 255}, classes=("rest", "organ"))
    assert found.classes_of[7] == 255
    assert found.values == (0, 5)


# --- files that do not fit -----------------------------------------------------------------------


def broken(root: Path, kind: str) -> None:
    patient = root / "BraTS-MEN-00001-000"
    flair = patient / f"{patient.name}-t2f.nii.gz"
    image = head(1)[0]
    if kind == "missing-modality":
        flair.unlink()
    elif kind == "not-a-number":
        image[3, 3, 3] = np.nan
        save(flair, image)
    elif kind == "constant-volume":
        save(flair, np.full((20, 24, 6), 7, np.float32))
    elif kind == "unreadable-file":
        flair.write_bytes(flair.read_bytes()[:900])
    else:
        save(patient / f"{patient.name}-seg.nii.gz", head(1)[1], affine_of(spacing=(1, 1, 3)))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("missing-modality", "no flair"),
        ("not-a-number", "NaN"),
        ("constant-volume", "is 7 everywhere"),
        ("unreadable-file", "cannot be read"),
        ("space-mismatch", r"20x24x6 voxels with the affine \[1 0 0 .*20x24x6 .* 0 0 3 11"),
    ],
)
def test_files_that_do_not_fit_are_named_with_the_patient(tmp_path, read, kind, said):
    root = make_brats(tmp_path / "d", 4)
    broken(root, kind)
    report = check_data(read(root))
    (finding,) = [finding for finding in report.findings if finding.severity is Severity.ERROR]
    assert finding.code == kind
    assert "BraTS-MEN-00001-000: " in finding.message
    assert len(finding.files) == 1

    assert re.search(said, finding.message)
    assert not report.ok
    left = check_data(read(root, allow=(kind,))).require_ok()
    assert "BraTS-MEN-00001-000" not in cases_of(left)
    assert len(cases_of(left)) == 3


def test_nothing_left_says_why(tmp_path, read):
    root = make_brats(tmp_path / "d", 2)
    for patient in root.iterdir():
        (patient / f"{patient.name}-t1n.nii.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"none of 2 patients can be used[\s\S]*empty \(0 bytes\)"):
        read(root)


def test_fractions_in_masks(tmp_path, read):
    root = make_msd(tmp_path / "d", 3)
    save(
        root / "labelsTr" / "case_01.nii.gz", head(1)[1] * 0.5, affine_of((0, 1, 2), (-1, -1, 1), (1, 1, 2.5))
    )
    (finding,) = [f for f in read(root).findings if f.severity is Severity.ERROR]
    assert "case_01: case_01.nii.gz: the mask holds fractions" in finding.message


def test_the_check_counts_volumes(tmp_path, read):
    report = check_data(read(make_msd(tmp_path / "d", 6)))
    assert sum(report.image_sizes.values()) == 6
    codes = {finding.code for finding in report.findings}
    assert "volume-orientation" in codes
    assert sum(map(sum, report.class_pixels.values())) == 6 * 20 * 24 * 6


@pytest.mark.parametrize(
    "content", [b"", b"[1]", b"{", b'{"labels": {"a": "b"}}', b'{"labels": {"a": [0.5]}}']
)
def test_a_damaged_description_is_named(tmp_path, read, content):
    root = make_msd(tmp_path / "d", 2)
    (root / "dataset.json").write_bytes(content)
    with pytest.raises(DataError, match=r"dataset\.json"):
        read(root)


def test_a_cache_that_is_too_small_is_said(tmp_path, read):
    root = make_msd(tmp_path / "d", 3)
    (finding,) = [f for f in read(root, {"cache_gib": 1e-6}).findings if f.code == "cache-too-small"]
    assert finding.severity is Severity.WARNING
    assert not [f for f in read(root).findings if f.code == "cache-too-small"]


# --- real data -----------------------------------------------------------------------------------


def test_hippocampus_differs_in_scale(shared_data, read):
    index = read(shared_data / "hippocampus", include=("hippocampus_1*",))
    assert index.format == "msd"
    assert index.reader.recipe.label_type == "uint8"
    (finding,) = [f for f in index.findings if f.code == "intensity-scales"]
    assert "factor of" in finding.message


def test_brats_2013(shared_data, read):
    index = read(shared_data / "brats2013", {"crop": "brain", "labels": "regions", "modality_names": "flair"})
    assert index.format == "brats"
    assert isinstance(index.reader, VolumeReader)
    assert index.reader.recipe.label_type == "float32"
    assert {sample.split for sample in index.samples} == {"train", "val"}
    assert len(index.samples) == 4 * 155
    image = index.reader.image(index.samples[80])
    assert image.shape == (*index.reader.recipe.crop, 3)
    assert image.min() == 0


def test_volumes_in_different_spaces_are_refused(shared_data, read):
    with pytest.raises(DataError, match=r"256x256x35 voxels with the affine .*181x217x181 voxels with"):
        read(shared_data / "formats" / "nifti_mismatch")


def test_real_orientations(shared_data, read):
    index = read(shared_data / "formats" / "nifti_orientation")
    assert cases_of(index) == ["t1/t1w", "t2/t2", "t2s/t2s"]
    (finding,) = [f for f in index.findings if f.code == "volume-orientation"]
    assert "LAS, PSR, RAS" in finding.message
