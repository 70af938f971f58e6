"""From particles to pairs of them, and back.

For unordered pairs on a processor both ways go by index: rows of a whole batch are copied and added, which
costs what reading them costs, where a product with the incidence matrix costs as many operations a number as
there are particles. Compiled code would make of the way back one atomic addition after the other, and keeps
the products.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Pairs:
    """Pairs (i, j) of ``n`` particles: from particles ``(n, b, f)`` to pairs ``(pairs, b, f)`` and back.

    Ordered pairs, those on other devices and those in compiled code are products with constant matrices of
    zeros and ones.
    """

    def __init__(self, n: int, *, unordered: bool, like: Tensor):
        self.n, self.unordered = n, unordered
        compiled = torch.compiler.is_compiling()
        self.by_index = unordered and like.device.type == "cpu" and not compiled
        if unordered:
            receiver, sender = torch.triu_indices(n, n, offset=1, device=like.device)
        else:
            pair = torch.arange(n * (n - 1), device=like.device)
            receiver, rest = pair // (n - 1), pair % (n - 1)
            sender = rest + (rest >= receiver)
        self._receiver, self._sender = receiver, sender
        if self.by_index:
            return
        eye = torch.eye(n, dtype=like.dtype, device=like.device)
        receive, send = eye[receiver], eye[sender]
        self._signed = receive - send
        # A message belongs to both ends of an unordered pair, and to the first of an ordered one.
        self._combine = receive + send if unordered else torch.cat([receive, send], dim=1)
        self._messages = receive + send if unordered else receive
        self._vectors = self._signed if unordered else receive

    def difference(self, x: Tensor) -> Tensor:
        """Position of i minus position of j."""
        if self.by_index:
            return _to_pairs(x, self._receiver, self._sender, -1.0)
        return _product(self._signed, x)

    def combine(self, first: Tensor, second: Tensor) -> Tensor:
        """``first`` of i plus ``second`` of j; the two are one for unordered pairs."""
        if self.by_index:
            return _to_pairs(first, self._receiver, self._sender, 1.0)
        return _product(self._combine, first if self.unordered else torch.cat([first, second]))

    def sum_messages(self, message: Tensor) -> Tensor:
        """Sum over the pairs of each particle."""
        if self.by_index:
            return _to_particles(message, self._receiver, self._sender, 1.0, self.n)
        return _product(self._messages.T, message)

    def sum_vectors(self, vector: Tensor) -> Tensor:
        """The same for quantities that change sign with the order of the pair."""
        if self.by_index:
            return _to_particles(vector, self._receiver, self._sender, -1.0, self.n)
        return _product(self._vectors.T, vector)


def _product(matrix: Tensor, x: Tensor) -> Tensor:
    """``matrix`` times ``x`` ``(k, b, f)`` over its first dimension."""
    return (matrix @ x.flatten(1)).reshape(len(matrix), *x.shape[1:])


def _to_pairs(x: Tensor, first: Tensor, second: Tensor, sign: float) -> Tensor:
    """``x[first] + sign * x[second]``."""
    return x.index_select(0, first).add_(x.index_select(0, second), alpha=sign)


def _to_particles(x: Tensor, first: Tensor, second: Tensor, sign: float, n: int) -> Tensor:
    """The transpose of :func:`_to_pairs`: rows of pairs added to their particles."""
    total = x.new_zeros(n, *x.shape[1:]).index_add_(0, first, x)
    return total.index_add_(0, second, x, alpha=sign)
