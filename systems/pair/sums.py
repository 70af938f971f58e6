"""Sums over all pairs of particles, of a function of the distance and of the forces it makes.

Two ways to go from particles to pairs and back. For few particles both are products with the constant
incidence matrix: a dozen operations in all, so small batches are not lost in overhead, but work that grows
with the cube of the number of particles. For many, cyclic shifts: more operations, of quadratic work. Pairs
that differ are sorted by the function that acts between them, and gathered.

In all of them the batch comes last, padded so that every row takes the vectorised path of each kernel: on one
thread the result of a row then does not depend, even in the last bit, on the batch around it.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .expression_plan import Plan

#: Up to this number of particles the incidence matrix is faster, in small batches and in large ones.
_FEW = 10

#: Pair values held per tensor and thread: a few such tensors fit in a core's share of the cache.
_CPU_CHUNK = 80_000
_DEVICE_CHUNK = 8_000_000

#: Kinds of pairs for which slices begin to grow, and the factor by which they do at most.
_MANY = 16

#: The batch is padded to a multiple of this.
_LANES = 64


def pair_sums(x: Tensor, plan: Plan) -> AlikePairs:
    """The sums for configurations ``(b, n, d)``, of a function and its slope that ``plan`` evaluates."""
    few = x.shape[1] <= _FEW
    return IncidencePairs(x, plan) if few else ShiftedPairs(x, plan)


def chunks(x: Tensor, *, kinds: int = 1) -> list[slice]:
    """Slices of the batch small enough for the cache, nearly equal, in whole lanes.

    Pairs are worked on one kind after the other, so where kinds are many a slice may hold more.
    """
    rows, n, _ = x.shape
    budget = _DEVICE_CHUNK
    if x.device.type == "cpu":
        budget = _CPU_CHUNK * torch.get_num_threads() * min(max(kinds // _MANY, 1), _MANY)
    count = math.ceil(rows * n * (n // 2) / budget)
    size = math.ceil(rows / max(count, 1) / _LANES) * _LANES
    return [slice(k, min(k + size, rows)) for k in range(0, rows, max(size, 1))]


class PairSums(ABC):
    """Pair sums for a chunk of configurations; call :meth:`evaluate` before asking for results."""

    @abstractmethod
    def touching(self) -> Tensor:
        """Whether two particles coincide that may not, ``(b,)``; to be asked before :meth:`evaluate`."""

    @abstractmethod
    def evaluate(self) -> None:
        """Run the plan, which overwrites the squared distances in slot 0."""

    @abstractmethod
    def energy(self) -> Tensor:
        """Sum over pairs of the function, shape ``(b,)``."""

    @abstractmethod
    def score(self) -> Tensor:
        """Minus the gradient, shape ``(b, n d)``; overwrites the slope."""


class AlikePairs(PairSums):
    """Pair sums of one function for all pairs."""

    def __init__(self, rows: int, plan: Plan, squared: Tensor) -> None:
        """``squared`` holds the squared distances, pairs first and the padded batch last."""
        self._rows = rows
        self._plan = plan
        self._slots = [squared] + [torch.empty_like(squared) for _ in range(plan.slots - 1)]

    def touching(self) -> Tensor:
        squared = self._slots[0]
        return squared.flatten(0, -2).amin(0)[: self._rows] == 0


def _padded(rows: int) -> int:
    return -(-rows // _LANES) * _LANES


def _load(coordinates: Tensor, x: Tensor) -> None:
    """Fill ``(n d, padded batch)`` with positions ``(b, n, d)``, the last row repeated."""
    rows = len(x)
    coordinates[:, :rows] = x.flatten(1).t()
    if rows < coordinates.shape[1]:
        coordinates[:, rows:] = coordinates[:, rows - 1 : rows]


@dataclass(frozen=True, eq=False)
class SortedPairs:
    """All pairs of particles, those of one function next to each other.

    Attributes
    ----------
    first, second : indices of the particles of every pair
    counts : numbers of pairs of each function, in their order
    """

    first: Tensor
    second: Tensor
    counts: tuple[int, ...]

    @classmethod
    def all(cls, n: int) -> SortedPairs:
        """Those of ``n`` particles, all of one function."""
        first, second = torch.triu_indices(n, n, 1)
        return cls(first, second, (len(first),))


class VariedPairs(PairSums):
    """Pair sums of functions that differ: each pair has the plan of its kind.

    Particles are gathered into pairs by index, and forces scattered back, since pairs sorted by kind follow
    no pattern. A pass over the pairs of a kind costs what it costs when all are of one.

    Parameters
    ----------
    cusps : for each kind whether particles at one place have an energy there and no slope
    """

    def __init__(
        self, x: Tensor, pairs: SortedPairs, plans: Sequence[Plan], *, cusps: Sequence[bool] = ()
    ) -> None:
        rows, n, d = x.shape
        batch = _padded(rows)
        self._rows, self._plans, self._cusps = rows, plans, cusps
        self._first, self._second = pairs.first.to(x.device), pairs.second.to(x.device)
        coordinates = x.new_empty(n, d * batch)
        _load(coordinates.view(n * d, batch), x)
        self._difference = coordinates[self._first].sub_(coordinates[self._second])
        self._difference = self._difference.view(-1, d, batch)
        self._shape = (n, d, batch)
        head, *others = self._difference.unbind(1)
        squared = head * head
        for other in others:
            squared.addcmul_(other, other)
        self._squared = torch.split(squared, list(pairs.counts))
        self._slots: list[list[Tensor]] = []
        self._energy = x.new_zeros(batch)

    def touching(self) -> Tensor:
        found = torch.zeros(self._rows, dtype=torch.bool, device=self._energy.device)
        for squared, cusp in zip(self._squared, self._cusps, strict=True):
            if cusp:
                found |= squared.amin(0)[: self._rows] == 0
        return found

    def evaluate(self) -> None:
        for squared, plan in zip(self._squared, self._plans, strict=True):
            form = plan.value
            if form.quadratic:
                self._energy.add_(squared.sum(0), alpha=form.quadratic)
            self._energy += form.constant * len(squared)
            slots = [squared] + [torch.empty_like(squared) for _ in range(plan.slots - 1)]
            plan.run(slots)
            if form.slot is not None:
                self._energy.add_(slots[form.slot].sum(0), alpha=form.scale)
            self._slots.append(slots)

    def energy(self) -> Tensor:
        return self._energy[: self._rows]

    def score(self) -> Tensor:
        n, d, batch = self._shape
        start = 0
        for slots, plan in zip(self._slots, self._plans, strict=True):
            form, count = plan.slope, len(slots[0])
            difference = self._difference[start : start + count]
            start += count
            if form.slot is None:
                difference.mul_(-form.constant)
                continue
            push = slots[form.slot].mul_(-form.scale)
            if form.constant:
                push -= form.constant
            difference.mul_(push[:, None])
        force = self._difference.view(-1, d * batch)
        score = force.new_zeros(n, d * batch)
        score.index_add_(0, self._first, force)
        score.index_add_(0, self._second, force, alpha=-1)
        return score.view(n * d, batch)[:, : self._rows].t()


@functools.lru_cache(maxsize=64)
def _incidence(n: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Matrix of pair differences, ``(pairs, n)``, and its transpose."""
    # A tensor made in inference mode would be of no use outside it.
    with torch.inference_mode(False):
        receiver, sender = torch.triu_indices(n, n, 1, device=device)
        eye = torch.eye(n, dtype=dtype, device=device)
        matrix = eye[receiver] - eye[sender]
        return matrix, matrix.t().contiguous()


