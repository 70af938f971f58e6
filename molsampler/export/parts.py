"""Parts of a run of sampling: a file for a range of its blocks, and the file of the whole made of them.

A part is an ``.npz`` like any other. Its metadata say under ``part`` what it is a part of
(:class:`molsampler.sampler.tally.Part`), and the array ``unrefined_energies`` holds what the drift of the
whole needs. :func:`merge` makes of them the file that one run would have written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import FileFormatError, InputError, MolsamplerError
from ..sampler.stream import SampleStream
from ..sampler.tally import COUNTED, DRIFT_SAMPLES, Part, Tally
from ..samples import Samples
from ..storage.validation import validated
from ..systems import resolve
from ..target import System
from . import check_destination, npz, save_blocks
from .format import format_of

_UNREFINED = "unrefined_energies"
#: In which order differences between parts are told: causes before what follows from them.
_FIRST = ("system", "artifact_hash", "seed", "refine", "version", "torch_version", "device")


def check_part_output(path: Path, *, argument: str = "the file of a part") -> None:
    """Refuse a file of a part that is no ``.npz``.

    Raises
    ------
    InputError
        It is not.
    """
    if path.suffix != ".npz":
        raise InputError(
            f"{argument} {path.name!r} must end in .npz: parts of a run keep every bit, and "
            "`molsampler merge` writes any format"
        )


def save_stream(
    stream: SampleStream, blocks: Iterable[Samples], path: Path | str, *, overwrite: bool = False
) -> None:
    """Write the samples of a stream, handed over as ``blocks``, with its record and what a part needs.

    Raises
    ------
    InputError
        The stream is a part, and ``path`` does not end in ``.npz``.
    OutputExistsError, StorageError
        See :func:`molsampler.export.save`.
    """
    path = Path(path)
    if stream.partial:
        check_part_output(path)

    def extras() -> dict[str, Tensor]:
        unrefined = stream.unrefined_energies()
        return {_UNREFINED: unrefined} if stream.partial and len(unrefined) else {}

    save_blocks(
        blocks,
        path,
        count=stream.count,
        system=stream.sampler.system,
        metadata=stream.record,
        overwrite=overwrite,
        extras=extras,
    )


@dataclass(frozen=True)
class _Piece:
    """A file, what it says that it is, and what it holds beside samples."""

    path: Path
    part: Part
    metadata: dict[str, Any]
    unrefined: list[Tensor]

    @property
    def common(self) -> dict[str, Any]:
        """What all parts of a run have in common."""
        known = {key: value for key, value in self.metadata.items() if key not in COUNTED}
        return {**known, "part": {"of": self.part.of, "block_size": self.part.block_size}}


class Merged(NamedTuple):
    """A run made whole."""

    samples: int
    metadata: dict[str, Any]


def merge(
    parts: Sequence[Path | str],
    path: Path | str,
    *,
    overwrite: bool = False,
    system: System | str | None = None,
) -> Merged:
    """Join the parts of a run, in any order, to the file that one run would have written.

    ``system`` is needed for trajectories whose metadata does not name a registered system. Memory does not
    grow with the number of samples.

    Raises
    ------
    FileFormatError
        A file is damaged or no part of a run.
    InputError
        Parts are of different runs, overlap, or leave a gap.
    OutputExistsError, StorageError
        See :func:`molsampler.export.save`.
    """
    path = Path(path)
    format_of(path)
    check_destination(path, overwrite=overwrite)
    if not parts:
        raise InputError("there are no parts to merge; at least one is needed")
    if path.exists() and any(Path(each).exists() and path.samefile(each) for each in parts):
        raise InputError(f"{path} is among the parts; name another output")
    pieces = sorted((_read(Path(each)) for each in parts), key=lambda piece: piece.part.blocks)
    _check_common(pieces)
    _check_cover(pieces)
    tally = Tally.total([(piece.metadata, piece.part) for piece in pieces])
    tally.before = [each for piece in pieces for each in piece.unrefined]
    measured = sum(map(len, tally.before))
    whole = pieces[0].part.of
    if tally.moves and measured != min(whole, DRIFT_SAMPLES):
        raise FileFormatError(
            f"the parts hold {measured:,} energies from before refinement, {min(whole, DRIFT_SAMPLES):,} "
            "are expected"
        )

    def samples() -> Iterator[Samples]:
        left = measured
        for piece in pieces:
            with closing(npz.blocks(piece.path)) as blocks:
                for block in blocks:
                    if left:
                        tally.after.append(block.energies[:left].clone())
                        left -= len(tally.after[-1])
                    yield block

    def metadata() -> dict[str, Any]:
        known = {k: v for k, v in pieces[0].common.items() if k not in ("part", "step_size")}
        return {**known, **tally.record()}

    save_blocks(
        samples(),
        path,
        count=whole,
        system=pieces[0].metadata.get("system") if system is None else resolve(system),
        metadata=metadata,
        overwrite=overwrite,
    )
    return Merged(whole, metadata())


def _read(path: Path) -> _Piece:
    """The head of a part, checked.

    Raises
    ------
    FileFormatError
        It is none.
    """
    if not path.is_file():
        raise FileFormatError(f"{path} does not exist or is not a regular file")
    if path.suffix != ".npz":
        raise FileFormatError(f"{path} is no part of a run: parts are .npz files")
    shape, metadata, others = npz.head(path, _UNREFINED)
    if "part" not in metadata:
        raise FileFormatError(
            f"{path} is no part of a run: it was not written by `molsampler sample --blocks A:B`"
        )
    try:
        part = validated(Part, metadata["part"])
        counts = [metadata[key] for key in ("energy_evaluations", "nonfinite_energies")]
        if not all(isinstance(count, int) for count in counts):
            raise InputError("energy evaluations are not whole numbers")
    except (MolsamplerError, KeyError) as error:
        raise FileFormatError(f"{path}: what it says of its part is unusable: {error}") from None
    first, last = part.blocks
    if not 0 <= first < last <= -(-part.of // part.block_size) or shape[0] != part.rows:
        raise FileFormatError(
            f"{path} holds {shape[0]:,} samples where blocks {first}:{last} of {part.block_size} in a run "
            f"of {part.of:,} are announced"
        )
    return _Piece(path, part, metadata, [torch.from_numpy(each.copy()) for each in others])


def _check_common(pieces: Sequence[_Piece]) -> None:
    """Refuse parts of different runs."""
    first = pieces[0]
    for other in pieces[1:]:
        keys = [*_FIRST, *first.common, *other.common]
        for key in keys:
            values = [piece.common.get(key) for piece in (first, other)]
            if values[0] != values[1]:
                raise InputError(
                    f"{first.path} and {other.path} are parts of different runs: {key} is "
                    f"{_short(values[0])} in one and {_short(values[1])} in the other"
                )


def _check_cover(pieces: Sequence[_Piece]) -> None:
    """Refuse parts, in order, that overlap or do not make up the whole."""
    total = -(-pieces[0].part.of // pieces[0].part.block_size)
    done = 0
    before: Path | None = None
    for piece in pieces:
        first, last = piece.part.blocks
        if first < done:
            raise InputError(
                f"{before} and {piece.path} overlap: both hold block {first} (of {total:,})"
            )
        if first > done:
            raise InputError(f"no part holds the blocks {done}:{first} (of {total:,})")
        done, before = last, piece.path
    if done < total:
        raise InputError(f"no part holds the blocks {done}:{total} (of {total:,})")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
