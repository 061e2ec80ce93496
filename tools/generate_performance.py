"""Writes docs/performance.md from the JSON files in benchmarks/; no number is typed by hand.

Usage: python tools/generate_performance.py [--check]

A benchmark comes onto the page by its line in `SECTIONS`. What it shows is said in benchmarks/NAME.md, which
is copied below its table.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from typing import Any

from pages import REPOSITORY, Row, mib, ratio, section, sections, spread, table, write

TARGET = REPOSITORY / "docs" / "performance.md"
INTRODUCTION = """# Speed and memory

Generated from `benchmarks/*.json` by `make docs`; each section names the program that measured it, which
says how, and which repeats it on your machine. Times are ratios within one run wherever they can be: the
machine that these come from had two cores and other programs beside."""


def page() -> str:
    """The whole page."""
    return "\n".join([INTRODUCTION, *sections(SECTIONS)]) + "\n"


def above(row: Row) -> str:
    """Peak memory above what the program held before the network, in MiB; empty where not measured."""
    if "peak_bytes" not in row:
        return ""
    return mib(row["peak_bytes"] - row["before_bytes"])


def peers(data: dict[str, Any]) -> list[str]:
    """Our layers against those of other libraries."""
    found = data["versions"]
    libraries = ", ".join(
        f"{name} {found[name]}" for name in ("peft", "autogluon.multimodal") if name in found
    )
    lines = [
        "## Against other libraries, layer for layer",
        "",
        "One training step (forward, loss, backward, AdamW) with the same network, the same random weights"
        f" and the same batch; only the adapted layers differ. {libraries}, PyTorch {found['torch']},"
        f" {data['threads']} thread. Seconds are those of the processor, the median of the repeats; ratios"
        " are taken within each repeat, to our LoRA: median (lowest to highest). MiB: peak memory above that"
        " of the program with its packages loaded. `benchmarks/peers.py`",
    ]
    lines += [f"\n{name} is left out: {reason}." for name, reason in data["left_out"].items()]
    for name, case in data["cases"].items():
        own = [row for row in data["rows"] if row["case"] == name]
        groups = [[row for row in own if row["precision"] == precision] for precision in ("32", "bf16")]
        rows = [row for group in groups for row in _peer_rows(group)]
        side = case["size"]
        if rows:
            lines += [
                "",
                f"### {name}",
                "",
                f"`{case['model']}`, {case['batch']} x {side} x {side} pixels, rank {case['rank']}.",
                "",
                *table(("layers", "precision", "seconds", "times our LoRA", "MiB", "trained"), rows),
            ]
    return lines


def _peer_rows(group: Sequence[Row]) -> list[tuple[str, ...]]:
    own = next((row["processor"] for row in group if row["way"] == "lora"), None)
    rows = []
    for row in group:
        words = row["way"].split()
        name = words[0] if len(words) == 1 else f"{words[1]} of {words[0]}"
        if "failure" in row:
            rows.append((name, row["precision"], "fails", row["failure"], "", ""))
            continue
        assert own is not None
        seconds = f"{statistics.median(row['processor']):.2f}"
        times = "1" if row["way"] == "lora" else ratio(row["processor"], own)
        rows.append((name, row["precision"], seconds, times, above(row), f"{row['trained']:,}"))
    return rows


def defaults(data: dict[str, Any]) -> list[str]:
    """What each library's users get on a processor."""
    rows = []
    for name, case in data["cases"].items():
        group = {row["way"]: row for row in data["rows"] if row["case"] == name}
        for way, row in group.items():
            own = group[way.removeprefix("autogluon ")]
            rows.append(
                (
                    way,
                    f"{case['size']}²",
                    f"{statistics.median(row['processor']):.1f}",
                    "1" if row is own else ratio(row["processor"], own["processor"]),
                    above(row),
                    "1" if row is own else f"{row['peak_bytes'] / own['peak_bytes']:.1f}",
                )
            )
    return section(
        "By default, against AutoGluon",
        "One training step of SAM ViT-B, one image, rank 3, the same random weights, as each library's users"
        " get it on a processor: segtune with bf16, frozen weights rounded once and attention in chunks;"
        f" AutoGluon {data['versions']['autogluon.multimodal']} in float32, all that it allows there. Seconds"
        " of the processor, medians; ratios to ours within each repeat; MiB above the program with its"
        f" packages. {data['threads']} thread. `benchmarks/defaults.py`",
        ("layers", "pixels", "seconds", "times ours", "MiB", "whole process, times ours"),
        rows,
    )


