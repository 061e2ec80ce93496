"""From settings to the cells of a comparison: which runs there are, and which rows they belong to."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from segtune.comparison.settings import ComparisonSettings, meant_setting
from segtune.config.layers import Layer, nest
from segtune.config.load import load_config
from segtune.config.run import CROSS_ENTROPY, LOWER_IS_BETTER, ModelCommonSettings, RunConfig
from segtune.errors import SettingsError, UsageError
from segtune.methods import METHODS
from segtune.metrics import METRICS, SALIENCY, VOLUME_METRICS
from segtune.models import MODELS
from segtune.registry import nearest

SECTION = "compare"
NAMED_BY_ROWS = ("model", "method")
"""Sections whose name each row says for itself."""
UNTRAINED = frozenset({"base", "zero-shot"})
"""Methods that train nothing: they have neither ranks nor learning rates."""
DETERMINISTIC = frozenset({"zero-shot"})
"""Methods whose score does not depend on a seed."""

Values = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table: everything about a run but its seed and its fold."""

    label: str
    model: str
    method: str
    layer: Layer = field(repr=False)
    """The row's settings, on top of those that all share."""
    rate: float | None = None
    """Its learning rate where that is what tells rows apart."""

    @property
    def is_trained(self) -> bool:
        """Whether there is anything to train."""
        return self.method not in UNTRAINED


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run."""

    row: Row
    seed: int
    fold: int | None
    config: RunConfig = field(repr=False)
    trial: float | None = None
    """The learning rate that it tries; None for a run whose score counts."""

    @property
    def name(self) -> str:
        """Folder of the run: readable, and another one for other settings."""
        parts = [self.row.label]
        if self.trial is not None:
            parts.append(f"rate{self.trial:g}")
        parts.append(f"seed{self.seed}")
        if self.fold is not None:
            parts.append(f"fold{self.fold}")
        text = json.dumps(self.config.to_dict(), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        name = re.sub(r"[^A-Za-z0-9.+-]+", "-", "-".join([*parts, digest]))
        return name.lstrip("-")  # a word that begins with a dash is an option to every command


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A comparison, before anything runs."""

    settings: ComparisonSettings
    rows: tuple[Row, ...]
    shared: tuple[Layer, ...] = field(repr=False)
    first_seed: int
    score: str

    @property
    def sign(self) -> int:
        """1 where a higher score is better, -1 where a lower one is."""
        return -1 if self.score in LOWER_IS_BETTER else 1

    def trials(self) -> list[Cell]:
        """The runs that try learning rates; they come first, and the other runs wait for them."""
        folds = self._folds()[:1]
        steps = self.settings.search_steps
        length = {} if steps is None else {"train.steps": steps, "train.epochs": None}
        return [
            self._cell(row, self.settings.search_seed, fold, {**length, "optim.learning_rate": rate}, rate)
            for row in self.rows
            if row.is_trained
            for rate in self.settings.search_rates
            for fold in folds
        ]

    def runs(self, rates: Mapping[str, float]) -> list[Cell]:
        """The runs whose scores count, seed by seed, so that a first picture of all rows comes early.

        Args:
            rates: label of a row -> the learning rate that its trials chose; a row that has none is
                left out where rates are searched.
        """
        found = []
        for place, fold in itertools.product(range(self.settings.seeds), self._folds()):
            for row in self.rows:
                if place and row.method in DETERMINISTIC:
                    continue
                own: dict[str, Any] = {}
                if row.is_trained and self.settings.search_rates:
                    if row.label not in rates:
                        continue
                    own = {"optim.learning_rate": rates[row.label]}
                found.append(self._cell(row, self.first_seed + place, fold, own, None))
        return found

    def _folds(self) -> list[int | None]:
        return [None] if self.settings.folds is None else list(range(self.settings.folds))

    def _cell(self, row: Row, seed: int, fold: int | None, own: Values, trial: float | None) -> Cell:
        values: dict[str, Any] = {"train.seed": seed, **own}
        if fold is not None:
            values |= {"data.folds": self.settings.folds, "data.fold": fold}
        config = load_config([*_fitting(self.shared, row), row.layer, nest(values.items(), SECTION)])
        return Cell(row=row, seed=seed, fold=fold, config=config, trial=trial)


