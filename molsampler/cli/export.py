"""``molsampler export``: between trajectory formats."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import OfSystem, Overwrite


def export(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Samples in any of the formats.")],
    target: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="The suffix (.npz .h5 .dcd .xtc .pdb) is the format."),
    ],
    system: OfSystem = None,
    overwrite: Overwrite = False,
) -> None:
    """Convert samples to another format."""
    from ..export import convert

    convert(source, target, overwrite=overwrite, system=system)
    print(f"wrote {target}")
