"""The compiled kernel: made once by the machine's own compiler, kept, and called on blocks of rows.

``kernel.cpp`` is compiled at first use with ``CXX`` (else ``c++``, ``g++`` or ``clang++``) for this
processor, and kept in ``MOLSAMPLER_CACHE``, else in the user's cache folder, under a name made of source,
compiler, flags and processor. Where there is no compiler, OpenMM evaluates.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..context import Array, ContextEvaluator, EvaluationError
from .tables import Born, Tables, Terms, UnknownTermError, tables

#: Flags, in the order in which they are tried; vector functions are those of glibc.
_FLAGS = (
    "-O3 -march=native -DVECTOR_MATH -lmvec -lm",
    "-O3 -march=native -lm",
    "-O3 -lm",
)
_COMMON = "-std=c++17 -shared -fPIC -fno-math-errno -fno-trapping-math -ffp-contract=fast -w"
_SOURCE = Path(__file__).with_name("kernel.cpp")
_COMPILATION_SECONDS = 120
#: Rows below which one thread takes all.
_ROWS_PER_THREAD = 256
#: Forces and energies of a probe agree to this share of the largest, plus a small number of kJ/mol.
_AGREEMENT, _SMALL = 1e-6, 1e-5
#: Perturbations of the probed configuration in nm.
_JITTER = (0.0, 0.002, 0.01)

_LISTS = ("bonds", "angles", "linear", "stretch_bends", "planes", "torsions", "pairs", "buffered")
_DOUBLES = ctypes.POINTER(ctypes.c_double)
_INTEGERS = ctypes.POINTER(ctypes.c_int)


class UnavailableError(Exception):
    """The kernel cannot be made or does not serve a system; the message says why."""


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


# Compilation


@cache
def _library() -> ctypes.CDLL:
    compiler = _compiler()
    errors = []
    for flags in _FLAGS:
        for path in _places(compiler, flags):
            try:
                return _kept(path) or _load(_compiled(compiler, flags, path))
            except (OSError, subprocess.SubprocessError) as error:
                errors.append(f"{type(error).__name__}: {error}")
    raise UnavailableError(f"{compiler[0]} does not compile it ({errors[0][:200]})")


def _compiler() -> list[str]:
    for name in (os.environ.get("CXX", ""), "c++", "g++", "clang++"):
        words = shlex.split(name)
        if words and shutil.which(words[0]):
            return words
    raise UnavailableError("there is no C++ compiler (c++, g++, clang++, or CXX)")


def _places(compiler: list[str], flags: str) -> Iterator[Path]:
    """Files for the compiled kernel: in the cache, else a temporary one."""
    parts = [_SOURCE.read_text(), *compiler, flags, _COMMON, _processor()]
    name = f"kernel-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:20]}.so"
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get("MOLSAMPLER_CACHE") or Path(home) / "molsampler")
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        # What is loaded is run: only from a folder of one's own.
        if folder.stat().st_uid == os.getuid() and os.access(folder, os.W_OK):
            yield folder / name
    except OSError:
        pass
    with tempfile.TemporaryDirectory(prefix="molsampler-") as temporary:
        yield Path(temporary) / name


def _processor() -> str:
    """What tells processors apart, for ``-march=native``."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.lower().startswith(("flags", "features"))), "")


def _compiled(compiler: list[str], flags: str, path: Path) -> Path:
    # Libraries come behind the source that needs them.
    libraries = [flag for flag in flags.split() if flag.startswith("-l")]
    others = [flag for flag in flags.split() if not flag.startswith("-l")]
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        subprocess.run(
            [*compiler, *_COMMON.split(), *others, str(_SOURCE), "-o", str(made), *libraries],
            check=True,
            capture_output=True,
            timeout=_COMPILATION_SECONDS,
        )
        os.replace(made, path)
    return path


def _kept(path: Path) -> ctypes.CDLL | None:
    """The library that an earlier process left; None where there is none, or what is there is damaged."""
    try:
        return _load(path)
    except OSError:
        return None


def _load(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    library.evaluate.argtypes = [
        ctypes.POINTER(_Specification),
        ctypes.c_long,
        *[_DOUBLES] * 3,
    ]
    library.evaluate.restype = ctypes.c_int
    return library
