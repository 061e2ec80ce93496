"""Prompts on their way to a model: moved, resized, mirrored, read from a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from torch import Tensor

from segtune.data.base import Classes
from segtune.data.prompts import stack_prompts
from segtune.errors import UsageError
from segtune.models.base import SegModel
from segtune.types import Prompts

FORMAT = '{"image.png": [{"class": "name", "box": [left, top, right, bottom], "points": [[x, y]]}]}'
"""A file of prompts, in short."""


class ObjectPrompt(BaseModel):
    """One object of an image, as it stands in a file of prompts."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    label: str | int | None = Field(None, alias="class")
    """Name or number of the class; may be left out where there are two classes."""
    box: tuple[float, float, float, float] | None = None
    """Left, top, right, bottom in pixels."""
    points: Annotated[list[tuple[float, float]], Field(min_length=1)] | None = None
    """x, y in pixels."""
    labels: list[Annotated[int, Field(ge=0, le=1)]] | None = None
    """1 for a point on the object, 0 for one beside it; default: all on it."""


def to_device(prompts: Prompts | None, device: torch.device) -> Prompts | None:
    """The same prompts on a device."""
    return None if prompts is None else _map(prompts, lambda tensor: tensor.to(device, non_blocking=True))


def scale_prompts(prompts: Prompts, before: tuple[int, int], after: tuple[int, int]) -> Prompts:
    """Prompts of a resized image.

    Args:
        prompts: in pixels of the image.
        before: height and width of the image.
        after: height and width that it is resized to.
    """
    factor = torch.tensor([after[1] / before[1], after[0] / before[0]], device=prompts.classes.device)

    def scaled(coordinates: Tensor | None) -> Tensor | None:
        if coordinates is None:
            return None
        pairs = coordinates.reshape(*coordinates.shape[:-1], -1, 2)
        return ((pairs + 0.5) * factor - 0.5).flatten(-2)

    return replace(prompts, boxes=scaled(prompts.boxes), points=scaled(prompts.points))


def mirror_prompts(prompts: Prompts, width: int) -> Prompts:
    """Prompts of a horizontally flipped image, which is so many pixels wide."""
    boxes, points = prompts.boxes, prompts.points
    if boxes is not None:
        left, top, right, bottom = boxes.unbind(-1)
        boxes = torch.stack([width - 1 - right, top, width - 1 - left, bottom], dim=-1)
    if points is not None:
        points = torch.stack([width - 1 - points[..., 0], points[..., 1]], dim=-1)
    return replace(prompts, boxes=boxes, points=points)


def pick_prompts(prompts: Prompts, chosen: Tensor) -> Prompts:
    """The prompts of some images of a batch, chosen by index or by truth values [B]."""
    return _map(prompts, lambda tensor: tensor[chosen])


