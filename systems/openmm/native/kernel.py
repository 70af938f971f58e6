"""The compiled kernel, called on blocks of rows; where there is no compiler, OpenMM evaluates."""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from molsampler.compiled import UnavailableError, library

from ..context import Array, ContextEvaluator, EvaluationError
from .tables import Born, Tables, Terms, UnknownTermError, tables

_SOURCE = Path(__file__).with_name("kernel.cpp")
#: Rows below which one thread takes all.
_ROWS_PER_THREAD = 256
#: Forces and energies of a probe agree to this share of the largest, plus a small number of kJ/mol.
_AGREEMENT, _SMALL = 1e-6, 1e-5
#: Perturbations of the probed configuration in nm.
_JITTER = (0.0, 0.002, 0.01)

_LISTS = ("bonds", "angles", "linear", "stretch_bends", "planes", "torsions", "pairs", "buffered")
_DOUBLES = ctypes.POINTER(ctypes.c_double)
_INTEGERS = ctypes.POINTER(ctypes.c_int)


class _List(ctypes.Structure):
    _fields_ = [("count", ctypes.c_long), ("particles", _INTEGERS), ("parameters", _DOUBLES)]


class _Specification(ctypes.Structure):
    _fields_ = [
        ("particles", ctypes.c_long),
        *((name, _List) for name in _LISTS),
        ("born", ctypes.c_long),
        ("solvated", _DOUBLES),
        ("neck_depth", _DOUBLES),
        ("neck_distance", _DOUBLES),
        ("neck_cut", ctypes.c_double),
        ("coulomb", ctypes.c_double),
        ("inside", ctypes.c_long),
        ("plain", ctypes.c_long),
    ]


class NativeEvaluator:
    """Energies and forces as :class:`~systems.openmm.context.ContextEvaluator` gives them, of known terms.

    Rows are shared by torch's threads.

    Raises
    ------
    UnavailableError
        A term is unknown, or there is no compiler.
    """

    def __init__(self, system_xml: str):
        import openmm

        try:
            found = tables(openmm.XmlSerializer.deserialize(system_xml))
        except UnknownTermError as error:
            raise UnavailableError(f"it does not know {error}") from None
        self._library = _library()
        self._kept: list[Any] = []
        self._specification = self._laid_out(found)
        self._pool: ThreadPoolExecutor | None = None

    def _laid_out(self, found: Tables) -> _Specification:
        born = found.born or Born(np.empty((0, 8)), 0.0)
        return _Specification(
            found.particles,
            *(self._list(found.lists.get(name, Terms())) for name in _LISTS),
            len(born.particles),
            self._doubles(born.particles),
            None if born.neck_depth is None else self._doubles(born.neck_depth),
            None if born.neck_distance is None else self._doubles(born.neck_distance),
            born.neck_cut,
            born.coulomb,
            born.inside,
            born.plain,
        )

    def _doubles(self, values: Any) -> Any:
        array = np.ascontiguousarray(values, dtype=np.float64)
        self._kept.append(array)
        return array.ctypes.data_as(_DOUBLES)

    def _list(self, terms: Terms) -> _List:
        particles = np.ascontiguousarray(terms.particles, dtype=np.intc)
        self._kept.append(particles)
        return _List(
            len(terms.particles),
            particles.ctypes.data_as(_INTEGERS),
            self._doubles(terms.parameters),
        )

    def evaluate(self, positions: Array, energies: Array, forces: Array) -> None:
        """Fill energies ``(b,)`` in kJ/mol and forces ``(b, n, 3)`` in kJ/mol/nm of positions in nm."""
        rows = len(positions)
        parts = min(torch.get_num_threads(), rows // _ROWS_PER_THREAD)
        if parts < 2:
            self._evaluate(positions, energies, forces)
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(torch.get_num_threads())
        edges = [rows * k // parts for k in range(parts + 1)]
        blocks = [slice(a, b) for a, b in pairwise(edges)]
        list(
            self._pool.map(
                lambda block: self._evaluate(positions[block], energies[block], forces[block]),
                blocks,
            )
        )

    def _evaluate(self, positions: Array, energies: Array, forces: Array) -> None:
        arrays = (positions, energies, forces)
        if not all(each.flags.c_contiguous and each.dtype == np.float64 for each in arrays):
            raise ValueError("positions, energies and forces must be contiguous float64 arrays")
        failed = self._library.evaluate(
            ctypes.byref(self._specification),
            len(positions),
            *(each.ctypes.data_as(_DOUBLES) for each in arrays),
        )
        if failed:
            raise EvaluationError(0, "no memory is left")


def require_agreement(system_xml: str, positions: Array) -> None:
    """Compare the kernel with OpenMM at a sensible configuration ``(n, 3)`` in nm and near it.

    Raises
    ------
    UnavailableError
        The kernel cannot be used, or energies or forces differ.
    """
    random = np.random.default_rng(0)
    x = np.stack([positions + size * random.normal(size=positions.shape) for size in _JITTER])
    results = []
    for evaluator in (NativeEvaluator(system_xml), ContextEvaluator(system_xml, "Reference", {})):
        energies, forces = np.empty(len(x)), np.empty_like(x)
        evaluator.evaluate(x, energies, forces)
        results.append((energies, forces))
    (energy, force), (right_energy, right_force) = results
    # Energies differ by terms that are larger than they are.
    scale = np.abs(right_force).max()
    if not (
        np.abs(energy - right_energy).max()
        <= _AGREEMENT * (np.abs(right_energy).max() + scale / 10) + _SMALL
        and np.abs(force - right_force).max() <= _AGREEMENT * scale + _SMALL
    ):
        raise UnavailableError("its energies or forces differ from OpenMM's")


@cache
def _library() -> ctypes.CDLL:
    made = library(_SOURCE)
    made.evaluate.argtypes = [
        ctypes.POINTER(_Specification),
        ctypes.c_long,
        *[_DOUBLES] * 3,
    ]
    made.evaluate.restype = ctypes.c_int
    return made
