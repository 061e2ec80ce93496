"""Masks and overlays for images of any size, streamed one after the other."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PillowImage

from segtune.data.base import Classes, Image
from segtune.data.channels import ChannelRule
from segtune.data.files import SUFFIXES, read_image
from segtune.data.preview import overlay
from segtune.data.prompts import stack_prompts
from segtune.data.transforms import to_tensor
from segtune.engine.files import write_with
from segtune.engine.infer import Inference, InferenceSettings
from segtune.engine.overlap import ahead
from segtune.engine.prompts import FORMAT, prompts_for, read_prompts
from segtune.engine.reporter import Reporter
from segtune.engine.run import LoadedRun
from segtune.errors import SegtuneError, UsageError
from segtune.types import Prompts

AHEAD = 2
"""Images that are read before the model takes them, and as many that wait to be written."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The files made for one image."""

    image: Path
    mask: Path
    overlay: Path | None


class _Predicted(NamedTuple):
    """One image with its classes [H, W]."""

    path: Path
    stem: Path
    image: Image
    classes: NDArray[np.uint8]


def find_images(inputs: Sequence[Path], out: Path) -> list[tuple[Path, Path]]:
    """The images that files and folders stand for, each with its path relative to the folder.

    Args:
        inputs: files and folders.
        out: folder of the results; where it lies inside of an input, what it holds is no input.

    Raises:
        UsageError: a path does not exist, or there is no image.
    """
    found: list[tuple[Path, Path]] = []
    for path in inputs:
        if path.is_dir():
            files = sorted(
                file
                for file in path.rglob("*")
                if file.suffix.lower() in SUFFIXES and file.is_file() and not _below(file, path, out)
            )
            if not files:
                raise UsageError(
                    f"there is no image in {path}", hint=f"known types: {', '.join(sorted(SUFFIXES))}"
                )
            found += [(file, file.relative_to(path)) for file in files]
        elif path.is_file():
            found.append((path, Path(path.name)))
        else:
            raise UsageError(f"there is no file or folder {path}", hint="check the path")
    return found


def _below(file: Path, folder: Path, out: Path) -> bool:
    """Whether a file lies in the results' folder, where that one is a part of the input folder."""
    inside, above = out.resolve(), folder.resolve()
    if inside == above or not inside.is_relative_to(above):
        return False
    return inside.relative_to(above) in file.relative_to(folder).parents


def output_names(found: Sequence[tuple[Path, Path]]) -> list[Path]:
    """Relative output paths without suffix; no mask or overlay gets the name of another one."""
    names = [relative.with_suffix("") for _, relative in found]
    if _clash(names):  # a.jpg beside a.png, or equal names from two folders
        names = [relative.with_name(relative.name.replace(".", "_")) for _, relative in found]
    if _clash(names):
        names = [name.with_name(f"{number:05d}_{name.name}") for number, name in enumerate(names)]
    return names


def _clash(names: Sequence[Path]) -> bool:
    overlays = [name.with_name(f"{name.name}_overlay") for name in names]
    return len({*names, *overlays}) < 2 * len(names)


def _keep_sources(found: Sequence[tuple[Path, Path]], names: Sequence[Path], out: Path) -> None:
    """Refuses a folder in which a result would replace one of the images."""
    sources = {path.resolve() for path, _ in found}
    for name in names:
        for end in (".png", "_overlay.png"):
            target = out / name.with_name(name.name + end)
            if target.resolve() in sources:
                raise UsageError(
                    f"the result {target} would replace an image of the same name",
                    hint="give another folder with --out",
                )


