"""The tree of commands. Heavy libraries are imported by the commands, not here."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import torchrun
from ..version import __version__
from .compare import compare
from .curve import curve
from .demo import demo
from .doctor import doctor
from .export import export
from .free_energy import free_energy
from .info import info
from .merge import merge
from .reference import reference
from .sample import sample
from .systems import systems
from .terminal import note
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


#: Commands that several processes do together.
_SHARED = ("train", "sample")


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    command = context.invoked_subcommand
    if torchrun.count() == 1 or command in _SHARED:
        return
    # The others would repeat the work, and write the same files.
    if torchrun.rank() > 0:
        raise typer.Exit
    note(f"{command} is done by one process; {' and '.join(_SHARED)} share theirs out")


for command in (
    systems,
    sample,
    merge,
    train,
    reference,
    compare,
    free_energy,
    curve,
    export,
    info,
    demo,
    doctor,
):
    app.command()(command)
