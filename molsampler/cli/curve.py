"""``molsampler curve``: energy, heat capacity, free energy and populations against temperature."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Device, OfSystem, Overwrite, Seed, Steps, TrustCode, given_system
from .terminal import note, print_json, print_table, progress

if TYPE_CHECKING:
    from molsampler.analysis import Curve

    from ..estimate import Estimate
    from ..target import System


def curve(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="ARTIFACT|SAMPLES...",
            help="A sampler of a range of temperatures, or two or more files of samples, each of one.",
        ),
    ],
    system: OfSystem = None,
    trust_code: TrustCode = False,
    temperature: Annotated[
        str | None,
        typer.Option(
            "--temperature", metavar="LO:HI", help="Part of the range; by default all of it."
        ),
    ] = None,
    points: Annotated[
        int | None,
        typer.Option("--points", min=2, help="Temperatures of a sampler; 16 by default."),
    ] = None,
    number: Annotated[
        int | None,
        typer.Option(
            "-n", "--number", min=2, help="Samples at each temperature, 4,000 by default."
        ),
    ] = None,
    refine: Annotated[
        int, typer.Option("--refine", min=0, help="MALA steps on the exact target afterwards.")
    ] = 0,
    steps: Steps = None,
    along: Annotated[
        str | None,
        typer.Option("--along", metavar="CV", help="Basins along it, as of free-energy."),
    ] = None,
    edges: Annotated[
        str | None, typer.Option("--edges", metavar="A,B,...", help="Where basins along CV begin.")
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            "--reference",
            help="JSON of another curve; a sampler is drawn from at its temperatures.",
        ),
    ] = None,
    pool: Annotated[
        bool | None,
        typer.Option(
            "--pool/--no-pool",
            help="Samples of each temperature count at all others too; by default where all have weights.",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Plot (.png, .svg or .pdf).")
    ] = None,
    json: Annotated[
        Path | None, typer.Option("--json", help="Numbers as JSON; - is standard output.")
    ] = None,
    seed: Seed = 0,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Mean energy, heat capacity, free energy and populations against temperature, each with an error."""
    from molsampler.analysis import curve_through, read_curve, write_curve, write_json
    from molsampler.analysis.figure_file import check_plot

    from ..storage.files import check_output

    to_stdout = json is not None and str(json) == "-"
    if output is not None:
        check_plot(output, overwrite=overwrite)
    if json is not None and not to_stdout:
        check_output(json, overwrite=overwrite)
    cut = None if edges is None else _numbers(edges)
    target = given_system(system, trust_code=trust_code)
    beside = None if reference is None else read_curve(reference)
    if all(Path(source).is_file() for source in sources):
        from ..export import load

        for option, text in {"--temperature": temperature, "--points": points}.items():
            if text is not None:
                raise typer.BadParameter(
                    "files of samples have the temperatures that they have", param_hint=option
                )
        for option, value in {"-n": number, "--steps": steps, "--refine": refine or None}.items():
            if value is not None:
                raise typer.BadParameter(
                    "files hold samples that have been drawn", param_hint=option
                )
        sets = [load(source, system=None) for source in sources]
        found = curve_through(sets, target, along=along, edges=cut, pool=pool, seed=seed)
        if beside is not None:
            found = found.beside(beside)
    elif len(sources) == 1:
        found = _sampled(
            sources[0],
            target,
            beside,
            part=temperature,
            points=points,
            n=4000 if number is None else number,
            refine=refine,
            steps=steps,
            seed=seed,
            device=device,
            along=along,
            edges=cut,
            pool=pool,
        )
    else:
        missing = next(source for source in sources if not Path(source).is_file())
        raise typer.BadParameter(
            f"one sampler or several files of samples are expected, and {missing!r} is no file",
            param_hint="ARTIFACT|SAMPLES...",
        )
    if output is not None:
        write_curve(found, output, overwrite=overwrite)
        note(f"wrote {output}")
    if json is not None and not to_stdout:
        write_json(found, json, overwrite=overwrite)
        note(f"wrote {json}")
    if to_stdout:
        print_json(found.to_dict())
    else:
        print_curve(found)


def _sampled(
    source: str,
    system: System | None,
    beside: Curve | None,
    *,
    part: str | None,
    points: int | None,
    n: int,
    refine: int,
    steps: int | None,
    seed: int,
    device: str | None,
    along: str | None,
    edges: list[float] | None,
    pool: bool | None,
) -> Curve:
    """The curve of a sampler, at the temperatures of the reference where there is one."""
    from molsampler.analysis import curve_of
    from molsampler.analysis.thermodynamics import subject

    from ..errors import InputError
    from ..sampler.sampler import Sampler
    from ..temperatures import TemperatureRange

    sampler = Sampler.load(source, system=system)
    whole = sampler.require_range()
    chosen = whole if part is None else TemperatureRange.parse(part)
    if chosen.low not in whole or chosen.high not in whole:
        raise InputError(f"--temperature {part} is not inside the range of {source}, {whole}")
    temperatures = chosen.spread(16 if points is None else points)
    if beside is not None:
        beside.require_of(subject(sampler.system))
        if points is not None:
            raise typer.BadParameter(
                "the temperatures are those of --reference", param_hint="--points"
            )
        temperatures = [row.temperature for row in beside.rows if row.temperature in chosen]
        if len(temperatures) < 2:
            raise InputError(
                f"the reference has {len(temperatures)} temperatures from {chosen}; two or more are needed"
            )
        if len(temperatures) < len(beside.rows):
            left = len(beside.rows) - len(temperatures)
            note(f"{left} temperatures of the reference outside {chosen} are left out")
    total = n * len(temperatures)
    with progress(f"sampling {sampler.system.name}", total) as update:
        found = curve_of(
            sampler,
            temperatures,
            n=n,
            refine=refine,
            steps=steps,
            seed=seed,
            device=device,
            along=along,
            edges=edges,
            pool=pool,
            on_progress=update,
        )
    return found if beside is None else found.beside(beside)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} must be numbers such as -120,0,120", param_hint="--edges"
        ) from None


def print_curve(found: Curve) -> None:
    """The table; with a reference, each of its values below the one that it belongs to."""
    unit = f" ({found.temperature_unit})"
    names = list(found.rows[0].populations)
    columns = [f"temperature{unit}", "energy", "heat capacity (k)", "free energy (kT)", *names]
    rows = []
    others = () if found.reference is None else found.reference.rows
    for index, row in enumerate(found.rows):
        keys = list(row.quantities())
        cells = [_cell(row.quantities()[key]) for key in keys]
        rows.append([f"{row.temperature:.4g}", *cells])
        if others:
            known = others[index].quantities()
            cells = [_cell(known[key]) if key in known else "–" for key in keys]
            rows.append(["  reference", *cells])
    print_table(columns, rows, title=f"{found.system}: value ± standard error")
    print(
        f"energies: {found.energy_unit}, of configurations; heat capacity: var(U) / (kT)^2, likewise"
    )
    print("free energies: -log Z(T) / Z(lowest T)")
    print(f"method: {found.method}")
    for line in found.notes:
        print(f"note: {line}")


def _cell(estimate: Estimate[float]) -> str:
    from molsampler.analysis import format_value

    return "not known" if math.isinf(estimate.se) else format_value(*estimate)