def levers(data: dict[str, Any]) -> list[str]:
    """Each lever alone, and all together."""
    lines = [
        "## What each lever gives, alone and together",
        "",
        "The same training step with one lever on, and with all of them. Seconds of the processor, medians;"
        f' ratios to "none" within each repeat: median (lowest to highest). {data["threads"]} thread.'
        " `benchmarks/levers.py`",
    ]
    for name, case in data["cases"].items():
        group = {row["way"]: row for row in data["rows"] if row["case"] == name}
        if not group:
            continue
        start = group["none"]["processor"]
        rows = [
            (way, f"{statistics.median(row['processor']):.2f}", ratio(row["processor"], start), above(row))
            for way, row in group.items()
        ]
        lines += [
            "",
            f"### {case['method']} on {case['model']}",
            "",
            f"{case['batch']} x {case['size']} x {case['size']} pixels, rank {case['rank']}.",
            "",
            *table(("lever", "seconds", "times none", "peak MiB"), rows),
        ]
    return lines


def merged(data: dict[str, Any]) -> list[str]:
    """Prediction with and without an adapter."""
    rows = []
    for row in data["rows"]:
        case, seconds = data["cases"][row["case"]], row["seconds"]
        rows.append(
            (
                f"{case['model']}, {case['size']}²",
                row["precision"],
                f"{statistics.median(seconds['base']) * 1000:.0f}",
                ratio(seconds["unmerged"], seconds["base"]),
                ratio(seconds["merged"], seconds["base"]),
                "yes" if row["same_layers"] else "no",
                f"{row['difference']:.0e}",
            )
        )
    header = ("network", "precision", "base, ms", "unmerged", "merged", "base's layers", "difference")
    return section(
        "A merged adapter costs nothing in prediction",
        "Milliseconds of the processor for one image with the base, and with LoRA as multiples of that in the"
        ' same repeat: median (lowest to highest). "base\'s layers": whether the merged network consists of'
        ' exactly the classes of the base. "difference": largest one of merged to unmerged logits, as a share'
        f" of the largest logit. {data['threads']} thread. `benchmarks/merged.py`",
        header,
        rows,
    )


def predict_overlap(data: dict[str, Any]) -> list[str]:
    """Files read and written beside the model."""
    rows = [
        (
            way,
            f"{data['num_images'] / statistics.median(row['clock']):.2f}",
            f"{data['num_images'] / max(row['clock']):.2f} to {data['num_images'] / min(row['clock']):.2f}",
            f"{statistics.median(row['processor']) / data['num_images']:.2f}",
        )
        for way, row in data["rows"].items()
    ]
    return section(
        "Prediction: files beside the model",
        f"`segtune predict` on {data['num_images']} CamVid images of 480 x 360 with a small U-Net, masks and"
        f" overlays, {data['threads']} thread for the model. The files of both ways are equal, byte for byte."
        " `benchmarks/predict_overlap.py`",
        ("files are read and written", "images/s", "lowest to highest", "processor s an image"),
        rows,
    )


def conv_lora_experts(data: dict[str, Any]) -> list[str]:
    """The experts of Conv-LoRA without the large map."""
    rows = [
        (
            f"{row['interpolation']}, {row['scale']}",
            row["route"],
            f"{row['milliseconds_plain']:.1f}",
            f"{row['milliseconds_fast']:.1f}",
            f"{row['times_faster']:.1f}",
            f"{row['largest_difference']:.0e}",
        )
        for row in data["experts"]
    ]
    return section(
        "Conv-LoRA's experts",
        f"Forward and backward of one expert of rank {data['rank']} on a map of {data['grid'][0]} x"
        f" {data['grid'][1]}: by the definition, and as it is computed. {data['threads']} thread, medians."
        " `benchmarks/conv_lora_experts.py`",
        ("resizing, scale", "way", "definition, ms", "ours, ms", "times faster", "difference"),
        rows,
    )


def prefix_cache(data: dict[str, Any]) -> list[str]:
    """What is frozen, run once."""
    rows = [
        (
            f"{row['method']}, {row['precision']}",
            way,
            f"{values['first_seconds']:.2f}",
            f"{values['seconds']:.2f}",
            f"{values['times_faster']:.1f}",
            f"{values['entry_bytes'] / 2**20:.1f}" if "entry_bytes" in values else "",
            "equal" if values["equal_bits"] else f"{values['gradient_difference']:.0e}",
        )
        for row in data["rows"]
        for way, values in row["ways"].items()
    ]
    header = (
        "method, precision",
        "cache",
        "first, s",
        "later, s",
        "times faster",
        "MiB an image",
        "gradients",
    )
    return section(
        "Frozen work done once",
        f"SAM ViT-B on images of {data['side']} x {data['side']}, one in a batch, random weights; forward,"
        ' loss and backward, seconds of the processor. The first pass computes the entries. "gradients": of'
        " the first image, against those without the cache. `benchmarks/prefix_cache.py`",
        header,
        rows,
    )


