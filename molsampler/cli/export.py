"""``molsampler export``: between trajectory formats."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import OfSystem, Overwrite, TrustCode, given_system


def export(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Samples in any of the formats.")],
    target: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="The suffix (.npz .h5 .dcd .xtc .pdb) is the format."),
    ],
    system: OfSystem = None,
    trust_code: TrustCode = False,
    overwrite: Overwrite = False,
) -> None:
    """Convert samples to another format."""
    from ..export import convert

    known = given_system(system, trust_code=trust_code)
    convert(source, target, overwrite=overwrite, system=known)
    print(f"wrote {target}")
