"""Objects as the annotations draw them: their numbers, and one prompt for each."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from segtune.data.loading import eval_loader, train_loader
from segtune.data.open import open_data
from segtune.data.prompts import PromptSource
from segtune.data.settings import DataSettings
from segtune.errors import UsageError
from tests import trees
from tests.trees import HEIGHT, WIDTH, shape

INSTANCE = DataSettings(prompt_per="instance", prompt_jitter=0, horizontal_flip=0)


def square(left: int, top: int, right: int, bottom: int) -> list[float]:
    return [left, top, right, top, right, bottom, left, bottom]


@pytest.fixture
def cups(tmp_path):
    """One image with two cats side by side that touch, a cup in front of one, and a crowd of dogs."""
    trees.coco(tmp_path)
    path = tmp_path / "annotations.json"
    content = json.loads(path.read_text())
    image = content["images"][0]["id"]
    categories = {entry["name"]: entry["id"] for entry in content["categories"]}
    things = [
        ("cat", [square(2, 2, 8, 10)], 0),
        ("cat", [square(8, 2, 16, 10)], 0),
        ("cup", [square(9, 4, 12, 8)], 0),
        ("dog", {"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT, HEIGHT * WIDTH - HEIGHT]}, 1),
    ]
    content["annotations"] = [
        {
            "id": number,
            "image_id": image,
            "category_id": categories[name],
            "segmentation": drawn,
            "iscrowd": crowd,
        }
        for number, (name, drawn, crowd) in enumerate(things)
    ]
    content["images"] = content["images"][:1]
    path.write_text(json.dumps(content))
    return open_data(tmp_path, DataSettings(val_fraction=0, test_fraction=0))


def test_a_box_for_each_instance_and_none_for_crowds(cups):
    (sample,) = cups.samples
    numbers = cups.reader.instances(sample)
    assert numbers.dtype == np.int32 and len(np.unique(numbers)) == 4 and (numbers[:, 0] == 0).all()
    (loaded,) = eval_loader(cups, cups.samples, INSTANCE, PromptSource(INSTANCE, ("box",), 255))
    assert loaded.mask[0, 0] == 255 and loaded.mask.dtype == torch.uint8
    found = {
        (int(label), *map(int, box))
        for label, box in zip(loaded.prompts.classes[0], loaded.prompts.boxes[0], strict=True)
    }
    names = cups.classes.names
    cat, cup = names.index("cat"), names.index("cup")
    assert found == {(cat, 2, 2, 7, 9), (cat, 8, 2, 15, 9), (cup, 9, 4, 11, 7)}
    # Connected parts of the class map take both cats for one.
    parts = DataSettings(prompt_per="component")
    (loaded,) = eval_loader(cups, cups.samples, parts, PromptSource(parts, ("box",), 255))
    assert loaded.prompts.classes[0].tolist().count(cat) == 1


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_boxes_go_through_crops_and_flips(cups, flip):
    settings = INSTANCE.model_copy(update={"horizontal_flip": flip, "scale": (2.0, 2.0)})
    size = (2 * HEIGHT, 2 * WIDTH)
    given = {"batch_size": 1, "seed": 0, "start_step": 0, "num_steps": 1, "crop": size}
    (batch,) = train_loader(cups, settings, **given, prompts=PromptSource(settings, ("box", "point"), 255))
    boxes = {tuple(map(int, box)) for box in batch.prompts.boxes[0]}
    expected = [(4, 4, 15, 19), (16, 4, 31, 19), (18, 8, 23, 15)]
    if flip:
        expected = [(size[1] - 1 - r, t, size[1] - 1 - left, b) for left, t, r, b in expected]
    assert boxes == set(expected)
    (plain,) = train_loader(cups, settings, **given)
    assert torch.equal(plain.masks, batch.masks) and torch.equal(plain.images, batch.images)
    for label, (x, y) in zip(batch.prompts.classes[0], batch.prompts.points[0, :, 0].int(), strict=True):
        assert batch.masks[0, y, x] == label


def test_objects_that_are_not_prompted_are_ignored_in_training(cups):
    settings = INSTANCE.model_copy(update={"prompt_area": 20})
    given = {"batch_size": 1, "seed": 0, "start_step": 0, "num_steps": 1, "crop": (HEIGHT, WIDTH)}
    (batch,) = train_loader(cups, settings, **given, prompts=PromptSource(settings, ("box",), 255))
    assert batch.prompts.classes.shape == (1, 2) and (batch.masks[0, 4:8, 9:12] == 255).all()


def test_shapes_of_labelme_and_their_groups(tmp_path):
    shapes = [
        shape("cat", [[2, 2], [6, 6]], "rectangle", group_id=3),
        shape("cat", [[12, 2], [14, 6]], "rectangle", group_id=3),
        shape("cat", [[7, 2], [9, 6]], "rectangle"),
        shape("dog", [[4, 4], [5, 5]], "rectangle", group_id=3),
        shape("__ignore__", [[2, 2], [2, 2]], "rectangle"),
    ]
    index = open_data(trees.labelme(tmp_path, shapes=shapes))
    numbers = index.reader.instances(index.samples[0])
    assert numbers[3, 2] == numbers[3, 13] == 1 and numbers[3, 8] == 2 and numbers[4, 4] == 3
    assert numbers[2, 2] == numbers[0, 0] == 0 and numbers.max() == 3


def test_data_without_instances_is_refused(make_folder):
    index = open_data(make_folder([np.eye(24, 32, dtype=np.uint8)] * 8))
    with pytest.raises(UsageError, match="folder data does not tell") as caught:
        eval_loader(index, index.samples, INSTANCE, PromptSource(INSTANCE, ("box",), 255))
    assert "component" in str(caught.value.hint)
