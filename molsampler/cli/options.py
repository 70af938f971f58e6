"""Arguments and options that several commands share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..target import System as PhysicalSystem

System = Annotated[
    str,
    typer.Argument(
        metavar="SYSTEM",
        help="A registered system (`molsampler systems` lists them) or the path of a .yaml file; @T behind "
        "it gives a temperature: lj13@0.3, alanine-dipeptide@350.",
    ),
]
OfSystem = Annotated[
    str | None,
    typer.Option(
        "--system",
        help="The system, where the input does not define it: a name or a .yaml file, with @T for another "
        "temperature.",
    ),
]
TrustCode = Annotated[
    bool,
    typer.Option("--trust-code", help="Run the Python code that a system file of yours names."),
]
Count = Annotated[int, typer.Option("-n", "--number", min=1, help="Number of samples.")]
Output = Annotated[
    Path,
    typer.Option(
        "-o", "--output", help="File to write; its suffix (.npz .h5 .dcd .xtc .pdb) is the format."
    ),
]
Seed = Annotated[
    int, typer.Option("--seed", min=0, help="Seed; the same seed gives the same samples.")
]
Anneal = Annotated[
    int,
    typer.Option(
        "--anneal",
        min=1,
        help="Even out exact weights by annealing of so many levels, each an energy a sample.",
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(
        "--steps",
        min=2,
        help="Of a sampler that takes noise away in steps, so many instead of its own: more even out exact "
        "weights, a pass of the network each.",
    ),
]
Device = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda or cuda:1; by default CUDA where present.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing output.")]
Json = Annotated[bool, typer.Option("--json", help="Write the result as JSON to standard output.")]

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def parse_duration(text: str) -> float:
    """Seconds in ``90``, ``90s``, ``30m``, ``2h`` or ``1h30m``; anything else is wrong usage."""
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*(min|[smhd]?)", text)
    written = re.sub(r"\s", "", text)
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if not parts or "".join(number + unit for number, unit in parts) != written or seconds <= 0:
        raise typer.BadParameter(f"{text!r} is not a duration such as 90s, 30m, 2h or 1h30m")
    return seconds


def parse_blocks(text: str) -> slice:
    """The half-open range in ``A:B``, ``A:``, ``:B`` or ``:``; anything else is wrong usage."""
    found = re.fullmatch(r"\s*(\d*)\s*:\s*(\d*)\s*", text)
    if found is None:
        raise typer.BadParameter(f"{text!r} is not a range of blocks such as 0:4, 4: or :4")
    first, last = (int(end) if end else None for end in found.groups())
    return slice(first, last)


def given_system(system: str | None, *, trust_code: bool) -> PhysicalSystem | None:
    """The system that ``--system`` names, None where it was not given."""
    from molsampler.systems import resolve

    return None if system is None else resolve(system, trust_code=trust_code)


def check_samples_output(path: Path, *, overwrite: bool) -> None:
    """Refuse an output that could not be written, before any work is done for it.

    Raises
    ------
    InputError, OutputExistsError, StorageError
        The suffix is no format, the file exists, or its folder does not.
    """
    from ..export import check_destination, format_of

    format_of(path, argument="--output")
    check_destination(path, overwrite=overwrite)
