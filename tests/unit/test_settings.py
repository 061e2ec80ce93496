"""Settings read from source equal those of the imported component, without importing torch."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
from pydantic import Field, ValidationError

from segtune.data import FORMATS
from segtune.losses import LOSSES
from segtune.methods import METHODS
from segtune.metrics import METRICS
from segtune.models import MODELS
from segtune.settings import Settings, read_docstring, read_settings

REGISTRIES = {r.kind: r for r in (MODELS, METHODS, LOSSES, METRICS, FORMATS)}
COMPONENTS = [(kind, name) for kind, registry in REGISTRIES.items() for name in registry]


@pytest.mark.parametrize(("kind", "name"), COMPONENTS)
def test_settings_read_from_source_equal_the_imported_ones(kind: str, name: str) -> None:
    registry = REGISTRIES[kind]
    read = registry.settings(name)
    target = registry._entries[name]
    module, _, attribute = target.partition(":")
    imported = getattr(importlib.import_module(module), f"{attribute}Settings", Settings)
    assert read.model_json_schema() == imported.model_json_schema()
    assert read.model_fields.keys() == imported.model_fields.keys()
    for key, field in read.model_fields.items():
        other = imported.model_fields[key]
        assert (field.default, field.metadata, field.is_required()) == (
            other.default,
            other.metadata,
            other.is_required(),
        )
    assert read().model_dump() == imported().model_dump()


@pytest.mark.parametrize(("kind", "name"), COMPONENTS)
def test_every_component_and_every_setting_says_what_it_is(kind: str, name: str) -> None:
    registry = REGISTRIES[kind]
    assert len(registry.summary(name)) > 10
    for key, field in registry.settings(name).model_fields.items():
        assert field.description, f"{kind} {name}: {key} has no description"


def test_reading_every_components_settings_imports_no_torch() -> None:
    code = """
import sys
from segtune.data import FORMATS
from segtune.losses import LOSSES
from segtune.methods import METHODS
from segtune.metrics import METRICS
from segtune.models import MODELS
for registry in (MODELS, METHODS, LOSSES, METRICS, FORMATS):
    for name in registry:
        registry.settings(name)()
        registry.summary(name)
assert not {"torch", "torchvision", "segmentation_models_pytorch"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_read_settings_is_read_once() -> None:
    assert read_settings("segtune.methods.lora") is read_settings("segtune.methods.lora")


def test_docstring_is_read_from_the_file() -> None:
    assert (
        read_docstring("segtune.methods.lora")
        == importlib.import_module("segtune.methods.lora").__doc__.strip()
    )  # type: ignore[union-attr]


class Example(Settings):
    """Settings of a test."""

    names: tuple[str, ...] = Field((), description="names")
    size: tuple[int, int] | str | None = Field("auto", description="size")
    text: str = Field("", description="text")
    number: float = Field(1.0, description="number")


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"names": "a, b"}, {"names": ("a", "b")}),
        ({"names": "a"}, {"names": ("a",)}),
        ({"names": ["a,b"]}, {"names": ("a,b",)}),
        ({"size": "256,128"}, {"size": (256, 128)}),
        ({"size": "auto"}, {"size": "auto"}),
        ({"size": None}, {"size": None}),
        ({"text": "a,b"}, {"text": "a,b"}),
        ({"number": "1e-4"}, {"number": 1e-4}),
    ],
)
def test_lists_from_text(given: dict[str, object], wanted: dict[str, object]) -> None:
    read = Example.model_validate(given).model_dump()
    assert {key: read[key] for key in wanted} == wanted


def test_settings_are_frozen_and_closed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Example().text = "b"  # type: ignore[misc]
    with pytest.raises(ValidationError, match="Extra inputs"):
        Example.model_validate({"txet": "b"})
    with pytest.raises(ValidationError, match="finite"):
        Example.model_validate({"number": float("nan")})
