r"""Standard errors by the bootstrap over blocks of rows, for functions of sums.

Rows are cut into G blocks that may be taken as independent. An estimate is a function of sums over rows, so a
replicate draws G blocks with replacement and adds their sums up; the standard error is the standard
deviation of the replicates times :math:`\sqrt{G/(G-1)}` (Efron & Tibshirani 1993, *An introduction to the
bootstrap*; Künsch 1989, Ann. Stat. 17, for blocks). What a block is:

* of samples that :meth:`~molsampler.samples.Samples.resample` drew, the rows that are copies of one sample;
* of chains (the replicas of a reference run; else all rows in their order as one), ten statistical
  inefficiencies of the slowest quantity that is estimated, in a row;
* of rows that show no correlation, a row, or neighbours where there are more than ``MOST_BLOCKS``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from molsampler.estimate import Estimate
from molsampler.mcmc.convergence import statistical_inefficiency
from molsampler.reference.replicas import replica_of_row
from molsampler.samples import Samples

Array = NDArray[np.float64]

#: Blocks beyond which neighbours are put together.
MOST_BLOCKS = 2000

#: Fewest blocks for which an error is not flagged.
FEWEST_BLOCKS = 25

#: Statistical inefficiencies in a block.
BLOCK_LENGTH = 10.0

#: Statistical inefficiency up to which rows count as independent: its estimate scatters above one.
INDEPENDENT = 1.5

#: Largest share of replicates that may be left out.
MOST_LEFT_OUT = 0.05


@dataclass(frozen=True)
class Blocks:
    """A partition of rows into blocks that count as independent.

    Attributes
    ----------
    index : block of each row ``(n,)``
    count : number of blocks
    rule : how they were made, in words
    """

    index: NDArray[np.int64]
    count: int
    rule: str

    def sums(self, *columns: Array) -> Array:
        """Sums ``(count, f)`` over blocks of f columns of values ``(n,)``."""
        sums = [np.bincount(self.index, each, self.count) for each in columns]
        return np.stack(sums, axis=1).astype(np.float64)

    def histograms(self, bins: NDArray[np.int64], values: Array, count: int) -> Array:
        """Sums ``(self.count, count)`` over blocks of what falls in each bin; -1 is none."""
        inside = bins >= 0
        joint = self.index[inside] * count + bins[inside]
        sums = np.bincount(joint, values[inside], self.count * count).astype(np.float64)
        return sums.reshape(-1, count)


def blocks_of(samples: Samples, traces: Array) -> Blocks:
    """Blocks of the rows of samples, by what the metadata says and by the traces ``(n, t)``.

    A trace is what each row adds to an estimate.
    """
    n = len(samples)
    if "resampled" in samples.metadata:
        flat = np.ascontiguousarray(samples.positions.numpy()).reshape(n, -1)
        whole = flat.view(np.dtype((np.void, flat.dtype.itemsize * flat.shape[1])))[:, 0]
        _, copies = np.unique(whole, return_inverse=True)
        count = int(copies.max()) + 1
        return Blocks(copies.astype(np.int64), count, "copies of one sample by resampling")
    replica = replica_of_row(samples.metadata, n)
    chains = np.zeros(n, dtype=np.int64) if replica is None else replica
    width = int(chains.max()) + 1
    if n < 4 * width:
        chains, width, replica = np.zeros(n, dtype=np.int64), 1, None
    # Rows of each chain, in their order; the longest rest that all have is looked at.
    members = [np.flatnonzero(chains == chain) for chain in range(width)]
    shortest = min(map(len, members))
    inefficiency = 1.0
    if shortest >= 4:
        recent = np.stack([rows[len(rows) - shortest :] for rows in members])
        for trace in traces.T:
            inefficiency = max(inefficiency, statistical_inefficiency(trace[recent]))
    if inefficiency <= INDEPENDENT:
        count = min(n, MOST_BLOCKS)
        return Blocks(np.arange(n) * count // n, count, "rows without correlation")
    # Few blocks make the error uncertain, short ones make it small: a compromise where n is small.
    length = min(BLOCK_LENGTH * inefficiency, max(n / FEWEST_BLOCKS, 2 * inefficiency))
    index, count = np.empty(n, dtype=np.int64), 0
    for rows in members:
        parts = max(1, min(len(rows), math.floor(len(rows) / length)))
        index[rows] = count + np.arange(len(rows)) * parts // len(rows)
        count += parts
    source = "one chain" if replica is None else f"{width} replicas"
    return Blocks(index, count, f"parts of {source}, statistical inefficiency {inefficiency:.3g}")


class Bootstrap:
    """Replicates of blocks, the same for every estimate.

    Parameters
    ----------
    blocks : the partition of rows
    repeats : number of replicates
    seed : of the draws
    """

    def __init__(self, blocks: Blocks, *, repeats: int, seed: int):
        self.blocks = blocks
        share = np.full(blocks.count, 1 / blocks.count)
        drawn = np.random.default_rng(seed).multinomial(blocks.count, share, size=repeats)
        self._drawn = drawn.astype(np.float64)

    def __call__(
        self, sums: Array, statistic: Callable[[Array], Array]
    ) -> tuple[Estimate[float], ...]:
        """Estimates of a statistic, each with its standard error.

        Replicates that are not finite (a basin that they miss) are left out; the error is NaN where they
        are more than ``MOST_LEFT_OUT`` of all, or where there is one block.

        Parameters
        ----------
        sums : of each block ``(count, f)``
        statistic : totals ``(r, f)`` to values ``(r, s)``
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            values = statistic(sums.sum(0, keepdims=True))[0]
            found = statistic(self._drawn @ sums)
        finite = np.isfinite(found)
        enough = finite.mean(0) >= 1 - MOST_LEFT_OUT
        if self.blocks.count < 2:
            enough[:] = False
        errors = np.full(len(values), np.nan)
        errors[enough] = np.nanstd(np.where(finite, found, np.nan)[:, enough], axis=0, ddof=1)
        errors *= math.sqrt(self.blocks.count / max(self.blocks.count - 1, 1))
        return tuple(Estimate(float(v), float(e)) for v, e in zip(values, errors, strict=True))
