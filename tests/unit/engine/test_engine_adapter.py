"""Adapters come back bit for bit, are refused on another base, and damage is an error with a name."""

from __future__ import annotations

import json
import pickletools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from segtune.data.base import Classes
from segtune.engine.adapter import (
    TENSORS,
    AdapterDescription,
    load_adapter,
    read_description,
    save_adapter,
    verify_adapter,
)
from segtune.engine.fit import fit
from segtune.engine.folder import DESCRIPTION
from segtune.engine.run import load_run
from segtune.errors import AdapterError, UsageError, WeightsError
from segtune.models.build import build_model
from segtune.models.unet import UNetSettings
from tests.support import CLASS_NAMES, make_config

IMAGES = torch.rand(2, 3, 40, 56, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def adapter(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_run / "adapter", tmp_path / "adapter"))


def change(adapter: Path, **values: Any) -> None:
    path = adapter / DESCRIPTION
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def change_tensors(adapter: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(adapter / TENSORS)
    edit(tensors)
    save_file(tensors, adapter / TENSORS)


# --- there and back ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["full", "head", "bitfit", "norm", "lora", "lora+norm", "scratch"])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_saved_and_loaded_bit_for_bit(tiny_data: Path, tmp_path: Path, method: str, norm: str) -> None:
    config = make_config(
        tiny_data,
        method=method,
        model__norm=norm,
        method__statistics="train",
        train__steps=2,
        optim__learning_rate=0.05,
    )
    fit(config, tmp_path / "run")
    tensors = load_file(tmp_path / "run" / "adapter" / TENSORS)
    best = load_file(tmp_path / "run" / "checkpoints" / "step-2.safetensors")
    first, description = load_adapter(tmp_path / "run" / "adapter")
    state = first.applied.state_dict()
    assert tensors.keys() == best.keys() == state.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, best[name])
        assert torch.equal(tensor, state[name].contiguous())
    moved = [name for name in tensors if name.endswith("running_mean")]
    assert bool(moved) == (norm == "batch"), "running statistics that moved belong to the adapter"
    assert all(tensors[name].abs().sum() > 0 for name in moved)
    # saved once more from the loaded model, it is the same file
    save_adapter(first, description, tmp_path / "again")
    for file in (TENSORS, DESCRIPTION):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "run" / "adapter" / file).read_bytes()
    verify_adapter(first, tmp_path / "again", IMAGES)


def test_the_description_says_everything(tiny_run: Path) -> None:
    description = read_description(tiny_run / "adapter")
    assert description.model == "unet"
    assert description.model_settings["depth"] == 1
    assert list(description.method) == ["lora", "norm"]
    assert description.class_names == CLASS_NAMES
    assert len(description.palette) == 3
    assert description.ignore_index == 255
    assert description.classes == Classes(names=CLASS_NAMES, palette=description.palette)
    assert len(description.mean) == len(description.std) == description.channels == 3
    assert len(description.base_fingerprint) == 64
    assert description.weights == "none"
    assert description.inference["precision"] == "32"
    assert {"segtune", "torch"} <= description.versions.keys()


def test_nothing_is_a_pickle_but_the_checkpoint(tiny_run: Path) -> None:
    for file in sorted(tiny_run.rglob("*")):
        if file.is_file() and file.name != "last.pt":
            content = file.read_bytes()
            assert not content.startswith((b"PK", b"\x80")), file
            with pytest.raises((ValueError, UnicodeDecodeError)):
                list(pickletools.genops(content))


def test_a_run_folder_and_its_adapter_are_the_same_model(tiny_run: Path) -> None:
    run, alone = load_run(tiny_run), load_run(tiny_run / "adapter")
    assert alone.config is None
    assert run.config is not None
    with torch.no_grad():
        assert torch.equal(run.tunable.model(IMAGES).logits, alone.tunable.model(IMAGES).logits)


# --- another base -----------------------------------------------------------------------------


def test_refused_on_another_base_with_both_fingerprints(adapter: Path, tmp_path: Path) -> None:
    description = read_description(adapter)
    other = build_model("unet", 3, UNetSettings(depth=1, width=4), seed=99)
    save_file({k: v.contiguous() for k, v in other.state_dict().items()}, tmp_path / "other.safetensors")
    with pytest.raises(AdapterError, match="was trained on another base") as caught:
        load_adapter(adapter, weights=str(tmp_path / "other.safetensors"))
    assert description.base_fingerprint[:16] in caught.value.message
    assert str(tmp_path / "other.safetensors") in caught.value.message
    assert "--weights" in str(caught.value.hint)


def test_the_base_may_lie_elsewhere(tiny_data: Path, tmp_path: Path) -> None:
    base = build_model("unet", 3, UNetSettings(depth=1, width=4), seed=7)
    file = tmp_path / "base.safetensors"
    save_file({k: v.contiguous() for k, v in base.state_dict().items()}, file)
    fit(make_config(tiny_data, model__weights=str(file)), tmp_path / "run")
    expected = load_run(tmp_path / "run").tunable.model(IMAGES).logits
    file.rename(tmp_path / "moved.safetensors")
    with pytest.raises(WeightsError, match="does not exist"):
        load_run(tmp_path / "run")
    moved = load_run(tmp_path / "run", weights=str(tmp_path / "moved.safetensors"))
    assert torch.equal(moved.tunable.model(IMAGES).logits, expected)


