"""Candidates of wrong labels: what a finished run makes of the masks that it was trained on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from segtune.data.base import DataIndex, Mask, Sample
from segtune.data.check_report import CheckReport
from segtune.data.loading import LoadedSample, eval_loader
from segtune.data.prompts import PromptSource
from segtune.data.settings import DataSettings
from segtune.data.suspects import find_suspects
from segtune.engine.infer import Inference
from segtune.engine.reporter import Reporter
from segtune.engine.run import load_run
from segtune.engine.session import inference_settings, require_same_classes

SEEN = ("train", "val")
"""Splits that a run may be asked about; what it says of test images must not change them."""
KEPT = 24
"""Suspects whose predicted class maps are kept."""
LONGEST = 512
"""Pixels of the longer side from which on a class map that is kept is thinned out."""


def with_suspects(
    report: CheckReport,
    run: Path,
    settings: DataSettings,
    *,
    weights: str | None = None,
    reporter: Reporter | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CheckReport:
    """A data check's report with the images whose masks a run finds unlikely.

    Args:
        report: of the data that the run was trained on.
        run: folder of a run, or of an adapter.
        settings: that the data was read with.
        weights: where the base's weights lie now, if not where they were.
        reporter: hears of classes with other names.
        progress: called with the number of images done and of all.

    Raises:
        UsageError: not a run.
        DataError: the data has other classes or channels than the model, or files cannot be read.
        AdapterError: the base's weights are not those that were tuned.
    """
    loaded = load_run(run, weights=weights)
    index = report.usable
    require_same_classes(index, loaded.description, reporter or Reporter())
    inference = Inference(loaded.tunable.model, inference_settings(loaded, {}))
    samples = [s for split in SEEN for s in index.split(split) if s.mask is not None]
    if not samples:
        return report
    found = find_suspects(samples, image_losses(inference, index, samples, settings, progress))
    shown = [suspect.sample for suspect in found[:KEPT]]
    answers = _answers(inference, index, shown, settings) if shown else iter(())
    predicted = [_thin(answer.argmax(dim=0).numpy().astype(np.uint8)) for _, answer in answers]
    suspects = [replace(s, predicted=p) for s, p in zip(found[:KEPT], predicted, strict=True)]
    return report.with_suspects((*suspects, *found[KEPT:]))


def image_losses(
    inference: Inference,
    index: DataIndex,
    samples: Sequence[Sample],
    settings: DataSettings,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """The mean cross-entropy of each image's, or volume's, pixels that count.

    Args:
        inference: the model with its way of being fed.
        index: the data.
        samples: at least one, each with a mask.
        settings: workers, and how prompts are drawn from masks.
        progress: called with the number of images done and of all.

    Returns:
        Case -> loss; not a number where no pixel counts.
    """
    sums: dict[str, float] = defaultdict(float)
    pixels: dict[str, int] = defaultdict(int)
    total = len({sample.case for sample in samples})
    answers = _answers(inference, index, samples, settings)
    for sample, (loaded, probabilities) in zip(samples, answers, strict=True):
        valid = loaded.mask != index.classes.ignore_index
        labels = torch.where(valid, loaded.mask, 0).long()
        chosen = probabilities.gather(0, labels[None])[0][valid]
        sums[sample.case] -= chosen.double().clamp_min(1e-12).log().sum().item()
        pixels[sample.case] += int(valid.sum())
        if progress is not None:
            progress(len(sums), total)
    return {case: sums[case] / pixels[case] if pixels[case] else float("nan") for case in sums}


def _answers(
    inference: Inference, index: DataIndex, samples: Sequence[Sample], settings: DataSettings
) -> Iterator[tuple[LoadedSample, Tensor]]:
    """Each sample with its probabilities [K, H, W], one at a time."""
    prompted = inference.model.prompted
    prompts = PromptSource(settings, prompted, index.classes.ignore_index) if prompted else None
    for loaded in eval_loader(index, samples, settings, prompts):
        yield loaded, inference.probabilities(loaded.image[None], loaded.prompts)[0].cpu()


def _thin(classes: Mask) -> Mask:
    step = max(1, -(-max(classes.shape) // LONGEST))
    return np.ascontiguousarray(classes[::step, ::step])
