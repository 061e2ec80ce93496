"""The public functions, for use from Python; the command line calls the same ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segtune.config.layers import Layer, nest
from segtune.config.load import load_config
from segtune.errors import UsageError

if TYPE_CHECKING:
    from segtune.comparison.results import Comparison
    from segtune.engine.evaluate import Evaluation
    from segtune.engine.fit import FitResult
    from segtune.engine.predict import Prediction
    from segtune.engine.reporter import Reporter
    from segtune.methods.apply import Applied
    from segtune.models.base import SegModel

PathLike = Path | str


def load_model(
    name: str, num_classes: int, *, weights: str = "default", seed: int = 0, **settings: Any
) -> SegModel:
    """Builds a model and loads its weights.

    Args:
        name: as in `segtune list models`, e.g. "unet" or "smp:unet/resnet34".
        num_classes: K, at least 2; the classifier is new unless the weights have one for K classes.
        weights: "default", "none", a published name, or a .safetensors or .pth file.
        seed: of the random start.
        **settings: of the model, e.g. depth=3.

    Returns:
        The model in eval mode on the CPU: images [B, C, H, W] in [0, 1] to an output with `.logits`.
    """
    from segtune.models.build import build_model
    from segtune.models.weights import load_weights

    config = load_config(_layers(name, "head", {f"model.{key}": value for key, value in settings.items()}))
    if config.model_common.quantize != "none":
        raise UsageError(
            "load_model gives a model whose weights are all floats; what is frozen is not decided yet",
            hint="segtune.fit(..., settings={'model.quantize': ...})",
        )
    model = build_model(name, num_classes, config.model_settings, seed=seed)
    load_weights(model, weights)
    return model.eval()


def adapt(model: SegModel, method: str, *, seed: int = 0, **settings: Any) -> Applied:
    """Freezes a model and applies a tuning method to it, in place.

    Args:
        model: from `load_model`.
        method: as in `segtune list methods`, or several joined by "+".
        seed: of the new tensors' random start.
        **settings: of the method, e.g. rank=8.

    Returns:
        What the method owns: `.parameters()` to train, `.state_dict()` to save, `.merge()`,
        `.remove()`.
    """
    from typing import cast

    from segtune.methods.apply import apply
    from segtune.methods.base import MethodSettings

    own = {f"method.{key}": value for key, value in settings.items()}
    config = load_config(_layers("unet", method, own))
    parts = cast(Mapping[str, MethodSettings], config.method_parts)
    applied = apply(model, model.sites(), parts, seed=seed, unused=model.unused)
    model.penalty_layers = list(applied.operations)
    return applied


def fit(
    data: PathLike,
    *,
    model: str,
    method: str,
    out: PathLike,
    settings: Mapping[str, Any] | None = None,
    resume: bool = False,
    profile: bool = False,
    reporter: Reporter | None = None,
) -> FitResult:
    """Tunes a model on a data set.

    Args:
        data: folder or manifest.
        model: as in `segtune list models`.
        method: as in `segtune list methods`, or several joined by "+".
        out: folder of the run; new or empty.
        settings: by dotted key, e.g. {"train.epochs": 5, "method.rank": 8}.
        resume: go on from the last checkpoint in `out`.
        profile: time the parts of a step; a table and a trace in `out`/profile.
        reporter: hears what happens.

    Returns:
        Scores and costs, as in result.json.
    """
    from segtune.engine.fit import fit as run_fit

    config = load_config(_layers(model, method, {**(settings or {}), "data.path": str(data)}))
    return run_fit(config, Path(out), resume=resume, profile=profile, reporter=reporter)


def evaluate(
    run: PathLike,
    *,
    data: PathLike | None = None,
    split: str = "test",
    settings: Mapping[str, Any] | None = None,
    weights: str | None = None,
    batch_size: int = 1,
    saliency: bool = False,
    reporter: Reporter | None = None,
) -> Evaluation:
    """Scores a run's best model on a split, at original resolution.

    Args:
        run: a run's folder.
        data: another data set; default: the one it was trained on.
        split: "train", "val" or "test".
        settings: `data.*` settings by dotted key, over those of the run.
        weights: where the base's weights lie now, if not where they were.
        batch_size: images of equal size that enter the model at once.
        saliency: also score the foreground's probabilities (S-measure, ...), of two classes.
        reporter: hears about progress.
    """
    from segtune.engine.session import evaluate_run

    return evaluate_run(
        Path(run),
        data=None if data is None else Path(data),
        split=split,
        settings=settings or {},
        weights=weights,
        batch_size=batch_size,
        saliency=saliency,
        reporter=reporter,
    )


def predict(
    run: PathLike,
    images: PathLike | Sequence[PathLike],
    *,
    out: PathLike,
    overlays: bool = True,
    batch_size: int = 1,
    settings: Mapping[str, Any] | None = None,
    weights: str | None = None,
    prompts: PathLike | None = None,
    prompts_from_masks: bool = False,
    polygons: bool = False,
    reporter: Reporter | None = None,
) -> list[Prediction]:
    """Writes a mask and an overlay for each image.

    Args:
        run: a run's folder, or an adapter's.
        images: an image, a folder, or several of them.
        out: folder for the results.
        overlays: write the overlays too.
        batch_size: neighbouring images of equal size that enter the model at once.
        settings: data.window, data.overlap, data.flip_tta, data.resize by dotted key.
        weights: where the base's weights lie now, if not where they were.
        prompts: JSON file with the objects of each image, for a model that is prompted:
            {"image.png": [{"class": "name", "box": [left, top, right, bottom], "points": [[x, y]]}]};
            of volumes {"case": [{"slice": 72, "box": [i1, j1, i2, j2]}]}, in voxels of the file.
        prompts_from_masks: of volumes: draw them from the masks that lie with them, as for scores.
        polygons: write the areas of each class of a GeoTIFF file as a GeoPackage too.
        reporter: hears about progress.

    Returns:
        The files of each image, GeoTIFF files first, in order; each is written as soon as it is done.
    """
    from segtune.engine.session import predict_run

    inputs = [images] if isinstance(images, str | Path) else list(images)
    predictions = predict_run(
        Path(run),
        [Path(path) for path in inputs],
        Path(out),
        overlays=overlays,
        batch_size=batch_size,
        settings=settings or {},
        weights=weights,
        prompts=None if prompts is None else Path(prompts),
        prompts_from_masks=prompts_from_masks,
        polygons=polygons,
        reporter=reporter,
    )
    return list(predictions)


def compare(
    data: PathLike,
    *,
    models: str | Sequence[str | Mapping[str, Any]],
    methods: Sequence[str | Mapping[str, Any]],
    out: PathLike,
    settings: Mapping[str, Any] | None = None,
    tell: Callable[[str], None] = print,
) -> Comparison:
    """Compares tuning methods on a data set: quality and cost of each, and which can be told apart.

    Args:
        data: folder or manifest.
        models: names as in `segtune list models`, or mappings of a model's settings with its "name".
        methods: names as in `segtune list methods`, or mappings of a method's settings with its "name".
        out: folder of the comparison; the same call goes on where it was stopped.
        settings: by dotted key, e.g. {"train.steps": 500, "compare.seeds": 3, "compare.ranks": [4, 16]}.
        tell: hears what happens, line by line.

    Returns:
        Everything that was found out; the tables lie in `out` as compare.md, .csv, .json and .tex.
    """
    from segtune.comparison.plan import make_plan
    from segtune.comparison.run import compare as run_comparison

    named = {"compare.models": [models] if isinstance(models, str) else list(models)}
    own = {**named, "compare.methods": list(methods), **(settings or {}), "data.path": str(data)}
    return run_comparison(make_plan([nest(own.items(), "settings")]), Path(out), tell)


def merge(run: PathLike, out: PathLike, *, weights: str | None = None) -> dict[str, Any]:
    """Writes a run's base with the adapter folded in, and proves that it computes the same.

    Args:
        run: a run's folder, or an adapter's.
        out: a .safetensors file; it serves as `model.weights` of another run.
        weights: where the base's weights lie now, if not where they were.

    Returns:
        The file and the differences measured.
    """
    from segtune.engine.merge import merge_run
    from segtune.engine.run import load_run

    return merge_run(load_run(run, weights=weights), Path(out))


def _layers(model: str, method: str, settings: Mapping[str, Any]) -> list[Layer]:
    named = Layer("arguments", {"model": {"name": model}, "method": {"name": method}})
    return [named, nest(settings.items(), "settings")]
