"""Names to components: suggestions, families, and nothing imported before it is needed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from segtune.errors import UnknownNameError
from segtune.methods import METHODS
from segtune.models import MODELS
from segtune.registry import Registry, nearest
from segtune.settings import Settings


@pytest.mark.parametrize(
    ("name", "meant"),
    [("lroa", "lora"), ("LORA", "lora"), ("bitfitt", "bitfit"), ("heads", "head"), ("zzzzzz", None)],
)
def test_nearest_name(name: str, meant: str | None) -> None:
    assert nearest(name, list(METHODS)) == meant


def test_unknown_name_names_the_nearest_and_all() -> None:
    with pytest.raises(UnknownNameError) as caught:
        MODELS.load("unett")
    assert "no model called 'unett'" in caught.value.message
    assert caught.value.hint is not None
    assert "did you mean 'unet'?" in caught.value.hint
    assert "deeplabv3_resnet50" in caught.value.hint
    assert "smp:..." in caught.value.hint
    assert caught.value.exit_code == 2


def test_family_names() -> None:
    assert "smp:unet/resnet18" in MODELS
    assert "smp:" not in MODELS
    assert "unet:small" not in MODELS
    assert 3 not in MODELS
    MODELS.check("smp:unet/resnet18")
    assert MODELS.settings("smp:unet/resnet18") is MODELS.settings("smp:")
    with pytest.raises(UnknownNameError, match="is a family of models"):
        MODELS.check("smp:")
    with pytest.raises(UnknownNameError, match="no model called 'unet:small'"):
        MODELS.check("unet:small")


def test_iteration_and_length() -> None:
    registry = Registry("thing", {"one": "json:loads", "many:": "json:dumps"})
    assert list(registry) == ["one", "many:"]
    assert len(registry) == 2
    assert registry.load("one") is __import__("json").loads
    assert registry.load("many:x") is __import__("json").dumps


def test_component_without_settings_takes_none() -> None:
    assert Registry("thing", {"one": "json:loads"}).settings("one") is Settings


def test_names_can_be_checked_without_torch() -> None:
    code = """
import sys
from segtune.models import MODELS
MODELS.check("deeplabv3_resnet50")
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
