"""The data check as one page that opens from disk: verdict, findings, examples, classes, sizes, values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image as PillowImage

from segtune.data.base import SPLITS, Severity
from segtune.data.check_report import CheckReport, percent
from segtune.data.findings import number_of
from segtune.data.preview import choose, overlay, triplet
from segtune.engine.files import write_text
from segtune.report.page import Block, Picture, Section, Table, image_element, render
from segtune.report.panel import draw_panel

EXAMPLES = 12
"""Samples that are shown, drawn evenly from the splits."""
SHOWN_FILES = 200
"""Files of a finding that are listed."""
SHOWN_ROWS = 64
"""Rows of the tables of sizes and values."""


def write_data_page(report: CheckReport, path: Path) -> Path:
    """Writes what the data check found as one HTML file.

    Args:
        report: of the check.
        path: the file to write; an existing one is replaced as a whole.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    parts = (_findings, _suspects, _reading, _examples, _classes, _sizes, _values)
    sections = [part(report) for part in parts]
    page = render(f"Data check: {report.root.resolve().name}", str(report.root), [report.verdict], sections)
    write_text(path, page)
    return path


def _findings(report: CheckReport) -> Section:
    blocks = []
    for finding in report.findings:
        files = [f"  {file}" for file in finding.files[:SHOWN_FILES]]
        if len(finding.files) > SHOWN_FILES:
            files.append(f"  and {len(finding.files) - SHOWN_FILES} more")
        listed = ["", *files] if files else []
        blocks.append(
            Block(
                title=f"{finding.severity.value} [{finding.code}] {finding.message}",
                text="\n".join([f"fix: {finding.hint}", *listed]),
                open=finding.severity is Severity.ERROR,
            )
        )
    return Section("Findings", blocks=blocks, notes=[] if blocks else ["Nothing stands out."])


def _suspects(report: CheckReport) -> Section:
    """The images whose masks a run finds unlikely, with what it sees there."""
    if not report.suspects:
        return Section("Masks that the run finds unlikely")
    from segtune.engine.predict import display  # imports torch, which other pages do without

    pictures = []
    index = report.usable
    for suspect in report.suspects:
        if suspect.predicted is None:
            continue
        sample = suspect.sample
        shown = display(index.reader.image(sample))
        answer = np.asarray(
            PillowImage.fromarray(suspect.predicted).resize(
                (shown.shape[1], shown.shape[0]), PillowImage.Resampling.NEAREST
            )
        )
        row = [shown, *(overlay(shown, mask, index.classes) for mask in (index.reader.mask(sample), answer))]
        caption = (
            f"{sample.case} ({sample.split}): loss {suspect.loss:.2f}, {suspect.loss / suspect.median:.1f} "
            "times the median"
        )
        picture = draw_panel(["image", "mask", "prediction of the run"], [row])
        pictures.append(Picture(caption, image_element(picture, caption)))
    left = len(report.suspects) - len(pictures)
    notes = [f"{number_of(left, 'image')} more, see the findings"] if left else []
    return Section("Masks that the run finds unlikely", pictures=pictures, notes=notes)


def _reading(report: CheckReport) -> Section:
    return Section("How it is read", blocks=[Block("evidence", "\n".join(report.evidence), open=True)])


def _examples(report: CheckReport) -> Section:
    pictures = []
    for sample in choose(report.usable, EXAMPLES):
        caption = f"{sample.name} ({sample.split}): image, mask, both"
        pictures.append(Picture(caption, image_element(triplet(report.usable, sample), caption)))
    return Section("Examples", pictures=pictures)


def _classes(report: CheckReport) -> Section:
    splits = [split for split in SPLITS if split in report.class_pixels]
    palette = report.usable.classes.palette
    totals = {split: max(sum(report.class_pixels[split]), 1) for split in splits}
    rows = []
    for label, name in enumerate(report.class_names):
        shares = [percent(report.class_pixels[split][label] / totals[split]) for split in splits]
        rows.append([name, str(label), *shares])
    if any(report.ignored_pixels.values()):
        ignored = report.ignored_pixels
        shares = [percent(ignored[split] / max(ignored[split] + totals[split], 1)) for split in splits]
        rows.append(["(ignored)", "", *shares])
    pictures = []
    if splits:
        shares_first = [n / totals[splits[0]] for n in report.class_pixels[splits[0]]]
        pictures.append(
            Picture(f"Share of the {splits[0]} pixels", _bars(report.class_names, shares_first, palette))
        )
    return Section("Classes", table=Table(["class", "number", *splits], rows), pictures=pictures)


def _sizes(report: CheckReport) -> Section:
    rows = [[f"{height} x {width}", str(count)] for (height, width), count in report.image_sizes.items()]
    left = len(rows) - SHOWN_ROWS
    return Section(
        "Sizes",
        table=Table(["height x width in pixels", "images"], rows[:SHOWN_ROWS]),
        notes=[f"{number_of(left, 'size')} more"] if left > 0 else [],
    )


def _values(report: CheckReport) -> Section:
    """What the numbers in the mask files become; empty where colours decide or masks are no images."""
    coding = getattr(report.usable.reader, "coding", None)
    if coding is None or not report.mask_values:
        return Section("Values in the mask files")
    rows = []
    for value, (pixels, masks) in list(report.mask_values.items())[:SHOWN_ROWS]:
        if coding.coding == "binary":
            label = coding.values.get(value, int(value > coding.threshold))
        else:
            label = coding.values.get(value)
        meaning = "no class" if label is None else "ignored"
        if label is not None and label < report.num_classes:
            meaning = report.class_names[label]
        rows.append([str(value), meaning, f"{pixels:,}", str(masks)])
    left = len(report.mask_values) - SHOWN_ROWS
    return Section(
        "Values in the mask files",
        table=Table(["value", "read as", "pixels", "masks"], rows),
        notes=[f"{number_of(left, 'value')} more"] if left > 0 else [],
    )


def _bars(names: tuple[str, ...], shares: list[float], palette: tuple[tuple[int, int, int], ...]) -> str:
    """Horizontal bars as SVG, one for each class in its colour."""
    from markupsafe import escape

    longest = max([*shares, 1e-9])
    step, left, width = 22, 170, 460
    lines = []
    for row, (name, share, (r, g, b)) in enumerate(zip(names, shares, palette, strict=True)):
        y = row * step
        length = round(share / longest * width, 1)
        lines.append(
            f'<text x="{left - 8}" y="{y + 15}" text-anchor="end">{escape(name[:24])}</text>'
            f'<rect x="{left}" y="{y + 4}" width="{length}" height="14" fill="rgb({r},{g},{b})" '
            'stroke="#777"/>'
            f'<text x="{left + length + 6}" y="{y + 15}">{percent(share)}</text>'
        )
    height = len(names) * step + 4
    return (
        f'<svg viewBox="0 0 720 {height}" width="720" height="{height}" font-size="12" role="img" '
        f'font-family="system-ui, sans-serif">{"".join(lines)}</svg>'
    )
