"""From defaults, YAML files and the command line to one `RunConfig`, every mistake in one report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from segtune.config.run import LossCommonSettings, OptimSettings, RunConfig, TrainSettings
from segtune.data.settings import DataSettings
from segtune.errors import SettingsError, UnknownNameError, UsageError
from segtune.losses import LOSSES
from segtune.methods import METHODS
from segtune.metrics import METRICS
from segtune.models import MODELS
from segtune.registry import Registry, nearest
from segtune.settings import Settings

SECTIONS = ("model", "method", "data", "loss", "optim", "train")


@dataclass(frozen=True)
class Layer:
    """Settings from one place; later layers win."""

    source: str
    """Where they came from, as shown to the user: a file name, "--set", "--model"."""
    values: Mapping[str, Any]
    """Nested mapping with the sections as its keys."""


def read_yaml(path: Path) -> Layer:
    """Reads a layer of settings from a YAML file.

    Raises:
        UsageError: the file is missing or is not a mapping of sections.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the settings file {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid YAML: {error}", hint="check the indentation") from None
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise UsageError(
            f"{path} holds {type(values).__name__}, not settings",
            hint=f"write sections: {', '.join(SECTIONS)}",
        )
    return Layer(path.name, values)


def parse_assignments(assignments: Iterable[str], source: str = "--set") -> Layer:
    """Turns "key.sub=value" texts into a layer; values are read as YAML.

    Raises:
        UsageError: a text has no "=".
    """
    values: dict[str, Any] = {}
    for text in assignments:
        key, equals, raw = text.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"{source} {text!r} is not an assignment", hint=f"{source} method.rank=8")
        try:
            value = yaml.safe_load(raw) if raw else None
        except yaml.YAMLError:
            value = raw  # globs such as *_day are no YAML
        node = values
        *path, last = key.strip().split(".")
        for name in path:
            below = node.setdefault(name, {})
            if not isinstance(below, dict):
                raise UsageError(f"{source} {text!r}: {name} has a value of its own already")
            node = below
        node[last] = value
    return Layer(source, values)


def load_config(layers: Sequence[Layer]) -> RunConfig:
    """Merges layers of settings and checks every one of them.

    Args:
        layers: from the weakest to the strongest.

    Returns:
        The complete settings, each with its source.

    Raises:
        SettingsError: with every mistake that was found.
    """
    return _Loader(layers).load()


def load_settings(
    *, flags: Mapping[str, Mapping[str, Any]], files: Sequence[Path] = (), assignments: Sequence[str] = ()
) -> RunConfig:
    """Settings from YAML files, named options and assignments, from the weakest to the strongest.

    Args:
        flags: option as typed -> nested values, e.g. {"--model": {"model": {"name": "unet"}}}.
        files: YAML files.
        assignments: "key.sub=value" texts.

    Raises:
        SettingsError: with every mistake that was found.
    """
    layers = [read_yaml(path) for path in files]
    layers += [Layer(source, values) for source, values in flags.items()]
    return load_config([*layers, parse_assignments(assignments)])


def load_data_settings(*, files: Sequence[Path] = (), assignments: Sequence[str] = ()) -> DataSettings:
    """The `data.*` settings alone, for commands that need no model."""
    whatever = {"model": {"name": next(iter(MODELS))}, "method": {"name": next(iter(METHODS))}}
    return load_settings(flags={"default": whatever}, files=files, assignments=assignments).data


