"""Writes the reference pages of docs/ from the docstrings and settings of the code, without importing torch.

docs/methods and docs/models (a page for each file), and those of losses, metrics and settings; docs/python.md
is written by generate_python_docs.py.
"""

from __future__ import annotations

import types
from collections.abc import Collection
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen, MultipleOf
from pydantic.fields import FieldInfo

from segtune.config.run import LossCommonSettings, ModelCommonSettings, OptimSettings, TrainSettings
from segtune.data.settings import DataSettings
from segtune.data.volumes.settings import VolumeSettings
from segtune.losses import LOSSES
from segtune.methods import METHODS
from segtune.metrics import METRICS, SALIENCY
from segtune.models import MODELS
from segtune.registry import Registry
from segtune.settings import Settings, read_settings

FOLDER = Path(__file__).resolve().parents[1] / "docs"
FOLDERS = ("methods", "models")
"""Whole folders of generated pages."""
ALONE = ("losses.md", "metrics.md", "settings.md")
NOTICE = "<!-- Written by `make docs` from the {} files; change those. -->"
SIGNS = {Ge: ("ge", "≥"), Gt: ("gt", ">"), Le: ("le", "≤"), Lt: ("lt", "<")}
PLAIN = {int: "whole number", float: "number", bool: "true, false", str: "text", type(None): "null"}


def render() -> dict[str, str]:
    """Every generated page: path below docs/ -> content."""
    families = _families()
    return {
        "methods/README.md": _overview(),
        **{f"methods/{_file(name)}": _page(name) for name in METHODS},
        "models/README.md": _models_overview(families),
        **{f"models/{file}": _model_page(names) for file, names in families.items()},
        "losses.md": _losses(),
        "metrics.md": _metrics(),
        "settings.md": _all_settings(),
    }


def _file(name: str) -> str:
    """A component's page; not every system allows a colon in the name of a file."""
    return f"{name.removesuffix(':').replace(':', '-')}.md"


def _families() -> dict[str, list[str]]:
    """Page -> the names that one file of segtune/models answers to; the page is called like the file."""
    families: dict[str, list[str]] = {}
    for name in MODELS:
        file = MODELS.module(name).rpartition(".")[2].replace("_", "-")
        families.setdefault(f"{file}.md", []).append(name)
    return families


def _models_overview(families: dict[str, list[str]]) -> str:
    rows = [
        f"| [{file.removesuffix('.md')}]({file}) | {_names(names)} | {MODELS.summary(names[0])} |"
        for file, names in families.items()
    ]
    return "\n".join(
        [
            NOTICE.format("model"),
            "",
            "# Models",
            "",
            "`--model NAME`; their settings are `--set model.KEY=VALUE`. `model.weights` is `default` (the",
            "published ones, downloaded once, checked and cached; none for `unet`), `none`, a published",
            "name, or a `.safetensors` or `.pth` file. `segtune inspect --model NAME --method METHOD",
            "--classes K` shows sizes and memory without weights.",
            "",
            "| Family | Names | What it is |",
            "| --- | --- | --- |",
            *rows,
            "",
        ]
    )


def _names(names: list[str]) -> str:
    return ", ".join(f"`{name}...`" if name.endswith(":") else f"`{name}`" for name in names)


def _model_page(names: list[str]) -> str:
    settings = MODELS.settings(names[0])
    text = _plain(MODELS.documentation(names[0]))
    lines = [
        NOTICE.format("model"),
        "",
        f"# {_names(names).replace('`', '')}",
        "",
        text,
        "",
        "## Settings",
        "",
    ]
    return "\n".join([*lines, *_settings_table(settings, set(settings.model_fields), "model"), ""])


def _losses() -> str:
    lines = [NOTICE.format("loss"), "", "# Losses", ""]
    lines += ["`--set loss.name=NAME`; the settings of each are `--set loss.KEY=VALUE`.", ""]
    lines += _summaries(LOSSES, "Loss")
    for name in LOSSES:
        lines += ["", f"## {name}", "", _plain(LOSSES.documentation(name))]
        settings = LOSSES.settings(name)
        if settings.model_fields:
            lines += ["", *_settings_table(settings, set(settings.model_fields), "loss")]
    return "\n".join([*lines, ""])


def _metrics() -> str:
    lines = [NOTICE.format("metric"), "", "# Metrics", ""]
    lines += [
        "Scores are computed from counts of pixels at the original size of each image, those of a set from",
        "the counts of the whole set. `train.monitor` chooses the one that decides which state is kept.",
        "[How classes that are absent count](decisions/0005-absent-classes.md).",
        "",
        *_summaries(METRICS, "Metric"),
        "",
        "## Of probability maps",
        "",
        "For two classes, where asked for: `segtune evaluate --saliency`, `train.saliency=true`.",
        "",
        *_summaries(SALIENCY, "Score"),
    ]
    return "\n".join([*lines, ""])


def _all_settings() -> str:
    sections: dict[str, type[Settings]] = {
        "train": TrainSettings,
        "optim": OptimSettings,
        "model": ModelCommonSettings,
        "loss": LossCommonSettings,
        "data": DataSettings,
        "data.volume": VolumeSettings,
    }
    lines = [NOTICE.format("settings"), "", "# Settings", ""]
    lines += [
        "Given as `--set KEY=VALUE`, in a YAML file (`--config FILE`), or from Python as",
        "`settings={KEY: VALUE}`; later ones win. Those of [models](models/README.md),",
        "[methods](methods/README.md), [losses](losses.md) and [formats](formats.md) stand",
        "there. Every run keeps all of its settings in `config.yaml`, and `segtune fit` says where each",
        "that is no default came from.",
    ]
    for section, settings in sections.items():
        names = [
            name for name, info in settings.model_fields.items() if info.annotation is not VolumeSettings
        ]
        lines += ["", f"## {section}", "", *_settings_table(settings, names, section)]
    return "\n".join([*lines, ""])


