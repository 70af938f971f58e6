"""Docstrings as Markdown for the site: roles, equations and literal blocks of reStructuredText."""

from __future__ import annotations

import re
import textwrap
from typing import Any

from griffe import Extension, Object

_MATH = re.compile(
    r"^(?P<indent> *)\.\. math:: *(?P<first>.*)\n(?P<rest>(?:(?P=indent) +.*\n|\s*\n)*)", re.M
)
_ROLE = re.compile(r":(?:class|func|meth|mod|attr|data):`~?([^`]+)`")
_INLINE_MATH = re.compile(r":math:`([^`]+)`")


def markdown(text: str) -> str:
    """``text`` with ``:class:`X` `` as code, ``:math:`` and ``.. math::`` as LaTeX for MathJax."""

    def block(found: re.Match[str]) -> str:
        body = textwrap.dedent(f"{found['first']}\n{textwrap.dedent(found['rest'])}").strip()
        return f"\n{found['indent']}$$\n{textwrap.indent(body, found['indent'])}\n{found['indent']}$$\n\n"

    text = _MATH.sub(block, text + "\n")
    text = _INLINE_MATH.sub(r"$\1$", text)
    text = _ROLE.sub(lambda found: f"`{found[1].removeprefix('molsampler.')}`", text)
    # "Example ::" begins a literal block, which Markdown knows by its indentation.
    return re.sub(r" ?::$", ":", text, flags=re.M).rstrip("\n")


class ReStructuredText(Extension):
    """Rewrites every docstring as it is read."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)
