"""From a page's parts to one self-contained HTML file."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined

from xmatch.pages.cards import Page


def render(page: Page) -> str:
    """HTML with styles and thumbnails inside; it asks nothing of any server."""
    environment = Environment(
        loader=PackageLoader("xmatch.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("gallery.html.j2").render(page=page)
