"""Divides samples into train, val and test: by share, by group, the same on every machine."""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from segtune.data.base import SPLITS, Finding, Sample, Severity
from segtune.data.description import ListedSplit
from segtune.data.settings import DataSettings
from segtune.errors import UsageError

SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "tr": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
    "ts": "test",
}
"""What people call the splits -> what they are called here."""


def order_key(seed: int, text: str) -> bytes:
    """A key that sorts texts in an order that looks random and depends on nothing but its arguments."""
    return hashlib.sha256(f"{seed}:{text}".encode("utf-8", "surrogatepass")).digest()


def set_groups(samples: Sequence[Sample], pattern: str | None) -> tuple[list[Sample], list[str]]:
    """Gives every sample the group that a regular expression finds in its name.

    Returns:
        The samples, and the names of those that the expression does not match (they keep the
        group they had).

    Raises:
        UsageError: the expression is not valid or has no group.
    """
    if pattern is None:
        return list(samples), []
    try:
        compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise UsageError(
            f"data.group: {pattern!r} is no regular expression: {error}", hint=r"e.g. '^(clip\d+)_'"
        ) from None
    if compiled.groups < 1:
        raise UsageError(
            f"data.group: {pattern!r} has no group",
            hint=f"put the part that names the group in round brackets, e.g. '({pattern})'",
        )
    result, unmatched = [], []
    for sample in samples:
        match = compiled.search(sample.name)
        if match is None or match.group(1) is None:
            unmatched.append(sample.name)
            result.append(sample)
        else:
            result.append(replace(sample, group=match.group(1)))
    return result, unmatched


def listed_split(samples: Sequence[Sample], rule: ListedSplit) -> tuple[list[Sample], list[Finding]]:
    """Gives every sample the split whose list of names or globs it matches, None where none does."""
    findings = []
    result = []
    used: Counter[str] = Counter()
    twice = []
    for sample in samples:
        matching = []
        for split in SPLITS:
            patterns = [p for p in getattr(rule, split) if fnmatch.fnmatchcase(sample.case, p)]
            used.update(patterns)
            if patterns:
                matching.append(split)
        if len(matching) > 1:
            twice.append(sample.case)
        result.append(replace(sample, split=matching[0] if matching else None))
    if twice:
        findings.append(
            Finding(
                severity=Severity.ERROR,
                code="sample-in-two-splits",
                message=f"{len(set(twice))} samples match the lists of more than one split in dataset.yaml",
                files=tuple(dict.fromkeys(twice)),
                hint="make the lists exclude each other",
            )
        )
    idle = [p for split in SPLITS for p in getattr(rule, split) if not used[p]]
    if idle:
        findings.append(
            Finding(
                severity=Severity.WARNING,
                code="split-list-without-match",
                message=f"{len(idle)} entries of `split` in dataset.yaml match no sample: "
                + ", ".join(idle[:5]),
                hint="entries are names as shown by the data check, without the ending, or globs of them",
            )
        )
    left = list(dict.fromkeys(sample.case for sample in result if sample.split is None))
    if left:
        findings.append(
            Finding(
                severity=Severity.WARNING,
                code="sample-without-split",
                message=f"{len(left)} samples match no list of `split` in dataset.yaml and are left out",
                files=tuple(left),
                hint="add them to a list",
            )
        )
    return [sample for sample in result if sample.split is not None], findings


def assign(samples: Sequence[Sample], shares: Mapping[str, float], seed: int) -> list[Sample]:
    """Gives every sample a split; samples of one group stay together.

    Groups are taken from the largest to the smallest, equal ones in an order given by the seed
    alone, and each goes where most samples are still missing. Train is never empty, and with
    three groups or more no split with a share is.

    Args:
        samples: all of them; the splits they have are not looked at.
        shares: split -> share of the samples; what is left of 1 is for "train".
        seed: of the order.
    """
    wanted = {"train": 1.0 - sum(shares.values()), **shares}
    return _spread(samples, {split: wanted[split] for split in SPLITS if split in wanted}, seed)


def _spread(samples: Sequence[Sample], shares: Mapping[str, float], seed: int) -> list[Sample]:
    """The same for parts of any name; the first parts are the last to stay empty."""
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[_group_key(sample)].append(sample)
    ordered = sorted(groups, key=lambda group: (-len(groups[group]), order_key(seed, group)))
    missing: dict[str, float] = {part: share * len(samples) for part, share in shares.items() if share > 0}
    chosen: dict[str, str] = {}
    empty = list(missing)
    for place, group in enumerate(ordered):
        remaining = len(ordered) - place
        # The last groups are kept for splits that would stay empty; with too few, train goes first.
        if (len(chosen) == 0 or remaining <= len(empty)) and empty:
            split = empty[0]
        else:
            split = max(missing, key=lambda name: missing[name])
        chosen[group] = split
        missing[split] -= len(groups[group])
        if split in empty:
            empty.remove(split)
    return [replace(sample, split=chosen[_group_key(sample)]) for sample in samples]


