"""What is frozen is computed once, and nothing else changes by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from segtune.data.settings import DataSettings
from segtune.data.transforms import num_views
from segtune.engine.build import place
from segtune.engine.fit import fit
from segtune.engine.prefix import find_prefix
from segtune.engine.prefix_cache import PrefixCache, cache_folder
from segtune.engine.tensors import read_tensors
from segtune.errors import UsageError
from segtune.methods import METHODS
from segtune.methods.apply import Applied, apply
from segtune.models.base import SegModel
from segtune.models.sections import Cut, run_sections
from tests.contracts.table import SIZE, _fresh
from tests.support import log_lines, make_config, make_data

PLAIN = {"data__crop": None, "data__horizontal_flip": 0.0, "train__cache": "prefix"}


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGTUNE_PREFIX_CACHE", str(tmp_path / "prefix"))


def adapted(name: str, method: str, **settings: Any) -> tuple[SegModel, Applied]:
    model = _fresh(name)
    applied = apply(model, model.sites(), {method: METHODS.settings(method)(**settings)}, unused=model.unused)
    model.penalty_layers = list(applied.operations)
    return model, applied


def entries() -> list[Path]:
    return sorted(cache_folder().rglob("*.safetensors"))


@pytest.mark.parametrize("name", ["unet", "lraspp", "sam", "sam2", "hf-backbone:dinov2"])
def test_sections_are_the_encoder(name: str) -> None:
    model = _fresh(name).eval()
    images = torch.rand(2, model.input_spec.channels, *SIZE)
    with torch.no_grad():
        expected = model(images).logits
        state = model.prepared(images)
        for done, section in enumerate(model.sections(), 1):
            state = section.run(state)
            assert torch.equal(model(images, cut=Cut(done, state)).logits, expected), section.name


@pytest.mark.parametrize(
    ("name", "method", "settings", "last", "reason"),
    [
        ("unet", "head", {}, "encoder.2", ""),
        ("unet", "full", {}, "", "encoder.0: encoder.0.conv1.weight is trained"),
        ("unet", "norm", {}, "", "encoder.0: encoder.0.norm1.weight is trained"),
        ("unet", "lora", {"include": ("encoder.2.*",)}, "encoder.1", "encoder.2: lora is on encoder.2.conv1"),
        ("unet", "head", {"statistics": "train"}, "", "encoder.0: running statistics of its norms move"),
        (
            "sam",
            "lora",
            {"last_blocks": 2},
            "layers.0",
            "layers.1: lora is on vision_encoder.layers.1.attn.qkv",
        ),
        ("sam", "lst", {}, "patch_embed", "layers.0: lst is on vision_encoder.layers.0"),
        ("sam2", "lora", {"last_blocks": 1}, "blocks.3", ""),
        ("sequence", "lora", {"last_blocks": 1}, "", "the encoder: lora is on blocks.2.qkv"),
        ("sam", "zero-shot", {}, "neck", ""),
    ],
)
def test_the_prefix_ends_where_something_changes(
    name: str, method: str, settings: dict[str, Any], last: str, reason: str
) -> None:
    model, applied = adapted(name, method, **settings)
    prefix = find_prefix(model, applied, SIZE, "32")
    assert prefix.last == last
    assert reason in prefix.reason
    assert not model.training


def test_dropout_is_found() -> None:
    model, applied = adapted("unet", "head")
    model.dropout.p = 0.2  # type: ignore[union-attr, assignment]
    prefix = find_prefix(model, applied, SIZE, "32")
    assert prefix.last == "encoder.1"
    assert "random numbers" in prefix.reason


def cache_for(model: SegModel, applied: Applied, precision: str = "32", **changes: Any) -> PrefixCache:
    values: dict[str, Any] = {
        "prefix": find_prefix(model, applied, SIZE, precision),
        "precision": precision,
        "half": False,
        "identity": {},
        "weights": "",
        "limit": 2**30,
    }
    return PrefixCache(model, **{**values, **changes})


def gradients(model: SegModel, applied: Applied, images: torch.Tensor, cut: Cut | None) -> list[torch.Tensor]:
    model.train()
    output = model(images, cut=cut)
    total = sum((x.square().mean() for x in output.auxiliary.values()), output.logits.square().mean())
    return list(torch.autograd.grad(total, list(applied.parameters().values())))


@pytest.mark.parametrize(
    ("name", "method", "settings"),
    [
        ("unet", "head", {}),
        ("unet", "lora", {"include": ("encoder.2.*",)}),
        ("sam", "head", {}),
        ("sam", "lora", {"last_blocks": 1}),
        ("sam2", "head", {}),
        ("lraspp", "norm", {"last_blocks": 2}),
    ],
)
def test_gradients_are_those_without_the_cache(name: str, method: str, settings: dict[str, Any]) -> None:
    model, applied = adapted(name, method, **settings)
    place(model, torch.device("cpu"))  # kernels round differently for another order in memory
    images = torch.rand(2, model.input_spec.channels, *SIZE).to(memory_format=torch.channels_last)
    cache = cache_for(model, applied)
    model.pooled_norms.clear()
    for part in (images[:1], images):
        expected = gradients(model, applied, part, None)
        for _ in range(2):  # computed, then read
            found = gradients(model, applied, part, cache(part))
            if len(part) == 1:
                assert all(map(torch.equal, found, expected))
            change = sum(float((a - b).square().sum()) for a, b in zip(found, expected, strict=True))
            assert change <= 1e-6 * sum(float(b.square().sum()) for b in expected)
    assert (cache.counts.computed, cache.counts.read) == (2, 4)


def test_half_the_space_costs_rounding_only() -> None:
    model, applied = adapted("sam", "head")
    images = torch.rand(1, 3, *SIZE)
    full, half = cache_for(model, applied), cache_for(model, applied, half=True)
    one, two = full(images).state, half(images).state
    assert one.dtype == two.dtype == torch.float32
    assert not torch.equal(one, two)
    assert torch.equal(one.bfloat16().float(), two)
    sizes = [sum(f.stat().st_size for f in c.folder.glob("*.safetensors")) for c in (full, half)]
    assert sizes[1] < 0.8 * sizes[0]


def test_memory_order_is_kept() -> None:
    model, applied = adapted("unet", "head")
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    cache, images = cache_for(model, applied), torch.rand(2, 3, *SIZE)
    direct = run_sections(model.sections(), model.prepared(images.to(memory_format=torch.channels_last)))
    for _ in range(2):
        for one, other in zip(cache(images).state, direct, strict=True):
            assert one.stride() == other.stride()


def test_a_damaged_entry_is_computed_again() -> None:
    model, applied = adapted("sam", "head")
    images = torch.rand(1, 3, *SIZE)
    expected = cache_for(model, applied)(images).state
    (path,) = entries()
    for content in (b"", b"\0" * 100, path.read_bytes()[:-1]):
        path.write_bytes(content)
        cache = cache_for(model, applied)
        assert torch.equal(cache(images).state, expected)
        assert cache.counts.computed == 1


def test_room_is_made_and_the_limit_holds(tmp_path: Path) -> None:
    model, applied = adapted("sam", "head")
    old = cache_for(model, applied, weights="others")
    old(torch.rand(2, 3, *SIZE))
    size = sum(path.stat().st_size for path in entries())
    cache = cache_for(model, applied, limit=size)
    cache.make_room(size)
    assert not old.folder.exists()
    cache(torch.rand(3, 3, *SIZE))
    assert cache.counts.unwritten == 1
    assert sum(path.stat().st_size for path in entries()) <= size


def test_a_run_is_the_same_with_the_cache(tiny_data: Path, tmp_path: Path) -> None:
    runs = {"off": "off", "computed": "prefix", "read": "prefix"}
    found, results = {}, {}
    for name, cache in runs.items():
        config = make_config(
            tiny_data, method="head", **{**PLAIN, "train__cache": cache}, train__batch_size=1,
            train__epochs=2, method__statistics="frozen",
        )  # fmt: skip
        results[name] = fit(config, tmp_path / name).result
        found[name] = read_tensors(tmp_path / name / "adapter" / "adapter.safetensors")
    for name in ("computed", "read"):
        assert all(torch.equal(found[name][key], value) for key, value in found["off"].items())
        assert log_lines(tmp_path / name, "val")[-1]["miou"] == log_lines(tmp_path / "off", "val")[-1]["miou"]
    assert results["off"]["cache"] is None
    assert results["computed"]["cache"]["computed"] == 10  # 8 to train on, 2 to validate
    assert results["read"]["cache"]["computed"] == 0
    assert results["read"]["cache"]["read"] == 2 * 8 + 3 * 2


def test_flipped_images_have_entries_of_their_own(tiny_data: Path, tmp_path: Path) -> None:
    config = make_config(tiny_data, method="head", **{**PLAIN, "data__horizontal_flip": 0.5}, train__epochs=6)
    result = fit(config, tmp_path / "run").result
    assert 10 < result["cache"]["computed"] <= 18


def test_views_repeat(tiny_data: Path, tmp_path: Path) -> None:
    settings = {"data__crop": "32,32", "train__cache": "prefix", "train__cache_views": 2}
    result = fit(make_config(tiny_data, method="head", **settings, train__epochs=4), tmp_path / "run").result
    assert result["cache"]["computed"] <= 2 * 8 + 2
    losses = [line["loss"] for line in log_lines(tmp_path / "run", "train")]
    assert len(set(losses)) == len(losses)


@pytest.mark.parametrize(
    ("settings", "message", "hint"),
    [
        ({"method": "full"}, "changes from the start", "last_blocks"),
        ({"data__crop": "32,32"}, "none is seen twice", "--set data.crop=null"),
        (
            {"data__colour": 0.5, "data__rand_augment": 1},
            "none is seen twice",
            "data.colour=0 --set data.rand_augment=0",
        ),
        ({"train__cache_limit": 1e-6}, "train.cache_limit is 1e-06 GiB", "train.cache_precision=bf16"),
    ],
)
def test_what_cannot_be_cached_is_refused(
    tiny_data: Path, tmp_path: Path, settings: dict[str, Any], message: str, hint: str
) -> None:
    config = make_config(tiny_data, **{"method": "head", **PLAIN, **settings})
    with pytest.raises(UsageError, match=message) as error:
        fit(config, tmp_path / "run")
    assert hint in (error.value.hint or "")
    assert not (tmp_path / "run").exists()
    assert not entries()


@pytest.mark.parametrize(
    ("settings", "crop", "views"),
    [
        ({}, None, 2),
        ({"horizontal_flip": 0}, None, 1),
        ({"horizontal_flip": 1}, None, 1),
        ({"vertical_flip": 0.5}, None, 4),
        ({}, (48, 64), 2),
        ({}, (64, 64), 2),
        ({}, (32, 64), None),
        ({"resize": (32, 32)}, (32, 32), 2),
        ({"scale": (0.5, 1)}, None, None),
        ({"scale": (0.5, 0.5)}, None, 2),
        ({"scale": (2, 2)}, (48, 64), None),
        ({"colour": 0.1}, None, None),
        ({"rand_augment": 1}, None, None),
    ],
)
def test_number_of_views(settings: dict[str, Any], crop: tuple[int, int] | None, views: int | None) -> None:
    assert num_views(DataSettings(**settings), crop, [(48, 64), (40, 64)]) == views


def test_two_sizes_share_a_cache(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", sizes=((48, 64), (32, 40)))
    config = make_config(data, method="head", **PLAIN, train__batch_size=1, train__epochs=1)
    assert fit(config, tmp_path / "run").result["cache"]["computed"] == 10
