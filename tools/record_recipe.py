"""Runs every command of a recipe and writes what came out to benchmarks/recipe_NAME.json.

Usage: python tools/record_recipe.py NAME OUT WORD=FOLDER ...

WORD is one of those in capitals in the recipe's commands, e.g. CAMVID=../shared/data/camvid. What is finished
in OUT is not repeated: a run whose settings are those of the recipe, a file that is there; comparisons go on
where they stopped. Each command's processor seconds are kept in OUT/seconds.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from segtune.config.load import difference, load_settings
from segtune.config.recipes import OUT, Recipe, fill, read_recipe
from segtune.engine.files import write_json
from segtune.engine.folder import RunFolder

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
OF_A_RUN = (
    "model", "method", "seed", "parameters_total", "parameters_trainable", "adapter_bytes", "train_seconds",
    "images_per_second", "peak_process_bytes", "peak_gpu_bytes", "steps", "best_step", "precision", "device",
    "learning_rate", "class_names",
)  # fmt: skip
OF_A_COMPARISON = ("rows", "score", "split", "num_images", "seeds", "folds", "cells", "trials", "advice")


def main() -> int:
    """Runs what is not finished, then writes the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("out", type=Path)
    parser.add_argument("folders", nargs="*", metavar="WORD=FOLDER")
    arguments = parser.parse_args()
    recipe = read_recipe(arguments.name)
    out = arguments.out.resolve()
    given = dict(text.split("=", 1) for text in arguments.folders)
    missing = recipe.data.keys() - given.keys()
    if missing:
        parser.error(f"where is {', '.join(sorted(missing))}? e.g. {min(missing)}=FOLDER")
    folders = {OUT: out, **{word: Path(folder).resolve() for word, folder in given.items()}}
    out.mkdir(parents=True, exist_ok=True)
    commands = [(line, fill(line, folders)[1:]) for line in recipe.command]
    for line, words in commands:
        run(line, expand(words), out)
    BENCHMARKS.mkdir(exist_ok=True)
    target = BENCHMARKS / f"recipe_{arguments.name}.json"
    write_json(target, record(arguments.name, recipe, commands, out))
    print(target)
    return 0


def run(line: str, words: list[str], out: Path) -> None:
    """Runs a command unless its result is there."""
    target = option(words, "--out")
    if words[0] == "fit" and target is not None and target.exists():
        check_settings(words, target)
        if (target / "result.json").is_file():
            return
        words = ["fit", "--out", str(target), "--resume"]
    made = answer(out, line) if words[0] == "evaluate" else target
    if words[0] in ("merge", "attention", "export", "evaluate") and made is not None and made.exists():
        return
    print("segtune", *words, file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "segtune", *words]
    before = processor_seconds()
    if words[0] == "evaluate":
        done = subprocess.run([*command, "--json"], check=True, stdout=subprocess.PIPE)
        answer(out, line).write_bytes(done.stdout)
    else:
        subprocess.run(command, check=True)
    note(out, line, processor_seconds() - before)


def expand(words: list[str]) -> list[str]:
    """Words with the paths that stand for them, as a shell does it."""
    found = []
    for word in words:
        path = Path(word)
        matches = sorted(path.parent.glob(path.name)) if "*" in path.name else []
        found += [str(match) for match in matches] or [word]
    return found


def option(words: list[str], name: str) -> Path | None:
    """The path that an option of a command has."""
    return Path(words[words.index(name) + 1]) if name in words else None


def answer(out: Path, line: str) -> Path:
    """Where the output of an `evaluate` is kept."""
    return out / f"{'-'.join(line.split()[1:]).replace('/', '-')}.json"


def check_settings(words: list[str], folder: Path) -> None:
    """Refuses a run whose settings are others than those of the command."""
    from segtune.cli.fit import command

    options = command.make_context("fit", words[1:]).params
    chosen: dict[str, dict[str, Any]] = {"DATA": {"data": {"path": str(options["data"])}}}
    for section in ("model", "method"):
        if options[section]:
            chosen[f"--{section}"] = {section: {"name": options[section]}}
    wanted = load_settings(flags=chosen, files=options["files"], assignments=options["assignments"])
    changed = difference(RunFolder(folder).read_config(), wanted)
    if changed:
        raise SystemExit(f"{folder} holds a run with other settings: {'; '.join(changed)}")


