"""HTML pages of one file: style and script inlined, nothing loaded, everything escaped.

A page's own policy (Content-Security-Policy) lets a browser run the one script whose SHA-256 it names, which
takes data from attributes and writes text alone. The last line of a page seals what stands above it.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

from molsampler.errors import FileFormatError
from molsampler.storage.files import read_limited

if TYPE_CHECKING:
    from markupsafe import Markup

FOLDER = Path(__file__).parent
_SEAL = re.compile(rb"<!-- SHA-256 of the lines above: ([0-9a-f]{64}) -->\n")

#: Largest page that is read back (bytes).
SIZE_LIMIT = 64 * 2**20


@cache
def _asset(name: str) -> str:
    return (FOLDER / name).read_text("utf-8")


def script_hash() -> str:
    """SHA-256 of the page's script in the form that a policy names it by."""
    return base64.b64encode(hashlib.sha256(_asset("page.js").encode()).digest()).decode()


def safe(markup: str) -> Markup:
    """Text that is markup already, as :mod:`molsampler.analysis.svg` makes it."""
    from markupsafe import Markup

    return Markup(markup)


def render(template: Path, **values: Any) -> str:
    """A page from a template that extends ``page.html.j2``, with its seal.

    Every value is escaped but those of :func:`safe`.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, FOLDER]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(template.name).render(
        style=safe(_asset("page.css")),
        script=safe(_asset("page.js")),
        script_hash=script_hash(),
        **values,
    )
    text = page.rstrip("\n") + "\n"
    return (
        f"{text}<!-- SHA-256 of the lines above: {hashlib.sha256(text.encode()).hexdigest()} -->\n"
    )


def read_meta(path: Path, name: str) -> tuple[str, bool] | None:
    """The content of a page's ``<meta name=...>`` and whether its seal holds; None where there is none.

    Raises
    ------
    FileFormatError
        The file is too large to be a page of ours, or not text.
    """
    data = read_limited(path, SIZE_LIMIT)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise FileFormatError(f"{path} is not a page of UTF-8 text") from None
    finder = _Meta(name)
    # What tells of a page stands in its head.
    finder.feed(text.partition("</head>")[0])
    if finder.content is None:
        return None
    found = list(_SEAL.finditer(data))
    intact = bool(found) and found[-1].end() == len(data)
    if intact:
        above = data[: found[-1].start()]
        intact = hashlib.sha256(above).hexdigest().encode() == found[-1][1]
    return finder.content, intact


class _Meta(HTMLParser):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.content: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "meta" and values.get("name") == self.name:
            self.content = values.get("content")
