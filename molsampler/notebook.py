"""What notebooks show of an object: a title, a table of facts and a histogram, as HTML without a stylesheet.

Colours are those of the page (``currentColor``), so that light and dark themes both work. All text is
escaped, for it may come from files.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

#: Size of a histogram in pixels.
WIDTH, HEIGHT = 240, 48

#: Characters of a fact at most.
LONGEST = 300


def card(title: str, facts: Iterable[tuple[str, str]], *, picture: str = "") -> str:
    """A box with a title and one line a fact ``(name, value)``; ``picture`` is HTML and stands below."""
    rows = "".join(
        "<tr style='background:none'>"
        "<th style='text-align:left;vertical-align:top;white-space:nowrap;padding:1px 14px 1px 0;"
        f"font-weight:normal;opacity:.65'>{_text(name)}</th>"
        f"<td style='text-align:left;padding:1px 0'>{_text(value)}</td></tr>"
        for name, value in facts
    )
    return (
        "<div style='display:inline-block;border:1px solid rgba(128,128,128,.4);border-radius:6px;"
        "padding:8px 12px;font-size:13px;line-height:1.35'>"
        f"<div style='font-weight:bold;margin-bottom:4px'>{_text(title)}</div>"
        "<table style='border-collapse:collapse;border:none;margin:0;font-size:inherit'>"
        f"{rows}</table>{picture}</div>"
    )


def bars(heights: Sequence[float], low: str, high: str, *, label: str) -> str:
    """A histogram as inline SVG: ``heights`` that are not negative, texts of both ends and of the axis."""
    top = max(heights, default=0.0) or 1.0
    step = WIDTH / max(len(heights), 1)
    columns = "".join(
        f"<rect x='{k * step:.1f}' y='{HEIGHT * (1 - height / top):.1f}' width='{0.85 * step:.1f}' "
        f"height='{HEIGHT * height / top:.1f}'/>"
        for k, height in enumerate(heights)
        if height > 0
    )
    return (
        f"<svg width='{WIDTH}' height='{HEIGHT + 16}' viewBox='0 0 {WIDTH} {HEIGHT + 16}' role='img' "
        f"aria-label='{_text(label)}' style='display:block;margin-top:6px' fill='currentColor'>"
        f"<title>{_text(label)}</title><g opacity='.6'>{columns}</g>"
        f"<g font-size='11' opacity='.8'><text x='0' y='{HEIGHT + 13}'>{_text(low)}</text>"
        f"<text x='{WIDTH / 2:g}' y='{HEIGHT + 13}' text-anchor='middle'>{_text(label)}</text>"
        f"<text x='{WIDTH}' y='{HEIGHT + 13}' text-anchor='end'>{_text(high)}</text></g></svg>"
    )


def _text(text: str) -> str:
    return html.escape(text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}...")