def _summaries(registry: Registry, heading: str) -> list[str]:
    rows = [f"| `{name}` | {registry.summary(name)} |" for name in registry]
    return [f"| {heading} | What it is |", "| --- | --- |", *rows]


def _plain(docstring: str) -> str:
    """A docstring as Markdown: `Source` becomes a heading, indented blocks stay as they are."""
    lines = docstring.splitlines()
    if "Source" in lines:
        start = lines.index("Source")
        source = [line.strip() for line in lines[start + 1 :]]
        lines = [*lines[:start], "Source: " + " ".join(source)]
    return "\n".join(lines).strip()


def _overview() -> str:
    base = read_settings("segtune.methods.base")
    common, placement = base["MethodSettings"], base["PlacementSettings"]
    rows = [f"| [`{name}`]({_file(name)}) | {METHODS.summary(name)} |" for name in METHODS]
    choosing = [f"`{name}`" for name in METHODS if issubclass(METHODS.settings(name), placement)]
    return "\n".join(
        [
            NOTICE.format("method"),
            "",
            "# Methods",
            "",
            "Several are combined with `+`, for example `--method lora+norm`.",
            "",
            "| Method | What it does |",
            "| --- | --- |",
            *rows,
            "",
            "## Settings of every method",
            "",
            *_settings_table(common, set(common.model_fields)),
            "",
            "## Settings of methods that choose among the layers",
            "",
            f"Those are {', '.join(choosing)}.",
            "",
            *_settings_table(placement, placement.model_fields.keys() - common.model_fields.keys()),
            "",
        ]
    )


def _page(name: str) -> str:
    settings = METHODS.settings(name)
    base = read_settings("segtune.methods.base")
    common = base["MethodSettings"].model_fields.keys()
    places = base["PlacementSettings"].model_fields.keys()
    own = settings.model_fields.keys() - common - places
    lines = [NOTICE.format("method"), "", f"# {name}", "", f"{METHODS.summary(name)}.", ""]
    for heading, text in _sections(METHODS.documentation(name)):
        lines += [f"## {heading}", "", text, ""]
    lines += ["## Settings", ""]
    if own:
        lines += [*_settings_table(settings, own), ""]
    shared = "every method"
    if places <= settings.model_fields.keys():
        shared += " and of methods that choose among the layers"
    lines += [f"{'And those' if own else 'Those'} of {shared}: see the [overview](README.md).", ""]
    return "\n".join(lines)


def _sections(docstring: str) -> list[tuple[str, str]]:
    """Headings, each with the indented text below it; the summary line is left out."""
    sections: list[tuple[str, list[str]]] = []
    for line in docstring.splitlines()[1:]:
        if line and not line.startswith(" "):
            sections.append((line, []))
        elif sections:
            sections[-1][1].append(line.strip())
    return [(heading, "\n".join(lines).strip()) for heading, lines in sections]


def _settings_table(settings: type[Settings], names: Collection[str], section: str = "method") -> list[str]:
    lines = ["| Setting | Default | Values | What it is |", "| --- | --- | --- | --- |"]
    for name, info in settings.model_fields.items():
        if name in names:
            cells = (
                f"`{section}.{name}`",
                f"`{_value(info.default)}`",
                _values(info),
                info.description or "",
            )
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _value(value: Any) -> str:
    """A value as YAML would have it."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_value, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _values(info: FieldInfo) -> str:
    return ", ".join([_type(info.annotation), *_bounds(info)])


def _bounds(info: FieldInfo) -> list[str]:
    bounds = [
        f"{SIGNS[type(bound)][1]} {getattr(bound, SIGNS[type(bound)][0])}"
        for bound in info.metadata
        if type(bound) in SIGNS
    ]
    bounds += [
        f"a multiple of {bound.multiple_of}" for bound in info.metadata if isinstance(bound, MultipleOf)
    ]
    return bounds + ["at least one" for bound in info.metadata if bound == MinLen(1)]


def _type(annotation: Any) -> str:  # noqa: PLR0911
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{argument}`" for argument in arguments)
    if origin is Annotated:
        return " ".join([_type(arguments[0]), *_bounds(arguments[1])])
    if origin in {Union, types.UnionType}:
        return " or ".join(_type(argument) for argument in arguments)
    if origin is tuple and arguments[1:] == (...,):
        return f"list of {_type(arguments[0])}"
    if origin is tuple:
        return f"{len(arguments)} of {_type(arguments[0])}"
    if origin is dict:
        return "mapping"
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return ", ".join(f"`{member.value}`" for member in annotation)
    return PLAIN[annotation]


def main() -> None:
    """Writes the pages, and removes those of components that are gone."""
    pages = render()
    for path in written():
        if path.relative_to(FOLDER).as_posix() not in pages:
            path.unlink()
    for name, text in pages.items():
        path = FOLDER / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")


def written() -> list[Path]:
    """The generated pages that are there."""
    alone = [path for name in ALONE if (path := FOLDER / name).exists()]
    return alone + [path for folder in FOLDERS for path in (FOLDER / folder).glob("*.md")]


if __name__ == "__main__":
    main()
