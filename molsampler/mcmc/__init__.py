r"""Markov-chain Monte Carlo kernels, batched over independent chains.

Each kernel is a module with ``init(x, target) -> State`` and
``step(state, target, *, step_size, generator) -> (State, Info)`` on NamedTuples of tensors; nothing
is hidden in objects. Chains are the batch dimensions of the positions ``(*b, n, d)``. ``step_size``
is a number or a tensor ``(*b,)``, so chains on densities of different stiffness run in one batch.

Rows whose energy is ``+inf`` are legal starting points: the first finite proposal is accepted.
Proposals outside the coordinate limit are rejected, never evaluated.

``mala``, ``hmc``
    kernels on one density.
``moves``
    the move of a population: one or the other.
``tempering``
    parallel tempering: moves on a ladder of temperatures with exchanges.
``ais``, ``smc``
    annealed importance sampling and its resampled form, for starts and normalising constants.
``adapt``
    step-size adaptation towards an acceptance rate, to be frozen before samples are kept.
"""

from . import adapt, ais, hmc, mala, moves, smc, tempering

__all__ = ["adapt", "ais", "hmc", "mala", "moves", "smc", "tempering"]
