"""Writes docs/results.md from the JSON files in benchmarks/; no number is typed by hand.

Usage: python tools/generate_results.py [--check]

What a result shows is said in benchmarks/NAME.md, which is copied below its table.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import comparison_results
from recipe_results import describe, origin

REPOSITORY = Path(__file__).resolve().parent.parent
BENCHMARKS = REPOSITORY / "benchmarks"
TARGET = REPOSITORY / "docs" / "results.md"


def main(arguments: Sequence[str]) -> int:
    """Writes the page, or with --check says whether it is up to date."""
    text = page()
    if "--check" in arguments:
        current = TARGET.is_file() and TARGET.read_text(encoding="utf-8") == text
        if not current:
            print("docs/results.md is out of date: run `make docs`", file=sys.stderr)
        return 0 if current else 1
    TARGET.write_text(text, encoding="utf-8")
    return 0


def page() -> str:
    """The whole page."""
    parts = [
        "# Results",
        "",
        "Generated from `benchmarks/*.json` by `make docs`; see there for every setting. Time and memory have"
        " a page of their own: [speed and memory](performance.md).",
    ]
    for name, section in SECTIONS.items():
        source = BENCHMARKS / f"{name}.json"
        if source.is_file():
            parts += ["", *section(json.loads(source.read_text(encoding="utf-8")))]
            said = source.with_suffix(".md")
            if said.is_file():
                parts += ["", said.read_text(encoding="utf-8").strip()]
    parts += ["", "## Recipes", "", RECIPES]
    for source in sorted(BENCHMARKS.glob("recipe_*.json")):
        parts += ["", *recipe(json.loads(source.read_text(encoding="utf-8")))]
        said = source.with_suffix(".md")
        if said.is_file():
            parts += ["", said.read_text(encoding="utf-8").strip()]
    return "\n".join(parts) + "\n"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table; all columns but the first are right-aligned."""
    marks = [":--", *("--:" for _ in header[1:])]
    return [f"| {' | '.join(row)} |" for row in (header, marks, *rows)]


def spread(values: Sequence[float], digits: int = 4) -> str:
    """Mean and standard deviation of a sample."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def recipe(data: dict[str, Any]) -> list[str]:
    """What came out of a recipe's commands."""
    lines = [f"### {data['recipe']}", "", f"{data['title']}. {origin(data)}"]
    for line, rows in describe(data):
        lines += ["", line] if line else []
        lines += ["", *table(rows[0], rows[1:])]
    return lines


def comparison(data: dict[str, Any]) -> list[str]:
    """The table of a sweep, and what its words say."""
    header, *rows = comparison_results.rows(data)
    notes = [f"- {line}" for line in data["legend"]]
    return [*comparison_results.lines(data), "", *table(header, rows), "", *notes]


def camvid_dusk(data: dict[str, Any]) -> list[str]:
    """Adaptation of a U-Net from CamVid's day clips to its dusk clip."""
    day, before = data["day"], data["before"]
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in data["rows"]:
        groups.setdefault(row["name"], []).append(row)
    seeds = max(len(rows) for rows in groups.values())
    scores = (f"{before['test'][name]:.4f}" for name in ("miou", "pixel_accuracy"))
    rows = [("day U-Net, untouched", *scores, "0", "0", "", "", "")]
    for name, cells in groups.items():
        rows.append(
            (
                name,
                spread([cell["test"]["miou"] for cell in cells]),
                spread([cell["test"]["pixel_accuracy"] for cell in cells]),
                f"{cells[0]['parameters_trainable']:,}",
                f"{cells[0]['adapter_bytes']:,}",
                spread([cell["train_seconds"] for cell in cells], 0),
                f"{statistics.mean(cell['images_per_second'] for cell in cells):.1f}",
                f"{max(cell['peak_process_bytes'] for cell in cells) / 2**20:.0f}",
            )
        )
    header = (
        "method",
        "mIoU",
        "pixel accuracy",
        "trained",
        "adapter bytes",
        "seconds",
        "images/s",
        "peak MiB",
    )
    lines = [
        "## CamVid: from day to dusk",
        "",
        f"A U-Net ({day['parameters_total']:,} parameters) trained on the day clips for {day['steps']} steps"
        f" (mIoU {day['test']['miou']:.4f} on the day clips' test frames), adapted to the dusk clip for"
        f" {groups['full'][0]['steps']} steps, scored on {before['num_images']} dusk frames at their original"
        f" size; {seeds} seeds. {day['device']}, {day['precision']}. `benchmarks/camvid_dusk.py`",
        "",
        *table(header, rows),
    ]
    if data["deeplab"]:
        steps = data["deeplab"][0]["steps"]
        lines += [
            "",
            f"DeepLabV3-ResNet-50 from random weights, {steps} steps: shows that it runs and what it costs,"
            " nothing about quality.",
            "",
            *table(
                ("method", "mIoU", "trained", "adapter bytes", "images/s", "peak MiB"),
                [
                    (
                        row["name"],
                        f"{row['test']['miou']:.4f}",
                        f"{row['parameters_trainable']:,}",
                        f"{row['adapter_bytes']:,}",
                        f"{row['images_per_second']:.2f}",
                        f"{row['peak_process_bytes'] / 2**20:.0f}",
                    )
                    for row in data["deeplab"]
                ],
            ),
        ]
    return lines


