"""``molsampler merge``: the file of a run from those of its parts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Json, OfSystem, Output, Overwrite, TrustCode, given_system
from .terminal import print_json


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
    if json:
        known = {"file": output, "parts": len(parts), "samples": made.samples}
        print_json({**known, **made.metadata})
    else:
        of = f"{len(parts)} {'part' if len(parts) == 1 else 'parts'}"
        samples = f"{made.samples:,} {'sample' if made.samples == 1 else 'samples'}"
        print(f"wrote {output}: {samples} of {of}")
