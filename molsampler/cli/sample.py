"""``molsampler sample``: draw from a trained sampler."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from .options import (
    Anneal,
    Count,
    Device,
    Json,
    OfSystem,
    Output,
    Overwrite,
    Seed,
    TrustCode,
    check_samples_output,
    given_system,
    parse_blocks,
)
from .summary import WeightStatistics, energy_line
from .terminal import print_json, progress

if TYPE_CHECKING:
    from ..samples import Samples


def sample(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SYSTEM|ARTIFACT",
            help="A system whose sampler ships, or a folder with a trained sampler.",
        ),
    ],
    number: Count,
    output: Output,
    system: OfSystem = None,
    trust_code: TrustCode = False,
    seed: Seed = 0,
    refine: Annotated[
        int, typer.Option("--refine", min=0, help="MALA steps on the exact target afterwards.")
    ] = 0,
    anneal: Anneal = 1,
    temperature: Annotated[
        float | None,
        typer.Option(
            "--temperature",
            help="Of the range of the sampler; kelvin for molecules. By default the system's own.",
        ),
    ] = None,
    device: Device = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Does not change the samples.")
    ] = None,
    blocks: Annotated[
        slice | None,
        typer.Option(
            "--blocks",
            parser=parse_blocks,
            metavar="A:B",
            help="Only these blocks of the run, counted from zero; `molsampler merge` joins the files.",
        ),
    ] = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Draw independent samples from a trained sampler and write them to a file."""
    check_samples_output(output, overwrite=overwrite)
    from ..export.energy_statistics import EnergyStatistics
    from ..export.parts import check_part_output, save_stream
    from ..sampler.sampler import Sampler

    if blocks is not None:
        check_part_output(output, argument="--output")
    sampler = Sampler.load(source, system=given_system(system, trust_code=trust_code))
    stream = sampler.stream(
        number,
        seed=seed,
        refine=refine,
        anneal=anneal,
        temperature=temperature,
        device=device,
        batch_size=batch_size,
        blocks=blocks,
    )
    statistics, weights = EnergyStatistics(), WeightStatistics()
    with progress(f"sampling {sampler.system.name}", stream.count) as update:

        def counted() -> Iterator[Samples]:
            for block in stream.blocks():
                yield block
                statistics.add(block.energies)
                if block.log_weights is not None:
                    weights.add(block.log_weights)
                update(statistics.count)

        save_stream(stream, counted(), output, overwrite=overwrite)
    energies, metadata = statistics.summary().model_dump(), stream.metadata()
    if json:
        print_json(
            {
                "file": output,
                "n": stream.count,
                "energies": energies,
                **weights.summary(),
                **metadata,
            }
        )
        return
    at = ""
    if sampler.temperatures is not None:
        at = f" at temperature {stream.system.temperature:g}"
    print(f"wrote {output}: {stream.count:,} samples of {sampler.system.name}{at}")
    print(energy_line(energies))
    if said := weights.line():
        print(said)
    if handed := metadata.get("handedness"):
        print(
            f"handedness: {handed['wrong_before_inversion']:,} of {handed['molecules']:,} had a wrong "
            f"centre, {handed['wrong_after_inversion']:,} after inversion"
        )
    if refine:
        drift = metadata.get("drift")
        print(
            f"refinement: {refine} MALA steps, acceptance {metadata['acceptance']:.3f}, "
            f"step size {metadata['step_size']:.3g}, energy-W2 to the unrefined samples "
            + ("undefined" if drift is None else f"{drift:.3f} kT")
        )
