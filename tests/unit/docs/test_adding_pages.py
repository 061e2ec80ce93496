"""The examples of the other pages on adding something, put in place as the pages say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from segtune.data import FORMATS
from segtune.data.open import open_data
from segtune.errors import DataError
from segtune.losses import LOSSES
from segtune.models import MODELS
from segtune.models.build import build_model
from segtune.models.sites import probe_access
from segtune.types import Access, SiteKind
from tests.contracts import table
from tests.contracts import test_methods as contracts


@pytest.fixture
def model(place, monkeypatch):
    name = place("adding-a-model.md", MODELS)
    monkeypatch.setitem(table.MODELS, name, (name, {"width": 8}))
    return name


def test_the_example_of_a_model_takes_every_size(model):
    network = build_model(model, 3, MODELS.settings(model)(width=8, channels=1)).eval()
    for size in ((1, 1), (33, 50)):
        assert network(torch.rand(2, 1, *size)).logits.shape == (2, 3, *size)
    assert set(probe_access(network, network.sites()).values()) == {Access.CALL}


def test_the_example_of_a_model_has_as_many_parameters_as_its_docstring_says(model):
    width, classes = 8, 3
    network = build_model(model, classes, MODELS.settings(model)(width=width), meta=True)
    expected = 27 * width + 18 * width**2 + 6 * width + classes * (width + 1)
    assert sum(p.numel() for p in network.parameters()) == expected
    assert {site.kind for site in network.sites()} == {
        SiteKind.BLOCK,
        SiteKind.CONV,
        SiteKind.NORM,
        SiteKind.HEAD,
    }


@pytest.mark.parametrize("method", ["lora", "head"])
def test_methods_keep_their_contracts_on_the_example_of_a_model(model, method):
    torch.manual_seed(0)
    contracts.test_output_is_unchanged_at_the_start(model, method)
    contracts.test_a_step_moves_what_is_declared_and_nothing_else(model, method)
    contracts.test_merged_equals_unmerged_or_says_why_not(model, method)


@pytest.fixture
def loss(place):
    name = place("adding-a-loss.md", LOSSES)
    return LOSSES.load(name)(LOSSES.settings(name)(weights=(1, 2, 3)), num_classes=3, ignore_index=255)


def test_the_example_of_a_loss_equals_its_formula(loss):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 2, 3, generator=generator)
    masks = torch.randint(3, (2, 2, 3), generator=generator)
    masks[0, 0, 0] = 255
    total, weight = 0.0, 0.0
    for b, i, j in np.ndindex(2, 2, 3):
        label = int(masks[b, i, j])
        if label != 255:
            truth = torch.eye(3)[label]
            total += (label + 1) * float((logits[b, :, i, j].softmax(0) - truth).square().sum())
            weight += label + 1
    assert loss(logits, masks).item() == pytest.approx(total / weight, rel=1e-6)


def test_the_example_of_a_loss_leaves_ignored_pixels_alone(loss):
    logits = torch.randn(1, 3, 2, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss(logits, torch.tensor([[[0, 255], [255, 2]]])).backward()
    moved = logits.grad[0].abs().sum(dim=0) > 0
    assert moved.tolist() == [[True, False], [False, True]]
    assert loss(logits, torch.full((1, 2, 2), 255)).item() == 0


@pytest.fixture
def data(place, tmp_path):
    assert place("adding-a-format.md", FORMATS) == "pairs"
    root = tmp_path / "data"
    root.mkdir()
    for number in range(4):
        image = np.full((6, 8, 3), 40 * number, np.uint8)
        mask = np.arange(48, dtype=np.uint8).reshape(6, 8) % 3
        Image.fromarray(image).save(root / f"a{number}.png")
        Image.fromarray(mask).save(root / f"b{number}.png")
    return root


def test_the_example_of_a_format_is_found_and_read(data):
    (data / "pairs.txt").write_text("".join(f"a{n}.png b{n}.png\n" for n in range(5)))
    index = open_data(data)
    assert index.format == "pairs"
    assert [sample.name for sample in index.samples] == ["a0", "a1", "a2", "a3"]
    assert index.classes.num_classes == 3
    assert "there is a pairs.txt" in index.evidence[0]
    [finding] = [finding for finding in index.findings if finding.code == "missing-file"]
    assert finding.files == ("a4.png", "b4.png")


def test_the_example_of_a_format_refuses_what_it_cannot_read(data):
    (data / "pairs.txt").write_text("a0.png\n")
    with pytest.raises(DataError, match=r"line 1: 'a0.png' is not an image and a mask"):
        open_data(data)
