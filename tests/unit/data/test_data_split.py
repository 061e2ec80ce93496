"""Splits: shares, groups, seeds, and that they are the same on every machine."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segtune.data.base import Sample
from segtune.data.settings import DataSettings
from segtune.data.split import assign, set_groups, split_samples
from segtune.errors import UsageError


def sample(name: str, split: str | None = None, group: str | None = None) -> Sample:
    return Sample(name=name, image=Path(f"{name}.png"), mask=Path(f"{name}.png"), split=split, group=group)


def sizes(samples) -> Counter:
    return Counter(sample.split for sample in samples)


def test_the_order_is_pinned():
    """The split of a published result must not change with a version of anything."""
    result = assign([sample(str(i)) for i in range(10)], {"val": 0.2, "test": 0.2}, seed=0)
    assert [s.name for s in result if s.split == "val"] == ["2", "6"]
    assert [s.name for s in result if s.split == "test"] == ["0", "3"]


def test_shares_and_seeds():
    samples = [sample(f"s{i}") for i in range(100)]
    result = assign(samples, {"val": 0.15, "test": 0.15}, seed=0)
    assert sizes(result) == {"train": 70, "val": 15, "test": 15}
    assert result == assign(samples, {"val": 0.15, "test": 0.15}, seed=0)
    assert result != assign(samples, {"val": 0.15, "test": 0.15}, seed=1)
    by_name = {s.name: s.split for s in result}
    backwards = assign(samples[::-1], {"val": 0.15, "test": 0.15}, seed=0)
    assert {s.name: s.split for s in backwards} == by_name


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (1, {"train": 1}),
        (2, {"train": 1, "val": 1}),
        (3, {"train": 1, "val": 1, "test": 1}),
        (4, {"train": 2, "val": 1, "test": 1}),
    ],
)
def test_few_samples(number, expected):
    result = assign([sample(str(i)) for i in range(number)], {"val": 0.15, "test": 0.15}, seed=0)
    assert sizes(result) == expected


@settings(max_examples=60, deadline=None)
@given(
    group_sizes=st.lists(st.integers(1, 30), min_size=1, max_size=12),
    val=st.floats(0, 0.45),
    test=st.floats(0, 0.45),
    seed=st.integers(0, 99),
)
def test_groups_are_never_torn(group_sizes, val, test, seed):
    samples = [sample(f"{g}_{i}", group=f"g{g}") for g, size in enumerate(group_sizes) for i in range(size)]
    result = assign(samples, {"val": val, "test": test}, seed=seed)
    places: dict[str, set] = {}
    for s in result:
        places.setdefault(s.group, set()).add(s.split)
    assert all(len(splits) == 1 for splits in places.values())
    assert sizes(result)["train"] > 0
    if len(group_sizes) >= 3:
        assert all(sizes(result)[split] > 0 for split, share in (("val", val), ("test", test)) if share > 0)
    assert len(result) == len(samples)


def test_groups_are_balanced_by_size():
    samples = [
        sample(f"{g}_{i}", group=str(g))
        for g, size in enumerate([50, 10, 10, 10, 10, 10])
        for i in range(size)
    ]
    assert sizes(assign(samples, {"val": 0.2, "test": 0.1}, seed=3)) == {"train": 70, "val": 20, "test": 10}


def test_val_is_cut_from_train_where_only_test_is_given():
    samples = [sample(f"a{i}", "train") for i in range(20)] + [sample(f"b{i}", "test") for i in range(5)]
    result, evidence, _ = split_samples(samples, DataSettings())
    assert sizes(result) == {"train": 17, "val": 3, "test": 5}
    assert "cut from train" in evidence[0] and "train 17, val 3, test 5" in evidence[0]
    result, evidence, _ = split_samples(samples, DataSettings(val_fraction=0))
    assert sizes(result) == {"train": 20, "test": 5}


def test_given_splits_stay():
    samples = [sample("a", "train"), sample("b", "val")]
    result, evidence, findings = split_samples(samples, DataSettings())
    assert result == samples and not findings and "as the data gives them" in evidence[0]


def test_shares_that_leave_nothing():
    with pytest.raises(UsageError, match="nothing is left"):
        split_samples([sample("a")], DataSettings(val_fraction=0.6, test_fraction=0.5))


def test_set_groups():
    result, unmatched = set_groups([sample("clip1_2"), sample("odd", group="own")], r"^(clip\d+)_")
    assert [s.group for s in result] == ["clip1", "own"] and unmatched == ["odd"]
    with pytest.raises(UsageError, match="no regular expression"):
        set_groups([], "(")
    with pytest.raises(UsageError, match="has no group"):
        set_groups([], "clip")


def test_a_group_and_a_sample_of_the_same_name_are_two_things():
    samples = [sample("x", group=None), sample("y", group="x"), sample("z", group="x")]
    result = assign(samples, {"val": 0.34}, seed=0)
    assert result[1].split == result[2].split != result[0].split
