"""``molsampler compare``: how far samples are from a reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Overwrite, TrustCode, given_system
from .terminal import file_size, note, print_json, print_table, progress

if TYPE_CHECKING:
    from molsampler.analysis import Comparison

    from ..samples import Samples
    from ..target import System


def compare(
    samples: Annotated[Path, typer.Argument(metavar="SAMPLES", help="Samples to judge.")],
    reference: Annotated[Path, typer.Argument(metavar="REFERENCE", help="Samples to trust.")],
    system: Annotated[
        str | None, typer.Option("--system", help="By default the one that the files name.")
    ] = None,
    topology: Annotated[
        Path | None,
        typer.Option("--top", help="Names the atoms of REFERENCE (.pdb, .gro, .prmtop, .psf)."),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option("--weights", help="Weights of REFERENCE (.npy, or log_weights in .npz)."),
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Report (.html).")] = None,
    metrics: Annotated[
        Path | None, typer.Option("--json", help="Metrics as JSON; - is standard output.")
    ] = None,
    number: Annotated[
        int, typer.Option("-n", "--number", min=20, help="Configurations per draw.")
    ] = 2000,
    monte_carlo: Annotated[
        bool, typer.Option(help="Add plain Monte Carlo at the same cost to the table.")
    ] = True,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the draws.")] = 0,
    trust_code: TrustCode = False,
    overwrite: Overwrite = False,
) -> None:
    """Compare samples with a reference: every metric with its standard error and its floor.

    REFERENCE may be a run of your own, of which --top names the atoms. What was done with its frames stands
    under the table.
    """
    from molsampler.analysis import write_json, write_report

    from ..export import load
    from ..export.simulation import load_simulation
    from ..storage.files import check_output

    to_stdout = metrics is not None and str(metrics) == "-"
    for path in (output, None if to_stdout else metrics):
        if path is not None:
            check_output(path, overwrite=overwrite)
    target = given_system(system, trust_code=trust_code)
    note(f"reading {samples.name}")
    said: tuple[str, ...] = ()
    if target is None:
        judged = load(samples)
        target = judged.system()
    else:
        judged, said = load_simulation(samples, target)
    note(f"reading {reference.name}")
    # Of another system, or another temperature, it is refused.
    trusted, more = load_simulation(reference, target, topology=topology, weights=weights)
    remarks = (*said, *more)
    for remark in remarks:
        note(remark)
    comparison = run(judged, trusted, target, number=number, monte_carlo=monte_carlo, seed=seed)
    comparison = replace(comparison, remarks=(*remarks, *comparison.remarks))
    if output is not None:
        write_report(comparison, output, overwrite=overwrite)
        note(f"wrote {output} ({file_size(output)}, one file that loads nothing)")
    if to_stdout:
        print_json(comparison.to_dict())
        return
    if metrics is not None:
        write_json(comparison, metrics, overwrite=overwrite)
        note(f"wrote {metrics}")
    print_comparison(comparison)


def run(
    samples: Samples,
    reference: Samples,
    system: System,
    *,
    number: int,
    monte_carlo: bool,
    seed: int,
) -> Comparison:
    """A comparison, with progress on standard error."""
    from molsampler.analysis import compare

    note(
        f"comparing {len(samples):,} samples of {system.name} with {len(reference):,} of the reference"
    )
    with progress(f"comparing samples of {system.name}", None, every=2.0) as update:
        return compare(
            samples,
            reference,
            system,
            n=number,
            monte_carlo=monte_carlo,
            seed=seed,
            progress=lambda message: update(0, message),
        )


def print_comparison(comparison: Comparison) -> None:
    """Metrics as rows, sample sets as columns, the floors last; a star marks what fails its gate,
    a hyphen what is not judged."""
    from molsampler.analysis import GATE_SIGMAS, format_value

    columns: Mapping[str, Comparison] = {
        comparison.label: comparison,
        **{f"({i})": baseline for i, baseline in enumerate(comparison.baselines, 1)},
    }
    reference = comparison.reference
    rows = [
        [
            "median energy (kT)",
            *(format_value(c.samples.median, c.samples.median_se) for c in columns.values()),
            format_value(reference.median, reference.median_se),
            "",
        ]
    ]
    for metric in comparison.metrics:
        cells = []
        for each in columns.values():
            found = each.metric(metric.key)
            mark = " -" if not found.judged else "" if found.passed() else " *"
            cells.append(format_value(found.value, found.se) + mark)
        name = f"{metric.name} ({metric.unit})" if metric.unit else metric.name
        floor = format_value(metric.floor, metric.floor_se)
        rows.append([name, *cells, floor, f"{metric.n} x {metric.repeats}"])
    title = f"{comparison.system}: value ± standard error"
    print_table(["metric", *columns, "reference / floor", "N x repeats"], rows, title=title)
    for mark, each in list(columns.items())[1:]:
        print(f"{mark} {each.label}")
    print(f"* more than {GATE_SIGMAS:g} standard errors above the floor")
    if not all(metric.judged for metric in comparison.metrics):
        print("- not judged: the poses that the reference's frames happen to have decide it")
    for line in comparison.molecule.lines() if comparison.molecule is not None else ():
        print(line)
    for remark in comparison.remarks:
        print(remark)
