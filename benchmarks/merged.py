"""What an adapter costs in prediction: the base, the base with LoRA on it, and with LoRA merged into it.

Usage: python benchmarks/merged.py [--threads 1] [--repeats 15]

The three follow each other in every repeat; seconds are those of the processor for one image. Results go
to benchmarks/merged.json.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from peers import CASES, build
from torch import nn

from segtune.engine.files import write_json
from segtune.engine.run import versions
from segtune.methods import METHODS
from segtune.methods.apply import apply

RESULT = Path(__file__).with_suffix(".json")


def measure(name: str, precision: str, repeats: int) -> dict[str, Any]:
    """Seconds of one image, in every repeat."""
    case = CASES[name]
    models = {"base": build(case)}
    applied = {}
    for way in ("unmerged", "merged"):
        model = copy.deepcopy(models["base"])
        settings = METHODS.settings("lora")(rank=case.rank, kinds=(str(case.kind),))
        applied[way] = apply(model, model.sites(), {"lora": settings}, removable=False)
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith(".up"):
                nn.init.normal_(parameter, std=0.02)
        models[way] = model
    models["merged"].load_state_dict(models["unmerged"].state_dict())
    applied["merged"].merge()
    images = torch.rand(1, 3, case.size, case.size).contiguous(memory_format=torch.channels_last)
    outputs, seconds = {}, {way: list[float]() for way in models}
    for model in models.values():
        model.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        for repeat in range(repeats + 1):
            for way, model in models.items():
                begin = time.process_time()
                outputs[way] = model(images).logits
                if repeat:  # the first one warms up
                    seconds[way].append(time.process_time() - begin)
    scale = outputs["unmerged"].abs().max()
    difference = (outputs["merged"] - outputs["unmerged"]).abs().max() / scale
    same = [type(module) for module in models["merged"].modules()] == [
        type(module) for module in models["base"].modules()
    ]
    row = {"case": name, "precision": precision, "difference": difference.item(), "same_layers": same}
    print(row, {way: f"{statistics.median(v) * 1000:.1f} ms" for way, v in seconds.items()}, flush=True)
    return {**row, "seconds": seconds}


def main() -> None:
    """Measures a network of convolutions and one of attention."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    names = ("unet", "segformer-b0", "sam-512")
    rows = [measure(n, precision, arguments.repeats) for n in names for precision in ("32", "bf16")]
    cases = {n: {"model": CASES[n].model, "size": CASES[n].size, "rank": CASES[n].rank} for n in names}
    write_json(RESULT, {"threads": arguments.threads, "cases": cases, "versions": versions(), "rows": rows})


if __name__ == "__main__":
    main()
