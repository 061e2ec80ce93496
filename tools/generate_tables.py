"""Writes the small tables of measured numbers into pages that are otherwise written by hand.

A page holds `<!-- table: NAME -->` and `<!-- end of table -->`; what stands between them is replaced by the
table made from benchmarks/*.json.

Usage: python tools/generate_tables.py [--check]
"""

from __future__ import annotations

import re
import statistics
import sys
from collections.abc import Callable, Sequence

from pages import BENCHMARKS, REPOSITORY, grouped, load, spread, table

PAGES = ("README.md", "docs/choosing-a-method.md", "docs/how-measured.md")
BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
BEST_LORA = "lora r=16 lr=5e-3"


def main(options: Sequence[str]) -> int:
    """Writes the tables, or with --check says whether they are up to date."""
    code = 0
    for name in PAGES:
        path = REPOSITORY / name
        old = path.read_text(encoding="utf-8")
        new = BLOCK.sub(lambda found: f"{found[1]}{chr(10).join(TABLES[found[2]]())}\n{found[3]}", old)
        if "--check" not in options:
            path.write_text(new, encoding="utf-8")
        elif old != new:
            print(f"{name} has tables that are out of date: run `make docs`", file=sys.stderr)
            code = 1
    return code


def dusk() -> list[str]:
    """The U-Net from day to dusk, in short: the best first, with the extremes for comparison."""
    data = load("camvid_dusk")
    groups = grouped(data["rows"])
    rows = [("untouched", f"{data['before']['test']['miou']:.3f}", "0", "0")]
    for name in ("scratch", "norm", "head", BEST_LORA, "full"):
        cells = groups[name]
        rows.append(
            (
                f"`{name.partition(' ')[0]}`",
                spread([cell["test"]["miou"] for cell in cells], 3),
                f"{cells[0]['parameters_trainable']:,}",
                f"{cells[0]['adapter_bytes'] / 1e6:.2f} MB",
            )
        )
    return table(("method", "mIoU at dusk", "trained", "adapter"), rows)


def sam() -> list[str]:
    """Every method on the small SAM: both tasks side by side, ordered by their mean."""
    data = load("sam_methods")
    tasks = list(data["settings"]["tasks"])
    groups = grouped(data["rows"])

    def scores(name: str, task: str) -> list[float]:
        return [row["test"]["foreground_iou"] for row in groups[name] if row["task"] == task]

    order = sorted(groups, key=lambda n: -statistics.mean(statistics.mean(scores(n, task)) for task in tasks))
    total = data["day"]["parameters_total"]
    rows = [
        (
            f"`{name}`",
            *(spread(scores(name, task), 3) for task in tasks),
            f"{groups[name][0]['parameters_trainable'] / total:.1%}",
        )
        for name in order
    ]
    return table(("method", *(f"{task}, IoU" for task in tasks), "trained"), rows)


def benchmarks() -> list[str]:
    """What each file of numbers was made with."""
    rows = []
    for path in sorted(BENCHMARKS.glob("*.json")):
        data = load(path.stem)
        cells = data.get("rows", [])
        versions = data.get("versions") or next((row["versions"] for row in cells if "versions" in row), {})
        script = path.with_suffix(".py")
        first = path.stem.partition("_")[0]
        kind = first if first in MAKERS else path.stem
        maker = f"benchmarks/{script.name}" if script.is_file() else f"tools/{MAKERS[kind]}"
        seeds = {row["seed"] for row in data.get("cells", cells) if "seed" in row}
        made_with = (versions.get(name, "") for name in ("torch", "python", "processor"))
        rows.append((f"`{path.name}`", f"`{maker}`", *made_with, str(len(seeds) or "")))
    return table(("numbers", "made by", "torch", "Python", "processor", "seeds"), rows)


MAKERS = {
    "demo-unet-day": "make_demo_weights.py",
    "recipe": "record_recipe.py",
    "compare": "record_comparison.py",
}
"""The scripts that do not lie beside their numbers."""
TABLES: dict[str, Callable[[], list[str]]] = {"dusk": dusk, "sam": sam, "benchmarks": benchmarks}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