class IncidencePairs(AlikePairs):
    """Pair sums by products with the incidence matrix.

    Its entries are 0 and ±1, so a difference of two positions is rounded once, as in a subtraction.
    """

    def __init__(self, x: Tensor, plan: Plan) -> None:
        rows, n, d = x.shape
        batch = _padded(rows)
        matrix, self._transpose = _incidence(n, x.dtype, x.device)
        coordinates = x.new_empty(n, d * batch)
        _load(coordinates.view(n * d, batch), x)
        self._difference = (matrix @ coordinates).view(len(matrix), d, batch)
        first, *others = self._difference.unbind(1)
        squared = first * first
        for other in others:
            squared.addcmul_(other, other)
        super().__init__(rows, plan, squared)

    def evaluate(self) -> None:
        quadratic = self._plan.value.quadratic
        self._quadratic = self._slots[0].sum(0).mul_(quadratic) if quadratic else None
        self._plan.run(self._slots)

    def energy(self) -> Tensor:
        form = self._plan.value
        pairs, _, batch = self._difference.shape
        if form.slot is None:
            energy = self._difference.new_zeros(batch)
        else:
            energy = self._slots[form.slot].sum(0).mul_(form.scale)
        if self._quadratic is not None:
            energy += self._quadratic
        if form.constant:
            energy += form.constant * pairs
        return energy[: self._rows]

    def score(self) -> Tensor:
        form = self._plan.slope
        pairs, d, batch = self._difference.shape
        if form.slot is None:
            self._difference.mul_(-form.constant)
        else:
            push = self._slots[form.slot].mul_(-form.scale)
            if form.constant:
                push -= form.constant
            self._difference.mul_(push[:, None])
        score = self._transpose @ self._difference.view(pairs, d * batch)
        return score.view(-1, batch)[:, : self._rows].t()


