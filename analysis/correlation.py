r"""Frames of a simulation are not independent: what is kept of them so that errors are honest.

With the statistical inefficiency g of the slowest observable (:mod:`molsampler.mcmc.convergence`) n
frames in the order of time hold about n / g independent ones. Every g-th is kept, rounded up: floors, gates
and errors of all metrics then hold as for independent samples.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from molsampler.errors import InputError
from molsampler.mcmc.convergence import decorrelate, statistical_inefficiency
from molsampler.reference.observables import observables
from molsampler.samples import Samples
from molsampler.target import System

#: Fewest frames of which a correlation can be told.
_FEWEST = 8
#: Weighted frames that are kept beyond what their share of the effective number asks for.
_MARGIN = 1.2
#: Fewest independent frames that are compared at all.
_LEAST_INDEPENDENT = 5
#: Least statistical inefficiency that is told from that of independent draws.
_LEAST = 1.2


class Thinned(NamedTuple):
    """Frames that count as independent, and what a reader must know; empty where all were kept."""

    samples: Samples
    remark: str


def thinned(samples: Samples, system: System, *, name: str, fewest: int) -> Thinned:
    """Frames in the order of time, thinned by the statistical inefficiency of the slowest observable.

    Only samples whose metadata has ``time_ordered`` are in the order of time; others are left alone. Where
    fewer than ``fewest`` would be left, that many are kept, and the remark says by how much errors are too
    small.

    Raises
    ------
    InputError
        Hardly any would be left; the message says how long a run is needed.
    """
    n = len(samples)
    if not samples.metadata.get("time_ordered") or n < _FEWEST or not samples.ess:
        return Thinned(samples, "")
    if samples.log_weights is not None:
        # Weights take their share of what is left, a little more or less by chance.
        fewest = math.ceil(_MARGIN * fewest * n / samples.ess)
    slowest, g, trace = "", 1.0, None
    for key, values in observables(system, samples.positions.double()).items():
        values = values.double()
        if not bool(values.isfinite().all()):
            continue
        found = statistical_inefficiency(values.numpy())
        if found > g:
            slowest, g, trace = key, found, values
    if trace is None or g < _LEAST:
        return Thinned(
            samples, f"{name}: {n:,} frames, correlated in no observable that is watched."
        )
    said = (
        f"{name}: {n:,} frames are worth {n / g:,.0f} independent ones (statistical inefficiency {g:.3g} "
        f"frames, of the {slowest})"
    )
    if n / g < _LEAST_INDEPENDENT:
        raise InputError(
            f"{said}: that says nothing of a law; {fewest} are needed, which takes "
            f"{math.ceil(fewest * g):,} frames"
        )
    if n / g < fewest:
        rows = torch.arange(n - 1, -1, -max(n // fewest, 1)).flip(0)
        factor = math.sqrt(len(rows) * g / n)
        return Thinned(
            samples[rows],
            f"{said}: too few. {len(rows)} were kept, so all errors and floors are too small by a factor of "
            f"about {factor:.2g}, and a star may say nothing; {math.ceil(fewest * g):,} frames would do.",
        )
    rows = torch.from_numpy(decorrelate(trace.numpy()))
    return Thinned(samples[rows], f"{said}; every {math.ceil(g)}th was kept, {len(rows):,} in all.")
