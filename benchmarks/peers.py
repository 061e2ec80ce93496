"""Our LoRA and Conv-LoRA layers against those of peft and AutoGluon: a training step on the same networks.

Usage: python benchmarks/peers.py [--threads 1] [--repeats 7] [--only sam-1024] [--autogluon FOLDER]

Every way has the same network, the same frozen weights, images, masks and optimiser; only the adapted
layers differ. In every repeat the ways follow each other, so that noise of the machine falls on all of
them. What is kept are all repeats' seconds of the processor (of this process alone, so that programs
beside it count little) and on the clock; peak memory is that of a process of its own for each way.

The libraries are called as their users call them: `peft.inject_adapter_in_model`, and AutoGluon's
classes of `autogluon.multimodal.models.adaptation_layers`, put in the place of the layer that they get
the weights of. That module alone is loaded from the installed package (or from the folder in which it
was installed with `pip install --no-deps --target FOLDER autogluon.multimodal`), as the package as a
whole asks for an older PyTorch. A library that is not there is left out, and the result says so.

Results go to benchmarks/peers.json; rows of cases that are not run again stay.
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import importlib.util
import json
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segtune.engine.files import write_json
from segtune.engine.run import versions
from segtune.methods import METHODS
from segtune.methods.apply import Applied, apply
from segtune.models import MODELS
from segtune.models.base import SegModel
from segtune.models.build import build_model
from segtune.types import Site, SiteKind

RESULT = Path(__file__).with_suffix(".json")
LAYERS = "multimodal/models/adaptation_layers.py"
NUM_EXPERTS = 8
NUM_CLASSES = 2


ATTENTION = ("head", "lora", "peft lora", "autogluon lora", "conv-lora", "autogluon conv-lora")
CONVOLUTIONS = ("head", "full", "lora", "peft lora", "autogluon lora")


@dataclass(frozen=True)
class Case:
    """A network, its input, and what is adapted."""

    model: str
    settings: dict[str, Any]
    size: int
    batch: int
    rank: int = 3  # that of Conv-LoRA as published
    kind: SiteKind = SiteKind.ATTENTION_QKV
    ways: tuple[str, ...] = ATTENTION


CASES = {
    "sam-512": Case("sam-vit-base", {}, 512, 1, ways=ATTENTION[1:]),
    "sam-1024": Case("sam-vit-base", {}, 1024, 1, ways=ATTENTION[1:]),
    "segformer-b0": Case("smp:segformer/mit_b0", {}, 512, 2),
    "segformer-b0, rank 8": Case("smp:segformer/mit_b0", {}, 512, 2, 8),
    "segformer-b2": Case("smp:segformer/mit_b2", {}, 512, 2),
    "unet": Case("unet", {"width": 32}, 256, 2, 8, SiteKind.CONV, CONVOLUTIONS),
}


# --- the ways -------------------------------------------------------------------------------------


def chosen(model: SegModel, case: Case) -> list[Site]:
    """The sites that every way adapts."""
    return [site for site in model.sites() if site.kind is case.kind]


def ours(method: str, case: Case) -> Callable[[SegModel], Applied]:
    """A method of segtune."""
    settings: dict[str, Any] = {"rank": case.rank} if method in ("lora", "conv-lora") else {}
    if settings:
        settings["kinds"] = (str(case.kind),)

    def adapt(model: SegModel) -> Applied:
        parts = {method: METHODS.settings(method)(**settings)}
        applied = apply(model, model.sites(), parts, removable=False)
        model.penalty_layers = list(applied.operations)
        return applied

    return adapt


def with_peft(model: SegModel, case: Case) -> None:
    """LoRA of the library peft on the same layers, with the same rank and scale."""
    import peft

    names = [site.name for site in chosen(model, case)]
    apply(model, model.sites(), {"head": METHODS.settings("head")()}, removable=False)
    peft.inject_adapter_in_model(
        peft.LoraConfig(r=case.rank, lora_alpha=case.rank, target_modules=names), model
    )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name or name.startswith(tuple(model.head_names())))


class Unpacked(nn.Module):
    """A layer that gives its output and a balance loss: the output, with the loss put aside."""

    penalty: Tensor | None = None

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """The output."""
        y: Tensor
        y, self.penalty = self.layer(x)
        return y


def with_autogluon(layers: Any, conv: bool, model: SegModel, case: Case) -> None:
    """AutoGluon's layers in the place of the same ones."""
    apply(model, model.sites(), {"head": METHODS.settings("head")()}, removable=False)
    for site in chosen(model, case):
        base: Any = site.module
        common = {
            "r": case.rank,
            "lora_alpha": case.rank,
            "merge_weights": False,
            "bias": base.bias is not None,
        }
        if isinstance(base, nn.Conv2d):
            made = layers.LoRAConv2d(
                base.in_channels,
                base.out_channels,
                base.kernel_size[0],
                stride=base.stride,
                padding=base.padding,
                **common,
            )
        elif conv:
            made = layers.ConvLoRALinear(
                base.in_features, base.out_features, conv_lora_expert_num=NUM_EXPERTS, **common
            )
        else:
            made = layers.LoRALinear(base.in_features, base.out_features, **common)
        made.weight = base.weight
        if base.bias is not None:
            made.bias = base.bias
        parent, _, name = site.name.rpartition(".")
        held = Unpacked(made) if conv else made
        setattr(model.get_submodule(parent), name, held)
        if isinstance(held, Unpacked):
            model.penalty_layers.append(held)