def processor_seconds() -> float:
    """Of all commands so far that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def note(out: Path, line: str, seconds: float) -> None:
    """Adds the time of a command to those of earlier tries of it."""
    file = out / "seconds.json"
    spent = read(file) if file.is_file() else {}
    write_json(file, {**spent, line: spent.get(line, 0.0) + seconds})


def read(file: Path) -> dict[str, Any]:
    """A JSON file."""
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def record(name: str, recipe: Recipe, commands: list[tuple[str, list[str]]], out: Path) -> dict[str, Any]:
    """What the commands have left, without paths of this machine."""
    seconds = read(out / "seconds.json") if (out / "seconds.json").is_file() else {}
    report: dict[str, Any] = {
        "recipe": name,
        "title": recipe.title,
        "headline": "",
        "commands": [{"command": line, "processor_seconds": seconds.get(line)} for line, _ in commands],
        "runs": {},
        "comparisons": {},
        "evaluations": [],
        "versions": {},
        "commits": [],
    }
    commits = set()
    for line, words in commands:
        target = option(words, "--out")
        if words[0] == "fit" and target is not None:
            result = read(target / "result.json")
            report["runs"][target.name] = run_entry(target, result)
            commits.add(result["commit"])
            report["versions"] = result["versions"]
            if f"recipe:{name}" in words:
                report["headline"] = headline_of_run(result)
        elif words[0] == "compare" and target is not None:
            content = read(target / "compare.json")
            report["comparisons"][target.name] = {
                **{key: content[key] for key in OF_A_COMPARISON},
                "settings": shared_settings(target, content),
            }
            commits |= {read(file)["commit"] for file in (target / "runs").glob("*/result.json")}
            report["versions"] = content["versions"]
            best = content["rows"][0]
            first = f"{content['score']} {best['mean']:.4f} ({best['label']})"
            report["headline"] = report["headline"] or first  # the comparisons behind it vary a setting
        elif words[0] == "attention" and target is not None:
            report["attention"] = mean_distances(read(target / "attention.json"))
        elif words[0] == "evaluate":
            content = read(answer(out, line))
            kept = {key: content[key] for key in ("num_images", "scores")}
            report["evaluations"].append({"command": line, **kept})
    report["commits"] = sorted(commit for commit in commits if commit)
    return report


def mean_distances(content: dict[str, Any]) -> dict[str, Any]:
    """Mean attention distance of each block's heads, in pixels, of base and tuned model."""
    kept: dict[str, Any] = {"images": content["images"]}
    for model in ("base", "tuned"):
        kept[model] = [statistics.mean(layer["heads"]) for layer in content[model]]
    return kept


def run_entry(folder: Path, result: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a run."""
    entry = {key: result[key] for key in OF_A_RUN if key in result}
    for split in ("val", "test"):
        found = result[split]
        entry[split] = None if not found else {"num_images": found["num_images"], "scores": found["scores"]}
    lines = [json.loads(text) for text in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    entry["validations"] = [line for line in lines if line["kind"] == "val"]
    entry["settings"] = without_paths(RunFolder(folder).read_config().to_dict())
    return entry


def shared_settings(folder: Path, comparison: dict[str, Any]) -> dict[str, Any]:
    """The settings of each row's first run."""
    found: dict[str, Any] = {}
    for cell in comparison["cells"]:
        path = folder / "runs" / cell["name"]
        if cell["row"] not in found and (path / "config.yaml").is_file():
            found[cell["row"]] = without_paths(RunFolder(path).read_config().to_dict())
    return found


def without_paths(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without the folders of this machine."""
    settings["data"].pop("path", None)
    weights = settings["model"]["weights"]
    settings["model"]["weights"] = Path(weights).name
    return settings


def headline_of_run(result: dict[str, Any]) -> str:
    """The score that stands for a run."""
    split = "test" if result["test"] else "val"
    score = "foreground_iou" if len(result["class_names"]) == 2 else "miou"
    return f"{score} {result[split]['scores'][score]:.4f} ({result['method']}, {split})"


if __name__ == "__main__":
    sys.exit(main())
