"""``molsampler systems``: what there is."""

from __future__ import annotations

from .options import Json
from .terminal import note, print_json, print_table


def systems(json: Json = False) -> None:
    """List the systems, with shapes, units and whether a trained sampler ships."""
    from molsampler.systems import get_system, list_systems

    from ..errors import MissingDependencyError
    from ..sampler.store import list_pretrained

    shipped = set(list_pretrained())
    rows = []
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
                "description": system.description,
            }
        )
    if json:
        print_json(rows)
        return
    print_table(
        ("system", "particles x dim", "units", "sampler ships", "description"),
        [
            (
                str(row["name"]),
                f"{row['particles']} x {row['dimensions']}",
                str(row["units"]),
                "yes" if row["sampler"] else "no",
                str(row["description"]),
            )
            for row in rows
        ],
    )