class ShiftedPairs(AlikePairs):
    """Pair sums by cyclic shifts k = 1..n//2, pair (k, i) being particles i and i + k mod n.

    Differences are then one subtraction of a strided view, and the force on each particle is two
    sums over k, again of strided views: no gathers, no scatters. For even n the last shift meets
    every pair twice and counts half.
    """

    def __init__(self, x: Tensor, plan: Plan) -> None:
        rows, n, d = x.shape
        batch = _padded(rows)
        shifts = n // 2
        width = n + shifts
        wrapped = x.new_empty(width, d, batch)
        _load(wrapped[:n].view(n * d, batch), x)
        # Centred, because the harmonic part is computed from the distances to the mean.
        centred = wrapped[:n].permute(1, 0, 2)
        centred -= centred.mean(1, keepdim=True)
        wrapped[n:] = wrapped[:shifts]
        step = d * batch
        shifted = wrapped.as_strided((d, shifts, n, batch), (batch, step, step, 1), step)
        # The first `shifts` columns are room for a wrapped-around copy when forces are collected.
        self._room = x.new_empty(d, shifts, width, batch)
        self._difference = self._room[:, :, shifts:]
        torch.sub(centred[:, None], shifted, out=self._difference)
        squared = self._difference[0] * self._difference[0]
        for k in range(1, d):
            squared.addcmul_(self._difference[k], self._difference[k])
        self._centred = centred
        super().__init__(rows, plan, squared)

    def evaluate(self) -> None:
        plan = self._plan
        plan.run(self._slots)
        if self._centred.shape[1] % 2 == 0:
            for slot in {plan.value.slot, plan.slope.slot}:
                if slot is not None:
                    self._slots[slot][-1] *= 0.5

    def energy(self) -> Tensor:
        form, n = self._plan.value, self._centred.shape[1]
        energy = self._centred.new_full(self._centred.shape[2:], form.constant * n * (n - 1) / 2)
        if form.slot is not None:
            energy.add_(self._slots[form.slot].sum((0, 1)), alpha=form.scale)
        if form.quadratic:
            energy.add_(self._centred.square().sum((0, 1)), alpha=form.quadratic * n)
        return energy[: self._rows]

    def score(self) -> Tensor:
        form = self._plan.slope
        d, n, batch = self._centred.shape
        score = self._centred.new_empty(n, d, batch)
        # A constant u'(r)/r is the force of a harmonic trap about the mean.
        by_dimension = score.permute(1, 0, 2)
        torch.mul(self._centred, -form.constant * n, out=by_dimension)
        if form.slot is not None:
            self._add_pair_forces(by_dimension, self._slots[form.slot], form.scale)
        return score.view(n * d, batch)[:, : self._rows].t()

    def _add_pair_forces(self, score: Tensor, slope: Tensor, scale: float) -> None:
        d, n, batch = score.shape
        self._difference.mul_(slope)
        shifts, width = self._room.shape[1:3]
        self._room[:, :, :shifts] = self._room[:, :, n:]
        partner = self._room.as_strided(
            (d, shifts, n, batch),
            (shifts * width * batch, (width - 1) * batch, batch, 1),
            (shifts - 1) * batch,
        )
        score.add_(self._difference.sum(1), alpha=-scale)
        score.add_(partner.sum(1), alpha=scale)
