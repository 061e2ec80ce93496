"""The page about runs and about a comparison: complete, alone, and readable in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import Command

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip


class Outline(HTMLParser):
    """Headings, links and tables of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self._in_heading = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._in_heading = tag in ("h1", "h2")
        self.addresses += [value or "" for name, value in attrs if name in ("href", "src")]

    def handle_data(self, data: str) -> None:
        if self._in_heading:
            self.headings.append(data)
            self._in_heading = False


def outline(page: Path) -> Outline:
    parser = Outline()
    parser.feed(page.read_text(encoding="utf-8"))
    return parser


@pytest.fixture(scope="module")
def measured(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run, as if `segtune attention` had measured it."""
    tuned: Path = shutil.copytree(finished, tmp_path_factory.mktemp("measured") / finished.name)
    layer = {"name": "encoder.blocks.0", "block": 0, "windowed": False, "heads": [12.5, 30.0]}
    found = {"unit": "pixels", "images": 3, "base": [layer], "tuned": [{**layer, "heads": [10.0, 31.0]}]}
    (tuned / "attention").mkdir()
    (tuned / "attention" / "attention.json").write_text(json.dumps(found))
    return tuned


@pytest.fixture(scope="module")
def page(measured: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of that run."""
    from segtune.cli import run

    out = tmp_path_factory.mktemp("report")
    assert run(["report", str(measured), "--out", str(out), "--formats", "svg,png,pdf"]) == 0
    return out / "report.html"


def test_the_page_has_every_section_and_needs_nothing_else(page: Path) -> None:
    found = outline(page)
    for title in ("Scores and costs", "Best, median and worst image", "Training loss", "IoU of each class",
                  "Confusion", "How far attention reaches", "How to repeat it"):  # fmt: skip
        assert title in found.headings
    assert found.tags.count("svg") >= 4
    outside = [a for a in found.addresses if not a.startswith(("#", "data:image/"))]
    assert outside == []
    assert "script" not in found.tags


def test_the_numbers_are_those_of_the_run(page: Path, finished: Path) -> None:
    result = json.loads((finished / "result.json").read_text())
    text = page.read_text(encoding="utf-8")
    for name, score in result["test"]["scores"].items():
        assert f"<td>{score:.4f}</td>" in text, name
    assert f"{result['parameters_trainable']:,}" in text
    assert "learning_rate: auto" in text


def test_figures_lie_beside_the_page_in_every_format(page: Path) -> None:
    for name in ("loss", "classes", "images", "confusion-0"):
        for ending in ("svg", "png", "pdf"):
            assert (page.parent / "figures" / f"{name}.{ending}").stat().st_size > 1000
    with Image.open(page.parent / "figures" / "case-worst.png") as case:
        assert case.width > 3 * 240  # image, ground truth and at least one answer


def test_equal_runs_make_equal_pages(page: Path, measured: Path, segtune: Command, tmp_path: Path) -> None:
    done = segtune("report", measured, "--out", tmp_path / "again")
    assert done.code == 0, done.err
    assert (tmp_path / "again" / "report.html").read_bytes() == page.read_bytes()


def test_several_runs_are_told_apart(finished: Path, segtune: Command, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(finished, other)
    done = segtune("report", finished, other, "--out", tmp_path / "both", "--no-panels")
    assert done.code == 0, done.err
    text = (tmp_path / "both" / "report.html").read_text(encoding="utf-8")
    assert "2 runs: unet on data" in text
    assert f">{finished.name}<" in text and ">other<" in text


def test_data_that_has_moved_costs_the_panels_alone(finished: Path, segtune: Command, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(finished, other)
    config = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(re.sub(r"path: .*", f"path: {tmp_path}/nowhere", config))
    done = segtune("report", other)
    assert done.code == 0, done.err
    assert "no panels" in done.err
    assert "No panels" in (other / "report.html").read_text(encoding="utf-8")


def test_mistakes(finished: Path, segtune: Command, tmp_path: Path) -> None:
    done = segtune("report", tmp_path / "nowhere")
    assert done.code == 2 and "there is no run folder" in done.err
    done = segtune("report", finished, "--out", tmp_path / "x", "--formats", "jpg")
    assert done.code == 2 and "formats: svg, png, pdf" in done.err
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    shutil.copy(finished / "config.yaml", unfinished)
    done = segtune("report", unfinished)
    assert done.code == 2 and "has not finished" in done.err


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_a_browser_shows_it(page: Path, tmp_path: Path) -> None:
    shot = tmp_path / "page.png"
    assert BROWSER is not None
    subprocess.run(
        [BROWSER, *QUIET, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1200,3000",
         f"--screenshot={shot}", page.as_uri()],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    with Image.open(shot) as opened:
        picture = np.asarray(opened.convert("L"))
    assert picture.shape == (3000, 1200)
    inked = (picture < 200).mean(axis=1)
    bands = np.array_split(inked, 10)
    assert all(band.max() > 0.005 for band in bands[:7]), "every part of the page shows something"