def difference(old: RunConfig, new: RunConfig) -> list[str]:
    """The settings in which two configurations differ, each with both values."""
    before, after = _flat(old.to_dict()), _flat(new.to_dict())
    return [
        f"{key} was {before.get(key)!r}, now {after.get(key)!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


class _Loader:
    def __init__(self, layers: Sequence[Layer]) -> None:
        self.problems: list[str] = []
        self.sources: dict[str, str] = {}
        self.values: dict[str, Any] = {}
        for layer in layers:
            self._merge(self.values, layer.values, layer.source, ())

    def _merge(
        self, into: dict[str, Any], new: Mapping[str, Any], source: str, path: tuple[str, ...]
    ) -> None:
        for key, value in new.items():
            here = (*path, str(key))
            if isinstance(value, Mapping) and len(here) < 3 and here[-1] != "values":
                below = into.setdefault(str(key), {})
                if isinstance(below, dict):
                    self._merge(below, value, source, here)
                    continue
            into[str(key)] = value
            self.sources[".".join(here)] = source

    def load(self) -> RunConfig:
        for key in self.values:
            if key not in SECTIONS:
                meant = nearest(key, list(SECTIONS))
                hint = f"did you mean {meant}?" if meant else f"sections are {', '.join(SECTIONS)}"
                self.problems.append(f"{key}: no such section (from {self._source(key)}); {hint}")
        sections = {name: self._section(name) for name in SECTIONS}
        model = self._name("model", sections["model"], MODELS)
        weights = str(sections["model"].pop("weights", "default"))
        loss = self._name("loss", sections["loss"], LOSSES, "cross_entropy")
        path = sections["data"].pop("path", None)
        parts_name = str(sections["method"].pop("name", ""))
        shared = LossCommonSettings.model_fields.keys() & sections["loss"].keys()
        loss_common = {key: sections["loss"].pop(key) for key in shared}
        config = RunConfig(
            model=model,
            weights=weights,
            model_settings=self._validate("model", sections["model"], self._schema(MODELS, model), model),
            method=parts_name,
            method_parts=self._method_parts(parts_name, sections["method"]),
            loss=loss,
            loss_common=self._validate("loss", loss_common, LossCommonSettings, "losses"),
            loss_settings=self._validate("loss", sections["loss"], self._schema(LOSSES, loss), loss),
            data_path=Path(path) if path is not None else None,
            data=self._validate("data", sections["data"], DataSettings, "the data"),
            optim=self._validate("optim", sections["optim"], OptimSettings, "the optimiser"),
            train=self._validate("train", sections["train"], TrainSettings, "the training loop"),
            sources=self.sources,
        )
        if config.train.monitor not in METRICS:
            meant = nearest(config.train.monitor, list(METRICS))
            self.problems.append(
                f"train.monitor = {config.train.monitor!r}: no such metric"
                + (f"; did you mean {meant!r}?" if meant else f"; metrics are {', '.join(METRICS)}")
            )
        if self.problems:
            raise SettingsError(self.problems)
        return config

    def _source(self, key: str) -> str:
        return next((s for k, s in self.sources.items() if k == key or k.startswith(f"{key}.")), "default")

    def _section(self, name: str) -> dict[str, Any]:
        values = self.values.get(name, {})
        if isinstance(values, dict):
            return dict(values)
        if name in {"model", "method", "loss"} and isinstance(values, str):
            return {"name": values}
        self.problems.append(f"{name} = {values!r}: expected settings such as {name}.name=...")
        return {}

    def _name(
        self, section: str, values: dict[str, Any], registry: Registry, default: str | None = None
    ) -> str:
        name = values.pop("name", default)
        if name is None:
            self.problems.append(f"{section}.name is missing; available: {', '.join(registry)}")
            return ""
        try:
            registry.check(str(name))
        except UnknownNameError as error:
            self.problems.append(f"{section}.name = {name!r}: {error.message}; {error.hint}")
            return ""
        return str(name)

    def _schema(self, registry: Registry, name: str) -> type[Settings] | None:
        return registry.settings(name) if name else None

    def _method_parts(self, name: str, values: dict[str, Any]) -> dict[str, Settings]:
        names = [part.strip() for part in name.split("+")] if name else []
        if not names:
            self.problems.append(f"method.name is missing; available: {', '.join(METHODS)}")
            return {}
        schemas: dict[str, type[Settings]] = {}
        for part in names:
            if part in schemas:
                self.problems.append(f"method.name = {name!r}: {part!r} stands there twice")
            elif (known := self._name("method", {"name": part}, METHODS)) != "":
                schemas[part] = METHODS.settings(known)
        if len(schemas) < len(names):
            return {}
        nested = {part: dict(values.pop(part, None) or {}) for part in names if part in values}
        for key in list(values):
            owners = [part for part in names if key in schemas[part].model_fields]
            for part in owners:
                nested.setdefault(part, {}).setdefault(key, values[key])
            if owners:
                values.pop(key)
        fields = {key for schema in schemas.values() for key in schema.model_fields}
        for key, value in values.items():
            self._unknown("method", key, value, name, fields)
        return {part: self._validate("method", nested.get(part, {}), schemas[part], part) for part in names}

    def _split(
        self,
        section: str,
        values: dict[str, Any],
        common: type[LossCommonSettings],
        own: type[Settings] | None,
    ) -> tuple[LossCommonSettings, Settings]:
        shared = {key: values.pop(key) for key in list(values) if key in common.model_fields}
        return self._validate(section, shared, common, section), self._validate(section, values, own, section)

    def _unknown(self, section: str, key: str, value: Any, owner: str, known: Iterable[str]) -> None:
        known = sorted(known)
        meant = nearest(key, known)
        hint = f"did you mean {section}.{meant}?" if meant else f"it has {', '.join(known) or 'no settings'}"
        self.problems.append(
            f"{section}.{key} = {value!r} (from {self._source(f'{section}.{key}')}):"
            f" no such setting of {owner}; {hint}"
        )

    def _validate(
        self, section: str, values: dict[str, Any], schema: type[Settings] | None, owner: str
    ) -> Any:
        if schema is None:  # the name is wrong, which has been said
            return Settings()
        try:
            return schema.model_validate(values)
        except ValidationError as errors:
            for error in errors.errors(include_url=False):
                self._explain(section, owner, schema, error, values)
        return schema()

    def _explain(
        self, section: str, owner: str, schema: type[Settings], error: Any, values: dict[str, Any]
    ) -> None:
        key = str(error["loc"][0]) if error["loc"] else ""
        if error["type"] == "extra_forbidden":
            self._unknown(section, key, error["input"], owner, schema.model_fields)
            return
        message = error["msg"].removeprefix("Value error, ")
        message = message[:1].lower() + message[1:]
        if not key:
            self.problems.append(f"{section}: {message}")
            return
        description = schema.model_fields[key].description
        line = f"{section}.{key} = {values.get(key)!r} (from {self._source(f'{section}.{key}')}): {message}"
        line += f" [{description}]" if description else ""
        # a union reports one line for each of its members; the user needs the key once
        if not any(problem.startswith(f"{section}.{key} = ") for problem in self.problems):
            self.problems.append(line)
