"""From particles to pairs of them, and back."""

from __future__ import annotations

import torch
from torch import Tensor


class Pairs:
    """Pairs (i, j) of ``n`` particles: from particles ``(n, b, f)`` to pairs ``(pairs, b, f)`` and back.

    Each map is the product with a constant matrix of zeros and ones.
    """

    def __init__(self, n: int, *, unordered: bool, like: Tensor):
        if unordered:
            receiver, sender = torch.triu_indices(n, n, offset=1, device=like.device)
        else:
            pair = torch.arange(n * (n - 1), device=like.device)
            receiver, rest = pair // (n - 1), pair % (n - 1)
            sender = rest + (rest >= receiver)
        eye = torch.eye(n, dtype=like.dtype, device=like.device)
        receive, send = eye[receiver], eye[sender]
        self.unordered = unordered
        self._signed = receive - send
        # A message belongs to both ends of an unordered pair, and to the first of an ordered one.
        self._combine = receive + send if unordered else torch.cat([receive, send], dim=1)
        self._messages = receive + send if unordered else receive
        self._vectors = self._signed if unordered else receive

    def difference(self, x: Tensor) -> Tensor:
        """Position of i minus position of j."""
        return _product(self._signed, x)

    def combine(self, first: Tensor, second: Tensor) -> Tensor:
        """``first`` of i plus ``second`` of j; the two are one for unordered pairs."""
        return _product(self._combine, first if self.unordered else torch.cat([first, second]))

    def sum_messages(self, message: Tensor) -> Tensor:
        """Sum over the pairs of each particle."""
        return _product(self._messages.T, message)

    def sum_vectors(self, vector: Tensor) -> Tensor:
        """The same for quantities that change sign with the order of the pair."""
        return _product(self._vectors.T, vector)


def _product(matrix: Tensor, x: Tensor) -> Tensor:
    """``matrix`` times ``x`` ``(k, b, f)`` over its first dimension."""
    return (matrix @ x.flatten(1)).reshape(len(matrix), *x.shape[1:])
