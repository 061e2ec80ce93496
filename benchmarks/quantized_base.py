"""A frozen base in float32, bf16, int8 and nf4: memory and time of a step, and the price in quality.

Usage: python benchmarks/quantized_base.py [--memory] [--time] [--quality SHARED_DATA BASE WORK_FOLDER]

Memory and time: LoRA on SAM ViT-B with random weights, one image of 512 x 512, one thread. Memory is the
kernel's record of a process (VmHWM) from the built network through its first step, above what it held before
the network was built; each way has a process of its own. Seconds are those of the processor, in one process
in which the ways follow each other in every repeat. The bytes of ViT-H's frozen linear layers follow from the
layers' shapes; it is not run.

Quality: BASE is the small SAM of the recipe sam-camvid-small (a .safetensors file), tuned by LoRA for the
polyps of CVC-ClinicDB as in benchmarks/sam_methods.py, three seeds for each way, fewer steps.

Results go to benchmarks/quantized_base.json; a part that is not run stays as it was.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from sam_methods import MODEL, polyps

from segtune.engine.files import write_json

RESULT = Path(__file__).with_suffix(".json")
SIDE = 512
WAYS = {
    "float32": ("32", "none"),
    "bf16": ("bf16", "none"),
    "bf16, int8": ("bf16", "int8"),
    "bf16, nf4": ("bf16", "nf4"),
}
"""Precision and kind of base. In bf16 the weights of a whole base are rounded once (engine/half.py)."""
SEEDS = 3
TUNING = {
    **MODEL,
    "method.rank": 4,
    "data.resize": [96, 128],
    "data.scale": [0.8, 1.25],
    "loss.name": "dice_cross_entropy",
    "optim.learning_rate": 4e-3,  # LoRA's in benchmarks/sam_methods.json
    "train.steps": 80,
    "train.batch_size": 8,
    "train.threads": 1,
    "train.monitor": "foreground_iou",
    "train.validate_every": 100,
    "train.trackers": [],
}


def memory(key: str) -> int:
    """A number of the kernel's record of this process, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


class Steps:
    """Training steps of one way."""

    def __init__(self, way: str) -> None:
        import torch

        from segtune.engine.build import build_tunable, place
        from segtune.engine.half import halve_if_equal
        from segtune.methods import METHODS

        self.precision, quantize = WAYS[way]
        tunable = build_tunable(
            model="sam-vit-base",
            model_settings=None,
            weights="none",
            num_classes=2,
            method_parts={"lora": METHODS.settings("lora")()},
            seed=0,
            quantize=quantize,
        )
        self.device = torch.device("cpu")
        self.model = place(tunable.model, self.device)
        halve_if_equal(self.model, tunable.applied, self.precision)
        self.model.train()
        tensors = [*self.model.parameters(), *self.model.buffers()]
        self.weight_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        self.quantized = tunable.quantized
        self.optimizer = torch.optim.AdamW(list(tunable.applied.parameters().values()), lr=1e-4)
        generator = torch.Generator().manual_seed(0)
        self.image = torch.rand(1, 3, SIDE, SIDE, generator=generator).to(memory_format=torch.channels_last)
        self.mask = torch.randint(2, (1, SIDE, SIDE), generator=generator)

    def step(self) -> float:
        """Forward, loss, backward, step: seconds of the processor."""
        import torch

        from segtune.engine.prefix import autocast

        begin = time.process_time()
        with autocast(self.device, self.precision):
            logits = self.model(self.image).logits
            loss = torch.nn.functional.cross_entropy(logits.float(), self.mask)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.process_time() - begin


def peak(way: str) -> dict[str, Any]:
    """What a process holds above what it held before the network."""
    import torch

    import segtune.engine.build  # noqa: F401

    torch.set_num_threads(1)
    library = 0
    if WAYS[way][1] == "nf4":
        from segtune.engine.quantize import Nf4Weight

        before = memory("VmRSS")
        Nf4Weight.encode(torch.ones(2, 64))
        library = memory("VmRSS") - before
    before = memory("VmRSS")
    steps = Steps(way)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    steps.step()
    return {
        "way": way,
        "weight_bytes": steps.weight_bytes,
        "layers": None if steps.quantized is None else steps.quantized.num_layers,
        "before_bytes": before,
        "peak_bytes": memory("VmHWM"),
        "library_bytes": library,
    }