def frozen_levers(data: dict[str, Any]) -> list[str]:
    """What leaves frozen work out."""
    first = data["rows"][0]
    rows = [
        (
            row["name"],
            f"{row['seconds']:.2f}",
            f"{row['seconds'] / first['seconds']:.2f}",
            mib(row["peak"]),
            f"{row['peak'] / first['peak']:.2f}",
        )
        for row in data["rows"]
    ]
    return section(
        "What leaves frozen work out",
        f"LoRA and `head` on SAM ViT-B, one image of {data['side']} x {data['side']}, float32 unless said;"
        " seconds of the processor for a step, the whole process's peak. `benchmarks/frozen_levers.py`",
        ("settings", "seconds", "times the first", "peak MiB", "times the first"),
        rows,
    )


def memory_estimate(data: dict[str, Any]) -> list[str]:
    """The estimate against the peak."""
    rows = [
        (
            f"{row['run']}, {row['batch_size']} x {row['side']}², {row['precision']}",
            mib(row["estimate"]["process"]),
            mib(row["peak_bytes"]),
            f"{row['error']:+.1%}",
        )
        for row in data["rows"]
    ]
    return section(
        "The memory estimate against measured peaks",
        "MiB of the whole process on a processor: as the run announces it before its first step, and the"
        " kernel's record of the training steps. `benchmarks/memory_estimate.py`",
        ("run", "estimate", "peak", "error"),
        rows,
    )


def quantized_base(data: dict[str, Any]) -> list[str]:
    """A frozen base in fewer bits: memory and time, and quality."""
    lines = [
        "## A frozen base in 8 or 4 bits",
        "",
        f"`benchmarks/quantized_base.py`, PyTorch {data['versions']['torch']}.",
    ]
    if "memory" in data:
        lines += ["", *_quantized_memory(data["memory"])]
    if "quality" in data:
        lines += ["", *_quantized_quality(data["quality"])]
    return lines


def _quantized_memory(data: dict[str, Any]) -> list[str]:
    seconds = data.get("seconds", {})
    rows = [
        (
            row["way"],
            mib(row["weight_bytes"]),
            mib(row["peak_bytes"]),
            mib(row["library_bytes"]) if row["library_bytes"] else "",
            ratio(seconds[row["way"]], seconds["float32"]) if seconds else "not measured",
        )
        for row in data["rows"]
    ]
    huge = data["vit_h"]
    kinds = ", ".join(f"{mib(huge[kind])} MiB in {kind}" for kind in ("float32", "bf16", "int8", "nf4"))
    return [
        f"LoRA on SAM ViT-B, one image of {data['side']} x {data['side']}, one thread. MiB of all weights;"
        " of the whole process at its peak in a step; of it what importing the library took; processor time"
        " against float32, taken in each repeat: median (lowest to highest).",
        "",
        *table(("base", "weights", "process", "library", "time"), rows),
        "",
        f"By their shapes, the {huge['layers']} frozen linear layers of SAM ViT-H take {kinds}.",
    ]


def _quantized_quality(data: dict[str, Any]) -> list[str]:
    ways: dict[str, list[Row]] = {}
    for row in data["rows"]:
        ways.setdefault(row["way"], []).append(row)
    whole = [row["test"] for row in ways["bf16"]]
    rows = []
    for way, own in ways.items():
        scores = [row["test"] for row in own]
        differences = [score - other for score, other in zip(scores, whole, strict=False)]
        change = "" if way == "bf16" else f"{statistics.mean(differences):+.3f}"
        rows.append((way, spread(scores, 3), change, ", ".join(f"{score:.3f}" for score in scores)))
    steps, images = data["settings"]["train.steps"], data["rows"][0]["num_test_images"]
    return [
        f"The small SAM of the recipe `sam-camvid-small`, tuned for polyps by LoRA, {steps} steps: IoU of the"
        f" foreground on {images} test images.",
        "",
        *table(("base", "mean ± deviation", "against bf16", "each seed"), rows),
    ]


SECTIONS = {
    "defaults": defaults,
    "peers": peers,
    "levers": levers,
    "prefix_cache": prefix_cache,
    "frozen_levers": frozen_levers,
    "quantized_base": quantized_base,
    "memory_estimate": memory_estimate,
    "conv_lora_experts": conv_lora_experts,
    "merged": merged,
    "predict_overlap": predict_overlap,
}

if __name__ == "__main__":
    sys.exit(write(TARGET, page(), sys.argv[1:]))