def autogluon_layers(folder: Path | None) -> Any:
    """The module with AutoGluon's layers; None where it is not installed."""
    spec = importlib.util.find_spec("autogluon")
    places = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
    if folder is not None:
        places.append(folder / "autogluon")
    for place in places:
        if (place / LAYERS).is_file():
            found = importlib.util.spec_from_file_location("autogluon_layers", place / LAYERS)
            assert found is not None and found.loader is not None
            module = importlib.util.module_from_spec(found)
            found.loader.exec_module(module)
            return module
    return None


def missing(folder: Path | None) -> dict[str, str]:
    """Libraries that are left out, with the reason."""
    reasons = {}
    if importlib.util.find_spec("peft") is None:
        reasons["peft"] = "not installed (pip install 'segtune[peft]')"
    if autogluon_layers(folder) is None:
        reasons["autogluon"] = "not installed (pip install --no-deps --target FOLDER autogluon.multimodal)"
    return reasons


def adapt(way: str, model: SegModel, case: Case, folder: Path | None) -> None:
    """Adapts a model in one of the ways."""
    if way == "peft lora":
        with_peft(model, case)
    elif way.startswith("autogluon "):
        with_autogluon(autogluon_layers(folder), way.endswith("conv-lora"), model, case)
    else:
        ours(way, case)(model)
    # a start of zero would leave half of the adapter's gradients at zero as well
    for name, parameter in model.named_parameters():
        if name.endswith((".up", "lora_B", "lora_B.default.weight")):
            nn.init.normal_(parameter, std=0.02)


# --- one step -------------------------------------------------------------------------------------


class Step:
    """A training step of one way."""

    def __init__(self, model: SegModel, case: Case, precision: str) -> None:
        self.model = model.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.precision = precision
        generator = torch.Generator().manual_seed(0)
        shape = (case.batch, 3, case.size, case.size)
        self.images = torch.rand(shape, generator=generator).contiguous(memory_format=torch.channels_last)
        self.masks = torch.randint(NUM_CLASSES, (case.batch, case.size, case.size), generator=generator)
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-4)

    def __call__(self) -> None:
        """Forward, loss, backward, update."""
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            output = self.model(self.images)
        loss = F.cross_entropy(output.logits.float(), self.masks)
        for penalty in output.penalties.values():
            loss = loss + 0.01 * penalty
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def build(case: Case) -> SegModel:
    """The network with random weights."""
    return build_model(case.model, NUM_CLASSES, MODELS.settings(case.model)(**case.settings))


def sharing(model: SegModel, trained: Iterable[str]) -> SegModel:
    """A copy that shares every parameter but those below the names given."""
    prefixes = tuple(f"{name}." for name in trained)
    memo = {id(p): p for name, p in model.named_parameters() if not name.startswith(prefixes)}
    return copy.deepcopy(model, memo)


def times(
    case: Case, ways: list[str], precision: str, repeats: int, folder: Path | None
) -> list[dict[str, Any]]:
    """Seconds of every repeat of every way, in turn; or why a way fails."""
    base = build(case)
    steps: dict[str, Step] = {}
    failures: list[dict[str, Any]] = []
    for way in ways:
        model = copy.deepcopy(base) if way == "full" else sharing(base, base.head_names())
        adapt(way, model, case, folder)
        steps[way] = Step(model, case, precision)
        try:
            steps[way]()
        except RuntimeError as error:
            failures.append({"way": way, "failure": str(error).splitlines()[0]})
            del steps[way]
    seconds: dict[str, dict[str, list[float]]] = {way: {"processor": [], "clock": []} for way in steps}
    for _ in range(repeats):
        for way, step in steps.items():
            processor, clock = time.process_time(), time.perf_counter()
            step()
            seconds[way]["processor"].append(time.process_time() - processor)
            seconds[way]["clock"].append(time.perf_counter() - clock)
    measured = [
        {"way": way, "trained": sum(p.numel() for p in step.trained), **seconds[way]}
        for way, step in steps.items()
    ]
    return measured + failures


def peak(case: Case, way: str, precision: str, folder: Path | None) -> dict[str, int]:
    """Peak memory of this process over a step, and what it held before the model."""
    missing(folder)
    before = psutil.Process().memory_info().rss
    model = build(case)
    adapt(way, model, case, folder)
    Step(model, case, precision)()
    return {"before_bytes": before, "peak_bytes": highest_bytes()}


