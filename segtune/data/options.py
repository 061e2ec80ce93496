"""Checks the settings of a format, `data.options.*`, which are known once the format is."""

from __future__ import annotations

from pydantic import ValidationError

from segtune.data import FORMATS
from segtune.data.settings import DataSettings
from segtune.errors import SettingsError
from segtune.registry import nearest


def check_options(name: str, settings: DataSettings) -> None:
    """Makes sure that the options are those of the format.

    Args:
        name: of the format.
        settings: with the options.

    Raises:
        SettingsError: with every wrong option.
    """
    schema = FORMATS.settings(name)
    try:
        schema.model_validate(settings.options)
    except ValidationError as errors:
        problems: dict[str, str] = {}
        for error in errors.errors(include_url=False):
            key = str(error["loc"][0]) if error["loc"] else ""
            shown = f"data.options.{key} = {settings.options.get(key)!r}:"
            if error["type"] == "extra_forbidden":
                known = sorted(schema.model_fields)
                meant = nearest(key, known)
                fix = f"did you mean {meant}?" if meant else f"it has {', '.join(known) or 'no options'}"
                problems[key] = f"{shown} no such option of the format {name}; {fix}"
            else:
                description = schema.model_fields[key].description if key in schema.model_fields else None
                message = error["msg"].removeprefix("Value error, ")
                # a union reports a line for each of its members; the user needs the key once
                problems.setdefault(
                    key,
                    f"{shown} {message[:1].lower()}{message[1:]}"
                    + (f" [{description}]" if description else ""),
                )
        raise SettingsError(list(problems.values())) from None
