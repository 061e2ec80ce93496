"""`segtune recipes`: published systems as files of settings."""

from __future__ import annotations

import click

from segtune.cli.options import json_option


@click.command("recipes")
@click.argument("name", required=False)
@json_option
def command(name: str | None, as_json: bool) -> None:
    """List recipes, or print the one called NAME, a YAML file.

    A recipe is used as `segtune fit DATA --config recipe:NAME`, or with `segtune compare`; its first
    lines say which, with what data, and every command of it.
    """
    from segtune.config.layers import recipe_path
    from segtune.config.recipes import read_recipe, recipe_names

    if as_json:
        import json

        names = recipe_names() if name is None else [name]
        found = {each: read_recipe(each) for each in names}
        entries = {
            each: {**recipe.model_dump(mode="json"), "status": recipe.status()}
            for each, recipe in found.items()
        }
        click.echo(json.dumps(entries, indent=2))
        return
    if name is not None:
        click.echo(recipe_path(name).read_text(encoding="utf-8"), nl=False)
        return
    names = recipe_names()
    width = max(map(len, names)) + 2
    for each in names:
        recipe = read_recipe(each)
        click.echo(f"{each:<{width}}{recipe.kind:<9}{recipe.title}")
        click.echo(f"{'':<{width}}{'':<9}{recipe.scale}; {recipe.status()}")
