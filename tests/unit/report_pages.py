"""Reads a page of the report as strictly as a test wants it."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Reads a page strictly: every element is closed in turn, ids are unique. Collects what tests ask for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.figures: list[tuple[str, str, str, str]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []
        assert len(self.ids) == len(set(self.ids))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        assert len(found) == len(attrs), f"<{tag}> has an attribute twice"
        self.elements.append((tag, found))
        self.ids += [found["id"] or ""] if "id" in found else []
        if tag not in VOID:
            self.open.append(tag)
        if "data-record" in found:
            self.figures.append((found["data-record"] or "", found["data-metric"] or "", found["data-value"] or "", ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        figure = self.elements and "data-record" in self.elements[-1][1]
        inside_figure = figure and self.open[-1:] in (["span"], ["text"], ["tspan"])
        if inside_figure and self.figures and not self.figures[-1][3]:
            self.figures[-1] = (*self.figures[-1][:3], data)


def value_at(record: dict[str, Any], path: str) -> Any:
    """What lies at a figure's path in its record. A name of a result may have dots."""
    first, _, rest = path.partition(".")
    names = [*rest.rsplit(".", 1)] if first == "result" else rest.split(".")
    found = record[first]
    for name in names:
        found = found[name]
    return found
