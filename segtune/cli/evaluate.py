"""`segtune evaluate`: scores of a run on a split."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from segtune.cli.options import (
    assignments_to_settings,
    json_option,
    print_json,
    set_option,
    weights_option,
)
from segtune.metrics import VOLUME_METRICS

if TYPE_CHECKING:
    from segtune.engine.evaluate import Evaluation


@click.command("evaluate")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), help="Another data set than the run's own.")
@click.option("--split", type=click.Choice(["train", "val", "test"]), default="test", show_default=True)
@click.option("--batch-size", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--saliency", is_flag=True, help="S-measure, E-measure, ...: of two classes; slower.")
@weights_option
@set_option
@json_option
def command(
    run: Path,
    data: Path | None,
    split: str,
    batch_size: int,
    saliency: bool,
    weights: str | None,
    assignments: tuple[str, ...],
    as_json: bool,
) -> None:
    """Score the best model of RUN on a split, at the images' original size."""
    from segtune.data import is_there
    from segtune.engine.folder import require_run
    from segtune.errors import UsageError

    require_run(run)
    if data is not None and not is_there(data):
        raise UsageError(f"there is no data folder or manifest {data}", hint="check --data")

    settings = assignments_to_settings(assignments)

    from segtune.cli.console import ConsoleReporter, make_table
    from segtune.data.findings import number_of
    from segtune.engine.session import evaluate_run

    with closing(ConsoleReporter()) as reporter:
        evaluation = evaluate_run(
            run,
            data=data,
            split=split,
            settings=settings,
            weights=weights,
            batch_size=batch_size,
            saliency=saliency,
            reporter=reporter,
        )
    if as_json:
        print_json(evaluation.to_dict())
        return
    slices = f" of {number_of(len(evaluation.volumes), 'volume')}" if evaluation.volumes else ""
    click.echo(f"{run} on {split}: {evaluation.num_images} images{slices} in {evaluation.seconds:.1f} s")
    if evaluation.settings["prompts"]:
        click.echo(f"  prompts: {evaluation.settings['prompts']}")
    width = max(map(len, evaluation.scores))
    for name, score in evaluation.scores.items():
        click.echo(f"  {name:<{width}} {score:.4f}")

    from rich.console import Console

    names = list(evaluation.per_class)
    rows = [
        [label, *(_cell(evaluation.per_class[name][k]) for name in names)]
        for k, label in enumerate(evaluation.class_names)
    ]
    console = Console(highlight=False)
    console.print(make_table(["class", *names], rows))
    if evaluation.volumes:
        console.print(
            make_table(["volume", "region", "Dice", "HD95 mm", "surface Dice"], _volume_rows(evaluation))
        )
        click.echo(
            "absent: in neither mask nor prediction, left out of every mean; in one of them: the worst"
        )


def _volume_rows(evaluation: Evaluation) -> list[list[str]]:
    """One row for each volume and region."""
    return [
        [case, region, *(_cell(scores[metric][region]) for metric in VOLUME_METRICS)]
        for case, scores in evaluation.volumes.items()
        for region in scores["volume_dice"]
    ]


def _cell(value: float | None) -> str:
    return "absent" if value is None else f"{value:.4f}"
