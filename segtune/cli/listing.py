"""`segtune list`: what there is to choose from."""

from __future__ import annotations

import click

from segtune.cli.options import json_option

KINDS = {
    "models": ("segtune.models", "MODELS"),
    "methods": ("segtune.methods", "METHODS"),
    "losses": ("segtune.losses", "LOSSES"),
    "metrics": ("segtune.metrics", "METRICS"),
    "saliency": ("segtune.metrics", "SALIENCY"),
    "formats": ("segtune.data", "FORMATS"),
    "trackers": ("segtune.trackers", "TRACKERS"),
}


@click.command("list")
@click.argument("kind", type=click.Choice(list(KINDS)))
@click.option("--settings", "with_settings", is_flag=True, help="Show every setting with its default.")
@json_option
def command(kind: str, with_settings: bool, as_json: bool) -> None:
    """List models, methods, losses, metrics, saliency scores, formats or trackers with what each is."""
    import importlib
    import json

    from segtune.registry import Registry

    module, attribute = KINDS[kind]
    registry: Registry = getattr(importlib.import_module(module), attribute)
    if as_json:
        entries = {
            name: {"summary": registry.summary(name), "settings": _settings(registry, name)}
            for name in registry
        }
        click.echo(json.dumps(entries, indent=2))
        return
    width = max(len(name) for name in registry) + 2
    for name in registry:
        click.echo(f"{name:<{width}}{registry.summary(name)}")
        if with_settings:
            section = {"models": "model", "methods": "method", "losses": "loss"}.get(kind, "data.options")
            for key, (default, description) in _settings(registry, name).items():
                click.echo(f"    {section}.{key} = {default}  {description}")


def _settings(registry: object, name: str) -> dict[str, tuple[object, str]]:
    from segtune.registry import Registry

    assert isinstance(registry, Registry)
    defaults = registry.settings(name)().model_dump(mode="json")
    fields = registry.settings(name).model_fields
    return {key: (default, fields[key].description or "") for key, default in defaults.items()}
