"""The package from Python: the same job as on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import segtune
from segtune.engine.reporter import Reporter
from segtune.errors import NoSiteError, SettingsError, UnknownNameError, UsageError
from tests.support import TINY, make_data

SETTINGS = {key: value for key, value in TINY.items() if key != "data.path"}
IMAGES = torch.rand(2, 3, 40, 56, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("api"))


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("api-run") / "run"
    segtune.fit(data, model="unet", method="lora", out=out, settings=SETTINGS)
    return out


def test_load_and_adapt() -> None:
    model = segtune.load_model("unet", 3, depth=1, width=4, seed=5)
    assert not model.training
    with torch.no_grad():
        before = model(IMAGES).logits
    assert before.shape == (2, 3, 40, 56)
    applied = segtune.adapt(model, "lora+norm", rank=2, seed=1)
    assert applied.method == "lora+norm"
    with torch.no_grad():
        assert torch.equal(model(IMAGES).logits, before)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == set(applied.parameters())
    optimizer = torch.optim.Adam(applied.parameters().values(), lr=0.1)
    model(IMAGES).logits.square().mean().backward()
    optimizer.step()
    with torch.no_grad():
        assert not torch.equal(model(IMAGES).logits, before)
        applied.remove()
        assert torch.equal(model(IMAGES).logits, before)


def test_seeds() -> None:
    one, same = (segtune.load_model("unet", 3, depth=1, width=4, seed=5).state_dict() for _ in range(2))
    other = segtune.load_model("unet", 3, depth=1, width=4, seed=6).state_dict()
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_fit_evaluate_predict_merge(data: Path, run: Path, tmp_path: Path) -> None:
    again = segtune.fit(str(data), model="unet", method="lora", out=tmp_path / "b", settings=SETTINGS)
    result = segtune.evaluate(run)
    assert result.scores == pytest.approx(again.scores, rel=1e-6)
    assert segtune.evaluate(str(run), split="val", batch_size=2).num_images == 2
    other = segtune.evaluate(run, data=data, settings={"data.window": (32, 32)})
    assert other.settings["window"] == (32, 32)
    for images in (data / "test" / "images", [str(data / "test" / "images" / "scene10.png")]):
        made = list(segtune.predict(run, images, out=tmp_path / "masks", overlays=False))
        assert made
        assert all(prediction.mask.is_file() for prediction in made)
    report = segtune.merge(run, tmp_path / "merged.safetensors")
    model = segtune.load_model("unet", 3, weights=report["file"], depth=1, width=4)
    loaded = segtune.load_model("unet", 3, weights=str(tmp_path / "merged.safetensors"), depth=1, width=4)
    assert torch.equal(model(IMAGES).logits, loaded(IMAGES).logits)


def test_runs_resume_and_report(data: Path, tmp_path: Path) -> None:
    class Seen(Reporter):
        def __init__(self) -> None:
            self.steps: list[int] = []
            self.closed = 0

        def step(self, values: Any) -> None:
            self.steps.append(values["step"])

        def close(self) -> None:
            self.closed += 1

    seen = Seen()
    arguments: dict[str, Any] = {
        "model": "unet",
        "method": "head",
        "out": tmp_path / "r",
        "settings": SETTINGS,
    }
    segtune.fit(data, **arguments, reporter=seen)
    assert seen.steps == [1, 2, 3]
    assert seen.closed >= 1
    with pytest.raises(UsageError, match="is not empty"):
        segtune.fit(data, **arguments)
    assert segtune.fit(data, **arguments, resume=True).result["steps"] == 3


def test_relative_data_is_found_from_elsewhere(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data.parent)
    segtune.fit(data.name, model="unet", method="head", out=tmp_path / "run", settings=SETTINGS)
    monkeypatch.chdir(tmp_path)
    assert segtune.evaluate("run").num_images == 2


def test_mistakes(data: Path, run: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"model\.dept = 1 \(from settings\).*did you mean model\.depth"):
        segtune.load_model("unet", 3, dept=1)
    with pytest.raises(SettingsError, match="did you mean 'unet'"):
        segtune.load_model("unett", 3)
    with pytest.raises(UsageError, match="at least 2 classes"):
        segtune.load_model("unet", 1)
    with pytest.raises(UnknownNameError, match="no published weights called 'imagenet'"):
        segtune.load_model("unet", 3, weights="imagenet", depth=1, width=4)
    model = segtune.load_model("unet", 3, depth=1, width=4)
    before = {name: (p.requires_grad, type(p)) for name, p in model.named_parameters()}
    with pytest.raises(NoSiteError):
        segtune.adapt(model, "lora", kinds="attention_qkv")
    assert {name: (p.requires_grad, type(p)) for name, p in model.named_parameters()} == before
    with pytest.raises(UsageError, match="is no setting"):
        segtune.fit(data, model="unet", method="head", out=tmp_path / "x", settings={"train.": 1})
    with pytest.raises(SettingsError, match="expected settings"):
        segtune.fit(data, model="unet", method="head", out=tmp_path / "x", settings={"train": 1})
    with pytest.raises(UsageError, match="has a value of its own already"):
        settings = {"method.lora": 3, "method.lora.rank": 2}
        segtune.fit(data, model="unet", method="lora", out=tmp_path / "x", settings=settings)
    with pytest.raises(UsageError, match="there is no data at"):
        segtune.fit(tmp_path / "no", model="unet", method="head", out=tmp_path / "x")
    with pytest.raises(SettingsError, match="only data"):
        segtune.evaluate(run, settings={"train.seed": 1})
    assert not (tmp_path / "x").exists()
