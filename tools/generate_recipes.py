"""Writes docs/recipes.md from what the recipes say about themselves.

Usage: python tools/generate_recipes.py [--check]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from segtune.config.recipes import Recipe, read_recipe, recipe_names

TARGET = Path(__file__).resolve().parent.parent / "docs" / "recipes.md"
INTRODUCTION = """\
<!-- Written by `make docs` from segtune/recipes; change those. -->

# Recipes

A recipe is one file of settings for `segtune fit` or `segtune compare`, with what it follows, needs and gave
([why like this](decisions/0024-recipes.md)).

    segtune recipes                                             # what there is, and what was run
    segtune recipes NAME > mine.yaml                            # one of them, to change
    segtune fit DATA --config recipe:NAME --out runs/mine       # or --config mine.yaml
    segtune fit DATA --config recipe:NAME --set train.steps=50  # settings given later win

Five published systems are here: **s0** U-Net with LoRA, **s1** PETRAS, **s2** SAM with LoRA on brain MRI,
**s3** Conv-LoRA, **s4** DeepLabV3 on Cityscapes. Recipes of the scale *published* hold the settings of the
paper; they were not run here, for want of the data, the weights or the hardware. Those called `-small` are
the same systems on small data with networks trained from random weights: every part runs, the scores
([results](results.md)) say nothing about the paper's.

In the commands a word in capitals stands for a folder, `OUT` for whatever is written. In a checkout
`python tools/record_recipe.py NAME OUT DATA=FOLDER` runs all of them and writes the result file.
"""


def main(arguments: Sequence[str]) -> int:
    """Writes the page, or with --check says whether it is up to date."""
    if "--check" in arguments:
        current = TARGET.is_file() and TARGET.read_text(encoding="utf-8") == page()
        if not current:
            print("docs/recipes.md is out of date: run `make docs`", file=sys.stderr)
        return 0 if current else 1
    TARGET.write_text(page(), encoding="utf-8")
    return 0


def page() -> str:
    """The whole page."""
    recipes = {name: read_recipe(name) for name in recipe_names()}
    rows = [
        f"| [`{name}`](#{name}) | {recipe.title} | {recipe.kind} | {_cell(recipe.status())} |"
        for name, recipe in recipes.items()
    ]
    parts = [
        INTRODUCTION,
        "| Recipe | What | Command | Status |",
        "| --- | --- | --- | --- |",
        *rows,
    ]
    for name, recipe in recipes.items():
        parts += ["", *_section(name, recipe)]
    return "\n".join(parts) + "\n"


def _section(name: str, recipe: Recipe) -> list[str]:
    minutes = "" if recipe.minutes is None else f"; {recipe.minutes:g} minutes"
    lines = [
        f"## {name}",
        "",
        f"{recipe.title}. Follows: {recipe.paper}. Hardware: {recipe.hardware}{minutes}.",
        "",
    ]
    lines += [f"- `{place}`: {text}" for place, text in recipe.data.items()]
    lines += ["", "```", *recipe.command, "```"]
    if recipe.published:
        columns = list(dict.fromkeys(key for row in recipe.published.values() for key in row))
        lines += ["", f"| published | {' | '.join(columns)} |", f"| --- |{' ---: |' * len(columns)}"]
        for row, numbers in recipe.published.items():
            lines.append(f"| {row} | {' | '.join(_cell(str(numbers.get(key, ''))) for key in columns)} |")
    if recipe.differs:
        lines += ["", "Differs from the paper:", "", *(f"- {text}" for text in recipe.differs)]
    if recipe.result is not None:
        lines += ["", f"Result: `{recipe.result}`; {recipe.status()}."]
    return lines


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
