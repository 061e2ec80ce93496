"""The parts of docs/results.md about what methods reach; used by generate_results.py."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from pages import Row, grouped, mib, section, spread, table


def camvid_dusk(data: dict[str, Any]) -> list[str]:
    """Adaptation of a U-Net from CamVid's day clips to its dusk clip."""
    day, before = data["day"], data["before"]
    groups = grouped(data["rows"])
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
                mib(max(cell["peak_process_bytes"] for cell in cells)),
            )
        )
    lines = section(
        "CamVid: from day to dusk",
        f"A U-Net ({day['parameters_total']:,} parameters) trained on the day clips for {day['steps']} steps"
        f" (mIoU {day['test']['miou']:.4f} on the day clips' test frames), adapted to the dusk clip for"
        f" {groups['full'][0]['steps']} steps, scored on {before['num_images']} dusk frames at their original"
        f" size; {seeds} seeds. {day['device']}, {day['precision']}. `benchmarks/camvid_dusk.py`",
        ("method", "mIoU", "pixel accuracy", "trained", "adapter bytes", "seconds", "images/s", "peak MiB"),
        rows,
    )
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
                        mib(row["peak_process_bytes"]),
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
    return section(
        "The U-Net that ships with the package",
        f"{data['parameters_total']:,} parameters, {data['steps']} steps on generated day scenes"
        f" ({data['train_seconds']:.0f} s); mIoU {test['scores']['miou']:.4f} on {test['num_images']} other"
        " day scenes. `tools/make_demo_weights.py`",
        ("class", "IoU"),
        [(name, f"{score:.4f}") for name, score in zip(names, scores, strict=True)],
    )


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
        groups = grouped(row for row in data["rows"] if row["task"] == task)
        order = sorted(
            groups, key=lambda name: -statistics.mean(r["test"]["foreground_iou"] for r in groups[name])
        )
        rows = [_sam_row(name, groups[name]) for name in order]
        num_images = next(iter(groups.values()))[0]["num_test_images"]
        lines += ["", f"### {task.capitalize()}, {num_images} test images", "", *table(header, rows)]
    return lines


def _sam_row(name: str, cells: Sequence[Row]) -> tuple[str, ...]:
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
    return section(
        "Hippocampus volumes, slice by slice",
        f"U-Net from random weights, {data['parameters_total']:,} parameters, {data['steps']} steps on axial"
        f" slices in {data['processor_seconds_of_fit']:.0f} s of one processor core; {len(cases)} volumes"
        " held out, mean ± standard deviation over them, one seed. `benchmarks/volumes_hippocampus.py`",
        ("region", "Dice", "HD95 mm", "surface Dice at 1 mm"),
        rows,
    )


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


def _s2_row(row: Row, cases: Sequence[str]) -> tuple[str, ...]:
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
