"""The 2-Wasserstein distance of one-dimensional samples, by which sampling and analysis judge energies."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .errors import InputError, NonFiniteError


def wasserstein2_1d(a: Any, b: Any) -> float:
    r"""Exact 1-D 2-Wasserstein distance :math:`(\int_0^1 (F_a^{-1}-F_b^{-1})^2)^{1/2}`.

    Sets of different size are handled by cutting [0, 1] at every multiple of 1/N and 1/M. Infinite
    values give an infinite distance.

    Raises
    ------
    InputError
        A set is empty or holds NaN.
    """
    u, v = np.sort(values_of(a, "a")), np.sort(values_of(b, "b"))
    if not (np.isfinite(u).all() and np.isfinite(v).all()):
        return float("inf")
    if u.size == v.size:
        return float(np.sqrt(np.mean((u - v) ** 2)))
    # Integer arithmetic on the common denominator keeps the cuts exact.
    cuts = np.unique(
        np.concatenate((np.arange(u.size + 1) * v.size, np.arange(v.size + 1) * u.size))
    )
    left, length = cuts[:-1], np.diff(cuts) / (u.size * v.size)
    return float(np.sqrt(np.sum(length * (u[left // v.size] - v[left // u.size]) ** 2)))


def values_of(values: Any, name: str) -> NDArray[np.float64]:
    """Flat float64 copy; infinities are allowed (coincident particles), NaN and emptiness are not."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy()
    array = np.asarray(values, dtype=np.float64).ravel()
    if array.size == 0:
        raise InputError(f"{name} must hold at least one number, got none")
    if np.isnan(array).any():
        raise NonFiniteError(
            f"{name} holds {int(np.isnan(array).sum())} NaN of {array.size} values"
        )
    return array
