"""The parts of a report's page, and the page as one file that needs no other."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from PIL import Image

from segtune.errors import MissingExtraError


@dataclass(frozen=True)
class Table:
    """A table; the rows numbered in `best` stand out."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    best: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Picture:
    """A figure or photograph with the words that stand for it."""

    caption: str
    markup: str
    """SVG, or an image element."""


@dataclass(frozen=True)
class Block:
    """A text that is folded away."""

    title: str
    text: str
    open: bool = False


@dataclass
class Section:
    """One part of the page."""

    title: str
    table: Table | None = None
    pictures: list[Picture] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show."""
        return not (self.table or self.pictures or self.notes or self.blocks)


def render(title: str, subtitle: str, advice: Sequence[str], sections: Sequence[Section]) -> str:
    """The page as HTML; every text in it is escaped.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    try:
        import jinja2
        from markupsafe import Markup
    except ModuleNotFoundError as error:
        raise MissingExtraError("jinja2", extra="report", purpose="reports") from error
    source = resources.files("segtune").joinpath("assets/report.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    trusted = [
        {
            "title": section.title,
            "table": section.table,
            "pictures": [{"caption": p.caption, "markup": Markup(p.markup)} for p in section.pictures],
            "notes": section.notes,
            "blocks": section.blocks,
        }
        for section in sections
        if not section.is_empty
    ]
    return environment.from_string(source).render(
        title=title, subtitle=subtitle, advice=advice, sections=trusted
    )


def svg_of(figure: Any) -> str:
    """A matplotlib figure as SVG to put into a page; identifiers are made unique by its content."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    markup = text.getvalue()
    return markup[markup.index("<svg") :]


def image_element(image: Image.Image, caption: str) -> str:
    """A photograph inside of the page itself."""
    from markupsafe import escape

    content = io.BytesIO()
    image.save(content, format="JPEG", quality=85)
    data = base64.b64encode(content.getvalue()).decode("ascii")
    return f'<img alt="{escape(caption)}" src="data:image/jpeg;base64,{data}">'