def peak_and_seconds(step: Step, before: int) -> dict[str, Any]:
    """Peak memory of this process over a step, what it held before, and processor seconds of another step."""
    step()
    highest = highest_bytes()
    begin = time.process_time()
    step()
    return {"before_bytes": before, "peak_bytes": highest, "seconds": time.process_time() - begin}


def in_turn(
    name: str, ways: Mapping[str, tuple[Any, ...]], measure: Callable[..., dict[str, Any]], repeats: int
) -> list[dict[str, Any]]:
    """A row for each way of a case; in every repeat they follow each other, each in a process of its own.

    Args:
        name: of the case.
        ways: name of a way -> arguments of `measure`.
        measure: returns "seconds" among others.
        repeats: of all ways.
    """
    rows: dict[str, dict[str, Any]] = {}
    for _ in range(repeats):
        for way, arguments in ways.items():
            found = elsewhere(measure, *arguments)
            print(f"{name} {way}: {found}", flush=True)
            seconds = found.pop("seconds")
            rows.setdefault(way, {"case": name, "way": way, "processor": [], **found})
            rows[way]["processor"].append(seconds)
    return list(rows.values())


def elsewhere(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """What a function returns in a process of its own, which begins with the packages that are loaded here.

    Raises:
        RuntimeError: the process ended without a result.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(function(*arguments)))
    process.start()
    sender.close()
    try:
        found: dict[str, Any] = receiver.recv()
    except EOFError as error:
        raise RuntimeError(f"{function.__name__}{arguments} ended without a result") from error
    finally:
        process.join()
    return found


def highest_bytes() -> int:
    """Peak memory of this process; what getrusage says may be that of the one that started it."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def attempt(case: Case, way: str, precision: str, folder: Path | None) -> dict[str, int]:
    """`peak` in a process of its own; nothing where the way fails, which `times` puts into words."""
    try:
        return elsewhere(peak, case, way, precision, folder)
    except RuntimeError:
        return {}


def main() -> None:
    """Measures the cases asked for and puts them into the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--precisions", nargs="+", choices=("32", "bf16"), default=["32", "bf16"])
    parser.add_argument("--peaks-only", action="store_true", help="keep the times of rows that are there")
    parser.add_argument("--autogluon", type=Path)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    without = missing(arguments.autogluon)
    rows: list[dict[str, Any]] = []
    if arguments.out.is_file():
        rows = json.loads(arguments.out.read_text(encoding="utf-8"))["rows"]
    chosen_ways = {
        name: [w for w in CASES[name].ways if w.split()[0] not in without] for name in arguments.only
    }
    # while this process is still small, as the others begin as its copies
    peaks = {
        (name, precision, way): attempt(CASES[name], way, precision, arguments.autogluon)
        for name, ways in chosen_ways.items()
        for precision in arguments.precisions
        for way in ways
    }
    for row in rows:
        row.update(peaks.get((row["case"], row["precision"], row["way"]), {}))
    for name, ways in chosen_ways.items() if not arguments.peaks_only else ():
        for precision in arguments.precisions:
            found = times(CASES[name], ways, precision, arguments.repeats, arguments.autogluon)
            rows = [row for row in rows if (row["case"], row["precision"]) != (name, precision)]
            for row in found:
                rows.append({"case": name, "precision": precision, **row})
                if "failure" not in row:
                    rows[-1].update(peaks[name, precision, row["way"]])
                    print(f"{name} {precision} {row['way']}: {min(row['processor']):.3f} s", flush=True)
            write_json(arguments.out, report(arguments, without, rows))
    write_json(arguments.out, report(arguments, without, rows))


def report(
    arguments: argparse.Namespace, without: dict[str, str], rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """Everything that the result holds."""
    cases = {
        name: {
            "model": case.model,
            "rank": case.rank,
            "size": case.size,
            "batch": case.batch,
            **case.settings,
        }
        for name, case in CASES.items()
    }
    return {
        "num_experts": NUM_EXPERTS,
        "threads": arguments.threads,
        "cases": cases,
        "left_out": without,
        "versions": stated_versions(arguments.autogluon),
        "rows": rows,
    }


def stated_versions(folder: Path | None) -> dict[str, Any]:
    """Versions of what numbers depend on, the libraries compared with among them."""
    without = missing(folder)
    libraries = {}
    if "peft" not in without:
        libraries["peft"] = importlib.metadata.version("peft")
    if "autogluon" not in without:
        path = [str(folder)] if folder is not None else sys.path
        found = importlib.metadata.distributions(name="autogluon.multimodal", path=path)
        libraries["autogluon.multimodal"] = next(iter(found)).version
    return {**versions(), **libraries}


if __name__ == "__main__":
    main()
