"""Notebooks in the percent format (``# %%``) as pages of Markdown, with what their cells show or without.

    python docs/notebook.py docs/notebooks/lj13.py        # runs it in the current folder, prints the page

A cell shows what it prints, figures, and the value of its last line, as in Jupyter.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_CELL = re.compile(r"^# %%(?P<markdown> \[markdown\])?.*\n", re.M)


def cells(text: str) -> Iterator[tuple[bool, str]]:
    """Every cell as (whether it is Markdown, its text); what stands above the first belongs to Jupyter."""
    marks = list(_CELL.finditer(text))
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    for mark, end in zip(marks, ends, strict=True):
        body = text[mark.end() : end].strip("\n")
        if mark["markdown"]:
            yield True, re.sub(r"^# ?", "", body, flags=re.M)
        else:
            yield False, body


def page(text: str, show: Callable[[str], str] = lambda source: "") -> str:
    """The Markdown of a notebook; ``show(source)`` is what stands under a cell of code."""
    parts = []
    for is_markdown, body in cells(text):
        parts.append(body if is_markdown else f"```python\n{body}\n```\n{show(body)}")
    return "\n\n".join(parts) + "\n"


class Run:
    """Executes cells one after the other in one namespace."""

    def __init__(self) -> None:
        import matplotlib

        matplotlib.use("Agg")
        self.names: dict[str, Any] = {"__name__": "__main__"}

    def __call__(self, source: str) -> str:
        """What the cell shows, as Markdown."""
        tree = ast.parse(source)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        printed = io.StringIO()
        value = None
        with contextlib.redirect_stdout(printed):
            exec(compile(tree, "<cell>", "exec"), self.names)
            if last is not None:
                value = eval(compile(ast.Expression(last.value), "<cell>", "eval"), self.names)
        shown = _text(printed.getvalue())
        if value is not None and not _is_figure(value):
            html = getattr(value, "_repr_html_", None)
            shown += _text(repr(value)) if html is None else f'<div class="output">{html()}</div>\n'
        return shown + _figures(value)


def _text(text: str) -> str:
    return f"``` {{ .text .output }}\n{text.rstrip()}\n```\n" if text.strip() else ""


def _is_figure(value: Any) -> bool:
    from matplotlib.figure import Figure

    return isinstance(value, Figure)


def _figures(value: Any) -> str:
    from matplotlib import pyplot

    figures = [pyplot.figure(number) for number in pyplot.get_fignums()]
    if _is_figure(value) and value not in figures:
        figures.append(value)
    images = []
    for figure in figures:
        data = io.BytesIO()
        figure.savefig(data, format="png", dpi=130)
        code = base64.b64encode(data.getvalue()).decode()
        images.append(f'<img class="output" alt="figure" src="data:image/png;base64,{code}">\n')
    pyplot.close("all")
    return "\n".join(images)


if __name__ == "__main__":
    sys.stdout.write(page(Path(sys.argv[1]).read_text(), Run()))