def predict_files(
    run: LoadedRun,
    inputs: Sequence[Path],
    out: Path,
    *,
    settings: InferenceSettings | None = None,
    overlays: bool = True,
    batch_size: int = 1,
    prompts: Path | None = None,
    reporter: Reporter | None = None,
    leave: Collection[Path] = (),
) -> Iterator[Prediction]:
    """Predicts a mask for each image and writes it as it is done.

    Images are read, and results written, by a thread each while the model computes.

    Args:
        run: a loaded run.
        inputs: image files and folders.
        out: folder for NAME.png (palette image whose index is the class) and NAME_overlay.png.
        settings: how images are fed; default: as in training.
        overlays: write the pictures for people too.
        batch_size: neighbouring images of equal size that enter the model at once.
        prompts: JSON file with the objects of each image, for models that are prompted; see
            `engine/prompts.py`.
        reporter: hears about progress and about files that could not be read.
        leave: files among the inputs that are not predicted here.

    Yields:
        The files of each image, in order. An image that cannot be read is reported and left out; the
        rest goes on.

    Raises:
        UsageError: there is nothing to predict; prompts are missing, wrong or not wanted.
        SegtuneError: no image at all could be read.
    """
    reporter = reporter or Reporter()
    found = [(path, relative) for path, relative in find_images(inputs, out) if path not in leave]
    names = output_names(found)
    _keep_sources(found, names, out)
    settings = settings or InferenceSettings.from_dict(run.description.inference)
    inference = Inference(run.tunable.model, settings)
    objects = dict(zip(names, _read_prompts(run, found, prompts), strict=False))
    rule = ChannelRule(bands=settings.bands, value_range=settings.value_range)
    failures: list[str] = []

    def predicted() -> Iterator[_Predicted]:
        done = 0
        for batch in _equal_sizes(_readable(found, names, run, rule, failures, reporter), batch_size):
            images = torch.stack([to_tensor(image) for _, _, image in batch])
            given = stack_prompts([objects[name] for _, name, _ in batch]) if objects else None
            predictions = inference.classes(images, given).numpy().astype(np.uint8)
            for (path, name, image), classes in zip(batch, predictions, strict=True):
                done += 1
                reporter.evaluating(done, len(found))
                yield _Predicted(path, out / name, image, classes)

    write = partial(_write, palette=run.description.classes, overlays=overlays)
    yield from ahead(write, predicted(), AHEAD)
    if len(failures) == len(found):
        raise SegtuneError(f"none of the {len(found)} images could be predicted: {failures[0]}")


def _read_prompts(run: LoadedRun, found: Sequence[tuple[Path, Path]], path: Path | None) -> list[Prompts]:
    """The prompts of each image, in order; empty for a model that takes none."""
    kinds = run.tunable.model.prompted
    if path is None and kinds:
        raise UsageError(
            f"{run.description.model} was tuned with prompts ({' and '.join(sorted(kinds))}) and needs them",
            hint=f"--prompts FILE.json with {FORMAT}",
        )
    if path is None:
        return []
    if not kinds:
        raise UsageError(f"{run.description.model} takes no prompts here", hint="leave --prompts out")
    prompts = read_prompts(path, run.description.classes, kinds)
    return prompts_for([relative for _, relative in found], prompts, path)


def _readable(
    found: Sequence[tuple[Path, Path]],
    names: Sequence[Path],
    run: LoadedRun,
    rule: ChannelRule,
    failures: list[str],
    reporter: Reporter,
) -> Iterator[tuple[Path, Path, Image]]:
    """Path, output name and pixels of each image that the model can take; the others are reported."""
    wanted = run.tunable.model.input_spec.channels
    images = ahead(partial(_read, rule=rule), (path for path, _ in found), AHEAD)
    for (path, _), name, image in zip(found, names, images, strict=True):
        if isinstance(image, SegtuneError):
            failures.append(str(image))
        elif image.shape[-1] != wanted:
            failures.append(f"{path} has {image.shape[-1]} channels, the model takes {wanted}")
        else:
            yield path, name, image
            continue
        reporter.note(f"left out: {failures[-1]}")


def _read(path: Path, rule: ChannelRule) -> Image | SegtuneError:
    """An image, or why it cannot be read."""
    try:
        return read_image(path, rule)
    except SegtuneError as error:
        return error


def _equal_sizes(
    images: Iterator[tuple[Path, Path, Image]], batch_size: int
) -> Iterator[list[tuple[Path, Path, Image]]]:
    held: list[tuple[Path, Path, Image]] = []
    for image in images:
        if held and (len(held) == batch_size or held[0][2].shape != image[2].shape):
            yield held
            held = []
        held.append(image)
    if held:
        yield held


def _write(made: _Predicted, palette: Classes, overlays: bool) -> Prediction:
    stem = made.stem
    mask_path = stem.with_name(f"{stem.name}.png")
    save_mask(mask_path, made.classes, palette)
    overlay_path = None
    if overlays:
        overlay_path = stem.with_name(f"{stem.name}_overlay.png")
        picture = overlay(display(made.image), made.classes, palette)
        write_with(overlay_path, PillowImage.fromarray(picture).save)
    return Prediction(image=made.path, mask=mask_path, overlay=overlay_path)


def save_mask(path: Path, classes: NDArray[np.uint8], palette: Classes) -> None:
    """Writes a class map [H, W] as a PNG whose index is the class and whose colours are the palette."""
    picture = PillowImage.fromarray(classes)
    colours = np.zeros((256, 3), np.uint8)
    colours[: palette.num_classes] = palette.palette
    picture.putpalette(colours.ravel().tolist())
    write_with(path, picture.save)


def display(image: Image) -> NDArray[np.uint8]:
    """An image [H, W, C] of any type as uint8 RGB for people: first three channels, scaled."""
    array = to_tensor(image)[:3].permute(1, 2, 0).numpy()
    if array.shape[-1] < 3:
        array = np.repeat(array[..., :1], 3, axis=-1)
    return (array * 255).round().astype(np.uint8)
