"""The parts of docs/results.md about single parts of the program; used by generate_results.py."""

from __future__ import annotations

from typing import Any

from pages import mib, section, table


def lora_forms(data: dict[str, Any]) -> list[str]:
    """Branch against weight form."""
    return section(
        "LoRA on convolutions: branch against weight form",
        f"Time of forward and backward as a multiple of the frozen layer's, rank {data['rank']},"
        f" {data['threads']} threads, channels-last, medians of one run. `benchmarks/lora_forms.py`",
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
    )


def memory_layout(data: dict[str, Any]) -> list[str]:
    """Channels first against channels last."""
    return section(
        "Memory layout: channels first against channels last",
        f"Seconds of forward and backward of the demo's U-Net for a batch of shape {data['shape']},"
        f" {data['threads']} threads, medians of one run. `benchmarks/memory_layout.py`",
        ("method", "precision", "channels first", "channels last"),
        [(r["method"], r["precision"], f"{r['first']:.3f}", f"{r['last']:.3f}") for r in data["rows"]],
    )


def raster_memory(data: dict[str, Any]) -> list[str]:
    """Peak memory against the size of a raster."""
    return section(
        "Peak memory of predicting large rasters",
        f"A tiny U-Net ({data['settings']['model.width']} channels), windows of 1024 x 1024, square GeoTIFF"
        f' files of three 8-bit channels, {data["threads"]} thread, one run each; "before" is the process'
        " with its packages loaded. `benchmarks/raster_memory.py`",
        ("side, pixels", "pixels MiB", "before MiB", "peak MiB", "seconds"),
        [
            (
                f"{row['side']:,}",
                *(mib(row[f"{name}_bytes"]) for name in ("pixels", "before", "peak")),
                f"{row['seconds']:.0f}",
            )
            for row in data["rows"]
        ],
    )


def sharding(data: dict[str, Any]) -> list[str]:
    """Memory of each of two processes with the whole model in each, or divided."""
    return section(
        "A model divided between two processes",
        f"SAM ViT-B, random weights, one image of {data['size']} x {data['size']} for each of two processes"
        ' on a processor; memory of one of them, "before" with its packages loaded. `benchmarks/sharding.py`',
        ("method, strategy", "before MiB", "peak of a step MiB", "between steps MiB", "loss of step 2"),
        [
            (
                f"{row['method']}, {row['strategy']}",
                *(mib(row[f"{name}_bytes"]) for name in ("before", "peak", "rest")),
                f"{row['losses'][-1]:.6f}",
            )
            for row in data["rows"]
        ],
    )


def label_noise(data: dict[str, Any]) -> list[str]:
    """Wrong masks that a run finds."""
    rows = []
    for row in data["rows"]:
        found = [f"{row['found'].get(way, 0)} of {made}" for way, made in row["made_wrong"].items()]
        rows.append((f"{row['split']} ({row['images']})", *found, str(row["listed_of_the_sound"])))
    ways = [f"{way} found" for way in data["rows"][0]["made_wrong"]]
    return section(
        "Wrong masks that a run finds",
        "CamVid at 120 x 160 pixels with masks made wrong on purpose; a small U-Net of"
        f" {data['steps']} steps on these masks (val mIoU {data['val']['miou']:.4f}), one run."
        " `benchmarks/label_noise.py`",
        ("split (images)", *ways, "sound ones listed"),
        rows,
    )


def run_time(data: dict[str, Any]) -> list[str]:
    """What the seconds of a run were spent on."""
    shares, profile, settings = data["share_of_an_epoch"], data["profile"], data["settings"]
    steps, images = profile["step_seconds"], profile["evaluation_seconds"]
    step = sum(steps.values()) / profile["steps_timed"] / settings["train.batch_size"]
    image = sum(images.values()) / profile["images_evaluated"]
    splits = ", ".join(f"{count} {name}" for name, count in data["splits"].items())
    lines = section(
        "What a run's time is spent on",
        f"{data['images']:,} generated images of {data['side']}x{data['side']} pixels ({splits}), a small"
        f" U-Net with LoRA, {settings['train.epochs']} epochs, validation after each, {data['device']},"
        f" {settings['train.threads']} thread. `benchmarks/run_time.py`",
        ("part of an epoch", "share"),
        [(name, f"{share:.2%}") for name, share in shares.items()],
    )
    parts = data["in_turn_milliseconds"]
    trained = data["splits"]["train"] * parts["training step"]
    validated = parts["probabilities in a validation"] + parts["classes and confusion matrix"]
    share = data["splits"]["val"] * validated / (trained + data["splits"]["val"] * validated)
    return [
        *lines,
        "",
        f"Start-up took {data['seconds']['start_up']:.0f} s, {data['start_up_share_of_the_run']:.1%} of the"
        f" run. An image costs {step * 1e3:.0f} ms in a training step and {image * 1e3:.0f} ms in a"
        f" validation ({images['network'] / sum(images.values()):.0%} of it the network).",
        "",
        "On the same network in one process, batches of"
        f" {settings['train.batch_size']}, the parts in turn, without reading:",
        "",
        *table(
            ("part", "processor ms an image"),
            [(name, f"{milliseconds:.1f}") for name, milliseconds in parts.items()],
        ),
        "",
        f"From these a validation is {share:.1%} of an epoch.",
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
    lines = section(
        "Reading training samples",
        f"{data['num_images']} generated images of {data['side']} x {data['side']} pixels with masks (NIfTI:"
        f" slices of 192 x 192), crops of {data['crop'][0]} x {data['crop'][1]}; medians of {data['rounds']}"
        " rounds, lowest and highest in brackets. The ratio is to PNG without workers in the same round;"
        f" processor milliseconds are for an image, workers included. On disk: {sizes}."
        " `benchmarks/loading.py`",
        ("images", "workers", "images/s", "ratio", "processor ms"),
        rows,
    )
    return [
        *lines,
        "",
        f"Share of {data['training']['train.steps']} training steps of a small U-Net spent waiting for"
        " batches, one run each:",
        "",
        *table(("images", "workers", "waiting"), waits),
    ]
