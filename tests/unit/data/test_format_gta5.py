from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from segtune.cli import cli
from segtune.data import files
from segtune.data.check import check_data
from segtune.data.convert import convert_gta5
from segtune.data.open import open_data
from segtune.data.settings import DataSettings
from segtune.errors import DataError, UsageError
from tests import trees
from tests.unit.data.test_format_cityscapes import CLASS_OF

ALL = DataSettings(options={"classes": 35})


def test_frames_with_the_published_split(tmp_path, monkeypatch):
    trees.gta5(tmp_path)
    opened = []
    real = files._open
    monkeypatch.setattr(files, "_open", lambda path, *rest: opened.append(path) or real(path, *rest))
    index = open_data(tmp_path)
    assert not [path for path in opened if path.parent.name == "labels"]
    assert index.format == "gta5" and index.classes.num_classes == 19
    assert [(s.name, s.split) for s in index.samples] == [
        ("00001", "train"),
        ("00002", "train"),
        ("00003", "val"),
        ("00004", "test"),
    ]
    fractions = DataSettings(options={"split": "fractions"}, val_fraction=0.25, test_fraction=0.5)
    assert open_data(tmp_path, fractions).split_sizes == {"train": 1, "val": 1, "test": 2}


def test_indices_and_colours_give_the_same_classes(tmp_path):
    index = open_data(trees.gta5(tmp_path))
    for seed, sample in enumerate(index.samples):
        labels = trees.grid([0, 7, 8, 11, 21, 22, 23, 26 + seed, 34])
        mask = index.reader.mask(sample)
        expected = np.vectorize(lambda label: CLASS_OF.get(int(label), 255))(labels)
        # The colour of a licence plate is that of a car.
        assert (mask == np.where(labels == 34, 13 if seed == 3 else 255, expected)).all()


def test_all_labels(tmp_path):
    index = open_data(trees.gta5(tmp_path), ALL)
    assert index.classes.num_classes == 35 and index.classes.names[34] == "license plate"
    for seed, sample in enumerate(index.samples):
        labels = trees.grid([0, 7, 8, 11, 21, 22, 23, 26 + seed, 26 if seed == 3 else 34])
        assert (index.reader.mask(sample) == labels).all()


def test_without_a_split_file_colours_or_size_decide(tmp_path):
    assert open_data(trees.gta5(tmp_path / "a", split=False)).format == "gta5"
    for path in (tmp_path / "a" / "labels").iterdir():
        trees.save_mask(path, trees.grid([0, 1, 2]))
    assert open_data(tmp_path / "a").format == "folder"


def test_masks_of_another_size_are_left_out_with_a_warning(tmp_path):
    trees.gta5(tmp_path)
    trees.save_mask(tmp_path / "labels" / "00002.png", trees.grid([7, 8], height=20))
    report = check_data(tmp_path)
    [finding] = [finding for finding in report.findings if finding.code == "size-mismatch"]
    assert finding.severity == "warning" and "known of the published files" in finding.message
    assert finding.files == ("labels/00002.png",)
    assert [sample.name for sample in report.require_ok().samples] == ["00001", "00003", "00004"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not readable as a MATLAB file"),
        (b"MATLAB 5.0 MAT-file" + b"\0" * 200, "not readable|none of the variables"),
        ({"trainIds": [[1]]}, "trainIds of the variables"),
        ({"trainIds": [[1.5]], "valIds": [[2]], "testIds": [[3]]}, "no list of frames"),
        ({"trainIds": "abc", "valIds": [[2]], "testIds": [[3]]}, "no list of frames"),
        ({"trainIds": [[1]], "valIds": [[1]], "testIds": [[3]]}, "frame 1 stands in two splits"),
        ({"trainIds": [[91]], "valIds": [[92]], "testIds": [[93]]}, "lists none of the 4 frames"),
    ],
)
def test_wrong_split_files(tmp_path, content, message):
    from scipy.io import savemat

    trees.gta5(tmp_path, split=False)
    if isinstance(content, bytes):
        (tmp_path / "split.mat").write_bytes(content)
    else:
        savemat(tmp_path / "split.mat", content)
    with pytest.raises(DataError, match=message):
        open_data(tmp_path)


