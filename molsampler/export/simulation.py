"""Frames of a user's own simulation as samples of a system: atoms matched, molecules made whole, weights.

A trajectory of another program may have its atoms in another order, solvent around the molecule, and
molecules cut by the faces of a periodic box. Nothing of this shows in the coordinates alone: what was found
and done is said, and what cannot be put right is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import FileFormatError, InputError, ShapeError
from ..molecule.graph import neighbours
from ..molecule.matching import match
from ..samples import Samples
from ..storage.files import read_limited
from ..target import COORDINATE_LIMIT, System
from . import load
from .format import format_of
from .lengths import from_nanometres, topology_of
from .sidecar import read_sidecar, sidecar_path
from .trajectory import Trajectory

Array = NDArray[np.float64]

#: A bond longer than this (nm) is one across a face of the box: no two atoms of a molecule bind so far.
_LONGEST_BOND = 0.45
#: And none is shorter.
_SHORTEST_BOND = 0.07
#: Suffixes of trajectories that name their atoms.
_NAMING = (".pdb", ".h5")
#: Ratio of bond lengths, of one frame and of the system's geometry, beyond which the atoms are others.
_STRETCH = 1.4
_LIMIT = 2**30


class Simulation(NamedTuple):
    """Samples, and what a reader must know of how they came from the file."""

    samples: Samples
    remarks: tuple[str, ...]


def load_simulation(
    path: Path | str,
    system: System,
    *,
    topology: Path | str | None = None,
    weights: Path | str | None = None,
) -> Simulation:
    """Samples of a trajectory that another program wrote, or of any file that :func:`load` reads.

    Parameters
    ----------
    topology : a file that names the atoms of the trajectory and their bonds (.pdb, .gro, .prmtop, .psf); a
        PDB trajectory names its own. Without it the atoms are taken in the order of the system
    weights : log weights of the frames, or weights; see :func:`read_weights`

    Raises
    ------
    InputError
        The atoms are not those of the system, with the first difference; the weights do not fit.
    FileFormatError
        A file is unreadable, or a molecule is cut and nothing says by which box.
    ShapeError
        The number of atoms is another and no topology tells which are those of the system.
    """
    path = Path(path)
    form = format_of(path)
    remarks: list[str] = []
    if not isinstance(form, Trajectory) or (topology is None and _recorded(path)):
        if topology is not None:
            raise InputError(f"{path.name} names its system by itself; leave the topology out")
        samples = load(path, system=system)
    else:
        samples, remarks = _frames(form, path, system, topology)
    if weights is not None:
        if samples.log_weights is not None:
            raise InputError(f"{path.name} has log weights of its own; leave {weights} out")
        values = read_weights(Path(weights), len(samples))
        samples = Samples(samples.positions, samples.energies, values, samples.metadata)
        remarks.append(
            f"{path.name}: weights of {weights}, effective sample size {samples.ess:.0f}."
        )
    return Simulation(samples, tuple(remarks))


def read_weights(path: Path, frames: int) -> torch.Tensor:
    """Log weights ``(frames,)`` of a file.

    A ``.npz`` holds them as ``log_weights`` or ``weights``. A ``.npy`` holds weights, or log weights where
    its name has ``log_weights`` in it.

    Raises
    ------
    FileFormatError
        The file is no array of numbers.
    InputError
        There are not as many as frames, or weights are negative, infinite or all zero.
    """
    read_limited(path, _LIMIT)
    try:
        held = np.load(path, allow_pickle=False)
        if isinstance(held, np.lib.npyio.NpzFile):
            known = [key for key in ("log_weights", "weights") if key in held]
            if not known:
                raise InputError(f"{path} has neither log_weights nor weights, but {held.files}")
            values, logarithmic = np.asarray(held[known[0]]), known[0] == "log_weights"
        else:
            values, logarithmic = np.asarray(held), "log_weights" in path.name
        values = values.astype(np.float64)
    except (ValueError, OSError, EOFError) as error:
        if isinstance(error, InputError):
            raise
        raise FileFormatError(f"{path} holds no weights: {error}") from None
    if values.shape != (frames,):
        raise InputError(f"{path} holds weights of shape {values.shape} for {frames} frames")
    if logarithmic:
        return torch.from_numpy(values)
    if not np.all(values >= 0) or not np.isfinite(values).all() or not values.any():
        raise InputError(
            f"{path} must hold finite weights that are not negative and not all zero; log weights stand in "
            "a file with log_weights in its name"
        )
    with np.errstate(divide="ignore"):
        return torch.from_numpy(np.log(values))


def _recorded(path: Path) -> bool:
    sidecar = read_sidecar(sidecar_path(path))
    return sidecar is not None and bool(sidecar.records(path.name))


def _frames(
    form: Trajectory, path: Path, system: System, topology: Path | str | None
) -> tuple[Samples, list[str]]:
    n, dimension = system.shape
    wanted = topology_of(system)
    named = _read_topology(path if topology is None and path.suffix in _NAMING else topology)
    boxes = form.boxes(path)
    remarks: list[str] = []
    pieces: list[torch.Tensor] = []
    order: list[int] | None = None
    done = moved = 0
    with form.open(path) as (_, atoms, chunks):
        if named is not None and named.n_atoms != atoms:
            raise InputError(
                f"the topology {topology} has {named.n_atoms} atoms, {path.name} has {atoms} a frame"
            )
        if named is None:
            if atoms != n:
                raise ShapeError(
                    f"{path} has {atoms} atoms a frame, system {system.name!r} has {n} particles; a "
                    "topology (--top) says which atoms are those of the system"
                )
            order = list(range(n))
            remarks.append(
                f"{path.name}: atoms taken in the order of the system, since nothing names them (--top)."
            )
        for chunk in chunks:
            x = chunk.astype(np.float64)
            if not np.all(np.abs(x) <= COORDINATE_LIMIT * system.length_nm):
                raise FileFormatError(
                    f"{path} has NaN, infinite or absurd coordinates in frames {done} to {done + len(x)}"
                )
            box = None if boxes is None else boxes[done : done + len(x)]
            if not done:
                _refuse_other_unit(
                    x[0], _bonds(system) if named is None else _pairs(named), path.name
                )
            if order is None:
                order, said = _order(system, wanted, named, x[0], None if box is None else box[0])
                remarks.append(f"{path.name}: {said}.")
            x, cut = whole(x[:, order], _bonds(system), box, source=path.name, first=done)
            if named is None and not done:
                _refuse_other_bonds(x[0], system, path.name)
            moved += cut
            kept = x.astype(np.float32)
            pieces.append(from_nanometres(kept, system.length_nm, dimension, source=str(path)))
            done += len(x)
    if not done:
        raise FileFormatError(f"{path} holds no frames")
    if moved:
        remarks.append(
            f"{path.name}: the molecule was made whole across the faces of the box in {moved:,} of "
            f"{done:,} frames."
        )
    samples = Samples.of(system, system.space.project(torch.cat(pieces)))
    return samples.with_metadata(trajectory=path.name, time_ordered=True), remarks


def whole(
    x: Array, bonds: list[tuple[int, int]], boxes: Array | None, *, source: str, first: int = 0
) -> tuple[Array, int]:
    """Frames ``(b, n, 3)`` with bonded atoms next to each other, and how many were changed.

    Each atom takes the periodic image nearest to its bonded neighbour, along the bonds from the first atom.

    Raises
    ------
    FileFormatError
        A bond is longer than any is, and there is no box, or none that mends it.
    """
    if not bonds:
        return x, 0
    i, j = np.array(bonds).T

    def longest(frames: Array) -> Array:
        found: Array = np.linalg.norm(frames[:, i] - frames[:, j], axis=-1).max(-1)
        return found

    cut = longest(x) > _LONGEST_BOND
    if not cut.any():
        return x, 0
    if boxes is not None:
        boxed = cut & (np.abs(np.linalg.det(boxes)) > 0)
        x = x.copy()
        x[boxed] = _joined(x[boxed], bonds, boxes[boxed])
    broken = np.flatnonzero(longest(x) > _LONGEST_BOND)
    if len(broken):
        row = int(broken[0])
        worst = int(np.linalg.norm(x[row, i] - x[row, j], axis=-1).argmax())
        length = float(np.linalg.norm(x[row, i[worst]] - x[row, j[worst]]))
        raise FileFormatError(
            f"{source}: in frame {first + row} the bonded atoms {i[worst]} and {j[worst]} are "
            f"{length:.2f} nm apart: the order of the atoms is another (name them by --top), or the "
            "molecule is cut at the face of a box that the file does not hold"
        )
    return x, int(cut.sum())


def _refuse_other_unit(x: Array, bonds: list[tuple[int, int]], source: str) -> None:
    """Angstrom taken for nanometres show themselves by bonds that are all too long."""
    if not bonds:
        return
    i, j = np.array(bonds).T
    lengths = np.linalg.norm(x[i] - x[j], axis=-1)
    if lengths.min() > _SHORTEST_BOND * 10 and lengths.max() < _LONGEST_BOND * 10:
        raise InputError(
            f"{source}: all bonds of the first frame are {lengths.min():.2f} to {lengths.max():.2f} nm long, "
            "ten times what bonds are: angstrom written as nm? Divide the coordinates by ten"
        )


def _refuse_other_bonds(x: Array, system: System, source: str) -> None:
    """Atoms in another order show themselves by bonds of wrong lengths."""
    geometry = None if system.molecule is None else system.molecule.geometry
    if geometry is None:
        return
    known = np.array(geometry) * system.length_nm
    for i, j in _bonds(system):
        length, usual = (float(np.linalg.norm(each[i] - each[j])) for each in (x, known))
        if not usual / _STRETCH < length < usual * _STRETCH:
            raise InputError(
                f"{source}: atoms {i} and {j}, whose bond in {system.name!r} is {usual:.3f} nm long, are "
                f"{length:.3f} nm apart in the first frame: the atoms are in another order; name them by "
                "--top"
            )


def _joined(x: Array, bonds: list[tuple[int, int]], boxes: Array) -> Array:
    partners = neighbours(x.shape[1], bonds)
    inverse = np.linalg.inv(boxes)
    seen: set[int] = set()
    for root in range(x.shape[1]):
        queue = [root] if root not in seen else []
        seen.add(root)
        while queue:
            atom = queue.pop(0)
            for other in partners[atom]:
                if other in seen:
                    continue
                seen.add(other)
                queue.append(other)
                step = x[:, other] - x[:, atom]
                images = np.round(np.einsum("bi,bij->bj", step, inverse))
                x[:, other] -= np.einsum("bi,bij->bj", images, boxes)
    return x


def _read_topology(path: Path | str | None) -> Any:
    if path is None:
        return None
    import mdtraj

    path = Path(path)
    read_limited(path, _LIMIT)
    try:
        return mdtraj.load_topology(str(path))
    except Exception as error:
        raise FileFormatError(f"{path} names no atoms that could be read: {error}") from None


def _bonds(system: System) -> list[tuple[int, int]]:
    return [] if system.molecule is None else list(system.molecule.bonds)


def _elements(topology: Any) -> list[str]:
    return [atom.name if atom.element is None else atom.element.symbol for atom in topology.atoms]


def _pairs(topology: Any) -> list[tuple[int, int]]:
    return [(bond[0].index, bond[1].index) for bond in topology.bonds]


def _order(
    system: System, wanted: Any, named: Any, frame: Array, box: Array | None
) -> tuple[list[int], str]:
    """The file's atom for each of the system's, and in words how it was found."""
    n = system.shape[0]
    atoms, left = _molecule_in(wanted, named, system)
    place = {atom: k for k, atom in enumerate(atoms)}
    elements = [_elements(named)[k] for k in atoms]
    bonds = [(place[i], place[j]) for i, j in _pairs(named) if i in place and j in place]
    mine, own = _elements(wanted), _bonds(system) or _pairs(wanted)
    by_name = _by_names(wanted, named, atoms)
    if by_name is not None and [elements[k] for k in by_name] != mine:
        by_name = None
    if by_name is not None and bonds and own:
        known = {frozenset(bond) for bond in bonds}
        if {frozenset((by_name[i], by_name[j])) for i, j in own} != known:
            by_name = None
    if by_name is not None:
        same = by_name == list(range(n))
        said = "atoms have the names and order of the system" if same else "atoms matched by name"
        return [atoms[k] for k in by_name], said + left
    if not bonds or not own:
        where = next(
            (k for k, (a, b) in enumerate(zip(mine, elements, strict=True)) if a != b), None
        )
        first = (
            f"atom {where} is {elements[where]}, the system's is {mine[where]}"
            if where is not None
            else "their names differ"
        )
        raise InputError(
            f"the atoms of the trajectory are not those of {system.name!r} by name, and without bonds there "
            f"is nothing else to match them by: {first}"
        )
    try:
        order = match(mine, own, elements, bonds)
        geometry = None if system.molecule is None else system.molecule.geometry
        if geometry is not None:
            x = frame[[atoms[k] for k in order]][None]
            placed, _ = whole(x, own, None if box is None else box[None], source="the trajectory")
            other = np.empty((n, 3))
            other[order] = placed[0]
            order = match(mine, own, elements, bonds, geometry=geometry, other_geometry=other)
    except InputError as error:
        raise InputError(
            f"the atoms of the trajectory are not those of {system.name!r}: {error}"
        ) from None
    return [atoms[k] for k in order], "atoms matched by their bonds, since names differ" + left


def _molecule_in(wanted: Any, named: Any, system: System) -> tuple[list[int], str]:
    """The atoms of the one molecule in the file that can be the system, and what was left out."""
    n, total = system.shape[0], named.n_atoms
    if total == n:
        return list(range(n)), ""
    partners = neighbours(total, _pairs(named))
    elements, formula = _elements(named), sorted(_elements(wanted))
    found, seen = [], set()
    for start in range(total):
        if start in seen:
            continue
        part, queue = {start}, [start]
        while queue:
            for other in partners[queue.pop()]:
                if other not in part:
                    part.add(other)
                    queue.append(other)
        seen |= part
        if len(part) == n and sorted(elements[k] for k in part) == formula:
            found.append(sorted(part))
    if len(found) != 1:
        raise InputError(
            f"the trajectory has {total} atoms, system {system.name!r} has {n}, and {len(found)} molecules "
            "in it have the system's atoms; one is expected"
        )
    return found[0], f"; {total - n:,} other atoms left out"


def _by_names(wanted: Any, named: Any, atoms: list[int]) -> list[int] | None:
    """Index into ``atoms`` for each of the system's, where all have the same names, each once."""
    theirs = [named.atom(k) for k in atoms]
    numbers = {index: k for k, index in enumerate(dict.fromkeys(a.residue.index for a in theirs))}
    keys = {(numbers[a.residue.index], a.residue.name, a.name): k for k, a in enumerate(theirs)}
    own = [(a.residue.index, a.residue.name, a.name) for a in wanted.atoms]
    if len(keys) != len(atoms) or len(set(own)) != len(own) or set(own) != set(keys):
        return None
    return [keys[key] for key in own]
