"""Which sites a method's placement settings leave."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers", reason="needs the extra hf")

from segtune.errors import NoSiteError
from segtune.methods import METHODS
from segtune.methods.apply import apply
from segtune.types import SiteKind
from tests.contracts.table import make_applied, make_model, offers, parts_of

CHOOSING = [
    name
    for name in METHODS
    if not name.endswith(":") and "attention" in METHODS.settings(name).model_fields and offers("sam", name)
]


def blocks_of(applied):
    """Indices of the blocks in use, and the kinds of what lies outside of blocks."""
    used = [site for site in applied.sites if site.kind is not SiteKind.HEAD]
    return {site.block for site in used if site.block is not None}, {s.kind for s in used if s.block is None}


@pytest.mark.parametrize("method", CHOOSING)
def test_only_blocks_that_attend_as_asked(method):
    for attention, indices in (("global", {1}), ("windowed", {0, 2})):
        blocks, outside = blocks_of(make_applied(make_model("sam"), method, attention=attention))
        assert blocks == indices
        # its prompts are made where the patches are, whichever blocks get them
        assert outside == ({SiteKind.CONV} if method == "sam-adapter" else set())


def test_it_goes_together_with_the_other_settings():
    applied = make_applied(make_model("sam"), "lora", attention="windowed", last_blocks=1)
    assert blocks_of(applied)[0] == {2}
    model = make_model("sam")
    with pytest.raises(NoSiteError, match="blocks and attention together leave none"):
        apply(model, model.sites(), parts_of("lora", attention="global", last_blocks=1))


@pytest.mark.parametrize(("name", "found"), [("unet", "none that says"), ("attention", "none that says")])
def test_a_network_without_such_blocks_is_refused(name, found):
    model = make_model(name)
    with pytest.raises(NoSiteError, match=r"method\.attention=windowed, and there is") as caught:
        apply(model, model.sites(), parts_of("lora", attention="windowed"))
    assert found in caught.value.hint
    assert all(parameter.requires_grad for parameter in model.parameters())
