"""From a page's parts to one self-contained HTML file."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined

from xmatch.pages.cards import Page


def render(page: Page) -> str:
    """HTML of a gallery, with styles and thumbnails inside; it asks nothing of any server."""
    return render_template("gallery.html.j2", page)


def render_template(name: str, page: object) -> str:
    """HTML of `page` by one of the package's templates; text is escaped, and a name that is not there is an error."""
    environment = Environment(
        loader=PackageLoader("xmatch.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name).render(page=page)
