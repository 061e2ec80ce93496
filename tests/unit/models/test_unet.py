import pytest
import torch

from segtune.models.build import build_model
from segtune.models.sites import probe_access
from segtune.models.unet import UNetSettings
from segtune.types import Access, Part, SiteKind


def build(num_classes=3, **settings):
    return build_model("unet", num_classes, UNetSettings(**{"width": 4, "depth": 2, **settings}))


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (16, 16), (37, 50)])
@pytest.mark.parametrize("training", [True, False])
def test_logits_have_the_size_of_the_images(size, training):
    model = build().train(training)
    assert model(torch.rand(1, 3, *size)).logits.shape == (1, 3, *size)


def test_logits_at_the_size_asked_for():
    assert build()(torch.rand(2, 3, 20, 24), size=(41, 33)).logits.shape == (2, 3, 41, 33)


@pytest.mark.parametrize("norm", ["batch", "group", "instance", "none"])
@pytest.mark.parametrize("up", ["transpose", "bilinear"])
@pytest.mark.parametrize("channels", [1, 3, 7])
def test_every_form_trains(norm, up, channels):
    model = build(norm=norm, up=up, channels=channels, width=6, dropout=0.1)
    model(torch.rand(1, channels, 9, 11)).logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_number_of_parameters_is_the_documented_one():
    model = build_model("unet", 2, meta=True)
    assert sum(p.numel() for p in model.parameters()) == 31_037_698


def test_sites_run_from_the_input_to_the_output():
    model = build(depth=2)
    sites = model.sites()
    assert [s.name for s in sites if s.kind is SiteKind.BLOCK] == [
        "encoder.0", "encoder.1", "encoder.2", "decoder.0", "decoder.1",
    ]  # fmt: skip
    kinds = [s.kind for s in sites]
    counts = {kind: kinds.count(kind) for kind in set(kinds)}
    assert counts == {
        SiteKind.BLOCK: 5, SiteKind.CONV: 10, SiteKind.NORM: 10, SiteKind.CONV_TRANSPOSE: 2, SiteKind.HEAD: 1,
    }  # fmt: skip
    indices = [s.block for s in sites if s.block is not None]
    assert indices == sorted(indices)
    assert {s.part for s in sites if s.name.startswith("encoder")} == {Part.ENCODER}
    assert {s.part for s in sites if s.name.startswith("decoder")} == {Part.DECODER}
    assert (sites[-1].name, sites[-1].part) == ("head", Part.HEAD)
    assert {s.channel_axis for s in sites} == {1}
    assert all(model.get_submodule(s.name) is s.module for s in sites)


@pytest.mark.parametrize("up", ["transpose", "bilinear"])
def test_every_site_is_called(up):
    model = build(up=up)
    assert set(probe_access(model, model.sites()).values()) == {Access.CALL}
