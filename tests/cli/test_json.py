"""`--json` is JSON and nothing else on stdout, with the keys that programs rely on."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.conftest import Command
from tests.support import TINY, make_data, set_options


def test_fit(segtune: Command, data: Path, tmp_path: Path) -> None:
    done = segtune("fit", data, "--model", "unet", "--method", "head", "--out", tmp_path / "run", "--json",
                   *set_options({**TINY, "train.steps": 1}))  # fmt: skip
    assert done.code == 0, done.err
    wanted = {"val", "test", "parameters_total", "parameters_trainable", "adapter_bytes", "train_seconds"}
    wanted |= {"wait_share", "images_per_second", "peak_process_bytes", "versions", "commit", "seed"}
    assert wanted <= done.json().keys()
    assert "estimated memory" in done.err


def test_evaluate(segtune: Command, finished: Path) -> None:
    values = segtune("evaluate", finished, "--json").json()
    assert {
        "split",
        "num_images",
        "scores",
        "per_class",
        "class_names",
        "confusion",
        "per_image",
    } <= values.keys()
    assert {"miou", "miou_per_image", "dice", "pixel_accuracy", "cross_entropy"} <= values["scores"].keys()


def test_predict(segtune: Command, finished: Path, data: Path, tmp_path: Path) -> None:
    values = segtune("predict", finished, data / "test" / "images", "--out", tmp_path / "o", "--json").json()
    assert [v.keys() for v in values] == [{"image", "mask", "overlay"}] * 2
    assert all(Path(v["mask"]).is_file() and Path(v["overlay"]).is_file() for v in values)
    values = segtune("predict", finished, data / "test" / "images", "--out", tmp_path / "p", "--json",
                     "--no-overlays").json()  # fmt: skip
    assert all(v["overlay"] is None for v in values)


def unet_parameters(widths: list[int], num_classes: int) -> int:
    """Two 3x3 convolutions with batch norm at each level and after each up-convolution, and a classifier."""

    def pair(inputs: int, outputs: int) -> int:
        return 9 * inputs * outputs + 9 * outputs**2 + 4 * outputs

    down = sum(pair(i, o) for i, o in itertools.pairwise([3, *widths]))
    up = sum(pair(2 * o, o) + 4 * 2 * o * o + o for o in widths[:-1])
    return down + up + widths[0] * num_classes + num_classes


def test_inspect(segtune: Command, data: Path) -> None:
    done = segtune("inspect", "--model", "unet", "--method", "lora", "--classes", "5", "--json")
    values = done.json()
    assert done.code == 0
    assert {"parameters_total", "parameters_trainable", "adapter_bytes", "sites", "memory"} <= values.keys()
    assert values["parameters_total"] == unet_parameters([64, 128, 256, 512, 1024], num_classes=5)
    assert 0 < values["parameters_trainable"] < values["parameters_total"]
    assert values["adapter_bytes"] > 4 * values["parameters_trainable"]
    assert {"name", "kind", "part", "block", "used"} <= values["sites"][0].keys()
    with_data = segtune("inspect", "--model", "unet", "--method", "head", "--data", data, "--json").json()
    assert with_data["num_classes"] == 3


@pytest.mark.parametrize("kind", ["models", "methods", "losses", "metrics", "formats"])
def test_list(segtune: Command, kind: str) -> None:
    values = segtune("list", kind, "--json").json()
    assert values
    assert all({"summary", "settings"} <= entry.keys() for entry in values.values())
    plain = segtune("list", kind, "--settings")
    assert [name in plain.out for name in values] == [True] * len(values)
    assert plain.err == ""


def test_merge(segtune: Command, finished: Path, tmp_path: Path) -> None:
    values = segtune("merge", finished, "--out", tmp_path / "m.safetensors", "--json").json()
    assert {"file", "bytes", "sizes", "relative_differences", "tolerance"} <= values.keys()


def test_data_check(segtune: Command, data: Path, tmp_path: Path) -> None:
    done = segtune("data", "check", data, "--json", "--preview", tmp_path / "sheet.png")
    values = done.json()
    assert done.code == 0, done.err
    assert values["format"] == "folder"
    assert values["num_classes"] == 3
    assert values["class_names"] == ["ground", "square", "band"]
    assert values["ignore_index"] == 255
    assert values["splits"] == {"train": 8, "val": 2, "test": 2}
    for finding in values["findings"]:
        assert {"severity", "code", "message", "files", "hint"} <= finding.keys()
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size[0] > 100


def test_data_check_fails_where_there_is_an_error(segtune: Command, tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    broken = data / "train" / "images" / "scene00.png"
    broken.write_bytes(broken.read_bytes()[:200])
    done = segtune("data", "check", data, "--json")
    assert done.code == 1
    (error,) = [f for f in done.json()["findings"] if f["severity"] == "error"]
    assert error["code"] == "unreadable-file"
    assert error["files"] == ["train/images/scene00.png"]
    assert error["hint"]
    allowed = segtune("data", "check", data, "--json", "--set", "data.allow=unreadable-file")
    assert allowed.code == 0, allowed.err
    plain = segtune("data", "check", data)
    assert plain.code == 1
    assert "unreadable-file" in plain.out


def test_a_run_leaves_out_what_was_allowed_and_scores_the_same(segtune: Command, tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", num_test=3)
    broken = data / "test" / "images" / "scene10.png"
    broken.write_bytes(broken.read_bytes()[:200])
    names = ["--model", "unet", "--method", "head", "--out", tmp_path / "run", "--json"]
    refused = segtune("fit", data, *names, *set_options(TINY))
    assert refused.code == 1
    assert "data.allow=[unreadable-file]" in refused.err
    assert not (tmp_path / "run").exists()
    done = segtune("fit", data, *names, *set_options({**TINY, "data.allow": "unreadable-file"}))
    assert done.code == 0, done.err
    assert done.json()["test"]["num_images"] == 2
    scored = segtune("evaluate", tmp_path / "run", "--json")
    assert scored.code == 0, scored.err
    assert scored.json()["confusion"] == done.json()["test"]["confusion"]


def test_data_check_writes_a_page_and_a_corrected_copy(segtune: Command, tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    broken = data / "train" / "images" / "scene00.png"
    broken.write_bytes(broken.read_bytes()[:200])
    page, copy = tmp_path / "check.html", tmp_path / "copy"
    done = segtune("data", "check", data, "--json", "--no-cache", "--html", page, "--fix", copy)
    assert done.code == 0, done.err
    values = done.json()
    assert values["verdict"].startswith("not ready: 1 error")
    assert values["fixed"]["written"] == 11
    assert values["fixed"]["left_out"][0].startswith("train/images/scene00.png: ")
    assert values["fixed"]["check"]["splits"] == {"train": 7, "val": 2, "test": 2}
    text = page.read_text(encoding="utf-8")
    for part in ("not ready: 1 error", "unreadable-file", "fix: copy or save them again", "48 x 64", "band"):
        assert part in text
    assert text.count("data:image/jpeg;base64,") == 8  # four of train, two of val and test
    assert "http" not in text
    plain = segtune("data", "check", data)
    assert plain.code == 1
    assert plain.out.splitlines()[0].startswith(f"{data}: not ready: 1 error")
    again = segtune("data", "check", data, "--fix", copy)
    assert again.code == 2
    assert "is there already" in again.err


def test_data_check_with_a_run(
    segtune: Command, finished: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert segtune("data", "check", data, "--run", finished, "--json").json()["suspects"] == []  # too few
    monkeypatch.setattr("segtune.data.suspects.FEWEST", 1)
    monkeypatch.setattr("segtune.data.suspects.LIMIT", -1000.0)
    done = segtune("data", "check", data, "--run", finished, "--json", "--html", tmp_path / "page.html")
    suspects = done.json()["suspects"]
    assert {s["split"] for s in suspects} == {"train", "val"} and len(suspects) == 10
    assert all(s["loss"] > 0 for s in suspects)
    assert (tmp_path / "page.html").read_text().count("times the median</figcaption>") == 10
    done = segtune("data", "check", data, "--run", tmp_path)
    assert done.code == 2 and "not the folder of a run" in done.err
