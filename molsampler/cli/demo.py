"""``molsampler demo``: the whole tour on two systems, from shipped weights to trajectories."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import compare as comparing
from . import reference as referring
from .options import Device, Json, Overwrite, Seed
from .terminal import duration, file_size, note, print_json, progress

if TYPE_CHECKING:
    from molsampler.analysis import Comparison

    from ..samples import Samples
    from ..target import System

SYSTEMS = ("dw4", "lj13")
#: Samples drawn.
SAMPLES = 5_000
#: Reference samples, and configurations per draw of the metrics: what two cores compare in a minute.
REFERENCE = 3_000
DRAW = 1_000
GEOMETRIC_DRAW = 100
#: MALA steps that show what refinement repairs.
REFINE = 100
#: Frames in the trajectories; the .npz files hold all samples.
FRAMES = 500
#: The .pdb comes first: its first model is the topology of the others.
TRAJECTORIES = (".pdb", ".xtc", ".dcd", ".h5")


def demo(
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for the results, made if missing.")
    ] = Path("molsampler-demo"),
    seed: Seed = 0,
    device: Device = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Samples from shipped weights, a fresh OpenMM run, a report and trajectories.

    Takes under three minutes on two cores.
    """
    from ..errors import OutputExistsError
    from ..storage.files import write_bytes

    started = time.monotonic()
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        raise OutputExistsError(f"--output {output} is not a folder")
    if output.is_dir() and any(output.iterdir()) and not overwrite:
        raise OutputExistsError(
            f"--output {output} is not empty; name another folder with -o or pass --overwrite"
        )
    output.mkdir(parents=True, exist_ok=True)
    comparisons = {}
    for name in SYSTEMS:
        comparisons[name] = _tour(name, output, seed=seed, device=device)
        if not json:
            comparing.print_comparison(comparisons[name])
            print()
    write_bytes(output / "report.html", _page(comparisons).encode())
    if json:
        print_json({name: comparison.to_dict() for name, comparison in comparisons.items()})
        return

    print(f"done in {duration(time.monotonic() - started)}; open")
    print(f"  {output / 'report.html'}  in a browser: how far the samples are from the reference")
    for name in SYSTEMS:
        stem = output / name
        print(f"  {stem}.pdb  in any molecular viewer: {FRAMES} samples of {name}")
        print(
            f"  {stem}.xtc .dcd .h5  the same, for MDAnalysis, MDTraj, VMD (topology: {name}.pdb)"
        )
        print(f"  {stem}.npz  all {SAMPLES:,} samples with energies, lossless")


def _tour(name: str, folder: Path, *, seed: int, device: str | None) -> Comparison:
    """Sample, refine, run the reference, compare and write."""
    from molsampler.analysis import write_report

    from ..export import save
    from ..sampler.sampler import Sampler

    sampler = Sampler.load(name)
    system = sampler.system
    with progress(f"sampling {name}", None):
        samples = sampler.sample(SAMPLES, seed=seed, device=device)
    with progress(f"refining {name}, {REFINE} steps", None):
        refined = sampler.sample(SAMPLES, seed=seed, refine=REFINE, device=device)
    reference = referring.run(system, REFERENCE, method=referring.Method.openmm, seed=seed)
    note(f"reference {name}: {referring.describe(reference.metadata['convergence'])}")

    for stem, saved in (
        (name, samples),
        (f"{name}-refined", refined),
        (f"{name}-reference", reference),
    ):
        save(saved, folder / f"{stem}.npz", overwrite=True)
    for suffix in TRAJECTORIES:
        save(samples[:FRAMES], folder / f"{name}{suffix}", overwrite=True)

    comparison = _compare(samples, refined, reference, system, seed=seed)
    report = folder / f"{name}-report.html"
    write_report(comparison, report, overwrite=True)
    note(f"wrote {report} ({file_size(report)})")
    return comparison


def _page(comparisons: dict[str, Comparison]) -> str:
    """The landing page: what each report says first, and its pictures."""
    from molsampler.analysis.page import render

    return render(
        Path(__file__).parent / "demo.html.j2",
        refine=REFINE,
        sections=[_section(name, comparison) for name, comparison in comparisons.items()],
    )


def _section(name: str, comparison: Comparison) -> dict[str, Any]:
    from molsampler.analysis import headline
    from molsampler.analysis.figures import modes, plots, structures

    bars = modes(comparison)
    return {
        "name": name,
        "headline": headline(comparison),
        "refined": headline(comparison.baselines[0]),
        "structures": structures(comparison.structures),
        "plots": plots(comparison)
        + ([] if bars is None else [{"svg": bars, "caption": "Mode weights."}]),
        "report": f"{name}-report.html",
    }


def _compare(
    samples: Samples, refined: Samples, reference: Samples, system: System, *, seed: int
) -> Comparison:
    """The samples as they are, with two more lines: refined, and Monte Carlo at the cost of those."""
    from molsampler.analysis import compare_many, equal_budget_monte_carlo

    one_step, after = "one step", f"refined by {REFINE} MALA steps"
    with progress(f"comparing {system.name}", None) as update:
        update(0, "Monte Carlo")
        monte_carlo = equal_budget_monte_carlo(
            system,
            len(refined),
            energy_evaluations=refined.metadata["energy_evaluations"],
            seed=seed,
            spread=float(reference.positions.std()),
        )
        results = compare_many(
            {
                one_step: samples,
                after: refined,
                "Monte Carlo from scratch, as many energy evaluations as (1)": monte_carlo,
            },
            reference,
            system,
            n=DRAW,
            geometric_n=GEOMETRIC_DRAW,
            seed=seed,
            progress=lambda message: update(0, message),
        )
    own = results.pop(one_step)
    return replace(own, baselines=tuple(results.values()))
