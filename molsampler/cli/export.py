"""``molsampler export``: between trajectory formats."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Json, OfSystem, Overwrite, TrustCode, given_system
from .terminal import print_json


def export(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Samples in any of the formats.")],
    target: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="The suffix (.npz .h5 .dcd .xtc .pdb) is the format."),
    ],
    resample: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Write so many frames, drawn by their weights and counting the same: for programs that "
            "know no weights.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of --resample.")] = 0,
    system: OfSystem = None,
    trust_code: TrustCode = False,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Convert samples to another format."""
    from ..export import convert, describe

    known = given_system(system, trust_code=trust_code)
    convert(source, target, overwrite=overwrite, system=known, resample=resample, seed=seed)
    if json:
        print_json({"file": target, **describe(target)})
    else:
        print(f"wrote {target}")