def example_prompts(model: SegModel, images: Tensor) -> Prompts | None:
    """One object of class 1 in the middle of each image, for measurements and comparisons.

    Args:
        model: says what it needs.
        images: [B, C, H, W].

    Returns:
        None where the model takes no prompts.
    """
    if not model.prompted:
        return None
    height, width = images.shape[-2:]
    batch = len(images)
    with torch.device(images.device):
        prompts = Prompts(classes=torch.ones(batch, 1, dtype=torch.long))
        if "box" in model.prompted:
            box = torch.tensor([width // 4, height // 4, width * 3 // 4, height * 3 // 4])
            prompts.boxes = box.float().expand(batch, 1, 4)
        if "point" in model.prompted:
            prompts.points = torch.tensor([width // 2, height // 2]).float().expand(batch, 1, 1, 2)
            prompts.labels = torch.ones(batch, 1, 1, dtype=torch.long)
    return prompts


Entry = TypeVar("Entry", bound=ObjectPrompt)


def read_prompts(path: Path, classes: Classes, kinds: frozenset[str]) -> dict[str, Prompts]:
    """Reads a file of prompts.

    Args:
        path: JSON, see `FORMAT`; the key of an image is its file name, or its path below the folder.
        classes: of the model.
        kinds: "box" and "point", or one of them: what the model needs.

    Returns:
        The prompts of each image (B = 1) by name; an empty list gives one object of class -1.

    Raises:
        UsageError: the file cannot be read, or an object lacks something; the message says which.
    """
    entries = read_objects(path, ObjectPrompt, classes, kinds, FORMAT)
    return {name: pack_objects(objects, kinds) for name, objects in entries.items()}


def read_objects(
    path: Path, kind: type[Entry], classes: Classes, kinds: frozenset[str], format: str
) -> dict[str, list[tuple[int, Entry]]]:
    """The objects of a file of prompts with their classes, checked.

    Args:
        path: JSON, a list of objects for each name.
        kind: what an object consists of.
        classes: of the model.
        kinds: "box" and "point", or one of them: what the model needs.
        format: of the file, in short.

    Raises:
        UsageError: the file cannot be read, or an object lacks something; the message says which.
    """
    hint = f"the format is {format}"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        entries: dict[str, list[Entry]] = TypeAdapter(dict[str, list[kind]]).validate_python(values)  # type: ignore[valid-type]
    except OSError as error:
        raise UsageError(
            f"cannot read the prompts {path}: {error.strerror}", hint="check --prompts"
        ) from None
    except ValidationError as errors:
        first = errors.errors(include_url=False)[0]
        where = " / ".join(map(str, first["loc"]))
        raise UsageError(f"{path}: {where}: {first['msg'].lower()}", hint=hint) from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not valid JSON: {error}", hint=hint) from None
    return {
        name: [
            (_check(entry, f"{path}: {name} / {i}", classes, kinds), entry) for i, entry in enumerate(objects)
        ]
        for name, objects in entries.items()
    }


def prompts_for(images: Sequence[Path], prompts: Mapping[str, Prompts], source: Path) -> list[Prompts]:
    """The prompts of each image, by its path below the folder or by its file name.

    Raises:
        UsageError: images are not in the file.
    """
    found = [prompts.get(image.as_posix(), prompts.get(image.name)) for image in images]
    missing = [image.as_posix() for image, entry in zip(images, found, strict=True) if entry is None]
    if missing:
        raise UsageError(
            f"{source} has no prompts for {len(missing)} of {len(images)} images, the first is {missing[0]}",
            hint="name each image; one without any object gets an empty list: []",
        )
    return [entry for entry in found if entry is not None]


def _check(entry: ObjectPrompt, where: str, classes: Classes, kinds: frozenset[str]) -> int:
    """The class of an object that lacks nothing."""
    label = entry.label
    if label is None and classes.num_classes == 2:
        label = 1
    number = classes.names.index(label) if isinstance(label, str) and label in classes.names else label
    if not isinstance(number, int) or not 0 < number < classes.num_classes:
        names = ", ".join(classes.names[1:])
        raise UsageError(
            f"{where}: {label!r} is no class of an object", hint=f"the model's classes are {names}"
        )
    given = {"box": entry.box, "point": entry.points}
    for kind in sorted(kinds):
        if given[kind] is None:
            raise UsageError(
                f"{where}: the object has no {kind}", hint=f"the model needs {' and '.join(sorted(kinds))}"
            )
    if entry.box is not None and (entry.box[0] > entry.box[2] or entry.box[1] > entry.box[3]):
        raise UsageError(
            f"{where}: the box {list(entry.box)} ends before it starts", hint="left, top, right, bottom"
        )
    if entry.labels is not None and len(entry.labels) != len(entry.points or ()):
        raise UsageError(
            f"{where}: {len(entry.labels)} labels for {len(entry.points or ())} points", hint="one each"
        )
    return number


def pack_objects(objects: Sequence[tuple[int, ObjectPrompt]], kinds: frozenset[str]) -> Prompts:
    """The objects of one image with their classes (B = 1); none gives one of class -1."""
    if not objects:
        objects = [(-1, ObjectPrompt(box=(0, 0, 0, 0), points=[(0, 0)], labels=[1]))]
    singles = []
    for number, entry in objects:
        single = Prompts(classes=torch.tensor([[number]]))
        if "box" in kinds:
            single.boxes = torch.tensor([[entry.box]], dtype=torch.float32)
        if "point" in kinds:
            points = entry.points or []
            single.points = torch.tensor([[points]], dtype=torch.float32)
            single.labels = torch.tensor([[entry.labels or [1] * len(points)]])
        singles.append(single)
    # Objects may have different numbers of points: as images of a batch they are filled up alike.
    return _map(stack_prompts(singles), lambda tensor: tensor.transpose(0, 1))


def _map(prompts: Prompts, change: Callable[[Tensor], Tensor]) -> Prompts:
    boxes, points, labels = (
        None if tensor is None else change(tensor)
        for tensor in (prompts.boxes, prompts.points, prompts.labels)
    )
    return Prompts(classes=change(prompts.classes), boxes=boxes, points=points, labels=labels)
