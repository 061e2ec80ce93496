"""Conv-LoRA's experts: the exact fast way against the definition, and what a mixture costs.

Usage: python benchmarks/conv_lora_experts.py [--threads 1] [--repeats 9]

In every repeat the ways follow each other, so that noise of the machine falls on all of them; the
median of each is kept, and their ratios are what counts. "experts": forward and backward of one expert.
"mixtures": forward and backward of a frozen attention projection, with LoRA, and with Conv-LoRA that
runs only the experts chosen (as in a plain program) or all of them (as in a compiled one). Results go
to benchmarks/conv_lora_experts.json.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from segtune.engine.files import write_json
from segtune.engine.run import versions
from segtune.methods import METHODS, routing
from segtune.methods.apply import apply
from segtune.methods.experts import Expert, expert_plain
from segtune.types import Part, Site, SiteKind

RESULT = Path(__file__).with_suffix(".json")
RANK = 3
GRID = (64, 64)
WIDTH = 768
MAPS = {"global, 1 x 64 x 64": (1, 64, 64), "windows, 25 x 14 x 14": (25, 14, 14)}


def medians(ways: dict[str, Callable[[], Tensor]], repeats: int) -> dict[str, float]:
    """Seconds of the processor for forward and backward of each way."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, way in ways.items():
            begin = time.process_time()
            way().square().mean().backward()
            if repeat:  # the first one warms up
                times[name].append(time.process_time() - begin)
    return {name: statistics.median(values) for name, values in times.items()}


def measure_expert(scale: int, interpolation: Any, repeats: int) -> dict[str, Any]:
    """One expert on one map."""
    expert = Expert(scale, interpolation, 3, gelu=True)
    inputs = [
        tensor.requires_grad_()
        for tensor in (torch.randn(1, RANK, *GRID), torch.randn(RANK, RANK, 3, 3) / 5, torch.randn(RANK))
    ]
    ways = {
        "plain": lambda: expert_plain(*inputs, scale, interpolation, gelu=True),
        "fast": lambda: expert(*inputs),
    }
    seconds = medians(ways, repeats)
    with torch.no_grad():
        difference = (ways["plain"]() - ways["fast"]()).abs().max().item()
    return {
        "interpolation": interpolation,
        "scale": scale,
        "route": expert.route,
        "milliseconds_plain": seconds["plain"] * 1000,
        "milliseconds_fast": seconds["fast"] * 1000,
        "times_faster": seconds["plain"] / seconds["fast"],
        "largest_difference": difference,
    }


def measure_mixture(shape: str, repeats: int) -> dict[str, Any]:
    """One fused attention projection with everything that may be put on it."""
    base = nn.Linear(WIDTH, 3 * WIDTH)
    layers: dict[str, nn.Module] = {"frozen": base.requires_grad_(False)}
    for method in ("lora", "conv-lora", "conv-lora:multi-scale"):
        layer = copy.deepcopy(base)
        site = Site(name="qkv", kind=SiteKind.ATTENTION_QKV, module=layer, part=Part.ENCODER)
        apply(layer, [site], {method: METHODS.settings(method)(rank=RANK)})
        layers[method] = layer.train()
    x = torch.randn(*MAPS[shape], WIDTH, requires_grad=True)
    ways: dict[str, Callable[[], Tensor]] = {
        name: lambda layer=layer: layer(x) for name, layer in layers.items()
    }

    def run_all() -> Tensor:
        with patch.object(routing, "_mix_chosen", routing._mix_all):
            y: Tensor = layers["conv-lora"](x)
            return y

    ways["conv-lora, all experts"] = run_all
    seconds = medians(ways, repeats)
    ratios = {name: value / seconds["frozen"] for name, value in seconds.items()}
    return {"maps": shape, "milliseconds_frozen": seconds["frozen"] * 1000, "ratios": ratios}


def main() -> None:
    """Measures every scale and both kinds of maps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    experts, mixtures = [], []
    for interpolation in ("bilinear", "bicubic"):
        for scale in range(1, 9):
            experts.append(measure_expert(scale, interpolation, arguments.repeats))
            print(experts[-1], flush=True)
    for shape in MAPS:
        mixtures.append(measure_mixture(shape, arguments.repeats))
        print(mixtures[-1], flush=True)
    settings = {"rank": RANK, "grid": GRID, "width": WIDTH, "repeats": arguments.repeats}
    result = {"threads": arguments.threads, **settings, "versions": versions()}
    write_json(RESULT, {**result, "experts": experts, "mixtures": mixtures})


if __name__ == "__main__":
    main()
