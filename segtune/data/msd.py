"""Medical Segmentation Decathlon and nnU-Net: `imagesTr`, `labelsTr` and `dataset.json`, NIfTI volumes.

Channels are the components of four-dimensional files, as the Decathlon has them, or files that end in
`_0000`, `_0001`, ..., as nnU-Net has them. Both kinds of `dataset.json` are read for the names of channels
and labels, and neither is needed. `imagesTs` is the test split where `labelsTs` lies beside it.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from segtune.data.base import DataIndex, Finding, Severity
from segtune.data.findings import file_finding
from segtune.data.settings import DataSettings
from segtune.data.volumes.build import volume_index
from segtune.data.volumes.labels import Labels
from segtune.data.volumes.nifti import is_volume, read_header, stem
from segtune.data.volumes.scan import Case, Scan
from segtune.errors import DataError

DESCRIPTION = "dataset.json"
CHANNEL = re.compile(r"^(.+)_(\d{4})$")


class MSD:
    """The format of the Medical Segmentation Decathlon and of nnU-Net."""

    def detect(self, root: Path) -> str | None:
        """Says what speaks for this format, or None."""
        if not (root / "imagesTr").is_dir() or not (root / "labelsTr").is_dir():
            return None
        if not any(is_volume(path) for path in (root / "imagesTr").iterdir()):
            return None
        described = f" and {DESCRIPTION}" if (root / DESCRIPTION).is_file() else f", no {DESCRIPTION}"
        return f"there are imagesTr, labelsTr with NIfTI volumes{described}"

    def read(self, root: Path, settings: DataSettings) -> DataIndex:
        """Pairs images with labels by name.

        Raises:
            DataError: `dataset.json` is damaged, or no image has a label.
        """
        description = _read_description(root)
        findings: list[Finding] = []
        cases = _labelled(root, "Tr", description, findings)
        if (root / "labelsTs").is_dir():
            test = _labelled(root, "Ts", description, findings)
            cases = [_in_split(case, "train" if test else None) for case in cases]
            cases += [_in_split(case, "test") for case in test]
        if not cases:
            raise DataError(
                f"{root}: no volume of imagesTr has one of the same name in labelsTr",
                hint="labels are called like their image, without _0000",
            )
        return volume_index(
            root,
            format="msd",
            cases=cases,
            labels=_labels(root, description),
            settings=settings,
            evidence=[f"{len(cases)} volumes with a label of the same name"],
            findings=findings,
        )

    def cases(self, root: Path) -> list[Case]:
        """Volumes to predict: those of imagesTs, else of imagesTr, else of the folder itself."""
        folder = next((root / n for n in ("imagesTs", "imagesTr") if (root / n).is_dir()), root)
        description = _read_description(root if folder != root else root.parent)
        labels = _label_files(folder.with_name(folder.name.replace("images", "labels")))
        return [replace(case, label=labels.get(case.name)) for case in _cases(folder, description)]


def channel_cases(paths: Sequence[Path], channels: Mapping[int, str]) -> list[Case]:
    """Cases of files by name: `_0000` endings are channels of one case, components of a file too.

    Args:
        paths: volumes of one folder.
        channels: index -> name, as far as it is known.

    Raises:
        DataError: a file of several components cannot be read.
    """
    matches = {path: CHANNEL.match(stem(path)) for path in paths}
    by_channel = bool(paths) and all(matches.values())
    files: dict[str, dict[str, Scan]] = defaultdict(dict)
    for path in sorted(paths):
        match = matches[path]
        if by_channel and match is not None:
            number = int(match[2])
            files[match[1]][channels.get(number, f"channel_{number}")] = Scan(path=path)
        else:
            count = _components(path, channels)
            for number in range(count):
                # One component of a file that should have several may be any of them.
                known = channels if count > 1 or len(channels) == 1 else {}
                name = known.get(number, f"channel_{number}" if count > 1 else "image")
                files[stem(path)][name] = Scan(path=path, component=number)
    return [Case(name=name, scans=scans) for name, scans in files.items()]


def _components(path: Path, channels: Mapping[int, str]) -> int:
    if len(channels) < 2:
        return 1
    try:
        shape = read_header(path).shape
    except DataError:
        return 1  # the survey says what is wrong with it
    return shape[3] if len(shape) == 4 else 1


def _cases(folder: Path, description: Mapping[str, Any]) -> list[Case]:
    paths = [path for path in sorted(folder.iterdir()) if is_volume(path)]
    return channel_cases(paths, _channels(description))


def _label_files(folder: Path) -> dict[str, Path]:
    """Labels by the name of their volume; none where there is no such folder."""
    if not folder.is_dir():
        return {}
    return {stem(path): path for path in sorted(folder.iterdir()) if is_volume(path)}


def _labelled(root: Path, end: str, description: Mapping[str, Any], findings: list[Finding]) -> list[Case]:
    cases = _cases(root / f"images{end}", description)
    labels = _label_files(root / f"labels{end}")
    findings += file_finding(
        Severity.WARNING,
        "unmatched-file",
        "volumes without a label are left out",
        root,
        [case.first.path for case in cases if case.name not in labels],
        "add the labels, or remove the volumes",
    )
    names = {case.name for case in cases}
    findings += file_finding(
        Severity.WARNING,
        "unmatched-file",
        "labels without a volume are left out",
        root,
        [path for name, path in labels.items() if name not in names],
        "add the volumes, or remove the labels",
    )
    return [replace(case, label=labels[case.name]) for case in cases if case.name in labels]


def _in_split(case: Case, split: str | None) -> Case:
    return replace(case, split=split)


def _read_description(root: Path) -> dict[str, Any]:
    path = root / DESCRIPTION
    if not path.is_file():
        return {}
    try:
        description = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError, RecursionError) as error:
        raise DataError(f"{path}: not readable as JSON: {error}", hint="use a copy, or remove it") from None
    if not isinstance(description, dict):
        raise DataError(f"{path}: holds no keys with values", hint="use a copy, or remove it")
    return description


def _channels(description: Mapping[str, Any]) -> dict[int, str]:
    """Channel -> name, from `channel_names` (nnU-Net) or `modality` (Decathlon)."""
    named = description.get("channel_names", description.get("modality"))
    if not isinstance(named, dict):
        return {}
    return {int(key): str(name) for key, name in named.items() if str(key).isdecimal()}


def _labels(root: Path, description: Mapping[str, Any]) -> Labels:
    """Names of the labels: {"0": "background"} (Decathlon) or {"background": 0} (nnU-Net)."""
    named = description.get("labels")
    if not isinstance(named, dict) or not named:
        return Labels()
    values: dict[str, list[int]] = {}
    ignored = None
    for key, other in named.items():
        decathlon = str(key).isdecimal() and isinstance(other, str)
        name, value = (other, int(key)) if decathlon else (str(key), other)
        members = value if isinstance(value, list) else [value]
        if not members or not all(type(v) is int and 0 <= v <= 65535 for v in members):
            raise DataError(
                f"{root / DESCRIPTION}: the label {name!r} has the value {value!r}",
                hint="labels are whole numbers, or lists of them",
            )
        if name == "ignore":
            ignored = members[0]
        else:
            values[name] = members
    if any(len(members) > 1 for members in values.values()):
        regions = {name: members for name, members in values.items() if members != [0]}
        ordered = sorted(regions, key=lambda name: -len(regions[name]))
        return Labels(
            names=None,
            regions={name: regions[name] for name in ordered},
            always_regions=True,
            ignored=ignored,
        )
    return Labels(names={members[0]: name for name, members in values.items()}, ignored=ignored)
