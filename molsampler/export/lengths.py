"""Between a system's own unit of length and the nanometres of trajectory files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import FileFormatError, InputError, ShapeError
from ..target import System

if TYPE_CHECKING:
    import mdtraj

Frames = NDArray[np.float32]


def to_nanometres(positions: Tensor, length_nm: float) -> Frames:
    """Frames ``(n, N, 3)`` in nm of positions ``(n, N, D)``, D <= 3; missing dimensions are zero.

    The product is formed in float64 and rounded once, so the relative error is at most 2^-24.
    """
    n, particles, dimension = positions.shape
    if dimension > 3:
        raise InputError(f"a trajectory has three dimensions, these samples have {dimension}")
    frames = np.zeros((n, particles, 3), dtype=np.float32)
    frames[..., :dimension] = positions.detach().cpu().double().numpy() * length_nm
    return frames


def from_nanometres(frames: Frames, length_nm: float, dimension: int, *, source: str) -> Tensor:
    """Positions ``(n, N, dimension)`` float32 of frames ``(n, N, 3)`` in nm.

    Raises
    ------
    FileFormatError
        A dimension that the system does not have is not zero in the file.
    """
    if np.any(np.abs(frames[..., dimension:]) > 1e-6):
        raise FileFormatError(
            f"{source} has coordinates outside the {dimension}-dimensional space of the system"
        )
    scaled = frames[..., :dimension].astype(np.float64) / length_nm
    return torch.from_numpy(scaled.astype(np.float32))


def box_vectors(lengths: Any, cosines: Any) -> NDArray[np.float64]:
    """Vectors ``(n, 3, 3)``, rows a, b, c, of cells of ``lengths`` ``(n, 3)`` and cosines of alpha, beta and
    gamma ``(n, 3)``; zero where a length is."""
    a, b, c = np.asarray(lengths, dtype=np.float64).T
    alpha, beta, gamma = np.asarray(cosines, dtype=np.float64).T
    sine = np.sqrt(np.clip(1 - gamma**2, 1e-12, None))
    zero = np.zeros_like(a)
    cy = c * (alpha - beta * gamma) / sine
    cz = np.sqrt(np.clip(c**2 - (c * beta) ** 2 - cy**2, 0, None))
    rows = [[a, zero, zero], [b * gamma, b * sine, zero], [c * beta, cy, cz]]
    vectors = np.array(rows).transpose(2, 0, 1)
    vectors[(a <= 0) | (b <= 0) | (c <= 0)] = 0
    return vectors


def topology_of(system: System) -> mdtraj.Topology:
    """The system's MDTraj topology, one atom a particle.

    Raises
    ------
    InputError
        The system has no particles in space.
    ShapeError
        The topology and the system disagree on the number of particles.
    """
    topology = system.topology()
    atoms = cast(int, topology.n_atoms)
    if atoms != system.shape[0]:
        raise ShapeError(
            f"the topology of system {system.name!r} has {atoms} atoms, its samples have "
            f"{system.shape[0]} particles"
        )
    return topology


def to_mdtraj(positions: Tensor, system: System) -> mdtraj.Trajectory:
    """MDTraj trajectory in nanometres of positions ``(n, N, D)``; see
    :meth:`molsampler.samples.Samples.to_mdtraj`."""
    import mdtraj

    return mdtraj.Trajectory(to_nanometres(positions, system.length_nm), topology_of(system))