def demo_unet_day(data: dict[str, Any]) -> list[str]:
    """The network that ships with the package."""
    test = data["test"]
    names, scores = data["class_names"], test["per_class"]["iou"]
    return [
        "## The U-Net that ships with the package",
        "",
        f"{data['parameters_total']:,} parameters, {data['steps']} steps on generated day scenes"
        f" ({data['train_seconds']:.0f} s); mIoU {test['scores']['miou']:.4f} on {test['num_images']} other"
        " day scenes. `tools/make_demo_weights.py`",
        "",
        *table(("class", "IoU"), [(n, f"{s:.4f}") for n, s in zip(names, scores, strict=True)]),
    ]


def lora_forms(data: dict[str, Any]) -> list[str]:
    """Branch against weight form."""
    return [
        "## LoRA on convolutions: branch against weight form",
        "",
        f"Time of forward and backward as a multiple of the frozen layer's, rank {data['rank']},"
        f" {data['threads']} threads, channels-last, medians of one run. `benchmarks/lora_forms.py`",
        "",
        *table(
            ("layer", "precision", "frozen ms", "branch", "weight", "faster", "chosen"),
            [
                (
                    f"{row['inputs']} -> {row['outputs']}, {row['kernel']}x{row['kernel']} at {row['side']}²",
                    row["precision"],
                    f"{row['milliseconds_frozen']:.1f}",
                    f"{row['branch_ratio']:.2f}",
                    f"{row['weight_ratio']:.2f}",
                    row["faster"],
                    row["chosen"],
                )
                for row in data["rows"]
            ],
        ),
    ]


def memory_layout(data: dict[str, Any]) -> list[str]:
    """Channels first against channels last."""
    return [
        "## Memory layout: channels first against channels last",
        "",
        f"Seconds of forward and backward of the demo's U-Net for a batch of shape {data['shape']},"
        f" {data['threads']} threads, medians of one run. `benchmarks/memory_layout.py`",
        "",
        *table(
            ("method", "precision", "channels first", "channels last"),
            [(r["method"], r["precision"], f"{r['first']:.3f}", f"{r['last']:.3f}") for r in data["rows"]],
        ),
    ]


def volumes_hippocampus(data: dict[str, Any]) -> list[str]:
    """Slices of volumes, scored per volume."""
    cases = data["test"]["volumes"]
    metrics = ("volume_dice", "volume_hd95", "volume_surface_dice")
    rows = []
    for region in next(iter(cases.values()))["volume_dice"]:
        columns = [[case[metric][region] for case in cases.values()] for metric in metrics]
        values = [[value for value in column if value is not None] for column in columns]
        digits = (3, 2, 3)
        rows.append((region, *(spread(v, d) for v, d in zip(values, digits, strict=True))))
    return [
        "## Hippocampus volumes, slice by slice",
        "",
        f"U-Net from random weights, {data['parameters_total']:,} parameters, {data['steps']} steps on axial"
        f" slices in {data['processor_seconds_of_fit']:.0f} s of one processor core; {len(cases)} volumes"
        " held out, mean ± standard deviation over them, one seed. `benchmarks/volumes_hippocampus.py`",
        "",
        *table(("region", "Dice", "HD95 mm", "surface Dice at 1 mm"), rows),
    ]


def sam_methods(data: dict[str, Any]) -> list[str]:
    """Every method on a small network of SAM's shape."""
    day, settings = data["day"], data["settings"]
    lines = [
        "## Every method on a small SAM",
        "",
        f"A network of SAM's shape ({day['parameters_total']:,} parameters) was trained on CamVid's day clips"
        f" for {day['steps']} steps (11 classes, test mIoU {day['test']['miou']:.4f}), then tuned by each"
        f" method for {settings['tuning']['train.steps']} steps of {settings['train']['train.batch_size']}"
        " images, for polyps (CVC-ClinicDB, whole sequences held out) and for roads (EPFL aerial tiles)."
        " Scores are IoU and Dice of the foreground on test images that no choice was made on: mean ±"
        " standard deviation over seeds; the learning rate is the better one of"
        f" {' and '.join(f'{rate:g}' for rate in settings['rates'])} on the roads' validation tiles.",
    ]
    header = ("method", "IoU", "Dice", "trained", "adapter bytes", "rate", "seeds")
    for task in settings["tasks"]:
        groups: dict[str, list[dict[str, Any]]] = {}
        for row in data["rows"]:
            if row["task"] == task:
                groups.setdefault(row["name"], []).append(row)
        order = sorted(
            groups, key=lambda name: -statistics.mean(r["test"]["foreground_iou"] for r in groups[name])
        )
        rows = [_sam_row(name, groups[name]) for name in order]
        num_images = next(iter(groups.values()))[0]["num_test_images"]
        lines += ["", f"### {task.capitalize()}, {num_images} test images", "", *table(header, rows)]
    return lines


