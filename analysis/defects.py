r"""Molecules that are wrong as such: broken bonds and wrong hands.

* *Bonds*: :math:`z = (r - \mu) / s` with mean and standard deviation of the reference. A molecule with
  any \|z\| > ``BROKEN`` is broken.
* *Handedness*: an E(3)-equivariant generator produces mirror images at the same energy and with the
  same distances, which no other metric sees.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from molsampler.target import System

from .draws import Pool
from .geometry import molecule_of
from .metric import Share, Shares

Array = NDArray[np.float64]

#: Standard deviations beyond which a bond counts as broken.
BROKEN = 5.0

#: Least standard deviation of a bond length in nm: what rounding to 1e-3 nm, as .xtc does, gives it.
ROUNDING = 5e-4


def bond_scale(lengths: Array, weights: Array | None = None) -> tuple[Array, Array]:
    """Mean and standard deviation ``(b,)`` of bond lengths ``(n, b)``, nm, the latter not below ROUNDING.

    ``weights`` ``(n,)`` are those of the configurations.
    """
    mean, deviation = weighted_moments(lengths, weights)
    return mean, np.maximum(deviation, ROUNDING)


def weighted_moments(values: Array, weights: Array | None) -> tuple[Array, Array]:
    """Mean and standard deviation ``(b,)`` of values ``(n, b)`` under weights ``(n,)``."""
    if weights is None:
        return values.mean(0), values.std(0)
    mean = np.average(values, axis=0, weights=weights)
    return mean, np.sqrt(np.average(np.square(values - mean), axis=0, weights=weights))


def broken(lengths: Array, scale: tuple[Array, Array]) -> NDArray[np.bool_]:
    """Whether any bond of lengths ``(n, b)`` lies more than BROKEN standard deviations from the mean."""
    mean, deviation = scale
    result: NDArray[np.bool_] = np.any(np.abs(lengths - mean) > BROKEN * deviation, axis=1)
    return result


def broken_by_halves(lengths: Array, weights: Array | None = None) -> NDArray[np.bool_]:
    """Whether each of one set is broken by the scale of the other half of the same set."""
    result = np.zeros(len(lengths), dtype=bool)
    halves = (slice(0, None, 2), slice(1, None, 2))
    for own, other in (halves, halves[::-1]):
        scale = bond_scale(lengths[other], None if weights is None else weights[other])
        result[own] = broken(lengths[own], scale)
    return result


class BrokenBonds(Share):
    key = "broken_bonds"
    name = "broken molecules"
    definition = (
        f"Share of molecules with a bond more than {BROKEN:g} standard deviations of the reference from "
        "its mean there. The floor is the share in one half of the reference by the other half's scale."
    )

    def applies(self, system: System) -> bool:
        return molecule_of(system) is not None

    def shares(self, samples: Pool, reference: Pool) -> Shares:
        own, trusted = samples.geometry.bond_lengths, reference.geometry.bond_lengths
        weights = reference.row_weights
        value = float(samples.probabilities @ broken(own, bond_scale(trusted, weights)))
        floor = float(reference.probabilities @ broken_by_halves(trusted, weights))
        if samples.weights is not None:
            return Shares(value, floor, f"{100 * value:.3g} % of the molecules by weight")
        n = len(samples)
        return Shares(value, floor, f"{round(value * n):,} of {n:,} molecules")


class WrongHand(Share):
    key = "wrong_hand"
    name = "wrong-handed"
    definition = (
        "Share of molecules whose handedness is not the reference's, at the chiral centre where "
        "it is largest. Where the reference has one hand only, a single wrong one fails."
    )
    unanimous = True

    def applies(self, system: System) -> bool:
        molecule = molecule_of(system)
        return molecule is not None and bool(molecule.centres)

    def shares(self, samples: Pool, reference: Pool) -> Shares:
        usual = reference.probabilities @ reference.geometry.hands > 0.5
        wrong, rare = (
            pool.probabilities @ (pool.geometry.hands != usual) for pool in (samples, reference)
        )
        worst = int(np.argmax(np.abs(wrong - rare)))
        # Too little of the rare hand is as wrong as too much, so that a racemic reference is no excuse.
        value = float(rare[worst] + abs(wrong[worst] - rare[worst]))
        note = "" if rare[worst] else "no wrong hand in the reference, so none may occur"
        return Shares(value, float(rare[worst]), note)
