"""`segtune predict`: masks and overlays for images."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import click

from segtune.cli.options import assignments_to_settings, json_option, print_json, set_option, weights_option


@click.command("predict")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="FOLDER")
@click.option("--no-overlays", is_flag=True, help="Write the masks only.")
@click.option("--batch-size", type=click.IntRange(min=1), default=1, show_default=True)
@click.option(
    "--prompts", type=click.Path(path_type=Path), metavar="FILE", help="JSON with the objects of each image."
)
@click.option(
    "--prompts-from-masks", is_flag=True, help="Of volumes: from the masks that lie with them, as for scores."
)
@click.option("--polygons", is_flag=True, help="Of GeoTIFF: the classes' areas as NAME.gpkg too.")
@weights_option
@set_option
@json_option
def command(
    run: Path,
    images: tuple[Path, ...],
    out: Path,
    no_overlays: bool,
    batch_size: int,
    prompts: Path | None,
    prompts_from_masks: bool,
    polygons: bool,
    weights: str | None,
    assignments: tuple[str, ...],
    as_json: bool,
) -> None:
    """Predict masks for IMAGES (files or folders) with the best model of RUN.

    FOLDER gets NAME.png, a palette image whose index is the class, and NAME_overlay.png; of volumes
    NAME.nii.gz in the space of the volume; of GeoTIFF files of any size NAME.tif in their coordinates.

    A model that was tuned with prompts needs them here too, in a file such as {"image.png": [{"class":
    "polyp", "box": [left, top, right, bottom], "points": [[x, y]], "labels": [1]}]}: pixels of the image
    file; box and points as the model needs them; an empty list for an image without objects. Of volumes
    {"case": [{"slice": 72, "box": [i1, j1, i2, j2]}]}: voxels of the file; "slice": [60, 84] for several.
    """
    from segtune.engine.folder import require_run
    from segtune.errors import UsageError

    require_run(run)
    for path in images:
        if not path.exists():
            raise UsageError(f"there is no file or folder {path}", hint="check the path")
    if prompts is not None and not prompts.is_file():
        raise UsageError(f"there is no file {prompts}", hint="check --prompts")

    settings = assignments_to_settings(assignments)

    from segtune.cli.console import ConsoleReporter
    from segtune.engine.session import predict_run

    done = []
    with closing(ConsoleReporter()) as reporter:
        for prediction in predict_run(
            run,
            images,
            out,
            overlays=not no_overlays,
            batch_size=batch_size,
            settings=settings,
            weights=weights,
            prompts=prompts,
            prompts_from_masks=prompts_from_masks,
            polygons=polygons,
            reporter=reporter,
        ):
            done.append(prediction)
            if not as_json:
                click.echo(prediction.mask)
    if as_json:
        print_json([{k: None if v is None else str(v) for k, v in vars(p).items()} for p in done])
