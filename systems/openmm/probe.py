r"""What is found out about an OpenMM system by evaluating it: symmetries, and the platform to use.

A symmetry is present where the energy at a few configurations stays the same under a few
translations, rotations, a reflection and exchanges of particles. The configurations are the given
one, if any, and jittered lattices of several spacings: on wide ones repulsion does not drown a weak
field, on narrow ones short-ranged terms act.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from molsampler.errors import InputError, MissingDependencyError, SimulationError

from .context import Array, ContextEvaluator, EvaluationError

#: Spacings in nm of the lattices on which symmetries are probed.
_SPACINGS = (0.15, 0.4, 1.0)
#: Change of the energy, relative to its rounding error by a crude bound, that may break a symmetry.
_TOLERANCE = 1e4
#: Change in kJ/mol below which none is broken: 5e-4 kT at 300 K. Torsion phases in Amber's files are
#: pi to six digits, which makes mirror images differ by less than that.
_RESOLUTION = 1e-3
#: Below this time in s per evaluation the Reference platform is used without looking further.
_FAST_ENOUGH = 1e-3
#: What another platform must gain to be preferred to the double precision of Reference.
_WORTHWHILE = 2.0


class Symmetry(NamedTuple):
    """Whether the energy is unchanged by these."""

    translation: bool
    rotation: bool
    reflection: bool
    exchange: bool


def probe_positions(n: int, given: Array | None) -> Array:
    """Configurations ``(k, n, 3)`` in nm: the given one and jittered lattices."""
    random = np.random.default_rng(0)
    side = math.ceil(n ** (1 / 3))
    cells = np.indices((side, side, side)).reshape(3, -1).T[:n] - (side - 1) / 2
    lattices = [s * (cells + random.uniform(-0.2, 0.2, (n, 3))) for s in _SPACINGS]
    return np.array(lattices if given is None else [given, *lattices])


def _evaluate(evaluator: ContextEvaluator, x: Array) -> tuple[Array, Array]:
    energies, forces = np.empty(len(x)), np.empty_like(x)
    try:
        evaluator.evaluate(x, energies, forces)
    except EvaluationError as error:
        raise SimulationError(f"OpenMM cannot evaluate the system: {error}") from None
    return energies, forces


def symmetry(evaluator: ContextEvaluator, positions: Array, *, exchange: bool) -> Symmetry:
    """Symmetries at ``positions`` ``(k, n, 3)``, with double precision; ``exchange`` if it is asked for.

    Raises
    ------
    InputError
        The energy is finite at none of the positions.
    """
    energies, forces = _evaluate(evaluator, positions)
    usable = np.isfinite(energies) & np.isfinite(forces).all((1, 2))
    if not usable.any():
        raise InputError(
            "the energy is finite at none of the configurations tried for symmetries; pass "
            "positions=, or declare invariant="
        )
    x, u, f = positions[usable], energies[usable], forces[usable]

    def unchanged(moved: Array) -> bool:
        # Rounding of a coordinate changes the energy by the force on it times that rounding.
        scale = np.abs(u) + (np.abs(f).sum((1, 2)) * np.abs(moved).max((1, 2))) + 1.0
        change = np.abs(_evaluate(evaluator, moved)[0] - u)
        allowed = np.maximum(_TOLERANCE * np.finfo(np.float64).eps * scale, _RESOLUTION)
        return bool((change <= allowed).all())

    shift = np.array([0.37, -0.81, 0.59])
    rotation, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    rotation *= np.linalg.det(rotation)
    permutable = exchange
    for i in range(x.shape[1] - 1):
        if not permutable:
            break
        swapped = x.copy()
        swapped[:, [i, i + 1]] = x[:, [i + 1, i]]
        permutable = unchanged(swapped)
    return Symmetry(
        all(unchanged(x + size * shift) for size in (1.0, 10.0)),
        unchanged(x @ rotation.T),
        unchanged(-x),
        permutable,
    )


def available_platforms() -> list[str]:
    """Names of OpenMM's platforms on this machine."""
    import openmm

    count = openmm.Platform.getNumPlatforms()
    return [openmm.Platform.getPlatform(k).getName() for k in range(count)]


def default_properties(platform: str, properties: Mapping[str, str]) -> dict[str, str]:
    """``properties``, and one thread on the CPU platform: more change the order of its sums."""
    return {"Threads": "1", **properties} if platform == "CPU" else dict(properties)


def fastest_platform(system_xml: str, positions: Array) -> str:
    """The platform to use at configurations like ``positions`` ``(k, n, 3)``.

    Reference, unless an evaluation there takes over a millisecond and another platform is at least
    twice as fast.
    """
    reference = _seconds(system_xml, "Reference", positions)
    if reference <= _FAST_ENOUGH:
        return "Reference"
    best, fastest = "Reference", reference / _WORTHWHILE
    for name in available_platforms():
        if name != "Reference":
            spent = _seconds(system_xml, name, positions)
            if spent < fastest:
                best, fastest = name, spent
    return best


def _seconds(system_xml: str, platform: str, positions: Array) -> float:
    """Seconds per evaluation, the least of a few; infinite where the platform does not work."""
    import openmm

    try:
        evaluator = ContextEvaluator(system_xml, platform, default_properties(platform, {}))
        least = math.inf
        for x in positions[[0, 0, -1, 0]]:
            began = time.perf_counter()
            _evaluate(evaluator, x[None])
            least = min(least, time.perf_counter() - began)
    except (openmm.OpenMMException, SimulationError):
        return math.inf
    return least


def require_openmm() -> None:
    """Raise :class:`MissingDependencyError` where OpenMM is not installed."""
    try:
        import openmm  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f"OpenMM is needed for this system and cannot be imported ({error}): pip install openmm"
        ) from None
