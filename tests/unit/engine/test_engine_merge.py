"""Merging: on a copy, with proof, into a file that serves as weights."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from segtune.engine import merge as merging
from segtune.engine.fit import fit
from segtune.engine.merge import merge_run
from segtune.engine.run import load_run
from segtune.errors import MergeError, UsageError
from segtune.models.build import build_model
from segtune.models.unet import UNetSettings
from segtune.models.weights import load_weights
from tests.support import make_config, tree_hash

IMAGES = torch.rand(1, 3, 37, 61, generator=torch.Generator().manual_seed(3))


def test_parity_source_and_classifier(tiny_run: Path, tmp_path: Path) -> None:
    before = tree_hash(tiny_run)
    run = load_run(tiny_run)
    state = copy.deepcopy(run.tunable.model.state_dict())
    with torch.no_grad():
        expected = run.tunable.model(IMAGES).logits
    out = tmp_path / "merged.safetensors"
    report = merge_run(run, out)

    assert report["file"] == str(out)
    assert report["bytes"] == out.stat().st_size
    assert len(report["sizes"]) == 2
    assert report["sizes"][0] != report["sizes"][1]
    for values in report["relative_differences"].values():
        assert len(values) == 2
        assert max(values) <= report["tolerance"]
    assert tree_hash(tiny_run) == before
    assert all(torch.equal(tensor, state[name]) for name, tensor in run.tunable.model.state_dict().items())
    assert list(tmp_path.iterdir()) == [out]

    fresh = build_model("unet", 3, UNetSettings(depth=1, width=4), seed=5).eval()
    assert load_file(out).keys() == fresh.state_dict().keys()
    assert load_weights(fresh, str(out)).kept_head
    with torch.no_grad():
        torch.testing.assert_close(fresh(IMAGES).logits, expected, atol=1e-5, rtol=1e-4)
    with safe_open(out, "pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["class_names"]) == ["ground", "square", "band"]
    assert metadata["model"] == "unet"


@pytest.mark.parametrize("method", ["head", "bitfit", "full"])
def test_methods_without_operations_merge_as_they_are(tiny_data: Path, tmp_path: Path, method: str) -> None:
    fit(make_config(tiny_data, method=method, train__steps=1), tmp_path / "run")
    report = merge_run(load_run(tmp_path / "run"), tmp_path / "m.safetensors")
    assert max(max(values) for values in report["relative_differences"].values()) == 0


def test_merged_weights_start_another_run(tiny_run: Path, tiny_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged.safetensors"
    merge_run(load_run(tiny_run), out)
    settings = {"model__weights": str(out), "method__train_head": False, "train__steps": 1}
    result = fit(make_config(tiny_data, method="lora", **settings), tmp_path / "second")
    assert result.result["weights"] == str(out)
    load_run(tmp_path / "second")


def test_refuses_other_files(tiny_run: Path, tmp_path: Path) -> None:
    run = load_run(tiny_run)
    out = tmp_path / "there.safetensors"
    out.write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        merge_run(run, out)
    assert out.read_text() == "mine"
    with pytest.raises(UsageError, match=r"is a \.safetensors file"):
        merge_run(run, tmp_path / "model.pth")
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("bad", ["merged", "written"])
def test_without_parity_nothing_is_written(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: str
) -> None:
    out = tmp_path / "merged.safetensors"
    measure, calls = merging.differences_of, []

    def differ(*arguments: object) -> list[float]:
        calls.append(1)
        values = measure(*arguments)  # type: ignore[arg-type]
        return [1.0, 1.0] if len(calls) == (1 if bad == "merged" else 2) else values

    monkeypatch.setattr(merging, "differences_of", differ)
    with pytest.raises(MergeError, match=f"{bad} (model|file)? ?does not agree|{bad}"):
        merge_run(load_run(tiny_run), out)
    assert list(tmp_path.iterdir()) == []


def test_an_old_file_stays_where_parity_fails(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "merged.safetensors"
    out.write_text("old")
    monkeypatch.setattr(merging, "load_weights", lambda *_: None)
    with pytest.raises(MergeError):
        merge_run(load_run(tiny_run), out, overwrite=True)
    assert out.read_text() == "old"
    assert list(tmp_path.iterdir()) == [out]
