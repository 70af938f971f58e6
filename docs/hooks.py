"""What the site makes from the code: the reference of commands, notebooks, equations, links to sources."""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import notebook
from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

DOCS = Path(__file__).parent
CACHE = DOCS.parent / ".cache" / "notebooks"

HEAD = """# Commands

`molsampler COMMAND --help` prints the same. Results go to standard output, everything else to standard error.
Exit codes: 0 done, 1 failed with one line, 2 wrong usage, 3 done with a result that is not usable (and why), 130 or
143 interrupted with the state saved.

"""

NOT_RUN = """
!!! note
    This page shows the cells without their output. `MOLSAMPLER_RUN_NOTEBOOKS=1 mkdocs build` runs them, which takes
    some minutes once; later builds keep what they showed. The file opens in Jupyter with
    [jupytext](https://jupytext.readthedocs.io): `docs/notebooks/{name}`.
"""

RUN = """
!!! note
    The file opens in Jupyter with [jupytext](https://jupytext.readthedocs.io): `docs/notebooks/{name}`. What stands
    under the cells is what they showed when the site was built.
"""


def commands() -> str:
    """The reference of all commands as Markdown, from the program's own declarations."""
    import typer
    from typer.cli import get_docs_for_click
    from typer.main import get_command

    from molsampler.cli.app import app

    command = get_command(app)
    context = typer.Context(command, info_name="molsampler")
    text = get_docs_for_click(obj=command, ctx=context, name="molsampler")
    # What stands above the first command is a list that the page's contents give as well.
    return HEAD + text[text.index("\n## ") :].lstrip()


def notebook_page(path: Path) -> str:
    """A notebook's page with what its cells show, if it is to be run or was run before as it stands."""
    text = path.read_text()
    kept = CACHE / f"{path.stem}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.md"
    if not kept.exists() and os.environ.get("MOLSAMPLER_RUN_NOTEBOOKS"):
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                [sys.executable, notebook.__file__, path],
                cwd=folder,
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
        CACHE.mkdir(parents=True, exist_ok=True)
        kept.write_text(done.stdout)
    body, note = (kept.read_text(), RUN) if kept.exists() else (notebook.page(text), NOT_RUN)
    title, _, rest = body.partition("\n")
    return f"{title}\n{note.format(name=path.name)}{rest}"


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages."""
    files.append(File.generated(config, "reference/commands.md", content=commands()))
    for path in sorted((DOCS / "notebooks").glob("*.py")):
        files.append(
            File.generated(config, f"notebooks/{path.stem}.md", content=notebook_page(path))
        )
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """Point links to notebooks at their pages; a link to a file outside docs/ becomes its name."""
    here = posixpath.dirname(page.file.src_uri)

    def link(found: re.Match[str]) -> str:
        text, target = found["text"], found["target"]
        path = posixpath.normpath(posixpath.join(here, target))
        if path.startswith("notebooks/") and path.endswith(".py"):
            return f"[{text}]({target.removesuffix('.py')}.md)"
        return text if path.startswith("../") else found[0]

    return re.sub(r"(?<!!)\[(?P<text>[^\]\n]+)\]\((?P<target>[^)#:\s]+)\)", link, markdown)


def on_page_content(html: str, page: Page, config: Any, files: Files) -> str:
    """Equations as MathML, which browsers draw without a script."""

    def mathml(found: re.Match[str]) -> str:
        tex = found["tex"].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
        return convert(tex, display="block" if found["tag"] == "div" else "inline")

    return re.sub(
        r'<(?P<tag>div|span) class="arithmatex">\\[(\[](?P<tex>.*?)\\[)\]]</(?P=tag)>',
        mathml,
        html,
        flags=re.S,
    )
