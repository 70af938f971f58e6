"""Pages of the site that are made from the code: the reference of commands."""

from __future__ import annotations

from typing import Any

from mkdocs.structure.files import File, Files

HEAD = """# Commands

`molsampler COMMAND --help` prints the same. Results go to standard output, everything else to standard error.
Exit codes: 0 done, 1 failed with one line, 2 wrong usage, 3 done with a result that is not usable (and why), 130 or
143 interrupted with the state saved.

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


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages."""
    files.append(File.generated(config, "reference/commands.md", content=commands()))
    return files
