"""From defaults, YAML files and the command line to one `RunConfig`, every mistake in one report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from segtune.config.layers import NAMED, SECTIONS, Layer, parse_assignments, read_yaml
from segtune.config.run import (
    CROSS_ENTROPY,
    LossCommonSettings,
    ModelCommonSettings,
    OptimSettings,
    RunConfig,
    TrainSettings,
)
from segtune.data import is_hub
from segtune.data.settings import DataSettings
from segtune.errors import SettingsError, UnknownNameError
from segtune.losses import LOSSES
from segtune.methods import METHODS
from segtune.metrics import METRICS, SALIENCY, VOLUME_METRICS
from segtune.models import MODELS
from segtune.registry import Registry, nearest
from segtune.settings import Settings
from segtune.trackers import TRACKERS

LONGEST_SHOWN = 80
"""Characters of a wrong value that a message repeats."""
MONITORS = (*METRICS, CROSS_ENTROPY, *SALIENCY, *VOLUME_METRICS)
"""Scores that can decide which checkpoint is the best."""


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
    *,
    flags: Mapping[str, Mapping[str, Any]],
    files: Sequence[Path] = (),
    assignments: Sequence[str] = (),
    base: Layer | None = None,
) -> RunConfig:
    """Settings from YAML files, named options and assignments, from the weakest to the strongest.

    Args:
        flags: option as typed -> nested values, e.g. {"--model": {"model": {"name": "unet"}}}.
        files: YAML files.
        assignments: "key.sub=value" texts.
        base: what everything else comes on top of.

    Raises:
        SettingsError: with every mistake that was found.
    """
    layers = [base] if base is not None else []
    layers += [read_yaml(path) for path in files]
    layers += [Layer(source, values) for source, values in flags.items()]
    return load_config([*layers, parse_assignments(assignments)])


def load_data_settings(
    *, files: Sequence[Path] = (), assignments: Sequence[str] = (), base: Layer | None = None
) -> DataSettings:
    """The `data.*` settings alone, for commands that need no model."""
    whatever = {"model": {"name": next(iter(MODELS))}, "method": {"name": next(iter(METHODS))}}
    return load_settings(flags={"default": whatever}, files=files, assignments=assignments, base=base).data


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
            self._merge(self.values, self._sections(layer), layer.source, ())

    def _sections(self, layer: Layer) -> dict[str, Any]:
        """A layer's sections as mappings: a name alone is one, an empty section changes nothing."""
        sections: dict[str, Any] = {}
        for key, value in layer.values.items():
            if key in NAMED and isinstance(value, str):
                sections[key] = {"name": value}
            elif key not in SECTIONS or isinstance(value, Mapping):
                sections[str(key)] = value
            elif value is not None:
                self.problems.append(
                    f"{key} = {_shown(value)} (from {layer.source}): expected settings such as {key}.name=..."
                    if key in NAMED
                    else f"{key} = {_shown(value)} (from {layer.source}): expected settings, not a value"
                )
        return sections

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
                if key == "compare":
                    hint = "a file that has it is for `segtune compare`"
                self.problems.append(f"{key}: no such section (from {self._source(key)}); {hint}")
        sections = {name: dict(self.values.get(name, {})) for name in SECTIONS}
        model = self._name("model", sections["model"], MODELS)
        weights = self._text("model.weights", sections["model"].pop("weights", "default"))
        loss = self._name("loss", sections["loss"], LOSSES, "cross_entropy")
        path = sections["data"].pop("path", None)
        parts_name = self._text("method.name", sections["method"].pop("name", ""))
        model_common = _taken(sections["model"], ModelCommonSettings)
        loss_common = _taken(sections["loss"], LossCommonSettings)
        config = RunConfig(
            model=model,
            weights=weights,
            model_common=self._validate("model", model_common, ModelCommonSettings, "models"),
            model_settings=self._validate("model", sections["model"], self._schema(MODELS, model), model),
            method=parts_name,
            method_parts=self._method_parts(parts_name, sections["method"]),
            loss=loss,
            loss_common=self._validate("loss", loss_common, LossCommonSettings, "losses"),
            loss_settings=self._validate("loss", sections["loss"], self._schema(LOSSES, loss), loss),
            data_path=None if path is None else self._path("data.path", path),
            data=self._validate("data", sections["data"], DataSettings, "the data"),
            optim=self._validate("optim", sections["optim"], OptimSettings, "the optimiser"),
            train=self._validate("train", sections["train"], TrainSettings, "the training loop"),
            sources=self.sources,
        )
        # the section's own value: one of its other settings may be wrong
        monitor = self.values.get("train", {}).get("monitor", config.train.monitor)
        if isinstance(monitor, str) and monitor not in MONITORS:
            meant = nearest(monitor, list(MONITORS))
            self.problems.append(
                f"train.monitor = {_shown(monitor)}: no such metric"
                + (f"; did you mean {meant!r}?" if meant else f"; metrics are {', '.join(MONITORS)}")
            )
        if monitor in SALIENCY and not config.train.saliency:
            self.problems.append(
                f"train.monitor = {_shown(monitor)}: a saliency score; set train.saliency=true with it"
            )
        for name in dict.fromkeys(config.train.trackers):
            try:
                TRACKERS.check(name)
            except UnknownNameError as error:
                self.problems.append(f"train.trackers: {error.message}; {error.hint}")
        if self.problems:
            raise SettingsError(self.problems)
        return config

    def _source(self, *keys: str) -> str:
        return next(
            (s for k, s in self.sources.items() for key in keys if k == key or k.startswith(f"{key}.")),
            "default",
        )

    def _text(self, key: str, value: Any) -> str:
        if isinstance(value, str):
            return value
        self.problems.append(
            f"{key} = {_shown(value)} (from {self._source(key)}): expected a text; a number is put in quotes"
        )
        return ""

    def _path(self, key: str, value: Any) -> Path:
        """A path as the run's folder keeps it: it must hold from wherever the run is used again."""
        text = self._text(key, value)
        if is_hub(Path(text)):
            return Path(text)
        try:
            return Path(text).expanduser().resolve()
        except (ValueError, RuntimeError, OSError) as error:  # a zero byte, an unknown ~user, a loop of links
            self.problems.append(f"{key} = {_shown(value)} (from {self._source(key)}): no path: {error}")
            return Path()

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
            self.problems.append(f"{section}.name = {_shown(name)}: {error.message}; {error.hint}")
            return ""
        return str(name)

    def _schema(self, registry: Registry, name: str) -> type[Settings] | None:
        return registry.settings(name) if name else None

    def _method_parts(self, name: str, values: dict[str, Any]) -> dict[str, Settings]:
        names = [part.strip() for part in name.split("+")] if name else []
        if not names:
            if not any(problem.startswith("method.name = ") for problem in self.problems):
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
        nested = self._nested(names, values)
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

    def _nested(self, names: Sequence[str], values: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """Settings of single methods, such as method.lora.rank, taken out of the section."""
        nested: dict[str, dict[str, Any]] = {}
        for part in names:
            own = values.pop(part, None)
            if isinstance(own, Mapping):
                nested[part] = {str(key): value for key, value in own.items()}
            elif own is not None:
                self.problems.append(
                    f"method.{part} = {_shown(own)} (from {self._source(f'method.{part}')}):"
                    f" expected settings such as method.{part}.train_head=true"
                )
        return nested

    def _unknown(self, section: str, key: str, value: Any, owner: str, known: Iterable[str]) -> None:
        known = sorted(known)
        meant = nearest(key, known)
        hint = f"did you mean {section}.{meant}?" if meant else f"it has {', '.join(known) or 'no settings'}"
        self.problems.append(
            f"{section}.{key} = {_shown(value)} (from {self._source(f'{section}.{key}')}):"
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
        place = error["loc"]
        while len(place) > 1 and (below := _settings_below(schema, place[0])) is not None:
            section, owner, schema = f"{section}.{place[0]}", f"{section}.{place[0]}", below
            values, place = values[place[0]], place[1:]
        key = str(place[0]) if place else ""
        if error["type"] == "extra_forbidden":
            self._unknown(section, key, error["input"], owner, schema.model_fields)
            return
        message = error["msg"].removeprefix("Value error, ")
        message = message[:1].lower() + message[1:]
        if not key:
            self.problems.append(f"{section}: {message}")
            return
        description = schema.model_fields[key].description
        source = self._source(f"{section}.{key}", f"{section}.{owner}.{key}")
        line = f"{section}.{key} = {_shown(values.get(key))} (from {source}): {message}"
        line += f" [{description}]" if description else ""
        # a union reports one line for each of its members; the user needs the key once
        if not any(problem.startswith(f"{section}.{key} = ") for problem in self.problems):
            self.problems.append(line)


def _taken(values: dict[str, Any], schema: type[Settings]) -> dict[str, Any]:
    """The values of a schema's settings, taken out of a section."""
    return {key: values.pop(key) for key in schema.model_fields.keys() & values.keys()}


def _settings_below(schema: type[Settings], key: str) -> type[Settings] | None:
    """The schema of a setting that is a section of its own, such as data.volume."""
    field = schema.model_fields.get(key)
    annotation = None if field is None else field.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, Settings) else None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."
