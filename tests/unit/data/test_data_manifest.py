"""CSV manifests: columns, paths, splits, groups, and every kind of mistake in them."""

from __future__ import annotations

import numpy as np
import pytest

from segtune.data.open import open_data
from segtune.data.settings import DataSettings
from segtune.errors import DataError

MASK = np.kron(np.array([[0, 1], [1, 0]], np.uint8), np.ones((12, 16), np.uint8))


@pytest.fixture
def table(write, picture, tmp_path):
    """Writes eight images with masks and a CSV; returns its path."""

    def function(text, name="frames.csv", encoding="utf-8"):
        for i in range(8):
            write(f"x/{i}.png", picture(i))
            write(f"y/{i}.png", MASK)
        path = tmp_path / name
        path.write_text(text, encoding=encoding)
        return path

    return function


def rows(extra=lambda i: "", numbers=range(8)) -> str:
    return "".join(f"x/{i}.png,y/{i}.png{extra(i)}\n" for i in numbers)


def codes(index) -> dict[str, str]:
    return {finding.code: finding.severity.value for finding in index.findings}


def test_the_file_and_its_folder_are_the_same(table, tmp_path):
    path = table("image,mask\n" + rows())
    one, other = open_data(path), open_data(tmp_path)
    assert one.format == other.format == "manifest" and one.samples == other.samples
    assert one.root == other.root == tmp_path
    assert one.split_sizes == {"train": 6, "val": 1, "test": 1}
    assert not one.findings


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_dialects(table, delimiter, end, encoding):
    text = 'Image ,"MASK",Split\n' + rows(lambda i: ", Train" if i else ",VALID") + "\n , ,\n"
    index = open_data(table(text.replace(",", delimiter).replace("\n", end), encoding=encoding))
    assert index.split_sizes == {"train": 7, "val": 1}


@pytest.mark.parametrize("column", ["group", "sequence", "patient"])
def test_group_columns(table, column):
    index = open_data(table(f"image,mask,{column},weather\n" + rows(lambda i: f",p{i // 2},sun")))
    assert {sample.group for sample in index.samples} == {"p0", "p1", "p2", "p3"}
    by_group = {}
    for sample in index.samples:
        by_group.setdefault(sample.group, set()).add(sample.split)
    assert all(len(splits) == 1 for splits in by_group.values())
    assert any(f"{column} is the group (4 of them); not used: weather" in line for line in index.evidence)


def test_groups_across_given_splits_are_named(table):
    index = open_data(table("image,mask,split,group\n" + rows(lambda i: f",{'train' if i % 2 else 'val'},p")))
    assert codes(index) == {"group-across-splits": "warning"}


def test_mistyped_split(table):
    index = open_data(table("image,mask,split\n" + rows(lambda i: ",trian" if i < 2 else ",train")))
    finding = index.findings[0]
    assert (finding.code, finding.severity.value) == ("unknown-split", "error")
    assert "'trian' in 2 rows (lines 2, 3)" in finding.message and "'train'" in finding.hint
    assert len(index.samples) == 6


def test_rows_without_split_and_without_mask(table):
    index = open_data(table("image,mask,split\n" + rows(lambda i: "," if i == 3 else ",train")))
    assert codes(index) == {"sample-without-split": "warning"} and len(index.samples) == 7
    index = open_data(table("image,mask\n" + rows() + "x/0.png,\n"))
    assert codes(index) == {"unmatched-file": "warning"} and len(index.samples) == 8


def test_missing_and_repeated_files(table):
    index = open_data(table("image,mask\n" + rows() + "x/77.png,y/7.png\nx/0.png,y/0.png\n"))
    assert codes(index) == {"missing-file": "error", "duplicate-name": "error"}
    assert index.findings[0].files == ("x/77.png",) and len(index.samples) == 8


@pytest.mark.parametrize("path", ["../secret.png", "/etc/passwd", "x/../../secret.png", "..\\secret.png"])
@pytest.mark.parametrize("column", [0, 1])
def test_paths_out_of_the_folder_are_refused(table, path, column):
    cells = ["x/0.png", "y/0.png"]
    cells[column] = path
    with pytest.raises(DataError, match=r"line 2: .* leads out of"):
        open_data(table("image,mask\n" + ",".join(cells) + "\n"))


@pytest.mark.parametrize("root", [".", "frames.csv", "../{}"])
def test_relative_roots(table, tmp_path, monkeypatch, root):
    table("image,mask\n" + rows())
    monkeypatch.chdir(tmp_path)
    assert len(open_data(root.format(tmp_path.name)).samples) == 8
    table("image,mask\n../secret.png,y/0.png\n")
    with pytest.raises(DataError, match="leads out of"):
        open_data(root.format(tmp_path.name))


def test_harmless_paths(table, tmp_path):
    index = open_data(
        table(f"image,mask\n./x/0.png,x/../y/0.png\n{tmp_path}/x/1.png,y/1.png\nx\\2.png,y\\2.png\n")
    )
    assert [sample.image.relative_to(tmp_path).as_posix() for sample in index.samples] == [
        f"x/{i}.png" for i in range(3)
    ]


def test_two_candidates_have_to_be_told_apart(table, tmp_path):
    table("image,mask\n" + rows())
    table("image,mask\n" + rows(numbers=range(4)), name="second.csv")
    table("frame,score\n1,2\n", name="unrelated.csv")
    with pytest.raises(DataError, match=r"frames\.csv, second\.csv"):
        open_data(tmp_path)
    assert len(open_data(tmp_path / "second.csv").samples) == 4


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("image,mask\n", "none of its 0 rows"),
        ("image,mask,mask\nx/0.png,y/0.png,y/1.png\n", "stands twice"),
        ("image,mask\n,y/0.png\n", "line 2: no image"),
        ('image,mask\n"x/0.png,y/0.png\n', "not readable as CSV"),
        ("image,mask\nx/\0.png,y/0.png\n", "zero byte|not readable"),
        ("image,mask\n" + "a" * 5000 + ".png,y/0.png\n", "none of its 1 rows"),
    ],
)
def test_damaged_tables(table, text, match):
    with pytest.raises(DataError, match=match):
        open_data(table(text))


def test_foreign_encoding(table):
    path = table("image,mask\n" + rows() + "x/ü.png,y/0.png\n", encoding="latin-1")
    with pytest.raises(DataError, match="not readable as CSV"):
        open_data(path)


def test_group_by_regular_expression_goes_first(table):
    index = open_data(table("image,mask,group\n" + rows(lambda i: ",same")), DataSettings(group=r"^(\d)"))
    assert len({sample.group for sample in index.samples}) == 8
