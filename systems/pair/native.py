"""Pair sums by the compiled kernel of ``pair_sums.cpp``, on the processor.

A function that is a list of known operations (:class:`~.expression_plan.Plan`) is handed to it as such; the
kernel is compiled once for all of them. Others, other devices, and machines without a compiler are served by
torch (:mod:`.sums`), to rounding with the same results.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from molsampler.compiled import UnavailableError, library, require_native, shared

from .expression_plan import Plan
from .sums import SortedPairs

_SOURCE = Path(__file__).with_name("pair_sums.cpp")

#: Operations that the kernel knows, in the order of its codes.
OPERATIONS = (
    "multiply", "add_scaled", "offset", "scale", "subtract_from", "fill", "power", "pow", "min", "max",
    "step", "delta", "select", "sqrt", "rsqrt", "reciprocal", "exp", "log", "abs",
)  # fmt: skip

#: Pairs of all rows below which one thread takes all, and rows that go to the kernel together.
_PAIRS_PER_THREAD = 50_000
_LANES = 16

_NUMBERS = ctypes.POINTER(ctypes.c_double)
_INTEGERS = ctypes.POINTER(ctypes.c_int)


class _Function(ctypes.Structure):
    _fields_ = [
        ("steps", ctypes.c_long),
        ("codes", _INTEGERS),
        ("numbers", _NUMBERS),
        ("registers", ctypes.c_long),
        ("value_register", ctypes.c_long),
        ("value_scale", ctypes.c_double),
        ("value_quadratic", ctypes.c_double),
        ("value_constant", ctypes.c_double),
        ("slope_register", ctypes.c_long),
        ("slope_scale", ctypes.c_double),
        ("slope_constant", ctypes.c_double),
        ("cusp", ctypes.c_long),
        ("pairs", ctypes.c_long),
        ("first", _INTEGERS),
        ("second", _INTEGERS),
    ]


class NativePairs:
    """Sums over the pairs of ``n`` particles in ``d`` dimensions, each of the function of its kind.

    Parameters
    ----------
    plans : for each kind, the plan of value and slope, or of the value alone
    pairs : the pairs of each kind, in the order of ``plans``
    cusps : for each kind whether particles at one place have an energy there and no slope

    Raises
    ------
    UnavailableError
        An operation is unknown, there is no compiler, or ``MOLSAMPLER_NATIVE=0``.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        plans: Sequence[Plan],
        pairs: SortedPairs,
        *,
        cusps: Sequence[bool] = (),
    ) -> None:
        require_native()
        for plan in plans:
            unknown = {*plan.operators} - {*OPERATIONS}
            if unknown:
                raise UnavailableError(f"it does not know {sorted(unknown)[0]!r}")
        self._library = _library()
        self._shape = shape
        self._kept: list[Any] = []
        self._registers = max(plan.slots for plan in plans)
        ends = np.cumsum([0, *pairs.counts])
        first, second = (each.numpy().astype(np.intc) for each in (pairs.first, pairs.second))
        cusps = cusps or [False] * len(plans)
        laid = [
            self._laid_out(plan, cusp, first[a:b], second[a:b])
            for plan, cusp, (a, b) in zip(plans, cusps, pairwise(ends.tolist()), strict=True)
        ]
        self._functions = (_Function * len(laid))(*laid)
        self._pairs = len(first)

    def _laid_out(self, plan: Plan, cusp: bool, first: Any, second: Any) -> _Function:
        codes, numbers = [], []
        for step in plan.steps:
            sources = (*step.sources, 0, 0)[:3]
            codes.append([OPERATIONS.index(step.operator), step.target, *sources])
            numbers.append(step.number)
        value, slope = plan.value, plan.slope
        return _Function(
            len(codes),
            self._pointer(codes, np.intc, _INTEGERS),
            self._pointer(numbers, np.float64, _NUMBERS),
            plan.slots,
            -1 if value.slot is None else value.slot,
            value.scale,
            value.quadratic,
            value.constant,
            -1 if slope.slot is None else slope.slot,
            slope.scale,
            slope.constant,
            cusp,
            len(first),
            self._pointer(first, np.intc, _INTEGERS),
            self._pointer(second, np.intc, _INTEGERS),
        )

    def _pointer(self, values: Any, dtype: Any, kind: Any) -> Any:
        array = np.ascontiguousarray(values, dtype=dtype)
        self._kept.append(array)
        return array.ctypes.data_as(kind)

    def evaluate(
        self, x: Tensor, *, score: bool, nearest: bool = False
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Energies ``(b,)``, and as wanted scores ``(b, n, d)`` and the smallest squared distances ``(b,)``
        of pairs of a kind with a cusp, of positions ``(b, n, d)``."""
        x = x.contiguous()
        energy = x.new_empty(len(x))
        force = torch.empty_like(x) if score else None
        closest = x.new_empty(len(x)) if nearest else None
        threads = max(min(torch.get_num_threads(), len(x) * self._pairs // _PAIRS_PER_THREAD), 1)

        def call(start: int, stop: int) -> int:
            return self._call(x, energy, force, closest, start, stop)

        failed = shared(call, len(x), threads=threads, multiple=_LANES)
        if any(failed):
            raise MemoryError("no memory is left for the energies of pairs")
        return energy, force, closest

    def _call(
        self,
        x: Tensor,
        energy: Tensor,
        force: Tensor | None,
        closest: Tensor | None,
        start: int,
        stop: int,
    ) -> int:
        n, d = self._shape
        single = x.dtype == torch.float32
        function = self._library.evaluate_float if single else self._library.evaluate_double

        def at(tensor: Tensor | None) -> int | None:
            return None if tensor is None else tensor[start:].data_ptr()

        code: int = function(
            *(d, n, self._registers, stop - start, len(self._functions), self._functions),
            *(at(tensor) for tensor in (x, energy, force, closest)),
        )
        return code


def serves(x: Tensor) -> bool:
    """Whether the kernel can evaluate such positions."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


@cache
def _library() -> ctypes.CDLL:
    made = library(_SOURCE)
    for function in (made.evaluate_float, made.evaluate_double):
        function.argtypes = [
            *[ctypes.c_long] * 5,
            ctypes.POINTER(_Function),
            *[ctypes.c_void_p] * 4,
        ]
        function.restype = ctypes.c_int
    return made
