r"""Wasserstein distances between sets of configurations.

For two equal sets :math:`x_1, \dots, x_N` and :math:`y_1, \dots, y_N` the exact 2-Wasserstein
distance is an assignment problem,

.. math:: W_2^2 = \min_\pi \frac1N \sum_i c(x_i, y_{\pi(i)}),

with :math:`c` the squared Euclidean distance between flattened coordinates (``wasserstein2``). For
a system whose energy ignores rotation, reflection and the labels of its particles, most of that
distance is the arbitrary pose of each configuration. ``geometric_wasserstein2`` removes it from the
ground cost,

.. math:: c(x, y) = \min_{P, R \in O(d)} \lVert x - P y R \rVert^2
                  = |x|^2 + |y|^2 - 2 \max_P \lVert x^\top P y \rVert_*,

where :math:`\lVert\cdot\rVert_*` is the nuclear norm and configurations are centred.

How the ground cost is minimised depends on the system:

* Up to five particles in the plane, or three in space: all permutations are enumerated. In complex
  notation the nuclear norm of the 2 x 2 matrix is
  :math:`\max(|\sum \bar x_i y_i|, |\sum x_i y_i|)`, so the cost is exact.
* Particles of several types: permutations that mix types are left out of either way.
* Labelled particles: one Kabsch problem per pair, exact.
* Otherwise permutation (Hungarian) and rotation (Kabsch) are optimised in turn from several starts.
  A start is a rotation or rotoreflection that lays a frame of two particles of ``y`` on the frame
  of the two outermost particles of ``x``; the starts are ranked by a lower bound of their matching
  cost and the best few are iterated. Each cost is that of an actual pose, hence an upper bound.
  Only pairs that an optimal plan could use are evaluated: plans are computed with optimistic
  estimates for the pairs not yet evaluated, their members are evaluated, and so on. The result is
  the cost of an actual plan, hence an upper bound of the distance, and deterministic.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from molsampler.errors import InputError
from molsampler.target import System

from .draws import Draw, Draws, Settings
from .metric import Distance, Value

Array = NDArray[np.float64]

#: Most particles whose permutations are enumerated (5! = 120).
ENUMERATED_PARTICLES = 5

#: How many residual standard deviations an unevaluated cost is taken below its estimate.
OPTIMISM = 2.0

#: Steps to the largest root of a quartic; a double root, of collinear particles, halves its error by step.
_NEWTON_STEPS = 40

#: Pairs of configurations whose 3 x 3 matrices are worked on at once, and stay in a cache.
_PAIRS = 2**15

#: Number of float64 values in one block of temporary storage.
_BLOCK = 4_000_000


@dataclass(frozen=True)
class GeometricTransport:
    """A geo-W2 value and how it was obtained.

    Attributes
    ----------
    value : the distance, in the system's length unit
    exact : whether every ground cost and the plan are exact; otherwise ``value`` is an upper bound
    evaluated : share of the N x N ground costs that were computed
    """

    value: float
    exact: bool
    evaluated: float


def _pair_of_sets(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    for name, value in (("x", x), ("y", y)):
        if not isinstance(value, Tensor) or value.dim() != 3 or value.shape[0] == 0:
            received = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise InputError(
                f"{name} must be a tensor (sample, particle, dimension), got {received}"
            )
        if not bool(torch.isfinite(value).all()):
            raise InputError(f"{name} holds NaN or infinite coordinates; finite ones are expected")
    if x.shape[1:] != y.shape[1:]:
        raise InputError(
            f"x and y must hold configurations of one shape, got {tuple(x.shape[1:])} "
            f"and {tuple(y.shape[1:])}"
        )
    return x.detach().cpu().double(), y.detach().cpu().double()


def optimal_cost(cost: Array) -> tuple[float, tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Exact optimal transport cost between uniform weights, and the pairs the plan uses.

    ``cost`` has shape ``(N, M)``. Equal numbers make the problem an assignment; unequal ones are
    solved by POT's network simplex.
    """
    if cost.shape[0] == cost.shape[1]:
        from scipy.optimize import linear_sum_assignment

        rows, columns = linear_sum_assignment(cost)
        return float(cost[rows, columns].mean()), (rows, columns)
    import ot

    n, m = cost.shape
    plan = ot.emd(np.full(n, 1 / n), np.full(m, 1 / m), cost, numItermax=10_000_000)
    rows, columns = np.nonzero(plan)
    return float((plan[rows, columns] * cost[rows, columns]).sum()), (rows, columns)