def make_plan(layers: Sequence[Layer]) -> Plan:
    """Reads the settings of a comparison and checks every run of it.

    Args:
        layers: of settings, from the weakest to the strongest; a section `compare` says what is
            compared. Settings of `method.*` and `model.*` hold for those that have them.

    Returns:
        The plan; each of its runs has settings without mistakes.

    Raises:
        SettingsError: with every mistake of the first row that has any.
        UsageError: nothing to compare, two equal rows, folds and a split at once.
    """
    settings = _comparison(layers)
    shared = tuple(_without(layer, SECTION) for layer in layers)
    rows = tuple(_rows(settings, shared))
    labels = [row.label for row in rows]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise UsageError(
            f"two rows of the comparison are called {twice[0]!r}",
            hint="give one of them a label: {name: ..., label: ...}",
        )
    _refuse_unknown(shared, rows)
    train = load_config([*_fitting(shared, rows[0]), rows[0].layer]).train
    score = settings.score or train.monitor
    _check_score(score, saliency=train.saliency)
    plan = Plan(settings=settings, rows=rows, shared=shared, first_seed=train.seed, score=score)
    plan.runs(dict.fromkeys(labels, 1e-3))  # every mistake now, not after an hour
    plan.trials()
    return plan


def _check_score(score: str, *, saliency: bool) -> None:
    """Refuses a score that no run can have."""
    if score in SALIENCY and not saliency:
        raise SettingsError(
            [f"{SECTION}.score = {score!r}: a saliency score; set train.saliency=true with it"]
        )
    if score != CROSS_ENTROPY and score not in SALIENCY and score not in VOLUME_METRICS:
        (VOLUME_METRICS if score.startswith("volume") else METRICS).check(score)


def _comparison(layers: Sequence[Layer]) -> ComparisonSettings:
    merged: dict[str, Any] = {}
    for layer in layers:
        section = layer.values.get(SECTION) or {}
        if not isinstance(section, Mapping):
            raise SettingsError(
                [f"{SECTION} (from {layer.source}): expected settings such as compare.methods"]
            )
        merged.update(section)
    try:
        return ComparisonSettings.model_validate(merged)
    except ValidationError as errors:
        raise SettingsError([_explain(error) for error in errors.errors(include_url=False)]) from None


def _explain(error: Any) -> str:
    key = ".".join([SECTION, *(str(part) for part in error["loc"][:1])])
    if error["type"] == "extra_forbidden":
        meant = meant_setting(str(error["loc"][0]))
        return f"{key}: no such setting" + (f"; did you mean {SECTION}.{meant}?" if meant else "")
    message = error["msg"].removeprefix("Value error, ")
    return f"{key} = {error['input']!r}: {message[:1].lower()}{message[1:]}"


def _rows(settings: ComparisonSettings, shared: Sequence[Layer]) -> Iterator[Row]:
    models = [_named("model", entry, MODELS) for entry in settings.models] or [
        {"name": _name_of(shared, "model")}
    ]
    methods = [_named("method", entry, METHODS) for entry in settings.methods] or [
        {"name": _name_of(shared, "method")}
    ]
    for model, method in itertools.product(models, methods):
        fields = _fields(str(method["name"]))
        trained = method["name"] not in UNTRAINED
        ranks = settings.ranks if "rank" in fields and "rank" not in method else ()
        placements = settings.placements if "first_blocks" in fields else ()
        rates = settings.learning_rates if trained else ()
        for rank, placement, rate in itertools.product(
            ranks or [None], placements or [None], rates or [None]
        ):
            yield _row(model, method, rank, placement, rate, several_models=len(models) > 1)