def test_a_changed_base_is_noticed(tiny_data: Path, tmp_path: Path) -> None:
    base = build_model("unet", 3, UNetSettings(depth=1, width=4), seed=7)
    file = tmp_path / "base.safetensors"
    state = {k: v.contiguous() for k, v in base.state_dict().items()}
    save_file(state, file)
    fit(make_config(tiny_data, model__weights=str(file)), tmp_path / "run")
    state["encoder.0.conv1.weight"].view(-1)[0] += 1e-6
    save_file(state, file)
    with pytest.raises(AdapterError, match="another base"):
        load_run(tmp_path / "run")


# --- damage -----------------------------------------------------------------------------------


def test_missing_extra_and_misshapen_tensors(adapter: Path) -> None:
    name = next(iter(load_file(adapter / TENSORS)))
    for edit, piece in (
        (lambda t: t.pop(name), f"1 missing ({name})"),
        (lambda t: t.update(more=torch.zeros(1)), "1 unknown (more)"),
        (lambda t: t.update({name: torch.zeros(1, 2, 3)}), f"1 of another shape ({name})"),
    ):
        original = (adapter / TENSORS).read_bytes()
        change_tensors(adapter, edit)  # type: ignore[arg-type]
        with pytest.raises(AdapterError) as caught:
            load_adapter(adapter)
        assert piece in str(caught.value)
        (adapter / TENSORS).write_bytes(original)
    load_adapter(adapter)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_truncated_tensors(adapter: Path, share: float) -> None:
    content = (adapter / TENSORS).read_bytes()
    (adapter / TENSORS).write_bytes(content[: int(len(content) * share)])
    with pytest.raises(AdapterError, match=r"adapter\.safetensors cannot be read"):
        load_adapter(adapter)


def test_missing_files(adapter: Path) -> None:
    (adapter / TENSORS).unlink()
    with pytest.raises(AdapterError, match=r"adapter\.safetensors cannot be read"):
        load_adapter(adapter)
    (adapter / DESCRIPTION).unlink()
    with pytest.raises(AdapterError, match="holds no adapter"):
        load_adapter(adapter)
    with pytest.raises(UsageError, match="is not the folder of a run"):
        load_run(adapter)
    with pytest.raises(UsageError, match="there is no run folder"):
        load_run(adapter / "nowhere")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '"x"', "[" * 5000, '{"a": 1}'])
def test_damaged_descriptions(adapter: Path, text: str) -> None:
    (adapter / DESCRIPTION).write_text(text)
    with pytest.raises(AdapterError, match=r"adapter\.json is damaged"):
        load_adapter(adapter)


def test_bytes_in_place_of_a_description(adapter: Path) -> None:
    (adapter / DESCRIPTION).write_bytes(b"\x80\x04\xff\xfe")
    with pytest.raises(AdapterError, match="is damaged"):
        load_adapter(adapter)


def test_a_newer_format(adapter: Path) -> None:
    change(adapter, format_version=2, something_new={})
    with pytest.raises(AdapterError, match="has format version 2; this segtune reads version 1") as caught:
        load_adapter(adapter)
    assert "install" in str(caught.value.hint)


@pytest.mark.parametrize(
    "values",
    [
        {"unknown": 1},
        {"seed": "x"},
        {"model": "unett"},
        {"model": 3},
        {"model_settings": {"depth": 0}},
        {"model_settings": {"dept": 1}},
        {"model_settings": []},
        {"method": {"lora": {"rank": "many"}}},
        {"method": {"lroa": {}}},
        {"method": {}},
        {"method": "lora"},
        {"class_names": ["one"]},
        {"class_names": 3},
        {"palette": [[1, 2]]},
        {"mean": ["a"]},
        {"inference": {"precision": "64"}},
        {"inference": {"windw": 3}},
        {"inference": {"window": "huge"}},
        {"inference": 3},
        {"weights": None},
        {"base_fingerprint": None},
    ],
)
def test_descriptions_that_describe_nothing(adapter: Path, values: dict[str, Any]) -> None:
    change(adapter, **values)
    with pytest.raises(AdapterError, match="does not describe an adapter of this segtune") as caught:
        load_adapter(adapter)
    assert caught.value.hint is not None


@pytest.mark.parametrize("key", ["model", "method", "class_names", "base_fingerprint", "palette"])
def test_descriptions_with_a_gap(adapter: Path, key: str) -> None:
    values = json.loads((adapter / DESCRIPTION).read_text())
    del values[key]
    (adapter / DESCRIPTION).write_text(json.dumps(values))
    with pytest.raises(AdapterError, match=f"does not describe .*{key}: Field required"):
        load_adapter(adapter)


def test_other_settings_than_those_of_the_tensors(adapter: Path) -> None:
    values = json.loads((adapter / DESCRIPTION).read_text())
    values["method"]["lora"]["rank"] = 2
    (adapter / DESCRIPTION).write_text(json.dumps(values))
    with pytest.raises(AdapterError, match="of another shape"):
        load_adapter(adapter)


def test_verification_notices_one_changed_bit(tiny_run: Path, adapter: Path) -> None:
    tunable, _ = load_adapter(tiny_run / "adapter")

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        tensors["head.bias"][0] += 1e-3

    change_tensors(adapter, edit)
    with pytest.raises(AdapterError, match="another output when it is loaded back"):
        verify_adapter(tunable, adapter, IMAGES)


def test_every_field_is_written(tiny_run: Path) -> None:
    values = json.loads((tiny_run / "adapter" / DESCRIPTION).read_text())
    assert values.keys() == AdapterDescription.__dataclass_fields__.keys()
