"""``molsampler systems``: what there is."""

from __future__ import annotations

from typing import Any

from .options import Json
from .terminal import note, print_json, print_table


def systems(json: Json = False) -> None:
    """List the systems, with shapes, units and whether a trained sampler ships."""
    from molsampler.systems import get_system, list_systems

    from ..errors import MissingDependencyError
    from ..sampler.store import list_pretrained

    shipped = list_pretrained()
    rows: list[dict[str, Any]] = []
    for name in list_systems():
        try:
            system = get_system(name)
        except MissingDependencyError as error:
            note(f"{name}: {error}")
            continue
        rows.append(
            {
                "name": name,
                "particles": system.shape[0],
                "dimensions": system.shape[1],
                "length_nm": system.length_nm,
                "units": system.units,
                "sampler": name in shipped,
                "samplers": [each for each in shipped if f"{each}-".startswith(f"{name}-")],
                "description": system.description,
            }
        )
    if json:
        print_json(rows)
        return
    print_table(
        ("system", "particles x dim", "units", "samplers that ship", "description"),
        [
            (
                str(row["name"]),
                f"{row['particles']} x {row['dimensions']}",
                str(row["units"]),
                ", ".join(row["samplers"]) or "none",
                str(row["description"]),
            )
            for row in rows
        ],
    )
