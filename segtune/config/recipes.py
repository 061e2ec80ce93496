"""Recipes: files of settings that say what they are, what they need and what came out.

A recipe is a YAML file that `segtune fit` or `segtune compare` takes with `--config`; its section `recipe` is
described by `Recipe`. Words in capitals in its commands stand for folders: those of `data`, and OUT.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from segtune.config.layers import ABOUT, RECIPES, read_mapping, recipe_path
from segtune.errors import SettingsError
from segtune.settings import Settings

OUT = "OUT"
"""Stands in commands for the folder that everything is written to."""
ROOT = RECIPES.parents[1]
"""Above the package: the repository, where the package is used from one."""

_PLACE = re.compile(r"[A-Z][A-Z0-9]+")
Place = Annotated[str, Field(pattern=rf"^{_PLACE.pattern}$")]
Line = Annotated[str, Field(pattern=r"^segtune [a-z]")]


class Recipe(Settings):
    """The section `recipe` of a file of settings."""

    title: str = Field(description="what is tuned, how and on what, in one line")
    paper: str = Field(description="authors and title of what is followed")
    kind: Literal["fit", "compare"] = Field(description="the command that takes the file")
    scale: Literal["published", "small"] = Field(
        description="published: the paper's data and settings; small: runs in minutes on a processor"
    )
    data: dict[Place, str] = Field(
        min_length=1, description="word in the commands -> data that it stands for"
    )
    command: tuple[Line, ...] = Field(min_length=1, description="everything from the data to the report")
    hardware: str = Field(description="what the minutes are for")
    minutes: float | None = Field(None, gt=0, description="of the whole command; null: not known")
    published: dict[str, dict[str, float | str]] = Field(
        {}, description="row -> name of a number -> what the paper states"
    )
    differs: tuple[str, ...] = Field((), description="what is not as in the paper, or is not said there")
    result: str | None = Field(None, description="file with what came out, from the top of the repository")

    @model_validator(mode="after")
    def _places_are_known(self) -> Recipe:
        used = {place for line in self.command for place in places(line)}
        unknown = sorted(used - self.data.keys() - {OUT})
        if unknown:
            raise ValueError(f"{unknown[0]} in the commands is neither {OUT} nor named in recipe.data")
        return self

    def measured(self) -> dict[str, Any] | None:
        """The content of the result file; None without one, and where results are not installed."""
        path = None if self.result is None else ROOT / self.result
        if path is None or not path.is_file():
            return None
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return content

    def status(self) -> str:
        """Whether it was run, and the score where the result file is there."""
        if self.result is None:
            return "settings only" if self.scale == "published" else "not run"
        measured = self.measured()
        return f"run: {measured['headline']}" if measured is not None and "headline" in measured else "run"


def places(line: str) -> set[str]:
    """The words in a command that stand for folders."""
    parts = (part for word in shlex.split(line) for part in re.split(r"[/=.]", word))
    return {part for part in parts if _PLACE.fullmatch(part)}


def fill(line: str, folders: dict[str, Path]) -> list[str]:
    """A command's words with folders in place of the words that stand for them.

    Args:
        line: of a recipe's command.
        folders: word -> folder.
    """
    pattern = re.compile(r"(?<![^/=])(" + "|".join(map(re.escape, folders)) + r")(?![^/.])")
    return [pattern.sub(lambda match: str(folders[match[1]]), word) for word in shlex.split(line)]


def recipe_names() -> list[str]:
    """The recipes of the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def read_recipe(name: str) -> Recipe:
    """What a recipe of the package says about itself.

    Raises:
        UnknownNameError: there is no such recipe.
        SettingsError: its section `recipe` is missing or wrong.
    """
    path = recipe_path(name)
    about = read_mapping(path).get(ABOUT)
    try:
        return Recipe.model_validate(about)
    except ValidationError as errors:
        raise SettingsError(
            [
                f"{path.name}: {'.'.join([ABOUT, *map(str, error['loc'])])}: {error['msg']}"
                for error in errors.errors(include_url=False)
            ]
        ) from None
