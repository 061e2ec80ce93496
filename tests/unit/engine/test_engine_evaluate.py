"""Scores do not depend on batches, and a perfect model has perfect ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from segtune.data.base import Classes
from segtune.data.settings import DataSettings
from segtune.engine.evaluate import Evaluation, evaluate_samples
from segtune.engine.files import to_json
from segtune.engine.infer import Inference, InferenceSettings
from segtune.errors import DataError, UsageError
from segtune.metrics import SALIENCY
from segtune.models.base import SegModel
from segtune.models.build import build_model
from segtune.models.unet import UNetSettings
from segtune.types import InputSpec, Site
from tests.support import memory_index, scene


class Oracle(SegModel):
    """Reads the class off the image's first channel."""

    def __init__(self) -> None:
        super().__init__(3, InputSpec(mean=(0, 0, 0), std=(1, 1, 1)))
        self.anchor = torch.nn.Parameter(torch.zeros(()))

    def encode_maps(self, images: Tensor) -> Tensor:
        return images

    def decode_maps(self, maps: Any, padded: tuple[int, int]) -> Tensor:
        classes = (maps[:, 0] * 255).round().long()
        return torch.nn.functional.one_hot(classes, 3).permute(0, 3, 1, 2).float() * 50

    def sites(self) -> tuple[Site, ...]:
        return ()

    def head_names(self) -> tuple[str, ...]:
        return ()


def evaluate(model: SegModel, pairs: dict[str, Any], **options: Any) -> Evaluation:
    index = memory_index(pairs)
    inference = Inference(model.eval(), InferenceSettings())
    return evaluate_samples(inference, index, index.samples, DataSettings(), split="test", **options)


SIZES = ((48, 64), (48, 64), (33, 57), (33, 57), (48, 64), (50, 40), (50, 40))
MIXED = {f"s{n}": scene(n, size) for n, size in enumerate(SIZES)}


def test_scores_do_not_depend_on_the_batch_size() -> None:
    model = build_model("unet", 3, UNetSettings(depth=1, width=4, norm="group"))
    one = evaluate(model, MIXED, batch_size=1)
    for size in (2, 3, 100):
        other = evaluate(model, MIXED, batch_size=size)
        assert other.confusion == one.confusion
        assert other.per_image == one.per_image
        for name, score in one.scores.items():
            assert other.scores[name] == pytest.approx(score, rel=1e-6), name
    assert np.sum(one.confusion) == sum(h * w for h, w in SIZES)
    assert list(one.per_image) == list(MIXED)


def test_a_perfect_model_has_perfect_scores() -> None:
    pairs = {name: (np.repeat(mask[..., None], 3, 2), mask) for name, (_, mask) in MIXED.items()}
    result = evaluate(Oracle(), pairs, batch_size=2)
    assert result.scores.pop("cross_entropy") == pytest.approx(0, abs=1e-6)
    assert result.scores.pop("mean_ber") == 0
    assert result.scores == dict.fromkeys(result.scores, 1.0)
    assert all(value == 1.0 for values in result.per_class.values() for value in values)
    assert all(result.confusion[i][j] == 0 for i in range(3) for j in range(3) if i != j)


def test_ignored_pixels_count_nowhere() -> None:
    pairs = {}
    for name, (_, mask) in MIXED.items():
        image = np.repeat(mask[..., None], 3, 2).copy()
        image[:5] = (image[:5] + 1) % 3
        ignoring = mask.copy()
        ignoring[:5] = 255
        pairs[name] = (image, ignoring)
    result = evaluate(Oracle(), pairs)
    assert result.scores["pixel_accuracy"] == 1.0
    assert np.sum(result.confusion) == sum((h - 5) * w for h, w in SIZES)


def test_cross_entropy_against_torch() -> None:
    model = build_model("unet", 3, UNetSettings(depth=1, width=4)).eval()
    pairs = {"a": scene(0)}
    image, mask = pairs["a"]
    x = torch.from_numpy(image.transpose(2, 0, 1)).float()[None] / 255
    with torch.no_grad():
        want = torch.nn.functional.cross_entropy(model(x).logits, torch.from_numpy(mask).long()[None])
    assert evaluate(model, pairs).scores["cross_entropy"] == pytest.approx(want.item(), rel=1e-5)


def test_progress_and_plain_values() -> None:
    seen: list[tuple[int, int]] = []
    result = evaluate(Oracle(), {n: (np.repeat(m[..., None], 3, 2), m) for n, (_, m) in MIXED.items()},
                      batch_size=2, progress=lambda done, total: seen.append((done, total)))  # fmt: skip
    assert seen == [(2, 7), (4, 7), (5, 7), (7, 7)]
    assert to_json(result.to_dict())


def test_nothing_to_evaluate_on() -> None:
    with pytest.raises(DataError, match="no test images") as caught:
        evaluate(Oracle(), {})
    assert "--split" in str(caught.value.hint)


def test_saliency_scores_are_of_two_classes_and_where_asked_for() -> None:
    model = build_model("unet", 3, UNetSettings(depth=1, width=4, norm="group"))
    with pytest.raises(UsageError, match="there are 3 classes"):
        evaluate(model, MIXED, saliency=True)
    pairs = {name: (image, (mask == 1).astype(np.uint8)) for name, (image, mask) in MIXED.items()}
    index = replace(
        memory_index(pairs), classes=Classes(names=("rest", "square"), palette=((0,) * 3, (9,) * 3))
    )
    binary = Inference(
        build_model("unet", 2, UNetSettings(depth=1, width=4, norm="group")).eval(), InferenceSettings()
    )
    plain, one, many = (
        evaluate_samples(binary, index, index.samples, DataSettings(), split="test", **options).scores
        for options in ({}, {"saliency": True}, {"saliency": True, "batch_size": 3})
    )
    assert not plain.keys() & set(SALIENCY)
    assert set(SALIENCY) <= one.keys()
    assert many == pytest.approx(one, rel=1e-6)
    assert {name: one[name] for name in plain} == plain
