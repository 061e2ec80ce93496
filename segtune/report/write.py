"""`segtune report`: figures and one page about runs, or about a comparison."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from segtune.engine.files import write_text, write_with
from segtune.errors import SegtuneError, UsageError
from segtune.report import attention, comparison_figures, figures
from segtune.report.cases import draw_cases
from segtune.report.page import Block, Picture, Section, Table, image_element, render, svg_of
from segtune.report.records import RunRecord, read_run, read_runs
from segtune.report.style import figure_style

PAGE = "report.html"
FORMATS = ("svg", "png", "pdf")
MOST_IN_A_PANEL = 5
"""Runs whose masks stand side by side."""

Told = Callable[[str], None]


def write_report(
    paths: Sequence[Path],
    out: Path,
    *,
    formats: Sequence[str] = ("svg", "png"),
    panels: bool = True,
    tell: Told = lambda line: None,
) -> Path:
    """Writes the page and its figures.

    Args:
        paths: folders of runs, or one folder of a comparison.
        out: folder for report.html and figures/.
        formats: of the figures beside the page: "svg", "png", "pdf".
        panels: predict the best, the median and the worst image with every run and show them.
        tell: hears what is left out, and why.

    Returns:
        The page.

    Raises:
        UsageError: a folder is neither.
        MissingExtraError: matplotlib is not installed.
    """
    comparison = _comparison_of(paths)
    runs = read_runs(paths) if comparison is None else _runs_of(paths[0], comparison)
    pictures = _Pictures(out / "figures", formats)
    sections = []
    with figure_style():
        if comparison is not None:
            sections += _comparison_sections(comparison, pictures)
        else:
            sections.append(Section("Scores and costs", table=_run_table(runs)))
        if panels:
            sections.append(_cases(runs, out, tell))
        for name, (title, draw) in figures.RUN_FIGURES.items():
            sections.append(Section(title, pictures=pictures.add(name, title, draw(runs))))
        sections.append(_attention(runs, pictures))
        confusions = [
            picture
            for number, run in enumerate(runs)
            for picture in pictures.add(
                f"confusion-{number}", f"Confusion matrix of {run.label}", figures.confusion_matrix(run)
            )
        ]
        sections.append(Section("Confusion", pictures=confusions))
    sections.append(_repeat(runs, comparison))
    title, subtitle = _titles(runs, comparison)
    advice = comparison["advice"] if comparison is not None else []
    page = out / PAGE
    write_text(page, render(title, subtitle, advice, sections))
    return page


class _Pictures:
    """Figures on disk and as markup."""

    def __init__(self, folder: Path, formats: Sequence[str]) -> None:
        unknown = [name for name in formats if name not in FORMATS]
        if unknown:
            raise UsageError(
                f"there is no figure format {unknown[0]!r}", hint=f"formats: {', '.join(FORMATS)}"
            )
        self.folder = folder
        self.formats = formats

    def add(self, name: str, caption: str, figure: Any) -> list[Picture]:
        """Writes a figure; none where there was nothing to draw."""
        if figure is None:
            return []
        markup = svg_of(figure)  # first: each drawing moves the layout by a hair
        for ending in self.formats:
            options = {"metadata": {"Date": None}} if ending == "svg" else {}
            write_with(self.folder / f"{name}.{ending}", lambda path: figure.savefig(path, **options))  # noqa: B023
        return [Picture(caption, markup)]


def _comparison_of(paths: Sequence[Path]) -> dict[str, Any] | None:
    found = [path for path in paths if (path / "compare.json").is_file()]
    if not found:
        return None
    if len(paths) > 1:
        raise UsageError("a comparison is reported alone", hint=f"segtune report {found[0]}")
    content: dict[str, Any] = json.loads((found[0] / "compare.json").read_text(encoding="utf-8"))
    return content


def _runs_of(folder: Path, comparison: dict[str, Any]) -> list[RunRecord]:
    """The first finished run of each row, the best row first."""
    records = []
    for row in comparison["rows"]:
        name = next(
            (
                cell["name"]
                for cell in comparison["cells"]
                if cell["row"] == row["label"] and not cell["failure"]
            ),
            None,
        )
        if name is not None and (folder / "runs" / name / "result.json").is_file():
            records.append(read_run(folder / "runs" / name, row["label"]))
    return records


def _comparison_sections(comparison: dict[str, Any], pictures: _Pictures) -> list[Section]:
    rows, score = comparison["rows"], comparison["score"]
    best = frozenset(i for i, row in enumerate(rows) if row["standing"] in ("best", "not distinguishable"))
    table = comparison["table"]
    quality = Section(
        "Which method",
        table=Table(table["header"], table["rows"], best),
        notes=list(comparison["legend"]),
        pictures=pictures.add(
            "scores", "Score of each row", comparison_figures.comparison_bars(rows, score, comparison["unit"])
        ),
    )
    cost = Section("At what cost")
    for name, key, title, unit, log in (
        ("score-by-parameters", "parameters_trainable", "trained parameters", 1.0, True),
        ("score-by-memory", "peak_bytes", f"peak memory of the {comparison['peak_of']}, GiB", 2.0**30, False),
        ("score-by-minutes", "minutes", "minutes of training", 1.0, False),
    ):
        figure = comparison_figures.trade_off(rows, score, key, title, unit, log=log)
        cost.pictures += pictures.add(name, f"Score against {title}", figure)
    cost.pictures += pictures.add(
        "score-by-rank", "Score by rank", comparison_figures.score_by_rank(rows, score)
    )
    return [quality, cost]


def _run_table(runs: Sequence[RunRecord]) -> Table:
    names = list(dict.fromkeys(name for run in runs for name in run.evaluation.get("scores", {})))
    rows = []
    for run in runs:
        scores = run.evaluation.get("scores", {})
        result = run.result
        rows.append(
            [
                run.label,
                result["method"],
                run.split or "-",
                *(f"{scores[name]:.4f}" if scores.get(name) is not None else "-" for name in names),
                f"{result['parameters_trainable']:,}",
                f"{result['train_seconds'] / 60:.1f}",
            ]
        )
    return Table(["run", "method", "split", *names, "trained", "minutes"], rows)


def _cases(runs: Sequence[RunRecord], out: Path, tell: Told) -> Section:
    of_volumes = any(run.evaluation.get("volumes") for run in runs)
    section = Section(f"Best, median and worst {'volume' if of_volumes else 'image'}")
    classes = {tuple(run.result["class_names"]) for run in runs}
    data = {run.result["data"] for run in runs}
    if len(classes) > 1 or len(data) > 1:
        section.notes.append("No panels: the runs are of different data.")
        return section
    try:
        cases = draw_cases(runs[:MOST_IN_A_PANEL])
    except SegtuneError as error:
        tell(f"no panels: {error.message}")
        section.notes.append(f"No panels: {error.message}")
        return section
    for case in cases:
        caption = f"{case.kind}: {case.name}, mean IoU {case.score:.4f} averaged over the runs"
        write_with(out / "figures" / f"case-{case.kind}.png", case.sheet.save)
        section.pictures.append(Picture(caption, image_element(case.sheet, caption)))
    if len(runs) > MOST_IN_A_PANEL:
        section.notes.append(f"Shown are the first {MOST_IN_A_PANEL} of {len(runs)} runs.")
    return section


def _attention(runs: Sequence[RunRecord], pictures: _Pictures) -> Section:
    """Of the runs that `segtune attention` has measured."""
    section = Section("How far attention reaches")
    for number, run in enumerate(runs):
        source = run.folder.attention / "attention.json"
        if source.is_file():
            distances, num_images = attention.from_dict(json.loads(source.read_text(encoding="utf-8")))
            measured = f"{num_images} image{'s' if num_images > 1 else ''}"
            title = f"Mean attention distance of {run.label}, {measured}"
            section.pictures += pictures.add(f"attention-{number}", title, attention.draw(distances, title))
    return section


def _repeat(runs: Sequence[RunRecord], comparison: dict[str, Any] | None) -> Section:
    """Versions, commands and complete settings."""
    section = Section("How to repeat it")
    if runs:
        found = {**runs[0].result["versions"], "commit": runs[0].result["commit"]}
        section.notes.append(
            "Versions: " + ", ".join(f"{name} {value}" for name, value in found.items() if value)
        )
    if comparison is not None:
        section.notes.append("The same `segtune compare` command in an empty folder repeats every run.")
    for run in runs:
        settings = run.folder.read_config().to_dict()
        text = f"segtune fit --config {run.folder.config} --out NEW_FOLDER\n\n"
        text += yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
        section.blocks.append(Block(f"{run.label}: command and settings", text))
    return section


def _titles(runs: Sequence[RunRecord], comparison: dict[str, Any] | None) -> tuple[str, str]:
    models = ", ".join(dict.fromkeys(run.result["model"] for run in runs))
    data = ", ".join(dict.fromkeys(Path(run.result["data"]).name for run in runs))
    what = (
        "Comparison of methods"
        if comparison is not None
        else f"{len(runs)} run{'s' if len(runs) > 1 else ''}"
    )
    classes = len(runs[0].result["class_names"]) if runs else 0
    return f"{what}: {models} on {data}", f"{classes} classes; written by segtune from the runs' own files"
