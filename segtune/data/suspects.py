"""Names images whose masks a trained model finds unlikely: candidates of wrong labels.

The rule knows nothing of models: it takes the mean loss of each image. In every split alone, an image stands
out where the logarithm of its loss lies more than 3 deviations above the split's median; the deviation is
1.4826 times the median absolute deviation, which outliers hardly move, and at least 0.1. Losses are
compared as logarithms because they are spread by factors: those of hard images reach far.

Source: ranking by loss finds mislabelled examples where a model has not learnt them by heart, e.g. Lad and
Mueller, "Estimating label quality and errors in semantic segmentation data via any model", 2023.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from segtune.data.base import SPLITS, DataIndex, Finding, Mask, Sample, Severity
from segtune.data.findings import relative

LIMIT = 3.0
"""Deviations above the median from which on an image stands out."""
NARROWEST = 0.1
"""Smallest deviation of the logarithms: images of equal loss are no outliers for their last digits."""
FEWEST = 20
"""Of splits with fewer images nothing is said."""
SMALLEST_LOSS = 1e-6
NORMAL = 1.4826
"""Standard deviations of a normal distribution in one median absolute deviation."""


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """An image whose mask may be wrong."""

    sample: Sample
    """Of a volume one of its slices."""
    loss: float
    """Mean cross-entropy of its pixels."""
    median: float
    """Of the losses of its split."""
    deviations: float
    """Distance of the loss from the median, both as logarithms, in deviations."""
    predicted: Mask | None = None
    """The model's class map, [H, W], where it was kept."""


def find_suspects(samples: Sequence[Sample], losses: Mapping[str, float]) -> list[Suspect]:
    """The images that stand out of their split, the most unlikely first.

    Args:
        samples: with a split each.
        losses: image or case -> mean loss; those without a number (no pixel counts) are left out.
    """
    found = []
    for split in SPLITS:
        own = {s.case: s for s in samples if s.split == split and math.isfinite(losses.get(s.case, math.nan))}
        if len(own) < FEWEST:
            continue
        logarithms = {case: math.log(max(losses[case], SMALLEST_LOSS)) for case in own}
        middle = median(logarithms.values())
        deviation = NORMAL * median(abs(value - middle) for value in logarithms.values())
        deviation = max(deviation, NARROWEST)
        found += [
            Suspect(
                sample=sample,
                loss=losses[case],
                median=math.exp(middle),
                deviations=(logarithms[case] - middle) / deviation,
            )
            for case, sample in own.items()
            if logarithms[case] - middle > LIMIT * deviation
        ]
    return sorted(found, key=lambda suspect: -suspect.deviations)


def suspect_findings(index: DataIndex, suspects: Sequence[Suspect]) -> list[Finding]:
    """A finding for each split that has such images."""
    findings = []
    for split in SPLITS:
        own = [suspect for suspect in suspects if suspect.sample.split == split]
        if not own:
            continue
        total = len({sample.case for sample in index.split(split)})
        shown = ", ".join(f"{suspect.sample.case} ({suspect.loss:.2f})" for suspect in own[:3])
        more = f" and {len(own) - 3} more" if len(own) > 3 else ""
        findings.append(
            Finding(
                severity=Severity.WARNING,
                code="suspect-labels",
                message=f"{split} images whose masks the run finds unlikely ({len(own)} of {total}; median "
                f"loss of the split {own[0].median:.2f}): {shown}{more}",
                files=relative(index.root, [suspect.sample.image for suspect in own]),
                hint="look at them (--html shows each beside the prediction): the mask may be wrong, or the "
                "image hard; correct such masks, or leave them out with data.exclude",
            )
        )
    return findings
