r"""The optional `dataset.yaml` beside the data: what its classes are called, coded and split by.

    classes: [sky, road, car]            # or {sky: [128, 128, 128], road: [128, 64, 128], ...}
    palette: [[0, 0, 0], [128, 64, 128]] # colours in the order of a list of classes
    ignored_colours: [[224, 224, 192]]   # RGB masks: colours that count for nothing
    ignore_index: 11                     # the value in the files that counts for nothing
    masks: index                         # index, palette, rgb or binary
    threshold: 127                       # binary: foreground is above this grey value
    values: {7: 0, 8: 1, 11: 2}          # value in the file -> class (255: ignored)
    split: {val: 0.2, test: 0.1, seed: 1}            # or lists of names or globs:
    # split: {train: ["day_*"], val: [day_007], test: ["dusk_*"]}
    group: '^(clip\d+)_'                # samples of one group never fall into different splits

Every key is optional; a `data.*` setting that differs from its default goes before the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Discriminator, Field, Tag, ValidationError, model_validator

from segtune.data.base import Colour
from segtune.data.settings import DataSettings
from segtune.errors import DataError
from segtune.registry import nearest
from segtune.settings import Settings

FILE_NAMES = ("dataset.yaml", "dataset.yml")
MAX_BYTES = 1_000_000

Channel = Annotated[int, Field(ge=0, le=255, strict=True)]
RGB = tuple[Channel, Channel, Channel]
Names = Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class FractionSplit(Settings):
    """Shares of the samples for validation and testing."""

    val: Fraction = 0.15
    test: Fraction = 0.15
    seed: Annotated[int, Field(ge=0)] = 0


class ListedSplit(Settings):
    """Sample names, or globs of them, for each split."""

    train: Names = Field(default_factory=list)
    val: Names = Field(default_factory=list)
    test: Names = Field(default_factory=list)


def _split_form(value: Any) -> str:
    """Tells the two forms of `split` apart, so that mistakes are reported for the one meant."""
    if isinstance(value, ListedSplit):
        return "lists"
    if not isinstance(value, dict):
        return "shares"
    return "lists" if "train" in value or any(isinstance(v, list | str) for v in value.values()) else "shares"


def _classes_form(value: Any) -> str:
    return "colours" if isinstance(value, dict) else "names"


FORMS = {"shares": FractionSplit, "lists": ListedSplit, "colours": None, "names": None}
"""Tags of the alternatives, which pydantic puts into the location of a mistake."""
Split = Annotated[
    Annotated[FractionSplit, Tag("shares")] | Annotated[ListedSplit, Tag("lists")],
    Discriminator(_split_form),
]
ClassList = Annotated[
    Annotated[dict[str, RGB], Tag("colours")] | Annotated[list[str], Tag("names")],
    Discriminator(_classes_form),
]


class Description(Settings):
    """What a `dataset.yaml` says."""

    classes: ClassList | None = None
    palette: list[RGB] | None = None
    ignored_colours: list[RGB] = Field(default_factory=list)
    ignore_index: int | None = Field(None, ge=0, le=255)
    masks: Literal["auto", "index", "palette", "rgb", "binary"] | None = None
    threshold: int | None = Field(None, ge=0, le=65534)
    values: dict[int, int] | None = None
    split: Split | None = None
    group: str | None = None

    @model_validator(mode="after")
    def _agree(self) -> Description:
        if self.classes is not None and len(self.classes) < 2:
            raise ValueError("classes: at least 2 are needed (the background is one)")
        if isinstance(self.classes, list) and len(set(self.classes)) < len(self.classes):
            raise ValueError("classes: every name may stand only once")
        if self.palette is not None:
            if isinstance(self.classes, dict):
                raise ValueError("palette: the colours stand with the classes already")
            if self.classes is not None and len(self.palette) != len(self.classes):
                raise ValueError(f"palette: {len(self.palette)} colours for {len(self.classes)} classes")
        colours = self.colours
        if colours is not None and len(set(colours)) < len(colours):
            raise ValueError("two classes have the same colour")
        return self

    @property
    def names(self) -> tuple[str, ...] | None:
        """Class names in order, where the file gives them."""
        return None if self.classes is None else tuple(self.classes)

    @property
    def colours(self) -> tuple[Colour, ...] | None:
        """Class colours in order, where the file gives them."""
        if isinstance(self.classes, dict):
            return tuple(self.classes.values())
        return None if self.palette is None else tuple(self.palette)

    def merge(self, settings: DataSettings) -> DataSettings:
        """The settings with what this file says filled in where they hold their default."""
        said: dict[str, Any] = {
            "classes": self.names,
            "ignore_index": self.ignore_index,
            "masks": self.masks,
            "threshold": self.threshold,
            "values": self.values,
            "group": self.group,
        }
        if isinstance(self.split, FractionSplit):
            said |= {
                "val_fraction": self.split.val,
                "test_fraction": self.split.test,
                "split_seed": self.split.seed,
            }
        fields = DataSettings.model_fields
        update = {
            key: value
            for key, value in said.items()
            if value is not None and getattr(settings, key) == fields[key].default
        }
        return settings.model_copy(update=update)


class _Loader(yaml.SafeLoader):
    """Safe YAML without references (which can blow up) and without keys given twice."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="references (*name) are not read")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.MarkedYAMLError(problem=f"the key {twice[0]!r} stands twice")
        return super().construct_mapping(node, deep)


