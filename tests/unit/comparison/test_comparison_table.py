"""The table in every form, and the advice, from results written by hand."""

from __future__ import annotations

import csv
import io

from segtune.comparison.advice import advise
from segtune.comparison.results import Comparison, RowResult
from segtune.comparison.statistics import Interval
from segtune.comparison.table import cells, header, legend, size_text, to_csv, to_latex, to_markdown


def row(label: str, mean: float | None, standing: str = "", **values: object) -> RowResult:
    known: dict[str, object] = {
        "scores": [] if mean is None else [mean, mean],
        "mean": mean,
        "std": None if mean is None else 0.001,
        "low": None if mean is None else mean - 0.02,
        "high": None if mean is None else mean + 0.02,
        "parameters_total": 1000,
        "parameters_trainable": 100,
        "adapter_bytes": 2048,
        "minutes": 1.5,
        "images_per_second": 10.0,
        "peak_bytes": 2**30,
        "unmerged_ms": 3.0,
        "merged_ms": 2.0,
        **values,
    }
    return RowResult(label=label, model="unet", method=label.split(maxsplit=1)[0], standing=standing, **known)  # type: ignore[arg-type]


def comparison(*rows: RowResult, seeds: int = 3, split: str = "test", num_groups: int = 0) -> Comparison:
    return Comparison(
        rows=list(rows), score="miou", split=split, num_images=100, unit="image", num_units=100, seeds=seeds,
        folds=None, num_groups=num_groups, cells=[], trials=[], versions={}, peak_of="process", data="data",
    )  # fmt: skip


FULL = row("full", 0.8, "best", parameters_trainable=1000, adapter_bytes=4096, merged_ms=2.0)
LORA = row("lora rank=4", 0.79, "not distinguishable", behind=Interval(0.01, -0.005, 0.02), minutes=1.2)
HEAD = row("head", 0.7, "behind", behind=Interval(0.1, 0.05, 0.15), merged_ms=None)
BROKEN = row("ia3", None, failures=["2 x no site"], parameters_trainable=None)
BASE = row("base", 0.2, "behind", behind=Interval(0.6, 0.5, 0.7))


def test_each_line_has_a_cell_for_each_column() -> None:
    found = comparison(FULL, LORA, HEAD, BROKEN)
    assert {len(cells(r)) for r in found.rows} == {len(header(found))}
    assert cells(FULL)[1] == "0.8000 ± 0.0010**"
    assert cells(LORA)[1] == "0.7900 ± 0.0010*"
    assert cells(HEAD)[-1] == "-"
    assert cells(BROKEN)[1] == "failed: 2 x no site"


def test_csv_holds_every_number_unrounded() -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(comparison(FULL, BROKEN)))))
    assert float(rows[0]["mean"]) == 0.8
    assert rows[1]["mean"] == "" and rows[1]["failures"] == "2 x no site"


def test_latex_is_escaped_and_marks_the_best() -> None:
    text = to_latex(comparison(FULL, row("a_b&c", 0.1)))
    assert r"\textbf{0.8000 $\pm$ 0.0010}" in text
    assert r"a\_b\&c" in text
    assert text.count(r"\\") == 3
    assert r"95 \% interval" in text


def test_markdown_has_one_line_for_each_row() -> None:
    text = to_markdown(comparison(FULL, LORA), ["Best."])
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 4
    assert len({line.count(" | ") for line in table[:1] + table[2:]}) == 1


def test_sizes_are_in_powers_of_1024() -> None:
    assert [size_text(n) for n in (12, 2048, 3 * 2**20, 5 * 2**30)] == [
        "12 B",
        "2.0 KiB",
        "3.0 MiB",
        "5.00 GiB",
    ]


def test_advice_names_the_equals_and_what_each_saves() -> None:
    said = " ".join(advise(comparison(FULL, LORA, HEAD, BASE)))
    assert "Best miou: full, 0.8000 ± 0.0010." in said
    assert "Not distinguishable" in said and "lora rank=4 (0.7900 ± 0.0010, 0.0100 lower" in said
    assert "lora rank=4 trains the fewest parameters (100) and leaves the smallest file (2.0 KiB)" in said
    assert "head" not in said  # it is behind
    assert "Before tuning (base) the score was 0.2000: tuning adds 0.6000." in said


def test_advice_says_what_it_does_not_know() -> None:
    said = " ".join(advise(comparison(FULL, BROKEN, seeds=1)))
    assert "With 1 seed the spread" in said
    assert "Without a result: ia3." in said
    assert advise(comparison(BROKEN)) == ["No run has finished: there is nothing to recommend."]


def test_the_legend_warns_of_groups_and_of_a_missing_test_split() -> None:
    assert any("100 val images" in line for line in legend(comparison(FULL, split="val")))
    assert any("too good" in line for line in legend(comparison(FULL, split="val")))
    assert any("come from 5 groups" in line for line in legend(comparison(FULL, num_groups=5)))
    assert not any("groups" in line for line in legend(comparison(FULL, num_groups=100)))
