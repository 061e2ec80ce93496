"""`segtune fit`: tune a model on a data set."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segtune.cli.options import config_option, flags, json_option, print_json, set_option

if TYPE_CHECKING:
    from segtune.config.run import RunConfig

WEIGHTS_ENDINGS = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
"""A value of model.weights that ends so is a file: a missing one is named before torch is imported."""


@click.command("fit")
@click.argument("data", required=False, type=click.Path(path_type=Path))
@click.option("--model", metavar="MODEL", help="Name of a model; see `segtune list models`.")
@click.option("--method", metavar="METHOD", help="Name of a method, or several joined by +.")
@click.option("--out", type=click.Path(path_type=Path), metavar="RUN", help="Folder of the run.")
@click.option("--devices", type=int, metavar="N", help="Processes on each machine, one for each GPU.")
@click.option("--num-nodes", type=int, metavar="N", help="Machines.")
@click.option("--strategy", metavar="NAME", help="ddp: the whole model in each process; fsdp: divided.")
@config_option
@set_option
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint in RUN.")
@click.option("--profile", is_flag=True, help="Time the parts of a step; a table and a trace in RUN/profile.")
@json_option
def command(
    data: Path | None,
    model: str | None,
    method: str | None,
    out: Path | None,
    devices: int | None,
    num_nodes: int | None,
    strategy: str | None,
    files: tuple[Path, ...],
    assignments: tuple[str, ...],
    resume: bool,
    profile: bool,
    as_json: bool,
) -> None:
    """Tune a model on DATA and leave a run folder.

    DATA is a folder of images and masks, or a CSV manifest; see `segtune data check DATA`.
    """
    began = time.perf_counter()
    if profile:  # the profiler complains of every machine without a GPU; read when torch is imported
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")

    from segtune.data import is_there
    from segtune.engine.folder import RunFolder
    from segtune.engine.rank import is_first_process
    from segtune.errors import UsageError, WeightsError

    given = flags(
        DATA=(("data", "path"), None if data is None else str(data)),
        model=(("model", "name"), model),
        method=(("method", "name"), method),
        devices=(("train", "devices"), devices),
        num_nodes=(("train", "num_nodes"), num_nodes),
        strategy=(("train", "strategy"), strategy),
    )
    config = _settings(given, files, assignments, out, resume=resume)
    if config.data_path is None:
        raise UsageError("DATA is missing", hint="segtune fit DATA --model MODEL --method METHOD")
    if not is_there(config.data_path):
        raise UsageError(f"there is no data folder or manifest {config.data_path}", hint="check the path")
    if out is None:
        if config.train.devices * config.train.num_nodes > 1:
            raise UsageError("several processes need the run's folder", hint="--out RUN")
        out = _free_folder(config.data_path, config.model, config.method)
    first = is_first_process()
    if first:
        RunFolder(out).claim(resume=resume)
    weights = Path(config.weights).expanduser()
    if weights.suffix in WEIGHTS_ENDINGS and not weights.exists():
        raise WeightsError(f"weights file {config.weights!r} does not exist", hint="check model.weights")

    from segtune.cli.console import ConsoleReporter
    from segtune.engine.intake import take_in
    from segtune.engine.reporter import Reporter

    if first:
        reporter: Reporter = ConsoleReporter()
        reporter.note(f"run folder: {out}", *_changed(config.sources, config.to_dict()))
        try:
            check = take_in(config, reporter)
        finally:
            reporter.close()
    else:
        reporter, check = Reporter(), None

    from segtune.engine.fit import fit

    result = fit(config, out, resume=resume, reporter=reporter, check=check, began=began, profile=profile)
    if not first:
        return
    if as_json:
        print_json(result.result)
        return
    _print(result.result, out)


def _print(result: dict[str, Any], out: Path) -> None:
    """Scores and costs in three lines."""
    click.echo(f"run     {out}")
    for split in ("val", "test"):
        evaluation = result[split]
        if evaluation is not None:
            scores = evaluation["scores"]
            told = ", prompts from the ground truth" if evaluation["settings"]["prompts"] else ""
            click.echo(
                f"{split:<7} mIoU {scores['miou']:.4f}  Dice {scores['dice']:.4f}"
                f"  accuracy {scores['pixel_accuracy']:.4f}{_saliency(scores)}"
                f"  ({evaluation['num_images']} images{told})"
            )
    if result["average"] is not None:
        click.echo(_average(result))
    click.echo(
        f"trained {result['parameters_trainable']:,} of {result['parameters_total']:,}"
        f" parameters in {result['train_seconds']:.0f} s"
        f" ({result['wait_share']:.0%} waiting for data);"
        f" adapter {result['adapter_bytes']:,} bytes"
    )


def _average(result: dict[str, Any]) -> str:
    """What was averaged, and what the best single validation scores instead."""
    single = result["average"]["best_single"]
    scores = "  ".join(f"{split} {single[split]['miou']:.4f}" for split in ("val", "test") if split in single)
    steps = ", ".join(map(str, result["average"]["steps"]))
    return f"average of the tensors of steps {steps}; step {single['step']} alone has mIoU  {scores}"


def _saliency(scores: dict[str, float]) -> str:
    """The saliency scores that were asked for, as their literature calls them."""
    names = {
        "s_measure": "S",
        "e_measure_max": "max E",
        "weighted_f": "weighted F",
        "mean_absolute_error": "MAE",
    }
    return "".join(f"  {short} {scores[name]:.4f}" for name, short in names.items() if name in scores)


def _settings(
    given: dict[str, Mapping[str, Any]],
    files: tuple[Path, ...],
    assignments: tuple[str, ...],
    out: Path | None,
    *,
    resume: bool,
) -> RunConfig:
    """The run's settings: those given, or when resuming those that it was started with.

    Raises:
        UsageError: no folder to resume, or other settings than its own.
    """
    from segtune.config.layers import Layer
    from segtune.config.load import difference, load_settings
    from segtune.engine.folder import RunFolder
    from segtune.errors import UsageError

    if resume:
        if out is None:
            raise UsageError("--resume needs the run's folder", hint="--out RUN")
        config = RunFolder(out).read_config()
        started = Layer("config.yaml", config.to_dict())
        again = load_settings(flags=given, files=files, assignments=assignments, base=started)
        changed = difference(config, again)
        if changed:
            raise UsageError(
                "a run is resumed with the settings it was started with; changed: " + "; ".join(changed),
                hint="leave the settings out, or start another run",
            )
    else:
        config = load_settings(flags=given, files=files, assignments=assignments)
    return config


def _free_folder(data: Path, model: str, method: str) -> Path:
    stem = f"{data.stem}-{model}-{method}".replace("/", "-").replace(":", "-")
    number = 1
    while (folder := Path("runs") / f"{stem}-{number}").exists():
        number += 1
    return folder


def _changed(sources: dict[str, str], values: dict[str, object]) -> list[str]:
    """The settings that are not defaults, each with where it came from."""
    return [f"  {key} = {_look_up(values, key.split('.'))}  ({source})" for key, source in sources.items()]


def _look_up(values: dict[str, object], path: list[str]) -> object:
    """The value of a setting; one that several methods share stands below each of them."""
    node: object = values
    for name in path:
        if isinstance(node, dict) and name not in node:
            node = next((below for below in node.values() if isinstance(below, dict) and name in below), {})
        node = node.get(name) if isinstance(node, dict) else None
    return node