def _row(
    model: Values,
    method: Values,
    rank: int | None,
    placement: str | None,
    rate: float | None,
    *,
    several_models: bool,
) -> Row:
    values: dict[str, Any] = {
        key if "." in key else f"method.{key}": value for key, value in method.items() if key != "label"
    }
    values |= {f"model.{key}": value for key, value in model.items() if key != "label"}
    parts = [str(model.get("label", model["name"]))] if several_models else []
    parts.append(str(method["label"]) if "label" in method else _describe(method))
    if rank is not None:
        values["method.rank"] = rank
        parts.append(f"rank={rank}")
    if placement is not None:
        values |= _placement(placement)
        parts += [placement] if placement != "all" else []
    if rate is not None:
        values["optim.learning_rate"] = rate
        parts.append(f"lr={rate:g}")
    return Row(
        label=" ".join(parts),
        model=str(model["name"]),
        method=str(method["name"]),
        layer=nest(values.items(), SECTION),
        rate=rate,
    )


def _describe(method: Values) -> str:
    """A method's name with the settings that were written beside it."""
    return " ".join(
        [str(method["name"]), *(f"{key}={value}" for key, value in method.items() if key != "name")]
    )


def _placement(text: str) -> dict[str, Any]:
    kind, _, number = text.partition("-")
    if kind in ("first", "last"):
        return {f"method.{kind}_blocks": int(number)}
    return {} if kind == "all" else {"method.attention": kind}


def _named(section: str, entry: str | Mapping[str, Any], registry: Any) -> dict[str, Any]:
    values = {"name": entry} if isinstance(entry, str) else dict(entry)
    if not isinstance(values.get("name"), str):
        raise SettingsError([f"{SECTION}.{section}s: {entry!r} has no name"])
    for part in str(values["name"]).split("+") if section == "method" else [values["name"]]:
        registry.check(part.strip())
    return values


def _name_of(layers: Sequence[Layer], section: str) -> str:
    found = ""
    for layer in layers:
        value = layer.values.get(section)
        name = value if isinstance(value, str) else (value or {}).get("name")
        found = name or found
    if not found:
        raise UsageError(f"nothing says which {section} to compare", hint=f"--{section}s NAME,NAME,...")
    return str(found)


def _fields(method: str) -> set[str]:
    """Settings of a method, or of several joined by "+"."""
    return {key for part in method.split("+") for key in METHODS.settings(part.strip()).model_fields}


def _own_keys(section: str, row: Row) -> set[str]:
    if section == "model":
        own = MODELS.settings(row.model).model_fields
        return {"weights", *ModelCommonSettings.model_fields, *own}
    return {*_fields(row.method), *row.method.split("+")}


def _fitting(layers: Iterable[Layer], row: Row) -> list[Layer]:
    """The shared settings without those of models and methods that the row's do not have."""
    fitting = []
    for layer in layers:
        values = dict(layer.values)
        for section in NAMED_BY_ROWS:
            given = values.pop(section, None)
            if isinstance(given, Mapping):
                known = _own_keys(section, row)
                values[section] = {key: value for key, value in given.items() if key in known}
        fitting.append(Layer(layer.source, values))
    return fitting


def _refuse_unknown(layers: Iterable[Layer], rows: Sequence[Row]) -> None:
    """Raises SettingsError for settings that no model or method of the comparison has."""
    problems = []
    for layer, section in itertools.product(layers, NAMED_BY_ROWS):
        given = layer.values.get(section)
        known = {"name"}.union(*(_own_keys(section, row) for row in rows))
        for key in given if isinstance(given, Mapping) else ():
            if key not in known:
                meant = nearest(str(key), sorted(known))
                problems.append(
                    f"{section}.{key} (from {layer.source}): no such setting of the {section}s compared"
                    + (f"; did you mean {section}.{meant}?" if meant else "")
                )
    if problems:
        raise SettingsError(problems)


def _without(layer: Layer, section: str) -> Layer:
    values = {key: value for key, value in layer.values.items() if key != section}
    for named in NAMED_BY_ROWS:
        if isinstance(values.get(named), str):
            values[named] = {"name": values[named]}
    return Layer(layer.source, values)
