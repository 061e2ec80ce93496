"""A small SAM with LoRA on brain tumours (BraTS 2013): ranks against zero-shot and full, and FLAIR to T1c.

Usage: python benchmarks/s2_brats2013.py CAMVID BRATS2013 WORK_FOLDER

Runs the commands of the recipe s2-sam-lora-meningioma-small, each in a process of its own; what is
finished in WORK_FOLDER is not repeated. Then reads the folders of the runs, case by case. Results go to
benchmarks/s2_brats2013.json.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from segtune.engine.files import write_json

RESULT = Path(__file__).with_suffix(".json")
RECIPES = Path(__file__).resolve().parent.parent / "recipes"
NAME = "s2-sam-lora-meningioma-small"
TABLES = ("ranks", "flair-to-t1c")
KEPT_OF_ROWS = (
    "label", "method", "scores", "mean", "learning_rate", "parameters_trainable", "parameters_total",
    "adapter_bytes",
)  # fmt: skip
KEPT_OF_RUNS = (
    "steps", "best_step", "stopped_early", "train_seconds", "peak_process_bytes", "precision", "device",
    "seed", "splits",
)  # fmt: skip


def main() -> None:
    """Runs what is not finished, and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("camvid", "brats", "work"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--collect", action="store_true", help="run nothing, read what is finished")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    places = {"CAMVID": arguments.camvid.resolve(), "BRATS": arguments.brats.resolve(), "OUT": work}
    recipe = yaml.safe_load((RECIPES / f"{NAME}.yaml").read_text(encoding="utf-8"))
    for line in () if arguments.collect else recipe["recipe"]["command"]:
        run([filled(word, places) for word in shlex.split(line)[1:]])
    write_json(
        RESULT,
        {
            "what": "a small SAM, prompted with boxes, tuned for brain tumours in slices of BraTS 2013",
            "recipe": NAME,
            "settings": {key: value for key, value in recipe.items() if key != "recipe"},
            "base": run_entry(work / "base"),
            "flair": {**run_entry(work / "flair"), "volumes": volumes(work / "flair")},
            "tables": {
                name: table(work / name) for name in TABLES if (work / name / "compare.json").is_file()
            },
            "versions": read(work / "base" / "result.json")["versions"],
        },
    )


def filled(word: str, places: dict[str, Path]) -> str:
    """A word of a command with folders in place of those in capitals."""
    key, equals, value = word.rpartition("=")
    first, slash, rest = value.partition("/")
    return f"{key}{equals}{places[first]}{slash}{rest}" if first in places else word


def run(words: list[str]) -> None:
    """One command, unless what it makes is there; comparisons go on by themselves."""
    if "--out" in words:
        out = Path(words[words.index("--out") + 1])
        done = out.is_file() if words[0] == "merge" else (out / "result.json").is_file()
        if done:
            return
    print("segtune", *words, file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "segtune", *words], check=True, stdout=sys.stderr)


def read(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def run_entry(folder: Path) -> dict[str, Any]:
    """What is kept of a run."""
    result = read(folder / "result.json")
    kept = {key: result[key] for key in (*KEPT_OF_RUNS, "parameters_total", "parameters_trainable")}
    return {**kept, "val": result["val"]["scores"]}


def volumes(folder: Path) -> dict[str, Any]:
    """Case -> metric -> region -> score on the validation patients."""
    found: dict[str, Any] = read(folder / "result.json")["val"]["volumes"]
    return found


def table(folder: Path) -> dict[str, Any]:
    """A comparison: its rows, and of each the runs with their cases."""
    comparison = read(folder / "compare.json")
    rows = []
    for row in comparison["rows"]:
        cells = [cell for cell in comparison["cells"] if cell["row"] == row["label"] and not cell["failure"]]
        runs = [folder / "runs" / cell["name"] for cell in cells]
        entries = [{**run_entry(path), "volumes": volumes(path)} for path in runs]
        rows.append({**{key: row[key] for key in KEPT_OF_ROWS}, "runs": entries})
    kept = {key: comparison[key] for key in ("score", "split", "num_images", "num_units", "seeds", "advice")}
    return {**kept, "rows": rows}


if __name__ == "__main__":
    main()