def split_samples(
    samples: Sequence[Sample], settings: DataSettings
) -> tuple[list[Sample], list[str], list[Finding]]:
    """Fills in the splits that the data does not say.

    Returns:
        Samples with a split each, evidence lines, findings.

    Raises:
        UsageError: the shares leave nothing to train on.
    """
    val, test = settings.val_fraction, settings.test_fraction
    if val + test >= 1:
        raise UsageError(
            f"data.val_fraction and data.test_fraction are {val} and {test}: nothing is left to train on",
            hint="their sum has to stay below 1",
        )
    given = {sample.split for sample in samples} - {None}
    evidence: list[str] = []
    findings: list[Finding] = []
    if settings.folds is not None:
        result = _fold(samples, settings, settings.folds)
        evidence.append(
            f"fold {settings.fold} of {settings.folds} is for testing; given splits are left aside;"
            f" {_how(samples, settings)}"
        )
    elif not given:
        result = assign(samples, {"val": val, "test": test}, settings.split_seed)
        evidence.append(f"no split given: {_how(samples, settings)}")
    elif "train" in given and "val" not in given and val > 0:
        train = [sample for sample in samples if sample.split == "train"]
        cut = {sample.name: sample for sample in assign(train, {"val": val}, settings.split_seed)}
        result = [cut.get(sample.name, sample) for sample in samples]
        evidence.append(f"no val split given: cut from train, {_how(train, settings)}")
    else:
        result = list(samples)
        evidence.append("splits as the data gives them")
    if settings.train_on == "train+val":
        result = [replace(sample, split="train") if sample.split == "val" else sample for sample in result]
        evidence.append("data.train_on=train+val: validation images are trained on too")
    findings += _torn_groups(result)
    sizes = Counter(sample.split for sample in result)
    evidence[-1] += ": " + ", ".join(f"{split} {sizes[split]}" for split in SPLITS if sizes[split])
    return result, evidence, findings


def _fold(samples: Sequence[Sample], settings: DataSettings, num_folds: int) -> list[Sample]:
    """Cross-validation: one fold to test on, a share of the others to validate on.

    Raises:
        UsageError: there is no such fold, or there are fewer groups than folds.
    """
    if settings.fold >= num_folds:
        raise UsageError(
            f"data.fold={settings.fold}, and data.folds={num_folds}",
            hint=f"folds are counted from 0 to {num_folds - 1}",
        )
    groups = {_group_key(sample) for sample in samples}
    if len(groups) < num_folds:
        raise UsageError(
            f"data.folds={num_folds}, and there are {len(groups)} groups (or single samples) to divide",
            hint=f"at most {len(groups)} folds",
        )
    names = [f"fold {number}" for number in range(num_folds)]
    shares = dict.fromkeys(names, 1 / num_folds)
    folded = _spread(samples, shares, settings.split_seed)
    test = [sample for sample in folded if sample.split == names[settings.fold]]
    rest = [sample for sample in folded if sample.split != names[settings.fold]]
    cut = assign(rest, {"val": settings.val_fraction}, settings.split_seed)
    found = {sample.name: sample for sample in cut} | {s.name: replace(s, split="test") for s in test}
    return [found[sample.name] for sample in samples]


def _group_key(sample: Sample) -> str:
    # The prefixes keep a group and a sample of the same name apart.
    return f"sample:{sample.name}" if sample.group is None else f"group:{sample.group}"


def _how(samples: Sequence[Sample], settings: DataSettings) -> str:
    groups = {sample.group for sample in samples} - {None}
    unit = f"{len(groups)} whole groups" if groups else "single samples"
    return f"{unit} by share, seed {settings.split_seed}"


def _torn_groups(samples: Sequence[Sample]) -> list[Finding]:
    places: dict[str, set[str]] = defaultdict(set)
    for sample in samples:
        if sample.group is not None and sample.split is not None:
            places[sample.group].add(sample.split)
    torn = sorted(group for group, splits in places.items() if len(splits) > 1)
    if not torn:
        return []
    return [
        Finding(
            severity=Severity.WARNING,
            code="group-across-splits",
            message=f"{len(torn)} of {len(places)} groups have samples in more than one split: "
            + ", ".join(torn[:5]),
            hint="scores on such a split are too good; remove the given splits to divide by group",
        )
    ]
