"""Lennard-Jones clusters held together by a harmonic trap."""

from __future__ import annotations

from .potential import PairPotential


class LennardJones(PairPotential):
    r"""``n`` Lennard-Jones particles in three dimensions, in a harmonic trap about their mean.

    .. math:: u(x) = 2 \sum_{i<j} \left[ d_{ij}^{-12} - 2 d_{ij}^{-6} \right]
        + \tfrac12 \sum_i |x_i - \bar x|^2

    The pair term counts both ordered pairs, so two particles at their best distance, d = 1, are
    bound by 2 kT; this is the convention of the public LJ-13 and LJ-55 samples (Köhler, Klein &
    Noé, arXiv 2006.02425), and half of it is another system. The trap is a pair term too:
    :math:`\sum_i |x_i - \bar x|^2 = \frac1n \sum_{i<j} d_{ij}^2`. Energies are in kT; one unit of
    length, the best pair distance, is drawn as 0.38 nm, that of argon.

    Temperatures are kT over the depth of the pair potential: the energies above are those at 0.5, and at T
    both terms are multiplied by 0.5 / T.
    """

    temperature = 0.5

    def __init__(self, n: int = 13) -> None:
        super().__init__(
            f"lj{n}",
            "2*eps*((rm/r)^12 - 2*(rm/r)^6) + 0.5*k*r^2/n",
            n=n,
            d=3,
            parameters={"eps": 1.0, "rm": 1.0, "k": 1.0},
            length_nm=0.38,
            description=f"{n} Lennard-Jones particles in a harmonic trap",
        )
