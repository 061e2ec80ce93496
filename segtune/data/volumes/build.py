"""Makes a data index of patients' volumes; what every format of volumes shares."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from segtune.data.base import DataIndex, Finding, Sample, Slice
from segtune.data.findings import number_of
from segtune.data.settings import DataSettings
from segtune.data.split import order_key
from segtune.data.volumes.labels import Labels, LabelSet, choose_labels
from segtune.data.volumes.nifti import read_header
from segtune.data.volumes.reader import VolumeReader
from segtune.data.volumes.scan import Case
from segtune.data.volumes.settings import VolumeRecipe
from segtune.data.volumes.survey import Survey, survey, values_of
from segtune.errors import DataError
from segtune.types import IGNORE_INDEX


def volume_index(
    root: Path,
    *,
    format: str,
    cases: Sequence[Case],
    labels: Labels,
    settings: DataSettings,
    evidence: Sequence[str],
    findings: Sequence[Finding] = (),
) -> DataIndex:
    """Looks at all files, finds out the classes and lists every slice.

    Args:
        root: folder that all files lie in.
        format: name of the format.
        cases: patients, each with a mask.
        labels: what the format knows of the masks' values.
        settings: with `dataset.yaml` merged in.
        evidence: how the files were found.
        findings: what was noticed on the way.

    Raises:
        DataError: no case is left whose files fit, or the masks cannot be understood.
        SettingsError: regions are asked for where there are none.
    """
    kept = [case for case in cases if _wanted(case.name, settings)]
    if not kept:
        raise DataError(
            f"data.include and data.exclude leave none of {len(cases)} patients of {root}",
            hint=f"they are globs of names such as {cases[0].name!r}",
        )
    names = settings.volume.modality_names or tuple(dict.fromkeys(n for case in kept for n in case.scans))
    found = survey(kept, names, settings.volume)
    noticed = found.findings(root, settings.volume)
    if not found.cases:
        raise DataError(
            "\n".join([f"{root}: none of {number_of(len(kept), 'patient')} can be used:",
                       *(f"  {finding.code}: {finding.message}" for finding in noticed)]),
            hint=noticed[0].hint,
        )  # fmt: skip
    label_set = choose_labels(labels, values_of(found.labels), settings)
    first = found.cases[0]
    assert first.label is not None
    recipe = VolumeRecipe(
        **{**settings.volume.model_dump(), "modality_names": names},
        format=format,
        label_values=label_set.values,
        label_type=_stored_type(first.label, label_set),
        classes_of=dict(label_set.classes_of),
        regions=dict(label_set.regions),
    )
    reader = VolumeReader(recipe=recipe, cases={case.name: case for case in found.cases})
    shown = "one image of each modality" if recipe.modalities == "separate" else "modalities as channels"
    depth = sum(reader.depth(case.name) for case in found.cases)
    return DataIndex(
        root=root,
        format=format,
        samples=tuple(sample for case in found.cases for sample in slices_of(case, reader)),
        classes=label_set.classes,
        reader=reader,
        channels=recipe.channels,
        evidence=(
            *evidence,
            f"{number_of(len(found.cases), 'patient')} with {', '.join(names)}, {depth} {recipe.axis} slices"
            + (f", {shown}" if len(names) > 1 else ""),
            label_set.evidence,
        ),
        findings=(*findings, *noticed),
        details={
            "modalities": list(names),
            "patients": len(found.cases),
            "values": {str(value): label for value, label in label_set.classes_of.items()},
        },
        settle=_Settle(found, label_set),
    )


def slices_of(case: Case, reader: VolumeReader) -> list[Sample]:
    """Every slice of a case as a sample, in order; of separate modalities one after the other."""
    separate = reader.recipe.modalities == "separate"
    modalities: list[str | None] = [*case.scans] if separate else [None]
    return [
        Sample(
            name=f"{case.name}/{position:03d}" + (f"-{modality}" if modality else ""),
            image=case.scans[modality].path if modality else case.first.path,
            mask=case.label,
            split=case.split,
            group=case.name,
            slice=Slice(case=case.name, position=position, modality=modality),
        )
        for position in range(reader.depth(case.name))
        for modality in modalities
    ]


@dataclass(frozen=True)
class _Settle:
    """Chooses the slices to train on, and the crop that holds every training volume's body."""

    found: Survey
    label_set: LabelSet

    def __call__(self, index: DataIndex) -> DataIndex:
        assert isinstance(index.reader, VolumeReader)
        recipe = index.reader.recipe
        lines = []
        if recipe.crop == "brain":
            crop = self._crop(index)
            recipe = recipe.model_copy(update={"crop": crop})
            lines.append(f"crop: {crop[0]} x {crop[1]} pixels hold the body of every training volume")
        chosen = {
            case: chosen_slices(facts["values"], self.label_set.classes_of, recipe, case)
            for case, facts in self.found.labels.items()
        }
        samples = tuple(
            replace(sample, trained=sample.slice.position in chosen[sample.case])
            for sample in index.samples
            if sample.slice is not None
        )
        result = replace(index, samples=samples, reader=replace(index.reader, recipe=recipe), settle=None)
        total = len(result.split("train"))
        if recipe.slices != "all":
            lines.append(
                f"slices to train on: {recipe.slices}, {len(result.training)} of {total}; scores count all"
            )
        return replace(result, evidence=(*index.evidence, *lines))

    def _crop(self, index: DataIndex) -> tuple[int, int]:
        cases = {sample.case for sample in index.split("train")} or {sample.case for sample in index.samples}
        boxes = np.array(
            [facts["box"] for case in sorted(cases) for facts in self.found.scans[case].values()]
        )
        height, width = (boxes[:, 1] - boxes[:, 0]).max(), (boxes[:, 3] - boxes[:, 2]).max()
        return int(height), int(width)


def chosen_slices(
    values: Mapping[str, Sequence[int]], classes_of: Mapping[int, int], recipe: VolumeRecipe, case: str
) -> set[int]:
    """Positions of the slices that training uses of one volume.

    Args:
        values: value in the mask, as text -> voxels in each slice.
        classes_of: value -> class or the ignore index.
        recipe: which to choose.
        case: name of the volume; a random choice depends on it alone.
    """
    counts = np.array([of_slice for value, of_slice in values.items()
                       if classes_of.get(int(value), 0) not in (0, IGNORE_INDEX)])  # fmt: skip
    depth = len(next(iter(values.values())))
    area = counts.sum(axis=0) if len(counts) else np.zeros(depth, np.int64)
    if recipe.slices == "all":
        return set(range(depth))
    filled = [int(position) for position in np.flatnonzero(area)]
    if recipe.slices == "every-2nd":
        return set(filled[::2])
    if recipe.slices == "random-n":
        ordered = sorted(filled, key=lambda position: order_key(0, f"{case}/{position}"))
        return set(ordered[: recipe.num_slices])
    if recipe.slices == "max-area":
        return {int(area.argmax())} if filled else set()
    return set(filled)


def _stored_type(label: Path, label_set: LabelSet) -> str:
    """The masks' own type; a wider one where it cannot hold the values."""
    name = read_header(label).dtype
    kind = np.dtype(name)
    if kind.kind not in "iuf":
        return "uint16"
    if kind.kind in "iu" and max(label_set.values) > np.iinfo(kind).max:
        return "uint16"
    return name


def _wanted(name: str, settings: DataSettings) -> bool:
    included = not settings.include or any(fnmatch.fnmatchcase(name, glob) for glob in settings.include)
    return included and not any(fnmatch.fnmatchcase(name, glob) for glob in settings.exclude)
