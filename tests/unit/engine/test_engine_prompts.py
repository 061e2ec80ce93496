"""A prompted model through a whole job: fit, evaluate, predict; and every mistake with its prompts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("transformers", reason="needs the extra hf")
from safetensors.torch import save_file

import segtune
from segtune.data.base import Classes
from segtune.engine.infer import Inference, InferenceSettings
from segtune.engine.prompts import example_prompts, mirror_prompts, prompts_for, read_prompts
from segtune.errors import UsageError
from segtune.models import MODELS
from segtune.models.build import build_model
from tests.support import CLASS_NAMES, COLOURS, TINY_SAM, make_data

CLASSES = Classes(names=CLASS_NAMES, palette=COLOURS)
BOX, BOTH = frozenset({"box"}), frozenset({"box", "point"})


def build(kinds="box", num_classes=3):
    settings = MODELS.settings("sam-vit-base")(prompts=kinds, **TINY_SAM)
    return build_model("sam-vit-base", num_classes, settings, seed=3).eval()


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"), num_train=4, sizes=((48, 64), (40, 56)))


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory) -> Path:
    """One run that was trained, one that was not."""
    folder = tmp_path_factory.mktemp("runs")
    weights = {name: tensor.contiguous() for name, tensor in build().state_dict().items()}
    save_file(weights, folder / "tiny.safetensors")
    settings = {
        "model.weights": str(folder / "tiny.safetensors"),
        "model.prompts": "box",
        **{f"model.{name}": value for name, value in TINY_SAM.items()},
        "train.precision": "32",
        "train.accelerator": "cpu",
        "train.threads": 1,
        "train.batch_size": 2,
        "train.steps": 3,
    }
    for method in ("lora", "zero-shot"):
        segtune.fit(data, model="sam-vit-base", method=method, out=folder / method, settings=settings)
    return folder


@pytest.mark.parametrize("method", ["lora", "zero-shot"])
def test_scores_say_that_prompts_are_from_the_ground_truth(runs, method):
    result = json.loads((runs / method / "result.json").read_text())
    assert result["steps"] == (3 if method == "lora" else 0)
    assert (result["parameters_trainable"] == 0) == (method == "zero-shot")
    for split in ("val", "test"):
        assert result[split]["settings"]["prompts"] == "box for each class, from the ground truth"
    again = segtune.evaluate(runs / method, split="test")
    assert again.confusion == result["test"]["confusion"]
    assert again.settings["prompts"] == result["test"]["settings"]["prompts"]


def test_predictions_with_the_ground_truths_boxes_are_those_that_were_scored(runs, data, tmp_path):
    boxes = {}
    for path in sorted((data / "test" / "masks").iterdir()):
        mask = np.array(Image.open(path))
        boxes[path.name] = []
        for label in (1, 2):
            rows, columns = np.nonzero(mask == label)
            box = [int(v) for v in (columns.min(), rows.min(), columns.max(), rows.max())]
            boxes[path.name].append({"class": CLASS_NAMES[label], "box": box})
    file = tmp_path / "prompts.json"
    file.write_text(json.dumps(boxes))
    images = data / "test" / "images"
    made = segtune.predict(runs / "lora", images, out=tmp_path / "out", prompts=file)
    confusion = np.zeros((3, 3), int)
    for prediction in made:
        truth = np.array(Image.open(data / "test" / "masks" / prediction.image.name))
        np.add.at(confusion, (truth, np.array(Image.open(prediction.mask))), 1)
    assert confusion.tolist() == segtune.evaluate(runs / "lora", split="test").confusion
    file.write_text(json.dumps({name: [] for name in boxes}))
    for prediction in segtune.predict(runs / "lora", images, out=tmp_path / "none", prompts=file):
        assert not np.array(Image.open(prediction.mask)).any(), "no object: all background"
    with pytest.raises(UsageError, match="needs them") as error:
        segtune.predict(runs / "lora", images, out=tmp_path / "out")
    assert "--prompts" in str(error.value.hint)
    with pytest.raises(UsageError, match=r"data\.window"):
        segtune.evaluate(runs / "lora", settings={"data.window": [32, 32]})
    resized = segtune.evaluate(runs / "lora", settings={"data.resize": [32, 48], "data.flip_tta": True})
    assert resized.num_images == 2


@torch.no_grad()
def test_large_images_are_taken_whole_and_both_sides_are_averaged(monkeypatch):
    model = build("box+point")
    monkeypatch.setattr("segtune.engine.infer.LARGE_IMAGE", 100)
    monkeypatch.setattr("segtune.engine.infer.AUTO_WINDOW", (16, 16))
    images = torch.rand(1, 3, 32, 48)
    prompts = example_prompts(model, images)
    expected = model(images, prompts=prompts).logits.softmax(dim=1)
    got = Inference(model, InferenceSettings()).probabilities(images, prompts)
    assert torch.allclose(got, expected, atol=1e-6)
    other = model(images.flip(-1), prompts=mirror_prompts(prompts, 48)).logits.softmax(dim=1).flip(-1)
    both = Inference(model, InferenceSettings(flip_tta=True)).probabilities(images, prompts)
    assert torch.allclose(both, (expected + other) / 2, atol=1e-6)


def read(tmp_path, content, kinds=BOX, classes=CLASSES):
    file = tmp_path / "prompts.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_prompts(file, classes, kinds)


def test_a_file_with_objects_of_different_numbers_of_points(tmp_path):
    objects = [
        {"class": "band", "box": [1, 2, 3, 4], "points": [[5, 6], [7, 8]], "labels": [1, 0]},
        {"class": 1, "box": [0, 0, 9, 9], "points": [[4, 4]]},
    ]
    prompts = read(tmp_path, {"a.png": objects, "b.png": []}, BOTH)
    assert prompts["a.png"].classes.tolist() == [[2, 1]]
    assert prompts["a.png"].boxes.tolist() == [[[1, 2, 3, 4], [0, 0, 9, 9]]]
    assert prompts["a.png"].labels.tolist() == [[[1, 0], [1, -1]]]
    assert prompts["a.png"].points.shape == (1, 2, 2, 2)
    assert prompts["b.png"].classes.tolist() == [[-1]]
    binary = Classes(names=("rest", "polyp"), palette=COLOURS[:2])
    assert read(tmp_path, {"a": [{"box": [0, 0, 1, 1]}]}, BOX, binary)["a"].classes.tolist() == [[1]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ([1], "dictionary"),
        ({"a": [{"class": "tree", "box": [0, 0, 1, 1]}]}, "'tree' is no class"),
        ({"a": [{"class": 0, "box": [0, 0, 1, 1]}]}, "0 is no class"),
        ({"a": [{"box": [0, 0, 1, 1]}]}, "None is no class"),
        ({"a": [{"class": 1, "box": [0, 0, 1]}]}, r"a / 0 / box"),
        ({"a": [{"class": 1}]}, r"a / 0: the object has no box"),
        ({"a": [{"class": 1, "box": [5, 0, 1, 1]}]}, "ends before it starts"),
        ({"a": [{"class": 1, "box": [0, 0, 1, 1], "points": [[1, 1]], "labels": [1, 1]}]}, "2 labels for 1"),
        ({"a": [{"class": 1, "bbox": [0, 0, 1, 1]}]}, "bbox"),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path, content, message):
    with pytest.raises(UsageError, match=message):
        read(tmp_path, content)


def test_images_are_found_by_path_or_by_name(tmp_path):
    prompts = read(tmp_path, {"a.png": [], "sub/b.png": []})
    assert len(prompts_for([Path("x/a.png"), Path("sub/b.png")], prompts, tmp_path)) == 2
    with pytest.raises(UsageError, match=r"1 of 2 images, the first is c\.png"):
        prompts_for([Path("a.png"), Path("c.png")], prompts, tmp_path)
    with pytest.raises(UsageError, match="cannot read"):
        read_prompts(tmp_path / "absent.json", CLASSES, BOX)
