"""Candidates of wrong labels: the rule on given losses, and a run that is asked."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from segtune.data.check import check_data
from segtune.data.settings import DataSettings
from segtune.data.suspects import FEWEST, LIMIT, find_suspects
from tests.support import memory_index


def samples_of(names, split="train"):
    pair = (np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), np.uint8))
    return memory_index(dict.fromkeys(names, pair), split).samples


def spread_losses(number: int = 40, seed: int = 0) -> dict[str, float]:
    """Losses whose logarithms are normal around -1 with deviation 0.2."""
    values = np.random.default_rng(seed).normal(-1, 0.2, number)
    return {f"i{n}": float(np.exp(value)) for n, value in enumerate(values)}


def test_the_rule_by_hand():
    losses = spread_losses() | {"wrong": 2.5, "worse": 4.0}
    logarithms = np.log(list(losses.values()))
    middle = np.median(logarithms)
    deviation = 1.4826 * np.median(np.abs(logarithms - middle))
    expected = [name for name, loss in losses.items() if np.log(loss) - middle > LIMIT * deviation]
    found = find_suspects(samples_of(losses), losses)
    assert {s.sample.name for s in found} == set(expected)
    assert [s.sample.name for s in found[:2]] == ["worse", "wrong"]
    assert found[0].deviations == pytest.approx((math.log(4.0) - middle) / deviation)
    assert found[0].median == pytest.approx(math.exp(middle)) and found[0].loss == 4.0


def test_each_split_has_a_median_of_its_own():
    train = {f"t{name}": loss / 20 for name, loss in spread_losses().items()}
    val = {f"v{name}": loss for name, loss in spread_losses(seed=1).items()}
    samples = (*samples_of(train), *samples_of(val, "val"))
    # On one scale the whole of val would stand out.
    usual = {s.sample.name for s in find_suspects(samples, train | val)}
    assert not any(name.startswith("v") for name in usual) or len(usual) < 4
    found = find_suspects(samples, train | val | {"ti3": 0.3})
    assert found[0].sample.name == "ti3"


def test_too_few_images_equal_losses_and_images_without_pixels():
    few = spread_losses(FEWEST - 2) | {"wrong": 9.0}
    assert find_suspects(samples_of(few), few) == []
    equal = dict.fromkeys((f"i{n}" for n in range(30)), 0.5) | {"a little more": 0.55, "more": 0.8}
    assert [s.sample.name for s in find_suspects(samples_of(equal), equal)] == ["more"]
    nothing = equal | {"ignored": math.nan}
    assert [s.sample.name for s in find_suspects(samples_of(nothing), nothing)] == ["more"]


def test_losses_of_images_equal_the_sum_by_hand(tiny_inference):
    from segtune.engine.suspects import image_losses

    random = np.random.default_rng(0)
    pairs = {}
    for name, size in (("a", (24, 32)), ("b", (24, 32)), ("c", (30, 20))):
        mask = random.integers(0, 3, size).astype(np.uint8)
        mask[:3] = 255
        pairs[name] = (random.integers(0, 255, (*size, 3), dtype=np.uint8), mask)
    pairs["ignored"] = (pairs["a"][0], np.full((24, 32), 255, np.uint8))
    index = memory_index(pairs, "train")
    seen = []
    losses = image_losses(tiny_inference, index, index.samples, DataSettings(), lambda *a: seen.append(a))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)] and math.isnan(losses["ignored"])
    for name in "abc":
        image, mask = pairs[name]
        logits = tiny_inference.probabilities(
            torch.from_numpy(image.transpose(2, 0, 1) / np.float32(255))[None]
        )
        right = [
            -math.log(float(logits[0, mask[row, column], row, column]))
            for row, column in zip(*np.nonzero(mask != 255), strict=True)
        ]
        assert losses[name] == pytest.approx(sum(right) / len(right), rel=1e-6)


@pytest.fixture
def tiny_inference():
    from segtune.engine.infer import Inference, InferenceSettings
    from segtune.models import MODELS
    from segtune.models.build import build_model

    model = build_model("unet", 3, MODELS.settings("unet")(depth=1, width=4)).eval()
    return Inference(model, InferenceSettings())


def test_findings_name_the_images_and_come_behind_errors(make_folder, write):
    masks = [np.pad(np.ones((10, 12), np.uint8), ((5 + i % 5, 9 - i % 5), (6, 14))) for i in range(40)]
    root = make_folder(masks)
    (root / "images/3.png").write_bytes(b"")
    report = check_data(root, DataSettings(val_fraction=0.1, test_fraction=0))
    train = [s.name for s in report.usable.samples if s.split == "train"]
    losses = {s.name: 0.2 for s in report.usable.samples}
    assert len(train) >= FEWEST
    found = find_suspects(report.usable.samples, losses | {train[0]: 3.0})
    more = report.with_suspects(found)
    (finding,) = [f for f in more.findings if f.code == "suspect-labels"]
    assert finding.files == (f"images/{train[0]}.png",) and f"{train[0]} (3.00)" in finding.message
    assert more.findings[0].code == "unreadable-file" and report.suspects == ()
    assert more.to_dict()["suspects"][0]["name"] == train[0] and more.verdict.startswith("not ready")


def test_the_page_shows_each_beside_the_prediction(make_folder, tmp_path):
    from segtune.report.data_page import write_data_page

    masks = [np.pad(np.ones((10, 12), np.uint8), ((5 + i % 5, 9 - i % 5), (6, 14))) for i in range(30)]
    report = check_data(make_folder(masks), DataSettings(val_fraction=0, test_fraction=0))
    losses = {s.name: 0.2 for s in report.usable.samples} | {"7": 2.0, "8": 1.0}
    found = find_suspects(report.usable.samples, losses)
    found = [replace(found[0], predicted=masks[0]), found[1]]
    page = write_data_page(report.with_suspects(found), tmp_path / "page.html").read_text()
    assert "Masks that the run finds unlikely" in page and "1 image more, see the findings" in page
    assert "7 (train): loss 2.00, 10.0 times the median" in page
    assert "unlikely" not in write_data_page(report, Path(tmp_path / "plain.html")).read_text()
