"""``molsampler sample``: draw from a trained sampler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from .. import torchrun
from ..errors import InputError
from .options import (
    Anneal,
    Count,
    Device,
    Json,
    OfSystem,
    Output,
    Overwrite,
    Seed,
    Steps,
    TrustCode,
    check_samples_output,
    given_system,
    parse_blocks,
)
from .summary import Drawn, say_written
from .terminal import Update, progress, quiet

if TYPE_CHECKING:
    from ..objectives.shards import Peers
    from ..sampler.sampler import Sampler
    from ..sampler.stream import SampleStream
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
    relax: Annotated[
        int,
        typer.Option(
            "--relax",
            min=0,
            help="Kinetic layers more after a one-step sampler's own, each an energy a sample.",
        ),
    ] = 0,
    steps: Steps = None,
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
    with _met() as peers:
        if peers is None or peers.rank == 0:
            check_samples_output(output, overwrite=overwrite)
        from ..export.parts import check_part_output
        from ..sampler.sampler import Sampler

        if blocks is not None:
            check_part_output(output, argument="--output")
            if peers is not None:
                raise InputError(
                    "torchrun shares out the blocks of a run itself: leave out --blocks"
                )
        if peers is not None and device is None:
            # Each the GPU of its number, where there are any.
            import torch

            device = "cuda" if torch.cuda.is_available() else "cpu"
        sampler = Sampler.load(source, system=given_system(system, trust_code=trust_code))

        def stream(blocks: slice | None) -> SampleStream:
            return sampler.stream(
                number,
                seed=seed,
                refine=refine,
                anneal=anneal,
                relax=relax,
                steps=steps,
                temperature=temperature,
                device=torchrun.own_device(device),
                batch_size=batch_size,
                blocks=blocks,
            )

        drawn: Drawn | None
        if peers is None:
            drawn = _drawn(stream(blocks), output, overwrite=overwrite)
        else:
            with quiet() if peers.rank > 0 else nullcontext():
                drawn = _together(peers, sampler, number, stream, output, overwrite=overwrite)
    if drawn is not None and torchrun.rank() == 0:
        say_written(drawn, output, json=json)


def _met() -> AbstractContextManager[Peers | None]:
    """The processes that torchrun started with this one, None where it started none."""
    if torchrun.count() == 1:
        return nullcontext()
    from ..train.ranks import meet

    return cast("AbstractContextManager[Peers | None]", meet())


def _drawn(stream: SampleStream, output: Path, *, overwrite: bool) -> Drawn:
    """Write the samples of a stream."""
    from ..export.parts import save_stream

    drawn = Drawn.none()
    with _shown(f"sampling {stream.sampler.system.name}", stream.count) as update:

        def counted() -> Iterator[Samples]:
            for block in stream.blocks():
                yield block
                drawn.add(block)
                update(drawn.energies.count)

        save_stream(stream, counted(), output, overwrite=overwrite)
    return drawn._replace(metadata=stream.metadata())


def _shown(title: str, total: int) -> AbstractContextManager[Update]:
    return progress(title, total) if torchrun.rank() == 0 else nullcontext(_unseen)


def _unseen(done: float, detail: str = "", *, total: float | None = None) -> None:
    pass


def _together(
    peers: Peers,
    sampler: Sampler,
    number: int,
    stream: Callable[[slice], SampleStream],
    output: Path,
    *,
    overwrite: bool,
) -> Drawn | None:
    """Have every process write its share of the blocks, and rank 0 the file of them all."""
    import torch

    from ..export.parts import merge
    from ..sampler.stream import block_size
    from ..storage.files import remove
    from ..version import __version__

    peers.compare(
        {
            "version of molsampler": __version__,
            "version of torch": torch.__version__,
            "sampler": sampler.hash,
            "number of samples": str(number),
        }
    )
    generator = sampler.generator(torch.device("cpu"))
    blocks = -(-number // block_size(sampler.system.shape[0], generator.at_once))
    # Rounded up, so that rank 0 has a share of however few.
    ends = [-(-rank * blocks // peers.count) for rank in range(peers.count + 1)]
    parts = [output.with_name(f".{output.name}.tmp-{rank}.npz") for rank in range(peers.count)]
    first, last = ends[peers.rank : peers.rank + 2]
    mine = stream(slice(first, last)) if first < last else None
    whole = None
    try:
        if mine is not None:
            whole = _drawn(mine, parts[peers.rank], overwrite=True)
        peers.gather(torch.zeros(1))
        if peers.rank == 0 and mine is not None:
            written = [part for rank, part in enumerate(parts) if ends[rank] < ends[rank + 1]]
            merged = merge(written, output, overwrite=overwrite, system=mine.system)
            whole = Drawn.of(written, merged.metadata)
        # No part goes before the file of them all is there.
        peers.gather(torch.zeros(1))
    finally:
        remove(parts[peers.rank])
    return whole