def test_real_frames(shared_data):
    root = shared_data / "formats" / "gta5"
    index = open_data(root)
    assert index.format == "gta5" and len(index.samples) == 3
    labels = np.asarray(Image.open(root / "labels" / "00001.png"))
    table = np.array([CLASS_OF.get(label, 255) for label in range(256)])
    assert (index.reader.mask(index.samples[0]) == table[labels]).all()
    colours = np.asarray(Image.open(root / "labels" / "00003.png"))
    mask = index.reader.mask(index.samples[2])
    for label, colour in enumerate(index.classes.palette):
        if colour != (0, 0, 142):
            assert ((mask == label) == (colours == colour).all(axis=2)).all()


def test_conversion_keeps_labels_and_shrinks_images(tmp_path):
    source, target = trees.gta5(tmp_path / "in"), tmp_path / "out"
    done = []
    result = convert_gta5(source, target, progress=lambda *numbers: done.append(numbers))
    assert (result.written, result.there, result.left_out) == (4, 0, ()) and done[-1] == (4, 4)
    before, after = open_data(source, ALL), open_data(target, ALL)
    assert after.format == "gta5" and after.split_sizes == before.split_sizes
    for one, other in zip(before.samples, after.samples, strict=True):
        assert (before.reader.mask(one) == after.reader.mask(other)).all()
        difference = before.reader.image(one).astype(int) - after.reader.image(other)
        assert other.image.suffix == ".jpg" and np.abs(difference).mean() < 6
        assert files.read_mask_file(other.mask).palette[7] == (128, 64, 128)


def test_a_stopped_conversion_goes_on(tmp_path):
    source, target = trees.gta5(tmp_path / "in"), tmp_path / "out"
    convert_gta5(source, target)
    (target / "images" / "00002.jpg").unlink()
    (target / "images" / ".converting-1-00002.jpg").write_bytes(b"half")
    kept = (target / "images" / "00001.jpg").stat().st_mtime_ns
    result = convert_gta5(source, target)
    assert (result.written, result.there) == (1, 3)
    assert not list(target.rglob(".converting-*"))
    assert (target / "images" / "00001.jpg").stat().st_mtime_ns == kept


def test_a_killed_conversion_leaves_whole_files_only(tmp_path):
    source = tmp_path / "in"
    trees.gta5(source, split=False, height=400, width=600)
    program = "import sys; from segtune.cli import main; main()"
    arguments = ["data", "convert", "gta5", str(source), str(tmp_path / "out")]
    process = subprocess.Popen([sys.executable, "-c", program, *arguments], stderr=subprocess.DEVNULL)
    for _ in range(600):
        if list((tmp_path / "out").rglob("0*.*")):
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for path in (tmp_path / "out").rglob("0*.*"):
        assert files.read_image(path).shape == (400, 600, 3)
    result = convert_gta5(source, tmp_path / "out")
    assert result.written + result.there == 4 and not list((tmp_path / "out").rglob(".converting-*"))


def test_conversion_reports_frames_that_do_not_fit(tmp_path):
    source = trees.gta5(tmp_path / "in")
    trees.save_mask(source / "labels" / "00002.png", trees.grid([7, 8], height=20))
    (source / "images" / "00003.png").write_bytes(b"junk")
    result = convert_gta5(source, tmp_path / "out")
    assert result.written == 2
    assert [reason.split(":")[0].rsplit("/")[-1] for reason in result.left_out] == ["00002", "00003.png"]


def test_conversion_refuses_wrong_folders(tmp_path):
    source = trees.gta5(tmp_path / "in")
    with pytest.raises(DataError, match="is not GTA5"):
        convert_gta5(tmp_path, tmp_path / "out")
    with pytest.raises(UsageError, match="lie in each other"):
        convert_gta5(source, source / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds something already"):
        convert_gta5(source, tmp_path / "full")
    convert_gta5(source, tmp_path / "out")
    with pytest.raises(UsageError, match="made with other settings"):
        convert_gta5(source, tmp_path / "out", quality=50)


def test_the_command(tmp_path):
    source = trees.gta5(tmp_path / "in")
    result = CliRunner().invoke(
        cli, ["data", "convert", "gta5", str(source), str(tmp_path / "out"), "--json"]
    )
    assert result.exit_code == 0 and json.loads(result.stdout)["written"] == 4
    result = CliRunner().invoke(cli, ["data", "convert", "gta5", str(source), str(tmp_path / "out")])
    assert "0 frames written, 4 were there" in result.stdout
