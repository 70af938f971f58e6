"""The tree of commands. Heavy libraries are imported by the commands, not here."""

from __future__ import annotations

from typing import Annotated

import typer

from ..version import __version__
from .compare import compare
from .demo import demo
from .doctor import doctor
from .export import export
from .free_energy import free_energy
from .info import info
from .merge import merge
from .reference import reference
from .sample import sample
from .systems import systems
from .train import train

app = typer.Typer(
    name="molsampler",
    help="One-step neural samplers for Boltzmann distributions.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"molsampler {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


for command in (
    systems,
    sample,
    merge,
    train,
    reference,
    compare,
    free_energy,
    export,
    info,
    demo,
    doctor,
):
    app.command()(command)
