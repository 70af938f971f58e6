"""``molsampler free-energy``: log Z, free energies and basins from weighted samples."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Anneal, Device, OfSystem, Overwrite, Seed, Steps, TrustCode, given_system
from .summary import percent
from .terminal import note, print_json, print_table, progress

if TYPE_CHECKING:
    from molsampler.analysis import FreeEnergy


#: Exit code of a result that is not usable.
UNUSABLE = 3


def free_energy(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SAMPLES|ARTIFACT",
            help="Samples, or a sampler (folder or shipped name) that they are drawn from.",
        ),
    ],
    system: OfSystem = None,
    trust_code: TrustCode = False,
    along: Annotated[
        str | None,
        typer.Option(
            "--along",
            metavar="CV",
            help="torsion:i,j,k,l, distance:i,j, FILE.py:NAME (the file is run), or a name that the "
            "system's file defines; particles count from zero.",
        ),
    ] = None,
    edges: Annotated[
        str | None,
        typer.Option(
            "--edges",
            metavar="A,B,...",
            help="Where basins along CV begin; by default at the barriers of the profile.",
        ),
    ] = None,
    unit: Annotated[
        str, typer.Option("--unit", help="Of energies: kT, kJ/mol or kcal/mol.")
    ] = "kT",
    temperature: Annotated[
        float | None,
        typer.Option(
            "--temperature",
            help="At which an ARTIFACT of a range is drawn from; otherwise kelvin, for reduced systems in "
            "other units than kT.",
        ),
    ] = None,
    number: Annotated[
        int | None,
        typer.Option(
            "-n", "--number", min=1, help="Samples to draw from an ARTIFACT, 10,000 by default."
        ),
    ] = None,
    anneal: Anneal = 1,
    steps: Steps = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Plot of the profile along CV (.png, .svg or .pdf)."),
    ] = None,
    json: Annotated[
        Path | None, typer.Option("--json", help="Numbers as JSON; - is standard output.")
    ] = None,
    seed: Seed = 0,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Log Z, free energy, mean energy, entropy, heat capacity and basins, each with an error.

    Exit code 3 says that the weights do not carry an answer; the reason is printed, no number is.
    """
    from molsampler.analysis import free_energy, write_json, write_profile
    from molsampler.analysis.figure_file import check_plot
    from molsampler.analysis.free_energies import check_question

    from ..storage.files import check_output

    to_stdout = json is not None and str(json) == "-"
    if output is not None:
        check_plot(output, overwrite=overwrite)
    if json is not None and not to_stdout:
        check_output(json, overwrite=overwrite)
    if output is not None and along is None:
        raise typer.BadParameter(
            "a plot needs a collective variable: give --along", param_hint="-o"
        )
    cut = None if edges is None else _numbers(edges)
    target = given_system(system, trust_code=trust_code)
    if Path(source).is_file():
        from ..export import load

        drawing = {"-n": number, "--steps": steps, "--anneal": None if anneal == 1 else anneal}
        for option, value in drawing.items():
            if value is not None:
                raise typer.BadParameter(
                    f"{source} is a file, whose samples have been drawn", param_hint=option
                )
        samples = load(source, system=target)
    else:
        from ..sampler.sampler import Sampler

        sampler = Sampler.load(source, system=target)
        at = None
        if sampler.temperatures is not None:
            if unit != "kT" and not sampler.system.in_kelvin:
                raise typer.BadParameter(
                    f"of a range --temperature is where to draw, in the unit of {sampler.system.name}; for "
                    f"{unit}, which needs kelvin, draw first (molsampler sample --temperature) and give "
                    "the file",
                    param_hint="--unit",
                )
            at, temperature = temperature, None
            target = target if target is None or at is None else target.at(at)
        elif unit == "kT" and not sampler.system.in_kelvin:
            at, temperature = temperature, None
        check_question(sampler.system, along=along, edges=cut, unit=unit, temperature=temperature)
        count = 10_000 if number is None else number
        with progress(f"sampling {sampler.system.name}", count):
            samples = sampler.sample(
                count, anneal=anneal, steps=steps, temperature=at, seed=seed, device=device
            )
    found = free_energy(
        samples, target, along=along, edges=cut, unit=unit, temperature=temperature, seed=seed
    )
    if output is not None and found.along is not None:
        write_profile(found.along, output, overwrite=overwrite)
        note(f"wrote {output}")
    if json is not None and not to_stdout:
        write_json(found, json, overwrite=overwrite)
        note(f"wrote {json}")
    if to_stdout:
        print_json(found.to_dict())
    else:
        print_free_energy(found)
    if not found.usable:
        raise typer.Exit(UNUSABLE)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} must be numbers such as -120,0,120", param_hint="--edges"
        ) from None


def print_free_energy(found: FreeEnergy) -> None:
    """The verdict, then the numbers, where there are any."""
    from molsampler.analysis import format_value

    v = found.verdict
    facts = [f"{v.n:,} samples"]
    if found.weighted:
        facts.append(f"effective number {v.ess:,.0f}")
        facts.append(
            "largest weight " + ("none" if v.max_weight is None else f"{percent(v.max_weight)}")
        )
        facts.append("Pareto k " + ("not fitted" if v.pareto_k is None else f"{v.pareto_k:.2f}"))
    at = ""
    if found.temperature is not None:
        kelvin = " K" if found.temperature_unit == "K" else ""
        at = f" at temperature {found.temperature:g}{kelvin}"
    print(f"{found.system or 'system unknown'}{at}: {', '.join(facts)}")
    if not found.usable:
        print(f"NOT USABLE: {v.reason}")
        return
    if v.reason:
        print(v.reason)
    quantities = (
        ("log Z", "", found.log_z),
        ("F = -log Z", found.unit, found.F),
        ("U, mean energy", found.unit, found.U),
        ("S = (U - F) / T", found.entropy_unit, found.S),
        ("C, var(u)", found.entropy_unit, found.C),
    )
    rows = [
        [name, "–" if each is None else format_value(*each), unit]
        for name, unit, each in quantities
    ]
    print_table(["quantity", "value ± standard error", "unit"], rows)
    if found.basins:
        print()
        print_table(
            ["basin", "population", f"free energy ({found.unit})", "against", "effective samples"],
            [
                [
                    basin.name,
                    format_value(*basin.population),
                    "–" if basin.free_energy is None else format_value(*basin.free_energy),
                    basin.reference,
                    f"{basin.ess:,.0f}",
                ]
                for basin in found.basins
            ],
        )
    for line in found.notes:
        print(f"note: {line}")
    if found.weighted:
        print(f"measure of log Z: {found.measure}")
    print(f"errors: bootstrap over {found.blocks:,} blocks ({found.rule})")
