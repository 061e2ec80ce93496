"""Errors carry a message, a hint and an exit code, also through a worker process."""

from __future__ import annotations

import inspect
import pickle

import pytest

from segtune import errors
from segtune.errors import MissingExtraError, SegtuneError, SettingsError, UsageError

TREE = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, SegtuneError)]


@pytest.mark.parametrize("kind", TREE)
def test_exit_code_is_two_for_wrong_usage_alone(kind: type[SegtuneError]) -> None:
    assert kind.exit_code == (2 if issubclass(kind, UsageError) else 1)


@pytest.mark.parametrize("kind", TREE)
def test_the_tree_in_the_documentation_is_complete(kind: type[SegtuneError]) -> None:
    assert errors.__doc__ is not None
    assert kind.__name__ in errors.__doc__


@pytest.mark.parametrize(
    "error",
    [
        SegtuneError("what", hint="how"),
        UsageError("what"),
        SettingsError(["a.b = 1: no", "c.d = 2: no"]),
        MissingExtraError("timm", extra="smp", purpose="smp models"),
    ],
)
def test_pickled_as_it_was(error: SegtuneError) -> None:
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert back.__dict__ == error.__dict__


def test_texts() -> None:
    assert str(SegtuneError("what", hint="how")) == "what\n  hint: how"
    assert str(SegtuneError("what")) == "what"
    assert str(SettingsError(["a"])) == "1 setting is wrong:\n  a"
    assert str(SettingsError(["a", "b"])) == "2 settings are wrong:\n  a\n  b"
    assert "pip install 'segtune[smp]'" in str(MissingExtraError("timm", extra="smp", purpose="x"))
