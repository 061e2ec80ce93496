"""The tuners of the library peft by name, with their configurations; what of it segtune fills in."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from segtune.errors import MissingExtraError, UnknownNameError, UsageError
from segtune.registry import nearest

_NO_LAYERS = "it puts trained tokens before the input of a language model, and changes no layer"
REFUSED = {
    "prompt_tuning": _NO_LAYERS,
    "multitask_prompt_tuning": _NO_LAYERS,
    "p_tuning": _NO_LAYERS,
    "prefix_tuning": _NO_LAYERS,
    "cpt": _NO_LAYERS,
    "cartridge": _NO_LAYERS,
    "adaption_prompt": _NO_LAYERS,
    "trainable_tokens": "it trains rows of an embedding of words",
    "adalora": "its ranks are given out anew between steps, by calls that a training loop must make",
    "xlora": "it mixes adapters that were trained before",
    "poly": "it needs the number of a task with every input",
    "shadow": "it runs a second network beside the whole model",
}
"""Tuners that cannot be used, and why."""

RESERVED = {
    "target_modules": "method.include, method.exclude, method.kinds and method.parts choose the layers",
    "exclude_modules": "use method.exclude",
    "layers_to_transform": "use method.first_blocks, method.last_blocks or method.include",
    "layers_pattern": "use method.include",
    "modules_to_save": "use method.train_head and method.train_norm",
    "bias": "use method.train_bias",
    "target_parameters": "use method.include",
    "trainable_token_indices": "no model here has an embedding of words",
    "layer_replication": "it changes the network itself",
    "task_type": "it is for language models",
    "peft_type": "the method's name says it",
    "auto_mapping": "the library fills it in",
    "peft_version": "the library fills it in",
    "base_model_name_or_path": "model.name and model.weights say it",
    "revision": "model.weights says it",
    "inference_mode": "it would train nothing",
}
"""Fields of the library's configurations that segtune fills in, and what to use instead."""

PEFT_FAILURES = (
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    RuntimeError,
    NotImplementedError,
    ImportError,
)
"""What the library raises for settings and layers that it does not take."""


def configuration(
    member: str, given: Mapping[str, Any], layers: Sequence[str], feedforward: Sequence[str] = ()
) -> Any:
    """A tuner's configuration for layers of these names.

    Args:
        member: the tuner's name in the library, in small letters.
        given: its settings, as the user wrote them.
        layers: full names.
        feedforward: those whose input is scaled, for tuners that ask.

    Raises:
        UsageError: a setting is unknown, is filled in by segtune, or has a wrong value.
    """
    cls = _config_class(member)
    fields = {field.name for field in dataclasses.fields(cls)}
    known = sorted(fields - RESERVED.keys())
    for key, value in given.items():
        if key in RESERVED:
            raise UsageError(
                f"peft:{member}: method.config.{key} = {value!r} is not for you to set", hint=RESERVED[key]
            )
        if key not in fields:
            meant = nearest(key, known)
            raise UsageError(
                f"peft:{member}: there is no setting method.config.{key}",
                hint=(f"did you mean {meant!r}? " if meant else "") + f"It has {', '.join(known)}",
            )
    options = {**given, "target_modules": list(layers)}
    if "feedforward_modules" in fields:
        options.setdefault("feedforward_modules", [name for name in feedforward if name in layers])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return cls(**options)
    except PEFT_FAILURES as error:
        raise UsageError(
            f"peft:{member} does not take method.config = {dict(given)}: {words_of(error)}",
            hint=f"its settings are {', '.join(known)}",
        ) from error


def find_tuner(member: str) -> Any:
    """The class of a tuner.

    Args:
        member: its name in the library, in small letters.

    Raises:
        MissingExtraError: peft is not installed.
        UsageError: the tuner changes no single layers.
        UnknownNameError: there is none of that name.
    """
    tuners = _tuners()
    if member in REFUSED:
        raise UsageError(
            f"peft:{member} cannot be used: {REFUSED[member]}",
            hint=f"tuners that can be used: {', '.join(usable_tuners())}",
        )
    if member not in tuners:
        meant = nearest(member, usable_tuners())
        raise UnknownNameError(
            f"peft has no tuner called {member!r}",
            hint=(f"did you mean 'peft:{meant}'? " if meant else "")
            + f"Available: {', '.join(usable_tuners())}",
        )
    return tuners[member]


def usable_tuners() -> list[str]:
    """Names of the tuners that can be used, in small letters.

    Raises:
        MissingExtraError: peft is not installed.
    """
    return sorted(_tuners().keys() - REFUSED.keys())


def _tuners() -> dict[str, Any]:
    mapping = _library().PEFT_TYPE_TO_TUNER_MAPPING
    return {str(kind.value).lower(): tuner for kind, tuner in mapping.items()}


def _config_class(member: str) -> Any:
    mapping = _library().PEFT_TYPE_TO_CONFIG_MAPPING
    return next(config for kind, config in mapping.items() if str(kind.value).lower() == member)


def _library() -> Any:
    try:
        import peft.mapping
    except ModuleNotFoundError as error:
        if error.name != "peft":
            raise
        raise MissingExtraError("peft", extra="peft", purpose="a method peft:...") from None
    return peft.mapping


def words_of(error: BaseException) -> str:
    """What an error says, on one line."""
    text = " ".join(str(error).split())
    return text or type(error).__name__
