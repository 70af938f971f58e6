"""``molsampler merge``: the file of a run from those of its parts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Json, OfSystem, Output, Overwrite, TrustCode, given_system
from .summary import Drawn, say_written


def merge(
    parts: Annotated[
        list[Path],
        typer.Argument(metavar="PART...", help="Files of `sample --blocks A:B`, in any order."),
    ],
    output: Output,
    system: OfSystem = None,
    trust_code: TrustCode = False,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Join the parts of a run of `sample` to the file that one run would have written."""
    from ..export.parts import merge as join

    made = join(
        parts, output, overwrite=overwrite, system=given_system(system, trust_code=trust_code)
    )
    drawn = Drawn.of(parts, made.metadata)
    say_written(drawn, output, json=json, parts=len(parts))
