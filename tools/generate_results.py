"""Writes docs/results.md from the JSON files in benchmarks/; no number is typed by hand.

Usage: python tools/generate_results.py [--check]

What a result shows is said in benchmarks/NAME.md, which is copied below its table.
"""

from __future__ import annotations

import sys

import program_results
import tuning_results
from comparison_results import comparison
from pages import BENCHMARKS, REPOSITORY, sections, write
from recipe_results import recipe

TARGET = REPOSITORY / "docs" / "results.md"


def page() -> str:
    """The whole page."""
    recipes = sorted(path.stem for path in BENCHMARKS.glob("recipe_*.json"))
    parts = [
        "# Results",
        "",
        "Generated from `benchmarks/*.json` by `make docs`; see there for every setting. Time and memory have"
        " a page of their own: [speed and memory](performance.md).",
        *sections(SECTIONS),
        "",
        "## Recipes",
        "",
        RECIPES,
        *sections(dict.fromkeys(recipes, recipe)),
    ]
    return "\n".join(parts) + "\n"


RECIPES = """\
The small forms of published systems ([recipes](recipes.md)): every part of them runs; the networks are small
and were trained from random weights here, so that the scores say nothing about the papers'. Written by
`tools/record_recipe.py`; other programs ran on the machine, so minutes are rough."""

SECTIONS = {
    "sam_methods": tuning_results.sam_methods,
    "compare_polyps": comparison,
    "compare_dusk": comparison,
    "camvid_dusk": tuning_results.camvid_dusk,
    "demo-unet-day": tuning_results.demo_unet_day,
    "lora_forms": program_results.lora_forms,
    "memory_layout": program_results.memory_layout,
    "raster_memory": program_results.raster_memory,
    "loading": program_results.loading,
    "label_noise": program_results.label_noise,
    "run_time": program_results.run_time,
    "sharding": program_results.sharding,
    "volumes_hippocampus": tuning_results.volumes_hippocampus,
    "s2_brats2013": tuning_results.s2_brats2013,
}

if __name__ == "__main__":
    sys.exit(write(TARGET, page(), sys.argv[1:]))
