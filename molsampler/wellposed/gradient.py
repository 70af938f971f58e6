r"""Whether the score is minus the gradient of the energy.

Along a short segment of direction v the energy must change by the line integral of the score,

.. math:: u(b) - u(a) = -\int_a^b s(x) \cdot v \, \mathrm{d}\ell,

which unlike a difference quotient also sees steps, and asks for few digits. The integral is Simpson's on
eight parts; what it changes against four is the error allowed for, many times over. Several lengths are
tried, and a score is refused only where most segments disagree.
"""

from __future__ import annotations

import torch

from ..errors import IllPosedError
from ..target import System
from .evaluator import Evaluator
from .start import Bases

#: Segments, and their lengths relative to the configuration.
_SEGMENTS = 6
_LENGTHS = (1.0, 1e-1, 1e-2, 1e-3)

#: Disagreement allowed, relative to the integral of the magnitude, to the error of the quadrature, and to
#: the energy, which some systems compute in float32.
_SHARE, _ERRORS, _ROUNDING = 0.05, 20.0, 1e-4

_FINE = torch.tensor([1.0, 4, 2, 4, 2, 4, 2, 4, 1], dtype=torch.float64) / 24
_COARSE = torch.tensor([1.0, 4, 2, 4, 1], dtype=torch.float64) / 12


def require_score(system: System, evaluate: Evaluator, bases: Bases) -> None:
    """Refuse a score that is not minus the gradient.

    Raises
    ------
    IllPosedError
        Most segments disagree, or the score is NaN where the energy is finite.
    """
    rng = torch.Generator().manual_seed(2)
    like = torch.empty(0, dtype=torch.float64)
    segments, lengths = (3, _LENGTHS[2:]) if bases.sparing else (_SEGMENTS, _LENGTHS)
    rows = [k % len(bases.position) for k in range(segments)]
    direction = system.space.randn(segments, generator=rng, like=like)
    direction = direction / direction.flatten(1).norm(dim=1)[:, None, None]
    n = system.shape[0]
    offset = 0.02 * bases.size * system.space.randn(segments, generator=rng, like=like)
    start = bases.position[rows] + offset * n**-0.5
    wrong, example = 0, ""
    judged = [False] * segments
    failed = [False] * segments
    for share in lengths:
        length = share * bases.size
        t = torch.linspace(0, length, 9, dtype=torch.float64)
        x = start[:, None] + t[:, None, None] * direction[:, None]
        u, score = evaluate(x.flatten(0, 1))
        u, score = u.reshape(segments, 9), score.reshape(x.shape)
        if bool((score.isnan().flatten(2).any(2) & torch.isfinite(u)).any()):
            raise IllPosedError(
                f"the score of {system.name!r} is NaN where the energy is finite; its derivative may be "
                "that of a root at zero or of torch.where over an undefined branch"
            )
        slope = -(score * direction[:, None]).sum((2, 3))
        change = u[:, -1] - u[:, 0]
        fine, coarse = length * (slope @ _FINE), length * (slope[:, ::2] @ _COARSE)
        scale, error = length * (slope.abs() @ _FINE), (fine - coarse).abs()
        resolved = torch.isfinite(scale) & torch.isfinite(u).all(1) & (error <= 0.05 * scale + 1e-9)
        allowed = _SHARE * scale + _ERRORS * error + _ROUNDING * (1 + u.abs().amax(1))
        bad = resolved & ((change - fine).abs() > allowed)
        for k in range(segments):
            judged[k] |= bool(resolved[k])
            if bad[k]:
                failed[k] = True
                example = example or (
                    f"over a length of {length:.3g} the energy changes by {float(change[k]):.4g} kT, "
                    f"by the score it should by {float(fine[k]):.4g} kT"
                )
    wrong = sum(failed)
    if wrong >= 2 and wrong > 0.6 * sum(judged):
        raise IllPosedError(
            f"the score of {system.name!r} is not minus the gradient of its energy: {example} "
            f"({wrong} of {sum(judged)} segments disagree). Energies that are rounded, looked up or "
            "computed outside torch have no score; a force may have the wrong sign or unit"
        )
