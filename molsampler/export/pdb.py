"""PDB files: text, one model a frame, coordinates in angstrom with three decimals.

MDTraj writes the first model, which settles names, elements and bonds; further models repeat its
lines with their own coordinates.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import FileFormatError, InputError
from .lengths import Frames, box_vectors
from .topology import HIGHEST, LOWEST, template
from .trajectory import CHUNK, Opened, Trajectory

#: Characters in a line, its end included, at which it is no longer believed.
LONGEST = 1000
#: A coordinate's columns; ``float`` alone would take "1_0" and "nan".
_NUMBER = re.compile(r" *[+-]?([0-9]+\.?[0-9]*|\.[0-9]+) *")


def _check_range(frames: Frames, first: int) -> None:
    """Refuse coordinates (nm) that do not fit the columns; ``first`` is the index of the first frame."""
    angstrom = frames.astype(np.float64) * 10.0
    outside = (angstrom < LOWEST) | (angstrom > HIGHEST)
    if np.any(outside):
        frame, atom, axis = np.argwhere(outside)[0]
        raise InputError(
            f"frame {first + frame}, atom {atom} has a coordinate of {angstrom[frame, atom, axis]:.3f} "
            f"angstrom; a PDB file holds {LOWEST} to {HIGHEST}; choose .h5, .dcd or .npz"
        )


def _models(path: Path) -> Iterator[array[float]]:
    """Coordinates in angstrom of each model."""
    model: array[float] = array("d")
    inside = explicit = ended = False
    try:
        with open(path, encoding="ascii") as file:
            for number, line in enumerate(iter(lambda: file.readline(LONGEST), ""), 1):
                if len(line) == LONGEST:
                    raise FileFormatError(
                        f"{path}, line {number}: longer than {LONGEST - 1} characters"
                    )
                record = line[:6].rstrip()
                if record in ("ATOM", "HETATM"):
                    if len(line.rstrip("\n")) < 54 or (explicit and not inside):
                        raise FileFormatError(f"{path} is truncated or damaged at line {number}")
                    columns = [line[k : k + 8] for k in (30, 38, 46)]
                    if all(map(_NUMBER.fullmatch, columns)):
                        model.extend(map(float, columns))
                    else:
                        raise FileFormatError(
                            f"{path}, line {number}: coordinates expected in columns 31-54, "
                            f"got {line[30:54]!r}"
                        )
                elif record == "MODEL":
                    if inside or model:
                        raise FileFormatError(
                            f"{path}, line {number}: a model begins inside another"
                        )
                    inside = explicit = True
                elif record == "ENDMDL":
                    if not inside:
                        raise FileFormatError(f"{path}, line {number}: ENDMDL without MODEL")
                    yield model
                    model, inside = array("d"), False
                elif record == "END":
                    ended = True
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{path} is not a text file: {error}") from None
    if explicit and (inside or not ended):
        raise FileFormatError(f"{path} is truncated: its last model or the END record is missing")
    if model:
        yield model


def _count_models(path: Path) -> tuple[int, int]:
    """Models and atoms.

    Raises
    ------
    FileFormatError
        A model is incomplete, or models differ in their number of atoms.
    """
    frames = atoms = 0
    for model in _models(path):
        held = len(model) // 3
        if frames and held != atoms:
            raise FileFormatError(
                f"{path}: model {frames + 1} has {held} atoms, earlier ones have {atoms}"
            )
        frames, atoms = frames + 1, held
    if not atoms:
        raise FileFormatError(f"{path} holds no atoms")
    return frames, atoms


def _read(path: Path, chunk: int) -> Iterator[Frames]:
    """Frames ``(<= chunk, N, 3)`` in nm, in order."""
    models: list[array[float]] = []
    for model in _models(path):
        models.append(model)
        if len(models) == chunk:
            yield _frames(models)
            models = []
    if models:
        yield _frames(models)


def _frames(models: list[array[float]]) -> Frames:
    frames = np.array(models).reshape(len(models), -1, 3) / 10.0
    return frames.astype(np.float32)


class PDBFormat(Trajectory):
    """Text that every viewer reads; a file is its own topology."""

    suffix = ".pdb"
    description = "PDB, rounded to 1e-3 angstrom"
    precision_nm = 1e-4
    bytes_per_atom = 81

    @contextmanager
    def writer(self, path: Path, topology: Any, count: int) -> Iterator[Any]:
        """Yield a function that appends frames ``(n, N, 3)`` in nm."""
        model, footer = template(topology)
        done = 0
        with open(path, "w", encoding="ascii") as file:

            def append(frames: Frames) -> None:
                nonlocal done
                _check_range(frames, done)
                # Rounded in float64, so that the last digit is that of the float32 coordinate.
                for flat in (frames.astype(np.float64) * 10.0).reshape(len(frames), -1).tolist():
                    done += 1
                    # The model number has four columns; readers count the records.
                    file.write(f"MODEL     {done % 10000:4d}\n{model % tuple(flat)}ENDMDL\n")

            yield append
            file.write(footer)

    def boxes(self, path: Path) -> NDArray[np.float64] | None:
        """The CRYST1 record, for all models; see :meth:`molsampler.export.trajectory.Trajectory.boxes`."""
        frames, _ = _count_models(path)
        with open(path, encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith("CRYST1"):
                    try:
                        numbers = [float(line[6 + 9 * k : 15 + 9 * k]) for k in range(3)]
                        angles = [float(line[33 + 7 * k : 40 + 7 * k]) for k in range(3)]
                    except ValueError:
                        return None
                    lengths, cosines = np.array([numbers]) / 10, np.cos(np.radians([angles]))
                    # A cube of one angstrom is how the format says that there is none.
                    if np.all(lengths <= 0.1):
                        return None
                    return np.repeat(box_vectors(lengths, cosines), frames, axis=0)
        return None

    @contextmanager
    def open(self, path: Path, *, trusted: bool = False) -> Iterator[Opened]:
        """Yield models, atoms and pieces.

        Raises
        ------
        FileFormatError
            A model is incomplete, or models differ in their number of atoms.
        """
        yield Opened(*_count_models(path), _read(path, CHUNK))


PDB = PDBFormat()