def seconds(repeats: int) -> dict[str, list[float]]:
    """Seconds of each way's steps; in every repeat the ways follow each other."""
    import torch

    torch.set_num_threads(1)
    all_steps = {way: Steps(way) for way in WAYS}
    for steps in all_steps.values():
        steps.step()
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(repeats):
        for way, steps in all_steps.items():
            found[way].append(steps.step())
    return found


def huge() -> dict[str, Any]:
    """Bytes of the weights of ViT-H that are quantized under LoRA, from their shapes."""
    from segtune.engine.memory import without_data
    from segtune.engine.quantize import quantize_frozen
    from segtune.methods import METHODS
    from segtune.methods.apply import apply
    from segtune.models.build import build_model

    found: dict[str, Any] = {}
    for kind in ("int8", "nf4"):
        model = build_model("sam-vit-huge", 2, meta=True)
        with without_data(model):
            parts = {"lora": METHODS.settings("lora")()}
            applied = apply(model, model.sites(), parts, removable=False, unused=model.unused)
            quantized = quantize_frozen(applied, kind)
        found |= {"layers": quantized.num_layers, "float32": quantized.bytes_before}
        found |= {"bf16": quantized.bytes_before // 2, kind: quantized.bytes_after}
    return found


def measure_memory(report: dict[str, Any], ways: Sequence[str]) -> None:
    """Peaks of the ways, and the bytes of ViT-H."""
    found = {row["way"]: row for row in report.get("memory", {}).get("rows", [])}
    for way in ways:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            found[way] = pool.submit(peak, way).result()
        print(found[way], flush=True)
    rows = [found[way] for way in WAYS if way in found]
    report["memory"] = {**report.get("memory", {}), "side": SIDE, "rows": rows, "vit_h": huge()}
    write_json(RESULT, report)


def measure_time(report: dict[str, Any], repeats: int) -> None:
    """Processor seconds of each way's steps."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        report["memory"]["seconds"] = pool.submit(seconds, repeats).result()
    write_json(RESULT, report)


def measure_quality(report: dict[str, Any], shared: Path, base: Path, work: Path) -> None:
    """Scores of tuned models."""
    import segtune

    data = polyps(shared / "cvc612", work / "cvc612")
    rows = []
    for seed in range(SEEDS):
        for way, (precision, quantize) in WAYS.items():
            out = work / f"{way.replace(', ', '-')}-seed{seed}"
            if not (out / "result.json").is_file():
                own = {"train.precision": precision, "model.quantize": quantize, "train.seed": seed}
                settings = {**TUNING, **own, "model.weights": str(base)}
                segtune.fit(data, model="sam-vit-base", method="lora", out=out, settings=settings)
            result = json.loads((out / "result.json").read_text(encoding="utf-8"))
            kept = {"way": way, "seed": seed, "best_step": result["best_step"]}
            scores = {split: result[split]["scores"]["foreground_iou"] for split in ("val", "test")}
            rows.append({**kept, **scores, "num_test_images": result["test"]["num_images"]})
            print(rows[-1], flush=True)
            report["quality"] = {"settings": TUNING, "rows": rows}
            write_json(RESULT, report)


def main() -> None:
    """Measures the parts that are asked for."""
    from segtune.engine.run import versions

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory", nargs="*", metavar="WAY", help="all ways where none is named")
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--quality", nargs=3, type=Path, metavar=("SHARED_DATA", "BASE", "WORK_FOLDER"))
    parser.add_argument("--repeats", type=int, default=2)
    arguments = parser.parse_args()
    report = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {}
    report["versions"] = {**versions(), "bitsandbytes": _version()}
    if arguments.memory is not None:
        measure_memory(report, arguments.memory or list(WAYS))
    if arguments.time:
        measure_time(report, arguments.repeats)
    if arguments.quality:
        shared, base, work = (path.resolve() for path in arguments.quality)
        measure_quality(report, shared, base, work)


def _version() -> str:
    from importlib.metadata import version

    return version("bitsandbytes")


if __name__ == "__main__":
    main()
