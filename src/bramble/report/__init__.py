"""The baseline report: one HTML page and its Markdown twin, out of benchmark records."""

from bramble.report.build import build
from bramble.report.model import Figure, Report, Statement, walk
from bramble.report.render import plain, render_html, render_markdown

__all__ = ["Figure", "Report", "Statement", "build", "plain", "render_html", "render_markdown", "walk"]