def _sam_row(name: str, cells: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    first = cells[0]
    return (
        name,
        spread([cell["test"]["foreground_iou"] for cell in cells]),
        spread([cell["test"]["foreground_dice"] for cell in cells]),
        f"{first['parameters_trainable']:,}",
        f"{first['adapter_bytes']:,}",
        f"{first['learning_rate']:g}" if first["steps"] > 0 else "",
        str(len(cells)),
    )


def raster_memory(data: dict[str, Any]) -> list[str]:
    """Peak memory against the size of a raster."""
    header = ("side, pixels", "pixels MiB", "before MiB", "peak MiB", "seconds")
    rows = [
        (
            f"{row['side']:,}",
            f"{row['pixels_bytes'] / 2**20:,.0f}",
            f"{row['before_bytes'] / 2**20:,.0f}",
            f"{row['peak_bytes'] / 2**20:,.0f}",
            f"{row['seconds']:.0f}",
        )
        for row in data["rows"]
    ]
    return [
        "## Peak memory of predicting large rasters",
        "",
        f"A tiny U-Net ({data['settings']['model.width']} channels), windows of 1024 x 1024, square GeoTIFF"
        f' files of three 8-bit channels, {data["threads"]} thread, one run each; "before" is the process'
        " with its packages loaded. `benchmarks/raster_memory.py`",
        "",
        *table(header, rows),
    ]


def run_time(data: dict[str, Any]) -> list[str]:
    """What the seconds of a run were spent on."""
    shares, profile, settings = data["share_of_an_epoch"], data["profile"], data["settings"]
    steps, images = profile["step_seconds"], profile["evaluation_seconds"]
    step = sum(steps.values()) / profile["steps_timed"] / settings["train.batch_size"]
    image = sum(images.values()) / profile["images_evaluated"]
    splits = ", ".join(f"{count} {name}" for name, count in data["splits"].items())
    return [
        "## What a run's time is spent on",
        "",
        f"{data['images']:,} generated images of {data['side']}x{data['side']} pixels ({splits}), a small"
        f" U-Net with LoRA, {settings['train.epochs']} epochs, validation after each, {data['device']},"
        f" {settings['train.threads']} thread. `benchmarks/run_time.py`",
        "",
        *table(
            ("part of an epoch", "share"),
            [(name, f"{share:.2%}") for name, share in shares.items()],
        ),
        "",
        f"Start-up took {data['seconds']['start_up']:.0f} s, {data['start_up_share_of_the_run']:.1%} of the"
        f" run. An image costs {step * 1e3:.0f} ms in a training step and {image * 1e3:.0f} ms in a"
        f" validation ({images['network'] / sum(images.values()):.0%} of it the network).",
    ]


def s2_brats2013(data: dict[str, Any]) -> list[str]:
    """A prompted SAM on brain tumours: ranks against the baselines, and from one modality to another."""
    base, flair = data["base"], data["flair"]
    lines = [
        "## Brain tumours with a small prompted SAM (S2)",
        "",
        f"{base['parameters_total']:,} parameters, boxes drawn from the masks; base trained on CamVid's day"
        f" clips for {base['steps']} steps. BraTS 2013: 2 patients trained on, 2 validated on, every slice of"
        f" them scored, predictions for separate modalities combined. {base['device']}, {base['precision']}."
        " `benchmarks/s2_brats2013.py`",
    ]
    titles = {
        "ranks": "T1c and FLAIR combined",
        "flair-to-t1c": "Trained on FLAIR (full, from the same base), adapted to T1c",
    }
    for name, comparison in data["tables"].items():
        rows = [row for row in comparison["rows"] if row["runs"]]
        cases = list(rows[0]["runs"][0]["volumes"])
        header = (
            "method",
            *(f"Dice {case}" for case in cases),
            "Dice",
            "HD95 mm",
            "trained",
            "steps",
            "best",
        )
        lines += ["", f"### {titles[name]}", "", *table(header, (_s2_row(row, cases) for row in rows))]
    scores = ", ".join(
        f"{scores['volume_dice']['tumour']:.4f} ({case})" for case, scores in flair["volumes"].items()
    )
    return [*lines, "", f"The model trained on FLAIR, scored on FLAIR: Dice {scores}."]


def _s2_row(row: dict[str, Any], cases: Sequence[str]) -> tuple[str, ...]:
    runs = row["runs"]
    dice = [spread([run["volumes"][case]["volume_dice"]["tumour"] for run in runs]) for case in cases]
    return (
        row["label"],
        *dice,
        spread(row["scores"]),
        spread([run["val"]["volume_hd95"] for run in runs], 1),
        f"{row['parameters_trainable']:,}",
        f"{runs[0]['steps']}",
        ", ".join(f"{run['best_step'] or 0}" for run in runs),
    )


def sharding(data: dict[str, Any]) -> list[str]:
    """Memory of each of two processes with the whole model in each, or divided."""
    rows = [
        (
            f"{row['method']}, {row['strategy']}",
            *(f"{row[f'{name}_bytes'] / 2**20:,.0f}" for name in ("before", "peak", "rest")),
            f"{row['losses'][-1]:.6f}",
        )
        for row in data["rows"]
    ]
    header = ("method, strategy", "before MiB", "peak of a step MiB", "between steps MiB", "loss of step 2")
    return [
        "## A model divided between two processes",
        "",
        f"SAM ViT-B, random weights, one image of {data['size']} x {data['size']} for each of two processes"
        ' on a processor; memory of one of them, "before" with its packages loaded. `benchmarks/sharding.py`',
        "",
        *table(header, rows),
    ]


def label_noise(data: dict[str, Any]) -> list[str]:
    """Wrong masks that a run finds."""
    rows = []
    for row in data["rows"]:
        found = [f"{row['found'].get(way, 0)} of {made}" for way, made in row["made_wrong"].items()]
        rows.append((f"{row['split']} ({row['images']})", *found, str(row["listed_of_the_sound"])))
    ways = [f"{way} found" for way in data["rows"][0]["made_wrong"]]
    return [
        "## Wrong masks that a run finds",
        "",
        "CamVid at 120 x 160 pixels with masks made wrong on purpose; a small U-Net of"
        f" {data['steps']} steps on these masks (val mIoU {data['val']['miou']:.4f}), one run."
        " `benchmarks/label_noise.py`",
        "",
        *table(("split (images)", *ways, "sound ones listed"), rows),
    ]


def loading(data: dict[str, Any]) -> list[str]:
    """Reading training samples."""
    rows = []
    for row in data["rows"]:
        kept = ", decoded once" if row["decoded_cache"] else ""
        rows.append(
            (
                row["format"] + kept,
                str(row["workers"]),
                f"{row['images_per_second']:.1f} ({row['slowest']:.1f} to {row['fastest']:.1f})",
                f"{row['ratio']:.2f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})",
                f"{row['processor_ms']:.0f}" if "processor_ms" in row else "",
            )
        )
    waits = [
        ("decoded once" if row["decoded_cache"] else "png", str(row["workers"]), f"{row['wait_share']:.0%}")
        for row in data["waiting"]
    ]
    sizes = ", ".join(f"{name} {size / 1e6:.0f} MB" for name, size in data["bytes"].items())
    return [
        "## Reading training samples",
        "",
        f"{data['num_images']} generated images of {data['side']} x {data['side']} pixels with masks (NIfTI:"
        f" slices of 192 x 192), crops of {data['crop'][0]} x {data['crop'][1]}; medians of {data['rounds']}"
        " rounds, lowest and highest in brackets. The ratio is to PNG without workers in the same round;"
        f" processor milliseconds are for an image, workers included. On disk: {sizes}."
        " `benchmarks/loading.py`",
        "",
        *table(("images", "workers", "images/s", "ratio", "processor ms"), rows),
        "",
        f"Share of {data['training']['train.steps']} training steps of a small U-Net spent waiting for"
        " batches, one run each:",
        "",
        *table(("images", "workers", "waiting"), waits),
    ]


RECIPES = """\
The small forms of published systems ([recipes](recipes.md)): every part of them runs; the networks are small
and were trained from random weights here, so that the scores say nothing about the papers'. Written by
`tools/record_recipe.py`; other programs ran on the machine, so minutes are rough."""

SECTIONS = {
    "sam_methods": sam_methods,
    "compare_polyps": comparison,
    "compare_dusk": comparison,
    "camvid_dusk": camvid_dusk,
    "demo-unet-day": demo_unet_day,
    "lora_forms": lora_forms,
    "memory_layout": memory_layout,
    "raster_memory": raster_memory,
    "loading": loading,
    "label_noise": label_noise,
    "run_time": run_time,
    "sharding": sharding,
    "volumes_hippocampus": volumes_hippocampus,
    "s2_brats2013": s2_brats2013,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
