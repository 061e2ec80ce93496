"""From images to probabilities: windows, flips, sizes."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segtune.engine.infer import Inference, InferenceSettings, window_starts, window_weights
from segtune.errors import TrainingError
from segtune.models.base import SegModel
from segtune.models.build import build_model
from segtune.models.unet import UNetSettings
from segtune.types import InputSpec, SegOutput, Site


class Pixelwise(SegModel):
    """A 1x1 convolution: what a pixel is depends on that pixel alone."""

    def __init__(self, kernel: int = 1) -> None:
        super().__init__(3, InputSpec())
        torch.manual_seed(0)
        self.head = nn.Conv2d(3, 3, kernel, padding="same")
        self.sizes: list[tuple[int, ...]] = []

    def encode_maps(self, images: Tensor) -> Tensor:
        self.sizes.append(tuple(images.shape[-2:]))
        return images

    def decode_maps(self, maps: Any, padded: tuple[int, int]) -> Tensor:
        logits: Tensor = self.head(maps)
        return logits

    def sites(self) -> tuple[Site, ...]:
        return ()

    def head_names(self) -> tuple[str, ...]:
        return ("head",)


def images(*size: int, batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(1))


def infer(model: SegModel, x: Tensor, **settings: Any) -> Tensor:
    return Inference(model.eval(), InferenceSettings(**settings)).probabilities(x)


@pytest.mark.parametrize("size", [(40, 56), (37, 53), (16, 100), (5, 7)])
@pytest.mark.parametrize("window", [(16, 16), (16, 64), (1, 9), (200, 300)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.9])
def test_windows_change_nothing_where_pixels_are_independent(
    size: tuple[int, int], window: tuple[int, int], overlap: float
) -> None:
    model, x = Pixelwise(), images(*size)
    whole = infer(model, x, window=None)
    torch.testing.assert_close(infer(model, x, window=window, overlap=overlap), whole, atol=1e-6, rtol=1e-5)


def test_windows_are_at_most_the_image() -> None:
    model = Pixelwise()
    infer(model, images(20, 50), window=(32, 32))
    assert set(model.sizes) == {(20, 32)}
    model.sizes.clear()
    infer(model, images(20, 30), window=(32, 32))
    assert model.sizes == [(20, 30)]


@pytest.mark.parametrize("length", [1, 7, 16, 17, 31, 100])
@pytest.mark.parametrize("window", [1, 5, 16])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.9])
def test_windows_cover_every_pixel_with_the_overlap(length: int, window: int, overlap: float) -> None:
    window = min(window, length)
    starts = window_starts(length, window, overlap)
    covered = torch.zeros(length)
    for start in starts:
        assert 0 <= start <= length - window
        covered[start : start + window] += window_weights(1, window, overlap)[0]
    assert bool((covered > 0).all())
    gaps = [b - a for a, b in itertools.pairwise(starts)]
    assert all(0 < gap <= max(1, round(window * (1 - overlap) + 0.5)) for gap in gaps)


def test_auto_takes_ordinary_images_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Pixelwise()
    infer(model, images(64, 64))
    assert model.sizes == [(64, 64)]
    monkeypatch.setattr("segtune.engine.infer.LARGE_IMAGE", 4000)
    monkeypatch.setattr("segtune.engine.infer.AUTO_WINDOW", (32, 32))
    model.sizes.clear()
    infer(model, images(64, 64))
    assert set(model.sizes) == {(32, 32)}


@pytest.mark.parametrize("size", [(33, 47), (1, 1), (64, 5)])
@pytest.mark.parametrize("window", [None, (16, 16)])
def test_probabilities_sum_to_one_at_any_size(size: tuple[int, int], window: tuple[int, int] | None) -> None:
    model = build_model("unet", 3, UNetSettings(depth=2, width=4))
    got = infer(model, images(*size), window=window, flip_tta=True)
    assert got.shape == (2, 3, *size)
    torch.testing.assert_close(got.sum(dim=1), torch.ones(2, *size))


def test_flip_tta_is_the_mean_of_both_ways() -> None:
    model, x = Pixelwise(kernel=3), images(20, 31)
    want = (infer(model, x) + infer(model, x.flip(-1)).flip(-1)) / 2
    got = infer(model, x, flip_tta=True)
    assert torch.equal(got, want)
    assert not torch.equal(got, infer(model, x))
    torch.testing.assert_close(infer(model, x.flip(-1), flip_tta=True).flip(-1), got)


def test_resize_before_and_back_after() -> None:
    model, x = Pixelwise(), images(40, 60)
    got = infer(model, x, resize=(20, 24))
    assert model.sizes == [(20, 24)]
    small = F.interpolate(x, (20, 24), mode="bilinear", align_corners=False, antialias=True)
    want = F.interpolate(model(small).logits.softmax(dim=1), (40, 60), mode="bilinear", align_corners=False)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(got.sum(dim=1), torch.ones(2, 40, 60))


def test_batches_and_single_images_agree() -> None:
    model = build_model("unet", 3, UNetSettings(depth=1, width=4))
    x = images(32, 32, batch=3)
    together = infer(model, x)
    alone = torch.cat([infer(model, x[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-5)


def test_classes_are_the_most_probable() -> None:
    inference = Inference(Pixelwise().eval(), InferenceSettings())
    x = images(9, 9)
    assert torch.equal(inference.classes(x), inference.probabilities(x).argmax(1))


def test_bfloat16_gives_float32_probabilities() -> None:
    got = infer(Pixelwise(), images(16, 16), precision="bf16")
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, infer(Pixelwise(), images(16, 16)), atol=0.02, rtol=0.05)


def test_out_of_memory_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Pixelwise()

    def fail(_: Tensor, **_given: None) -> SegOutput:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model, "forward", fail)
    with pytest.raises(TrainingError, match=r"out of memory on cpu with 2 images of 8x9 pixels") as caught:
        infer(model, images(8, 9))
    assert "data.window=512,512" in str(caught.value.hint)


def test_settings_survive_json() -> None:
    settings = InferenceSettings(resize=(3, 4), window=(5, 6), overlap=0.5, flip_tta=True, precision="bf16")
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in settings.to_dict().items()}
    assert InferenceSettings.from_dict(values) == settings
