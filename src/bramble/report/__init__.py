"""The report: two HTML pages, baseline and network, and their Markdown twins, out of benchmark records."""

from bramble.report.build import build
from bramble.report.model import Figure, Report, Statement, walk
from bramble.report.network import build_network
from bramble.report.render import plain, render_html, render_markdown
from bramble.report.strategies import TOKEN_TIME

__all__ = [
    "TOKEN_TIME",
    "Figure",
    "Report",
    "Statement",
    "build",
    "build_network",
    "plain",
    "render_html",
    "render_markdown",
    "walk",
]