def wasserstein2(x: Tensor, y: Tensor) -> float:
    r"""Exact 2-Wasserstein distance of raw coordinates.

    .. math:: W_2^2 = \min_{\gamma} \sum_{ij} \gamma_{ij} \lVert x_i - y_j \rVert^2

    over couplings of the two uniform empirical measures.

    Parameters
    ----------
    x, y : shapes ``(N, n, d)`` and ``(M, n, d)``, system length unit

    Returns
    -------
    The distance in the system's length unit.

    Raises
    ------
    InputError
        Shapes differ, a set is empty, or a coordinate is not finite.
    """
    a, b = _pair_of_sets(x, y)
    cost = torch.cdist(
        a.flatten(1), b.flatten(1), compute_mode="donot_use_mm_for_euclid_dist"
    ).square()
    return float(np.sqrt(max(optimal_cost(cost.numpy())[0], 0.0)))


def _planar_costs(x: Tensor, y: Tensor, types: Sequence[int]) -> Array:
    """Exact ground costs (N, M) by enumeration, for centred planar x (N, n, 2) and y (M, n, 2)."""
    n = x.shape[1]
    # float32 carries six digits of an inner product, ample for a distance that is then averaged.
    u, v = (torch.view_as_complex(s.float().contiguous()) for s in (x, y))
    # Rotations see sum conj(u) v, reflections sum u v: one product serves both.
    both = torch.stack((u, u.conj())).reshape(-1, n)
    rows = max(1, _BLOCK // max(1, len(v)))
    best = torch.zeros(len(both), len(v))
    permutations = torch.tensor(
        [
            each
            for each in itertools.permutations(range(n))
            if all(types[i] == types[j] for i, j in enumerate(each))
        ]
    )
    for start in range(0, len(both), rows):
        block = both[start : start + rows]
        out = best[start : start + rows]
        for permutation in permutations:
            product = torch.view_as_real(block @ v[:, permutation].T)
            torch.maximum(out, product.square().sum(-1), out=out)
    overlap = best.view(2, len(x), len(v)).amax(0).sqrt().double()
    return cast(Array, (_pair_norms(x, y) - 2 * overlap).clamp_min(0).numpy())


def _flattened(x: Tensor) -> Tensor | None:
    """Centred configurations (N, n, 2) congruent to x where x is planar by its counts, else None."""
    n, d = x.shape[1:]
    if d <= 2:
        return torch.nn.functional.pad(x, (0, 2 - d))
    if n <= 3:
        # Three centred particles span a plane; its principal axes carry all their coordinates.
        u, s, _ = torch.linalg.svd(x, full_matrices=False)
        return cast(Tensor, u * s[:, None, :])[..., :2]
    return None


def enumerable(n: int, d: int) -> bool:
    """Whether the ground cost of ``n`` exchangeable particles in ``d`` dimensions is found exactly."""
    return n <= ENUMERATED_PARTICLES and (d <= 2 or n <= 3)


def _pair_norms(x: Tensor, y: Tensor) -> Tensor:
    return x.square().sum((1, 2))[:, None] + y.square().sum((1, 2))[None, :]


def _rigid_costs(x: Tensor, y: Tensor) -> Array:
    """Exact ground costs (N, M) over rotations and reflections of labelled, centred particles."""
    rows = max(1, _PAIRS // len(y))
    overlap = torch.cat(
        [_nuclear_norm(torch.einsum("ipa,jpb->ijab", block, y)) for block in torch.split(x, rows)]
    )
    return cast(Array, (_pair_norms(x, y) - 2 * overlap).clamp_min(0).numpy())


def _nuclear_norm(m: Tensor) -> Tensor:
    r"""Sum of the singular values of matrices ``(*b, d, d)``, d <= 3, without decomposing them one by one.

    With :math:`p = \sum s_i^2`, :math:`q = \sum_{i<j} s_i^2 s_j^2` and :math:`D = s_1 s_2 s_3` the sum is
    the largest root of :math:`(\lambda^2 - p)^2 - 8 D \lambda - 4 q`, to which Newton's method falls from
    the bound :math:`\sqrt{3 p}` (the quartic of Theobald, Acta Cryst. A 61, 478, 2005, for both hands).
    """
    if m.shape[-1] != 3:
        return cast(Tensor, torch.linalg.svdvals(m).sum(-1))
    square = m.mT @ m
    p = square.diagonal(dim1=-2, dim2=-1).sum(-1)
    q = 0.5 * (p.square() - square.square().sum((-2, -1))).clamp_min(0)
    a, b, c = m.unbind(-2)
    determinant = (a * torch.linalg.cross(b, c)).sum(-1).abs()
    found = (3 * p).sqrt()
    for _ in range(_NEWTON_STEPS):
        excess = found.square() - p
        value = excess.square() - 8 * determinant * found - 4 * q
        slope = 4 * found * excess - 8 * determinant
        step = torch.where(slope > 0, value / slope, torch.zeros_like(value)).clamp_min(0)
        found = found - step
        if bool((step <= 1e-13 * found).all()):
            break
    return found


def _frame(first: Tensor, second: Tensor) -> Tensor:
    """Right-handed orthonormal frames (*b, 3, 3), rows as axes, from two vectors (*b, 3)."""
    length = first.norm(dim=-1, keepdim=True)
    # A particle at the centre gives no direction; any will do.
    e1 = torch.where(length > 1e-9, first, torch.eye(3, dtype=first.dtype)[0])
    e1 = e1 / e1.norm(dim=-1, keepdim=True)
    rest = second - (second * e1).sum(-1, keepdim=True) * e1
    # Collinear vectors leave the second axis open; any perpendicular one will do.
    spare = torch.linalg.cross(e1, torch.eye(3, dtype=e1.dtype)[e1.abs().argmin(-1)])
    rest = torch.where(rest.norm(dim=-1, keepdim=True) > 1e-9, rest, spare)
    e2 = rest / rest.norm(dim=-1, keepdim=True)
    return torch.stack((e1, e2, torch.linalg.cross(e1, e2)), -2)


def _starts(x: Tensor, y: Tensor, types: Tensor, frames: int) -> Tensor:
    """Orthogonal matrices R (b, k, 3, 3) such that y R lays two particles of y on two of x."""
    n = x.shape[1]
    a, b = zip(*itertools.permutations(range(n), 2), strict=True)
    first, second = torch.tensor(a), torch.tensor(b)
    rows = torch.arange(len(x))
    outermost = x.norm(dim=-1).topk(2, dim=-1).indices
    u, w = x[rows, outermost[:, 0]], x[rows, outermost[:, 1]]
    if len(first) > frames:
        # Keep the frames whose two radii and separation come closest to those of x.
        radius = y.norm(dim=-1)
        separation = torch.cdist(y, y)
        mismatch = (
            (radius[:, first] - u.norm(dim=-1)[:, None]).square()
            + (radius[:, second] - w.norm(dim=-1)[:, None]).square()
            + (separation[:, first, second] - (u - w).norm(dim=-1)[:, None]).square()
        )
        ends = types[outermost]
        other = (types[first] != ends[:, :1]) | (types[second] != ends[:, 1:])
        mismatch = mismatch.masked_fill(other, torch.inf)
        kept = mismatch.topk(frames, dim=1, largest=False).indices
        first, second = first[kept], second[kept]
        own = _frame(y[rows[:, None], first], y[rows[:, None], second])
    else:
        own = _frame(y[:, first], y[:, second])
    target = _frame(u, w)[:, None]
    mirrored = target * torch.tensor([1.0, 1.0, -1.0], dtype=x.dtype)[:, None]
    return torch.cat((own.mT @ target, own.mT @ mirrored), 1)


def _match_costs(
    x: Tensor, y: Tensor, *, types: Tensor, starts: int, frames: int, iterations: int
) -> tuple[Tensor, Tensor]:
    """Upper bounds (b,) of the ground costs of b given pairs, and the rotations that attain them."""
    from scipy.optimize import linear_sum_assignment

    with torch.no_grad():
        other = types[:, None] != types
        candidates = _starts(x, y, types, frames).float()
        xs, ys = x.float(), y.float()
        # Each particle goes at least as far as to its nearest partner, whichever side is asked.
        rotated = torch.einsum("bnd,bkde->bkne", ys, candidates)
        inner = torch.einsum("bme,bkne->bkmn", xs, rotated)
        squared = (
            xs.square().sum(-1)[:, None, :, None] + ys.square().sum(-1)[:, None, None, :]
        ) - 2 * inner
        squared = squared.masked_fill(other, torch.inf)
        bound = torch.maximum(squared.amin(-1).sum(-1), squared.amin(-2).sum(-1))
        order = bound.topk(min(starts, bound.shape[1]), dim=1, largest=False).indices
        k = order.shape[1]
        rotation = candidates.gather(1, order[..., None, None].expand(-1, -1, 3, 3)).double()
        rotation = rotation.flatten(0, 1)
        xk, yk = x.repeat_interleave(k, 0), y.repeat_interleave(k, 0)
        overlap = torch.full((len(xk),), -torch.inf, dtype=torch.float64)
        active = torch.arange(len(xk))
        for _ in range(iterations):
            profit = xk[active] @ (yk[active] @ rotation[active]).mT
            profits = profit.masked_fill(other, -torch.inf).numpy()
            matched = np.stack([linear_sum_assignment(m, maximize=True)[1] for m in profits])
            index = torch.from_numpy(matched)[:, :, None].expand(-1, -1, 3)
            u, s, vt = torch.linalg.svd(yk[active].gather(1, index).mT @ xk[active])
            rotation[active] = u @ vt
            gained = s.sum(-1) - overlap[active]
            overlap[active] = s.sum(-1)
            active = active[gained > 1e-9]
            if not len(active):
                break
        best, which = overlap.view(-1, k).max(1)
        cost = x.square().sum((1, 2)) + y.square().sum((1, 2)) - 2 * best
        return cost.clamp_min(0), rotation.view(-1, k, 3, 3)[torch.arange(len(x)), which]


def _features(x: Tensor, y: Tensor) -> Array:
    """Cheap invariant differences (N, M, f) from which ground costs are estimated linearly."""
    n = x.shape[1]
    i, j = torch.triu_indices(n, n, 1)

    def invariants(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        radii = z.norm(dim=-1).sort(-1).values
        distances = torch.cdist(z, z)[:, i, j].sort(-1).values
        return radii, distances, torch.linalg.svdvals(z)

    parts = [torch.ones(len(x), len(y), dtype=x.dtype)]
    for a, b in zip(invariants(x), invariants(y), strict=True):
        difference = torch.cdist(a, b)
        parts += [difference, difference.square()]
    return cast(Array, torch.stack(parts, -1).numpy())


class _SparseCosts:
    """Ground costs evaluated on demand; NaN where a pair has not been asked for."""

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        *,
        types: Sequence[int],
        starts: int,
        frames: int,
        iterations: int,
    ):
        self.x, self.y, self.types = x, y, torch.tensor(types)
        self.settings = {"starts": starts, "frames": frames, "iterations": iterations}
        self.known = np.full((len(x), len(y)), np.nan)
        n = x.shape[1]
        self.block = max(1, _BLOCK // (2 * min(frames, n * (n - 1)) * n * n))

    def evaluate(self, wanted: NDArray[np.bool_]) -> int:
        """Evaluate the wanted pairs that are not known yet; returns how many there were."""
        rows, columns = np.nonzero(wanted & np.isnan(self.known))
        for s in range(0, len(rows), self.block):
            i, j = rows[s : s + self.block], columns[s : s + self.block]
            found = _match_costs(self.x[i], self.y[j], types=self.types, **self.settings)
            self.known[i, j] = found[0].numpy()
        return len(rows)


def _nearest(estimate: Array, k: int) -> NDArray[np.bool_]:
    """The k smallest entries of every row and of every column."""
    wanted = np.zeros(estimate.shape, dtype=bool)
    for axis, size in ((1, estimate.shape[1]), (0, estimate.shape[0])):
        order = np.argpartition(estimate, min(k, size) - 1, axis=axis)
        chosen = order[:, :k] if axis == 1 else order[:k]
        np.put_along_axis(wanted, chosen, True, axis=axis)
    return wanted


def _matched_cost(
    x: Tensor,
    y: Tensor,
    *,
    types: Sequence[int],
    starts: int,
    frames: int,
    iterations: int,
    neighbours: int,
    rounds: int,
) -> tuple[float, float]:
    """Upper bound of the optimal mean ground cost, and the share of pairs that was evaluated."""
    costs = _SparseCosts(x, y, types=types, starts=starts, frames=frames, iterations=iterations)
    features = _features(x, y)

    def estimate() -> tuple[Array, float]:
        known = ~np.isnan(costs.known)
        weights = np.linalg.lstsq(features[known], costs.known[known], rcond=None)[0]
        spread = np.std(costs.known[known] - features[known] @ weights)
        return np.maximum(features @ weights, 0.0), float(spread)

    costs.evaluate(_nearest(features[..., 2], max(1, neighbours // 4)))
    costs.evaluate(_nearest(estimate()[0], neighbours))
    for _ in range(rounds):
        guess, spread = estimate()
        known = ~np.isnan(costs.known)
        optimistic = np.where(known, costs.known, np.maximum(guess - OPTIMISM * spread, 0.0))
        _, (rows, columns) = optimal_cost(optimistic)
        wanted = np.zeros(known.shape, dtype=bool)
        wanted[rows, columns] = True
        if costs.evaluate(wanted) == 0:
            break
    # The plans evaluated above are feasible, so evaluated pairs alone carry one; the penalty keeps
    # every other pair out of it.
    known = ~np.isnan(costs.known)
    penalty = 1e3 * (len(x) + len(y)) * (np.nanmax(costs.known) + 1.0)
    best, _ = optimal_cost(np.where(known, costs.known, penalty))
    return best, float(known.mean())


def geometric_wasserstein2(
    x: Tensor,
    y: Tensor,
    *,
    exchangeable: bool = True,
    types: Sequence[int] | None = None,
    starts: int = 4,
    frames: int = 20,
    neighbours: int = 32,
    rounds: int = 40,
) -> GeometricTransport:
    r"""2-Wasserstein distance whose ground cost is minimised over poses and labels.

    .. math:: c(x, y) = \min_{P, R \in O(d)} \lVert x - P y R \rVert^2

    with both configurations centred; ``P`` stays the identity unless ``exchangeable``, and among equal
    ``types``. See the
    module's text for the algorithm. Up to five particles in the plane, up to three in space, and labelled
    particles are solved exactly. Otherwise the value is an upper bound: on 13-particle
    Lennard-Jones clusters the defaults exceed the value from six times as many starts on all pairs
    by about 2 %, in samples and floors alike, while evaluating a fifth of the pairs at N = 300.

    Parameters
    ----------
    x, y : shapes ``(N, n, d)`` and ``(M, n, d)`` with ``d <= 3``, system length unit
    exchangeable : whether particles may be relabelled
    types : one of each particle: those of equal type may be, others not
    starts : rotations iterated per pair, the best of ``2 * frames`` ranked ones
    frames : two-particle frames considered per pair
    neighbours : pairs evaluated per row and column before the first plan
    rounds : plans computed at most with the costs found so far

    Raises
    ------
    InputError
        Shapes differ, a set is empty, ``d > 3``, a coordinate is not finite, or a setting is not
        positive.
    """
    a, b = _pair_of_sets(x, y)
    n, d = a.shape[1:]
    for name, value in (
        ("starts", starts),
        ("frames", frames),
        ("neighbours", neighbours),
        ("rounds", rounds),
    ):
        if value < 1:
            raise InputError(f"{name} must be a positive integer, got {value!r}")
    if d > 3:
        raise InputError(f"geo-W2 is defined here for up to 3 dimensions, got d = {d}")
    kinds = (0,) * n if types is None else tuple(types)
    if len(kinds) != n:
        raise InputError(f"types must hold {n} numbers, one for each particle, got {len(kinds)}")
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    flat_a, flat_b = _flattened(a), _flattened(b)
    if exchangeable and n <= ENUMERATED_PARTICLES and flat_a is not None and flat_b is not None:
        best, share, exact = optimal_cost(_planar_costs(flat_a, flat_b, kinds))[0], 1.0, True
    elif not exchangeable or len(set(kinds)) == n:
        best, share, exact = optimal_cost(_rigid_costs(a, b))[0], 1.0, True
    else:
        # A planar set in three dimensions has the same optimum: its overlap matrix gains zeros only.
        a, b = (torch.nn.functional.pad(s, (0, 3 - d)) for s in (a, b))
        best, share = _matched_cost(
            a,
            b,
            types=kinds,
            starts=starts,
            frames=frames,
            iterations=8,
            neighbours=neighbours,
            rounds=rounds,
        )
        exact = False
    return GeometricTransport(float(np.sqrt(max(best, 0.0))), exact, share)


class Wasserstein2(Distance):
    key = "w2"
    name = "W2"
    definition = (
        "Exact 2-Wasserstein distance between raw coordinates. For systems without a preferred "
        "pose it mostly measures how poses and labels happen to be distributed, and is not judged."
    )
    unit = "length"

    def repeats(self, settings: Settings) -> int:
        return settings.transport_repeats

    def judges(self, system: System) -> bool:
        """Only where the energy knows the pose: frames of a simulation may have hardly turned."""
        return not system.invariant

    def value(self, samples: Draw, reference: Draw) -> Value:
        note = (
            "poses and labels of the reference decide it: not judged"
            if samples.system.invariant
            else ""
        )
        return Value(wasserstein2(samples.positions, reference.positions), note=note)


class GeometricWasserstein2(Distance):
    key = "geo_w2"
    name = "geo-W2"
    definition = (
        "2-Wasserstein distance whose ground cost is minimised over rotations, reflections and, "
        "for particles that are alike, permutations. Where it is not exact it is the cost of an actual "
        "matching, an upper bound, in value and floor alike."
    )
    unit = "length"

    def applies(self, system: System) -> bool:
        n, d = system.shape
        return system.invariant and n > 1 and d <= 3

    def repeats(self, settings: Settings) -> int:
        return settings.transport_repeats

    def size(self, draws: Draws) -> int:
        """Configurations per draw that keep it within seconds, where the settings name no number."""
        n, d = draws.system.shape
        types = draws.system.alike
        quick = types is None or len(set(types)) == n or enumerable(n, d)
        limit = 1000 if quick else 300 if n <= 20 else 100
        return min(draws.n, draws.settings.geometric_n or limit)

    def value(self, samples: Draw, reference: Draw) -> Value:
        types = samples.system.alike
        found = geometric_wasserstein2(
            samples.positions, reference.positions, exchangeable=types is not None, types=types
        )
        return Value(found.value, note="exact" if found.exact else "upper bound, as is its floor")