def description_path(root: Path) -> Path | None:
    """The `dataset.yaml` of a data set (a folder, or a CSV beside it), if there is one."""
    folder = root if root.is_dir() else root.parent
    return next((folder / name for name in FILE_NAMES if (folder / name).is_file()), None)


def read_description(root: Path) -> Description:
    """Reads the `dataset.yaml` of a data set; empty where there is none.

    Raises:
        DataError: the file is no YAML, or holds mistakes (all of them in one report).
    """
    path = description_path(root)
    if path is None:
        return Description()
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(
                f"{path}: larger than {MAX_BYTES:,} bytes", hint="a description takes a few lines"
            )
        data = yaml.load(path.read_text(encoding="utf-8-sig"), Loader=_Loader)
    except DataError:
        raise
    except Exception as error:  # the parser raises more than its own errors on foreign bytes
        reason = " ".join(str(error).split())[:300]
        raise DataError(
            f"{path}: not readable as YAML: {reason}", hint="see `segtune list formats`"
        ) from None
    if data is None:
        return Description()
    if not isinstance(data, dict):
        raise DataError(
            f"{path}: holds {type(data).__name__}, not keys with values", hint="e.g. classes: [a, b]"
        )
    try:
        return Description.model_validate(data)
    except ValidationError as error:
        problems = [_problem(dict(item)) for item in error.errors(include_url=False)]
    except RecursionError:
        problems = ["nested too deeply"]
    count = "1 mistake" if len(problems) == 1 else f"{len(problems)} mistakes"
    raise DataError("\n".join([f"{path}: {count}:", *(f"  {problem}" for problem in problems)]))


def _problem(item: dict[str, Any]) -> str:
    tags = [part for part in item["loc"][1:2] if part in FORMS]
    shown = ".".join(str(part) for place, part in enumerate(item["loc"]) if place != 1 or not tags)
    if item["type"] == "extra_forbidden":
        form = FORMS[tags[0]] if tags else None
        known = list((form or Description).model_fields)
        meant = nearest(str(item["loc"][-1]), known)
        fix = f"did you mean {meant!r}?" if meant else f"known are {', '.join(known)}"
        return f"{shown}: there is no such key ({fix})"
    if item["type"] == "value_error":
        message = str(item["ctx"]["error"])
        return f"{shown}: {message}" if shown else message
    return f"{shown}: {item['msg']}, found {item['input']!r:.80}"
